"""The story: from partitioned parquet to a registered model, one stage after the other."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING

from fraud_ray.cluster import check_resources, check_storage, join_or_start
from fraud_ray.data.source import open_source
from fraud_ray.progress import Progress, counted
from fraud_ray.retrain import newest_window
from fraud_ray.runs import Outcome, open_run
from fraud_ray.settings import Loaded, Settings
from fraud_ray.storage import Storage

if TYPE_CHECKING:
    from fraud_ray.stages import Stages


def run(loaded: Loaded, progress: Progress, until: str | None = None, retrain: bool = False) -> Outcome:
    """Runs the pipeline under these settings, or what of it is not concluded yet.

    until: the stage after which to stop; the same command without it goes on from there. retrain: on the newest window
    whose labels are mature, and with the champion replaced where the new model is better. A run that is concluded
    answers at once. Raises FraudRayError; what is concluded by then is kept.
    """
    settings, storage = loaded.settings, Storage.at(loaded.settings.storage.root)
    with ExitStack() as session:
        if settings.simulate:
            simulate_if_absent(settings, progress, session)
        if until == "simulate":
            return Outcome(settings.data.path, settings.data.path, "stopped after simulate")
        source = open_source(settings.data)
        if retrain:
            loaded = newest_window(loaded, source)
            settings = loaded.settings
        held = session.enter_context(open_run(loaded, storage, source.fingerprint, source.as_of))
        if held.concluded:
            return held.concluded
        # Ray, torch and MLflow take seconds to import, which a concluded run does without.
        from fraud_ray.stages import Stages, StoppedAfter

        session.enter_context(join_or_start(settings.cluster))
        check_resources(settings, progress)
        check_storage(storage)
        stages = session.enter_context(Stages.of(loaded, source, storage, held, progress, until))
        try:
            return _through(stages, retrain)
        except StoppedAfter as stopped:
            return stages.stopped_after(stopped.stage)


def simulate_if_absent(settings: Settings, progress: Progress, session: ExitStack) -> None:
    """Writes the data that `settings.simulate` describes where data.path holds nothing."""
    from fraud_ray.data.simulate import holds_data, simulate

    assert settings.simulate is not None, "the caller has looked"
    if holds_data(settings.data.path):
        return
    with progress.stage("simulate") as stage:
        session.enter_context(join_or_start(settings.cluster))
        made = simulate(settings.simulate, settings.data.path, stage.update)
        stage.say(
            f"{counted(made.rows, 'row')}, {counted(made.frauds, 'fraud')}; best possible AP "
            f"{made.best_average_precision:.4f}, F1 {made.best_f1:.4f}"
        )


def _through(stages: Stages, retrain: bool) -> Outcome:
    from fraud_ray.stages import Made

    stages.add_windows()
    census = stages.validate()
    folds = stages.plan(census)
    drift = stages.drift()
    prepared = stages.prepare(folds)
    found = stages.search(prepared)
    fitted = stages.refit(prepared, found)
    evaluation = stages.evaluate(prepared, found, fitted)
    decision = stages.gate(prepared, evaluation)
    made = Made(prepared, drift, found, fitted, evaluation, decision)
    version = stages.register(made)
    comparison = stages.challenge(made, version) if retrain else None
    return stages.conclude(made, version, comparison, retrain)
