"""Ray Tune: trials over the selection folds, in their own processes or, with several workers, under Ray Train.

Every trial has an identity, the hash of its hyperparameters, and a folder of that name. A finished trial leaves its
result there, so that a search that was interrupted runs none of them again; an unfinished one goes on from its
checkpoint. No state of Tune's own is read back.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import ray
import torch
from ray import tune
from ray.tune.integration.ray_train import TuneReportCallback
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, MedianStoppingRule, TrialScheduler

from fraud_ray.data.rows import PreparedFold
from fraud_ray.errors import FraudRayError
from fraud_ray.progress import counted
from fraud_ray.settings import SearchSettings, Settings, TrainSettings
from fraud_ray.storage import Storage
from fraud_ray.training.space import EstimatorSearcher, Hyperparameters, enumerate_space, in_words, trial_id
from fraud_ray.training.trainer import CURVE, load_logits, make_job, place, run_job, train_on_workers

METRIC = "best_average_precision"


@dataclass(frozen=True)
class Trial:
    """A finished trial.

    average_precision: mean over the selection holdouts at the best epoch. status: finished, stopped (by scheduler or
    time budget) or failed. curve: a dictionary an epoch.
    """

    id: str
    hyperparameters: Hyperparameters
    status: str
    average_precision: float | None
    best_epoch: int
    seconds: float
    curve: tuple[dict[str, Any], ...] = ()
    fault: str | None = None

    @classmethod
    def from_json(cls, stored: dict[str, Any]) -> Trial:
        return cls(**{**stored, "curve": tuple(stored["curve"])})


@dataclass(frozen=True, repr=False)
class SearchOutcome:
    """The best trial, and all trials from best to worst. The best one's holdout logits: `selection_logits`."""

    best: Trial
    trials: tuple[Trial, ...]
    folder: str
    reused: int

    def __repr__(self) -> str:
        best = self.best
        kept = f", {self.reused} kept" if self.reused else ""
        return (
            f"{counted(len(self.trials), 'trial')}{kept}; best: {in_words(best.hyperparameters)}, "
            f"selection AP {best.average_precision:.4f} at epoch {best.best_epoch}"
        )

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, stored: dict[str, Any]) -> SearchOutcome:
        trials = tuple(Trial.from_json(trial) for trial in stored["trials"])
        return cls(Trial.from_json(stored["best"]), trials, stored["folder"], stored["reused"])


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
    known = {trial.id: trial for trial in _read_ledger(storage, folder) if trial.status != "failed"}
    for trial in known.values():
        finished(trial)
    plan = None if space.algorithm == "tpe" and space.space else enumerate_space(settings)
    open_points = None if plan is None else [p for p in plan if trial_id(p) not in known]
    total = len(plan) if plan is not None else space.trials
    update(len(known), total, f"{counted(len(known), 'trial')} kept" if known else "")
    if open_points or (plan is None and len(known) < total):
        folds = [place(fold, train, storage, with_holdout=True) for fold in selection]
        watcher = _Watcher(storage, folder, total, known, settings, finished, update)
        _run_tune(open_points, known, folds, settings, storage, folder, watcher)
    ledger = {t.id: t for t in _read_ledger(storage, folder)}
    wanted = ledger if plan is None else {trial_id(p) for p in plan}
    trials = [t for t in ledger.values() if t.id in wanted]
    judged = [t for t in trials if t.average_precision is not None]
    if not judged:
        faults = {t.fault for t in trials if t.fault}
        raise FraudRayError(
            "no trial reached the end of an epoch"
            + (f"; the first fault: {sorted(faults)[0]}" if faults else "; raise search.time_budget_s")
        )
    ranked = sorted(trials, key=lambda t: (-(t.average_precision if t.average_precision is not None else -1), t.id))
    return SearchOutcome(ranked[0], tuple(ranked), folder, reused=len(known))


def selection_logits(outcome: SearchOutcome, storage: Storage) -> list[np.ndarray[Any, np.dtype[np.float32]]]:
    """Holdout logits of the best trial at its best epoch, one array a selection fold."""
    return load_logits(storage, f"{outcome.folder}/{outcome.best.id}")


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
    settings = Settings.model_validate(context["settings"])
    point = config["point"]
    train = settings.train_with(point)
    job = make_job(
        Storage(context["storage"]), f"{context['folder']}/{trial_id(point)}", train, train.epochs, context["folds"]
    )
    if train.workers > 1:
        train_on_workers(job, train, settings.rank_resources(for_search=True), callbacks=[TuneReportCallback()])
        return
    device = torch.device("cuda" if train.use_gpu else "cpu")
    run_job(job, 0, 1, device, tune.report)


class _Watcher(tune.Callback):
    """Writes each finished trial into the ledger, and tells the driver."""

    def __init__(
        self,
        storage: Storage,
        folder: str,
        total: int,
        known: dict[str, Trial],
        settings: Settings,
        finished: Callable[[Trial], None],
        update: Callable[[float, float, str], None],
    ) -> None:
        self.storage, self.folder, self.total, self.settings = storage, folder, total, settings
        self.finished, self.update = finished, update
        self.done = len(known)
        self.best = max((t.average_precision or 0.0 for t in known.values()), default=0.0)
        self.running: dict[str, tuple[Any, int]] = {}  # trials, and the epoch that each has reached

    def __reduce__(self) -> Any:
        # Tune saves its callbacks; this one belongs to the driver, and no state of Tune's is read back.
        return tune.Callback, ()

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        self.best = max(self.best, result.get(METRIC, 0.0))
        self.running[trial.trial_id] = trial, result["epoch"]
        running = ", ".join(str(epoch) for _, epoch in self.running.values())
        self.update(self.done, self.total, f"best AP {self.best:.4f}; running at epoch {running}")

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
        curve = self.storage.get_json(f"{self.folder}/{name}/{CURVE}") or []
        last = curve[-1] if curve else {}
        result = Trial(
            id=name,
            hyperparameters=point,
            status="failed" if fault else self._status(point, last),
            average_precision=last.get(METRIC),
            best_epoch=last.get("best_epoch", 0),
            seconds=float(trial.last_result.get("time_total_s", 0.0)),
            curve=tuple(curve),
            fault=fault,
        )
        self.storage.put_json(_ledger_key(self.folder, name), asdict(result))
        self.running.pop(trial.trial_id, None)
        self.done += 1
        self.finished(result)
        self.update(self.done, self.total, f"best AP {self.best:.4f}")

    def _status(self, point: Hyperparameters, last: dict[str, Any]) -> str:
        train = self.settings.train_with(point)
        epoch, waited = last.get("epoch", 0), last.get("epoch", 0) - last.get("best_epoch", 0)
        patient = train.patience_epochs is not None and waited >= train.patience_epochs
        return "finished" if epoch == train.epochs or patient else "stopped"


def _run_tune(
    points: list[Hyperparameters] | None,
    known: dict[str, Trial],
    folds: list[dict[str, Any]],
    settings: Settings,
    storage: Storage,
    folder: str,
    watcher: _Watcher,
) -> None:
    # Tune would turn an interrupt into a normal end, and the run would go on with half a search.
    os.environ["TUNE_DISABLE_SIGINT_HANDLER"] = "1"
    # Of Tune's two reporters only the older one keeps quiet at verbosity 0.
    os.environ["RAY_AIR_NEW_OUTPUT"] = "0"
    search = settings.search
    context = {
        "settings": settings.model_dump(mode="json"),
        "storage": storage.root,
        "folder": folder,
        "folds": folds,
    }
    trainable = tune.with_resources(tune.with_parameters(run_trial, context=context), _own_resources(settings))
    if points is None:
        judged = [(t.hyperparameters, t.average_precision) for t in known.values() if t.average_precision is not None]
        param_space, algorithm = {}, EstimatorSearcher(settings, METRIC, judged)
        samples = search.trials - len(known)
    else:
        param_space, algorithm, samples = {"point": tune.grid_search(points)}, None, 1
    tuner = tune.Tuner(
        trainable,
        param_space=param_space,
        tune_config=tune.TuneConfig(
            metric=METRIC,
            mode="max",
            scheduler=_scheduler(search, settings.train),
            search_alg=algorithm,
            num_samples=samples,
            max_concurrent_trials=concurrency(settings, ray.cluster_resources()),
            time_budget_s=search.time_budget_s,
            reuse_actors=settings.train.workers == 1,
            trial_name_creator=lambda trial: trial_id(trial.config["point"]),
            trial_dirname_creator=lambda trial: trial_id(trial.config["point"]),
        ),
        run_config=tune.RunConfig(
            name="tune",
            storage_path=storage.path(folder),
            callbacks=[watcher],
            failure_config=tune.FailureConfig(max_failures=settings.train.max_failures),
            verbose=0,
        ),
    )
    tuner.fit()
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


def _scheduler(search: SearchSettings, train: TrainSettings) -> TrialScheduler:
    if search.scheduler == "asha":
        grace = min(search.grace_epochs, train.epochs)
        return ASHAScheduler(time_attr="epoch", max_t=train.epochs, grace_period=grace)
    if search.scheduler == "median":
        return MedianStoppingRule(time_attr="epoch", grace_period=search.grace_epochs)
    return FIFOScheduler()


def _ledger_key(folder: str, name: str) -> str:
    return f"{folder}/ledger/{name}.json"


def _read_ledger(storage: Storage, folder: str) -> Iterable[Trial]:
    for key in storage.keys(f"{folder}/ledger"):
        stored = storage.get_json(key)
        if stored is not None:
            yield Trial.from_json(stored)


def _last_line(error_file: str | None) -> str:
    if not error_file:
        return "unknown fault"
    kept = [line.strip() for line in Path(error_file).read_text().splitlines() if line.strip()]
    return kept[-1] if kept else "unknown fault"
