"""The graph and the bundle: what is scored is what was trained."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fraud_ray.model.bundle import Bundle, network_logits, open_graph
from fraud_ray.model.calibration import Calibration
from fraud_ray.model.encoder import Encoder, FeatureColumn, Ratio, Statistics
from fraud_ray.model.graph import INNER, build_graph, scoring_graph
from fraud_ray.model.network import FraudNetwork, NetworkShape
from fraud_ray.model.scorer import GraphScorer
from fraud_ray.registry.opened import open_folder
from fraud_ray.settings import INNER as REFUSED

BOTH = ("standard", "signed_log")
COLUMNS = (
    FeatureColumn("amount", "numeric", (*BOTH, "piecewise_linear")),
    FeatureColumn("balance", "numeric", ("standard",)),
    FeatureColumn("known", "boolean", ("standard",)),
    FeatureColumn("merchant", "categorical"),
    FeatureColumn("country", "categorical"),
    FeatureColumn("at", "timestamp"),
)
RATIOS = (Ratio("amount_by_balance", "amount", "balance", (*BOTH, "piecewise_linear")),)
NETWORKS: dict[str, dict[str, Any]] = {
    "members": {"members": 4},
    "residual": {"network": "residual", "hidden_sizes": (8, 16, 16), "activation": "silu", "layer_norm": True},
    "embeddings": {"embedding_size": 3, "activation": "silu"},
    "sharing members": {"members": 4, "member_weights": "shared", "layer_norm": True},
    "embeddings, sharing members": {"members": 3, "member_weights": "shared", "embedding_size": 2},
    "residual members": {"network": "residual", "members": 3, "layer_norm": True},
}
CALIBRATIONS = {
    "platt": Calibration(slope=1.5, intercept=-1.0),
    "isotonic": Calibration("isotonic", knots=((-3.0, 0.001), (-0.5, 0.1), (0.0, 0.1), (0.2, 0.8), (3.0, 0.99))),
}


def table(rows: int, seed: int = 0) -> pa.Table:
    rng = np.random.default_rng(seed)
    amount = rng.lognormal(3, 2, rows)
    amount[::17] = np.nan
    return pa.table(
        {
            "amount": pa.array(amount, from_pandas=True),
            "balance": rng.normal(-20, 1_000, rows),
            "known": pa.array(rng.choice([True, False, None], rows)),
            "merchant": pa.array(rng.choice(["grocery", "travel", "fuel", None], rows)),
            "country": pa.array(rng.choice(["CA", "FR", "IT"], rows)).dictionary_encode(),
            "at": pa.array(rng.integers(-10, 10, rows) * 10**14 + 1, pa.timestamp("us"), mask=rng.random(rows) < 0.1),
        }
    )


def made_bundle(
    columns: tuple[FeatureColumn, ...], calibration: Calibration, seed: int = 0, **network_of: Any
) -> Bundle:
    data = table(2_000, seed)
    ratios = RATIOS if {"amount", "balance"} <= {column.name for column in columns} else ()
    label = (np.random.default_rng(seed).random(len(data)) < 0.1).astype(np.int8)
    encoder = Encoder.fit(columns, Statistics.of(data, columns, ratios, label), ratios=ratios)
    torch.manual_seed(seed)
    chosen = {"hidden_sizes": (16, 8), "dropout": 0.3, **network_of}
    shape = NetworkShape(len(encoder.feature_names), encoder.code_sizes, **chosen)
    network = FraudNetwork(shape)
    for zeros in filter(None, (network.categories, network.embeddings)):
        torch.nn.init.normal_(zeros.weight)
    return Bundle(encoder, shape, network.state_dict(), calibration, 0.37, {"epochs": 3})


def trainer_probabilities(bundle: Bundle, data: pa.Table) -> np.ndarray:
    return bundle.calibration.apply(network_logits(bundle.network(), *bundle.encoder.apply(data)))


def graph_of(bundle: Bundle) -> GraphScorer:
    return GraphScorer(model_graph(bundle).SerializeToString())


def model_graph(bundle: Bundle) -> onnx.ModelProto:
    scoring = scoring_graph(bundle.encoder, bundle.network(), bundle.calibration)
    return build_graph(bundle.encoder, scoring, bundle.threshold)


@pytest.fixture(scope="module", params=["platt", "isotonic"])
def bundle(request: pytest.FixtureRequest) -> Bundle:
    return made_bundle(COLUMNS, CALIBRATIONS[request.param])


@pytest.fixture(scope="module")
def scorer(bundle: Bundle) -> GraphScorer:
    return graph_of(bundle)


number = st.one_of(st.none(), st.floats(allow_nan=True, allow_infinity=True, width=32))
texts = ["grocery", "travel", "never seen", "", "CA", "Ünïcode", "grocery\0", "grocery" * 20]
category = st.one_of(st.none(), st.sampled_from(texts))
moment = st.one_of(st.none(), st.datetimes())
row = st.tuples(number, number, st.one_of(st.none(), st.booleans()), category, category, moment)


@given(rows=st.lists(row, min_size=1, max_size=30))
@settings(max_examples=100, deadline=None)
def test_the_graph_gives_the_trainers_probabilities_on_any_row(
    bundle: Bundle, scorer: GraphScorer, rows: list[tuple[object, ...]]
) -> None:
    kinds = [pa.float64(), pa.float64(), pa.bool_(), pa.string(), pa.string(), pa.timestamp("us")]
    columns = zip(COLUMNS, zip(*rows, strict=True), kinds, strict=True)
    data = pa.table({column.name: pa.array(values, kind) for column, values, kind in columns})
    with np.errstate(all="ignore"):
        expected = trainer_probabilities(bundle, data)
    assert np.isfinite(expected).all()
    np.testing.assert_allclose(scorer.score(data), expected, atol=1e-5)


def test_a_graph_states_its_threshold_and_columns_and_names_its_inputs_after_them(
    bundle: Bundle, scorer: GraphScorer
) -> None:
    assert scorer.threshold == 0.37
    assert [(c.name, c.kind) for c in scorer.columns] == [(c.name, c.kind) for c in COLUMNS]
    inputs = {value.name: (value.shape, value.type) for value in scorer.session.get_inputs()}
    assert inputs["merchant"] == (["rows", 1], "tensor(string)")
    assert inputs["amount"] == (["rows", 1], "tensor(float)")
    assert inputs["at"] == (["rows", 1], "tensor(int64)")
    assert scorer.score(table(0)).shape == (0,)


def test_columns_may_be_called_like_anything_inside_the_graph() -> None:
    bundle = made_bundle(COLUMNS, CALIBRATIONS["isotonic"])
    graph = model_graph(bundle).graph
    made = {name for node in graph.node for name in node.output} | {tensor.name for tensor in graph.initializer}
    made -= {value.name for value in graph.output}
    assert INNER == REFUSED
    assert all(name.startswith(INNER) for name in made)
    of_parts = {name.removeprefix(INNER) for name in made}
    names = sorted(of_parts | {name.rpartition("/")[2] for name in of_parts} | {"rows", "encoder", "main_graph"})
    assert {"features", "codes", "logit", "constant_0", "encoder/constant_0"} <= set(names)
    columns = tuple(
        FeatureColumn(n, "numeric", BOTH) if i % 4 else FeatureColumn(n, "categorical") for i, n in enumerate(names)
    )
    rng = np.random.default_rng(0)
    data = pa.table({c.name: rng.normal(size=200) if c.encodings else rng.choice(["a", "b"], 200) for c in columns})
    encoder = Encoder.fit(columns, Statistics.of(data, columns))
    shape = NetworkShape(len(encoder.feature_names), encoder.code_sizes, (4,), 0.0)
    odd = Bundle(encoder, shape, FraudNetwork(shape).state_dict(), bundle.calibration, 0.5, {})
    np.testing.assert_allclose(graph_of(odd).score(data), trainer_probabilities(odd, data), atol=1e-5)


def test_a_bundle_is_read_back_as_it_was_saved_and_holds_no_pickle(bundle: Bundle, tmp_path: Path) -> None:
    bundle.with_results({"f1_score": 0.9}, {"run": "r"}).save(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        *("bundle.json", "encoder.json", "model.onnx", "portable.onnx", "vocabulary.json", "weights.safetensors")
    ]
    back = Bundle.load(tmp_path)
    assert (back.encoder, back.shape, back.calibration, back.threshold) == (
        *(bundle.encoder, bundle.shape, bundle.calibration, bundle.threshold),
    )
    data = table(300, seed=9)
    np.testing.assert_array_equal(trainer_probabilities(back, data), trainer_probabilities(bundle, data))
    np.testing.assert_allclose(open_graph(tmp_path).score(data), trainer_probabilities(back, data), atol=1e-5)
    stored = onnx.load(tmp_path / "model.onnx")
    assert all(not tensor.external_data for tensor in stored.graph.initializer)
    assert (
        open_folder(str(tmp_path), tmp_path).note == "not from a registry; its files are those that bundle.json names"
    )


def test_the_shape_of_a_bundle_made_before_there_were_other_networks_is_read() -> None:
    stored = {"features": 4, "code_sizes": [3], "hidden_sizes": [16, 8], "dropout": 0.1, "members": 2}
    assert NetworkShape.from_json(stored) == NetworkShape(4, (3,), (16, 8), 0.1, 2)


def test_a_bundle_of_another_format_is_refused(bundle: Bundle, tmp_path: Path) -> None:
    bundle.save(tmp_path)
    info = json.loads((tmp_path / "bundle.json").read_text())
    (tmp_path / "bundle.json").write_text(json.dumps({**info, "format": 99}))
    with pytest.raises(ValueError, match="format 99"):
        Bundle.load(tmp_path)


def test_a_row_scores_the_same_bits_alone_and_among_others(tmp_path):
    made_bundle(COLUMNS, Calibration(), members=2).save(tmp_path)
    scorer = open_graph(tmp_path)
    for rows in (5, 7, 100, 2_047, 2_050):
        data = table(rows)
        together = scorer.score(data)
        for row in {*range(5), *range(rows - 5, rows)}:
            assert scorer.score(data.slice(row, 1)).tobytes() == together[row : row + 1].tobytes()
