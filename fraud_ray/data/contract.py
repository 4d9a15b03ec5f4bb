"""What a valid partition is: every declared column there, in a type of its kind, with allowed values only."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from fraud_ray.data.keys import NO_DAY, Keys, to_date
from fraud_ray.data.source import Partition, Source, read_partition
from fraud_ray.data.tasks import map_tasks
from fraud_ray.errors import DataError
from fraud_ray.progress import Update, counted
from fraud_ray.settings import ColumnSettings, DataSettings

SHOWN_VIOLATIONS = 50

Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Violation:
    """One way in which one partition breaks the contract.

    path: relative to the source; column: None where the whole file is meant; message: a sentence that begins after
    them; count: rows that break it; first_row: the first of them, counted from 0.
    """

    path: str
    column: str | None
    message: str
    count: int
    first_row: int

    def __str__(self) -> str:
        return f"{self.path}: " + (f"column '{self.column}' {self.message}" if self.column else self.message)


class ContractViolation(DataError):  # noqa: N818 - the word that the message begins with
    """Partitions break the contract; `violations` holds all of them, the message the first SHOWN_VIOLATIONS."""

    def __init__(self, violations: Sequence[Violation], partitions: int) -> None:
        self.violations = tuple(violations)
        self.partitions = partitions
        broken = len({violation.path for violation in violations})
        lines = [
            f"the data breaks the contract: {counted(len(violations), 'violation')} "
            f"in {broken} of {counted(partitions, 'partition')}"
        ]
        lines += [str(violation) for violation in self.violations[:SHOWN_VIOLATIONS]]
        if len(violations) > SHOWN_VIOLATIONS:
            lines.append(f"and {len(violations) - SHOWN_VIOLATIONS:,} more")
        super().__init__("\n".join(lines))

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.violations, self.partitions)


@dataclass(frozen=True)
class Summary:
    """What one partition holds, as folds need it.

    first, last: timestamps in UTC; days: (rows, frauds) by day; fraud_days: each entity with a fraud, and the day;
    buckets: (rows, frauds) of the entity buckets that occur. Empty where the column for it is not declared.
    """

    rows: int
    frauds: int
    first: datetime | None
    last: datetime | None
    days: dict[date, tuple[int, int]]
    fraud_days: tuple[tuple[str, date], ...]
    buckets: dict[int, tuple[int, int]]


@dataclass(frozen=True, repr=False)
class Census:
    """The summaries of a source's partitions, in their order."""

    summaries: tuple[Summary, ...]

    def __repr__(self) -> str:
        return (
            f"{counted(self.rows, 'row')} in {counted(len(self.summaries), 'partition')} keep the contract; "
            f"{counted(self.frauds, 'fraud')} ({self.frauds / self.rows:.2%})"
        )

    @property
    def rows(self) -> int:
        return sum(summary.rows for summary in self.summaries)

    @property
    def frauds(self) -> int:
        return sum(summary.frauds for summary in self.summaries)

    @property
    def first(self) -> datetime | None:
        return min((s.first for s in self.summaries if s.first), default=None)

    @property
    def last(self) -> datetime | None:
        return max((s.last for s in self.summaries if s.last), default=None)


def validate(source: Source, data: DataSettings, update: Update) -> Census:
    """Checks every partition on Ray Data and counts what it holds.

    Raises ContractViolation that lists what all partitions break. update: gets rows done and rows in all.
    """
    found: dict[int, tuple[list[Violation], Summary | None, dict[str, str]]] = {}
    done = 0
    check_one = partial(_check_partition, root=source.root, data=data)
    for position, outcome in map_tasks(check_one, source.partitions, [p.rows for p in source.partitions]):
        found[position] = outcome
        done += source.partitions[position].rows
        update(done, source.rows, f"{len(found):,} of {len(source.partitions):,} partitions")
    outcomes = [found[position] for position in range(len(source.partitions))]
    violations = [violation for broken, _, _ in outcomes for violation in broken]
    shown = [partition.shown for partition in source.partitions]
    violations += _mixed_types(shown, [types for _, _, types in outcomes])
    if violations:
        raise ContractViolation(violations, len(source.partitions))
    return Census(tuple(summary for _, summary, _ in outcomes if summary is not None))


def check(table: pa.Table, data: DataSettings, shown: str) -> tuple[list[Violation], Summary | None]:
    """What one partition breaks, and what it holds where it breaks nothing.

    table: the declared columns that the partition has, as `read_partition` gives them; shown: its name in messages.
    """
    broken = check_columns(table, data.columns, shown)
    return (broken, None) if broken else ([], _summarize(table, data))


def check_columns(table: pa.Table, columns: Mapping[str, ColumnSettings], shown: str) -> list[Violation]:
    """What a table, as `read_partition` gives it, breaks of these columns."""
    return [
        Violation(shown, name, *finding)
        for name, column in columns.items()
        for finding in _check_column(table, name, column)
    ]


def _check_partition(
    partition: Partition, root: str, data: DataSettings
) -> tuple[list[Violation], Summary | None, dict[str, str]]:
    try:
        table = read_partition(root, partition, data, list(data.columns))
    except DataError as fault:
        message = str(fault).removeprefix(f"{partition.shown} ").removeprefix(f"{partition.shown}: ")
        return [Violation(partition.shown, None, message, partition.rows, 0)], None, {}
    types = {
        name: "text" if pa.types.is_string(table[name].type) else "integers"
        for name in table.column_names
        if data.columns[name].kind in {"entity", "id"} and table.num_rows
    }
    return *check(table, data, partition.shown), types


def _mixed_types(shown: Sequence[str], types: Sequence[dict[str, str]]) -> Iterator[Violation]:
    """Partitions that hold an entity or id as text where most hold integers, or the other way."""
    for name in dict.fromkeys(name for held in types for name in held):
        usual, count = Counter(held[name] for held in types if name in held).most_common(1)[0]
        for path, held in zip(shown, types, strict=True):
            if held.get(name, usual) != usual:
                yield Violation(
                    path,
                    name,
                    f"is {held[name]} and holds {usual} in {counted(count, 'partition')}. Write one type in all.",
                    0,
                    0,
                )


Finding = tuple[str, int, int]  # message, rows, first row


def _check_column(table: pa.Table, name: str, column: ColumnSettings) -> Iterator[Finding]:
    setting = f"data.columns.{name}"
    unfit = check_type(table, name, column.kind, setting)
    if unfit:
        yield unfit, table.num_rows, 0
        return
    values = table[name]
    missing = _missing(values)
    if missing is not None and not column.nulls:
        yield _found(
            "missing values", missing, values, f"the contract allows none. {_remedy(column, setting, 'nulls')}"
        )
    for what, wrong, allowed in _wrong_values(values, missing, column, setting):
        if wrong.any():
            yield _found(what, wrong, values, allowed)


def check_type(table: pa.Table, name: str, kind: str, setting: str | None = None) -> str | None:
    """A sentence on a column that is missing or of a type which its kind is not for; None where all is well.

    table: as `source.typed` gives it; setting: the key that declares the column, where one does.
    """
    if name not in table.column_names:
        return "is missing. Add it to the file" + (f", or remove {setting}." if setting else ".")
    accepts, expected = _TYPES[kind]
    found = table[name].type
    if accepts(found):
        return None
    remedy = f"Fix the file, or declare another kind with {setting}.kind." if setting else "Fix the file."
    return f"is of type {found}; kind '{kind}' is for {expected}. {remedy}"


def _wrong_values(
    values: pa.ChunkedArray, missing: Mask | None, column: ColumnSettings, setting: str
) -> Iterator[tuple[str, Mask, str]]:
    """Each rule on values: what it calls the wrong ones, which they are, and what the contract says."""
    if column.kind == "categorical":
        if column.values is not None:
            wrong = pc.invert(pc.is_in(pc.cast(values, pa.string()), pa.array(column.values, pa.string())))
            wrong = pc.and_(wrong, pc.is_valid(values)).to_numpy()
            yield "unknown values", wrong, f"the contract names others. {_remedy(column, setting, 'values')}"
        return
    if column.kind in {"timestamp", "entity", "id"}:
        return
    numbers = pc.cast(values, pa.int8()) if pa.types.is_boolean(values.type) else values
    array = numbers.to_numpy()
    present = True if missing is None else ~missing
    if column.kind in {"label", "boolean"}:
        wrong = (array != 0) & (array != 1) & present
        yield "values other than 0 and 1", wrong, f"a {column.kind} is 0 or 1. Fix the file."
        return
    if array.dtype.kind == "f":
        yield "infinite values", np.isinf(array), "a number must be finite. Fix the file."
    low, high = (0.0, 1.0) if column.kind == "true_probability" else (column.min, column.max)
    if low is not None:
        below, says = (array < low) & np.isfinite(array), f"the contract says >= {low:g}."
        yield f"values below {low:g}", below, f"{says} {_remedy(column, setting, 'min')}"
    if high is not None:
        above, says = (array > high) & np.isfinite(array), f"the contract says <= {high:g}."
        yield f"values above {high:g}", above, f"{says} {_remedy(column, setting, 'max')}"


def _remedy(column: ColumnSettings, setting: str, key: str) -> str:
    if column.kind in {"label", "true_probability"} and not (column.kind == "true_probability" and key == "nulls"):
        return "Fix the file."
    return f"Fix the file, or allow {'them' if key == 'nulls' else 'it'} with {setting}.{key}."


def _missing(values: pa.ChunkedArray) -> Mask | None:
    """Which values are null or NaN; None where none is."""
    if values.null_count or pa.types.is_floating(values.type):
        missing = pc.is_null(values, nan_is_null=True)
        if pc.any(missing).as_py():
            return missing.to_numpy()
    return None


def _found(what: str, wrong: Mask, values: pa.ChunkedArray, allowed: str) -> Finding:
    count, first = int(wrong.sum()), int(wrong.argmax())
    if count == 1:
        what = what.replace("values", "value", 1)
    example = values[first].as_py()
    shown = f": {example!r}" if example is not None else ""
    return f"has {count:,} {what} (first at row {first}{shown}); {allowed}", count, first


def _is_number(kind: pa.DataType) -> bool:
    return pa.types.is_integer(kind) or pa.types.is_floating(kind)


def _is_binary(kind: pa.DataType) -> bool:
    return pa.types.is_boolean(kind) or _is_number(kind)


def _is_name(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_integer(kind)


def _is_category(kind: pa.DataType) -> bool:
    return _is_name(kind.value_type if pa.types.is_dictionary(kind) else kind)


# By kind: the types that it accepts, after `source.harmonised`, and how a message names them.
_TYPES: dict[str, tuple[Callable[[pa.DataType], bool], str]] = {
    "numeric": (_is_number, "integers, floating point numbers and decimals"),
    "amount": (_is_number, "integers, floating point numbers and decimals"),
    "true_probability": (_is_number, "floating point numbers"),
    "boolean": (_is_binary, "booleans, and numbers that are 0 or 1"),
    "label": (_is_binary, "booleans, and numbers that are 0 or 1"),
    "categorical": (_is_category, "strings, dictionaries of strings, and integers"),
    "entity": (_is_name, "strings and integers"),
    "id": (_is_name, "strings and integers"),
    "timestamp": (pa.types.is_timestamp, "dates and timestamps"),
}


def _summarize(table: pa.Table, data: DataSettings) -> Summary:
    keys = Keys.of(table, data)
    is_fraud = keys.label == 1
    days: dict[date, tuple[int, int]] = {}
    fraud_days: tuple[tuple[str, date], ...] = ()
    buckets: dict[int, tuple[int, int]] = {}
    first = last = None
    if keys.day is not None:
        days = {to_date(day): both for day, both in _counts(keys.day, is_fraud).items() if day != NO_DAY}
        bounds = pc.min_max(table[data.of_kind("timestamp")]).as_py()
        first, last = bounds["min"], bounds["max"]
    if keys.entities is not None:
        buckets = _counts(keys.entities.buckets, is_fraud)
    if keys.day is not None and keys.entities is not None:
        names = keys.entities.names.take(pa.array(keys.entities.positions[is_fraud])).to_pylist()
        pairs = set(zip(names, keys.day[is_fraud].tolist(), strict=True))
        fraud_days = tuple(sorted((name, to_date(day)) for name, day in pairs if name and day != NO_DAY))
    return Summary(len(is_fraud), int(is_fraud.sum()), first, last, days, fraud_days, buckets)


def _counts(values: npt.NDArray[np.int64], is_fraud: Mask) -> dict[int, tuple[int, int]]:
    """(rows, frauds) by value."""
    grouped = pa.table({"value": values, "fraud": is_fraud}).group_by("value", use_threads=False)
    counted = grouped.aggregate([("fraud", "count"), ("fraud", "sum")]).to_pydict()
    return dict(zip(counted["value"], zip(counted["fraud_count"], counted["fraud_sum"], strict=True), strict=True))
