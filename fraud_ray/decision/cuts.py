"""Every way to cut scores into alerts and the rest: what thresholds, curves and the best possible F1 are read from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from fraud_ray.errors import FraudRayError

Array = npt.NDArray[Any]
Float64 = npt.NDArray[np.float64]
Bool = npt.NDArray[np.bool_]


def checked(scores: Array, labels: Array) -> tuple[Float64, Bool]:
    """Scores (rows,) as float64 and labels (rows,), 0 or 1, as booleans: whether the row is fraud.

    Raises ValueError for no rows or unequal lengths, FraudRayError for scores that are not finite.
    """
    values, fraud = np.asarray(scores, np.float64), np.asarray(labels) == 1
    if values.ndim != 1 or values.shape != fraud.shape or not len(values):
        raise ValueError(f"scores {values.shape} and labels {fraud.shape} must be of the same rows, at least one")
    broken = np.flatnonzero(~np.isfinite(values))
    if len(broken):
        raise FraudRayError(
            f"the model gives {values[broken[0]]} for {len(broken):,} of {len(values):,} holdout rows "
            f"(first at row {broken[0]:,}): training diverged; lower train.learning_rate or raise train.warmup_share"
        )
    return values, fraud


class Holdout(Protocol):
    """What is known of held-out rows, as `data.rows.Rows` says it: each array (rows,), roles and slices by name."""

    @property
    def label(self) -> Array: ...
    @property
    def roles(self) -> Mapping[str, Array]: ...
    @property
    def slices(self) -> Mapping[str, Array]: ...


def days_of(rows: Holdout) -> int:
    """On how many days the rows lie; 0 where they have no timestamp."""
    timestamp = rows.roles.get("timestamp")
    return 0 if timestamp is None else len(np.unique(timestamp.astype("datetime64[D]")))


def reliability(of_row: Array, values: Float64, fraud: Bool) -> tuple[Array, Float64, Array]:
    """Rows, mean probability and frauds, each (groups,), of groups, without empty ones; of_row: (rows,)."""
    rows, probability, frauds = (np.bincount(of_row, weights=weights) for weights in (None, values, fraud))
    filled = rows > 0
    return rows[filled], probability[filled] / rows[filled], frauds[filled]


def equal_bins(values: Float64, bins: int) -> Array:
    """Of which bin, of about equal count, each of values (rows,) is; equal values share one, so a bin may be empty."""
    return np.searchsorted(np.sort(values), values, side="left") * bins // max(len(values), 1)


def fraud_amounts(amounts: Array, fraud: Bool) -> Float64:
    """What missing each row (rows,) costs: its amount where it is fraud; a missing or negative amount costs nothing."""
    values = np.asarray(amounts, np.float64)
    return np.where(fraud & np.isfinite(values) & (values > 0), values, 0.0)


@dataclass(frozen=True)
class Cuts:
    """Cut i alerts on all rows that score at least `scores[i]`; cuts go from the highest distinct score down.

    scores: float64 (cuts,); alerts, hits: int64 (cuts,), the rows at or above the cut and the frauds among them;
    rows, frauds: of all rows.
    """

    scores: Float64
    alerts: npt.NDArray[np.int64]
    hits: npt.NDArray[np.int64]
    rows: int
    frauds: int

    @classmethod
    def of(cls, scores: Array, labels: Array) -> Cuts:
        values, fraud = checked(scores, labels)
        order = np.argsort(-values, kind="stable")
        ranked = values[order]
        ends = np.append(np.flatnonzero(np.diff(ranked)), len(ranked) - 1)
        hits = np.cumsum(fraud[order], dtype=np.int64)
        return cls(ranked[ends], ends + 1, hits[ends], len(ranked), int(hits[-1]))

    @property
    def precision(self) -> Float64:
        return self.hits / self.alerts

    @property
    def f1(self) -> Float64:
        """F1 at each cut; 0 throughout when no row is fraud."""
        return 2 * self.hits / (self.alerts + self.frauds)

    def threshold(self, cut: int) -> float:
        """The threshold halfway to the next lower score, so that rounding elsewhere moves no row across it.

        It is a float32, as the graph's probabilities are; the cut's own score where no float32 lies between the two.
        """
        here = float(self.scores[cut])
        if cut + 1 == len(self.scores):
            return here
        below = float(self.scores[cut + 1])
        halfway = float(np.float32((here + below) / 2))
        return halfway if below < halfway <= here else here
