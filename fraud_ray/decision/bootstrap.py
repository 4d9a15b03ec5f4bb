"""Bootstrap intervals of the metrics that a model is judged by, from weights on scores sorted once."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fraud_ray.decision.cuts import Array, Bool, Float64, checked

NAMES = ("auc_roc", "average_precision", "precision", "recall", "f1_score")

Int64 = npt.NDArray[np.int64]


def intervals(
    scores: Array,
    labels: Array,
    threshold: float,
    entity: Array | None,
    repeats: int,
    confidence: float,
    seed: int,
) -> dict[str, tuple[float, float]]:
    """Percentile intervals of NAMES, by name, over resamples of scores (rows,) and labels (rows,), 0 or 1.

    Where entity (rows,) is given, whole entities are drawn, since the transactions of one card are not independent
    (cluster bootstrap); else frauds and legitimate rows are drawn each among themselves (stratified). Resamples in
    which a metric is undefined don't count for it; a metric undefined in all of them has no interval, and there are
    none for rows of a single class.
    Source: Field, Welsh, "Bootstrapping Clustered Data" (2007), for the cluster bootstrap.
    """
    values, fraud = checked(scores, labels)
    if fraud.all() or not fraud.any():
        return {}
    order = np.argsort(-values, kind="stable")
    ranking = Ranking.of(values[order], fraud[order], threshold)
    draws = _draws(fraud[order], None if entity is None else entity[order], repeats, seed)
    return _percentiles([ranking.metrics(weights) for weights in draws], confidence)


def paired_intervals(
    one: tuple[Array, float],
    other: tuple[Array, float],
    labels: Array,
    entity: Array | None,
    repeats: int,
    confidence: float,
    seed: int,
) -> dict[str, tuple[float, float]]:
    """Percentile intervals of the difference, one less the other, of NAMES by name; both see the same resamples.

    one, other: scores (rows,) of the same rows, and the threshold from which on they alert. Resamples are drawn, and
    metrics left out, as `intervals` does. What both models owe to the same rows cancels out, so these intervals are
    much narrower than the two models' own.
    """
    orders, rankings = [], []
    for scores, threshold in (one, other):
        values, fraud = checked(scores, labels)
        order = np.argsort(-values, kind="stable")
        orders.append(order)
        rankings.append(Ranking.of(values[order], fraud[order], threshold))
    differences = []
    for weights in _draws(np.asarray(labels) == 1, entity, repeats, seed):
        first, second = (ranking.metrics(weights[order]) for order, ranking in zip(orders, rankings, strict=True))
        differences.append(first - second)
    return _percentiles(differences, confidence)


def _percentiles(estimates: list[Float64], confidence: float) -> dict[str, tuple[float, float]]:
    """Low and high of each of NAMES over estimates, each (NAMES,), without undefined ones."""
    tails = [(1 - confidence) / 2, (1 + confidence) / 2]
    found = {}
    for name, estimate in zip(NAMES, np.array(estimates).reshape(-1, len(NAMES)).T, strict=True):
        defined = estimate[np.isfinite(estimate)]
        if len(defined):
            low, high = np.quantile(defined, tails)
            found[name] = (float(low), float(high))
    return found


@dataclass(frozen=True)
class Ranking:
    """Where each fraud stands among rows that are sorted from the highest score down.

    frauds: int64 (frauds,), their positions. above, upto: int64 (frauds,), rows that score more than the fraud, and at
    least as much; frauds_above, frauds_upto: likewise of frauds. alerts, hits: rows and frauds at or above the
    threshold.
    """

    frauds: Int64
    above: Int64
    upto: Int64
    frauds_above: Int64
    frauds_upto: Int64
    alerts: int
    hits: int

    @classmethod
    def of(cls, ranked: Float64, fraud: Bool, threshold: float) -> Ranking:
        """ranked: scores (rows,), falling; fraud: (rows,)."""
        rising, positions = -ranked, np.flatnonzero(fraud)
        of_frauds = rising[positions]
        return cls(
            positions,
            np.searchsorted(rising, of_frauds, side="left"),
            np.searchsorted(rising, of_frauds, side="right"),
            np.searchsorted(of_frauds, of_frauds, side="left"),
            np.searchsorted(of_frauds, of_frauds, side="right"),
            int(np.searchsorted(rising, -threshold, side="right")),
            int(np.searchsorted(of_frauds, -threshold, side="right")),
        )

    def metrics(self, weights: Array) -> Float64:
        """NAMES, in their order, of the rows each counted `weights` (rows,) times, whole numbers; NaN where undefined.

        The same figures as scikit-learn's with sample_weight, in one pass over the rows and a few over the frauds.
        """
        seen = np.concatenate([[0], np.cumsum(weights, dtype=np.int64)])
        of_fraud = weights[self.frauds]
        found = np.concatenate([[0], np.cumsum(of_fraud, dtype=np.int64)])
        frauds, legitimate = found[-1], seen[-1] - found[-1]
        false_above = seen[self.above] - found[self.frauds_above]
        false_upto = seen[self.upto] - found[self.frauds_upto]
        precision_at = found[self.frauds_upto] / np.maximum(seen[self.upto], 1)
        alerts, hits = seen[self.alerts], found[self.hits]
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.array(
                [
                    1 - (of_fraud @ (false_above + false_upto)) / (2 * frauds * legitimate),
                    (of_fraud @ precision_at) / frauds,
                    hits / alerts,
                    hits / frauds,
                    2 * hits / (alerts + frauds),
                ]
            )


def _draws(fraud: Bool, entity: Array | None, repeats: int, seed: int) -> Iterator[Array]:
    """How often each row counts, (rows,), in one resample after the other."""
    rng = np.random.default_rng(seed)
    if entity is None:
        return _stratified(fraud, repeats, rng)
    names, of_row = np.unique(entity, return_inverse=True)
    return _clustered(of_row.astype(np.int32), len(names), repeats, rng)


def _stratified(fraud: Bool, repeats: int, rng: np.random.Generator) -> Iterator[Array]:
    weights = np.empty(len(fraud), np.int32)
    sides = [np.flatnonzero(fraud), np.flatnonzero(~fraud)]
    for _ in range(repeats):
        for side in sides:
            weights[side] = _times_drawn(len(side), rng)
        yield weights


def _clustered(entity: Array, entities: int, repeats: int, rng: np.random.Generator) -> Iterator[Array]:
    for _ in range(repeats):
        yield _times_drawn(entities, rng)[entity]


def _times_drawn(count: int, rng: np.random.Generator) -> npt.NDArray[np.int32]:
    """How often each of `count` comes up in as many draws with replacement: one multinomial sample."""
    return np.bincount(rng.integers(count, size=count, dtype=np.int32), minlength=count).astype(np.int32)
