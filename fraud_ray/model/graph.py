"""Encoder, network and calibration as one ONNX graph: raw columns in, calibrated probability out.

The network is exported once (`scoring_graph`); this graph and the portable one (portable.py) are two ways into it.
"""

from __future__ import annotations

import copy
import io
import json
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
from fraud_ray.model.encoder import (
    CALENDAR,
    DAY,
    EPOCH_WEEKDAY,
    HOUR,
    LIMIT,
    MISSING,
    NO_TIME,
    UNSEEN,
    Encoder,
    FeatureColumn,
)
from fraud_ray.model.network import FraudNetwork

OPSET = 20
ONNX = [helper.make_opsetid("", OPSET)]
TEXTS = helper.make_opsetid("ai.onnx.ml", 4)  # operators that read text
IR_VERSION = 10
# What the names inside begin with. Settings refuse it in a column's name, so that no input clashes with them.
INNER = "fraud_ray/"
NETWORK = f"{INNER}network/"
FEATURES, CODES, LOGIT = f"{INNER}features", f"{INNER}codes", f"{INNER}logit"


def build_graph(encoder: Encoder, scoring: onnx.ModelProto, threshold: float) -> onnx.ModelProto:
    """The graph of a fitted model. scoring: what `scoring_graph` made of its network and calibration.

    Inputs: one a feature column, by its name, shape (rows, 1): float32 for numeric and boolean ones (NaN: missing),
    string for categorical ones ("": missing), int64 for timestamps (microseconds since 1970 in UTC; -2^63: missing).
    Output: `probability`, float32 (rows,). Metadata: `threshold`, and `columns`, a JSON list of {name, kind}, with
    `true` where text stands for it, and `unit` where numbers stand for times.
    """
    return joined(_encoder_graph(encoder), scoring, threshold, columns=[stated(column) for column in encoder.columns])


def scoring_graph(encoder: Encoder, network: FraudNetwork, calibration: Calibration) -> onnx.ModelProto:
    """Encoded rows to `probability`. It reads what there is of FEATURES, float32 (rows, F), and CODES, int64 (rows, C).

    Exporting the network takes seconds.
    """
    exported = compose.add_prefix(_network_graph(network, encoder), NETWORK)
    return compose.merge_models(exported, _calibration_graph(calibration), [(f"{NETWORK}logit", LOGIT)])


def joined(encoded: onnx.ModelProto, scoring: onnx.ModelProto, threshold: float, **lists: list[Any]) -> onnx.ModelProto:
    """A graph that ends in FEATURES and CODES and the one that reads them, as one. lists: what its metadata state."""
    wires = [(f"{INNER}{value.name.removeprefix(NETWORK)}", value.name) for value in scoring.graph.input]
    whole = compose.merge_models(encoded, scoring, wires)
    del whole.opset_import[:]  # merged, it names each domain several times
    whole.opset_import.extend(encoded.opset_import)
    stored = {name: json.dumps(values) for name, values in lists.items()}
    helper.set_model_props(whole, {"threshold": repr(float(threshold)), **stored})
    onnx.checker.check_model(whole, full_check=True)
    return whole


def stated(column: FeatureColumn) -> dict[str, str]:
    """A column as a graph states it."""
    stated = {"name": column.name, "kind": column.kind, "true": column.true, "unit": column.unit}
    return {key: value for key, value in stated.items() if value is not None}


def _encoder_graph(encoder: Encoder) -> onnx.ModelProto:
    build = Builder("encoder", [TEXTS])
    kinds = {"categorical": TensorProto.STRING, "timestamp": TensorProto.INT64}
    inputs = [
        helper.make_tensor_value_info(c.name, kinds.get(c.kind, TensorProto.FLOAT), ["rows", 1])
        for c in encoder.columns
    ]
    outputs = []
    if encoder.feature_names:
        numbers = [build.add("Reshape", [column.name, [1, -1]]) for column in encoder.columns if column.is_number]
        outputs.append(add_features(build, encoder, build.add("Concat", numbers, axis=0)))
    if encoder.categorical:
        codes, calendar = [], _calendar(build, encoder)
        for book in encoder.categorical:
            if book.column in calendar:
                positions, texts = calendar[book.column]
                codes.append(build.add("Gather", [[book.table().get(t, UNSEEN) for t in texts] + [MISSING], positions]))
                continue
            keys, values = zip(*book.table().items(), strict=True)
            table: dict[str, Any] = {"keys_strings": keys, "values_int64s": values, "default_int64": UNSEEN}
            codes.append(build.add("LabelEncoder", [book.column], domain="ai.onnx.ml", **table))
        build.add("Concat", codes, axis=1, output=CODES)
        outputs.append(helper.make_tensor_value_info(CODES, TensorProto.INT64, ["rows", len(encoder.categorical)]))
    return build.model(inputs, outputs)


def add_features(build: Builder, encoder: Encoder, raw: str) -> onnx.ValueInfoProto:
    """Makes FEATURES of the raw numbers and booleans, (columns, rows) in the encoder's order.

    A row a column until the end: onnxruntime is several times as fast along contiguous values as across them.
    """
    features = build.add("Concat", _feature_rows(build, encoder, raw), axis=0)
    build.add("Transpose", [features], perm=[1, 0], output=FEATURES)
    return helper.make_tensor_value_info(FEATURES, TensorProto.FLOAT, ["rows", len(encoder.feature_names)])


def _feature_rows(build: Builder, encoder: Encoder, raw: str) -> list[str]:
    """Blocks of features, (features, rows), which joined are the encoder's in their order."""
    position = {name: i for i, name in enumerate(c.name for c in encoder.columns if c.is_number)}
    missing, present = _missing_and_present(build, raw)
    if encoder.ratios:
        above = build.rows(raw, [position[ratio.numerator] for ratio in encoder.ratios])
        below = build.rows(present, [position[ratio.denominator] for ratio in encoder.ratios])
        position |= {ratio.name: len(position) + i for i, ratio in enumerate(encoder.ratios)}
        raw = build.add("Concat", [raw, build.add("Div", [above, below])], axis=0)
        missing, present = _missing_and_present(build, raw)
    blocks = []
    for way in dict.fromkeys(n.way for n in encoder.numeric):
        parts = [n for n in encoder.numeric if n.way == way]
        columns = [position[n.column] for n in parts]
        values = build.rows(present, columns)
        if way == "signed_log":
            shifted = build.add("Add", [build.add("Abs", [values]), 1.0])
            values = build.add("Mul", [build.add("Sign", [values]), build.add("Log", [shifted])])
        centred = build.add("Sub", [values, [[float(n.mean)] for n in parts]])
        scaled = build.add("Mul", [centred, [[1 / n.deviation] for n in parts]])
        limited = build.add("Clip", [scaled, -LIMIT, LIMIT])
        blocks.append(build.add("Where", [build.rows(missing, columns), 0.0, limited]))
    if encoder.piecewise:
        by_piece = [part for part in encoder.piecewise for _ in part.names]
        columns = [position[part.column] for part in by_piece]
        medians = [[part.median] for part in by_piece]
        filled = build.add("Where", [build.rows(missing, columns), medians, build.rows(present, columns)])
        beyond = build.add("Sub", [filled, np.concatenate([part.lows for part in encoder.piecewise])[:, None]])
        inverse_widths = np.concatenate([part.inverse_widths for part in encoder.piecewise])[:, None]
        blocks.append(build.add("Clip", [build.add("Mul", [beyond, inverse_widths]), 0.0, 1.0]))
    if encoder.indicators:
        absent = build.rows(missing, [position[name] for name in encoder.indicators])
        blocks.append(build.add("Cast", [absent], to=TensorProto.FLOAT))
    return blocks


def _calendar(build: Builder, encoder: Encoder) -> dict[str, tuple[str, tuple[str, ...]]]:
    """Of each derived column the place of a row's value among all, (rows, 1), after the last where the time is missing;
    and all values."""
    found = {}
    for column in (column for column in encoder.columns if column.kind == "timestamp"):
        missing = build.add("Equal", [column.name, NO_TIME])
        hour = build.add("Div", [build.add("Mod", [column.name, DAY]), HOUR])  # Mod is never negative
        day = build.add("Div", [build.add("Mod", [column.name, 7 * DAY]), DAY])
        weekday = build.add("Mod", [build.add("Add", [day, EPOCH_WEEKDAY]), 7])
        for part, place, texts in zip(column.derived, (hour, weekday), CALENDAR.values(), strict=True):
            found[part.name] = build.add("Where", [missing, len(texts), place]), texts
    return found


def _missing_and_present(build: Builder, raw: str) -> tuple[str, str]:
    """Which numbers are missing, and the numbers with 0 in the place of those."""
    missing = build.add("Or", [build.add("IsNaN", [raw]), build.add("IsInf", [raw])])
    return missing, build.add("Where", [missing, 0.0, raw])


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
    exported.opset_import.extend(ONNX)
    del exported.metadata_props[:]
    for node in exported.graph.node:
        del node.metadata_props[:]
        node.doc_string = ""
    return exported


def _export(network: FraudNetwork, sample: dict[str, torch.Tensor]) -> onnx.ModelProto:
    """The network for any number of rows, as the exporter writes it. sample: of the inputs that exist, by name."""
    rows = torch.export.Dim("rows")
    with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
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
    build = Builder("calibration")
    if calibration.kind == "isotonic":
        x, y = np.array(calibration.knots, np.float64).T
        rises = np.diff(y) / np.diff(x)
        column = build.add("Unsqueeze", [LOGIT, [1]])
        above = build.add("Max", [build.add("Sub", [column, x[:-1]]), 0.0])
        within = build.add("Min", [above, np.diff(x)])
        risen = build.add("Squeeze", [build.add("MatMul", [within, rises[:, None]]), [1]])
        build.add("Add", [risen, y[0]], output="probability")
    else:
        # Not Sigmoid: onnxruntime's has steps of 3e-8, and 0 for all that is smaller.
        scaled = build.add("Mul", [LOGIT, -calibration.slope])
        odds_against = build.add("Exp", [build.add("Sub", [scaled, calibration.intercept])])
        build.add("Reciprocal", [build.add("Add", [odds_against, 1.0])], output="probability")
    logit = helper.make_tensor_value_info(LOGIT, TensorProto.FLOAT, ["rows"])
    probability = helper.make_tensor_value_info("probability", TensorProto.FLOAT, ["rows"])
    return build.model([logit], [probability])


class Builder:
    """Nodes and constants of a graph in the making; their names are numbered, and begin with INNER and the graph's."""

    def __init__(self, name: str, domains: Sequence[onnx.OperatorSetIdProto] = ()) -> None:
        self.name = name
        self.domains = [*ONNX, *domains]
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []

    def add(self, operator: str, inputs: Sequence[Any], output: str | None = None, **attributes: Any) -> str:
        """Names the node's output. inputs: names, and constants: numbers, float32 or int64, in arrays or lists."""
        name = output or f"{INNER}{self.name}/{operator.lower()}_{len(self.nodes)}"
        read = [given if isinstance(given, str) else self._constant(np.asarray(given)) for given in inputs]
        self.nodes.append(helper.make_node(operator, read, [name], **attributes))
        return name

    def rows(self, values: str, positions: list[int]) -> str:
        return self.add("Gather", [values, positions], axis=0)

    def _constant(self, value: npt.NDArray[np.generic]) -> str:
        name = f"{INNER}{self.name}/constant_{len(self.constants)}"
        kind = np.float32 if value.dtype.kind == "f" else np.int64
        self.constants.append(numpy_helper.from_array(value.astype(kind), name))
        return name

    def model(self, inputs: list[onnx.ValueInfoProto], outputs: list[onnx.ValueInfoProto]) -> onnx.ModelProto:
        graph = helper.make_graph(self.nodes, self.name, inputs, outputs, self.constants)
        return helper.make_model(graph, opset_imports=self.domains, ir_version=IR_VERSION)
