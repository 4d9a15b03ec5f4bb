"""Explanations: what columns contribute adds up, and alerts come with their reasons."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from sklearn.metrics import average_precision_score

from fraud_ray.decision.importance import permutation_importance
from fraud_ray.errors import SettingsError
from fraud_ray.model.bundle import Bundle
from fraud_ray.model.calibration import Calibration
from fraud_ray.model.encoder import FeatureColumn, derived
from fraud_ray.model.network import NetworkShape
from fraud_ray.model.reasons import Explainer
from fraud_ray.scoring.partitions import open_model, score_partitions
from fraud_ray.settings import RegistrySettings
from tests.handmade import write_bundle
from tests.test_graph import COLUMNS, NETWORKS, made_bundle, table, trainer_probabilities

NOWHERE = RegistrySettings()
NUMBERS = COLUMNS[:3]


def bundle(columns: tuple = COLUMNS) -> Bundle:
    return made_bundle(columns, Calibration())


def logits(model: Bundle, rows: pa.Table) -> np.ndarray:
    with torch.no_grad():
        return model.network()(*map(torch.from_numpy, model.encoder.apply(rows))).numpy()


CASES = {
    "numbers": (NUMBERS, {}),
    "categories": (COLUMNS[3:], {}),
    **{name: (COLUMNS, network) for name, network in NETWORKS.items()},
}


@pytest.mark.parametrize(("columns", "network"), CASES.values(), ids=CASES)
def test_contributions_add_up_to_the_difference_from_a_typical_row(columns: tuple, network: dict[str, Any]) -> None:
    model = made_bundle(columns, Calibration(), **network)
    explainer = Explainer.of(model)
    rows = table(200, seed=5)
    contributions = explainer.contributions(rows)
    assert {column.name for column in derived(columns)} <= set(explainer.columns)
    difference = logits(model, rows) - logits(model, explainer.baseline)
    np.testing.assert_allclose(contributions.sum(axis=1), difference, atol=1e-5)
    assert np.abs(explainer.contributions(explainer.baseline)).max() < 1e-6
    finer = replace(explainer, steps=512).contributions(rows)
    assert np.abs(contributions - finer).max() < 0.03 * np.ptp(difference)


def test_a_linear_network_is_explained_by_its_weights() -> None:
    model = bundle(NUMBERS)
    shape = NetworkShape(len(model.encoder.feature_names), (), (), 0.0)
    weights = torch.arange(1.0, shape.features + 1)[None]
    model = replace(model, shape=shape, weights={"first.weight": weights, "first.bias": torch.zeros(1)})
    explainer = Explainer.of(model)
    rows = table(50)
    move = model.encoder.apply(rows)[0] - model.encoder.apply(explainer.baseline)[0]
    of_feature = move * weights.numpy()
    for position, column in enumerate(explainer.columns):
        own = [source == column for source in model.encoder.feature_columns]
        expected = of_feature[:, own].sum(axis=1)
        np.testing.assert_allclose(explainer.contributions(rows)[:, position], expected, rtol=1e-4, atol=1e-4)


def test_rows_are_explained_against_an_example_in_which_text_means_true() -> None:
    columns = (FeatureColumn("known", "boolean", ("standard",), true="Y"), COLUMNS[1])
    model, rows = bundle(columns), table(50)
    explainer = Explainer.of(model)
    assert explainer.baseline["known"].to_pylist() == ["Y"]
    difference = logits(model, rows) - logits(model, explainer.baseline)
    np.testing.assert_allclose(explainer.contributions(rows).sum(axis=1), difference, atol=1e-5)


def test_a_column_that_the_network_does_not_use_contributes_nothing() -> None:
    model = bundle()
    unused = [source == "balance" for source in model.encoder.feature_columns]
    first = model.weights["first.weight"].clone()
    first[:, unused] = 0
    explainer = Explainer.of(replace(model, weights={**model.weights, "first.weight": first}))
    rows = table(200)
    assert np.abs(explainer.contributions(rows)[:, explainer.columns.index("balance")]).max() == 0
    names, effects = explainer.reasons(rows, 3)
    assert (np.diff(np.abs(effects), axis=1) <= 0).all()
    assert "balance" not in names[effects != 0]


@pytest.mark.parametrize("most_rows", [2_000, 20_000])
def test_the_columns_that_a_model_relies_on_have_the_highest_importance(most_rows: int) -> None:
    rng = np.random.default_rng(0)
    amount, age, noise = rng.normal(size=(3, 10_000))
    labels = (rng.random(10_000) < 1 / (1 + np.exp(5 - 2 * amount - age))).astype(np.int8)
    rows = pa.table({"age": age, "noise": noise, "amount": amount})

    def score(table: pa.Table) -> np.ndarray:
        return 2 * table["amount"].to_numpy() + table["age"].to_numpy()

    found = permutation_importance(score, rows, labels, rows.column_names, most_rows, seed=0)
    assert list(found) == ["amount", "age", "noise"]
    assert found["noise"] == 0
    whole, without = (average_precision_score(labels, scores) for scores in (score(rows), age))
    assert found["amount"] == pytest.approx(whole - without, abs=0.1)


def test_alerts_are_scored_with_their_reasons_and_other_rows_without(ray_session: None, tmp_path: Path) -> None:
    model, rows = bundle(), table(3_000, seed=9)
    model = replace(model, threshold=float(np.median(trainer_probabilities(model, rows))))
    model.save(tmp_path / "bundle")
    (tmp_path / "in").mkdir()
    pq.write_table(rows, tmp_path / "in/part-0.parquet")
    uri, source, target = (str(tmp_path / name) for name in ("bundle", "in", "out"))

    plain = score_partitions(open_model(uri, NOWHERE), source, target)
    probability = pq.read_table(tmp_path / "out/part-0.parquet")["probability"]
    scored = score_partitions(open_model(uri, NOWHERE, with_reasons=True), source, target)
    assert (scored.alerts, scored.kept) == (plain.alerts, 0)
    written = pq.read_table(tmp_path / "out/part-0.parquet")
    assert written["probability"] == probability
    alert = written["decision"].to_numpy()
    assert 0 < alert.sum() < len(alert)
    names, effects = Explainer.of(model).reasons(rows.filter(pa.array(alert)), 3)
    for number in (1, 2, 3):
        reason, effect = written[f"reason_{number}"], written[f"effect_{number}"]
        assert reason.is_null().to_numpy().tolist() == (~alert).tolist()
        assert reason.drop_null().to_pylist() == names[:, number - 1].tolist()
        np.testing.assert_allclose(effect.drop_null().to_numpy(), effects[:, number - 1], atol=1e-5)
    assert score_partitions(open_model(uri, NOWHERE, with_reasons=True), source, target).kept == 1


def test_a_bare_graph_gives_no_reasons(tmp_path: Path) -> None:
    (write_bundle(tmp_path / "bundle") / "encoder.json").unlink()
    with pytest.raises(SettingsError, match=r"holds no encoder\.json"):
        open_model(str(tmp_path / "bundle"), NOWHERE, with_reasons=True)
