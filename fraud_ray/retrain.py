"""What a retraining does beyond a run: it trains on the newest window whose labels are mature."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

from fraud_ray.data.source import Source
from fraud_ray.errors import DataError, SettingsError
from fraud_ray.progress import counted
from fraud_ray.settings import Loaded


def newest_window(loaded: Loaded, source: Source) -> Loaded:
    """The settings with the final fold's last day as new as labels allow: `folds.delay_days` before the newest data.

    Raises SettingsError for folds that are not by time, DataError for data without days.
    """
    folds = loaded.settings.folds
    if folds.kind != "time":
        raise SettingsError(
            f"folds.kind is {folds.kind}, but a retraining looks at the newest window: set folds.kind to time, or use "
            "`fraud-ray run`"
        )
    if source.as_of is None:
        raise DataError(
            f"{source.root} has neither 'date=' folders nor timestamps in its footers' statistics, by which a "
            "retraining finds the newest window; write it with one of them, or set folds.start and use `fraud-ray run`"
        )
    newest = source.as_of - timedelta(days=folds.delay_days)
    start = newest - timedelta(days=folds.days - 1)
    note = f"labels are mature up to {newest}, {counted(folds.delay_days, 'day')} before the newest data"
    settings = loaded.settings.model_copy(update={"folds": folds.model_copy(update={"start": start})})
    return replace(loaded, settings=settings, notes=(*loaded.notes, note))
