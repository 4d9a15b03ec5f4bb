"""Retraining: the newest mature window, champion against challenger on the same rows, and what is recorded of it."""

from __future__ import annotations

import shutil
from dataclasses import replace
from datetime import date, datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sklearn.metrics import average_precision_score
from typer.testing import CliRunner

from fraud_ray import pipeline
from fraud_ray.cli import app
from fraud_ray.data.contract import ContractViolation
from fraud_ray.data.folds import at_newest_window
from fraud_ray.data.source import Source, open_source
from fraud_ray.decision.bootstrap import differences, intervals
from fraud_ray.decision.comparison import Comparison, Predictions, compare, judged_by
from fraud_ray.errors import DataError, SettingsError
from fraud_ray.progress import Quiet
from fraud_ray.registry.anchors import verify
from fraud_ray.registry.audit import read_all
from fraud_ray.registry.tracking import connect
from fraud_ray.runs import Outcome
from fraud_ray.settings import Loaded, Settings, load_settings
from fraud_ray.storage import Storage
from tests.cards import COLUMNS, TIMED_COLUMNS, card_settings, card_table, days, timed, write_partition
from tests.line import local

MODEL = "fraud-detection-production"


def loaded(**sections: object) -> Loaded:
    return Loaded(card_settings("nowhere", **sections), "cards", ("a note",))


def test_the_window_ends_where_labels_are_mature() -> None:
    folds = {"fit_days": 10, "delay_days": 3, "holdout_days": 4, "start": "2020-01-01", "selection_shift_days": [4]}
    adjusted = at_newest_window(loaded(folds=folds), Source("data", (), "", date(2024, 6, 30)))
    # Newest mature label 06-27: holdout 06-24 to 06-27, delay 06-21 to 06-23, fit 06-11 to 06-20.
    assert adjusted.settings.folds.start == date(2024, 6, 11)
    assert adjusted.notes == ("a note", "labels are mature up to 2024-06-27, 3 days before the newest data")


def test_a_share_of_the_rows_ends_where_labels_are_mature_and_times_without_a_calendar_are_refused() -> None:
    adjusted = at_newest_window(loaded(folds={"holdout": "20%"}), Source("data", (), "", date(2024, 6, 30)))
    assert (adjusted.settings.folds.until, adjusted.settings.folds.start) == (datetime(2024, 6, 24), None)
    running = {**COLUMNS, "timestamp": {"kind": "timestamp", "unit": "s", "since": "start"}}
    with pytest.raises(SettingsError, match="counted since: start, so that no day is known"):
        at_newest_window(loaded(columns=running), Source("data", (), "", date(1970, 1, 2)))
    with pytest.raises(SettingsError, match="hold out a share, such as 20%"):
        at_newest_window(loaded(folds={"holdout": "2024-06-01"}), Source("data", (), "", date(2024, 6, 30)))


def test_with_label_times_the_window_ends_on_the_newest_day_whose_labels_are_known(tmp_path: Path) -> None:
    for day in days(20):
        table = timed(card_table(day, rows=150), days(21)[-1], longest=3)
        write_partition(tmp_path / "data", f"date={day}/part-0.parquet", table)
    folds = {"fit_days": 6, "delay_days": 0, "holdout_days": 4, "selection_shift_days": [4]}
    settings = card_settings(tmp_path / "data", TIMED_COLUMNS, folds=folds)
    adjusted = at_newest_window(Loaded(settings, "cards"), open_source(settings.data))
    # Labels take up to three days, and two or fewer of a day's 150 rows are missing but for the last three days.
    assert adjusted.settings.folds.start == days(8)[-1]
    assert adjusted.notes == (f"labels are known up to {days(17)[-1]}, by known",)
    numbers = table.set_column(9, "known", pa.array(range(150)))
    write_partition(tmp_path / "data", "numbers.parquet", numbers)
    with pytest.raises(ContractViolation, match=r"numbers.parquet: column 'known' .* data.columns.known.unit"):
        at_newest_window(Loaded(settings, "cards"), open_source(settings.data))


def test_folds_and_data_without_days_are_refused_with_what_to_do() -> None:
    with pytest.raises(SettingsError, match=r"set folds\.kind to time"):
        at_newest_window(loaded(folds={"kind": "stratified"}), Source("data", (), "", date(2024, 6, 30)))
    with pytest.raises(DataError, match="has neither 'date=' folders nor timestamps"):
        at_newest_window(loaded(), Source("data", (), "", None))


def two_models(rows: int = 20_000, gain: float = 0.6) -> tuple[Predictions, Predictions, np.ndarray, np.ndarray]:
    """A better and a worse model of the same rows, which err alike, and the rows' labels and entities."""
    rng = np.random.default_rng(1)
    label = (rng.random(rows) < 0.05).astype(np.int8)
    shared = rng.normal(size=rows)
    worse, better = (1 / (1 + np.exp(3 - shared - (1.5 + by) * label)) for by in (0, gain))
    return Predictions(better, 0.5), Predictions(worse, 0.5), label, rng.integers(0, 2_000, rows)


@pytest.mark.parametrize("by_entity", [False, True])
def test_a_paired_interval_holds_the_difference_and_is_narrower_than_the_models_own(by_entity: bool) -> None:
    better, worse, label, entity = two_models(gain=0.1)
    cards = entity if by_entity else None
    drawn = None if cards is None else [cards]
    found = differences([[better]], {"worse": [[worse]]}, [label], drawn, 300, 0.95, 1)["worse"]["average_precision"]
    difference = np.subtract(*(average_precision_score(label, model.probabilities) for model in (better, worse)))
    assert found.value == pytest.approx(difference)
    assert 0 < found.low < difference < found.high
    own = intervals(better.probabilities, label, 0.5, cards, 300, 0.95, 1)["average_precision"]
    assert found.high - found.low < 0.25 * (own[1] - own[0])


def test_a_model_against_itself_differs_by_nothing() -> None:
    better, _, label, entity = two_models()
    found = differences([[better]], {"itself": [[better]]}, [label], [entity], 20, 0.95, 1)["itself"]
    assert {(one.value, one.error, one.low, one.high) for one in found.values()} == {(0, 0, 0, 0)}


def of_cards(**sections: object) -> Settings:
    return loaded(**sections).settings


def test_a_challenger_needs_the_margin_and_more_than_chance() -> None:
    better, worse, label, entity = two_models()
    settings = of_cards(retrain={"metric": "average_precision", "repeats": 200})
    found = compare(better, worse, 7, label, entity, settings)
    assert found.is_better
    assert found.champion == pytest.approx(average_precision_score(label, worse.probabilities))
    assert not compare(worse, better, 7, label, entity, settings).is_better
    assert not replace(found, margin=found.difference + 0.001).is_better
    assert not replace(found, low=-0.001).is_better
    assert "of the champion, version 7, on the same 20,000 rows" in found.message
    assert Comparison.from_json(found.to_json()) == found


def test_the_gates_first_metric_decides_where_none_is_named() -> None:
    assert judged_by(of_cards()) == "f1_score"
    assert judged_by(of_cards(gate={"min_f1": None, "min_auc": 0.8, "min_average_precision": 0.5})) == (
        "average_precision"
    )
    assert judged_by(of_cards(retrain={"metric": "auc_roc"})) == "auc_roc"


def partitions(simulated: Path, folder: Path, days: range, noise: range = range(0)) -> Path:
    """Those days of the simulated data; in `noise` the labels are shuffled, so that nothing can be learnt there."""
    for number, day in enumerate(sorted(simulated.glob("date=*"))):
        if number not in days:
            continue
        shutil.copytree(day, folder / day.name)
        for file in (folder / day.name).glob("*.parquet") if number in noise else ():
            table = pq.read_table(file, partitioning=None)
            shuffled = np.random.default_rng(number).permutation(table["is_fraud"].to_numpy())
            position = table.column_names.index("is_fraud")
            pq.write_table(table.set_column(position, "is_fraud", pa.array(shuffled)), file)
    return folder


def test_worse_data_leaves_the_champion_better_data_replaces_it_and_rollback_brings_it_back(
    ray_session: None, simulated: Path, store: Path, tmp_path: Path
) -> None:
    small = ("folds.fit_days=8", "gate.min_f1=null", "retrain.metric=average_precision", "train.learning_rate=0.005")

    def start(name: str, data: Path, retrain: bool) -> Outcome:
        settings = load_settings(*local(data, store, [f"run.name={name}", *small]))
        return pipeline.run(settings, Quiet(), retrain=retrain)

    noisy = partitions(simulated, tmp_path / "february", range(20), noise=range(14))
    assert start("february", noisy, retrain=False).version["alias"] == "champion"

    good = partitions(simulated, tmp_path / "march", range(22))
    better = start("march", good, retrain=True)
    assert better.comparison is not None
    assert better.comparison["low"] > 0
    assert (better.version["version"], better.version["alias"], better.exit_code) == (2, "champion", 0)
    page = Path(better.report).read_text()
    assert "takes its place" in page
    assert page.count("champion</text>") == 3  # alerts, precision and recall, ROC
    assert start("march", good, retrain=True) == better

    noisy = partitions(simulated, tmp_path / "april", range(24), noise=range(4, 18))
    worse = start("april", noisy, retrain=True)
    assert worse.comparison is not None
    assert worse.comparison["version"] == 2
    assert (worse.version["version"], worse.version["alias"], worse.exit_code) == (3, "challenger", 0)

    options = ["-c", "configs/local.yaml", "--set", f"storage.root={store}"]
    assert CliRunner().invoke(app, ["models", "rollback", *options]).exit_code == 0
    scored = ["score", "--model", f"models:/{MODEL}@champion", *options]
    folders = ["--input", str(good / sorted(p.name for p in good.iterdir())[-1]), "--output", str(tmp_path / "scored")]
    done = CliRunner().invoke(app, [*scored, *folders])
    assert done.exit_code == 0, done.output
    assert set(pq.read_table(tmp_path / "scored", partitioning=None)["model_version"].to_pylist()) == {f"{MODEL}/1"}

    storage = Storage.at(str(store))
    records = read_all(storage)
    told = [(record.event, record.version) for record in records if record.event != "run"]
    assert told == [("register", 1), ("register", 2), ("promote", 2), ("register", 3), ("rollback", 1)]
    assert (
        records[[record.event for record in records].index("promote")].facts["reason"] == better.comparison["message"]
    )
    compared = [record.facts["comparison"] for record in records if record.event == "run"]
    assert compared == [None, better.comparison, worse.comparison]
    registry = load_settings(*local(good, store)).settings.registry
    assert verify(connect(registry), storage) == []


@pytest.mark.long
def test_a_retraining_that_the_gate_rejects_has_not_failed_while_a_champion_stays(
    ray_session: None, simulated: Path, march: Path
) -> None:
    small = ["run.name=strict", "gate.min_f1=0.999", "folds.fit_days=8"]
    outcome = pipeline.run(load_settings(*local(simulated, march, small)), Quiet(), retrain=True)
    assert (outcome.status, outcome.exit_code, outcome.version) == ("rejected", 0, None)
    assert "the champion stays" in outcome.plan
