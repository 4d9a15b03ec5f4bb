"""The portable graph: numbers and codes in, calibrated probability out, for runtimes that read no text.

Its operators are of the domain ai.onnx alone. A vocabulary beside it says how a client makes the two inputs from raw
columns; the rest (ratios, pieces, missing numbers) is inside, and the network and calibration are model.onnx's own.
"""

from __future__ import annotations

from typing import Any

import onnx
from onnx import TensorProto, helper

from fraud_ray.model.encoder import CALENDAR, DAY, EPOCH_WEEKDAY, HOUR, MISSING, UNSEEN, WEEKDAYS, Encoder
from fraud_ray.model.graph import CODES, Builder, add_features, joined, stated

NUMBERS_INPUT, CODES_INPUT = "numbers", "codes"

# (time + offset) mod period div step, in microseconds since 1970 in UTC, is the place of a value in CALENDAR.
_TIME_RULES = {
    "hour": {"offset_us": 0, "period_us": DAY, "step_us": HOUR},
    "weekday": {"offset_us": EPOCH_WEEKDAY * DAY, "period_us": len(WEEKDAYS) * DAY, "step_us": DAY},
}


def build_portable(encoder: Encoder, scoring: onnx.ModelProto, threshold: float) -> onnx.ModelProto:
    """The portable graph of a fitted model. scoring: what `graph.scoring_graph` made of its network and calibration.

    Inputs: `numbers`, float32 (rows, N), a column each number or boolean (NaN and infinite: missing), and `codes`,
    int64 (rows, C); a model that reads none of the one kind lacks that input. A code that is not in the vocabulary
    counts as unseen. Output: `probability`, float32 (rows,). Metadata: `threshold`, and `numbers` and `codes`, JSON
    lists of the names of their columns in order.
    """
    numbers = [column.name for column in encoder.columns if column.is_number]
    codes = [book.column for book in encoder.categorical]
    build, inputs, outputs = Builder("portable"), [], []
    if numbers:
        inputs.append(helper.make_tensor_value_info(NUMBERS_INPUT, TensorProto.FLOAT, ["rows", len(numbers)]))
    if encoder.feature_names:
        outputs.append(add_features(build, encoder, build.add("Transpose", [NUMBERS_INPUT], perm=[1, 0])))
    if codes:
        inputs.append(helper.make_tensor_value_info(CODES_INPUT, TensorProto.INT64, ["rows", len(codes)]))
        outputs.append(helper.make_tensor_value_info(CODES, TensorProto.INT64, ["rows", len(codes)]))
        is_below = build.add("Less", [CODES_INPUT, list(encoder.code_sizes)])
        is_known = build.add("And", [is_below, build.add("GreaterOrEqual", [CODES_INPUT, 0])])
        build.add("Where", [is_known, CODES_INPUT, UNSEEN], output=CODES)
    return joined(build.model(inputs, outputs), scoring, threshold, numbers=numbers, codes=codes)


def vocabulary(encoder: Encoder, threshold: float) -> dict[str, Any]:
    """How a client makes the portable graph's inputs, as JSON: columns in the order of the inputs, and their codes.

    numbers: {name, kind}, with `true` where text stands for it. codes: {name, column, codes}, the raw column and the
    code of each text; of a time {offset_us, period_us, step_us} too, by which it becomes a whole number whose text has
    a code: (microseconds since 1970 in UTC + offset) mod period div step, mod never negative. missing: the code of an
    absent value and of ""; unseen: the code of any other text. threshold: probability at and above which to alert.
    """
    rules = {
        part.name: {"column": column.name, **_TIME_RULES[name]}
        for column in encoder.columns
        if column.kind == "timestamp"
        for part, name in zip(column.derived, CALENDAR, strict=True)
    }
    codes = []
    for book in encoder.categorical:
        table = book.table()
        if book.column in rules:
            values = CALENDAR[book.column.rpartition(":")[2]]
            table = {str(place): table.get(text, UNSEEN) for place, text in enumerate(values)}
        codes.append({"name": book.column, **rules.get(book.column, {"column": book.column}), "codes": table})
    return {
        "threshold": threshold,
        "numbers": [stated(column) for column in encoder.columns if column.is_number],
        "codes": codes,
        "missing": MISSING,
        "unseen": UNSEEN,
    }
