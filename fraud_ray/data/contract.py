"""What a valid partition is: every declared column there, in a type of its kind, with allowed values only."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime
from functools import cached_property, partial
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from fraud_ray.data.clock import DAYS, Clock
from fraud_ray.data.keys import NO_LABEL, NO_TIME, Keys, ticks_of, to_day
from fraud_ray.data.kinds import (
    A_SECOND,
    CATEGORIES,
    NUMERIC,
    OTHERS,
    TIME_KINDS,
    TIMES,
    YES,
    Reading,
    first_unlike,
    seconds_of,
)
from fraud_ray.data.repeats import Repeated, find_repeats
from fraud_ray.data.source import Partition, Source, UnreadableError, read_partition
from fraud_ray.data.tasks import map_tasks
from fraud_ray.errors import DataError
from fraud_ray.progress import Update, counted
from fraud_ray.settings import ColumnSettings, DataSettings, FoldSettings

SHOWN_CAUSES = 12  # as many as fill a screen
MOST_LATE = 0.01  # of a day's rows, so that its labels count as known
NO_DELAY = FoldSettings(delay_days=0)

Mask = npt.NDArray[np.bool_]
Facts = dict[str, tuple[str, ...]]


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

    @property
    def cause(self) -> tuple[str | None, str]:
        """The column, and the message without its figures: the same of violations that one change mends."""
        message = self.message.partition(" (first at")[0]
        return self.column, re.sub(r"^has [\d,]+ (.*?)values?\b", r"has \1values", message)

    def __str__(self) -> str:
        return f"{self.path}: " + (f"column '{self.column}' {self.message}" if self.column else self.message)


class ContractViolation(DataError):  # noqa: N818 - the word that the message begins with
    """Partitions break the contract; `violations` holds all of them, the message one of each of SHOWN_CAUSES causes."""

    def __init__(self, violations: Sequence[Violation], partitions: int) -> None:
        self.violations = tuple(violations)
        self.partitions = partitions
        broken = len({violation.path for violation in violations})
        lines = [
            f"the data breaks the contract: {counted(len(violations), 'violation')} "
            f"in {broken} of {counted(partitions, 'partition')}"
        ]
        causes: dict[Any, list[Violation]] = {}
        for violation in self.violations:
            causes.setdefault(violation.cause, []).append(violation)
        for first, *others in list(causes.values())[:SHOWN_CAUSES]:
            lines.append(str(first))
            if others:
                rows = sum(violation.count for violation in (first, *others))
                lines.append(f"  likewise in {counted(len(others), 'other partition')}, {counted(rows, 'row')} in all")
        if len(causes) > SHOWN_CAUSES:
            lines.append(
                f"and {counted(len(causes) - SHOWN_CAUSES, 'more cause')}; `fraud-ray validate --all` lists all"
            )
        super().__init__("\n".join(lines))

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.violations, self.partitions)


@dataclass(frozen=True)
class Summary:
    """What one partition holds, as folds need it.

    labelled: rows whose label is known; first, last: timestamps in UTC; times: labelled rows, frauds among them and
    `late` rows, whose label is not known, by `tick`, and by the first one at whose beginning the label is `known`
    (NO_TIME where no label times are declared); frauds_of: each entity with a fraud, its tick, and the first one at
    whose beginning that is known, None where no label times are declared; buckets: (labelled rows, frauds) of the
    entity buckets that occur. Empty where the column for it is not declared.
    """

    rows: int
    labelled: int
    frauds: int
    first: datetime | None
    last: datetime | None
    times: pa.Table
    frauds_of: tuple[tuple[str, int, int | None], ...]
    buckets: dict[int, tuple[int, int]]


@dataclass(frozen=True, repr=False)
class Census:
    """The summaries of a source's partitions, in their order, and the clock that their ticks are of."""

    summaries: tuple[Summary, ...]
    clock: Clock = DAYS

    def __repr__(self) -> str:
        return (
            f"{counted(self.rows, 'row')} in {counted(len(self.summaries), 'partition')} keep the contract; "
            + "; ".join([f"{counted(self.frauds, 'fraud')} ({self.fraud_rate:.2%})", *self.notes])
        )

    @property
    def rows(self) -> int:
        return sum(summary.rows for summary in self.summaries)

    @property
    def late(self) -> int:
        """Rows whose label is not known yet."""
        return self.rows - sum(summary.labelled for summary in self.summaries)

    @property
    def frauds(self) -> int:
        return sum(summary.frauds for summary in self.summaries)

    @property
    def fraud_rate(self) -> float:
        """Of the rows whose label is known."""
        return self.frauds / max(self.rows - self.late, 1)

    @property
    def first(self) -> datetime | None:
        return min((s.first for s in self.summaries if s.first), default=None)

    @property
    def last(self) -> datetime | None:
        return max((s.last for s in self.summaries if s.last), default=None)

    @property
    def span(self) -> tuple[str, ...]:
        """The first and the last timestamp, in words; empty where there are none."""
        if self.first is None or self.last is None:
            return ()
        if self.clock.unit is None:
            return str(self.first), str(self.last)
        seconds = replace(self.clock, tick=A_SECOND["us"])
        return seconds.shown(seconds.of_time(self.first)), seconds.shown(seconds.of_time(self.last))

    @cached_property
    def times(self) -> pa.Table:
        """Labelled `rows`, `frauds` and `late` rows by `tick`, in the order of time."""
        times = pa.concat_tables(summary.times for summary in self.summaries)
        names = ("rows", "frauds", "late")
        by_tick = times.group_by("tick").aggregate([(name, "sum") for name in names]).sort_by("tick")
        return by_tick.rename_columns(["tick", *names])

    @property
    def labelled_until(self) -> int | None:
        """The newest tick with a label such that of the day up to its end all labels but MOST_LATE are known; None
        where there is none."""
        tick, rows, _, late = (column.to_numpy() for column in self.times)
        before = np.searchsorted(tick, tick - self.clock.ticks(1), "right")
        all_rows, all_late = (np.concatenate([[0], np.cumsum(counts)]) for counts in (rows + late, late))
        is_known = (rows > 0) & (all_late[1:] - all_late[before] <= MOST_LATE * (all_rows[1:] - all_rows[before]))
        return int(tick[is_known][-1]) if is_known.any() else None

    @property
    def notes(self) -> tuple[str, ...]:
        """What there is to say of labels that are not known yet."""
        until = self.labelled_until if self.late else None
        known = "" if until is None else f", known up to {self.clock.shown(until)}"
        return (f"{counted(self.late, 'label')} not known yet{known}",) if self.late else ()


def validate(source: Source, data: DataSettings, update: Update, folds: FoldSettings = NO_DELAY) -> Census:
    """Checks every partition on Ray Data and counts what it holds.

    folds: say how time is counted, and by their delay for how many days, up to the newest of the source, labels may be
    missing. update: gets rows done and rows in all, of both passes where ids are declared. Raises ContractViolation
    that lists what all partitions break, and DataError at once for another number of rows than is expected.
    """
    if data.expected_rows not in (None, source.rows):
        raise DataError(
            f"{source.root} holds {counted(source.rows, 'row')}, and data.expected_rows says {data.expected_rows:,}: "
            "it is not whole, or not the data that is meant. Bring that data, or change data.expected_rows"
        )
    found: dict[int, tuple[list[Violation], Summary | None, Facts]] = {}
    checks_ids = data.repeats == "refuse" and data.of_kind("id") is not None
    done, total = 0, source.rows * (2 if checks_ids else 1)
    check_one = partial(_check_partition, root=source.root, data=data, newest=source.as_of, folds=folds)
    for position, outcome in map_tasks(check_one, source.partitions, [p.rows for p in source.partitions]):
        found[position] = outcome
        done += source.partitions[position].rows
        update(done, total, f"{len(found):,} of {len(source.partitions):,} partitions")
    outcomes = [found[position] for position in range(len(source.partitions))]
    violations = [violation for broken, _, _ in outcomes for violation in broken]
    shown = [partition.shown for partition in source.partitions]
    violations += _mixed(shown, [facts for _, _, facts in outcomes], data.columns)
    if checks_ids:
        of_ids = find_repeats(source, data, lambda read, of, text: update(done + done * read / of, total, text))
        violations += _repeated(source, data, of_ids)
    if violations:
        raise ContractViolation(violations, len(source.partitions))
    return Census(tuple(summary for _, summary, _ in outcomes if summary is not None), Clock.of(data, folds))


def _repeated(source: Source, data: DataSettings, repeats: Mapping[int, Repeated]) -> Iterator[Violation]:
    for place, found in repeats.items():
        yield Violation(
            source.partitions[place].shown,
            data.of_kind("id"),
            f"has {counted(len(found.rows), 'value')} that another row has too ({found.example}); an id occurs once. "
            "Remove what was written twice, or keep the last row of each by time with data.repeats: last.",
            len(found.rows),
            int(found.rows[0]),
        )


def check(
    table: pa.Table, data: DataSettings, shown: str, newest: date | None = None, folds: FoldSettings = NO_DELAY
) -> tuple[list[Violation], Summary | None]:
    """What one partition breaks, and what it holds where it breaks nothing.

    table: the declared columns that the partition has, as `read_partition` gives them; shown: its name in messages.
    newest: the source's newest day; folds: as `validate` has them.
    """
    broken = check_columns(table, data.columns, shown, data.csv.decimal_point)
    times = {data.of_kind("timestamp"), data.of_kind("label_time")}
    if data.label in table.column_names and not times & {violation.column for violation in broken}:
        broken += [Violation(shown, *found) for found in _check_labels(table, data, newest, folds)]
    return (broken, None) if broken else ([], _summarize(table, data, Clock.of(data, folds)))


def check_columns(
    table: pa.Table, columns: Mapping[str, ColumnSettings], shown: str, decimal_point: str = "."
) -> list[Violation]:
    """What a table, as `read_partition` gives it, breaks of these columns, but for labels that are missing."""
    return [
        Violation(shown, name, *finding)
        for name, column in columns.items()
        for finding in _check_column(table, name, column, decimal_point)
    ]


def _check_partition(
    partition: Partition, root: str, data: DataSettings, newest: date | None, folds: FoldSettings
) -> tuple[list[Violation], Summary | None, Facts]:
    try:
        table = read_partition(root, partition, data, list(data.columns))
    except UnreadableError as fault:
        return [Violation(partition.shown, fault.column, fault.told, partition.rows, 0)], None, {}
    except DataError as fault:
        message = str(fault).removeprefix(f"{partition.shown} ").removeprefix(f"{partition.shown}: ")
        return [Violation(partition.shown, None, message, partition.rows, 0)], None, {}
    return *check(table, data, partition.shown, newest, folds), _facts(table, data)


def _facts(table: pa.Table, data: DataSettings) -> Facts:
    """What a partition holds of what must be the same in all: text or integers, the other value of two."""
    facts: Facts = {}
    for field in table.schema if table.num_rows else ():
        others = (field.metadata or {}).get(OTHERS)
        if data.columns[field.name].kind in {"entity", "id"}:
            facts[field.name] = ("text" if pa.types.is_string(field.type) else "integers",)
        elif others:
            facts[field.name] = tuple(others.decode().split("\0"))
    return facts


def _mixed(shown: Sequence[str], facts: Sequence[Facts], columns: Mapping[str, ColumnSettings]) -> Iterator[Violation]:
    """Partitions of which each is right, but which are not right together; each names another one."""
    for name in dict.fromkeys(name for held in facts for name in held):
        held = [
            (path, values) for path, found in zip(shown, facts, strict=True) for values in [found.get(name)] if values
        ]
        usual, count = Counter(values for _, values in held).most_common(1)[0]
        example = next(path for path, values in held if values == usual)
        for path, values in held:
            one = Reading.declared(columns[name]).one
            told = None
            if one is None and values != usual:
                told = f"is {values[0]} and holds {usual[0]} in {counted(count, 'partition')}, such as {example}"
            elif one is not None and len({*values, *usual}) > 1:
                texts, of_others = ", ".join(map(repr, values)), ", ".join(map(repr, usual))
                told = f"holds {texts} beside {one!r}" + (
                    f", where {example} holds {of_others}" if values != usual else ""
                )
                told += "; beside the text that means 1 there is one that means 0"
            if told:
                yield Violation(path, name, f"{told}. Write one in all.", 0, 0)


Finding = tuple[str, int, int]  # message, rows, first row


def _check_column(table: pa.Table, name: str, column: ColumnSettings, decimal_point: str) -> Iterator[Finding]:
    setting = f"data.columns.{name}"
    unfit = check_type(table, name, Reading.declared(column), setting, decimal_point)
    if unfit:
        yield unfit
        return
    values = table[name]
    missing = _missing(values)
    if missing is not None and not column.nulls and column.kind not in {"label", "label_time"}:
        yield _found(
            "missing values", missing, values, f"the contract allows none. {_remedy(column, setting, 'nulls')}"
        )
    for what, wrong, allowed in _wrong_values(values, missing, column, setting):
        if wrong.any():
            yield _found(what, wrong, values, allowed)


def _check_labels(
    table: pa.Table, data: DataSettings, newest: date | None, folds: FoldSettings
) -> Iterator[tuple[str, str, int, int]]:
    """Labels that are missing, and not because they cannot be known yet; label times before the transaction's own.

    Each with the column.
    """
    values, timestamp, label_time = table[data.label], data.of_kind("timestamp"), data.of_kind("label_time")
    if timestamp is not None and label_time is not None:
        early = pc.fill_null(pc.less(table[label_time], table[timestamp]), False).to_numpy()
        if early.any():
            allowed = (
                "no label is known before its transaction. Fix the file; where only the day is known, write dates, "
                "which count from their end on."
            )
            what = f"values before the transaction's own {timestamp}"
            yield label_time, *_found(what, early, table[label_time], allowed)
    missing, allowed = _missing(values), "the contract allows none. Fix the file."
    if missing is None:
        return
    if label_time is not None:
        missing = missing & pc.is_valid(table[label_time]).to_numpy()
        allowed = f"{label_time} says since when they are known. Write them, or leave {label_time} empty there."
    elif timestamp is not None and newest is not None:
        last, delay_days = to_day(newest), math.ceil(folds.delay_days)
        shown = Clock.of(data, NO_DELAY).shown(last)
        missing = missing & (ticks_of(table[timestamp]) <= last - delay_days)
        allowed = (
            f"labels may be missing on the newest {counted(delay_days, 'day')} alone (folds.delay_days), of which the "
            f"last is {shown}. Write them, leave these rows out, or raise folds.delay_days."
        )
    if missing.any():
        yield data.label, *_found("missing values", missing, values, allowed)


def check_type(
    table: pa.Table, name: str, reading: Reading, setting: str | None = None, decimal_point: str = "."
) -> Finding | None:
    """Of a column that is missing, or that did not come in the type of its kind: a sentence, how many rows, the first.

    table: as `kinds.typed` gives it; setting: the key that declares the column, where one does.
    """
    if name not in table.column_names:
        return "is missing. Add it to the file" + (f", or remove {setting}." if setting else "."), table.num_rows, 0
    kind, values = reading.kind, table[name]
    fits, expected = _TYPES[kind]
    found = values.type
    if fits(found):
        return None
    if kind in {"categorical", "entity", "id"} and pa.types.is_binary(found):
        wrong = np.array([not _is_utf8(value.as_py()) for value in values], bool)
        return _found("values that cannot be read as UTF-8", wrong, values, "text is UTF-8. Fix the file.")
    if kind in NUMERIC and pa.types.is_integer(found):
        allowed = "a float64 holds no more digits. Round them, or write text and declare kind 'categorical' or 'id'."
        return _found("values beyond 2^53", np.abs(values.to_numpy().astype(np.float64)) >= 2.0**53, values, allowed)
    is_time = pa.types.is_timestamp(found) or pa.types.is_date(found) or (reading.unit and _is_number(found))
    if kind in TIME_KINDS and is_time:
        wrong = _outside_years(values, reading.unit)
        if wrong.any():
            return _found("values outside the years 1 to 9999", wrong, values, f"{_NO_TIME} Fix the file.")
    remedy = f"Fix the file, or declare another kind with {setting}.kind." if setting else "Fix the file."
    if kind in {*NUMERIC, *TIME_KINDS} and pa.types.is_string(found):
        row = first_unlike(values, reading, decimal_point)
        if row is not None:
            return _text_that_is_none(values[row].as_py(), kind, decimal_point, row, remedy), table.num_rows, row
    if kind in TIME_KINDS and setting and (pa.types.is_integer(found) or pa.types.is_floating(found)):
        remedy = f"Say with {setting}.unit in what they count from 1970, such as ms."
    if kind in {"label", "boolean"} and setting and pa.types.is_string(found):
        key = "positive" if kind == "label" else "true"
        remedy = f"Say which text means 1 with {setting}.{key}, such as {_first_text(values)!r}."
    return f"is of type {found}; kind '{kind}' is for {expected}. {remedy}", table.num_rows, 0


def _text_that_is_none(text: str, kind: str, decimal_point: str, row: int, remedy: str) -> str:
    if kind in TIME_KINDS:
        remedy = f"Write times as 2024-03-07 10:15:00, in UTC or with their zone. {remedy}"
    elif decimal_point == "." and text.count(",") == 1 and "." not in text:
        remedy = f"Where that is a decimal point, say so with data.csv.decimal_point: ','. {remedy}"
    expected = "time" if kind in TIME_KINDS else "number"
    return f"has text that is no {expected} as those before it (first at row {row}: {text!r}). {remedy}"


def _first_text(values: pa.ChunkedArray) -> str:
    """Of the texts of a column, the one that most likely means yes."""
    found = sorted(filter(None, pc.unique(values).to_pylist()))
    return next((text for text in found if text.strip().lower() in _YES), found[-1] if found else "Y")


_YES = (*YES, "fraud")


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
    if column.kind in {"entity", "id"}:
        return
    if column.kind in TIME_KINDS:
        yield "values outside the years 1 to 9999", _outside_years(values), f"{_NO_TIME} Fix the file."
        microseconds = pc.fill_null(pc.cast(values, pa.int64()), 0).to_numpy()
        for text, first, after in NO_TIMES:
            wrong = (microseconds >= first) & (microseconds < after)
            yield f"values {text} in place of no time", wrong, f"{_NO_TIME} {_remedy(column, setting, 'nulls')}"
        return
    array = values.to_numpy()
    present = True if missing is None else ~missing
    if column.kind in {"label", "boolean"}:
        wrong = (array != 0) & (array != 1) & present
        yield "values other than 0 and 1", wrong, f"a {column.kind} is 0 or 1. Fix the file."
        return
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
    change = {"nulls": "allow them with {}.nulls: true", "values": "add them to {}.values"}.get(key, "change {}." + key)
    return f"Fix the file, or {change.format(setting)}."


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
    try:
        example = values[first].as_py()
    except (OverflowError, ValueError):  # a year that Python does not have
        example = None
    shown = f": {example!r}" if example is not None else ""
    return f"has {count:,} {what} (first at row {first}{shown}); {allowed}", count, first


def _is_utf8(value: bytes | None) -> bool:
    try:
        (value or b"").decode()
    except UnicodeDecodeError:
        return False
    return True


def _outside_years(values: pa.ChunkedArray, unit: str | None = None) -> Mask:
    """Which times lie outside the years that Python's datetime has."""
    seconds = pc.fill_null(seconds_of(values, unit), 0.0).to_numpy()
    return (seconds < _second(datetime.min)) | (seconds >= _second(datetime.max))


def _second(moment: datetime) -> float:
    return moment.replace(tzinfo=UTC).timestamp()


_NO_TIME = "a time that is not known is null."
_A_DAY, _A_SECOND = 86_400_000_000, 1_000_000
# Times that systems write where they know none: their text, the first microsecond since 1970, and the one after them.
NO_TIMES = tuple(
    (
        text,
        int(_second(datetime.fromisoformat(text))) * _A_SECOND,
        int(_second(datetime.fromisoformat(text))) * _A_SECOND + span,
    )
    for text, span in (("0001-01-01", _A_DAY), ("1900-01-01", 1), ("9999-12-31", _A_DAY))
)


def _is_number(found: pa.DataType) -> bool:
    return pa.types.is_integer(found) or pa.types.is_floating(found)


# By kind: what a column is that `kinds.typed` found to fit, and what may be written, in words. The values of booleans
# and labels are a rule of their own.
_TYPES: dict[str, tuple[Callable[[pa.DataType], bool], str]] = {
    "numeric": (pa.types.is_float64, "integers, floating point numbers and decimals"),
    "amount": (pa.types.is_float64, "integers, floating point numbers and decimals"),
    "true_probability": (pa.types.is_float64, "floating point numbers"),
    "boolean": (_is_number, "booleans, and numbers that are 0 or 1"),
    "label": (_is_number, "booleans, and numbers that are 0 or 1"),
    "categorical": (CATEGORIES.equals, "text and whole numbers"),
    "entity": (lambda found: found in {pa.string(), pa.int64()}, "text and whole numbers"),
    "id": (lambda found: found in {pa.string(), pa.int64()}, "text and whole numbers"),
    "timestamp": (TIMES.equals, "dates and timestamps"),
    "label_time": (TIMES.equals, "dates and timestamps"),
}


def _summarize(table: pa.Table, data: DataSettings, clock: Clock) -> Summary:
    keys = Keys.of(table, data, clock)
    is_fraud, is_labelled = keys.label == 1, keys.label != NO_LABEL
    times = _times(keys) if keys.tick is not None else _UNTIMED
    frauds_of: tuple[tuple[str, int, int | None], ...] = ()
    buckets: dict[int, tuple[int, int]] = {}
    first = last = None
    if keys.tick is not None:
        bounds = pc.min_max(table[data.of_kind("timestamp")]).as_py()
        first, last = bounds["min"], bounds["max"]
    if keys.entities is not None:
        counts = _summed({"bucket": keys.entities.buckets}, {"rows": is_labelled, "frauds": is_fraud})
        of_buckets = zip(*(counts[name].to_pylist() for name in ("bucket", "rows", "frauds")), strict=True)
        buckets = {bucket: (rows, frauds) for bucket, rows, frauds in of_buckets if rows}
    if keys.tick is not None and keys.entities is not None:
        names = keys.entities.names.take(pa.array(keys.entities.positions[is_fraud])).to_pylist()
        since = np.full(len(names), NO_TIME) if keys.known is None else keys.known[is_fraud]
        found = sorted(set(zip(names, keys.tick[is_fraud].tolist(), since.tolist(), strict=True)))
        frauds_of = tuple(
            (name, tick, None if since == NO_TIME else since) for name, tick, since in found if name and tick != NO_TIME
        )
    rows = len(is_fraud), int(is_labelled.sum()), int(is_fraud.sum())
    return Summary(*rows, first, last, times, frauds_of, buckets)


def _times(keys: Keys) -> pa.Table:
    """Labelled rows, frauds and late rows by tick and by the tick when the label is known."""
    known = np.full(len(keys.label), NO_TIME) if keys.known is None else keys.known
    is_labelled = keys.label != NO_LABEL
    of_rows = {"rows": is_labelled, "frauds": keys.label == 1, "late": ~is_labelled}
    counts = _summed({"tick": keys.tick, "known": known}, of_rows)
    return counts.filter(pc.not_equal(counts["tick"], NO_TIME))


_UNTIMED = pa.table({name: pa.array([], pa.int64()) for name in ("tick", "known", "rows", "frauds", "late")})


def _summed(by: Mapping[str, Any], counts: Mapping[str, Mask]) -> pa.Table:
    """How many rows are of each count, by the values that occur; each array (rows,)."""
    rows = pa.table({**by, **{name: of_row.astype(np.int64) for name, of_row in counts.items()}})
    grouped = rows.group_by(list(by), use_threads=False).aggregate([(name, "sum") for name in counts])
    return grouped.rename_columns([*by, *counts])
