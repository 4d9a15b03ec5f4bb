"""The registered model as MLflow runs it: a table of raw columns in, probability and decision out.

MLflow logs this file with the graph beside it (a model from code: nothing is pickled), and runs it where only mlflow,
numpy, pandas and onnxruntime are installed. It therefore imports nothing of this package, and nothing imports it.
The environment variable FRAUD_RAY_SCORER_THREADS limits the threads that one row batch is scored on.
"""

from __future__ import annotations

import json
import os
from typing import Any

import mlflow
import numpy as np
import onnxruntime
import pandas as pd
from mlflow.pyfunc import PythonModel


class Scorer(PythonModel):
    """Scores raw columns with one ONNX graph.

    Columns may come in any order and in any type that pandas reads them as: numbers and booleans of any width, text
    or categories, times of any zone (UTC where they have none) or as text, None, NaN or NA where a value is missing.
    Columns that the graph does not read are ignored.
    """

    def load_context(self, context: Any) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = int(os.environ.get("FRAUD_RAY_SCORER_THREADS", "0"))  # 0: one a core
        options.log_severity_level = 3
        graph = onnxruntime.InferenceSession(
            context.artifacts["graph"], sess_options=options, providers=["CPUExecutionProvider"]
        )
        stored = graph.get_modelmeta().custom_metadata_map
        self.graph = graph
        self.threshold = float(stored["threshold"])
        self.columns: dict[str, dict[str, str]] = {column["name"]: column for column in json.loads(stored["columns"])}

    def predict(self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None) -> pd.DataFrame:
        """`probability` (float32) and `decision` (whether it reaches the threshold), with the rows' own index.

        Raises ValueError that names the columns which are missing, or hold what is no number or no time.
        """
        missing = [name for name in self.columns if name not in model_input.columns]
        if missing:
            raise ValueError(f"the model reads columns that the table does not have: {', '.join(missing)}")
        inputs = {name: _input(model_input[name], column).reshape(-1, 1) for name, column in self.columns.items()}
        (probability,) = self.graph.run(["probability"], inputs)
        return pd.DataFrame(
            {"probability": probability, "decision": probability >= self.threshold}, index=model_input.index
        )


def _input(values: pd.Series, column: dict[str, str]) -> np.ndarray:
    if column["kind"] == "categorical":
        return _strings(values)
    if column["kind"] == "timestamp":
        return _times(values, column.get("unit"))
    if "true" not in column:
        return _numbers(values)
    texts = _strings(values)
    return np.where(texts == "", np.float32(np.nan), (texts == column["true"]).astype(np.float32))


def _numbers(column: pd.Series) -> np.ndarray:
    """float32 (rows,), NaN where a value is missing."""
    try:
        return column.to_numpy(np.float32, na_value=np.nan)
    except (TypeError, ValueError) as fault:
        raise ValueError(f"column '{column.name}' holds what is no number: {fault}") from fault


def _times(column: pd.Series, unit: str | None) -> np.ndarray:
    """int64 microseconds since 1970 in UTC (rows,), the least of all where a value is missing."""
    present = column.dropna()
    held = pd.api.types.infer_dtype(present) if len(present) else "nothing"
    is_number = held in {"integer", "floating", "mixed-integer-float", "decimal", "boolean"}
    try:
        if is_number and unit is None:
            raise ValueError("numbers, and the model knows no unit of them")
        form = "ISO8601" if held == "string" else None
        read = pd.to_datetime(column, utc=True, unit=unit if is_number else None, format=form)
        read = read.dt.tz_localize(None).dt.as_unit("us")  # which numpy would let wrap around
        return read.to_numpy("datetime64[us]", na_value=np.datetime64("NaT")).view(np.int64)
    except (TypeError, ValueError) as fault:
        told = str(fault).splitlines()[0]
        raise ValueError(f"column '{column.name}' holds what is no time: {told}") from fault


def _strings(column: pd.Series) -> np.ndarray:
    """str objects (rows,), the empty string where a value is missing."""
    values = column.astype(object).to_numpy(copy=True)
    values[pd.isna(values)] = ""
    if pd.api.types.infer_dtype(values) != "string":
        values = np.array([_text(value) for value in values], object)
    return values


def _text(value: Any) -> str:
    """A category as Arrow casts it to text: pandas makes 5.0 of 5 where other rows are missing."""
    if isinstance(value, bool | np.bool_):
        return "true" if value else "false"
    if isinstance(value, float | np.floating) and float(value).is_integer():
        return str(int(value))
    return str(value)


mlflow.models.set_model(Scorer())
