"""Small card data for tests: tables with every role, written as partitions, and settings that declare them."""

from __future__ import annotations

from datetime import date, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from fraud_ray.data.clock import Clock
from fraud_ray.data.contract import Census, check
from fraud_ray.data.kinds import Reading, typed
from fraud_ray.data.source import Source, open_source, read_partition
from fraud_ray.settings import DataSettings, Settings

FIRST_DAY = date(2024, 1, 1)
COLUMNS: dict[str, dict[str, Any]] = {
    "transaction_id": {"kind": "id"},
    "timestamp": {"kind": "timestamp"},
    "card": {"kind": "entity"},
    "amount": {"kind": "amount", "min": 0},
    "distance": {"kind": "numeric", "nulls": True},
    "category": {"kind": "categorical", "nulls": True},
    "online": {"kind": "boolean"},
    "is_fraud": {"kind": "label"},
    "probability": {"kind": "true_probability"},
}


def card_table(
    day: date = FIRST_DAY, rows: int = 60, seed: int = 0, fraud_share: float = 0.2, cards: int = 40
) -> pa.Table:
    """Rows of one day, in the order of time; the label of row 0 is 1, of row 1 is 0, so that both classes occur."""
    rng = np.random.default_rng([seed, day.toordinal()])
    label = (rng.random(rows) < fraud_share).astype(np.int8)
    label[:2] = [1, 0][:rows]
    seconds = np.sort(rng.integers(0, 86_400, rows)).astype("timedelta64[s]")
    distance = rng.exponential(10, rows)
    return pa.table(
        {
            "transaction_id": pa.array(rng.permutation(10 * rows)[:rows] + 1_000_000 * day.toordinal()),
            "timestamp": pa.array(np.datetime64(day, "us") + seconds),
            "card": pa.array(rng.integers(0, cards, rows)),
            "amount": pa.array(np.round(rng.lognormal(3, 1, rows), 2)),
            "distance": pa.array(distance, mask=rng.random(rows) < 0.1),
            "category": pa.array(rng.choice(["food", "fuel", "travel"], rows), mask=rng.random(rows) < 0.1),
            "online": pa.array(rng.random(rows) < 0.5),
            "is_fraud": pa.array(label),
            "probability": pa.array(np.where(label == 1, 0.9, 0.1)),
        }
    )


def unlabelled(table: pa.Table, rows: int) -> pa.Table:
    """The table without the labels of its last rows."""
    labels = pa.array(table["is_fraud"], pa.int8(), mask=np.arange(len(table)) >= len(table) - rows)
    return table.set_column(table.column_names.index("is_fraud"), "is_fraud", labels)


TIMED_COLUMNS = {**COLUMNS, "known": {"kind": "label_time"}}


def timed(table: pa.Table, until: date, seed: int = 0, longest: float = 6) -> pa.Table:
    """The table with the time when each label became known, up to `longest` days later; as it is when `until` begins,
    so that later ones are missing. A row's label is known at its own instant, and another's never."""
    rng = np.random.default_rng([seed, len(table)])
    stamps = table["timestamp"].to_numpy().astype("datetime64[us]")
    known = stamps + (rng.random(len(table)) * longest * 86_400e6).astype("timedelta64[us]")
    known[0] = stamps[0]
    late = known > np.datetime64(until, "us")
    late[1] = True
    labels = pa.array(table["is_fraud"].to_numpy(), pa.int8(), mask=late)
    table = table.set_column(table.column_names.index("is_fraud"), "is_fraud", labels)
    return table.append_column("known", pa.array(known, pa.timestamp("us"), mask=late))


def days(count: int, first: date = FIRST_DAY) -> list[date]:
    return [first + timedelta(days=i) for i in range(count)]


def write_partition(root: Path, name: str, table: pa.Table) -> Path:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path)
    return path


def write_days(root: Path, count: int, rows: int = 60, seed: int = 0, cards: int = 40) -> list[pa.Table]:
    """A partition a day, by hive key; returns their tables."""
    tables = [card_table(day, rows, seed, cards=cards) for day in days(count)]
    for day, table in zip(days(count), tables, strict=True):
        write_partition(root, f"date={day}/part-0.parquet", table)
    return tables


def card_settings(root: Path, columns: dict[str, Any] | None = None, **sections: Any) -> Settings:
    return Settings.model_validate({"data": {"path": str(root), "columns": columns or COLUMNS}, **sections})


def as_read(table: pa.Table, data: DataSettings) -> pa.Table:
    """A table as `read_partition` gives it."""
    return typed(table, {}, {name: Reading.declared(column) for name, column in data.columns.items()})


def count_here(source: Source, settings: Settings) -> Census:
    """What `validate` counts, without Ray, of valid data."""
    summaries = []
    for partition in source.partitions:
        table = read_partition(source.root, partition, settings.data, list(settings.data.columns))
        violations, summary = check(table, settings.data, partition.shown, folds=settings.folds)
        assert summary is not None, violations
        summaries.append(summary)
    return Census(tuple(summaries), Clock.of(settings.data, settings.folds))


def opened(root: Path, **sections: Any) -> tuple[Settings, Source, Census]:
    settings = card_settings(root, **sections)
    source = open_source(settings.data)
    return settings, source, count_here(source, settings)
