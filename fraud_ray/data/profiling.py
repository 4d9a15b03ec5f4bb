"""The profile of partitions: one pass on Ray Data, in memory that does not grow with the rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from functools import lru_cache, partial

import pyarrow as pa

from fraud_ray.data.contract import ContractViolation, check_columns
from fraud_ray.data.keys import known_labels, ticks_of, to_day
from fraud_ray.data.source import Partition, Source, read_partition
from fraud_ray.data.tasks import Merged, map_tasks
from fraud_ray.errors import DataError
from fraud_ray.model.encoder import FeatureColumn
from fraud_ray.model.profile import Profile
from fraud_ray.model.scorer import GraphScorer
from fraud_ray.progress import Update
from fraud_ray.settings import DataSettings


def profile_partitions(
    source: Source,
    data: DataSettings,
    columns: Sequence[FeatureColumn],
    update: Update,
    days: int | None = None,
    graph: bytes | None = None,
) -> Profile:
    """The profile of a source's rows, or of those of its newest `days` days.

    columns: what is profiled, declared in `data`. graph: a model's, whose scores are profiled too; `data` declares its
    columns. The label is counted where partitions hold it. update: gets rows done and rows in all.
    Raises ContractViolation for a column that is absent or of another type, DataError where no row is of these days.
    """
    first = _first_day(source, data, days)
    chosen = [p for p in source.partitions if p.rows and (first is None or p.date is None or p.date >= first)]
    job = _Job(source.root, data, tuple(columns), first, graph)
    merged: Merged[Profile] = Merged(Profile.merge)
    done, total = 0, sum(partition.rows for partition in chosen)
    for position, profile in map_tasks(partial(_profile_one, job=job), chosen, [p.rows for p in chosen]):
        merged.add(profile)
        done += chosen[position].rows
        update(done, total, f"{done:,} rows")
    found = merged.result() if chosen else None
    if found is None or not found.rows:
        raise DataError(f"{source.root} has no rows of the last drift.days, {days}, up to {source.as_of}; change them")
    return found


@dataclass(frozen=True)
class _Job:
    """What every task needs to know. first_day: older rows are left out."""

    root: str
    data: DataSettings
    columns: tuple[FeatureColumn, ...]
    first_day: date | None
    graph: bytes | None


def _profile_one(partition: Partition, job: _Job) -> Profile:
    scorer = _scorer(job.graph) if job.graph else None
    features = dict.fromkeys(column.name for column in (*job.columns, *(scorer.columns if scorer else ())))
    # Days come from the hive key, else from the timestamps.
    timestamp = job.data.of_kind("timestamp") if job.first_day and partition.date is None else None
    required = [*features, *([timestamp] if timestamp else [])]
    labels = [name for name in (job.data.label, job.data.of_kind("label_time")) if name]
    table = read_partition(job.root, partition, job.data, list(dict.fromkeys([*required, *labels])))
    is_labelled = job.data.label in table.column_names
    # Only types matter here: missing values and new categories are what is to be counted.
    lenient = {"nulls": True, "min": None, "max": None, "values": None}
    checked = {
        name: job.data.columns[name].model_copy(update=lenient)
        for name in [*required, *(name for name in labels if name in table.column_names)]
    }
    violations = check_columns(table, checked, partition.shown)
    if violations:
        raise ContractViolation(violations, 1)
    if timestamp and job.first_day:
        table = table.filter(pa.array(ticks_of(table[timestamp]) >= to_day(job.first_day)))
    label = known_labels(table, job.data) if is_labelled else None
    return Profile.of(table, job.columns, label, scorer.score(table) if scorer else None)


@lru_cache(maxsize=1)
def _scorer(graph: bytes) -> GraphScorer:
    """One a process: a session takes longer to open than a small partition to score."""
    return GraphScorer(graph)


def _first_day(source: Source, data: DataSettings, days: int | None) -> date | None:
    if days is None:
        return None
    if source.as_of is None:
        raise DataError(
            f"drift.days is {days}, but nothing at {source.root} tells the newest day: no 'date=' folders and no "
            "column of kind 'timestamp' with statistics. Set drift.days to null"
        )
    if data.of_kind("timestamp") is None and any(p.date is None for p in source.partitions):
        raise DataError(
            f"drift.days is {days}, but not every partition at {source.root} lies in a 'date=' folder; declare a "
            "column of kind 'timestamp', or set drift.days to null"
        )
    return source.as_of - timedelta(days=days - 1)
