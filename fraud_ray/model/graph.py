"""Encoder, network and calibration as one ONNX graph: raw columns in, calibrated probability out."""

from __future__ import annotations

import copy
import io
import json
import logging
import warnings
from collections.abc import Sequence
from contextlib import redirect_stdout
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import torch
from onnx import TensorProto, compose, helper, numpy_helper
from torch import nn

from fraud_ray.model.calibration import Calibration
from fraud_ray.model.encoder import LIMIT, UNSEEN, Encoder
from fraud_ray.model.network import FraudNetwork, NetworkShape
from fraud_ray.model.piecewise import PiecewiseEncoding

OPSET = 20
DOMAINS = [helper.make_opsetid("", OPSET), helper.make_opsetid("ai.onnx.ml", 4)]
IR_VERSION = 10


def build_graph(encoder: Encoder, network: FraudNetwork, calibration: Calibration, threshold: float) -> onnx.ModelProto:
    """The graph of a fitted model.

    Inputs: one a feature column, by its name, shape (rows, 1): float32 for numeric and boolean ones (NaN: missing),
    string for categorical ones ("": missing). Output: `probability`, float32 (rows,).
    Metadata: `threshold`, and `columns`, a JSON list of {name, kind}.
    """
    encoded = _encoder_graph(encoder)
    scored = _network_graph(network, encoder)
    wires = [(value.name, f"network/{value.name}") for value in scored.graph.input]
    joined = compose.merge_models(encoded, compose.add_prefix(scored, "network/"), wires)
    whole = compose.merge_models(joined, _calibration_graph(calibration), [("network/logit", "logit")])
    helper.set_model_props(
        whole,
        {
            "threshold": repr(float(threshold)),
            "columns": json.dumps([{"name": c.name, "kind": c.kind} for c in encoder.columns]),
        },
    )
    onnx.checker.check_model(whole, full_check=True)
    return whole


def _encoder_graph(encoder: Encoder) -> onnx.ModelProto:
    numeric = [c.name for c in encoder.columns if c.kind != "categorical"]
    position = {name: i for i, name in enumerate(numeric)}
    build = _Builder()
    inputs = [
        helper.make_tensor_value_info(
            c.name, TensorProto.STRING if c.kind == "categorical" else TensorProto.FLOAT, ["rows", 1]
        )
        for c in encoder.columns
    ]
    outputs = []
    if encoder.feature_names:
        # A row a column until the end: onnxruntime is several times as fast along contiguous values as across them.
        flat = build.constant(np.array([1, -1], np.int64))
        raw = build.add("Concat", [build.add("Reshape", [name, flat]) for name in numeric], axis=0)
        missing, present = _missing_and_present(build, raw)
        if encoder.ratios:
            above, below = (
                build.constant(np.array([position[name] for name in names], np.int64))
                for names in zip(*((r.numerator, r.denominator) for r in encoder.ratios), strict=True)
            )
            divided = [build.add("Gather", [raw, above], axis=0), build.add("Gather", [present, below], axis=0)]
            position |= {ratio.name: len(position) + i for i, ratio in enumerate(encoder.ratios)}
            raw = build.add("Concat", [raw, build.add("Div", divided)], axis=0)
            missing, present = _missing_and_present(build, raw)
        blocks = []
        for way in dict.fromkeys(n.way for n in encoder.numeric):
            parts = [n for n in encoder.numeric if n.way == way]
            columns = build.constant(np.array([position[n.column] for n in parts], np.int64))
            values = build.add("Gather", [present, columns], axis=0)
            if way == "signed_log":
                shifted = build.add("Add", [build.add("Abs", [values]), build.constant(np.float32(1))])
                values = build.add("Mul", [build.add("Sign", [values]), build.add("Log", [shifted])])
            centred = build.add("Sub", [values, build.constant(np.array([[n.mean] for n in parts], np.float32))])
            inverse = build.constant(np.array([[np.float32(1 / n.deviation)] for n in parts], np.float32))
            limits = [build.constant(np.float32(-LIMIT)), build.constant(np.float32(LIMIT))]
            limited = build.add("Clip", [build.add("Mul", [centred, inverse]), *limits])
            absent = build.add("Gather", [missing, columns], axis=0)
            blocks.append(build.add("Where", [absent, build.constant(np.float32(0)), limited]))
        if encoder.piecewise:
            blocks.append(_pieces(build, encoder.piecewise, position, missing, present))
        if encoder.indicators:
            columns = build.constant(np.array([position[name] for name in encoder.indicators], np.int64))
            absent = build.add("Gather", [missing, columns], axis=0)
            blocks.append(build.add("Cast", [absent], to=TensorProto.FLOAT))
        build.add("Transpose", [build.add("Concat", blocks, axis=0)], perm=[1, 0], output="features")
        outputs.append(
            helper.make_tensor_value_info("features", TensorProto.FLOAT, ["rows", len(encoder.feature_names)])
        )
    if encoder.categorical:
        codes = []
        for book in encoder.categorical:
            table = book.table()
            codes.append(
                build.add(
                    "LabelEncoder",
                    [book.column],
                    domain="ai.onnx.ml",
                    keys_strings=list(table),
                    values_int64s=list(table.values()),
                    default_int64=UNSEEN,
                )
            )
        build.add("Concat", codes, axis=1, output="codes")
        outputs.append(helper.make_tensor_value_info("codes", TensorProto.INT64, ["rows", len(encoder.categorical)]))
    return build.model("encoder", inputs, outputs)


def _missing_and_present(build: _Builder, raw: str) -> tuple[str, str]:
    """Which numbers are missing, and the numbers with 0 in the place of those."""
    missing = build.add("Or", [build.add("IsNaN", [raw]), build.add("IsInf", [raw])])
    return missing, build.add("Where", [missing, build.constant(np.float32(0)), raw])


def _pieces(
    build: _Builder, encodings: Sequence[PiecewiseEncoding], position: dict[str, int], missing: str, present: str
) -> str:
    """The pieces of all encodings, (pieces, rows), of numbers by their position."""
    by_piece = [part for part in encodings for _ in part.names]
    columns = build.constant(np.array([position[part.column] for part in by_piece], np.int64))
    absent, values = (build.add("Gather", [held, columns], axis=0) for held in (missing, present))
    medians = build.constant(np.array([[part.median] for part in by_piece], np.float32))
    lows = build.constant(np.concatenate([part.lows for part in encodings])[:, None])
    inverse = build.constant(np.concatenate([part.inverse_widths for part in encodings])[:, None])
    beyond = build.add("Sub", [build.add("Where", [absent, medians, values]), lows])
    ends = [build.constant(np.float32(0)), build.constant(np.float32(1))]
    return build.add("Clip", [build.add("Mul", [beyond, inverse]), *ends])


def _network_graph(network: FraudNetwork, encoder: Encoder) -> onnx.ModelProto:
    """The network by torch's exporter, weights inside, with the inputs that the encoder feeds."""
    sample = {
        "features": torch.zeros(2, len(encoder.feature_names)),
        "codes": torch.zeros(2, len(encoder.categorical), dtype=torch.int64),
    }
    used = {name: value for name, value in sample.items() if value.shape[1]}
    exported = _export(network, used)
    exported.ir_version = IR_VERSION
    del exported.opset_import[:]
    exported.opset_import.extend(DOMAINS)
    del exported.metadata_props[:]
    for node in exported.graph.node:
        del node.metadata_props[:]
        node.doc_string = ""
    return exported


def load_exporter() -> None:
    """Has torch import what it exports with; at the first export, that takes longer than the export itself."""
    smallest = FraudNetwork(NetworkShape(1, (), (1,), 0.0))
    _export(smallest, {"features": torch.zeros(2, 1)})


def _export(network: FraudNetwork, sample: dict[str, torch.Tensor]) -> onnx.ModelProto:
    """The network for any number of rows, as the exporter writes it. sample: of the inputs that exist, by name."""
    rows = torch.export.Dim("rows")
    with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
        levels = [logger.level for logger in loggers]
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        program = torch.onnx.export(
            _Exported(network.eval(), tuple(sample)),
            args=tuple(sample.values()),
            input_names=list(sample),
            output_names=["logit"],
            dynamic_shapes=(tuple({0: rows} for _ in sample),),
            opset_version=OPSET,
            dynamo=True,
            verbose=False,
        )
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
    assert program is not None
    exported = onnx.ModelProto()
    exported.CopyFrom(program.model_proto)
    return exported


class _Exported(nn.Module):
    """The network with only the inputs that exist: an ONNX input without columns is none."""

    def __init__(self, network: FraudNetwork, inputs: tuple[str, ...]) -> None:
        super().__init__()
        self.network = copy.deepcopy(network)
        self.inputs = inputs
        *layers, head = self.network.following
        if isinstance(head, nn.Linear):
            self.network.following = nn.ModuleList([*layers, _RowHead(head)])

    def forward(self, *given: torch.Tensor) -> torch.Tensor:
        nothing = given[0].new_zeros((given[0].shape[0], 0))
        read = {"features": nothing, "codes": nothing, **dict(zip(self.inputs, given, strict=True))}
        logits: torch.Tensor = self.network(**read)
        return logits


class _RowHead(nn.Module):
    """The last layer as its weight times all rows: onnxruntime is three times as fast with one row as one column."""

    def __init__(self, head: nn.Linear) -> None:
        super().__init__()
        self.head = head

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return torch.addmm(self.head.bias, self.head.weight, hidden.T).T


def _calibration_graph(calibration: Calibration) -> onnx.ModelProto:
    build = _Builder()
    if calibration.kind == "isotonic":
        x, y = np.array(calibration.knots, np.float64).T
        rises = np.diff(y) / np.diff(x)
        column = build.add("Unsqueeze", ["logit", build.constant(np.array([1], np.int64))])
        beyond = build.add("Sub", [column, build.constant(x[:-1].astype(np.float32))])
        above = build.add("Max", [beyond, build.constant(np.float32(0))])
        within = build.add("Min", [above, build.constant(np.diff(x).astype(np.float32))])
        risen = build.add("MatMul", [within, build.constant(rises.astype(np.float32)[:, None])])
        flat = build.add("Squeeze", [risen, build.constant(np.array([1], np.int64))])
        build.add("Add", [flat, build.constant(np.float32(y[0]))], output="probability")
    else:
        scaled = build.add("Mul", ["logit", build.constant(np.float32(calibration.slope))])
        moved = build.add("Add", [scaled, build.constant(np.float32(calibration.intercept))])
        build.add("Sigmoid", [moved], output="probability")
    logit = helper.make_tensor_value_info("logit", TensorProto.FLOAT, ["rows"])
    probability = helper.make_tensor_value_info("probability", TensorProto.FLOAT, ["rows"])
    return build.model("calibration", [logit], [probability])


class _Builder:
    """Nodes and constants of a graph in the making; names are numbered, and carry the graph's name in the end."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []

    def constant(self, value: npt.NDArray[np.generic] | np.generic) -> str:
        name = f"constant_{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def add(self, operator: str, inputs: list[str], output: str | None = None, **attributes: Any) -> str:
        name = output or f"{operator.lower()}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, inputs, [name], **attributes))
        return name

    def model(
        self, name: str, inputs: list[onnx.ValueInfoProto], outputs: list[onnx.ValueInfoProto]
    ) -> onnx.ModelProto:
        kept = {value.name for value in (*inputs, *outputs)}
        for node in self.nodes:
            for names in (node.input, node.output):
                names[:] = [n if n in kept else f"{name}/{n}" for n in names]
        for constant in self.constants:
            constant.name = f"{name}/{constant.name}"
        graph = helper.make_graph(self.nodes, name, inputs, outputs, self.constants)
        return helper.make_model(graph, opset_imports=DOMAINS, ir_version=IR_VERSION)
