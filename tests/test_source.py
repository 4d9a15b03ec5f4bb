"""Opening a source and reading its partitions."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from datetime import date, datetime
from decimal import Decimal
from pathlib import Path

import boto3
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fraud_ray.data.source import open_source, read_partition
from fraud_ray.errors import DataError
from fraud_ray.settings import DataSettings
from tests.cards import FIRST_DAY, card_settings, card_table, days, write_days, write_partition


def source_of(root: Path) -> list[str]:
    return [partition.shown for partition in open_source(card_settings(root).data).partitions]


def test_partitions_come_by_name_and_hidden_ones_are_left_out(tmp_path):
    for name in ("b.parquet", "date=2024-01-02/a.parquet", "date=2024-01-01/z.parquet"):
        write_partition(tmp_path, name, card_table())
    for name in ("_temporary/a.parquet", ".hidden.parquet", "_a.parquet", "date=2024-01-02/.a.parquet"):
        write_partition(tmp_path, name, card_table())
    (tmp_path / "_SUCCESS").touch()
    (tmp_path / "notes.txt").write_text("not data")
    assert source_of(tmp_path) == ["b.parquet", "date=2024-01-01/z.parquet", "date=2024-01-02/a.parquet"]


def test_parquet_is_known_by_its_content_and_what_is_left_out_is_said(tmp_path):
    names = [
        "_ingested=2024-01-01/a.parquet",
        "date=2024-01-01/000000_0",
        "date=2024-01-02/a.PARQUET",
        "date=2024-01-03/a.parq",
    ]
    for name in (*names, "_temporary/a.parquet", ".staging=1/a.parquet", "a.parquet._COPYING_"):
        write_partition(tmp_path, name, card_table())
    (tmp_path / "notes.txt").write_text("not data")
    (tmp_path / "empty").touch()
    source = open_source(card_settings(tmp_path).data)
    assert [partition.shown for partition in source.partitions] == names
    assert source.notes == (
        "left out: 3 files whose names begin with _ or . "
        "(.staging=1/a.parquet, _temporary/a.parquet, a.parquet._COPYING_)",
        "left out: 2 files that are no parquet (empty, notes.txt)",
        "1 file is parquet by its content, not by its name (date=2024-01-01/000000_0)",
    )


@pytest.mark.parametrize("name", ["000000_0", "a.parq", "a.parquet"])
def test_half_a_file_is_refused_and_not_left_out(tmp_path, name):
    whole = write_partition(tmp_path, "b.parquet", card_table()).read_bytes()
    (tmp_path / name).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=f"/{name} is no readable parquet file"):
        open_source(card_settings(tmp_path).data)


def test_a_file_counts_once_however_many_names_it_has(tmp_path):
    root = tmp_path / "cards"
    write_days(root, 2)
    day = "date=2024-01-02/part-0.parquet"
    (root / "latest").symlink_to("date=2024-01-02")
    (root / "again.parquet").symlink_to(day)
    (root / "hard.parquet").hardlink_to(root / day)
    (root / "date=2024-01-02/up").symlink_to("..")
    source = open_source(card_settings(root).data)
    assert [partition.shown for partition in source.partitions] == ["date=2024-01-01/part-0.parquet", day]
    assert source.notes == (
        "left out: 3 files that are there under other names "
        f"(again.parquet is {day}, hard.parquet is {day}, latest/part-0.parquet is {day})",
    )
    (tmp_path / "linked").symlink_to("cards")
    assert source_of(tmp_path / "linked") == ["date=2024-01-01/part-0.parquet", day]
    (root / "older").symlink_to("date=2023-12-31")
    with pytest.raises(DataError, match="older is a link to what is not there; mend it, or remove it"):
        open_source(card_settings(root).data)


@pytest.mark.parametrize("inside", ["", "date=2024-01-01", "date=2024-01-01/part-0.parquet"])
@pytest.mark.parametrize(
    ("entry", "says"),
    [
        ("_delta_log/00000000000000000000.json", "is a Delta table, as _delta_log in it says"),
        (".hoodie/hoodie.properties", "is a Hudi table"),
        ("metadata/v1.metadata.json", "is an Iceberg table"),
        ("_spark_metadata/0", "is the output of a Spark stream"),
    ],
)
def test_a_table_whose_files_are_not_its_rows_is_refused_also_by_a_part_of_it(tmp_path, inside, entry, says):
    table = tmp_path / "cards"
    write_days(table, 2)
    (table / entry).parent.mkdir()
    (table / entry).write_text("{}")
    with pytest.raises(DataError, match=f"^{table} {says}.*and name that folder$"):
        open_source(card_settings(table / inside).data)
    if not inside:
        with pytest.raises(DataError, match=f"^{table} {says}"):
            open_source(card_settings(tmp_path).data)


def test_a_folder_of_metadata_is_no_format_of_its_own(tmp_path):
    write_days(tmp_path, 2)
    (tmp_path / "metadata").mkdir()
    (tmp_path / "metadata/columns.json").write_text("{}")
    assert len(source_of(tmp_path)) == 2


@pytest.mark.parametrize("part", ["region=eu", "region=eu/online=true", "region=eu/online=true/a.parquet", "newest"])
def test_a_part_of_a_hive_table_keeps_the_columns_of_the_folders_above_it(tmp_path, part):
    path = write_partition(tmp_path, "cards/region=eu/online=true/a.parquet", pa.table({"is_fraud": [0, 1]}))
    (tmp_path / "cards/newest").symlink_to("region=eu/online=true")
    columns = {"region": {"kind": "categorical"}, "online": {"kind": "boolean"}, "is_fraud": {"kind": "label"}}
    data = DataSettings.model_validate({"path": str(tmp_path / "cards" / part), "columns": columns})
    source = open_source(data)
    [partition] = source.partitions
    table = read_partition(source.root, partition, data, list(columns))
    assert table.to_pydict() == {"region": ["eu"] * 2, "online": [True] * 2, "is_fraud": [0, 1]}
    elsewhere = path.parent.rename(path.parent.with_name("online=false"))
    assert open_source(data.model_copy(update={"path": str(elsewhere)})).fingerprint != source.fingerprint


def test_a_source_counts_rows_from_the_footers_alone(tmp_path):
    write_days(tmp_path, 3, rows=50)
    source = open_source(card_settings(tmp_path).data)
    assert source.rows == 150
    assert [p.date for p in source.partitions] == [date(2024, 1, 1), date(2024, 1, 2), date(2024, 1, 3)]


def test_the_fingerprint_stays_while_the_files_do_and_changes_with_any_of_them(tmp_path):
    write_days(tmp_path, 3)
    data = card_settings(tmp_path).data
    before = open_source(data).fingerprint
    assert open_source(data).fingerprint == before
    path = tmp_path / "date=2024-01-02/part-0.parquet"
    stat = path.stat()
    write_partition(tmp_path, "date=2024-01-02/part-0.parquet", card_table(date(2024, 1, 2), seed=1))
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    changed = open_source(data).fingerprint
    assert changed != before
    path.rename(path.with_name("part-1.parquet"))
    assert open_source(data).fingerprint not in {before, changed}


def test_thousands_of_partitions_are_listed(tmp_path):
    first = write_partition(tmp_path, "part-0000.parquet", card_table(rows=5))
    for i in range(1, 2_000):
        shutil.copy(first, tmp_path / f"part-{i:04d}.parquet")
    source = open_source(card_settings(tmp_path).data)
    assert len(source.partitions) == 2_000
    assert source.rows == 10_000


def test_as_of_is_the_newest_hive_date_else_the_newest_timestamp_by_the_footers(tmp_path):
    write_days(tmp_path / "hive", 4)
    assert open_source(card_settings(tmp_path / "hive").data).as_of == date(2024, 1, 4)
    write_partition(tmp_path / "flat", "a.parquet", card_table(date(2024, 2, 28)))
    write_partition(tmp_path / "flat", "b.parquet", card_table(date(2024, 2, 3)))
    assert open_source(card_settings(tmp_path / "flat").data).as_of == date(2024, 2, 28)


@pytest.mark.parametrize(
    ("prepare", "says"),
    [
        (lambda root: None, "does not exist; name the folder"),
        (lambda root: root.mkdir(), "holds no parquet and no CSV files"),
        (lambda root: write_partition(root, "a.parquet", card_table(rows=0)), "none of its 1 files holds"),
    ],
)
def test_absent_data_is_refused_and_the_message_names_the_path(tmp_path, prepare, says):
    root = tmp_path / "data"
    prepare(root)
    with pytest.raises(DataError, match=says) as fault:
        open_source(card_settings(root).data)
    assert str(root) in str(fault.value)
    assert fault.value.exit_code == 4


@pytest.mark.parametrize("content", [b"", b"no parquet at all", b"PAR1" + b"x" * 50 + b"PAR1"])
def test_every_broken_file_is_named(tmp_path, content):
    write_partition(tmp_path, "a.parquet", card_table())
    for name in ("b.parquet", "c.parquet"):
        (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError) as fault:
        open_source(card_settings(tmp_path).data)
    assert "b.parquet" in str(fault.value)
    assert "c.parquet" in str(fault.value)
    assert "a.parquet" not in str(fault.value)


def test_hive_keys_become_columns_of_the_declared_kind(tmp_path):
    write_partition(tmp_path, "region=north%20west/hour=7/day=2024-03-07/a.parquet", pa.table({"is_fraud": [0, 1]}))
    columns = {
        "region": {"kind": "categorical"},
        "hour": {"kind": "numeric"},
        "day": {"kind": "timestamp"},
        "is_fraud": {"kind": "label"},
    }
    data = card_settings(tmp_path, columns).data
    source = open_source(data)
    table = read_partition(source.root, source.partitions[0], data, list(columns))
    assert table.to_pydict() == {
        "region": ["north west"] * 2,
        "hour": [7.0] * 2,
        "day": [datetime(2024, 3, 7)] * 2,
        "is_fraud": [0, 1],
    }


@pytest.mark.parametrize(
    ("kind", "text", "value"),
    [
        ("label", "true", 1),
        ("label", "False", 0),
        ("label", "1", 1),
        ("label", "1.0", 1),
        ("boolean", "true", 1),
        ("boolean", "0", 0),
        ("boolean", "0.0", 0),
        ("numeric", "07", 7.0),
        ("numeric", "seven", "seven"),
        ("timestamp", "2024-03-07 10%3A30%3A00", datetime(2024, 3, 7, 10, 30)),
        ("timestamp", "2024-03-07T10%3A30%3A00Z", datetime(2024, 3, 7, 10, 30)),
        *(
            (kind, "__HIVE_DEFAULT_PARTITION__", None)
            for kind in ("label", "boolean", "numeric", "amount", "categorical", "entity", "id", "timestamp")
        ),
    ],
)
def test_a_hive_key_reads_as_its_kind_or_stays_the_text_that_the_contract_names(tmp_path, kind, text, value):
    write_partition(tmp_path, f"x={text}/a.parquet", pa.table({"y": [0, 1]}))
    other = "numeric" if kind == "label" else "label"
    data = DataSettings.model_validate(
        {"path": str(tmp_path), "columns": {"x": {"kind": kind}, "y": {"kind": other}, "z": {"kind": "numeric"}}}
    )
    source = open_source(data)
    assert read_partition(source.root, source.partitions[0], data, ["x"])["x"].to_pylist() == [value] * 2


STRINGS = pa.array(["a", "b", None])
CATEGORIES = STRINGS.dictionary_encode()
DAYS = pa.array([FIRST_DAY, date(2024, 1, 2), None])
INSTANT = datetime(2024, 1, 1, 12, 30)


@pytest.mark.parametrize(
    ("kind", "written", "read"),
    [
        ("categorical", STRINGS, CATEGORIES),
        ("categorical", CATEGORIES, CATEGORIES),
        ("categorical", STRINGS.cast(pa.large_string()), CATEGORIES),
        ("categorical", pa.array([1, 2]), pa.array(["1", "2"]).dictionary_encode()),
        ("categorical", pa.array([2, 1]).dictionary_encode(), pa.array(["2", "1"]).dictionary_encode()),
        ("categorical", pa.array([1.0, None]), pa.array(["1", None]).dictionary_encode()),
        ("categorical", pa.array([b"a", b"b", None]), CATEGORIES),
        ("timestamp", DAYS, DAYS.cast(pa.timestamp("us"))),
        ("timestamp", DAYS.cast(pa.date64()), DAYS.cast(pa.timestamp("us"))),
        ("timestamp", pa.array([INSTANT], pa.timestamp("s")), pa.array([INSTANT], pa.timestamp("us"))),
        ("timestamp", pa.array([INSTANT], pa.timestamp("ns")), pa.array([INSTANT], pa.timestamp("us"))),
        (
            "timestamp",
            pa.array([INSTANT], pa.timestamp("ms", "Europe/Rome")),
            pa.array([INSTANT], pa.timestamp("us")),
        ),
        ("entity", pa.array([1, 2], pa.int32()), pa.array([1, 2], pa.int64())),
        ("id", pa.array([1, 2], pa.uint16()), pa.array([1, 2], pa.int64())),
        ("numeric", pa.array([Decimal("1.50"), None]), pa.array([1.5, None])),
        ("numeric", pa.array([2, None]), pa.array([2.0, None])),
        ("numeric", pa.array([1.5], pa.float32()), pa.array([1.5])),
        ("boolean", pa.array([True, None]), pa.array([1, None], pa.int8())),
        ("boolean", pa.array([0.0, float("nan"), 1.0]), pa.array([0, None, 1], pa.int8())),
        ("label", pa.array([0, 1], pa.int64()), pa.array([0, 1], pa.int8())),
        ("numeric", pa.nulls(2), pa.array([None, None], pa.float64())),
        ("label", pa.array([True, False]), pa.array([1, 0], pa.int8())),
    ],
)
def test_harmless_differences_of_types_vanish_in_reading(tmp_path, kind, written, read):
    write_partition(tmp_path, "a.parquet", pa.table({"x": written, "y": [0] * len(written)}))
    other = "numeric" if kind == "label" else "label"
    data = DataSettings.model_validate(
        {"path": str(tmp_path), "columns": {"x": {"kind": kind}, "y": {"kind": other}, "z": {"kind": "numeric"}}}
    )
    source = open_source(data)
    column = read_partition(source.root, source.partitions[0], data, ["x"])["x"]
    assert column.combine_chunks().equals(read)


def test_a_file_that_breaks_after_its_footer_is_named_when_it_is_read(tmp_path):
    path = write_partition(tmp_path, "a.parquet", card_table())
    content = bytearray(path.read_bytes())
    content[4:400] = b"\xff" * 396
    path.write_bytes(content)
    data = card_settings(tmp_path).data
    source = open_source(data)
    with pytest.raises(DataError, match=r"a\.parquet: column 'transaction_id' cannot be read"):
        read_partition(source.root, source.partitions[0], data, list(data.columns))


@pytest.fixture
def bucket(monkeypatch) -> Iterator[str]:
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(port=0)
    server.start()
    host, port = server.get_host_and_port()
    for name, value in {
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_REGION": "us-east-1",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
    }.items():
        monkeypatch.setenv(name, value)
    boto3.client("s3").create_bucket(Bucket="cards")
    yield "cards"
    server.stop()


def test_a_bucket_is_a_source_like_a_folder(tmp_path, bucket):
    [first, second] = write_days(tmp_path, 2)
    for path in tmp_path.rglob("*.parquet"):
        boto3.client("s3").upload_file(str(path), bucket, f"monthly/{path.relative_to(tmp_path)}")
    data = DataSettings.model_validate({**card_settings(tmp_path).data.model_dump(), "path": f"s3://{bucket}/monthly/"})
    source = open_source(data)
    assert [p.shown for p in source.partitions] == ["date=2024-01-01/part-0.parquet", "date=2024-01-02/part-0.parquet"]
    read = [read_partition(source.root, p, data, ["amount"]) for p in source.partitions]
    assert [t["amount"].to_pylist() for t in read] == [t["amount"].to_pylist() for t in (first, second)]
    day = data.model_copy(update={"path": f"s3://{bucket}/monthly/date=2024-01-02"})
    assert [partition.date for partition in open_source(day).partitions] == [date(2024, 1, 2)]
    store = boto3.client("s3")
    store.copy(
        {"Bucket": bucket, "Key": "monthly/date=2024-01-02/part-0.parquet"}, bucket, "monthly/date=2024-01-03/000000_0"
    )
    store.put_object(Bucket=bucket, Key="monthly/notes.txt", Body=b"not data")
    assert [partition.shown for partition in open_source(data).partitions][2:] == ["date=2024-01-03/000000_0"]
    store.put_object(Bucket=bucket, Key="monthly/_delta_log/00000000000000000000.json", Body=b"{}")
    for given in (data, day):
        with pytest.raises(DataError, match=f"^s3://{bucket}/monthly is a Delta table"):
            open_source(given)
    missing = DataSettings.model_validate({**data.model_dump(), "path": f"s3://{bucket}/elsewhere"})
    with pytest.raises(DataError, match="does not exist"):
        open_source(missing)


def test_as_of_is_read_from_timestamps_whose_footers_have_no_statistics(tmp_path):
    for day in days(3):
        folder = tmp_path / f"day={day.day}"
        folder.mkdir()
        pq.write_table(card_table(day), folder / "a.parquet", use_deprecated_int96_timestamps=True)
    assert open_source(card_settings(tmp_path).data).as_of == days(3)[-1]
