"""Backtests: several final folds, chosen for once before all of them, with reference models beside the network."""

from __future__ import annotations

import importlib.util
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fraud_ray.backtest import references, stages, story
from fraud_ray.backtest.result import NETWORK, Backtest, Choice
from fraud_ray.cli.backtest import print_backtest
from fraud_ray.errors import SettingsError
from fraud_ray.progress import Quiet
from fraud_ray.runs import list_runs
from fraud_ray.settings import Loaded, load_settings
from fraud_ray.storage import Storage
from tests.line import local
from tests.prepared import made_fold

FOLDS = (
    *("folds.fit_days=10", "folds.delay_days=2", "folds.holdout_days=3", "folds.selection_shift_days=[6]"),
    *("backtest.shift_days=[0, 3]", "backtest.references=[logistic_regression]", "run.name=two-weeks"),
)


def loaded(data: Path, store: Path, *overrides: str) -> Loaded:
    return load_settings(*local(data, store, [*FOLDS, *overrides]))


@pytest.fixture(scope="module")
def store(mlflow_template: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A storage root with a backtest in it that was killed in its reference models, and then started again."""
    folder = tmp_path_factory.mktemp("backtest")
    shutil.copy(mlflow_template, folder / "mlflow.db")
    return folder


@pytest.fixture(scope="module")
def result(simulated: Path, store: Path) -> Backtest:
    def killed(*arguments: object) -> None:
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as broken, pytest.raises(KeyboardInterrupt):
        broken.setattr(stages, "fit_reference", killed)
        story.backtest(loaded(simulated, store), Quiet())
    folder = store / "runs/two-weeks-backtest/stages"
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    assert {"search.json", "refit-1.json", "refit-2.json"} <= before.keys()
    beside = simulated / "notes.txt"
    beside.write_text("no data")
    found = story.backtest(loaded(simulated, store), Quiet())
    beside.unlink()
    assert {name: (folder / name).read_bytes() for name in before} == before
    return found


def test_every_final_fold_has_figures_and_none_of_its_rows_was_selected_on(result: Backtest) -> None:
    assert [model.choice.name for model in result.models] == ["network", "logistic_regression"]
    assert result.folds == (
        "fit 2024-01-10 to 2024-01-19, holdout 2024-01-22 to 2024-01-24",
        "fit 2024-01-07 to 2024-01-16, holdout 2024-01-19 to 2024-01-21",
    )
    assert result.selection == ("fit 2024-01-04 to 2024-01-13, holdout 2024-01-16 to 2024-01-18",)
    for model in result.models:
        assert [one.rows for one in model.evaluations] == [one.rows for one in result.models[0].evaluations]
        assert len({one.threshold for one in model.evaluations}) == 1
        values = [one.metrics["average_precision"] for one in model.evaluations]
        assert model.metrics["average_precision"] == pytest.approx((np.mean(values), np.std(values, ddof=1)))
        assert min(values) > 5 * model.evaluations[0].frauds / model.evaluations[0].rows
        assert sum(model.alerts["rows"]) == sum(one.confusion.tp + one.confusion.fp for one in model.evaluations)
    network, logistic = (model.metrics["average_precision"][0] for model in result.models)
    assert result.differences["logistic_regression"]["average_precision"].value == pytest.approx(network - logistic)


def test_the_same_backtest_answers_at_once_and_is_listed_beside_runs(
    result: Backtest, simulated: Path, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(story, "join_or_start", None)  # would be called to compute anything
    assert story.backtest(loaded(simulated, store, "search.concurrency=1"), Quiet()) == result
    [run] = list_runs(Storage.at(str(store)))
    assert (run.name, run.state) == ("two-weeks-backtest", "backtested")
    assert Path(result.picture).read_text().lstrip().startswith("<?xml")


def test_a_backtest_is_printed_with_means_and_the_paired_interval(
    result: Backtest, capsys: pytest.CaptureFixture[str]
) -> None:
    print_backtest(replace(result, notes=("xgboost is left out: it needs the extra 'compare'", *result.notes)))
    shown = capsys.readouterr().out
    mean, deviation = result.models[0].metrics["average_precision"]
    assert f"{mean:.4f} ± {deviation:.4f}" in shown
    assert f"{result.differences['logistic_regression']['average_precision'].low:+.4f}" in shown
    assert "2024-01-22" in shown
    assert "needs the extra" in shown
    assert "left out: 1 file that is no parquet (notes.txt)" in shown
    assert Backtest.from_json(json.loads(json.dumps(result.to_json()))) == result


def test_selection_holdouts_that_reach_into_a_final_one_are_refused(simulated: Path, store: Path) -> None:
    with pytest.raises(SettingsError, match=r"selection_shift_days to 11 or more, such as \[11\] \(9 or more do not"):
        story.backtest(loaded(simulated, store, "backtest.shift_days=[0, 3, 6]", "run.name=leaky"), Quiet())
    with pytest.raises(SettingsError, match=r"goes by time"):
        story.backtest(loaded(simulated, store, "folds.kind=stratified"), Quiet())


@pytest.mark.parametrize("name", ["logistic_regression", "random_forest", "xgboost", "lightgbm"])
def test_a_reference_model_learns_from_as_many_trials_as_it_is_given(
    name: str, ray_session: None, tmp_path: Path
) -> None:
    if importlib.util.find_spec(name) is None and name in {"xgboost", "lightgbm"}:
        pytest.skip(f"{name} is not installed: pip install '.[compare]'")
    storage = Storage.at(str(tmp_path))
    selection, final = (made_fold(storage, fold, 1_500, 800, seed) for seed, fold in enumerate(("selection", "final")))
    fitted = references.fit_reference(name, [selection], [final], 2, 0, storage, lambda *_: None)
    assert (fitted.choice.name, fitted.choice.trials) == (name, 2)
    assert [len(logits) for logits in (*fitted.selection, *fitted.final)] == [800, 800]
    assert np.isfinite(fitted.final[0]).all()
    base_rate = final.holdout.frauds / final.holdout.rows
    wanted = 0.9 * base_rate if name == "logistic_regression" else 2 * base_rate  # the label is no linear one
    assert fitted.choice.average_precision > wanted


def test_where_nothing_was_searched_the_values_are_said_to_be_the_settings_or_the_librarys() -> None:
    shown = [str(Choice(name, {}, trials, 0.5, 3.2)) for name, trials in ((NETWORK, 1), ("xgboost", 1_200))]
    assert shown == [
        "1 trial in 3 s; best: the settings as given, selection AP 0.5000",
        "1,200 trials in 3 s; best: as its library proposes, selection AP 0.5000",
    ]


def test_a_reference_model_whose_package_is_missing_is_left_out_with_a_note(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda package: None if package == "xgboost" else package)
    there, notes = story.split_by_package(("xgboost", "random_forest"))
    assert there == ("random_forest",)
    assert notes == ("xgboost is left out: it needs the extra 'compare'",)
