"""The backtest's stages: each calls the rooms that the pipeline's stages call, and keeps its value in the run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import ray

from fraud_ray.backtest.references import fit_reference
from fraud_ray.backtest.result import NETWORK, Backtest, Candidate, Choice, Contender
from fraud_ray.cluster import Room
from fraud_ray.data.contract import Census
from fraud_ray.data.folds import moved_back, plan_folds
from fraud_ray.data.prepare import prepare
from fraud_ray.data.rows import PreparedFold, load
from fraud_ray.data.source import Source
from fraud_ray.decision.bootstrap import Difference, Predictions, differences
from fraud_ray.decision.calibration import calibrate
from fraud_ray.decision.curves import alert_calibration_points
from fraud_ray.decision.evaluate import evaluate
from fraud_ray.model.bundle import Bundle, network_logits
from fraud_ray.model.calibration import Calibration
from fraud_ray.progress import Update, counted
from fraud_ray.runs import Run
from fraud_ray.settings import DecisionSettings, ReferenceName, Settings
from fraud_ray.storage import Storage
from fraud_ray.training.assemble import bundle_of
from fraud_ray.training.loop import Float32
from fraud_ray.training.search import SearchOutcome, search, selection_logits
from fraud_ray.training.trainer import Fitted, load_fitted, load_logits, refit, save_logits


@dataclass(frozen=True)
class BacktestFolds:
    """All folds of a backtest, encoded; the final ones newest first."""

    selection: tuple[PreparedFold, ...]
    final: tuple[PreparedFold, ...]

    def __str__(self) -> str:
        held_out = sum(fold.holdout.rows for fold in self.final)
        folds = counted(len(self.final), "final fold")
        return f"{len(self.selection)} selection and {folds} with {held_out:,} holdout rows"


def prepare_folds(
    data: Source, census: Census, shifts: Sequence[int], settings: Settings, storage: Storage, update: Update
) -> BacktestFolds:
    """The folds, encoded; the final ones lie so many days before a run's, the newest first."""
    newest, oldest = plan_folds(census, settings.folds), max(shifts)
    made = []
    for shift in shifts:
        folds = moved_back(settings.folds, newest, shift, selects=shift == oldest)
        one = settings.model_copy(update={"folds": folds})
        made.append(prepare(data, plan_folds(census, folds), one, storage, update))
    return BacktestFolds(made[-1].selection, tuple(prepared.final for prepared in made))


def fit_network(folds: BacktestFolds, settings: Settings, run: Run) -> Candidate:
    """The network, searched on the selection folds and refitted on every final one."""
    storage = run.storage
    find = partial(search, folds.selection, settings, storage, run.key("search"), lambda _: None)
    found = run.stage("search", find, partial(SearchOutcome.from_json, storage=storage))
    best = found.best
    train = settings.train_with(best.hyperparameters)

    def fitted_on(number: int, fold: PreparedFold, update: Update) -> Fitted:
        folder = run.key(f"refit-{number}")
        fit = partial(refit, fold, train, best.best_epoch, storage, folder, update, Room(settings, for_search=False))
        return run.once(f"refit-{number}", fit, lambda _: load_fitted(storage, folder))

    def fit_all(update: Update) -> tuple[Float32, ...]:
        fitted = [fitted_on(number, fold, update) for number, fold in enumerate(folds.final, 1)]
        tasks = [
            _score.remote(bundle_of(fold, one.weights, train, Calibration(), 0.5), storage, fold)
            for fold, one in zip(folds.final, fitted, strict=True)
        ]
        return tuple(ray.get(tasks))

    told = f"{counted(best.best_epoch, 'epoch')} on {counted(len(folds.final), 'fold')}"
    final = run.stage("refit", fit_all, say=lambda _: told)
    seconds = sum(took for name, took in run.timings.items() if name.startswith(("search", "refit-")))
    choice = Choice(NETWORK, best.hyperparameters, len(found.trials), best.average_precision or 0.0, seconds)
    return Candidate(choice, tuple(selection_logits(found, storage)), final)


def fit_beside(name: ReferenceName, folds: BacktestFolds, trials: int, settings: Settings, run: Run) -> Candidate:
    """A reference model, chosen and fitted on the same folds with as many trials."""
    key, storage = run.key(f"references/{name}"), run.storage

    def compute(update: Update) -> Choice:
        fitted = fit_reference(name, folds.selection, folds.final, trials, settings.train.seed, storage, update)
        save_logits(storage, key, [*fitted.selection, *fitted.final])
        return fitted.choice

    choice = run.stage(name, compute, Choice.from_json)
    logits, count = load_logits(storage, key), len(folds.selection)
    return Candidate(choice, tuple(logits[:count]), tuple(logits[count:]))


def judge(
    candidates: Sequence[Candidate],
    folds: BacktestFolds,
    decision: DecisionSettings,
    run: Run,
    notes: Sequence[str],
    picture: str,
) -> Backtest:
    """All candidates' figures, and by how much the first one's differ from the others'.

    notes, picture: told in the result; the picture is where it will lie.
    """
    judged = ray.get([_judge.remote(one, run.storage, folds, decision) for one in candidates])
    models = tuple(model for model, _ in judged)
    scored = {model.choice.name: of for model, of in judged}
    exceeds = ray.get(_compare.remote(scored, run.storage, folds, decision))
    return Backtest(
        run.name,
        run.folder,
        tuple(fold.span for fold in folds.selection),
        tuple(fold.span for fold in folds.final),
        models,
        exceeds,
        tuple(notes),
        picture,
        run.timings,
    )


@ray.remote(num_cpus=1)
def _score(model: Bundle, storage: Storage, fold: PreparedFold) -> Float32:
    rows = load(storage, fold.holdout)
    return network_logits(model.network(), rows.features, rows.codes)


@ray.remote(num_cpus=1)
def _judge(
    candidate: Candidate, storage: Storage, folds: BacktestFolds, decision: DecisionSettings
) -> tuple[Contender, list[Predictions]]:
    """A candidate's figures at the calibration and threshold of its selection holdouts, and the scores behind them."""
    selected_on = [load(storage, fold.holdout, with_roles=True) for fold in folds.selection]
    calibration, threshold = calibrate(selected_on, candidate.selection, decision)
    holdouts = [load(storage, fold.holdout, with_roles=True) for fold in folds.final]
    probabilities = [calibration.apply(logits) for logits in candidate.final]
    evaluations = tuple(
        evaluate(of_fold, rows, threshold, decision) for of_fold, rows in zip(probabilities, holdouts, strict=True)
    )
    labels = np.concatenate([rows.label for rows in holdouts])
    alerts = alert_calibration_points(np.concatenate(probabilities), labels, threshold)
    return Contender(candidate.choice, evaluations, alerts), [Predictions(of, threshold) for of in probabilities]


@ray.remote(num_cpus=1)
def _compare(
    scored: dict[str, list[Predictions]], storage: Storage, folds: BacktestFolds, decision: DecisionSettings
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
