"""The backtest's story: the pipeline's stages on several final folds, without gate and registry.

A backtest is a run like any other, `runs/<name>-backtest`: the same command again goes on where it stood, or answers at
once.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial

from fraud_ray.backtest.result import Backtest
from fraud_ray.cluster import check_resources, check_storage, join_or_start
from fraud_ray.data.folds import without_leaks
from fraud_ray.data.simulate import simulate_if_absent
from fraud_ray.data.source import open_source
from fraud_ray.decision.names import metric_name
from fraud_ray.errors import FraudRayError, SettingsError
from fraud_ray.progress import Progress
from fraud_ray.runs import Outcome, Run, open_run
from fraud_ray.settings import Loaded, Settings
from fraud_ray.storage import Storage
from fraud_ray.training.candidates import split_by_package

RESULT, PICTURE = "backtest.json", "backtest.svg"


def backtest(loaded: Loaded, progress: Progress) -> Backtest:
    """Runs the backtest under these settings, or what of it is not concluded yet.

    Raises FraudRayError; what is concluded by then is kept.
    """
    settings, storage = loaded.settings, Storage.at(loaded.settings.storage.root)
    shifts, later = final_shifts(settings), sorted(-days for days in set(settings.backtest.later_days))
    references, notes = split_by_package(settings.backtest.references)
    with ExitStack() as session:
        simulate_if_absent(settings, progress, session)
        source = open_source(settings.data)
        named = _named(loaded, shifts, references)
        run = session.enter_context(open_run(named, storage, source.fingerprint, source.as_of, progress))
        if run.concluded:
            return _read(run)
        notes = (*notes, *without_leaks(loaded, shifts[-1]).notes)
        session.enter_context(join_or_start(settings.cluster, progress))
        check_resources(settings, progress)
        check_storage(storage)
        # Ray, torch and MLflow take seconds to import, which a concluded backtest does without.
        from fraud_ray.backtest.stages import fit_beside, fit_network, judge, prepare_folds
        from fraud_ray.report.panels import draw_by_fold
        from fraud_ray.windows.state import take_in

        data, census = take_in(source, settings, storage, progress)
        folds = run.stage("prepare", partial(prepare_folds, data, census, (*later, *shifts), settings, storage))
        network = fit_network(folds, settings, run)
        others = [fit_beside(name, folds, network.choice.trials, settings, run) for name in references]
        picture = storage.path(run.key(PICTURE))
        told = (*notes, *source.notes), picture
        compare = partial(judge, [network, *others], folds, settings.decision, settings.gate, run, *told, len(later))
        result = run.stage("evaluate", lambda _: compare(), say=lambda judged: judged.in_words)
        metrics = {metric_name(name): result.by_fold(name) for name in result.shown}
        title = f"{result.name}: by first day of the holdout"
        storage.put(run.key(PICTURE), draw_by_fold(title, result.days, metrics, "svg"))
        storage.put_json(run.key(RESULT), result.to_json())
        run.conclude(Outcome(run.name, run.folder, "backtested", report=result.picture, **run.took))
        return result


def final_shifts(settings: Settings) -> tuple[int, ...]:
    """How many days before a run's final fold each of the backtest's lies, the newest first.

    Raises SettingsError for folds that are not by time.
    """
    if settings.folds.kind != "time":
        raise SettingsError(f"a backtest goes by time; set folds.kind to time (it is {settings.folds.kind})")
    return tuple(sorted(set(settings.backtest.shift_days)))


def _named(loaded: Loaded, shifts: Sequence[int], references: Sequence[str]) -> Loaded:
    """The settings under a name of their own, which also tells what is backtested."""
    settings = loaded.settings
    name = settings.run.name and f"{settings.run.name}-backtest"
    renamed = settings.model_copy(update={"run": settings.run.model_copy(update={"name": name})})
    own = settings.backtest
    beside = {
        "backtest.shift_days": list(shifts),
        "backtest.references": list(references),
        # Those of an earlier version had one seed, and no later folds.
        **({"backtest.seeds": own.seeds} if own.seeds > 1 else {}),
        **({"backtest.later_days": list(own.later_days)} if own.later_days else {}),
    }
    return replace(loaded, settings=renamed, config=f"{loaded.config}-backtest", beside=beside)


def _read(run: Run) -> Backtest:
    stored = run.storage.get_json(run.key(RESULT))
    if stored is None:
        raise FraudRayError(f"{run.folder}/{RESULT} is gone; delete {run.folder} and run the backtest again")
    return Backtest.from_json(stored)
