"""A bundle whose graph is written by hand: small, exact, and known to the tests that load it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pandas as pd
from onnx import TensorProto, helper

THRESHOLD = 0.6
CODES = {"shop": 0.0, "casino": 2.0, "": -1.0}
UNSEEN = 0.5


def write_bundle(folder: Path, slope: float = 0.01, night: str | None = None) -> Path:
    """A new bundle folder, whose graph says sigmoid(slope * amount + night + code of merchant), with 0 for missing.

    night: the text that means true, where the column comes as text.
    """
    nodes = [
        node
        for name in ("amount", "night")
        for node in (
            helper.make_node("IsNaN", [name], [f"{name}_is_missing"]),
            helper.make_node("Where", [f"{name}_is_missing", "zero", name], [f"{name}_filled"]),
        )
    ]
    nodes += [
        helper.make_node(
            "LabelEncoder",
            ["merchant"],
            ["code"],
            domain="ai.onnx.ml",
            keys_strings=list(CODES),
            values_floats=list(CODES.values()),
            default_float=UNSEEN,
        ),
        helper.make_node("Mul", ["amount_filled", "slope"], ["scaled"]),
        helper.make_node("Sum", ["scaled", "night_filled", "code"], ["logit"]),
        helper.make_node("Sigmoid", ["logit"], ["column"]),
        helper.make_node("Reshape", ["column", "flat"], ["probability"]),
    ]
    graph = helper.make_graph(
        nodes,
        "handmade",
        inputs=[
            helper.make_tensor_value_info("amount", TensorProto.FLOAT, ["rows", 1]),
            helper.make_tensor_value_info("night", TensorProto.FLOAT, ["rows", 1]),
            helper.make_tensor_value_info("merchant", TensorProto.STRING, ["rows", 1]),
        ],
        outputs=[helper.make_tensor_value_info("probability", TensorProto.FLOAT, ["rows"])],
        initializer=[
            helper.make_tensor("zero", TensorProto.FLOAT, [], [0.0]),
            helper.make_tensor("slope", TensorProto.FLOAT, [], [slope]),
            helper.make_tensor("flat", TensorProto.INT64, [1], [-1]),
        ],
    )
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("ai.onnx.ml", 4)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    kinds = {"amount": "numeric", "night": "boolean", "merchant": "categorical"}
    columns = [{"name": name, "kind": kind} for name, kind in kinds.items()]
    columns[1] |= {"true": night} if night else {}
    helper.set_model_props(model, {"threshold": repr(THRESHOLD), "columns": json.dumps(columns)})
    folder.mkdir(parents=True)
    onnx.save(model, folder / "model.onnx")
    (folder / "weights.safetensors").write_bytes(b"weights")
    (folder / "encoder.json").write_text("{}")
    (folder / "bundle.json").write_text(json.dumps({"slope": slope}))
    return folder


def expected(amount: float, night: float, merchant: str, slope: float = 0.01) -> float:
    return float(1 / (1 + np.exp(-(slope * amount + night + CODES.get(merchant, UNSEEN)))))


def example() -> pd.DataFrame:
    return pd.DataFrame(
        {"merchant": ["shop", None, "casino"], "amount": [10, 250, 3], "night": [True, None, False], "card": [1, 2, 3]}
    )
