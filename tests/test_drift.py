"""Drift: what is flagged and what is not, from partitions to exit codes."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import yaml
from typer.testing import CliRunner, Result

from fraud_ray import pipeline
from fraud_ray.cli import app
from fraud_ray.data import baseline as baselines
from fraud_ray.data.baseline import measure_drift
from fraud_ray.data.contract import ContractViolation
from fraud_ray.data.drift import FRAUD_RATE, SCORE, Drift, compare
from fraud_ray.data.profiling import profile_partitions
from fraud_ray.data.simulate import simulate
from fraud_ray.data.source import open_source
from fraud_ray.errors import DataError, DriftError
from fraud_ray.model.bundle import open_graph
from fraud_ray.model.encoder import FeatureColumn
from fraud_ray.model.profile import Baseline, Profile
from fraud_ray.progress import Quiet
from fraud_ray.registry.tracking import connect
from fraud_ray.registry.versions import register
from fraud_ray.settings import DriftSettings, Settings, SimulateSettings, load_settings
from tests.cards import TIMED_COLUMNS, card_settings, card_table, days, timed, write_days, write_partition
from tests.handmade import example, write_bundle

BOUNDS = DriftSettings()
COLUMNS = (
    FeatureColumn("amount", "numeric"),
    FeatureColumn("night", "boolean"),
    FeatureColumn("merchant", "categorical"),
)


def quiet(done: float, total: float, text: str) -> None:
    return None


def table(
    rows: int, seed: int = 0, shift: float = 0.0, missing: float = 0.0, frauds: float = 0.02, **new: float
) -> pa.Table:
    """Rows of the columns that the handmade bundle reads; new: share of rows by further merchant."""
    rng = np.random.default_rng(seed)
    names = ["shop", "casino", "travel", *new]
    rest = 1 - sum(new.values())
    merchants = rng.choice(names, rows, p=[0.6 * rest, 0.3 * rest, 0.1 * rest, *new.values()])
    amount = (100 + 30 * (rng.standard_normal(rows) + shift)).astype(np.float32)
    return pa.table(
        {
            "amount": pa.array(amount, mask=rng.random(rows) < missing),
            "night": rng.random(rows) < 0.3,
            "merchant": pa.array(merchants),
            "is_fraud": (rng.random(rows) < frauds).astype(np.int8),
        }
    )


def profiled(rows: pa.Table, scores: Any = None) -> Profile:
    return Profile.of(rows, COLUMNS, rows["is_fraud"], scores)


def drifted(drift: Drift) -> list[str]:
    return [column.name for column in drift.drifted]


# The verdict.


def test_between_two_months_of_5_million_rows_a_shift_of_3_hundredths_of_a_deviation_is_significant_and_no_drift():
    months = []
    for seed, shift in ((1, 0.0), (2, 0.03)):
        blocks = [table(1_000_000, seed * 10 + block, shift) for block in range(5)]
        months.append(Profile.merge(profiled(block) for block in blocks))
    drift = compare(*months, BOUNDS, "last month")
    assert drift.rows == (5_000_000, 5_000_000)
    assert drifted(drift) == []
    amount = next(column for column in drift.columns if column.name == "amount")
    assert amount.test == "KS"
    assert amount.p_value < 0.001
    assert amount.measures[0].value == pytest.approx(0.012, abs=0.001)
    assert "no drift" in drift.verdict


PLANTED: dict[str, tuple[dict[str, Any], list[str], str]] = {
    "nothing": ({}, [], "no drift"),
    "a shift of the bulk": ({"shift": 0.5}, ["amount"], "KS 0.19"),
    "missing values": ({"missing": 0.08}, ["amount"], "missing change 0.07"),
    "a new category": ({"lottery": 0.02}, ["merchant"], "new categories 0.0"),
    "more fraud": ({"frauds": 0.05}, [FRAUD_RATE], "ratio 2."),
    "less fraud": ({"frauds": 0.008}, [FRAUD_RATE], "ratio 2."),
}


@pytest.mark.parametrize(("planted", "expected", "words"), PLANTED.values(), ids=list(PLANTED))
def test_only_what_was_planted_is_flagged(planted: dict[str, Any], expected: list[str], words: str):
    drift = compare(profiled(table(40_000)), profiled(table(40_000, seed=1, **planted)), BOUNDS, "before")
    assert drifted(drift) == expected
    assert words in drift.verdict
    assert [column.name for column in drift.columns[: len(expected)]] == expected, "the worst first"
    assert Drift.from_json(json.loads(json.dumps(drift.to_json()))) == drift


def test_another_mix_of_the_same_categories_is_flagged():
    before, after = table(20_000), table(20_000, seed=1)
    merchants = pc.if_else(pa.array(np.arange(20_000) % 2 == 0), "casino", after["merchant"])
    after = after.set_column(2, "merchant", merchants)
    assert drifted(compare(profiled(before), profiled(after), BOUNDS, "before")) == ["merchant"]


def test_a_new_category_is_named_and_no_other_one_is():
    drift = compare(profiled(table(20_000)), profiled(table(20_000, seed=1, lottery=0.03)), BOUNDS, "before")
    merchant = next(column for column in drift.columns if column.name == "merchant")
    assert list(merchant.new) == ["lottery"]
    assert merchant.new["lottery"] == pytest.approx(0.03, abs=0.005)


def test_scores_that_moved_are_flagged_whatever_the_columns_do():
    rng = np.random.default_rng(0)
    rows = table(20_000)
    before, after = (profiled(rows, rng.beta(1, b, 20_000).astype(np.float32)) for b in (50, 30))
    assert drifted(compare(before, after, BOUNDS, "before")) == [SCORE]


def test_a_column_without_values_is_flagged_by_its_missing_rate_alone():
    after = table(5_000)
    after = after.set_column(0, "amount", pa.nulls(5_000, pa.float32()))
    drift = compare(profiled(table(5_000)), profiled(after), BOUNDS, "before")
    assert [m.name for m in drift.columns[0].exceeded] == ["missing change"]
    assert drift.columns[0].bins is None


# Partitions.


def profile_of(root: Path, days_back: int | None = None, **sections: Any) -> Profile:
    given = card_settings(root, **sections)
    columns = (FeatureColumn("distance", "numeric"), FeatureColumn("category", "categorical"))
    return profile_partitions(open_source(given.data), given.data, columns, quiet, days_back)


def test_the_profile_of_partitions_is_that_of_their_rows(tmp_path: Path, ray_session: None):
    tables = write_days(tmp_path, 9)
    found = profile_of(tmp_path)
    columns = (FeatureColumn("distance", "numeric"), FeatureColumn("category", "categorical"))
    rows = pa.concat_tables(tables)
    expected = Profile.of(rows, columns, rows["is_fraud"])
    assert found == expected


def test_a_label_whose_time_is_missing_is_not_counted(tmp_path: Path, ray_session: None):
    table_ = timed(card_table(), date(2024, 1, 4))
    told = table_.set_column(7, "is_fraud", card_table()["is_fraud"])
    write_partition(tmp_path, "a.parquet", told)
    found = profile_of(tmp_path, columns=TIMED_COLUMNS)
    assert (found.rows, found.labelled) == (60, 60 - table_["known"].null_count)
    assert found.frauds == pc.sum(table_["is_fraud"]).as_py()


def test_the_newest_days_are_chosen_by_hive_key_or_by_timestamp(tmp_path: Path, ray_session: None):
    tables = write_days(tmp_path / "hive", 6)
    write_partition(tmp_path / "flat", "all.parquet", pa.concat_tables(tables))
    for folder in ("hive", "flat"):
        assert profile_of(tmp_path / folder, 2).frauds == sum(pc.sum(t["is_fraud"]).as_py() for t in tables[4:])
    undated = {"category": {"kind": "categorical", "nulls": True}, "distance": {"kind": "numeric", "nulls": True}}
    with pytest.raises(DataError, match=r"drift\.days is 2.*null"):
        profile_of(
            tmp_path / "flat", 2, columns={**undated, "is_fraud": {"kind": "label"}}, folds={"kind": "stratified"}
        )


def test_an_absent_column_is_named_and_an_absent_label_is_not_missed(tmp_path: Path, ray_session: None):
    for table_ in write_days(tmp_path / "with", 2)[:1]:
        write_partition(tmp_path / "unlabelled", "a.parquet", table_.drop_columns(["is_fraud", "probability"]))
        write_partition(tmp_path / "narrow", "b.parquet", table_.drop_columns(["distance"]))
    found = profile_of(tmp_path / "unlabelled")
    assert (found.labelled, found.fraud_rate) == (0, None)
    assert FRAUD_RATE not in [c.name for c in compare(profile_of(tmp_path / "with"), found, BOUNDS, "before").columns]
    with pytest.raises(ContractViolation, match=r"b\.parquet: column 'distance' is missing"):
        profile_of(tmp_path / "narrow")


def test_between_simulated_months_only_the_column_with_a_planted_shift_is_flagged(tmp_path: Path, ray_session: None):
    local = Path(__file__).parents[1] / "configs/local.yaml"
    for name, first, seed in (("march", date(2024, 3, 1), 1), ("april", date(2024, 4, 1), 2)):
        simulate(SimulateSettings(rows=30_000, days=30, start=first, seed=seed), str(tmp_path / name))

    def of(name: str) -> Profile:
        data = load_settings(local, [f"data.path={tmp_path / name}"]).settings.data
        columns = [FeatureColumn(n, data.columns[n].kind.replace("amount", "numeric")) for n in data.features]
        return profile_partitions(open_source(data), data, columns, quiet)

    march, april = of("march"), of("april")
    assert drifted(compare(march, april, BOUNDS, "March")) == []
    for file in (tmp_path / "april").rglob("*.parquet"):
        rows = pq.read_table(file, partitioning=None)
        place = rows.column_names.index("transaction_amount")
        pq.write_table(rows.set_column(place, "transaction_amount", pc.multiply(rows["transaction_amount"], 1.5)), file)
    assert drifted(compare(march, of("april"), BOUNDS, "March")) == ["transaction_amount"]


def test_columns_that_settings_and_reference_do_not_share_are_named_and_not_compared(tmp_path: Path, ray_session: None):
    write_days(tmp_path / "data", 2)
    write_bundle(tmp_path / "bundle")
    given = card_settings(tmp_path / "data", prepare={"calendar": True})
    baseline = Baseline("a bundle", profiled(table(500)), (tmp_path / "bundle/model.onnx").read_bytes())
    drift = measure_drift(baseline, open_source(given.data), given, quiet)
    assert {column.name for column in drift.columns} == {"amount", FRAUD_RATE}
    assert set(drift.not_compared) == {"night", "merchant", "distance", "category", "online", "timestamp:hour"}


def test_another_time_of_day_is_drift_and_other_days_of_the_week_are_none(tmp_path: Path, ray_session: None):
    given = card_settings(tmp_path / "days", prepare={"calendar": True})
    for day, rows in zip(days(2), write_days(tmp_path / "days", 2, rows=2_000), strict=True):
        at_three = pc.add(pc.floor_temporal(rows["timestamp"], unit="day"), pa.scalar(timedelta(hours=3)))
        write_partition(tmp_path / "nights", f"{day}.parquet", rows.set_column(1, "timestamp", at_three))
    clock = [FeatureColumn("timestamp", "timestamp")]
    baseline = Baseline("the day before", Profile.of(card_table(days(1)[0] - timedelta(days=1), 4_000), clock, None))
    for folder, expected in (("days", []), ("nights", ["timestamp:hour"])):
        source = open_source(given.data.model_copy(update={"path": str(tmp_path / folder)}))
        assert drifted(measure_drift(baseline, source, given, quiet)) == expected


# The command and the stage, with a champion in a real registry.

Write = Callable[..., Path]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A storage root whose registry's champion is the handmade bundle, with the profile of 20,000 rows."""
    root = tmp_path_factory.mktemp("drift") / "store"
    bundle = write_bundle(root.parent / "bundle")
    rows = table(20_000)
    profile = profiled(rows, open_graph(bundle).score(rows))
    (bundle / "profile.json").write_text(json.dumps(profile.to_json()))
    root.mkdir()
    run = connect(settings_of(root, root).registry).start("first", {})
    register(run, bundle, example())
    return root


def raw_settings(data: Path, root: Path) -> dict[str, Any]:
    columns = {
        "amount": {"kind": "amount", "nulls": True},
        "night": {"kind": "boolean"},
        "merchant": {"kind": "categorical"},
        "is_fraud": {"kind": "label"},
    }
    return {
        "data": {"path": str(data), "columns": columns},
        "storage": {"root": str(root)},
        "folds": {"kind": "stratified"},
    }


def settings_of(data: Path, root: Path) -> Settings:
    path = root.parent / "champion.yaml"
    path.write_text(yaml.safe_dump(raw_settings(data, root)))
    return load_settings(path).settings


@pytest.fixture
def write(tmp_path: Path, store: Path) -> Write:
    """Writes rows as two partitions, and a configuration over them; returns that."""

    def written(rows: pa.Table, name: str = "data") -> Path:
        for number in (0, 1):
            half = rows.slice(number * rows.num_rows // 2, rows.num_rows // 2)
            write_partition(tmp_path / name, f"date={days(2)[number]}/part.parquet", half)
        config = tmp_path / f"{name}.yaml"
        config.write_text(yaml.safe_dump(raw_settings(tmp_path / name, store)))
        return config

    return written


def fraud_ray(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments))


def test_the_command_ends_with_5_when_columns_and_scores_have_drifted(write: Write, tmp_path: Path, ray_session: None):
    config = write(table(8_000, seed=5, shift=2.0))
    picture = tmp_path / "pictures/worst.png"
    done = fraud_ray("drift", "-c", str(config), "--json", "--out", str(picture))
    assert done.exit_code == 5, done.output
    shown = json.loads(done.stdout)
    assert sorted(shown["drifted"]) == ["amount", SCORE]
    assert shown["rows"] == [20_000, 8_000]
    assert "the champion, fraud-detection-production version 1" in shown["verdict"]
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_the_command_ends_with_0_and_shows_all_columns_when_nothing_has_drifted(
    write: Write, store: Path, ray_session: None
):
    done = fraud_ray("drift", "-c", str(write(table(8_000, seed=6))))
    assert done.exit_code == 0, done.output
    for name in ("amount", "night", "merchant", SCORE, FRAUD_RATE, "no drift"):
        assert name in done.stdout
    assert (store / "drift/2024-01-02.svg").read_text().startswith("<?xml")


def test_other_partitions_or_a_bundles_folder_can_be_the_reference(write: Write, store: Path, ray_session: None):
    config = write(table(8_000, seed=6))
    shifted = write(table(8_000, seed=7, shift=2.0), "shifted")
    done = fraud_ray("drift", "-c", str(config), "--against", str(shifted.with_suffix("")), "--json")
    assert done.exit_code == 5, done.output
    assert json.loads(done.stdout)["drifted"] == ["amount"]
    same = fraud_ray("drift", "-c", str(config), "--against", str(store.parent / "bundle"), "--json")
    assert same.exit_code == 0, same.output
    assert SCORE in [column["name"] for column in json.loads(same.stdout)["columns"]]


@pytest.mark.parametrize(
    ("arguments", "exit_code", "words"),
    [
        (["--against", "/nowhere"], 4, "/nowhere does not exist"),
        (["--set", "registry.model_name=other"], 2, "other has no champion"),
        (["--out", "worst.pdf"], 2, "neither .svg nor .png"),
        (["--set", "drift.max_kss=1"], 2, "did you mean 'max_ks'?"),
    ],
)
def test_what_cannot_be_compared_is_one_message(
    write: Write, ray_session: None, arguments: list[str], exit_code: int, words: str
):
    done = fraud_ray("drift", "-c", str(write(table(200))), *arguments)
    assert (done.exit_code, done.stdout) == (exit_code, "")
    assert words in " ".join(done.stderr.split())


def run_to_drift(config: Path, *overrides: str) -> Any:
    return pipeline.run(load_settings(config, overrides), Quiet(), until="drift")


def test_a_run_warns_of_drift_or_stops_before_training_as_the_settings_say(
    write: Write, store: Path, ray_session: None, monkeypatch: pytest.MonkeyPatch
):
    config = write(table(4_000, seed=8, shift=2.0))
    name = f"run.name=drift-{time.monotonic_ns()}"
    with pytest.raises(DriftError, match=r"drift in amount .*drift\.svg.*drift\.action=warn") as fault:
        run_to_drift(config, name, "drift.action=fail")
    assert fault.value.exit_code == 5
    folder = store / "runs" / name.removeprefix("run.name=")
    assert "amount" in json.loads((folder / "drift.json").read_text())["drifted"]
    assert (folder / "drift.svg").is_file()
    assert not (store / "prepared").exists()

    monkeypatch.setattr(baselines, "measure_drift", lambda *_: pytest.fail("measured again"))
    with pytest.raises(DriftError):
        run_to_drift(config, name, "drift.action=fail")
    warned = run_to_drift(config, name, "drift.action=warn")
    assert any("warning" in line and "drift in amount" in line for line in warned.plan)


def test_a_run_that_ignores_drift_measures_none(
    write: Write, store: Path, ray_session: None, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(baselines, "measure_drift", lambda *_: pytest.fail("measured"))
    name = f"drift-{time.monotonic_ns()}"
    config = write(table(4_000, seed=8, shift=2.0))
    ignored = run_to_drift(config, f"run.name={name}", "drift.action=ignore")
    assert not any("drift" in line for line in ignored.plan)
    assert ignored.status == "stopped after drift"
    assert not (store / "runs" / name / "drift.json").exists()


def test_a_run_without_a_champion_says_nothing_of_drift(write: Write, store: Path, ray_session: None):
    class Told(Quiet):
        names: list[str] = []  # noqa: RUF012

        def stage(self, name: str):
            self.names.append(name)
            return super().stage(name)

    config = write(table(400))
    overrides = ["registry.model_name=nobody", "drift.action=fail", f"run.name=first-{time.monotonic_ns()}"]
    outcome = pipeline.run(load_settings(config, overrides), Told(), until="drift")
    assert outcome.status == "stopped after drift"
    assert Told.names == ["validate", "plan"]
