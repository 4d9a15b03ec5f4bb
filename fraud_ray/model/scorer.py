"""The graph at work: raw columns to probabilities by onnxruntime, without torch and onnx, which load for seconds."""

from __future__ import annotations

import json
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import onnxruntime
import pyarrow as pa

from fraud_ray.model.encoder import FeatureColumn, categories, numbers, times

FORMAT = 1  # of a bundle
GRAPH, INFO = "model.onnx", "bundle.json"  # files of a bundle
PORTABLE, VOCABULARY = "portable.onnx", "vocabulary.json"
FILES = "files"  # in INFO: the SHA-256 of each of the others
WIDEST = 64  # bytes of a category that are held a row
BATCH_ROWS = 2_048
WHOLE = 8  # rows that a batch is filled up to a multiple of


Inputs = dict[str, npt.NDArray[np.generic]]


class GraphError(ValueError):
    """Bytes that are no graph, or a graph that does not state its columns and threshold."""


class GraphScorer:
    """Probabilities from a graph as `graph.build_graph` makes it. Raises GraphError.

    On one thread: batch scoring runs many processes.
    """

    def __init__(self, graph: bytes) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.log_severity_level = 3
        try:
            self.session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
        except Exception as fault:  # onnxruntime documents no narrower class for what it cannot load
            raise GraphError(str(fault)) from fault
        metadata = self.session.get_modelmeta().custom_metadata_map
        if not {"threshold", "columns"} <= metadata.keys():
            raise GraphError("it does not state its threshold and columns")
        self.threshold = float(metadata["threshold"])
        self.columns = tuple(FeatureColumn(**column) for column in json.loads(metadata["columns"]))

    def score(self, table: pa.Table) -> npt.NDArray[np.float32]:
        """Calibrated probabilities float32 (rows,) of a table that holds the graph's columns."""
        return self.run(graph_inputs(table, self.columns), table.num_rows)

    def run(self, inputs: Inputs, rows: int) -> npt.NDArray[np.float32]:
        """Calibrated probabilities float32 (rows,) of the graph's inputs, each of shape (rows, 1).

        A row's bits do not depend on those beside it: kernels compute several rows at a time and what is left at the
        end by another formula, so a batch is filled up to where nothing is left.
        """
        chunks = []
        for start in range(0, rows, BATCH_ROWS):
            stop = min(start + BATCH_ROWS, rows)
            chunk = inputs if rows <= BATCH_ROWS else {name: of[start:stop] for name, of in inputs.items()}
            if (stop - start) % WHOLE:
                filled = np.minimum(np.arange(-(-(stop - start) // WHOLE) * WHOLE), stop - start - 1)
                chunk = {name: of[filled] for name, of in chunk.items()}
            chunks.append(self.session.run(["probability"], chunk)[0][: stop - start])
        return chunks[0] if len(chunks) == 1 else np.concatenate([*chunks, np.empty(0, np.float32)])


def graph_inputs(table: pa.Table, columns: Sequence[FeatureColumn]) -> Inputs:
    """The graph's inputs, each of shape (rows, 1), from the columns of a table."""
    inputs: Inputs = {}
    for column in columns:
        if column.kind == "categorical":
            values, positions = categories(table[column.name])
            inputs[column.name] = text_input(values)[positions].reshape(-1, 1)
        elif column.kind == "timestamp":
            inputs[column.name] = times(table[column.name]).reshape(-1, 1)
        else:
            inputs[column.name] = numbers(table[column.name], column.true).reshape(-1, 1)
    return inputs


def text_input(values: Sequence[str]) -> npt.NDArray[np.generic]:
    """Strings (rows,) as onnxruntime reads them fastest: bytes that end with a zero; objects where that is no good."""
    encoded = [value.encode() for value in values]
    width = max(map(len, encoded), default=0) + 1
    if width > WIDEST or any(b"\0" in value for value in encoded):
        return np.array(values, object)
    return np.array(encoded, f"S{width}")
