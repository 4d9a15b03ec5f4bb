"""Files that are damaged, or replaced, under those who read them."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from fraud_ray.data.contract import ContractViolation, validate
from fraud_ray.data.source import UnreadableError, open_source
from fraud_ray.model.encoder import times
from fraud_ray.registry.scorer import Scorer
from fraud_ray.scoring.partitions import Model, open_model, score_partitions
from fraud_ray.settings import RegistrySettings
from tests.cards import card_settings, card_table, days
from tests.handmade import example, write_bundle


def unheard(done: float, total: float, text: str) -> None:
    """A listener to progress."""


def flip(file: Path, column: str) -> None:
    """Changes a value of a column of plain, uncompressed pages."""
    metadata = pq.read_metadata(file)
    chunk = metadata.row_group(0).column(metadata.schema.names.index(column))
    content = bytearray(file.read_bytes())
    content[chunk.data_page_offset + chunk.total_compressed_size - 2] ^= 1
    file.write_bytes(content)


PLAIN = {"use_dictionary": False, "compression": "none"}

flipped_page = pytest.mark.faults(
    "10", "a flipped page byte of a file with page checksums", "a violation with file and column; nothing is scored"
)


@flipped_page
@pytest.mark.quick
def test_a_flipped_page_is_a_violation_of_file_and_column(tmp_path):
    for day, name in zip(days(2), ("a.parquet", "b.parquet"), strict=True):
        pq.write_table(card_table(day), tmp_path / name, write_page_checksum=True, **PLAIN)
    flip(tmp_path / "b.parquet", "amount")
    data = card_settings(tmp_path).data
    with pytest.raises(ContractViolation) as found:
        validate(open_source(data), data, unheard)
    [violation] = found.value.violations
    assert (violation.path, violation.column, found.value.exit_code) == ("b.parquet", "amount", 4)
    assert str(violation).startswith("b.parquet: column 'amount' cannot be read: ")


@flipped_page
def test_a_flipped_page_is_not_scored(tmp_path):
    model = Model("cards/3", open_model(str(write_bundle(tmp_path / "bundle")), RegistrySettings()).graph)
    source, target = tmp_path / "in", tmp_path / "out"
    source.mkdir()
    example().to_parquet(source / "a.parquet", write_page_checksum=True, **PLAIN)
    flip(source / "a.parquet", "amount")
    with pytest.raises(UnreadableError, match=r"a\.parquet: column 'amount' cannot be read: .*; write the file again"):
        score_partitions(model, str(source), str(target))
    assert not list(target.rglob("*.parquet"))


WRAPPED = 2**64 // 10**6 + int(datetime(2024, 1, 1, 10, tzinfo=UTC).timestamp())  # in microseconds, a time in 2024
YEAR_200000 = 6_249_222_835_200

far_times = pytest.mark.faults("11", "a time so late that it wraps around into 2024; the year 200000", "a violation")


@far_times
@pytest.mark.parametrize(
    ("seconds", "unit", "options"),
    [
        pytest.param(WRAPPED, "s", {"use_deprecated_int96_timestamps": True}, marks=pytest.mark.quick),
        (WRAPPED, "s", {}),
        (YEAR_200000, "s", {"use_deprecated_int96_timestamps": True}),
        (YEAR_200000, "us", {}),
    ],
)
def test_a_time_beyond_the_calendar_is_a_violation(seconds, unit, options, tmp_path):
    table = card_table().sort_by("timestamp")
    scale = {"s": 1, "us": 10**6}[unit]
    of_day = pc.cast(pc.cast(table["timestamp"], pa.timestamp("s")), pa.int64()).to_pylist()
    late = pa.array([scale * second for second in [*of_day[:-1], seconds]], pa.timestamp(unit))
    pq.write_table(table.set_column(1, "timestamp", late), tmp_path / "a.parquet", **options)
    data = card_settings(tmp_path).data
    with pytest.raises(ContractViolation, match="'timestamp' has 1 value outside the years 1 to 9999"):
        validate(open_source(data), data, unheard)


@far_times
def test_a_model_refuses_a_time_that_would_wrap_around():
    late = np.array([WRAPPED], "datetime64[s]")
    with pytest.raises(pa.ArrowInvalid, match="out of bounds"):
        times(pa.chunked_array([pa.array(late)]))
    scorer = Scorer()
    scorer.columns = {"at": {"name": "at", "kind": "timestamp"}}
    with pytest.raises(ValueError, match="column 'at' holds what is no time"):
        scorer.predict(None, pd.DataFrame({"at": late}))
