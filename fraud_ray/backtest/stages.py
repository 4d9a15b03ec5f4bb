"""The backtest's stages: each calls the rooms that the pipeline's stages call, and keeps its value in the run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import timedelta
from typing import Any

import numpy as np
import numpy.typing as npt
import ray

from fraud_ray.backtest.references import fit_reference
from fraud_ray.backtest.result import NETWORK, Backtest, Candidate, Choice, Contender
from fraud_ray.data.contract import Census
from fraud_ray.data.folds import plan_folds
from fraud_ray.data.prepare import prepare
from fraud_ray.data.rows import PreparedFold, load
from fraud_ray.data.source import Source
from fraud_ray.decision.bootstrap import Difference, Scored, differences
from fraud_ray.decision.curves import alert_calibration_points
from fraud_ray.decision.evaluate import evaluate
from fraud_ray.model.bundle import Bundle
from fraud_ray.model.calibration import Calibration
from fraud_ray.progress import Progress, counted
from fraud_ray.report.backtest import draw
from fraud_ray.runs import Run
from fraud_ray.settings import DecisionSettings, Reference, Settings
from fraud_ray.storage import Storage
from fraud_ray.training.evaluation import bundle_of, calibrate, network_logits
from fraud_ray.training.search import SearchOutcome, search, selection_logits
from fraud_ray.training.trainer import Fitted, load_fitted, load_logits, refit, save_logits


@dataclass(frozen=True)
class Folds:
    """All folds of a backtest, encoded; the final ones newest first."""

    selection: tuple[PreparedFold, ...]
    final: tuple[PreparedFold, ...]


@dataclass(frozen=True)
class Stages:
    """What every stage needs."""

    settings: Settings
    run: Run
    progress: Progress

    @property
    def storage(self) -> Storage:
        return self.run.storage

    def prepare(self, data: Source, census: Census, shifts: Sequence[int]) -> Folds:
        """The folds, encoded; the final ones lie so many days before a run's, which shares what is prepared for it."""
        settings, own = self.settings, self.settings.folds
        newest = plan_folds(census, own).final.fit.first
        assert newest is not None, "folds by time have days"
        selection: tuple[PreparedFold, ...] = ()
        final = []
        with self.progress.stage("prepare") as stage:
            for shift in shifts:
                before = () if selection else tuple(days - shift for days in own.selection_shift_days)
                moved = {"start": newest - timedelta(days=shift), "selection_shift_days": before}
                one = settings.model_copy(update={"folds": own.model_copy(update=moved)})
                planned = plan_folds(census, one.folds)
                prepared = prepare(data, planned, one, self.storage, stage.update)
                selection = selection or prepared.selection
                final.append(prepared.final)
            held_out = sum(fold.holdout.rows for fold in final)
            folds = counted(len(final), "final fold")
            stage.say(f"{len(selection)} selection and {folds} with {held_out:,} holdout rows")
        return Folds(selection, tuple(final))

    def network(self, folds: Folds) -> Candidate:
        """The network, searched on the selection folds and refitted on every final one."""
        run, settings, storage = self.run, self.settings, self.storage
        with self.progress.stage("search") as stage:

            def compute() -> SearchOutcome:
                return search(folds.selection, settings, storage, run.key("search"), lambda _: None, stage.update)

            found = run.once(
                "search", compute, SearchOutcome.to_json, lambda stored: SearchOutcome.from_json(stored, storage)
            )
            stage.say(str(found))
        best = found.best
        train = settings.train_with(best.hyperparameters)
        with self.progress.stage("refit") as stage:

            def fitted_on(number: int, fold: PreparedFold) -> Fitted:
                folder = run.key(f"refit-{number}")
                return run.once(
                    f"refit-{number}",
                    lambda: refit(fold, train, best.best_epoch, storage, folder, stage.update),
                    lambda fitted: {"epochs": len(fitted.curve)},
                    lambda _: load_fitted(storage, folder),
                )

            fitted = [fitted_on(number, fold) for number, fold in enumerate(folds.final, 1)]
            tasks = [
                _score.remote(bundle_of(fold, one.weights, train, Calibration(), 0.5), storage, fold)
                for fold, one in zip(folds.final, fitted, strict=True)
            ]
            final = tuple(ray.get(tasks))
            stage.say(f"{counted(best.best_epoch, 'epoch')} on {counted(len(final), 'fold')}")
        seconds = sum(took for name, took in run.timings.items() if name.startswith(("search", "refit-")))
        choice = Choice(NETWORK, best.hyperparameters, len(found.trials), best.average_precision or 0.0, seconds)
        return Candidate(choice, tuple(selection_logits(found, storage)), final)

    def reference(self, name: Reference, folds: Folds, trials: int) -> Candidate:
        """A reference model, chosen and fitted on the same folds with as many trials."""
        key = self.run.key(f"references/{name}")
        count = len(folds.selection)
        with self.progress.stage(name) as stage:

            def compute() -> Candidate:
                seed = self.settings.train.seed
                fitted = fit_reference(name, folds.selection, folds.final, trials, seed, self.storage, stage.update)
                save_logits(self.storage, key, [*fitted.selection, *fitted.final])
                return fitted

            def read(stored: dict[str, Any]) -> Candidate:
                logits = load_logits(self.storage, key)
                return Candidate(Choice(**stored), tuple(logits[:count]), tuple(logits[count:]))

            candidate = self.run.once(name, compute, lambda candidate: asdict(candidate.choice), read)
            stage.say(str(candidate.choice))
            return candidate

    def judge(self, candidates: Sequence[Candidate], folds: Folds, notes: Sequence[str], picture: str) -> Backtest:
        """All candidates' figures, the first one's differences from the others, and the picture by fold."""
        run = self.run
        with self.progress.stage("evaluate") as stage:
            tasks = [_judge.remote(one, self.storage, folds, self.settings.decision) for one in candidates]
            judged = ray.get(tasks)
            models = tuple(model for model, _ in judged)
            scored = {model.choice.name: of for model, of in judged}
            exceeds = ray.get(_compare.remote(scored, self.storage, folds, self.settings.decision))
            result = Backtest(
                run.name,
                run.folder,
                tuple(fold.span for fold in folds.selection),
                tuple(fold.span for fold in folds.final),
                models,
                exceeds,
                tuple(notes),
                self.storage.path(run.key(picture)),
                run.timings,
            )
            self.storage.put(run.key(picture), draw(result, "svg"))
            means = models[0].metrics
            shown = (f"{name} {means[name][0]:.4f}" for name in ("auc_roc", "average_precision") if name in means)
            stage.say(f"the {NETWORK} on {counted(len(folds.final), 'fold')}: {', '.join(shown)}")
        return result


@ray.remote(num_cpus=1)
def _score(model: Bundle, storage: Storage, fold: PreparedFold) -> npt.NDArray[np.float32]:
    return network_logits(model.network(), load(storage, fold.holdout))


@ray.remote(num_cpus=1)
def _judge(
    candidate: Candidate, storage: Storage, folds: Folds, decision: DecisionSettings
) -> tuple[Contender, list[Scored]]:
    """A candidate's figures at the calibration and threshold of its selection holdouts, and the scores behind them."""
    calibration, threshold = calibrate(storage, folds.selection, candidate.selection, decision)
    holdouts = [load(storage, fold.holdout, with_roles=True) for fold in folds.final]
    probabilities = [calibration.apply(logits) for logits in candidate.final]
    evaluations = tuple(
        evaluate(of_fold, rows, threshold, decision) for of_fold, rows in zip(probabilities, holdouts, strict=True)
    )
    labels = np.concatenate([rows.label for rows in holdouts])
    alerts = alert_calibration_points(np.concatenate(probabilities), labels, threshold)
    return Contender(candidate.choice, evaluations, alerts), [Scored(of, threshold) for of in probabilities]


@ray.remote(num_cpus=1)
def _compare(
    scored: dict[str, list[Scored]], storage: Storage, folds: Folds, decision: DecisionSettings
) -> dict[str, dict[str, Difference]]:
    """By how much the network exceeds each other model; nothing where no draws are asked for."""
    others = {name: of for name, of in scored.items() if name != NETWORK}
    if not others or not decision.bootstrap_repeats:
        return {}
    holdouts = [load(storage, fold.holdout, with_roles=True) for fold in folds.final]
    has_entities = all("entity" in rows.roles for rows in holdouts)
    return differences(
        scored[NETWORK],
        others,
        [rows.label for rows in holdouts],
        [rows.roles["entity"] for rows in holdouts] if has_entities else None,
        decision.bootstrap_repeats,
        decision.confidence,
        decision.seed,
    )
