"""From partitions as they lie to data that the stages read: window columns added, the contract checked."""

from __future__ import annotations

from fraud_ray.data.contract import Census, validate
from fraud_ray.data.source import Source, open_source
from fraud_ray.progress import Progress, Update, counted
from fraud_ray.settings import Settings
from fraud_ray.storage import Storage
from fraud_ray.windows.definition import Definition
from fraud_ray.windows.state import Windowed, add_windows


def with_windows(
    source: Source, definition: Definition, settings: Settings, storage: Storage, update: Update
) -> tuple[Source, Windowed]:
    """The data with its window columns, and what was computed, or found computed, for that."""
    made = add_windows(source, definition, storage, update)
    return open_source(settings.data.model_copy(update={"path": made.root})), made


def take_in(source: Source, settings: Settings, storage: Storage, progress: Progress) -> tuple[Source, Census]:
    """The data to train on, which is the source itself where no windows are declared, and what it holds.

    Raises ContractViolation.
    """
    definition = Definition.of(settings)
    if definition is not None:
        with progress.stage("windows") as stage:
            source, _ = with_windows(source, definition, settings, storage, stage.update)
            stage.say(f"{counted(len(definition.names), 'column')} for {counted(source.rows, 'row')}")
    with progress.stage("validate") as stage:
        census = validate(source, settings.data, stage.update)
        stage.say(str(census))
    return source, census
