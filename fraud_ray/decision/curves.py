"""Points of the curves that a report draws: columns of plain numbers, at most 200 points each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy.stats import binomtest

from fraud_ray.decision.cuts import Array, Bool, Cuts, Float64, checked, equal_bins, reliability
from fraud_ray.values import Value

MAX_POINTS = 200

Points = dict[str, list[float]]
IntervalMethod = Literal["wilson", "exact"]


@dataclass(frozen=True)
class RankingCurves(Value):
    """What an order of the rows is worth at every threshold."""

    roc: Points
    precision_recall: Points
    alerts: Points


@dataclass(frozen=True)
class Curves(Value):
    """All curves of one model on one holdout; aggregates only.

    best_possible: of the true probability on the same rows, None where it is not declared. days: on which the rows
    lie, None where they have no timestamp. amount_alone: of the amount as the score, None where none is declared;
    champion: None where it was not compared.
    """

    model: RankingCurves
    best_possible: RankingCurves | None
    calibration: Points
    alert_calibration: Points
    histogram: Points
    days: int | None
    amount_alone: RankingCurves | None = None
    champion: RankingCurves | None = None

    @classmethod
    def of(
        cls,
        probabilities: Array,
        labels: Array,
        threshold: float,
        true_probability: Array | None,
        days: int | None,
        confidence: float,
        amounts: Array | None = None,
    ) -> Curves:
        """The curves of probabilities (rows,) and labels (rows,), 0 or 1. Raises ValueError for a single class.

        The alerts' curves end at four times the alerts of the threshold, or at two for every fraud where that is more.
        """
        alerts, frauds = (int(np.count_nonzero(which)) for which in (probabilities >= threshold, labels == 1))
        most_alerts = min(len(labels), max(4 * alerts, 2 * frauds))
        return cls(
            ranking_curves(probabilities, labels, most_alerts),
            None if true_probability is None else ranking_curves(true_probability, labels, most_alerts),
            calibration_points(probabilities, labels, confidence=confidence),
            alert_calibration_points(probabilities, labels, threshold),
            histogram_points(probabilities, labels),
            days,
            None if amounts is None else ranking_curves(_ranks(amounts), labels, most_alerts),
        )


def ranking_curves(scores: Array, labels: Array, most_alerts: int) -> RankingCurves:
    """The curves of scores (rows,) and labels (rows,), 0 or 1. Raises ValueError for a single class.

    roc: `false_positive_rate` and `recall`, from (0, 0) to (1, 1). precision_recall: `recall`, `precision` and the
    `threshold` that gives them, from the highest score down. alerts: `alerts`, the `frauds` caught by them and the
    `threshold` that gives both, up to `most_alerts` alerts; the first cut is kept also where it alone gives more.
    """
    cuts = Cuts.of(scores, labels)
    if cuts.frauds in (0, cuts.rows):
        raise ValueError(f"a curve needs frauds and legitimate rows; all {cuts.rows:,} rows are of one class")
    recall, false_positive_rate = cuts.hits / cuts.frauds, (cuts.alerts - cuts.hits) / (cuts.rows - cuts.frauds)
    steps, kept = (spread(recall + false_positive_rate, points) for points in (MAX_POINTS - 1, MAX_POINTS))
    within = max(1, int(np.searchsorted(cuts.alerts, most_alerts, side="right")))
    alerts, frauds = cuts.alerts[:within], cuts.hits[:within]
    few = spread(alerts / alerts[-1] + frauds / max(frauds[-1], 1), MAX_POINTS)
    return RankingCurves(
        roc={
            "false_positive_rate": [0.0, *false_positive_rate[steps].tolist()],
            "recall": [0.0, *recall[steps].tolist()],
        },
        precision_recall={
            "recall": recall[kept].tolist(),
            "precision": cuts.precision[kept].tolist(),
            "threshold": cuts.scores[kept].tolist(),
        },
        alerts={
            "alerts": alerts[few].tolist(),
            "frauds": frauds[few].tolist(),
            "threshold": cuts.scores[few].tolist(),
        },
    )


def calibration_points(probabilities: Array, labels: Array, bins: int = 10, confidence: float = 0.95) -> Points:
    """`probability` (mean), `fraud_rate` with its interval `low` to `high`, and `rows`, of steps from 0 to 1.

    Steps of equal width, where the calibration error has bins of equal count: with rare fraud all but one of those lie
    at 0, and the probabilities near a threshold share the last. Empty steps are left out.
    """
    values, fraud = checked(probabilities, labels)
    return _reliability(np.minimum((values * bins).astype(np.int64), bins - 1), values, fraud, confidence, "wilson")


def alert_calibration_points(probabilities: Array, labels: Array, threshold: float, bins: int = 5) -> Points:
    """The same of the rows at or above a threshold, in bins of equal count by score, lowest first; empty without any.

    Intervals are of 99 %, since all bins are looked at together, and exact, since the highest bins are close to 1,
    where Wilson's leaves out what one miss cannot tell from 1. Equal probabilities share a bin.
    """
    values, fraud = checked(probabilities, labels)
    alert = values >= threshold
    values, fraud = values[alert], fraud[alert]
    return _reliability(equal_bins(values, bins), values, fraud, 0.99, "exact")


def _reliability(of_row: Array, values: Float64, fraud: Bool, confidence: float, method: IntervalMethod) -> Points:
    """Mean probability and fraud rate, with its interval, of the rows (rows,) of each group; empty ones left out."""
    rows, probability, frauds = reliability(of_row, values, fraud)
    intervals = [share_interval(int(k), int(n), confidence, method) for k, n in zip(frauds, rows, strict=True)]
    return {
        "probability": probability.tolist(),
        "fraud_rate": (frauds / rows).tolist(),
        "low": [low for low, _ in intervals],
        "high": [high for _, high in intervals],
        "rows": rows.tolist(),
    }


def share_interval(hits: int, total: int, confidence: float, method: IntervalMethod = "wilson") -> tuple[float, float]:
    """The interval of the share that `hits` of `total` independent draws estimate; total is at least 1.

    Source: Wilson, "Probable Inference, the Law of Succession, and Statistical Inference" (1927); exact: Clopper,
    Pearson, "The Use of Confidence or Fiducial Limits Illustrated in the Case of the Binomial" (1934).
    """
    interval = binomtest(hits, total).proportion_ci(confidence, method)
    return float(interval.low), float(interval.high)


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


def _ranks(amounts: Array) -> Array:
    """The order of amounts (rows,) without the amounts themselves; a missing one is as 0."""
    return np.unique(np.nan_to_num(np.asarray(amounts, np.float64)), return_inverse=True)[1]


def spread(progress: Float64, points: int) -> Array:
    """Indices of at most `points` entries of a rising array, evenly apart in its values; first and last included."""
    if len(progress) <= points:
        return np.arange(len(progress))
    wanted = np.linspace(progress[0], progress[-1], points)
    return np.unique(np.append(np.searchsorted(progress, wanted[:-1]), len(progress) - 1))
