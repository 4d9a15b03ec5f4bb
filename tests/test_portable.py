"""The portable graph, as its users meet it: by the examples of cluster/MODELS.md alone, in onnxruntime and OpenVINO."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pyarrow as pa
import pytest
import torch
from scipy.special import expit

from fraud_ray.model.bundle import Bundle, open_graph
from fraud_ray.model.encoder import UNSEEN
from tests.test_graph import CALIBRATIONS, COLUMNS, NETWORKS, made_bundle, table, trainer_probabilities

ROWS = 10_000
PAGE = (Path(__file__).parents[1] / "cluster/MODELS.md").read_text()
RAW, PORTABLE, OPENVINO = re.findall(r"^```python\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)

MODELS: dict[str, dict[str, Any]] = {
    "plain, isotonic": {"calibration": CALIBRATIONS["isotonic"]},
    **NETWORKS,
    "numbers alone": {"columns": COLUMNS[:1]},
    "categories alone": {"columns": COLUMNS[3:4]},
    "times alone": {"columns": COLUMNS[5:]},
}


def odd_rows() -> pa.Table:
    """Rows with what the fit rows had, and numbers, categories and times that they did not have."""
    rng = np.random.default_rng(6)
    data = table(ROWS, seed=6)
    strange = [np.inf, -np.inf, 1e39, -1e30, 16_777_217.0, 0.1, -0.0, None]
    amounts = np.where(rng.random(ROWS) < 0.2, rng.choice(np.array(strange, object), ROWS), data["amount"].to_pylist())
    merchants = rng.choice(np.array(["grocery", "never seen", "", None, "Ünïcode", "fuel"], object), ROWS)
    balances = np.where(rng.random(ROWS) < 0.1, rng.choice([0.0, np.nan], ROWS), data["balance"])
    for name, values, kind in (
        ("amount", amounts, pa.float64()),
        ("balance", balances, pa.float64()),
        ("merchant", merchants, pa.string()),
    ):
        data = data.set_column(data.column_names.index(name), name, pa.array(values.tolist(), kind))
    return data


def as_a_client_has_them(data: pa.Table) -> list[dict[str, Any]]:
    """Plain values of each row by column; a time in microseconds."""
    return data.set_column(5, "at", data["at"].cast(pa.int64())).to_pylist()


def example(text: str, folder: Path, **given: Any) -> dict[str, Any]:
    """What an example of the page leaves, run in a bundle's folder."""
    names = dict(given)
    with pytest.MonkeyPatch.context() as inside, np.errstate(over="ignore"):
        inside.chdir(folder)
        exec(text, names)
    return names


@pytest.mark.parametrize("named", MODELS)
def test_trainer_graph_and_portable_graph_agree_in_onnxruntime_and_openvino(named: str, tmp_path: Path) -> None:
    bundle = made_bundle(**{"columns": COLUMNS, "calibration": CALIBRATIONS["platt"], **MODELS[named]})
    bundle.save(tmp_path)
    data = odd_rows()
    with np.errstate(all="ignore"):
        expected, scored = trainer_probabilities(bundle, data), open_graph(tmp_path).score(data)
    assert np.isfinite(expected).all()
    np.testing.assert_allclose(scored, expected, atol=1e-5)
    rows = as_a_client_has_them(data)
    raw, portable = example(RAW, tmp_path, rows=rows), example(PORTABLE, tmp_path, rows=rows)
    in_openvino = example(OPENVINO, tmp_path, inputs=portable["inputs"])
    for found in (raw, portable, in_openvino):
        np.testing.assert_allclose(found["probability"], expected, atol=1e-5)
    np.testing.assert_array_equal(raw["alert"], raw["probability"] >= 0.37)
    np.testing.assert_array_equal(portable["alert"], portable["probability"] >= 0.37)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle of a network of members whose weights are so large that many probabilities are tiny."""
    folder = tmp_path_factory.mktemp("saved")
    bundle = made_bundle(COLUMNS, CALIBRATIONS["platt"], members=4)
    replace(bundle, weights={name: 6 * weight for name, weight in bundle.weights.items()}).save(folder)
    return folder


def test_the_portable_graph_has_operators_of_one_domain_and_states_its_columns(saved: Path) -> None:
    graph = onnx.load(saved / "portable.onnx")
    assert [imported.domain for imported in graph.opset_import] == [""]
    assert {node.domain for node in graph.graph.node} == {""}
    session = onnxruntime.InferenceSession(saved / "portable.onnx")
    assert {given.name: (given.shape, given.type) for given in session.get_inputs()} == {
        "numbers": (["rows", 3], "tensor(float)"),
        "codes": (["rows", 4], "tensor(int64)"),
    }
    stated = session.get_modelmeta().custom_metadata_map
    assert float(stated["threshold"]) == 0.37
    vocabulary = json.loads((saved / "vocabulary.json").read_text())
    assert json.loads(stated["numbers"]) == ["amount", "balance", "known"] == [c["name"] for c in vocabulary["numbers"]]
    names = ["merchant", "country", "at:hour", "at:weekday"]
    assert json.loads(stated["codes"]) == names == [column["name"] for column in vocabulary["codes"]]


def test_a_code_that_is_not_in_the_vocabulary_is_unseen(saved: Path) -> None:
    session = onnxruntime.InferenceSession(saved / "portable.onnx")
    wrong = np.array([[-1, 99, 2**40, -(2**40)], [UNSEEN] * 4])
    of_wrong, of_unseen = session.run(None, {"numbers": np.zeros((2, 3), np.float32), "codes": wrong})[0]
    assert of_wrong == of_unseen


def test_both_graphs_keep_small_probabilities(saved: Path) -> None:
    bundle, data = Bundle.load(saved), table(ROWS, seed=6)
    features, codes = bundle.encoder.apply(data)
    with torch.no_grad():
        logits = bundle.network().double()(torch.tensor(features).double(), torch.tensor(codes)).numpy()
    exact = expit(bundle.calibration.slope * logits + bundle.calibration.intercept)
    small = (exact < 1e-7) & (exact > 1e-37)
    assert small.sum() > 100
    portable = example(PORTABLE, saved, rows=as_a_client_has_them(data))
    in_openvino = example(OPENVINO, saved, inputs=portable["inputs"])
    for probability in (open_graph(saved).score(data), portable["probability"], in_openvino["probability"]):
        np.testing.assert_allclose(probability[small], exact[small], rtol=1e-3)
        np.testing.assert_allclose(probability, exact, atol=1e-5)
