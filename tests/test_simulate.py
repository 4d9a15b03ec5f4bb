"""The synthetic world: the same rows every time, labels from the probability alone, and as hard as promised."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import date
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import pytest
from pyarrow import fs
from scipy.stats import ks_2samp
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score, precision_recall_curve

from fraud_ray.data import patterns, world
from fraud_ray.data.simulate import (
    MARKER,
    PROBABILITY_BINS,
    Simulated,
    best_scores,
    holds_data,
    simulate,
    write_block,
)
from fraud_ray.errors import DataError, FraudRayError
from fraud_ray.model.encoder import Encoder, FeatureColumn, Statistics
from fraud_ray.settings import SimulateSettings

SMALL = SimulateSettings(rows=6_001, days=5, seed=3)


@pytest.fixture(scope="module")
def table() -> pa.Table:
    return world.generate(SimulateSettings(rows=200_000, days=60), 0)


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(world, "ROWS_PER_BLOCK", 1_000)


@pytest.fixture(scope="module")
def written(ray_session: None, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Simulated]:
    folder = tmp_path_factory.mktemp("written") / "data"
    return folder, simulate(SMALL, str(folder))


def read(folder: Path) -> pa.Table:
    files = sorted(str(path) for path in folder.rglob("*.parquet"))
    return ds.dataset(files, format="parquet").to_table().sort_by("transaction_id")


def column(table: pa.Table, name: str) -> np.ndarray:
    return table[name].to_numpy(zero_copy_only=False)


def features(table: pa.Table) -> list[np.ndarray]:
    categories = [patterns.NAMES.index(name) for name in table["merchant_category"].to_pylist()]
    names = ("time_since_last_transaction", "location_deviation", "device_fingerprint_match")
    return [column(table, "transaction_amount"), np.array(categories), *(column(table, name) for name in names)]


def highest_f1(scores: np.ndarray, labels: np.ndarray) -> float:
    precision, recall, _ = precision_recall_curve(labels, scores)
    return float((2 * precision * recall / np.maximum(precision + recall, 1e-12)).max())


def test_blocks_are_the_same_in_any_order(small_blocks: None) -> None:
    forwards = [world.generate(SMALL, block) for block in range(7)]
    world.places_of.cache_clear()
    backwards = [world.generate(SMALL, block) for block in reversed(range(7))]
    assert all(a.equals(b) for a, b in zip(forwards, reversed(backwards), strict=True))
    assert not world.generate(SMALL.model_copy(update={"seed": 4}), 0).equals(forwards[0])


def test_ray_writes_what_the_blocks_generate_one_by_one(ray_session: None, tmp_path: Path) -> None:
    settings = SimulateSettings(rows=world.ROWS_PER_BLOCK + 1_000, days=2)
    told: list[tuple[float, float]] = []
    simulated = simulate(settings, str(tmp_path / "data"), lambda done, total, _: told.append((done, total)))
    blocks = [world.generate(settings, block) for block in (1, 0)]
    assert read(tmp_path / "data").equals(pa.concat_tables(reversed(blocks)))
    assert simulated.files == 4
    assert len(told) == 2
    assert told[-1] == (settings.rows, settings.rows)


@pytest.mark.parametrize(("rows", "days"), [(1, 1), (1_000, 1), (1_001, 400), (6_001, 5)])
def test_there_are_exactly_as_many_rows_as_asked_for(small_blocks: None, rows: int, days: int) -> None:
    settings = SimulateSettings(rows=rows, days=days)
    tables = [world.generate(settings, block) for block in range(len(world.rows_of_blocks(rows)))]
    whole = pa.concat_tables(tables)
    assert whole.num_rows == rows
    assert len(np.unique(column(whole, "transaction_id"))) == rows
    last = np.datetime64(settings.start) + np.timedelta64(days, "D")
    assert column(whole, "timestamp").min() >= np.datetime64(settings.start)
    assert column(whole, "timestamp").max() < last


def test_cards_of_different_blocks_are_different_cards(small_blocks: None) -> None:
    for name in ("customer_id", "card_id"):
        blocks = [set(column(world.generate(SMALL, block), name).tolist()) for block in range(7)]
        assert sum(map(len, blocks)) == len(set.union(*blocks))


def test_the_probability_follows_from_the_written_features_alone(written: tuple[Path, Simulated]) -> None:
    table = read(written[0])
    np.testing.assert_allclose(
        patterns.fraud_probability(*features(table)), column(table, "fraud_probability"), rtol=1e-12
    )


def test_labels_are_drawn_from_the_probability(table: pa.Table) -> None:
    probability, label = column(table, "fraud_probability"), column(table, "is_fraud")
    edges = [0, 0.001, 0.01, 0.1, 0.3, 0.6, 0.8, 0.9, 0.97, 1]
    for low, high in pairwise(edges):
        chosen = (probability >= low) & (probability < high)
        p, frauds = probability[chosen], label[chosen].sum()
        assert abs(frauds - p.sum()) <= 4 * np.sqrt((p * (1 - p)).sum()) + 1, (low, high)


def test_the_time_since_the_last_transaction_is_the_gap_of_the_same_card(table: pa.Table) -> None:
    order = np.lexsort((column(table, "timestamp"), column(table, "card_id")))
    card, time = column(table, "card_id")[order], column(table, "timestamp")[order]
    stated = column(table, "time_since_last_transaction")[order]
    follows = np.concatenate([[False], card[1:] == card[:-1]])
    gap = np.concatenate([[0], np.diff(time).astype(np.int64)]) / 1e6
    assert np.array_equal(stated[follows], gap[follows])
    # A card's first row here is its first ever, or its last one lies before the first day.
    first, since_start = stated[~follows], (time[~follows] - np.datetime64("2024-01-01")).astype(np.int64) / 1e6
    assert np.all(np.isnan(first) | (first >= np.floor(since_start)))
    assert 0.005 < np.isnan(stated).mean() < 0.03


def test_the_best_possible_scores_are_those_of_the_true_probability(written: tuple[Path, Simulated]) -> None:
    table, simulated = read(written[0]), written[1]
    probability, label = column(table, "fraud_probability"), column(table, "is_fraud")
    binned = np.minimum((probability * PROBABILITY_BINS).astype(int), PROBABILITY_BINS - 1)
    assert simulated.rows == 6_001
    assert simulated.frauds == label.sum() > 0
    assert simulated.best_average_precision == pytest.approx(average_precision_score(label, binned), abs=1e-12)
    assert simulated.best_f1 == pytest.approx(highest_f1(binned, label), abs=1e-12)


def test_the_best_scores_of_no_fraud_are_zero() -> None:
    assert best_scores(np.array([3, 0, 1]), np.zeros(3, np.int64)) == (0.0, 0.0)


def test_the_world_is_hard_but_fair(table: pa.Table) -> None:
    label, probability = column(table, "is_fraud"), column(table, "fraud_probability")
    best = average_precision_score(label, probability)
    assert 0.008 < label.mean() < 0.016
    assert 0.88 < highest_f1(probability, label) < 0.96
    both = ("standard", "signed_log")
    columns = [
        FeatureColumn("transaction_amount", "numeric", both),
        FeatureColumn("time_since_last_transaction", "numeric", both),
        FeatureColumn("location_deviation", "numeric", both),
        FeatureColumn("device_fingerprint_match", "boolean", ("standard",)),
        FeatureColumn("merchant_category", "categorical"),
    ]
    encoder = Encoder.fit(columns, Statistics.of(table, columns))
    numbers, codes = encoder.apply(table)
    inputs = np.hstack([numbers, np.eye(encoder.code_sizes[0], dtype=np.float32)[codes[:, 0]]])
    fit = np.arange(len(label)) % 2 == 0
    linear = LogisticRegression(max_iter=300).fit(inputs[fit], label[fit])
    reached = average_precision_score(label[~fit], linear.decision_function(inputs[~fit]))
    assert reached < 0.9 * average_precision_score(label[~fit], probability[~fit])
    assert best > 0.9


def test_two_months_have_the_same_distributions(table: pa.Table) -> None:
    day = (column(table, "timestamp") - np.datetime64("2024-01-01")).astype("timedelta64[D]").astype(int)
    earlier, later = day < 28, (day >= 28) & (day < 56)
    for name in ("transaction_amount", "time_since_last_transaction", "location_deviation"):
        values = column(table, name)
        present = ~np.isnan(values)
        assert ks_2samp(values[earlier & present], values[later & present]).statistic < 0.01, name
        assert abs(present[earlier].mean() - present[later].mean()) < 0.002, name
    for name in ("device_fingerprint_match", "is_fraud"):
        values = column(table, name).astype(float)
        assert abs(values[earlier].mean() - values[later].mean()) < 0.003, name
    category = column(table, "merchant_category").astype(str)
    for name in patterns.NAMES:
        assert abs((category[earlier] == name).mean() - (category[later] == name).mean()) < 0.01, name


def test_partitions_are_hive_folders_by_date_each_sorted_by_time(written: tuple[Path, Simulated]) -> None:
    folder, simulated = written
    files = sorted(folder.rglob("*.parquet"))
    days = [f"2024-01-0{day}" for day in range(1, 6)]
    assert [str(file.relative_to(folder)) for file in files] == [f"date={day}/part-00000.parquet" for day in days]
    assert simulated.files == 5
    for file, day in zip(files, days, strict=True):
        time = ds.dataset(str(file)).to_table()["timestamp"].to_numpy()
        assert np.all(np.diff(time) >= np.timedelta64(0))
        assert set(time.astype("datetime64[D]").astype(str)) == {day}
    assert not folder.with_name("data.partial").exists()


def test_the_same_call_again_answers_without_writing(written: tuple[Path, Simulated]) -> None:
    folder, simulated = written
    times = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    assert simulate(SMALL, str(folder)) == simulated
    assert times == {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


def test_other_settings_do_not_overwrite_a_simulation(written: tuple[Path, Simulated]) -> None:
    with pytest.raises(DataError, match="start 2024-01-01 there, 2025-01-01 now; seed 3 there, 9 now"):
        simulate(SMALL.model_copy(update={"start": date(2025, 1, 1), "seed": 9}), str(written[0]))


def test_other_data_is_never_overwritten(tmp_path: Path) -> None:
    (tmp_path / "date=2024-01-01").mkdir()
    (tmp_path / "date=2024-01-01" / "mine.parquet").write_bytes(b"mine")
    with pytest.raises(DataError, match="was not simulated"):
        simulate(SMALL, str(tmp_path))
    assert holds_data(str(tmp_path))


def test_an_interrupted_simulation_is_no_data_and_can_be_repeated(
    ray_session: None, tmp_path: Path, written: tuple[Path, Simulated]
) -> None:
    folder, partial = tmp_path / "data", tmp_path / "data.partial"
    stale = partial / "date=2023-01-01" / "part-00000.parquet"
    stale.parent.mkdir(parents=True)
    stale.write_bytes(b"half a file")
    (partial / MARKER).write_text(json.dumps({"settings": SMALL.model_dump(mode="json"), "result": None}))
    assert not holds_data(str(partial))
    assert not holds_data(str(folder))
    assert simulate(SMALL, str(folder)) == written[1]
    assert holds_data(str(folder))
    assert read(folder).equals(read(written[0]))


@pytest.fixture
def bucket() -> Iterator[str]:
    """A URI in an object store of this process."""
    import boto3
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(port=0)
    server.start()
    host, port = server.get_host_and_port()
    keys = {"aws_access_key_id": "key", "aws_secret_access_key": "secret", "region_name": "us-east-1"}
    boto3.client("s3", endpoint_url=f"http://{host}:{port}", **keys).create_bucket(Bucket="bank")
    yield f"s3://key:secret@bank/cards?scheme=http&endpoint_override={host}%3A{port}&region=us-east-1"
    server.stop()


def test_a_simulation_goes_to_an_object_store(ray_session: None, bucket: str, written: tuple[Path, Simulated]) -> None:
    assert not holds_data(bucket)
    assert simulate(SMALL, bucket) == written[1]
    assert holds_data(bucket)
    filesystem, folder = fs.FileSystem.from_uri(bucket)
    marker = f"{folder}/{MARKER}"
    with filesystem.open_output_stream(marker) as stream:
        stream.write(json.dumps({"settings": SMALL.model_dump(mode="json"), "result": None}).encode())
    assert not holds_data(bucket)
    assert simulate(SMALL, bucket) == written[1]


def test_a_folder_that_cannot_be_written_says_so(ray_session: None, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(DataError, match="is a file"):
        simulate(SMALL, str(tmp_path / "file"))
    with pytest.raises(FraudRayError, match="cannot be written"):
        simulate(SMALL, str(tmp_path / "file" / "data"))


def test_a_block_writes_one_file_a_day(tmp_path: Path) -> None:
    block = write_block(0, SMALL, fs.LocalFileSystem(), str(tmp_path))
    assert block.files == 5 == len(list(tmp_path.rglob("*.parquet")))
    assert block.rows.sum() == 6_001
