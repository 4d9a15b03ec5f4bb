"""What the columns of an extract hold: of all rows, in one pass in threads, or of the first rows of some files."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, MutableMapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from fraud_ray.data import kinds
from fraud_ray.intake.extract import THREADS, Extract
from fraud_ray.progress import Update, counted

MOST_HASHES = 2**26  # of 8 bytes, which are held twice
_NONE = np.empty(0, np.uint64)
MOST_VALUES = 1_000  # of a column whose values are told apart: as many as `prepare.max_categories` by default
A_DAY = 86_400  # in seconds

# Rows by the text of their label; None: it is missing.
Labels = Counter[str | None]


@dataclass
class Facts:
    """What a column holds.

    types: each sort of type, and the first file that has it; missing: nulls and NaN; low, high: of numbers, and of
    times in microseconds since 1970; values: rows of each value as text, None where there are more than MOST_VALUES.
    """

    types: dict[str, str] = field(default_factory=dict)
    rows: int = 0
    missing: Labels = field(default_factory=Counter)
    infinite: int = 0
    low: float | None = None
    high: float | None = None
    values: dict[str, Labels] | None = field(default_factory=dict)

    @property
    def sort(self) -> str:
        """whole, number, boolean, text, time, day, nothing; else what no kind is for, in words."""
        found = set(self.types) - {"nothing"}
        if found <= {"boolean", "whole", "number"} and len(found) > 1:
            return "number" if "number" in found else "whole"
        if found <= {"time", "day"} and len(found) > 1:
            return "time"
        if "text" in found and found <= {"text", "whole", "number", "time", "day"}:
            return "text"  # of CSV, whose texts are values only where all of them are; or of two writers
        return " beside ".join(sorted(found)) or "nothing"

    @property
    def present(self) -> int:
        return self.rows - self.missing.total()


@dataclass(frozen=True)
class Roles:
    """The columns that give each row its label and its times. unit: of times that are numbers; is_dated: whether those
    are counted from 1970, and not from a start that nobody knows."""

    label: str
    timestamp: str | None = None
    unit: str | None = None
    label_time: str | None = None
    label_unit: str | None = None
    is_dated: bool = True


@dataclass
class Survey:
    """What an extract holds, by column, and what its folds need.

    days: rows by day since 1970 and by label; known_days: the same, of which labels without a label_time are missing;
    known_after: the same by days from timestamp to label_time; spans: first and last day of each of the extract's
    groups, where it has a time; bounds: smallest and largest number of each column in each group.
    """

    columns: dict[str, Facts] = field(default_factory=dict)
    days: dict[int, Labels] = field(default_factory=dict)
    known_days: dict[int, Labels] = field(default_factory=dict)
    known_after: dict[int, Labels] = field(default_factory=dict)
    spans: dict[int, tuple[int, int]] = field(default_factory=dict)
    bounds: dict[str, list[tuple[float, float]]] = field(default_factory=dict)


def survey(extract: Extract, roles: Roles, update: Update) -> Survey:
    """All rows of an extract, a batch of a file a thread at a time. update: gets rows done and rows in all."""
    found, total, done = Survey({name: Facts() for name in extract.columns}), sum(extract.rows.values()), 0
    counted_columns = set(extract.columns)  # whose values are still told apart

    def one(names: Sequence[str]) -> Survey:
        of_group = Survey()
        for first, table in extract.tables(names):
            _merge(of_group, of_table(table, roles, counted_columns, first))
        return of_group

    groups = extract.groups
    with ThreadPoolExecutor(THREADS) as pool:
        for position, (names, of_group) in enumerate(zip(groups, pool.map(one, groups), strict=True)):
            _merge(found, of_group)
            counted_columns -= {column for column, facts in found.columns.items() if facts.values is None}
            if of_group.days:
                found.spans[position] = min(of_group.days), max(of_group.days)
            for column, facts in of_group.columns.items():
                if facts.low is not None and facts.high is not None:
                    found.bounds.setdefault(column, []).append((facts.low, facts.high))
            done += sum(extract.rows[name] for name in names)
            update(done, total, f"{counted(done, 'row')} read")
    for facts in found.columns.values():  # a column that a file lacks is missing in its rows
        facts.missing[None] += total - facts.rows
        facts.rows = total
    return found


def repeats(extract: Extract, column: str) -> int | None:
    """Rows with a value that another row has, too; None where there are more than MOST_HASHES, too many to tell."""
    if sum(extract.rows.values()) > MOST_HASHES:
        return None

    def one(names: Sequence[str]) -> npt.NDArray[np.uint64]:
        tables = (plain(table[column]) for _, table in extract.tables(names, [column]) if column in table.column_names)
        return np.concatenate([_NONE, *(_hashes(pc.drop_null(texts_of(values))) for values in tables)])

    with ThreadPoolExecutor(THREADS) as pool:
        hashes = np.sort(np.concatenate([_NONE, *pool.map(one, extract.groups)]))
    return int((hashes[1:] == hashes[:-1]).sum())


def _hashes(texts: pa.ChunkedArray) -> npt.NDArray[np.uint64]:
    return pd.util.hash_array(texts.to_numpy(zero_copy_only=False), categorize=False)


def of_heads(extract: Extract) -> tuple[dict[str, Facts], dict[str, list[object]]]:
    """Of the first rows of some files: what their columns hold, and the values themselves, without missing ones."""
    found, values = Survey(), dict[str, list[object]]()
    for name, table in extract.heads():
        _merge(found, of_table(table, None, set(extract.columns), name))
        for column in table.column_names:
            held = plain(table[column])
            if sort_of(held.type) in {"text", "whole"}:
                values.setdefault(column, []).extend(held.drop_null().to_pylist())
    return found.columns, values


def of_table(table: pa.Table, roles: Roles | None, counted_columns: set[str], file: str) -> Survey:
    """What a table holds. counted_columns: those whose values are told apart."""
    columns = {name: plain(table[name]) for name in table.column_names}
    label = columns.get(roles.label) if roles else None
    labels = texts_of(label) if label is not None else pa.chunked_array([pa.nulls(len(table), pa.string())])
    found = Survey()
    for name, column in columns.items():
        found.columns[name] = _facts(column, labels, name in counted_columns, file)
    if roles and roles.timestamp in columns:
        times = seconds_of(columns[roles.timestamp], roles.unit)
        found.days = _by_day(times, labels)
        if roles.label_time in columns:
            known = seconds_of(columns[roles.label_time], roles.label_unit)
            is_date = pa.types.is_date(columns[roles.label_time].type)  # which counts from its end on
            found.known_after = _by_day(pc.subtract(pc.add(known, A_DAY * is_date), times), labels)
            found.known_days = _by_day(times, pc.if_else(pc.is_valid(known), labels, None))
    return found


def sort_of(kind: pa.DataType) -> str:
    """What a column of this type is: whole, number, boolean, text, time, day, nothing, or its type's own name."""
    sorts = (
        (pa.types.is_boolean, "boolean"),
        (pa.types.is_integer, "whole"),
        (pa.types.is_floating, "number"),
        (pa.types.is_string, "text"),
        (pa.types.is_timestamp, "time"),
        (pa.types.is_date, "day"),
        (pa.types.is_null, "nothing"),
    )
    return next((sort for fits, sort in sorts if fits(kind)), str(kind))


def seconds_of(column: pa.ChunkedArray, unit: str | None) -> pa.ChunkedArray:
    """Times as float64 seconds since 1970, null for what is no time. unit: of times that are numbers."""
    if sort_of(column.type) not in {"time", "day", "whole", "number"}:
        return pa.chunked_array([pa.nulls(len(column), pa.float64())])
    return kinds.seconds_of(column, unit)


def _facts(column: pa.ChunkedArray, labels: pa.ChunkedArray, tells_apart: bool, file: str) -> Facts:
    sort = sort_of(column.type)
    facts = Facts({sort: file}, len(column), values=None)
    if pa.types.is_floating(column.type):
        facts.infinite = pc.sum(pc.is_inf(column)).as_py() or 0
        column = pc.if_else(pc.is_finite(column), column, None)
    if column.null_count:
        facts.missing = Counter(labels.filter(pc.is_null(column)).to_pylist())
    if sort in {"whole", "number", "boolean"}:
        bounds = pc.min_max(pc.cast(column, pa.float64(), safe=False)).as_py()
        facts.low, facts.high = bounds["min"], bounds["max"]
    elif sort in {"time", "day"}:
        bounds = pc.min_max(seconds_of(column, None)).as_py()
        facts.low, facts.high = (None if b is None else b * 1e6 for b in (bounds["min"], bounds["max"]))
    if tells_apart and sort in {"whole", "number", "boolean", "text"}:
        counts = _counts(column, labels)
        if len(counts) <= MOST_VALUES or pc.count_distinct(counts["value"]).as_py() <= MOST_VALUES:
            facts.values = _by_value(texts_of(counts["value"]), counts)
    return facts


def _counts(column: pa.ChunkedArray, labels: pa.ChunkedArray) -> pa.Table:
    """Rows by value and label; missing values are left out."""
    pairs = pa.table({"value": column, "label": labels}).group_by(["value", "label"], use_threads=False)
    counts = pairs.aggregate([([], "count_all")])
    return counts.filter(pc.is_valid(counts["value"]))


def _by_value(values: pa.ChunkedArray, counts: pa.Table) -> dict[Any, Labels]:
    found: dict[Any, Labels] = {}
    labels, rows = counts["label"].to_pylist(), counts["count_all"].to_pylist()
    for value, label, count in zip(values.to_pylist(), labels, rows, strict=True):
        found.setdefault(value, Counter())[label] += count
    return found


def _by_day(seconds: pa.ChunkedArray, labels: pa.ChunkedArray) -> dict[int, Labels]:
    counts = _counts(pc.cast(pc.floor(pc.divide(seconds, A_DAY)), pa.int64(), safe=False), labels)
    return _by_value(counts["value"], counts)


def _merge(into: Survey, other: Survey) -> None:
    for name, facts in other.columns.items():
        if name not in into.columns:
            into.columns[name] = facts
            continue
        held = into.columns[name]
        held.types = {**facts.types, **held.types}
        held.rows, held.infinite = held.rows + facts.rows, held.infinite + facts.infinite
        held.missing.update(facts.missing)
        held.low = _least([held.low, facts.low])
        held.high = _least([held.high, facts.high], -1)
        if held.values is None or facts.values is None:
            held.values = None
        else:
            _add(held.values, facts.values)
            held.values = held.values if len(held.values) <= MOST_VALUES else None
    _add(into.days, other.days)
    _add(into.known_days, other.known_days)
    _add(into.known_after, other.known_after)


def _add(into: MutableMapping[Any, Labels], other: Mapping[Any, Labels]) -> None:
    for key, rows in other.items():
        into.setdefault(key, Counter()).update(rows)


def _least(bounds: Iterable[float | None], sign: int = 1) -> float | None:
    return min((bound for bound in bounds if bound is not None), key=lambda bound: sign * bound, default=None)


def texts_of(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Values as text: whole numbers without a fraction, booleans as 0 and 1."""
    return pc.cast(pc.cast(column, pa.int8()) if pa.types.is_boolean(column.type) else column, pa.string())


def plain(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Without differences between writers: dictionaries, large strings, decimals; bytes as text where they are."""
    column = kinds.plain(column)
    if pa.types.is_decimal(column.type) or pa.types.is_float16(column.type):
        return pc.cast(column, pa.float64(), safe=False)
    return column
