"""Ray Tune: trials over the selection folds, in their own processes or, with several workers, under Ray Train.

Every trial has an identity, the hash of its hyperparameters, and a folder of that name. A finished trial leaves its
result in the ledger, so that a search that was interrupted runs none of them again; an unfinished one goes on from its
checkpoint. No state of Tune's own is read back.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import ray
import torch
from ray import tune
from ray.tune.integration.ray_train import TuneReportCallback
from ray.tune.schedulers import ASHAScheduler

from fraud_ray.cluster import Room, shelved
from fraud_ray.data.rows import PreparedFold
from fraud_ray.errors import DivergedError, FraudRayError
from fraud_ray.progress import counted
from fraud_ray.settings import Settings
from fraud_ray.storage import Storage
from fraud_ray.training.space import EstimatorSearcher, Hyperparameters, enumerate_space, in_words, trial_id
from fraud_ray.training.trainer import CHECKPOINT, Place, load_checkpoint, place, train_on_workers, train_rank

METRIC = "best_average_precision"
FAULT = "fault"  # in a trial's last result: why it failed


@dataclass(frozen=True)
class Trial:
    """A finished trial.

    average_precision: mean over the selection holdouts at the best epoch; None of one that came to no end of an epoch,
    or that failed. status: finished, stopped (by scheduler or time budget) or failed, for which `fault` is the reason.
    curve: a dictionary an epoch.
    """

    id: str
    hyperparameters: Hyperparameters
    status: str
    average_precision: float | None
    best_epoch: int
    seconds: float
    curve: tuple[dict[str, Any], ...] = ()
    fault: str | None = None


@dataclass(frozen=True, repr=False)
class SearchOutcome:
    """The best trial, and all trials from best to worst. The best one's holdout logits: `selection_logits`.

    never_run: how many trials the time budget left no time for.
    """

    best: Trial
    trials: tuple[Trial, ...]
    folder: str
    reused: int
    never_run: int = 0

    def __repr__(self) -> str:
        best = self.best
        kept = f", {self.reused} kept" if self.reused else ""
        kept += f", {self.never_run} more never ran (search.time_budget_s)" if self.never_run else ""
        return (
            f"{counted(len(self.trials), 'trial')}{kept}; best: {in_words(best.hyperparameters)}, "
            f"selection AP {best.average_precision:.4f} at epoch {best.best_epoch}"
        )

    def to_json(self) -> dict[str, Any]:
        """Which trials, by id: what they came to is in the ledger."""
        beside = {"folder": self.folder, "reused": self.reused, "never_run": self.never_run}
        return {"trials": [trial.id for trial in self.trials], **beside}

    @classmethod
    def from_json(cls, stored: dict[str, Any], storage: Storage) -> SearchOutcome:
        """What `to_json` gave, with the trials of the ledger. Raises FraudRayError where one is gone."""
        ledger = _read_ledger(storage, stored["folder"])
        gone = [name for name in stored["trials"] if name not in ledger]
        if gone:
            where = storage.path(_ledger_key(stored["folder"], gone[0]))
            raise FraudRayError(f"{where} is gone; delete the run's folder and run again")
        trials = tuple(ledger[name] for name in stored["trials"])
        return cls(trials[0], trials, stored["folder"], stored["reused"], stored.get("never_run", 0))


def search(
    selection: Sequence[PreparedFold],
    settings: Settings,
    storage: Storage,
    folder: str,
    finished: Callable[[Trial], None],
    update: Callable[[float, float, str], None],
) -> SearchOutcome:
    """Finds the hyperparameters with the highest mean AP over the selection holdouts.

    folder: key below the storage root; the same again keeps finished trials. finished: called once for each trial,
    also for those of an earlier start. Raises FraudRayError when every trial failed.
    """
    space, train = settings.search, settings.train
    ledger = _read_ledger(storage, folder)
    known = {name: trial for name, trial in ledger.items() if trial.status != "failed"}
    for trial in known.values():
        finished(trial)
    plan = None if space.algorithm == "tpe" and space.space else enumerate_space(settings)
    open_points = None if plan is None else [p for p in plan if trial_id(p) not in known]
    total = len(plan) if plan is not None else space.trials
    update(len(known), total, f"{counted(len(known), 'trial')} kept" if known else "")
    if open_points or (plan is None and len(known) < total):
        room = Room(settings, for_search=True)
        watcher = _Watcher(storage, folder, total, train.epochs, known, ledger, finished, update, room)
        with shelved([place(fold, train, storage, with_holdout=True) for fold in selection]) as folds:
            _run_tune(open_points, known, folds, settings, storage, folder, watcher)
    wanted = ledger if plan is None else {trial_id(p) for p in plan}
    trials = [t for t in ledger.values() if t.id in wanted]
    judged = [t for t in trials if t.average_precision is not None]
    if not judged:
        faults = {t.fault for t in trials if t.fault}
        raise FraudRayError(
            "no trial came to a result"
            + (f"; the first fault: {sorted(faults)[0]}" if faults else "; raise search.time_budget_s")
        )
    ranked = sorted(trials, key=lambda t: (-(t.average_precision if t.average_precision is not None else -1), t.id))
    return SearchOutcome(ranked[0], tuple(ranked), folder, len(known), never_run=max(total - len(trials), 0))


def selection_logits(outcome: SearchOutcome, storage: Storage) -> list[np.ndarray[Any, np.dtype[np.float32]]]:
    """Holdout logits of the best trial at its best epoch, one array a selection fold."""
    state = load_checkpoint(storage, f"{outcome.folder}/{outcome.best.id}")
    return [logits.numpy() for logits in state["best_logits"]]


def concurrency(settings: Settings, resources: dict[str, float]) -> int:
    """How many trials fit into a cluster at once: the smallest quotient over what each trial's ranks reserve.

    A multi-worker trial's own process reserves nothing, so it can't hold what its workers wait for.
    """
    needs = settings.rank_resources(for_search=True)
    fits = [
        int(resources.get(key, 0) / (amount * settings.train.workers) + 1e-9) for key, amount in needs.items() if amount
    ]
    most = max(1, min(fits, default=1))
    return min(most, settings.search.concurrency or most)


def run_trial(config: dict[str, Any], context: dict[str, Any]) -> None:
    """Tune's train function: one trial, in this process or on workers of its own."""
    settings: Settings = context["settings"]
    storage: Storage = context["storage"]
    folder = f"{context['folder']}/{trial_id(config['point'])}"
    train = settings.train_with(config["point"])
    epochs, folds = train.epochs, ray.get(context["folds"].take.remote())
    if train.workers > 1:
        resources = settings.rank_resources(for_search=True)
        train_on_workers(train, epochs, folds, storage, folder, resources, TuneReportCallback())
        return

    def report(result: dict[str, Any], content: bytes | None) -> None:
        if content is not None:
            storage.put(f"{folder}/{CHECKPOINT}", content)
        tune.report(result)

    alone = Place(0, 1, torch.device("cuda" if train.use_gpu else "cpu"))
    try:
        train_rank(train, epochs, folds, storage, report, storage.get(f"{folder}/{CHECKPOINT}"), alone)
    except DivergedError as fault:  # a result: raised, it would be tried again, and come to the same
        tune.report({"epoch": fault.epoch, METRIC: 0.0, FAULT: str(fault)})


class _Watcher(tune.Callback):
    """Writes each finished trial into the ledger, and tells the driver."""

    def __init__(
        self,
        storage: Storage,
        folder: str,
        total: int,
        epochs: int,
        known: dict[str, Trial],
        ledger: dict[str, Trial],
        finished: Callable[[Trial], None],
        update: Callable[[float, float, str], None],
        room: Room,
    ) -> None:
        self.storage, self.folder, self.ledger = storage, folder, ledger
        self.room = room
        self.total, self.epochs = total, epochs
        self.finished, self.update = finished, update
        self.done = len(known)
        self.best = max((t.average_precision or 0.0 for t in known.values()), default=0.0)
        self.running: dict[str, tuple[Any, int]] = {}  # trials, and the epoch that each has reached

    def on_step_begin(self, iteration: int, trials: list[Any], **info: Any) -> None:
        self.room.look(lambda lacking: self.update(self.done, self.total, lacking))

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        self.best = max(self.best, result.get(METRIC, 0.0))
        self.running[trial.trial_id] = trial, result["epoch"]
        at = [(epoch, one.config["point"].get("epochs", self.epochs)) for one, epoch in self.running.values()]
        running = ", ".join(f"{epoch} of {epochs}" for epoch, epochs in at)
        done = self.done + sum(epoch / epochs for epoch, epochs in at)
        self.update(done, self.total, f"best AP {self.best:.4f}; at epoch {running}")

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._conclude(trial, None)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._conclude(trial, _last_line(trial.error_file))

    def conclude_the_rest(self) -> None:
        """Concludes what ran when the time was up: Tune ends such trials without a word."""
        for trial, _ in list(self.running.values()):
            self._conclude(trial, None)

    def _conclude(self, trial: Any, fault: str | None) -> None:
        point = trial.config["point"]
        name = trial_id(point)
        try:
            state = load_checkpoint(self.storage, f"{self.folder}/{name}")
        except FraudRayError:  # it came to no end of an epoch
            state = {"curve": [], "is_finished": False}
        curve, fault = state["curve"], fault or trial.last_result.get(FAULT)
        last = curve[-1] if curve else {}
        result = Trial(
            id=name,
            hyperparameters=point,
            status="failed" if fault else "finished" if state["is_finished"] else "stopped",
            average_precision=None if fault else last.get(METRIC),
            best_epoch=last.get("best_epoch", 0),
            seconds=float(trial.last_result.get("time_total_s", 0.0)),
            curve=tuple(curve),
            fault=fault,
        )
        self.ledger[name] = result
        self.storage.put_json(_ledger_key(self.folder, name), asdict(result))
        self.running.pop(trial.trial_id, None)
        self.done += 1
        self.finished(result)
        self.update(self.done, self.total, f"best AP {self.best:.4f}")


def _run_tune(
    points: list[Hyperparameters] | None,
    known: dict[str, Trial],
    folds: Any,
    settings: Settings,
    storage: Storage,
    folder: str,
    watcher: _Watcher,
) -> None:
    search, epochs = settings.search, settings.train.epochs
    context = {"settings": settings, "storage": storage, "folder": folder, "folds": folds}
    trainable = tune.with_resources(tune.with_parameters(run_trial, context=context), _own_resources(settings))
    if points is None:
        judged = [(t.hyperparameters, t.average_precision) for t in known.values() if t.average_precision is not None]
        space, algorithm = {}, EstimatorSearcher(settings, METRIC, judged)
        samples = search.trials - len(known)
    else:
        space, algorithm, samples = {"point": tune.grid_search(points)}, None, 1
    # Tuner would store the callback, which tells this process.
    tune.run(
        trainable,
        name="tune",
        storage_path=storage.path(folder),
        config=space,
        metric=METRIC,
        mode="max",
        scheduler=ASHAScheduler(time_attr="epoch", max_t=epochs, grace_period=min(search.grace_epochs, epochs))
        if search.stops_weak_trials
        else None,
        search_alg=algorithm,
        num_samples=samples,
        max_concurrent_trials=concurrency(settings, ray.cluster_resources()),
        time_budget_s=search.time_budget_s,
        reuse_actors=settings.train.workers == 1,
        trial_name_creator=lambda trial: trial_id(trial.config["point"]),
        trial_dirname_creator=lambda trial: trial_id(trial.config["point"]),
        max_failures=settings.train.max_failures,
        raise_on_failed_trial=False,
        callbacks=[watcher],
        verbose=0,
    )
    watcher.conclude_the_rest()


def _own_resources(settings: Settings) -> dict[str, float]:
    """What a trial's own process reserves, in Tune's names.

    Where workers of its own do the training that is one byte: Tune refuses an empty request, and a share of a CPU
    would be missing when the workers take the last whole one.
    """
    if settings.train.workers > 1:
        return {"cpu": 0.0, "memory": 1.0}
    names = {"CPU": "cpu", "GPU": "gpu"}
    return {names.get(key, key): amount for key, amount in settings.rank_resources(for_search=True).items()}


def _ledger_key(folder: str, name: str) -> str:
    return f"{folder}/ledger/{name}.json"


def _read_ledger(storage: Storage, folder: str) -> dict[str, Trial]:
    """Concluded trials by id."""
    stored = (storage.get_json(key) for key in storage.keys(f"{folder}/ledger"))
    trials = (Trial(**{**one, "curve": tuple(one["curve"])}) for one in stored if one is not None)
    return {trial.id: trial for trial in trials}


def _last_line(error_file: str | None) -> str:
    if not error_file:
        return "unknown fault"
    kept = [line.strip() for line in Path(error_file).read_text().splitlines() if line.strip()]
    return kept[-1] if kept else "unknown fault"
