"""Batch scoring: every input row has one output row, in its place, whatever happens on the way."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import boto3
import numpy as np
import onnx
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError
from typer.testing import CliRunner

from fraud_ray.cli import app
from fraud_ray.data import tasks
from fraud_ray.data.contract import ContractViolation
from fraud_ray.data.output import writing
from fraud_ray.errors import DataError, FraudRayError, SettingsError
from fraud_ray.model.reasons import Explainer
from fraud_ray.registry.tracking import connect
from fraud_ray.registry.versions import register
from fraud_ray.scoring import partitions as scoring
from fraud_ray.scoring.partitions import Model, open_model, score_partitions
from fraud_ray.settings import RegistrySettings, Settings
from tests.handmade import THRESHOLD, example, expected, write_bundle

NOWHERE = RegistrySettings()
MERCHANTS = ["shop", "casino", "elsewhere", None]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bundle(tmp_path_factory.mktemp("scoring") / "bundle")


@pytest.fixture(scope="module")
def model(bundle: Path) -> Model:
    return Model("cards/3", open_model(str(bundle), NOWHERE).graph)


def table(rows: int, first: int = 0) -> pa.Table:
    """Rows of the handmade model's columns, and an id that counts from `first`."""
    rng = np.random.default_rng(first)
    return pa.table(
        {
            "id": np.arange(first, first + rows),
            "amount": pa.array(rng.uniform(0, 300, rows).round(2), mask=rng.random(rows) < 0.1),
            "night": rng.random(rows) < 0.3,
            "merchant": pa.array(rng.choice(np.array(MERCHANTS, object), rows), pa.string()),
        }
    )


def write(root: Path, name: str, content: pa.Table, **options: object) -> Path:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(content, path, **options)
    return path


def write_months(root: Path, count: int = 3, rows: int = 500) -> list[str]:
    """A partition a month below a hive key; returns their names."""
    names = [f"month={month + 1}/part-0.parquet" for month in range(count)]
    for month, name in enumerate(names):
        write(root, name, table(rows, month * rows))
    return names


def files(root: Path) -> list[str]:
    return sorted(path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file())


def read(path: Path) -> pa.Table:
    return pq.ParquetFile(path).read()


def probabilities(rows: pa.Table) -> list[float]:
    """What the handmade model says of rows, by hand."""
    return [expected(r["amount"] or 0.0, float(r["night"]), r["merchant"] or "") for r in rows.to_pylist()]


# What comes out.


def test_each_row_keeps_its_place_and_columns_and_gains_three(tmp_path: Path, model: Model, ray_session: None) -> None:
    names = write_months(tmp_path / "in")
    scored = score_partitions(model, str(tmp_path / "in"), str(tmp_path / "out"))
    assert files(tmp_path / "out") == names
    alerts = 0
    for name in names:
        given, made = read(tmp_path / "in" / name), read(tmp_path / "out" / name)
        assert made.select(given.column_names).equals(given)
        assert made.schema.names == [*given.schema.names, "probability", "decision", "model_version"]
        assert [made.schema.field(n).type for n in made.schema.names[-3:]] == [pa.float32(), pa.bool_(), pa.string()]
        np.testing.assert_allclose(made["probability"], probabilities(given), atol=1e-6)
        assert made["decision"].to_pylist() == [p >= THRESHOLD for p in made["probability"].to_pylist()]
        assert set(made["model_version"].to_pylist()) == {"cards/3"}
        alerts += sum(made["decision"].to_pylist())
    assert (scored.rows, scored.alerts, scored.partitions, scored.kept, scored.foreign) == (1500, alerts, 3, 0, 0)
    assert 0 < scored.alert_rate == alerts / 1500


def test_few_rows_are_scored_without_ray_to_the_bit_as_on_it(
    tmp_path: Path, march: Path, simulated: Path, ray_session: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = open_model(str(march / "runs/march/bundle"), NOWHERE, with_reasons=True)
    scored = [score_partitions(model, str(simulated), str(tmp_path / "on Ray"))]
    monkeypatch.setattr(tasks, "is_connected", lambda: False)
    told: list[float] = []
    update = lambda done, total, text: told.append(done / total)  # noqa: E731
    scored.append(score_partitions(model, str(simulated), str(tmp_path / "here"), update=update))
    assert (scored[0].rows, scored[0].alerts) == (scored[1].rows, scored[1].alerts)
    assert told == sorted(told)
    assert told[-1] == 1
    names = files(tmp_path / "on Ray")
    assert names == files(tmp_path / "here")
    for name in names:
        assert (tmp_path / "on Ray" / name).read_bytes() == (tmp_path / "here" / name).read_bytes()
    assert score_partitions(model, str(simulated), str(tmp_path / "here")).kept == len(names)


def test_other_types_of_the_same_values_give_the_same_probabilities(
    tmp_path: Path, model: Model, ray_session: None
) -> None:
    whole = table(200).set_column(1, "amount", pa.array(range(200), pa.int16()))
    as_written = whole.set_column(2, "night", whole["night"].cast(pa.int8()))
    as_written = as_written.set_column(3, "merchant", whole["merchant"].dictionary_encode())
    as_written = as_written.set_column(1, "amount", whole["amount"].cast(pa.decimal128(9, 2)))
    write(tmp_path / "in", "plain.parquet", whole)
    write(tmp_path / "in", "other.parquet", as_written)
    score_partitions(model, str(tmp_path / "in"), str(tmp_path / "out"))
    plain, other = (read(tmp_path / "out" / f"{name}.parquet") for name in ("plain", "other"))
    assert plain["probability"].equals(other["probability"])
    assert other.schema.field("amount").type == pa.decimal128(9, 2)


def test_a_hive_key_is_a_column_that_the_model_may_read(tmp_path: Path, model: Model, ray_session: None) -> None:
    rows = table(50)
    for merchant in ("shop", "casino"):
        write(tmp_path / "in", f"merchant={merchant}/a.parquet", rows.drop_columns("merchant"))
    score_partitions(model, str(tmp_path / "in"), str(tmp_path / "out"))
    for merchant in ("shop", "casino"):
        made = read(tmp_path / "out" / f"merchant={merchant}/a.parquet")
        assert "merchant" not in made.column_names
        there = rows.set_column(3, "merchant", pa.array([merchant] * 50))
        np.testing.assert_allclose(made["probability"], probabilities(there), atol=1e-6)


@pytest.mark.parametrize("part", ["", "merchant=casino", "merchant=casino/a"])
def test_a_part_of_a_hive_table_is_scored_as_in_the_whole(
    tmp_path: Path, model: Model, ray_session: None, part: str
) -> None:
    rows = table(50)
    write(tmp_path / "in", "merchant=casino/a", rows.drop_columns("merchant"))
    (tmp_path / "in/merchant=casino/notes.txt").write_text("not data")
    scored = score_partitions(model, str(tmp_path / "in" / part), str(tmp_path / "out"))
    [name] = files(tmp_path / "out")
    there = rows.set_column(3, "merchant", pa.array(["casino"] * 50))
    np.testing.assert_allclose(read(tmp_path / "out" / name)["probability"], probabilities(there), atol=1e-6)
    assert len(scored.notes) == (1 if part.endswith("a") else 2)


def test_the_null_of_a_hive_key_is_a_missing_value_to_the_model(
    tmp_path: Path, model: Model, ray_session: None
) -> None:
    rows = table(50)
    folder = "__HIVE_DEFAULT_PARTITION__"
    write(tmp_path / "in", f"amount={folder}/merchant={folder}/a.parquet", rows.select(["id", "night"]))
    score_partitions(model, str(tmp_path / "in"), str(tmp_path / "out"))
    there = rows.set_column(1, "amount", pa.nulls(50)).set_column(3, "merchant", pa.nulls(50))
    [name] = files(tmp_path / "out")
    np.testing.assert_allclose(read(tmp_path / "out" / name)["probability"], probabilities(there), atol=1e-6)


def test_a_partition_larger_than_a_batch_is_scored_in_parts_and_written_as_it_was(
    tmp_path: Path, model: Model, ray_session: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = scoring.ROWS_PER_BATCH + 1_000
    write(tmp_path / "in", "large.parquet", table(rows), compression="zstd", use_dictionary=["merchant"])
    write(tmp_path / "in", "empty.parquet", table(0))
    scored = score_partitions(model, str(tmp_path / "in"), str(tmp_path / "out"))
    assert scored.rows == rows
    assert read(tmp_path / "out/empty.parquet").num_rows == 0
    made = pq.ParquetFile(tmp_path / "out/large.parquet").metadata
    groups = [made.row_group(number) for number in range(made.num_row_groups)]
    assert [group.num_rows for group in groups] == [scoring.ROWS_PER_BATCH, 1_000]
    columns = [groups[0].column(number) for number in range(made.num_columns)]
    assert {column.compression for column in columns} == {"ZSTD"}
    assert [c.path_in_schema for c in columns if c.has_dictionary_page] == ["merchant", "model_version"]
    assert read(tmp_path / "out/large.parquet")["id"].to_pylist() == list(range(rows))


HADOOP_LZ4, LZ4 = b"\x0a", b"\x0e"  # as a footer's bytes name the two codecs


@pytest.mark.parametrize(
    ("codec", "written"),
    [
        *(("snappy", "SNAPPY"), ("gzip", "GZIP"), ("zstd", "ZSTD"), ("brotli", "BROTLI")),
        *(("lz4", "LZ4"), ("none", "UNCOMPRESSED"), ("lz4 of hadoop", "ZSTD")),
    ],
)
def test_a_scored_partition_keeps_its_codec_where_it_can_be_written(tmp_path: Path, codec: str, written: str) -> None:
    rows = table(100)
    path = write(tmp_path, "in/a.parquet", rows, compression=codec.partition(" ")[0])
    if codec == "lz4 of hadoop":  # which Arrow reads and does not write
        content = path.read_bytes()
        for name in rows.column_names:  # before the codec of its chunk
            content = content.replace(name.encode() + b"\x15" + LZ4, name.encode() + b"\x15" + HADOOP_LZ4)
        path.write_bytes(content)
    file = pq.ParquetFile(path)
    with writing(str(tmp_path / "out"), "a.parquet", file, []) as writer:
        writer.write_table(file.read())
    made = pq.ParquetFile(tmp_path / "out/a.parquet")
    group = made.metadata.row_group(0)
    assert {group.column(number).compression for number in range(group.num_columns)} == {written}
    assert made.read().equals(rows)


def test_a_bucket_is_scored_into_a_bucket(tmp_path: Path, model: Model, ray_session: None, bucket: str) -> None:
    names = write_months(tmp_path)
    s3 = boto3.client("s3")
    for name in names:
        s3.upload_file(str(tmp_path / name), "cards", f"in/{name}")
    assert score_partitions(model, bucket.format("in"), bucket.format("out")).rows == 1500
    assert score_partitions(model, bucket.format("in"), bucket.format("out")).kept == 3
    listed = [entry["Key"] for entry in s3.list_objects_v2(Bucket="cards", Prefix="out/")["Contents"]]
    assert [key for key in listed if not key.endswith("/")] == [f"out/{name}" for name in names]
    s3.download_file("cards", f"out/{names[1]}", str(tmp_path / "back.parquet"))
    made = read(tmp_path / "back.parquet")
    np.testing.assert_allclose(made["probability"], probabilities(table(500, 500)), atol=1e-6)


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A URI in which {} stands for the folder."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(port=0)
    server.start()
    host, port = server.get_host_and_port()
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
    boto3.client("s3").create_bucket(Bucket="cards")
    yield f"s3://test:test@cards/{{}}?scheme=http&endpoint_override={host}%3A{port}&region=us-east-1"
    server.stop()


# Once more.


def test_what_is_finished_is_kept_and_what_is_not_is_scored(tmp_path: Path, model: Model, ray_session: None) -> None:
    names = write_months(tmp_path / "in", count=6)
    out = tmp_path / "out"
    first = score_partitions(model, str(tmp_path / "in"), str(out))

    changed, damaged, removed = (out / name for name in names[:3])
    write(tmp_path / "in", names[0], table(300, first=9_000))
    damaged.write_bytes(damaged.read_bytes()[:-100])
    removed.unlink()
    (out / f"month=4/.part-0.parquet.{'0' * 32}.partial").write_bytes(b"begun")
    write(out, "month=0/part-0.parquet", table(1))
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*.parquet")}

    again = score_partitions(model, str(tmp_path / "in"), str(out))
    assert (again.kept, again.rows, again.foreign) == (3, first.rows - 200, 1)
    assert files(out) == ["month=0/part-0.parquet", *names]
    rewritten = [path for path in out.rglob("*.parquet") if before.get(path) != path.stat().st_mtime_ns]
    assert sorted(rewritten) == [changed, damaged, removed]
    ids = [read(out / name)["id"].to_pylist() for name in names]
    assert ids == [read(tmp_path / "in" / name)["id"].to_pylist() for name in names]
    decisions = [read(out / name)["decision"].to_pylist() for name in names]
    assert again.alerts == sum(map(sum, decisions))


@pytest.mark.parametrize("differing", ["version", "graph"])
def test_another_model_scores_everything_again(tmp_path: Path, model: Model, ray_session: None, differing: str) -> None:
    names = write_months(tmp_path / "in", count=2)
    score_partitions(model, str(tmp_path / "in"), str(tmp_path / "out"))
    steeper = (write_bundle(tmp_path / "bundle", slope=0.02) / "model.onnx").read_bytes()
    other = Model("cards/4", model.graph) if differing == "version" else Model(model.version, steeper)
    assert score_partitions(other, str(tmp_path / "in"), str(tmp_path / "out")).kept == 0
    for name in names:
        made = read(tmp_path / "out" / name)
        assert set(made["model_version"].to_pylist()) == {other.version}
        slope = 0.02 if differing == "graph" else 0.01
        row = made.filter(pa.compute.is_valid(made["amount"])).to_pylist()[0]
        by_hand = expected(row["amount"], float(row["night"]), row["merchant"] or "", slope)
        assert row["probability"] == pytest.approx(by_hand, abs=1e-6)


def test_a_killed_scoring_goes_on_to_exactly_one_output_row_a_row(
    tmp_path: Path, bundle: Path, ray_session: None
) -> None:
    names = write_months(tmp_path / "in", count=80, rows=20_000)
    out = tmp_path / "out"
    command = ["score", "--model", str(bundle), "--input", str(tmp_path / "in"), "--output", str(out)]
    killed = subprocess.Popen(
        [sys.executable, "-c", f"from fraud_ray.cli import main; main({command})"],
        stderr=subprocess.DEVNULL,
        env={**os.environ, "RAY_ADDRESS": "local"},
    )
    deadline = time.monotonic() + 120
    while not list(out.rglob("*.parquet")) and time.monotonic() < deadline:
        time.sleep(0.005)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    assert 0 < len(list(out.rglob("*.parquet"))) < len(names), "it was to be killed in the middle"

    done = CliRunner().invoke(app, [*command, "--json"])
    assert done.exit_code == 0
    said = json.loads(done.stdout)
    assert (said["rows"], said["partitions"]) == (1_600_000, 80)
    assert said["kept"] > 0
    for month, name in enumerate(names):
        made = read(out / name)
        assert made["id"].to_numpy().tolist() == list(range(month * 20_000, (month + 1) * 20_000))
        assert made["probability"].null_count == 0


def test_partitions_of_different_writers_are_scored_alike(tmp_path: Path, ray_session: None) -> None:
    rows = table(200).set_column(3, "merchant", pa.array(["5", "7", None, "5"] * 50))
    numbers = pa.array([5.0, 7.0, None, 5.0] * 50)
    nights = pa.array(["N", "J"]).take(rows["night"].combine_chunks().cast(pa.int32()))
    write(tmp_path / "in", "a.parquet", rows.set_column(2, "night", nights))
    write(tmp_path / "in", "b.parquet", rows.set_column(2, "night", nights.dictionary_encode()))
    write(tmp_path / "in", "c.parquet", rows.set_column(2, "night", nights).set_column(3, "merchant", numbers))
    write(tmp_path / "in", "d.parquet", rows.set_column(2, "night", nights.cast(pa.binary())))
    model = Model("cards/4", open_model(str(write_bundle(tmp_path / "bundle", night="J")), NOWHERE).graph)
    score_partitions(model, str(tmp_path / "in"), str(tmp_path / "out"))
    for name in files(tmp_path / "out"):
        np.testing.assert_allclose(read(tmp_path / "out" / name)["probability"], probabilities(rows), rtol=1e-6)


# What goes wrong.


def test_a_value_that_does_not_fit_is_named_with_its_row(tmp_path: Path, model: Model, ray_session: None) -> None:
    rows = table(10)
    merchants = pa.array([*[b"shop"] * 8, b"\xff", b"casino"])
    write(tmp_path / "in", "a.parquet", rows.set_column(3, "merchant", merchants))
    with pytest.raises(ContractViolation, match=r"a\.parquet: column 'merchant' .* UTF-8 \(first at row 8: b'\\xff'\)"):
        score_partitions(model, str(tmp_path / "in"), str(tmp_path / "out"))
    assert files(tmp_path / "out") == []


def test_every_unfit_column_is_listed_before_anything_is_scored(
    tmp_path: Path, model: Model, bundle: Path, ray_session: None
) -> None:
    rows = table(10)
    write(tmp_path / "in", "good.parquet", rows)
    write(tmp_path / "in", "a.parquet", rows.drop_columns("merchant"))
    write(tmp_path / "in", "b.parquet", rows.set_column(1, "amount", pa.array(["12"] * 10)))
    write(tmp_path / "in", "c.parquet", rows.append_column("probability", pa.array([0.5] * 10)))
    arguments = ["--model", str(bundle), "--input", str(tmp_path / "in"), "--output", str(tmp_path / "out")]
    done = CliRunner().invoke(app, ["score", *arguments])
    assert done.exit_code == 4
    for fault in (
        "3 violations in 3 of 4 partitions",
        "a.parquet: column 'merchant' is missing",
        "b.parquet: column 'amount' is of type string; kind 'numeric' is for integers",
        "c.parquet: column 'probability' has the name of one that scoring adds",
    ):
        assert fault in done.stderr
    assert not (tmp_path / "out").exists()


def test_no_column_of_the_data_may_be_called_like_one_that_scoring_adds() -> None:
    for field in (*scoring.ADDED, *Explainer.fields(scoring.REASONS)):
        columns = {field.name: {"kind": "numeric"}, "is_fraud": {"kind": "label"}}
        with pytest.raises(ValidationError, match=f"'{field.name}' is that of a column which scoring writes"):
            Settings.model_validate({"data": {"path": "data", "columns": columns}, "folds": {"kind": "stratified"}})


def test_a_partition_that_breaks_in_the_middle_leaves_nothing(tmp_path: Path, model: Model, ray_session: None) -> None:
    path = write(tmp_path / "in", "a.parquet", table(3 * scoring.ROWS_PER_BATCH), row_group_size=1_000)
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 20_000] = b"\xff" * 20_000
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"a\.parquet: column '\w+' cannot be read: .*; write the file again"):
        score_partitions(model, str(tmp_path / "in"), str(tmp_path / "out"))
    assert files(tmp_path / "out") == []


def test_the_output_may_not_lie_in_the_input(tmp_path: Path, model: Model) -> None:
    write_months(tmp_path)
    for target in (tmp_path, tmp_path / "out"):
        with pytest.raises(SettingsError, match="lies in the input"):
            score_partitions(model, str(tmp_path), str(target))


def test_no_spelling_and_no_link_lets_the_output_reach_the_input(tmp_path: Path, model: Model) -> None:
    data, aside = tmp_path / "data", tmp_path / "aside"
    names = write_months(data)
    aside.mkdir()
    (tmp_path / "link").symlink_to(data)
    (aside / "month=1").symlink_to(data / "month=1")
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked/a.parquet").symlink_to(data / names[0])
    before = {name: (data / name).read_bytes() for name in names}
    overlapping = [
        (data, tmp_path / "link"),
        (tmp_path / "link", data),
        (data, f"{tmp_path}/aside/../data/out"),
        (data, f"{data.as_uri()}/"),
        (data, tmp_path),
        (data, aside),
        (tmp_path / "linked", data / "month=1"),
        ("s3://bucket/days/", "s3://bucket/other/../days/out"),
        ("s3://bucket/days/in", "s3://bucket//days"),
    ]
    for source, target in overlapping:
        with pytest.raises(SettingsError, match="nothing was read or written"):
            score_partitions(model, str(source), str(target))
    assert {name: (data / name).read_bytes() for name in files(data)} == before
    assert scoring.locate("s3://bucket/days", "s3://bucket/days-out") == ("s3://bucket/days", "s3://bucket/days-out")


# Which model.


def test_a_registered_version_is_found_by_alias_or_number_and_named_in_each_row(
    tmp_path: Path, bundle: Path, ray_session: None
) -> None:
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    tracking = connect(RegistrySettings(uri=uri, model_name="cards"))
    for run in ("run-1", "run-2"):
        register(tracking.start(run, {}), bundle, example())
    registry = RegistrySettings(uri=uri)
    assert open_model("models:/cards@champion", registry).version == "cards/1"
    assert open_model("models:/cards@challenger", registry).version == "cards/2"
    assert open_model("models:/cards/2", registry).graph == (bundle / "model.onnx").read_bytes()

    write_months(tmp_path / "in", count=1)
    folders = ["--input", str(tmp_path / "in"), "--output", str(tmp_path / "out")]
    done = CliRunner().invoke(app, ["score", "--model", "models:/cards@champion", "--registry", uri, *folders])
    assert (done.exit_code, "cards/1" in done.stdout, str(tmp_path / "out") in done.stdout) == (0, True, True)
    assert set(read(tmp_path / "out/month=1/part-0.parquet")["model_version"].to_pylist()) == {"cards/1"}

    tracking.client.delete_registered_model_alias("cards", "champion")
    for missing, advice in {
        "models:/cards@champion": r"has versions 2 \(challenger\), 1 of 'cards'. `fraud-ray models promote`",
        "models:/cards/7": "`fraud-ray run -c FILE` registers another",
        "models:/accounts@champion": "has no 'accounts', but cards. `fraud-ray run -c FILE` trains and registers",
    }.items():
        with pytest.raises(FraudRayError, match=advice):
            open_model(missing, registry)
    with pytest.raises(SettingsError, match="write models:/NAME@ALIAS or models:/NAME/VERSION"):
        open_model("models:/cards", registry)


def test_looking_for_a_model_makes_no_registry(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="`fraud-ray run` does that"):
        open_model("models:/cards@champion", RegistrySettings(uri=f"sqlite:///{tmp_path}/none.db"))
    assert files(tmp_path) == []


def test_a_model_on_disk_is_a_bundle_or_its_graph(tmp_path: Path, bundle: Path) -> None:
    folder, file = open_model(str(bundle), NOWHERE), open_model(str(bundle / "model.onnx"), NOWHERE)
    assert folder == file
    assert folder.version.startswith("sha256:")
    with pytest.raises(SettingsError, match="there is no model at"):
        open_model(str(tmp_path), NOWHERE)
    for content in (b"no graph", b"", (bundle / "model.onnx").read_bytes()[:100]):
        (tmp_path / "model.onnx").write_bytes(content)
        with pytest.raises(SettingsError, match="is no model of this package"):
            open_model(str(tmp_path), NOWHERE)
    foreign = onnx.load(bundle / "model.onnx")
    del foreign.metadata_props[:]
    onnx.save(foreign, tmp_path / "model.onnx")
    with pytest.raises(SettingsError, match="does not state its threshold"):
        open_model(str(tmp_path), NOWHERE)
