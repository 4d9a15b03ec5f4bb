"""One type a kind: a column as any writer left it, in the type that all readers of its kind expect."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta

import pyarrow as pa
import pyarrow.compute as pc

from fraud_ray.model.encoder import FeatureColumn, strings
from fraud_ray.settings import ColumnSettings

CATEGORIES = pa.dictionary(pa.int32(), pa.string())
TIMES = pa.timestamp("us")
HIVE_NULL = "__HIVE_DEFAULT_PARTITION__"
OTHERS = b"others"  # key of a field's metadata: the values that were read as 0 beside the one that means 1

NUMERIC = ("numeric", "amount", "true_probability")
_BINARY = ("boolean", "label")
_NAMES = ("entity", "id")
TIME_KINDS = ("timestamp", "label_time")
_SHOWN_OTHERS = 3
YES = ("y", "yes", "t", "true", "j", "ja", "1", "1.0", "s", "si", "o", "oui")  # texts that likely mean 1
A_SECOND = {"s": 1, "ms": 1_000, "us": 1_000_000, "ns": 1_000_000_000}


@dataclass(frozen=True)
class Reading:
    """How a column is read: its kind; one: the text of the value that means 1; unit: of times as whole numbers."""

    kind: str
    one: str | None = None
    unit: str | None = None

    @classmethod
    def declared(cls, column: ColumnSettings) -> Reading:
        return cls(column.kind, column.positive or column.true, column.unit)

    @classmethod
    def of_model(cls, column: FeatureColumn) -> Reading:
        return cls(column.kind, column.true, column.unit)


def typed(table: pa.Table, keys: Mapping[str, str], readings: Mapping[str, Reading]) -> pa.Table:
    """Those columns that a table or its hive keys hold, in types that do not depend on the writer.

    Numbers come as float64, booleans and labels as int8, categories as dictionaries of strings, entities and ids as
    int64 or strings, times as timestamp[us] in UTC without a zone. A column that holds what does not fit comes as
    another type, so that the contract can name it.
    """
    arrays, fields = [], []
    for name, reading in readings.items():
        if name in table.column_names:
            column = table[name]
        elif name in keys:
            column = _repeated(keys[name], reading, table.num_rows)
        else:
            continue
        others = _others(column, reading.one)
        arrays.append(harmonised(column, reading))
        fields.append(pa.field(name, arrays[-1].type, metadata={OTHERS: "\0".join(others)} if others else None))
    return pa.table(arrays, pa.schema(fields)) if arrays else table


def harmonised(column: pa.ChunkedArray, reading: Reading) -> pa.ChunkedArray:
    """A column in the one type of its kind; what holds a value that does not fit keeps a type of its own."""
    kind = reading.kind
    if kind == "categorical" and column.type == CATEGORIES and _is_utf8(column):
        return column
    column = plain(column)
    if pa.types.is_null(column.type):
        return pc.cast(column, _TYPES[kind])
    if reading.one is not None:
        return pc.cast(pc.equal(_as_text(column), reading.one), pa.int8()) if _is_text(column.type) else column
    try:
        return _cast(column, reading)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        return column


def _cast(column: pa.ChunkedArray, reading: Reading) -> pa.ChunkedArray:
    """Raises ArrowInvalid for a value that the kind's type does not hold."""
    kind, found = reading.kind, column.type
    is_integer, is_floating = pa.types.is_integer(found), pa.types.is_floating(found)
    if kind == "categorical" and (pa.types.is_string(found) or is_integer or _is_whole(column)):
        return strings(_without_nan(column)).dictionary_encode()
    if kind in NUMERIC and (is_integer or is_floating or pa.types.is_decimal(found)):
        # A decimal is rounded to the nearest number; a whole number that would be is none.
        return pc.cast(column, pa.float64(), safe=is_integer)
    if kind in _BINARY and (pa.types.is_boolean(found) or is_integer or is_floating):
        return pc.cast(_without_nan(column), pa.int8())
    if kind in _NAMES and is_integer:
        return pc.cast(column, pa.string() if found == pa.uint64() else pa.int64())
    if kind in TIME_KINDS:
        times = _times(column, reading.unit)
        # What became known on a day was known when the day was over.
        return pc.add(times, timedelta(days=1)) if kind == "label_time" and pa.types.is_date(found) else times
    return column


def _times(column: pa.ChunkedArray, unit: str | None) -> pa.ChunkedArray:
    found = column.type
    if unit and pa.types.is_floating(found):
        # Fractions of a second, such as time.time() writes.
        scale = A_SECOND["us"] / A_SECOND[unit]
        column, unit = pc.cast(pc.round(pc.multiply(_without_nan(column), scale)), pa.int64()), "us"
    elif unit and pa.types.is_integer(found):
        column = pc.cast(column, pa.int64())
    elif not (pa.types.is_date(found) or pa.types.is_timestamp(found)):
        return column
    if unit and pa.types.is_int64(column.type):
        column = pc.cast(column, pa.timestamp(unit))
    return pc.cast(column, options=pc.CastOptions(TIMES, allow_time_truncate=True))


def seconds_of(column: pa.ChunkedArray, unit: str | None) -> pa.ChunkedArray:
    """Dates, times and numbers as float64 seconds since 1970. unit: of times that are numbers."""
    if pa.types.is_date(column.type):
        column = pc.cast(column, pa.timestamp("s"))
    scale = A_SECOND[column.type.unit if pa.types.is_timestamp(column.type) else unit or "s"]
    if pa.types.is_timestamp(column.type):
        column = pc.cast(column, pa.int64())
    return pc.divide(pc.cast(column, pa.float64(), safe=False), float(scale))


def plain(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Without a dictionary, and text as strings where it is UTF-8; else as binary."""
    if pa.types.is_dictionary(column.type):
        column = pc.cast(column, column.type.value_type)
    found = column.type
    if pa.types.is_large_string(found) or pa.types.is_string_view(found):
        column = pc.cast(column, pa.string())
    if pa.types.is_string(column.type) and not _is_utf8(column):
        return pc.cast(column, pa.binary())
    if pa.types.is_large_binary(found) or pa.types.is_binary_view(found):
        column = pc.cast(column, pa.binary())
    if pa.types.is_binary(column.type):
        with suppress(pa.ArrowInvalid):  # text that its writer did not mark as such
            return pc.cast(column, pa.string())
    return column


def _is_utf8(column: pa.ChunkedArray) -> bool:
    try:
        column.validate(full=True)
    except pa.ArrowInvalid:
        return False
    return True


def _is_whole(column: pa.ChunkedArray) -> bool:
    """Whether floats are whole numbers, as pandas makes of integers where others are missing."""
    if not pa.types.is_floating(column.type):
        return False
    present = _without_nan(column)
    return pc.all(pc.and_(pc.equal(pc.floor(present), present), pc.less(pc.abs(present), 2.0**53))).as_py() is not False


def _without_nan(column: pa.ChunkedArray) -> pa.ChunkedArray:
    return pc.if_else(pc.is_nan(column), None, column) if pa.types.is_floating(column.type) else column


def _is_text(found: pa.DataType) -> bool:
    return (
        pa.types.is_string(found)
        or pa.types.is_integer(found)
        or pa.types.is_floating(found)
        or pa.types.is_boolean(found)
    )


def _as_text(column: pa.ChunkedArray) -> pa.ChunkedArray:
    return strings(_without_nan(plain(column)))


def _others(column: pa.ChunkedArray, one: str | None) -> list[str]:
    """The values beside the one that means 1, in order, a few at most."""
    if one is None or not _is_text(plain(column).type):
        return []
    found = pc.unique(_as_text(column)).to_pylist()
    return sorted(value for value in found if value is not None and value != one)[:_SHOWN_OTHERS]


_TYPES: dict[str, pa.DataType] = {
    **dict.fromkeys(NUMERIC, pa.float64()),
    **dict.fromkeys(_BINARY, pa.int8()),
    **dict.fromkeys(_NAMES, pa.string()),
    **dict.fromkeys(TIME_KINDS, TIMES),
    "categorical": CATEGORIES,
}


def from_text(texts: pa.ChunkedArray, reading: Reading, decimal_point: str = ".") -> pa.ChunkedArray:
    """Strings in the first type of the kind that all of them read as; as they are where there is none."""
    types = _TEXT_TYPES.get(reading.kind, ()) if reading.one is None else ()
    with suppress(pa.ArrowInvalid):  # what is no UTF-8 has no other spelling
        for spelled in _spelled(texts, reading, decimal_point) if types else ():
            for one in types:
                with suppress(pa.ArrowInvalid):
                    return pc.cast(spelled, one)
    return texts


def first_unlike(texts: pa.ChunkedArray, reading: Reading, decimal_point: str = ".") -> int | None:
    """Position of the first string that does not read as those before it; None where all do."""

    def read(count: int) -> bool:
        return not pa.types.is_string(from_text(texts.slice(0, count), reading, decimal_point).type)

    if read(len(texts)):
        return None
    fits, breaks = 0, len(texts)
    while breaks - fits > 1:
        middle = (fits + breaks) // 2
        fits, breaks = (middle, breaks) if read(middle) else (fits, middle)
    return fits


def _spelled(texts: pa.ChunkedArray, reading: Reading, decimal_point: str) -> Iterator[pa.ChunkedArray]:
    """Texts as Arrow reads values, one way after the other."""
    plain = pc.utf8_trim_whitespace(texts)
    if reading.kind in TIME_KINDS:
        yield plain
        yield pc.replace_substring_regex(pc.replace_substring_regex(plain, r"(\.\d{6})\d+", r"\1"), " ?UTC$", "Z")
    elif decimal_point == ".":
        yield plain
    else:
        yield pc.replace_substring(pc.replace_substring(plain, ".", "_"), decimal_point, ".")


def _repeated(text: str, reading: Reading, rows: int) -> pa.ChunkedArray:
    """A hive key's value as a column."""
    if text == HIVE_NULL:
        return pa.chunked_array([pa.nulls(rows)])
    [value] = from_text(pa.chunked_array([[text]]), reading)
    return pa.chunked_array([pa.repeat(value, rows)])


# By kind: the types that text is tried as, in order, where it is more than text.
_TEXT_TYPES: dict[str, tuple[pa.DataType, ...]] = {
    **dict.fromkeys(NUMERIC, (pa.float64(),)),
    **dict.fromkeys(_BINARY, (pa.int8(), pa.bool_(), pa.float64())),
    **dict.fromkeys(TIME_KINDS, (TIMES, pa.timestamp("us", "UTC"), pa.int64(), pa.float64())),
}
