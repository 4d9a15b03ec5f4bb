"""Points of the curves that a report draws: columns of plain numbers, at most 200 points each."""

from __future__ import annotations

import numpy as np

from fraud_ray.decision.cuts import Array, Cuts, Float64, checked
from fraud_ray.decision.metrics import calibration_bins

MAX_POINTS = 200

Points = dict[str, list[float]]


def roc_points(scores: Array, labels: Array) -> Points:
    """`false_positive_rate` and `recall`, from (0, 0) to (1, 1). Raises ValueError for a single class."""
    cuts = _of_two_classes(scores, labels)
    recall, false_positive_rate = _rates(cuts)
    kept = _spread(recall + false_positive_rate, MAX_POINTS - 1)
    return {
        "false_positive_rate": [0.0, *false_positive_rate[kept].tolist()],
        "recall": [0.0, *recall[kept].tolist()],
    }


def precision_recall_points(scores: Array, labels: Array) -> Points:
    """`recall`, `precision` and the `threshold` that gives them, from the highest score down.

    Raises ValueError for a single class.
    """
    cuts = _of_two_classes(scores, labels)
    recall, false_positive_rate = _rates(cuts)
    kept = _spread(recall + false_positive_rate, MAX_POINTS)
    return {
        "recall": recall[kept].tolist(),
        "precision": cuts.precision[kept].tolist(),
        "threshold": cuts.scores[kept].tolist(),
    }


def calibration_points(probabilities: Array, labels: Array, bins: int = 10) -> Points:
    """`probability` (mean), `fraud_rate` and `rows` of bins of equal count."""
    rows, probability, fraud_rate = calibration_bins(probabilities, labels, bins)
    return {"probability": probability.tolist(), "fraud_rate": fraud_rate.tolist(), "rows": rows.tolist()}


def histogram_points(probabilities: Array, labels: Array, bins: int = 50) -> Points:
    """`low` and `high` edge of equal steps from 0 to 1, and the `legitimate` and `fraud` rows in each."""
    values, fraud = checked(probabilities, labels)
    edges = np.linspace(0, 1, bins + 1)
    legitimate, frauds = (np.histogram(values[side], edges)[0] for side in (~fraud, fraud))
    return {
        "low": edges[:-1].tolist(),
        "high": edges[1:].tolist(),
        "legitimate": legitimate.tolist(),
        "fraud": frauds.tolist(),
    }


def _of_two_classes(scores: Array, labels: Array) -> Cuts:
    cuts = Cuts.of(scores, labels)
    if cuts.frauds in (0, cuts.rows):
        raise ValueError(f"a curve needs frauds and legitimate rows; all {cuts.rows:,} rows are of one class")
    return cuts


def _rates(cuts: Cuts) -> tuple[Float64, Float64]:
    return cuts.hits / cuts.frauds, (cuts.alerts - cuts.hits) / (cuts.rows - cuts.frauds)


def _spread(progress: Float64, points: int) -> Array:
    """Indices of at most `points` entries of a rising array, evenly apart in its values; first and last included."""
    if len(progress) <= points:
        return np.arange(len(progress))
    wanted = np.linspace(progress[0], progress[-1], points)
    return np.unique(np.append(np.searchsorted(progress, wanted[:-1]), len(progress) - 1))
