"""Backtests: several final folds, chosen for once before all of them, with reference models beside the network."""

from __future__ import annotations

import importlib.util
import json
import shutil
import typing
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import average_precision_score

from fraud_ray.backtest import stages, story
from fraud_ray.backtest.result import NETWORK, Backtest, Contender
from fraud_ray.cli.backtest import print_backtest
from fraud_ray.data import rows
from fraud_ray.errors import SettingsError
from fraud_ray.progress import Quiet
from fraud_ray.report.panels import draw_by_fold
from fraud_ray.runs import list_runs
from fraud_ray.settings import GateSettings, Loaded, ReferenceName, load_settings
from fraud_ray.storage import Storage
from fraud_ray.training import candidates, references
from fraud_ray.training.candidates import Choice
from tests.line import local
from tests.prepared import made_fold

FOLDS = (
    *("folds.fit_days=10", "folds.delay_days=2", "folds.holdout_days=3", "folds.selection_shift_days=[3]"),
    *("folds.start=2024-01-07", "backtest.shift_days=[0]", "backtest.later_days=[3]", "backtest.seeds=2"),
    *("backtest.references=[logistic_regression]", "run.name=two-weeks"),
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
    assert {"search.json", "refit-1.json", "refit-2.json", "refit-2-seed-43.json"} <= before.keys()
    beside = simulated / "notes.txt"
    beside.write_text("no data")
    found = story.backtest(loaded(simulated, store), Quiet())
    beside.unlink()
    assert {name: (folder / name).read_bytes() for name in before} == before
    return found


def test_every_final_fold_has_figures_and_none_of_its_rows_was_selected_on(result: Backtest) -> None:
    assert result.selection == ("fit 2024-01-04 to 2024-01-13, holdout 2024-01-16 to 2024-01-18",)
    assert result.folds == ("fit 2024-01-07 to 2024-01-16, holdout 2024-01-19 to 2024-01-21",)
    assert result.later is not None
    assert result.later.folds == ("fit 2024-01-10 to 2024-01-19, holdout 2024-01-22 to 2024-01-24",)
    for judged in (result, result.later):
        assert [model.choice.name for model in judged.models] == ["network", "logistic_regression"]
        assert [len(model.further) for model in judged.models] == [1, 0], "one seed is enough where none has an effect"
        rows = judged.models[0].evaluations[0].rows
        for model in judged.models:
            [one] = model.evaluations
            assert one.rows == rows
            assert model.metrics["average_precision"][0] > 5 * one.frauds / one.rows
            assert sum(model.alerts["rows"]) == one.confusion.tp + one.confusion.fp
        network, logistic = (model.metrics["average_precision"][0] for model in judged.models)
        lead = judged.differences["logistic_regression"]["average_precision"]
        assert lead.value == pytest.approx(network - logistic)
        assert lead.low < lead.value < lead.high
    thresholds = [{one.threshold for one in (*m.evaluations, *n.evaluations)} for m, n in pairs(result)]
    assert [len(found) for found in thresholds] == [1, 1]
    own, further = result.models[0].evaluations[0].metrics, result.models[0].further[0][0]
    assert own["average_precision"] != further["average_precision"]
    assert result.models[0].metrics["auc_roc"] == (pytest.approx((own["auc_roc"] + further["auc_roc"]) / 2), 0)


def pairs(result: Backtest) -> list[tuple[Contender, Contender]]:
    assert result.later is not None
    return list(zip(result.models, result.later.models, strict=True))


def test_a_mean_is_over_folds_and_seeds_and_the_deviation_over_folds(result: Backtest) -> None:
    one = result.models[0]
    weeks = [replace(one.evaluations[0], metrics={"recall": value}) for value in (0.2, 0.4)]
    found = replace(one, evaluations=tuple(weeks), further=(({"recall": 0.4}, {"recall": 0.8}),))
    assert found.by_fold("recall") == pytest.approx([0.3, 0.6])
    assert found.metrics["recall"] == pytest.approx((0.45, np.std([0.3, 0.6], ddof=1)))
    assert replace(found, further=(({"recall": 0.4}, {}),)).by_fold("recall") == [pytest.approx(0.3), None]


def test_small_holdouts_and_bounds_beyond_reach_are_noted(result: Backtest) -> None:
    few = [replace(model, evaluations=(replace(model.evaluations[0], frauds=75),)) for model in result.models]
    possible = (result.models[0].evaluations[0].best_possible or {})["f1_score"]
    reached = max(model.metrics["f1_score"][0] for model in result.models)
    told = list(stages.cautions(few, GateSettings(min_f1=(possible + 1) / 2)))
    assert told[0].startswith("final fold 1: 75 frauds in the holdout")
    assert "lies above the best possible on some fold" in told[1]
    [caution] = stages.cautions(result.models, GateSettings(min_f1=(reached + possible) / 2))[-1:]
    assert "lies above what any model here reaches" in caution


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
    lead = result.differences["logistic_regression"]["average_precision"]
    assert f"{lead.low:+.4f}" in shown
    assert lead.verdict in shown
    assert "later fold" in shown
    assert "2024-01-19" in shown
    assert "2024-01-22" in shown
    assert "needs the extra" in shown
    assert "left out: 1 file that is no parquet (notes.txt)" in shown
    assert Backtest.from_json(json.loads(json.dumps(result.to_json()))) == result


def test_selection_holdouts_that_reach_into_a_final_one_are_refused(simulated: Path, store: Path) -> None:
    with pytest.raises(SettingsError, match=r"selection_shift_days to 11 or more, such as \[11\] \(9 or more do not"):
        story.backtest(loaded(simulated, store, "backtest.shift_days=[0, 3, 6]", "run.name=leaky"), Quiet())
    with pytest.raises(SettingsError, match=r"goes by time"):
        story.backtest(loaded(simulated, store, "folds.kind=stratified"), Quiet())


@pytest.mark.parametrize("name", ["logistic_regression", "random_forest", "xgboost", "lightgbm", "catboost"])
def test_a_reference_model_learns_and_fits_nothing_twice(name: str, ray_session: None, tmp_path: Path) -> None:
    if importlib.util.find_spec(name) is None and name in {"xgboost", "lightgbm", "catboost"}:
        pytest.skip(f"{name} is not installed: pip install '.[compare]'")
    storage = Storage.at(str(tmp_path))
    selection, final = (made_fold(storage, fold, 1_500, 800, seed) for seed, fold in enumerate(("selection", "final")))
    fit = partial(references.fit_reference, name, [selection], [final], 2, (0, 1), storage, "kept", lambda *_: None)
    fitted = fit()
    assert (fitted.choice.name, fitted.choice.trials) == (name, 2)
    assert len(fitted.final) == (1 if name == "logistic_regression" else 2)
    assert [len(logits) for logits in (*fitted.selection, *fitted.final[-1])] == [800, 800]
    assert np.isfinite(fitted.final[0][0]).all()
    label = rows.load(storage, selection.holdout).label
    assert average_precision_score(label, fitted.selection[0]) == pytest.approx(fitted.choice.average_precision)
    before = {file: file.stat().st_mtime_ns for file in (tmp_path / "kept").rglob("*.*")}
    np.testing.assert_array_equal(fit().final, fitted.final)
    assert {file: file.stat().st_mtime_ns for file in (tmp_path / "kept").rglob("*.*")} == before
    base_rate = final.holdout.frauds / final.holdout.rows
    wanted = 0.9 * base_rate if name == "logistic_regression" else 2 * base_rate  # the label is no linear one
    assert fitted.choice.average_precision > wanted


def test_where_nothing_was_searched_the_values_are_said_to_be_the_settings() -> None:
    shown = str(Choice(NETWORK, {}, 1, 0.5, 3.2))
    assert shown == "1 trial in 3 s; best: the settings as given, selection AP 0.5000"


def test_the_picture_has_a_colour_for_each_model() -> None:
    values = {name: [0.5, 0.6] for name in (NETWORK, *typing.get_args(ReferenceName))}
    assert draw_by_fold("all", ["2024-01-08", "2024-01-01"], {"recall": values}, "svg")


def test_a_reference_model_whose_package_is_missing_is_left_out_with_a_note(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda package: None if package == "xgboost" else package)
    there, notes = candidates.split_by_package(("xgboost", "random_forest"))
    assert there == ("random_forest",)
    assert notes == ("xgboost is left out: it needs the extra 'compare'",)
