"""The story: from partitioned parquet to a registered model, one stage after the other."""

from __future__ import annotations

import time
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from fraud_ray.cluster import Room, check_resources, check_storage, join_or_start, local_path
from fraud_ray.data.folds import at_newest_window, without_leaks
from fraud_ray.data.simulate import simulate_if_absent
from fraud_ray.data.source import Source, open_source
from fraud_ray.errors import ServerError
from fraud_ray.progress import Progress
from fraud_ray.runs import Outcome, Run, StoppedAfter, open_run, read_outcome
from fraud_ray.settings import Loaded, settings_hash
from fraud_ray.storage import Storage

if TYPE_CHECKING:
    from fraud_ray.registry.writer import Writer


def run(loaded: Loaded, progress: Progress, until: str | None = None, retrain: bool = False) -> Outcome:
    """Runs the pipeline under these settings, or what of it is not concluded yet.

    until: the stage after which to stop; the same command without it goes on from there. retrain: on the newest window
    whose labels are mature, and with the champion replaced where the new model is better. A run that is concluded
    answers at once. Raises FraudRayError; what is concluded by then is kept.
    """
    began, settings, storage = time.monotonic(), loaded.settings, Storage.at(loaded.settings.storage.root)
    with ExitStack() as session:
        if until != "simulate":
            _refuse_dead_server(loaded, storage)
        simulate_if_absent(settings, progress, session)
        if until == "simulate":
            return Outcome(settings.data.path, settings.data.path, "stopped after simulate")
        source = open_source(settings.data)
        loaded = at_newest_window(loaded, source) if retrain else loaded
        run = session.enter_context(open_run(loaded, storage, source.fingerprint, source.as_of, progress, until))
        if run.concluded:
            return run.concluded
        run.began, loaded = began, without_leaks(loaded, is_strict=retrain)
        from fraud_ray.registry.writer import writing  # takes seconds to import, which a concluded run does without

        session.enter_context(join_or_start(loaded.settings.cluster, progress))
        check_resources(loaded.settings, progress)
        check_storage(storage)
        mlflow = session.enter_context(writing(loaded, source, run))
        try:
            return _train(run, loaded, source, mlflow, retrain)
        except StoppedAfter as stopped:
            outcome = run.stopped(stopped)
            mlflow.tell("finish", "KILLED", "stopped", outcome.status)
            return outcome
        except ServerError as fault:
            raise ServerError(
                f"{fault}\nWhat run '{run.name}' has done is kept: the same command goes on from there, with "
                f"--name {run.name} also where newer data has come"
            ) from fault


def _refuse_dead_server(loaded: Loaded, storage: Storage) -> None:
    """Raises ServerError before data is read, unless a run of a name that is settled is concluded and needs no MLflow.

    A file of sqlite is there, or made while others work.
    """
    uri, name = loaded.settings.registry.uri, loaded.settings.run.name
    if uri is None or local_path(uri) or (name and "{" not in name and read_outcome(storage, name)):
        return
    from fraud_ray.registry.tracking import connect

    connect(loaded.settings.registry)


def _train(run: Run, loaded: Loaded, source: Source, mlflow: Writer, retrain: bool) -> Outcome:
    from fraud_ray.data.baseline import measure_drift
    from fraud_ray.data.cache import claim
    from fraud_ray.data.contract import validate
    from fraud_ray.data.drift import Drift
    from fraud_ray.data.folds import plan_folds
    from fraud_ray.data.prepare import prepare
    from fraud_ray.data.repeats import EACH_ONCE, without_repeats
    from fraud_ray.decision.comparison import Comparison
    from fraud_ray.decision.evaluate import Evaluation
    from fraud_ray.decision.gate import GateDecision, decide
    from fraud_ray.registry.champion import compare_with_champion, evaluate_champion, open_champion
    from fraud_ray.registry.promotion import promote_if_better, record_registration
    from fraud_ray.registry.versions import CHAMPION, RegisteredVersion, register_stored
    from fraud_ray.report.card import model_card
    from fraud_ray.reporting import conclude, tell_of_drift, tell_of_results
    from fraud_ray.training.assemble import CHAMPION_CURVES, evaluate_on_worker, read_curves
    from fraud_ray.training.rival import meet_rival, read_rival
    from fraud_ray.training.search import SearchOutcome, search
    from fraud_ray.training.trainer import load_fitted, refit
    from fraud_ray.windows.state import with_windows

    settings, storage, tracking = loaded.settings, run.storage, mlflow.tracking
    if settings.data.repeats == "last":
        source = run.stage("repeats", partial(without_repeats, source, settings.data), say=EACH_ONCE.format)
    windows = run.stage("windows", partial(with_windows, source, settings, storage)) if settings.windows else None
    run.stop_after("windows")
    data = windows.source if windows else source
    census = run.stage("validate", partial(validate, data, settings.data, folds=settings.folds))
    say = partial(run.announce, notes=(settings.search.in_words, *source.notes, *census.notes, *loaded.notes))
    folds = run.stage("plan", lambda _: plan_folds(census, settings.folds), say=say)
    run.remark(settings.remark_on_steps(folds.final.fit.rows))

    known = None if settings.drift.action == "ignore" or run.has("drift") else open_champion(tracking, storage)
    baseline, drift = known.baseline if known else None, None
    if baseline or run.has("drift"):
        heed = partial(tell_of_drift, run=run, mlflow=mlflow, action=settings.drift.action)
        drift = run.stage("drift", partial(measure_drift, baseline, data, settings), Drift.from_json, say=heed)
    run.stop_after("drift")

    prepared = run.stage("prepare", partial(prepare, data, folds, settings, storage))
    claim(storage, run.name, prepared.key, prepared.writer, not prepared.cached, run.progress.note)
    find = partial(search, prepared.selection, settings, storage, run.key("search"), mlflow.tell_trial)
    read = partial(SearchOutcome.from_json, storage=storage)
    found = run.stage("search", lambda update: mlflow.settled(find(update)), read)  # else trials would never be told
    train, folder = settings.train_with(found.best.hyperparameters), run.key("refit")
    room = Room(settings, for_search=False)
    fit = partial(refit, prepared.final, train, found.best.best_epoch, storage, folder, room=room)
    line = "{} on " + train.ranks
    fitted = run.stage("refit", fit, lambda _: load_fitted(storage, folder), say=line.format)

    origin = {
        "run": run.name,
        **source.origin,
        "settings": settings_hash(settings),
        **(windows.origin if windows else {}),
    }
    judge = partial(evaluate_on_worker, prepared, found, fitted, settings, storage, run.key, origin)
    evaluation = run.stage("evaluate", lambda _: judge(), Evaluation.from_json)
    run.remark(evaluation.remark)
    meet = partial(meet_rival, prepared, settings, storage, run.key("bundle"), run.key("rival"))
    rival = run.stage("rival", meet, read_rival) if settings.decision.rival else None
    champion = partial(evaluate_champion, tracking, storage, prepared.final, run.key(CHAMPION_CURVES), settings)
    decision = run.stage("gate", lambda _: decide(evaluation, settings.gate, champion()), GateDecision.from_json)
    trained = prepared, found, fitted, evaluation
    told = tell_of_results(run, mlflow, settings, source, *trained, decision, drift, folds, rival)

    version = comparison = None
    bundle, final = run.key("bundle"), prepared.final
    if decision.passed:
        register = partial(mlflow.ask, register_stored, storage, bundle, final.encoder, origin, model_card(told))
        version = run.stage("register", lambda _: register(), RegisteredVersion.from_json)
        mlflow.ask(record_registration, storage, version)
    if retrain and version and version.alias != CHAMPION:
        compare = partial(compare_with_champion, tracking, storage, final, bundle, run.key(CHAMPION_CURVES), settings)
        comparison = run.stage("challenge", lambda _: compare(), lambda kept: kept and Comparison.from_json(kept))
        version = mlflow.ask(promote_if_better, storage, version, comparison)
    curves = read_curves(storage, run.key)
    told = replace(told, version=version, comparison=comparison, curves=curves, timings=run.timings)
    return conclude(run, told, mlflow, retrain)
