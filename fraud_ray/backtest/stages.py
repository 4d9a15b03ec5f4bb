"""The backtest's stages: each calls the rooms that the pipeline's stages call, and keeps its value in the run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain

import numpy as np
import ray

from fraud_ray.backtest.result import NETWORK, Backtest, Contender
from fraud_ray.cluster import Room
from fraud_ray.data.contract import Census
from fraud_ray.data.folds import moved_back, plan_folds
from fraud_ray.data.prepare import prepare
from fraud_ray.data.rows import PreparedFold, load
from fraud_ray.data.source import Source
from fraud_ray.decision.bootstrap import Difference, Fits, Predictions, differences
from fraud_ray.decision.calibration import calibrate
from fraud_ray.decision.curves import alert_calibration_points
from fraud_ray.decision.cuts import Array
from fraud_ray.decision.evaluate import Evaluation, evaluate
from fraud_ray.decision.gate import bounds
from fraud_ray.model.bundle import Bundle, network_logits
from fraud_ray.model.calibration import Calibration
from fraud_ray.progress import Update, counted
from fraud_ray.runs import Run
from fraud_ray.settings import DecisionSettings, GateSettings, ReferenceName, Settings
from fraud_ray.storage import Storage
from fraud_ray.training.assemble import bundle_of
from fraud_ray.training.candidates import Choice
from fraud_ray.training.loop import Float32
from fraud_ray.training.references import TRIALS, Candidate, Logits, fit_reference
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
    """The network, searched on the selection folds and refitted on every final one, with each seed."""
    storage = run.storage
    find = partial(search, folds.selection, settings, storage, run.key("search"), lambda _: None)
    found = run.stage("search", find, partial(SearchOutcome.from_json, storage=storage))
    best = found.best
    train = settings.train_with(best.hyperparameters)
    seeds = seeds_of(settings)

    def fitted_on(number: int, fold: PreparedFold, seed: int, update: Update) -> Fitted:
        name = f"refit-{number}" if seed == train.seed else f"refit-{number}-seed-{seed}"
        folder, with_seed = run.key(name), train.model_copy(update={"seed": seed})
        room = Room(settings, for_search=False)
        fit = partial(refit, fold, with_seed, best.best_epoch, storage, folder, update, room)
        return run.once(name, fit, lambda _: load_fitted(storage, folder))

    def fit_all(update: Update) -> tuple[Logits, ...]:
        tasks = []
        for seed in seeds:
            for number, fold in enumerate(folds.final, 1):
                weights = fitted_on(number, fold, seed, update).weights
                tasks.append(_score.remote(bundle_of(fold, weights, train, Calibration(), 0.5), storage, fold))
        logits, count = ray.get(tasks), len(folds.final)
        return tuple(tuple(logits[at : at + count]) for at in range(0, len(logits), count))

    told = f"{counted(best.best_epoch, 'epoch')} on {counted(len(folds.final), 'fold')}, {counted(len(seeds), 'seed')}"
    final = run.stage("refit", fit_all, say=lambda _: told)
    seconds = sum(took for name, took in run.timings.items() if name.startswith(("search", "refit-")))
    choice = Choice(NETWORK, best.hyperparameters, len(found.trials), best.average_precision or 0.0, seconds)
    return Candidate(choice, tuple(selection_logits(found, storage)), final)


def seeds_of(settings: Settings) -> list[int]:
    """The seeds of the fits on final folds; the first is also the one that everything is chosen with."""
    return [settings.train.seed + number for number in range(settings.backtest.seeds)]


def fit_beside(name: ReferenceName, folds: BacktestFolds, trials: int, settings: Settings, run: Run) -> Candidate:
    """A reference model, chosen and fitted on the same folds with at least as many trials and the same seeds."""
    key, storage = run.key(f"references/{name}"), run.storage
    trials, seeds = max(TRIALS, trials), seeds_of(settings)

    def compute(update: Update) -> Choice:
        fitted = fit_reference(name, folds.selection, folds.final, trials, seeds, storage, key, update)
        save_logits(storage, key, [*fitted.selection, *chain.from_iterable(fitted.final)])
        return fitted.choice

    choice = run.stage(name, compute, Choice.from_json)
    logits, count, each = load_logits(storage, key), len(folds.selection), len(folds.final)
    final = tuple(tuple(logits[at : at + each]) for at in range(count, len(logits), each))
    return Candidate(choice, tuple(logits[:count]), final)


def judge(
    candidates: Sequence[Candidate],
    folds: BacktestFolds,
    decision: DecisionSettings,
    gate: GateSettings,
    run: Run,
    notes: Sequence[str],
    picture: str,
    later: int,
) -> Backtest:
    """All candidates' figures, and by how much the first one's differ from the others'.

    notes, picture: told in the result; the picture is where it will lie. later: how many of the final folds, the
    newest, have figures of their own.
    """
    if later:
        judged_on = partial(judge, decision=decision, gate=gate, run=run, picture=picture, later=0)
        first, rest = slice(later), slice(later, None)
        on_later, result = (
            judged_on([one.on(which) for one in candidates], replace(folds, final=folds.final[which]), notes=told)
            for which, told in ((first, ()), (rest, notes))
        )
        return replace(result, later=on_later)
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
        (*notes, *cautions(models, gate)),
        picture,
        run.timings,
    )


def cautions(models: Sequence[Contender], gate: GateSettings) -> list[str]:
    """Which holdouts are small, and which of the gate's bounds no model here reaches, or none at all can."""
    told = [f"final fold {at}: {one.remark}" for at, one in enumerate(models[0].evaluations, 1) if one.remark]
    for name, metric, bound, comparison in bounds(gate):
        if comparison == "<=":
            continue
        possible = min((one.best_possible or {}).get(metric, 1.0) for one in models[0].evaluations)
        reached = max((model.metrics[metric][0] for model in models if metric in model.metrics), default=1.0)
        if possible < bound:
            told.append(f"gate.{name} {bound:g} lies above the best possible on some fold, {possible:.4f}")
        elif reached < bound:
            told.append(f"gate.{name} {bound:g} lies above what any model here reaches, {reached:.4f}")
    return told


@ray.remote(num_cpus=1)
def _score(model: Bundle, storage: Storage, fold: PreparedFold) -> Float32:
    rows = load(storage, fold.holdout)
    return network_logits(model.network(), rows.features, rows.codes)


@ray.remote(num_cpus=1)
def _judge(
    candidate: Candidate, storage: Storage, folds: BacktestFolds, decision: DecisionSettings
) -> tuple[Contender, Fits]:
    """A candidate's figures at the calibration and threshold of its selection holdouts, and the scores behind them.

    Both were chosen with the first seed, and are every seed's.
    """
    selected_on = [load(storage, fold.holdout, with_roles=True) for fold in folds.selection]
    calibration, threshold = calibrate(selected_on, candidate.selection, decision)
    holdouts = [load(storage, fold.holdout, with_roles=True) for fold in folds.final]
    first, *others = [[calibration.apply(logits) for logits in of_seed] for of_seed in candidate.final]

    def evaluated(probabilities: list[Array], settings: DecisionSettings) -> tuple[Evaluation, ...]:
        return tuple(evaluate(of, rows, threshold, settings) for of, rows in zip(probabilities, holdouts, strict=True))

    quick = decision.model_copy(update={"bootstrap_repeats": 0})
    labels = np.concatenate([rows.label for rows in holdouts])
    contender = Contender(
        candidate.choice,
        evaluated(first, decision),
        alert_calibration_points(np.concatenate(first), labels, threshold),
        tuple(tuple(one.metrics for one in evaluated(of_seed, quick)) for of_seed in others),
    )
    return contender, [[Predictions(of, threshold) for of in of_seed] for of_seed in (first, *others)]


@ray.remote(num_cpus=1)
def _compare(
    scored: dict[str, Fits], storage: Storage, folds: BacktestFolds, decision: DecisionSettings
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
