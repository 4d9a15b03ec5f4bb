"""CSV partitions: read as the parquet of the same rows is, or refused with what to do."""

from __future__ import annotations

import gzip
import io
import os
import re
from datetime import date, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv as arrow_csv
import pyarrow.parquet as pq
import pytest

from fraud_ray.data import rows
from fraud_ray.data.contract import check
from fraud_ray.data.folds import plan_folds
from fraud_ray.data.kinds import Reading, from_text
from fraud_ray.data.prepare import prepare
from fraud_ray.data.source import open_source, read_partition
from fraud_ray.errors import DataError
from fraud_ray.scoring.partitions import Model, open_model, score_partitions
from fraud_ray.settings import CsvSettings, DataSettings, RegistrySettings
from fraud_ray.storage import Storage
from fraud_ray.windows.definition import Definition
from fraud_ray.windows.state import add_windows
from tests.cards import card_settings, card_table, count_here, days, opened, write_partition
from tests.handmade import write_bundle

COLUMNS = {
    "id": {"kind": "id", "nulls": True},
    "at": {"kind": "timestamp"},
    "amount": {"kind": "amount", "nulls": True},
    "shop": {"kind": "categorical", "nulls": True},
    "online": {"kind": "boolean"},
    "is_fraud": {"kind": "label"},
}


def quiet(done: float, total: float, text: str) -> None:
    return None


def as_csv(table: pa.Table, name: str = "a.csv") -> bytes:
    written = io.BytesIO()
    arrow_csv.write_csv(table, written)
    return gzip.compress(written.getvalue()) if name.endswith(".gz") else written.getvalue()


def put(root: Path, name: str, content: bytes | str) -> Path:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def declared(root: Path, **csv: str) -> DataSettings:
    return DataSettings.model_validate({"path": str(root), "columns": COLUMNS, "csv": csv})


def read(root: Path, **csv: str) -> dict[str, list[Any]]:
    data = declared(root, **csv)
    source = open_source(data)
    [partition] = source.partitions
    table = read_partition(source.root, partition, data, list(COLUMNS))
    assert check(table, data, partition.shown)[0] == []
    assert partition.rows == table.num_rows
    return table.to_pydict()


@pytest.fixture(scope="module")
def twins(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same rows of ten days as parquet by hive key, as CSV by hive key, and as CSV.gz by name; ids are text."""
    root = tmp_path_factory.mktemp("twins")
    for day in days(10):
        table = card_table(day)
        for name in ("transaction_id", "card"):
            at = table.column_names.index(name)
            table = table.set_column(at, name, table[name].cast(pa.string()))
        write_partition(root, f"parquet/date={day}/part-0.parquet", table)
        put(root, f"csv/date={day}/part-0.csv", as_csv(table))
        put(root, f"gz/cards-{day}.csv.gz", as_csv(table, ".gz"))
    return {name: root / name for name in ("parquet", "csv", "gz")}


# As parquet.


def test_the_same_rows_have_the_same_census_and_newest_day(twins):
    found = [opened(root) for root in twins.values()]
    assert [(source.rows, source.as_of) for _, source, _ in found] == [(600, date(2024, 1, 10))] * 3
    assert found[0][2] == found[1][2] == found[2][2]
    assert len({source.fingerprint for _, source, _ in found}) == 3


def test_the_same_rows_are_prepared_to_the_bit(twins, tmp_path, ray_session):
    sections: dict[str, Any] = {
        "folds": {"fit_days": 4, "delay_days": 1, "holdout_days": 2, "selection_shift_days": [2]},
        "prepare": {"min_category_rows": 2},
    }
    made = []
    for name, root in twins.items():
        settings, source, census = opened(root, **sections)
        storage = Storage.at(str(tmp_path / name))
        prepared = prepare(source, plan_folds(census, settings.folds), settings, storage, quiet)
        fold = prepared.final
        made.append([rows.load(storage, side, with_roles=True) for side in (fold.fit, fold.holdout)])
        made[-1].append(fold.encoder.to_json())
    for other in made[1:]:
        for one, same in zip(made[0][:2], other[:2], strict=True):
            np.testing.assert_array_equal(one.features, same.features)
            np.testing.assert_array_equal(one.codes, same.codes)
            np.testing.assert_array_equal(one.label, same.label)
            assert one.roles.keys() == same.roles.keys()
            for role in one.roles:
                np.testing.assert_array_equal(one.roles[role], same.roles[role])
        assert made[0][2] == other[2]


def test_the_same_rows_have_the_same_windows(twins, tmp_path, ray_session):
    windows = {
        "label_delay_days": 1,
        "columns": {
            "card_amount_{days}d": {"entity": "card", "compute": "mean", "of": "amount", "days": [1, 3]},
            "night": {"compute": "night"},
        },
    }
    made = {}
    for name, root in twins.items():
        settings = card_settings(root, windows=windows, folds={"delay_days": 1})
        definition = Definition.of(settings)
        assert definition is not None
        storage = Storage.at(str(tmp_path / name))
        folder = Path(add_windows(open_source(settings.data), definition, storage, quiet).root)
        files = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.parquet"))
        made[name] = pa.concat_tables([pq.read_table(folder / file, partitioning=None) for file in files])
        again = settings.data.model_copy(update={"path": str(folder)})
        assert count_here(open_source(again), settings).rows == 600
    assert made["csv"].select(["card_amount_3d", "night"]).equals(made["parquet"].select(["card_amount_3d", "night"]))
    assert made["csv"].equals(made["gz"])


def test_the_same_rows_get_the_same_scores_as_parquet(tmp_path, ray_session):
    model = Model("cards/3", open_model(str(write_bundle(tmp_path / "bundle")), RegistrySettings()).graph)
    table = pa.table(
        {
            "id": ["1", "007", None],
            "amount": [1.5, None, 250.25],
            "night": [True, False, True],
            "merchant": ["shop", "casino", None],
        }
    )
    write_partition(tmp_path / "parquet", "month=1/a.parquet", table)
    put(tmp_path / "csv", "month=1/a.csv", as_csv(table))
    put(tmp_path / "csv", "month=2/a.csv.gz", as_csv(table.slice(0, 0), ".gz"))
    lines = 'id;amount;night;merchant\n1;1,5;true;shop\n007;;False;"casino"\n;250,25;1;\n'
    put(tmp_path / "local", "month=1/a.csv", lines)
    scored = {}
    for name, csv in {"parquet": {}, "csv": {}, "local": {"delimiter": ";", "decimal_point": ","}}.items():
        where = str(tmp_path / name), str(tmp_path / f"{name}-out")
        settings = CsvSettings.model_validate(csv)
        assert score_partitions(model, *where, csv=settings).rows == 3
        kept = score_partitions(model, *where, csv=settings)
        assert (kept.kept, kept.foreign) == (kept.partitions, 0)
        scored[name] = pq.ParquetFile(tmp_path / f"{name}-out/month=1/a.parquet").read()
    assert scored["csv"].equals(scored["parquet"])
    assert scored["local"]["probability"].equals(scored["parquet"]["probability"])
    assert pq.ParquetFile(tmp_path / "csv-out/month=2/a.parquet").read().num_rows == 0


# What is written as CSV.

ROWS = {
    "id": ["007", None],
    "at": [datetime(2024, 3, 7, 10, 15), datetime(2024, 3, 8)],
    "amount": [1.5, None],
    "shop": ['a "b", c', None],
    "online": [1, 0],
    "is_fraud": [0, 1],
}
PLAIN = 'id,at,amount,shop,online,is_fraud\n007,2024-03-07 10:15,1.5,"a ""b"", c",true,0\n,2024-03-08,,,false,1\n'


@pytest.mark.parametrize(
    ("name", "content", "csv"),
    [
        ("a.csv", PLAIN, {}),
        ("A.CSV", PLAIN.rstrip("\n"), {}),
        ("a.csv", "\ufeff" + PLAIN.replace("\n", "\r\n"), {}),
        (
            "a.csv",
            PLAIN.replace("id,", "x,id,").replace("\n007", '\n"two\nlines",007').replace("\n,20", "\n\n,,20"),
            {},
        ),
        ("a.csv.gz", gzip.compress(PLAIN[:60].encode()) + gzip.compress(PLAIN[60:].encode()), {}),
        ("a.tsv", PLAIN.replace('"a ""b"", c"', "a 'b'# c").replace(",", "\t").replace("'b'#", '"b",'), {}),
        (
            "a.csv",
            PLAIN.replace(", c", "# c").replace(",", ";").replace("1.5", '"1,5"').replace("# c", ", c"),
            {"delimiter": ";", "decimal_point": ","},
        ),
    ],
)
def test_what_spreadsheets_and_databases_write_is_read(tmp_path, name, content, csv):
    put(tmp_path, name, content)
    assert read(tmp_path, **csv) == ROWS


@pytest.mark.parametrize(
    ("reading", "texts", "values"),
    [
        (Reading("numeric"), ["1.5", " 2", "-1e3", None, "+4"], [1.5, 2.0, -1000.0, None, 4.0]),
        (Reading("numeric"), ["1", "one"], ["1", "one"]),
        (Reading("label"), ["0", "1"], [0, 1]),
        (Reading("boolean"), ["True", "false", None], [True, False, None]),
        (Reading("boolean"), ["1.0", "0.0"], [1.0, 0.0]),
        (Reading("boolean", one="1"), ["1", "2"], ["1", "2"]),
        (Reading("id"), ["007", "1"], ["007", "1"]),
        (Reading("timestamp"), ["2024-03-07", "2024-03-07T10:15"], [datetime(2024, 3, 7), ROWS["at"][0]]),
        (Reading("timestamp"), ["2024-03-07 10:15:00.0000009"], [ROWS["at"][0]]),
        (Reading("timestamp", unit="s"), ["1709806500", None], [1_709_806_500, None]),
        (Reading("timestamp"), ["7.3.2024"], ["7.3.2024"]),
    ],
)
def test_text_becomes_values_of_its_kind_where_all_of_it_reads_so(reading, texts, values):
    assert from_text(pa.chunked_array([pa.array(texts, pa.string())]), reading).to_pylist() == values


def test_times_with_a_zone_are_instants():
    times = pa.chunked_array([["2024-03-07T11:15:00+01:00", "2024-03-07T10:15:00Z"]])
    assert len(set(from_text(times, Reading("timestamp")).to_pylist())) == 1
    utc = from_text(pa.chunked_array([["2024-03-07 10:15:00 UTC"]]), Reading("timestamp"))
    assert utc.cast(pa.timestamp("us")).to_pylist() == [ROWS["at"][0]]


def test_a_number_of_rows_larger_than_a_block_is_counted_and_the_newest_day_found(tmp_path):
    lines = [f"{i},2024-03-{1 + i % 28:02d},1.5,a,true,0" for i in range(60_000)]
    path = put(tmp_path, "a.csv", "\n".join([PLAIN.splitlines()[0], *lines]))
    source = open_source(declared(tmp_path))
    assert (source.rows, source.as_of) == (60_000, date(2024, 3, 28))
    stat = path.stat()
    put(tmp_path, "a.csv", path.read_bytes().replace(b"59999,", b"59998,"))
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert open_source(declared(tmp_path)).fingerprint != source.fingerprint


# What is refused.


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("", "it is empty; its first line should hold the columns' names"),
        (PLAIN.replace(", c", "").replace(",", ";"), r"holds one column by ','; set data\.csv\.delimiter: ';'"),
        (
            PLAIN.split("\n", 1)[1],
            "its first line '007,2024-03-07 10:15.* holds values; write the columns' names above",
        ),
        (PLAIN.replace("id,", "at,", 1), "column 'at' is there more than once"),
        (
            PLAIN + "1,2024-03-08,1,5,a,true,0\n2\n",
            r"2 lines without as many .* names, 6: line 4 has 7: '1,2024-.*quote",
        ),
        (PLAIN + '"' + "x" * 5_000_000, "a row is longer than 1,048,576 bytes, as after a quote that nothing closes"),
        (PLAIN.encode("utf-16"), "it is no text in UTF-8"),
    ],
)
def test_every_file_that_is_no_csv_is_named_with_what_to_do(tmp_path, content, says):
    put(tmp_path, "a.csv", PLAIN)
    for name in ("b.csv", "c.csv"):
        put(tmp_path, name, content)
    with pytest.raises(DataError, match=f"b.csv is no readable CSV file: .*{says}") as fault:
        open_source(declared(tmp_path))
    assert "c.csv" in str(fault.value)
    assert "/a.csv" not in str(fault.value)


def test_a_broken_archive_is_named(tmp_path):
    put(tmp_path, "a.csv.gz", gzip.compress(PLAIN.encode())[:30])
    put(tmp_path, "b.csv.gz", PLAIN)
    with pytest.raises(DataError, match=r"Truncated compressed stream\n.*incorrect header check"):
        open_source(declared(tmp_path))


@pytest.mark.parametrize(
    ("old", "new", "csv", "column", "first", "says"),
    [
        ("1.5", '"1,5"', {}, "amount", 0, r"is no number .*'1,5'\). .*data\.csv\.decimal_point: ','"),
        ("1.5", "1.5", {"decimal_point": ","}, "amount", 0, "is no number .*'1.5'"),
        ("-08", "/08", {}, "at", 1, r"is no time .*'2024-03/08'\). Write times as 2024-03-07 10:15:00"),
        ("true", "Y", {}, "online", 0, "Say which text means 1 with data.columns.online.true, such as 'Y'"),
    ],
)
def test_text_that_is_no_value_is_a_violation_with_its_row(tmp_path, old, new, csv, column, first, says):
    put(tmp_path, "a.csv", PLAIN.replace(old, new))
    data = declared(tmp_path, **csv)
    source = open_source(data)
    table = read_partition(source.root, source.partitions[0], data, list(COLUMNS))
    [violation] = check(table, data, "a.csv")[0]
    assert (violation.column, violation.first_row) == (column, first)
    assert re.search(says, str(violation))


def test_a_folder_holds_one_format_and_what_is_left_out_is_said(tmp_path):
    for name in ("a.csv", "b.tsv"):
        put(tmp_path, name, PLAIN.replace(",", "\t") if name == "b.tsv" else PLAIN)
    put(tmp_path, "notes.txt", "not data")
    source = open_source(declared(tmp_path))
    assert [partition.shown for partition in source.partitions] == ["a.csv", "b.tsv"]
    assert source.notes == ("left out: 1 file that is no CSV (notes.txt)",)
    write_partition(tmp_path, "c.parquet", card_table())
    source = open_source(declared(tmp_path))
    assert [partition.shown for partition in source.partitions] == ["c.parquet"]
    assert source.notes == ("left out: 3 files that are no parquet (a.csv, b.tsv, notes.txt)",)


def test_the_same_csv_twice_is_refused(tmp_path):
    put(tmp_path, "a.csv", PLAIN)
    put(tmp_path, "a.csv.gz", gzip.compress(PLAIN.encode()))
    with pytest.raises(DataError, match=r"holds a\.csv and a\.csv\.gz, most likely the same rows; remove or rename"):
        open_source(declared(tmp_path))
