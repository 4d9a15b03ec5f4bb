"""Files that are damaged, or replaced, under those who read them."""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq
import pytest

from fraud_ray.data.contract import ContractViolation, validate
from fraud_ray.data.source import UnreadableError, open_source
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
