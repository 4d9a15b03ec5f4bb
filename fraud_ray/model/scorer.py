"""The graph at work: raw columns to probabilities by onnxruntime, without torch and onnx, which load for seconds."""

from __future__ import annotations

import json
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import onnxruntime
import pyarrow as pa
from onnxruntime.capi import onnxruntime_pybind11_state as faults

from fraud_ray.model.encoder import FeatureColumn, categories, numbers

GRAPH, INFO = "model.onnx", "bundle.json"  # files of a bundle


class GraphError(ValueError):
    """Bytes that are no graph, or a graph that does not state its columns and threshold."""


class GraphScorer:
    """Probabilities from a graph as `graph.build_graph` makes it.

    threads: of the session; batch scoring runs many processes with one thread each. Raises GraphError.
    """

    def __init__(self, graph: bytes, threads: int = 1) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        try:
            self.session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
        except (faults.Fail, faults.InvalidGraph, faults.InvalidProtobuf) as fault:
            raise GraphError(str(fault)) from fault
        metadata = self.session.get_modelmeta().custom_metadata_map
        if not {"threshold", "columns"} <= metadata.keys():
            raise GraphError("it does not state its threshold and columns")
        self.threshold = float(metadata["threshold"])
        self.columns = tuple(FeatureColumn(c["name"], c["kind"]) for c in json.loads(metadata["columns"]))

    def score(self, table: pa.Table, batch_rows: int = 1_024) -> npt.NDArray[np.float32]:
        """Calibrated probabilities float32 (rows,) of a table that holds the graph's columns."""
        inputs = graph_inputs(table, self.columns)
        chunks = [
            self.session.run(["probability"], {k: v[start : start + batch_rows] for k, v in inputs.items()})[0]
            for start in range(0, table.num_rows, batch_rows)
        ]
        return np.concatenate(chunks) if chunks else np.empty(0, np.float32)


def graph_inputs(table: pa.Table, columns: Sequence[FeatureColumn]) -> dict[str, npt.NDArray[np.generic]]:
    """The graph's inputs, each of shape (rows, 1), from the columns of a table."""
    inputs: dict[str, npt.NDArray[np.generic]] = {}
    for column in columns:
        if column.kind == "categorical":
            values, positions = categories(table[column.name])
            # One object a distinct value, not a row: rows then differ in a pointer, which is quick to copy.
            inputs[column.name] = np.array(values, object)[positions].reshape(-1, 1)
        else:
            inputs[column.name] = numbers(table[column.name]).reshape(-1, 1)
    return inputs
