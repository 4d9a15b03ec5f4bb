"""Ids that occur more than once: found wherever they lie, refused with both places, or left out in every pass."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from typer.testing import CliRunner

from fraud_ray.cli import app
from fraud_ray.data import repeats
from fraud_ray.data.contract import ContractViolation, validate
from fraud_ray.data.repeats import without_repeats
from fraud_ray.data.source import Source, open_source, read_partition
from fraud_ray.errors import SettingsError
from fraud_ray.settings import DataSettings, Settings, parse_settings
from fraud_ray.storage import Storage
from fraud_ray.windows.state import with_windows

START = datetime(2024, 1, 1)
Row = tuple[Any, float]  # id, and hours since START; the amount is the row's place in its file


def quiet(done: float, total: float, text: str = "") -> None:
    pass


def settings(folder: Path, repeats: str = "refuse", **sections: Any) -> Settings:
    columns = {"amount": {"kind": "amount"}, "is_fraud": {"kind": "label"}, "at": {"kind": "timestamp"}}
    columns |= {"key": {"kind": "id", "nulls": True}, "card": {"kind": "entity"}}
    return parse_settings({"data": {"path": str(folder), "columns": columns, "repeats": repeats}, **sections}, "test")


def written(folder: Path, files: dict[str, Sequence[Row]]) -> Path:
    for name, rows in files.items():
        table = pa.table(
            {
                "key": pa.array([key for key, _ in rows]),
                "at": [START + timedelta(hours=hours) for _, hours in rows],
                "amount": [float(place) for place in range(len(rows))],
                "card": [place % 2 for place in range(len(rows))],
                "is_fraud": pa.array([place % 2 for place in range(len(rows))], pa.int8()),
            }
        )
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(table, folder / name)
    return folder


def kept(source: Source, data: DataSettings) -> list[tuple[str, Any, float]]:
    """File, id and amount of every row that counts."""
    return [
        (partition.shown, key, amount)
        for partition in source.partitions
        for key, amount in zip(
            *read_partition(source.root, partition, data, ["key", "amount"]).to_pydict().values(), strict=True
        )
    ]


@pytest.mark.parametrize("key", [int, str], ids=["numbers", "text"])
def test_a_repeat_is_refused_with_both_files_rows_and_the_id(tmp_path: Path, key: Any) -> None:
    a, b = [(key(i), i) for i in range(10)], [(key(i), i) for i in (20, 3, 21, 5)]
    data = settings(written(tmp_path, {"a.parquet": a, "b.parquet": b})).data
    with pytest.raises(ContractViolation) as refused:
        validate(open_source(data), data, quiet)
    [violation] = refused.value.violations
    assert (violation.path, violation.column, violation.count, violation.first_row) == ("a.parquet", "key", 2, 3)
    told = "has 2 values that another row has too (first at row 3: '3', as b.parquet has at row 1); an id occurs once"
    assert told in str(refused.value)


def test_ids_that_occur_once_or_are_missing_are_no_repeats(tmp_path: Path) -> None:
    rows = [("x", 0.0), ("y", 1.0), (None, 2.0), (None, 3.0), ("", 4.0), ("", 5.0)]
    data = settings(written(tmp_path, {"a.parquet": rows, "b.parquet": [("z", 6.0), (None, 0.0)]})).data
    source = open_source(data)
    assert without_repeats(source, data, quiet) is source


@pytest.fixture(params=["at once", "in parts"])
def parts(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """As it is for few rows, and for many: by ranges of hashes, of which each task gets a few."""
    if request.param == "in parts":
        monkeypatch.setattr(repeats, "AT_ONCE", 4)
        monkeypatch.setattr(repeats, "SENT", 1)


def test_the_last_by_time_then_path_then_row_stays(tmp_path: Path, ray_session: None, parts: None) -> None:
    files = {
        "date=1/a.parquet": [("late", 9.0), ("same", 5.0), ("thrice", 1.0), ("one", 0.0)],
        "date=1/b.parquet": [("same", 5.0), ("twice here", 2.0), ("twice here", 2.0)],
        "date=2/a.parquet": [("late", 8.0), ("thrice", 3.0), ("thrice", 2.0), ("two", 0.0)],
    }
    data = settings(written(tmp_path, files), "last").data
    source = without_repeats(open_source(data), data, quiet)
    assert kept(source, data) == [
        ("date=1/a.parquet", "late", 0.0),
        ("date=1/a.parquet", "one", 3.0),
        ("date=1/b.parquet", "same", 0.0),
        ("date=1/b.parquet", "twice here", 2.0),
        ("date=2/a.parquet", "thrice", 1.0),
        ("date=2/a.parquet", "two", 3.0),
    ]
    assert [partition.rows for partition in source.partitions] == [2, 2, 2]
    assert validate(source, data, quiet).rows == source.rows == 6
    assert source.notes == ("left out: 5 rows whose id a later one has",)


def test_ids_of_the_same_hash_are_no_repeats(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def here(function: Callable[[Any], Any], items: Sequence[Any], *_: Any) -> Iterator[tuple[int, Any]]:
        return enumerate(map(function, items))

    monkeypatch.setattr(repeats, "map_tasks", here)
    monkeypatch.setattr(repeats, "_hashed", lambda ids: ids.to_numpy().astype("uint64") % 2)
    data = settings(written(tmp_path, {"a.parquet": [(i, i) for i in range(6)], "b.parquet": [(3, 9)]}), "last").data
    source = without_repeats(open_source(data), data, quiet)
    assert [key for _, key, _ in kept(source, data)] == [0, 1, 2, 4, 5, 3]


def test_windows_see_a_repeated_transaction_once(tmp_path: Path) -> None:
    once = {f"{name}.parquet": [(f"{name}{i}", i + 24.0 * day) for i in range(8)] for day, name in enumerate("abc")}
    windows = {"columns": {"n": {"compute": "count", "entity": "card", "days": [7]}}, "label_delay_days": 7}
    found = []
    for folder, files in {"once": once, "again": {**once, "b again.parquet": once["b.parquet"]}}.items():
        own = settings(written(tmp_path / folder, files), "last", windows=windows)
        source = without_repeats(open_source(own.data), own.data, quiet)
        made = with_windows(source, own, Storage.at(str(tmp_path / "store")), quiet).source
        tables = [read_partition(made.root, partition, own.data, ["key", "n"]) for partition in made.partitions]
        found.append(pa.concat_tables(tables).sort_by("key").to_pydict())
    assert found[0] == found[1]
    assert len(found[0]["key"]) == 24


def test_validate_refuses_repeats_or_says_what_it_left_out(tmp_path: Path) -> None:
    folder = written(tmp_path / "data", {"a.parquet": [(i, i) for i in range(8)], "b.parquet": [(2, 9), (8, 10)]})
    config = tmp_path / "bank.yaml"
    config.write_text(yaml.safe_dump({"data": settings(folder).data.model_dump(mode="json")}))
    refused = CliRunner().invoke(app, ["validate", "-c", str(config)])
    assert refused.exit_code == 4
    told = "column 'key' has 1 value that another row has too (first at row 2: '2', as b.parquet has at row 0); an id"
    assert f"a.parquet: {told} occurs once" in refused.stderr
    done = CliRunner().invoke(app, ["validate", "-c", str(config), "--set", "data.repeats=last", "--json"])
    told = json.loads(done.stdout)
    assert (told["rows"], told["notes"]) == (9, ["left out: 1 row whose id a later one has"])


def test_repeats_are_told_apart_by_a_declared_id_alone(tmp_path: Path) -> None:
    columns = {"amount": {"kind": "amount"}, "is_fraud": {"kind": "label"}, "at": {"kind": "timestamp"}}
    with pytest.raises(SettingsError, match="repeats is 'last', which needs a column of kind 'id'"):
        parse_settings({"data": {"path": "data", "columns": columns, "repeats": "last"}}, "test")
