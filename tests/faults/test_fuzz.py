"""Files of any schema, values and damage: refused by name, or read as what they hold."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fraud_ray.data.contract import check_columns, validate
from fraud_ray.data.source import open_source, read_partition
from fraud_ray.errors import DataError
from fraud_ray.settings import DataSettings
from tests.faults.test_data import unheard

NAMES = ("numeric", "amount", "categorical", "boolean", "label", "timestamp", "label_time", "entity", "id")
SECONDS = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}


def whole(bits: int, signed: bool = True) -> st.SearchStrategy[int]:
    return st.integers(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else st.integers(0, 2**bits - 1)


TEXTS = st.one_of(st.text(max_size=6), st.sampled_from(["", "Y", "N", "1", "0", "2024-03-07", "1.5", "NaN", "\0"]))
# Times in 2024, beyond the calendar at either end, and where units of others wrap around.
MOMENTS = st.one_of(st.integers(1_700_000_000, 1_740_000_000), whole(64), st.integers(-(2**36), 2**46))
VALUES: dict[pa.DataType, st.SearchStrategy[Any]] = {
    **{getattr(pa, f"int{bits}")(): st.one_of(st.integers(0, 1), whole(bits)) for bits in (8, 16, 32, 64)},
    **{getattr(pa, f"uint{bits}")(): st.one_of(st.integers(0, 1), whole(bits, False)) for bits in (8, 32, 64)},
    pa.float32(): st.one_of(st.integers(0, 1).map(float), st.floats(width=32)),
    pa.float64(): st.one_of(st.integers(0, 1).map(float), st.floats()),
    pa.bool_(): st.booleans(),
    pa.string(): TEXTS,
    pa.large_string(): TEXTS,
    pa.binary(): st.one_of(TEXTS.map(str.encode), st.binary(max_size=4)),
    pa.dictionary(pa.int32(), pa.string()): TEXTS,
    pa.date32(): st.one_of(st.integers(19_000, 20_000), whole(32)),
    pa.decimal128(10, 2): st.decimals(-(10**7), 10**7, places=2),
    pa.list_(pa.int32()): st.lists(st.integers(0, 9), max_size=2),
    pa.struct([("a", pa.int8())]): st.fixed_dictionaries({"a": st.integers(0, 9)}),
    pa.time32("s"): st.integers(0, 86_399),
    pa.null(): st.none(),
    **{pa.timestamp(unit, zone): MOMENTS for unit in SECONDS for zone in (None, "UTC", "Europe/Berlin")},
}
NANOSECONDS = {kind for kind in VALUES if pa.types.is_timestamp(kind) and kind.unit == "ns"}  # are cut off towards 0
OPTIONS: list[dict[str, Any]] = [
    {},
    {"use_deprecated_int96_timestamps": True},
    {"version": "1.0", "store_schema": False},
    {"use_dictionary": False, "compression": "none", "write_page_checksum": True},
    {"row_group_size": 1, "data_page_version": "2.0"},
]


@st.composite
def columns(draw: st.DrawFn) -> dict[str, pa.Array]:
    """Some of the declared columns, of any types, of the same number of rows."""
    rows = draw(st.integers(1, 4))
    made = {}
    for name in draw(st.lists(st.sampled_from(NAMES), unique=True, min_size=1)):
        kind = draw(st.sampled_from(list(VALUES)))
        values = st.one_of(VALUES[kind], st.none()) if draw(st.booleans()) else VALUES[kind]
        held = draw(st.lists(values, min_size=rows, max_size=rows))
        made[name] = pa.array(held, pa.int64()).cast(kind) if pa.types.is_timestamp(kind) else pa.array(held, kind)
    return made


def declared(folder: str, nulls: bool) -> DataSettings:
    may = {name: {"nulls": nulls} for name in NAMES if name not in {"label", "label_time"}}
    return DataSettings.model_validate(
        {"path": folder, "columns": {name: {"kind": name, **may.get(name, {})} for name in NAMES}}
    )


def as_number(value: Any) -> Any:
    return None if math.isnan(float(value)) else float(value)


def as_text(value: Any) -> Any:
    """Of a category, an entity or an id, as all writers of it agree on."""
    if isinstance(value, bytes):
        return value.decode()
    if isinstance(value, float):
        return None if math.isnan(value) else str(int(value))
    return str(value)


MEANS: dict[str, Callable[[Any], Any]] = {
    **dict.fromkeys(("numeric", "amount", "boolean", "label"), as_number),
    **dict.fromkeys(("categorical", "entity", "id"), as_text),
}


def meant(kind: str, array: pa.Array) -> list[Any]:
    """What the values of a column say, whatever their type: numbers, texts, microseconds since 1970."""
    found = array.type
    if kind in MEANS:
        return [None if value is None else MEANS[kind](value) for value in array.to_pylist()]
    if pa.types.is_date(found):
        after = 1 if kind == "label_time" else 0
        days = array.cast(pa.int32()).to_pylist()
        return [None if day is None else (day + after) * 86_400 * 10**6 for day in days]
    scale = 10**6 / SECONDS[found.unit] if pa.types.is_timestamp(found) else None
    whole_units = array.cast(pa.int64()).to_pylist() if scale else array.to_pylist()
    return [None if unit is None else int(unit * int(scale)) if scale >= 1 else unit // 1000 for unit in whole_units]


fuzzed = pytest.mark.faults("27", "parquet of any schema and values", "refused by name, or read as it is; no trace")


@fuzzed
@pytest.mark.quick
@settings(max_examples=150, deadline=None, derandomize=True)
@given(columns(), st.sampled_from(OPTIONS), st.booleans())
def test_any_schema_is_refused_by_name_or_read_as_what_it_holds(made, options, nulls):
    with tempfile.TemporaryDirectory() as folder:
        try:
            pq.write_table(pa.table(made), Path(folder) / "a.parquet", **options)
        except (pa.ArrowException, OSError):
            return  # no such file can be
        data = declared(folder, nulls)
        try:
            source = open_source(data)
            validate(source, data, unheard)
        except DataError as fault:
            assert str(fault)
        table = read_partition(source.root, source.partitions[0], data, NAMES)
        broken = {violation.column for violation in check_columns(table, data.columns, "a.parquet")}
        for name in set(NAMES) - broken:
            if name in made:
                got = table[name].combine_chunks()
                for told, held in zip(meant(name, got), meant(name, made[name]), strict=True):
                    is_close = made[name].type in NANOSECONDS and None not in {told, held} and abs(told - held) <= 1
                    assert told == held or is_close, (name, made[name].type)


@fuzzed
@settings(max_examples=100, deadline=None, derandomize=True)
@given(columns(), st.sampled_from(OPTIONS), st.data())
def test_any_damage_is_refused_by_name_or_passed_over(made, options, data):
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "a.parquet"
        try:
            pq.write_table(pa.table(made), file, **options)
        except (pa.ArrowException, OSError):
            return
        content = bytearray(file.read_bytes())
        for _ in range(data.draw(st.integers(1, 4))):
            content[data.draw(st.integers(0, len(content) - 1))] ^= 1 << data.draw(st.integers(0, 7))
        file.write_bytes(content[: data.draw(st.integers(0, len(content)))] if data.draw(st.booleans()) else content)
        wanted = declared(folder, nulls=True)
        try:
            validate(open_source(wanted), wanted, unheard)
        except DataError as fault:
            assert str(fault)


@fuzzed
@pytest.mark.quick
def test_a_footer_whose_names_are_no_text_is_refused_by_name(tmp_path: Path):
    pq.write_table(pa.table({"name_of_a_column": [1]}), tmp_path / "a.parquet")
    content = (tmp_path / "a.parquet").read_bytes()
    (tmp_path / "a.parquet").write_bytes(content.replace(b"name_of_a_column", b"\xff" * 16))
    with pytest.raises(DataError, match=r"a\.parquet is no readable parquet file"):
        open_source(declared(str(tmp_path), nulls=True))
