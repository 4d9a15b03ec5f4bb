"""What places a row in a fold: its label, its day and its entity, each independent of how a file stores it."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from fraud_ray.data.clock import DAYS, Clock, Int64
from fraud_ray.settings import DataSettings

# Entities are counted, and drawn, in this many groups of about equal size.
BUCKETS = 1_000
NO_TIME = np.iinfo(np.int64).min
NO_LABEL = -1
NEVER = np.iinfo(np.int64).max
_EPOCH = date(1970, 1, 1).toordinal()
_HASH_KEY = "fraud_ray/entity"  # 16 bytes, as SipHash wants it; another key gives other folds


@dataclass(frozen=True)
class Entities:
    """The entity of each row: a position (rows,) in `names`, where a whole number and its text are one name."""

    positions: npt.NDArray[np.int32]
    names: pa.StringArray

    @property
    def buckets(self) -> Int64:
        """The bucket of each row, 0 to BUCKETS - 1."""
        return buckets_of(self.names)[self.positions]


@dataclass(frozen=True)
class Keys:
    """Arrays of the same n rows.

    label: int8 (n,), 0 or 1, NO_LABEL where it is not known yet; tick: int64 (n,), of a clock, in UTC, NO_TIME for a
    missing timestamp; known: int64 (n,), the first tick at whose beginning the label is known, where there is a label;
    tick, known and entities are None where the table lacks the column.
    """

    label: npt.NDArray[np.int8]
    tick: Int64 | None
    known: Int64 | None
    entities: Entities | None

    @classmethod
    def of(cls, table: pa.Table, data: DataSettings, clock: Clock = DAYS) -> Keys:
        """The keys of a table as `read_partition` gives it, valid by the contract, with at least the label."""
        timestamp, label_time, entity = (data.of_kind(kind) for kind in ("timestamp", "label_time", "entity"))
        held = table.column_names
        return cls(
            pc.fill_null(known_labels(table, data), NO_LABEL).to_numpy(),
            ticks_of(table[timestamp], clock) if timestamp in held else None,
            clock.since(known_since(table[label_time], table[timestamp] if timestamp in held else None))
            if label_time in held
            else None,
            entities_of(table[entity]) if entity in held else None,
        )


def known_labels(table: pa.Table, data: DataSettings) -> pa.ChunkedArray:
    """The label column, null also where its time, if the table has it, says that it is not known yet."""
    label_time = data.of_kind("label_time")
    if label_time not in table.column_names:
        return table[data.label]
    return pc.if_else(pc.is_valid(table[label_time]), table[data.label], None)


def known_since(label_time: pa.ChunkedArray, timestamp: pa.ChunkedArray | None) -> Int64:
    """When labels became known, in microseconds since 1970, NEVER where they are not yet; both columns as times.

    No transaction knows its own label: it is known a microsecond after the transaction at the earliest.
    """
    since = pc.fill_null(pc.cast(label_time, pa.int64()), NEVER).to_numpy()
    if timestamp is None:
        return since
    return np.maximum(since, pc.fill_null(pc.cast(timestamp, pa.int64()), NO_TIME).to_numpy() + 1)


def ticks_of(timestamps: pa.ChunkedArray, clock: Clock = DAYS) -> Int64:
    """Ticks of timestamp[us] in UTC, shape (rows,): by default days since 1970; NO_TIME for null."""
    microseconds = pc.fill_null(pc.cast(timestamps, pa.int64()), NO_TIME).to_numpy()
    return np.where(microseconds == NO_TIME, NO_TIME, clock.at(microseconds))


def to_day(day: date) -> int:
    """Days since 1970."""
    return day.toordinal() - _EPOCH


def to_date(day: int) -> date:
    return date.fromordinal(int(day) + _EPOCH)


def entities_of(column: pa.ChunkedArray) -> Entities:
    """Integers and strings alike; a missing entity has the name ''."""
    encoded = column.combine_chunks().dictionary_encode(null_encoding="encode")
    return Entities(encoded.indices.to_numpy(), pc.fill_null(pc.cast(encoded.dictionary, pa.string()), ""))


def buckets_of(names: pa.StringArray) -> Int64:
    """The bucket of each name, 0 to BUCKETS - 1: the same in every process, on every machine and for ever."""
    texts = names.to_numpy(zero_copy_only=False)
    hashed = pd.util.hash_array(texts, hash_key=_HASH_KEY, categorize=False)
    return (hashed % np.uint64(BUCKETS)).astype(np.int64)
