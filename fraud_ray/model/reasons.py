"""The reasons of alerts as columns: reason_1 and effect_1, the column that weighs most and its effect, and so on."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import pyarrow as pa

if TYPE_CHECKING:
    from fraud_ray.model.explanation import Explainer


def reason_fields(count: int) -> tuple[pa.Field, ...]:
    """For each reason the column's name, and what it adds to the log-odds of fraud; both null where nothing alerts."""
    numbers = range(1, count + 1)
    return tuple(
        field
        for number in numbers
        for field in (pa.field(f"reason_{number}", pa.string()), pa.field(f"effect_{number}", pa.float32()))
    )


def reason_columns(explainer: Explainer, table: pa.Table, alert: npt.NDArray[np.bool_], count: int) -> list[pa.Array]:
    """The columns of `reason_fields` for the rows of a table; alert: (rows,). A model of fewer columns has fewer."""
    names, effects = explainer.reasons(table.filter(pa.array(alert)), count)
    # The place of each alert's reasons; null for the others.
    at = pa.array(np.cumsum(alert) - 1, mask=~alert)
    columns: list[pa.Array] = []
    for number in range(count):
        if number < names.shape[1]:
            found = pa.array(names[:, number], pa.string()), pa.array(effects[:, number], pa.float32())
            columns += [values.take(at) for values in found]
        else:
            columns += [pa.nulls(len(alert), pa.string()), pa.nulls(len(alert), pa.float32())]
    return columns
