"""Bootstrap intervals of a model's metrics, and of two models' differences, from weights on scores sorted once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain

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
    draws = _draws([fraud[order]], None if entity is None else [entity[order]], repeats, seed)
    return _percentiles([ranking.metrics(weights) for (weights,) in draws], confidence)


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
class Difference:
    """By how much a model's metric exceeds another's, the same rows drawn for both.

    error: standard deviation over the draws; low, high: the interval.
    """

    value: float
    error: float
    low: float
    high: float

    @property
    def verdict(self) -> str:
        """What the interval says of the model that is compared with the other."""
        return "lead" if self.low > 0 else "behind" if self.high < 0 else "within noise"


@dataclass(frozen=True)
class Predictions:
    """What a model says of a holdout: probabilities (rows,), and the threshold from which on it alerts."""

    probabilities: Array
    threshold: float


# Of a model that was fitted with several seeds: for each, an entry a holdout.
Fits = Sequence[Sequence[Predictions]]


def differences(
    model: Fits,
    others: Mapping[str, Fits],
    labels: Sequence[Array],
    entities: Sequence[Array] | None,
    repeats: int,
    confidence: float,
    seed: int,
) -> dict[str, dict[str, Difference]]:
    """By how much a model's NAMES, each the mean over seeds and holdouts, exceed those of others; by name of the other.

    labels and entities: one entry a holdout, (rows,), labels 0 or 1. Whole entities are drawn where they are given, for
    all holdouts at once, since a card's transactions of two weeks are no more independent than those of one; else rows,
    stratified. Every model is measured on the same draws, so that what both owe to the same rows cancels out. The seeds
    of each model are drawn anew in each, since another seed would have given another model. Metrics are left out as
    `intervals` does.
    """
    frauds = [checked(one.probabilities, label)[1] for one, label in zip(model[0], labels, strict=True)]
    rankings = [[_rankings(fit, frauds) for fit in fits] for fits in (model, *others.values())]
    whole = [np.ones(len(fraud), np.int32) for fraud in frauds]
    # A draw at a time: all of them together would be as many copies of the rows.
    measured = [
        [[_mean(ranked, weights) for ranked in fits] for fits in rankings]
        for weights in chain([whole], _draws(frauds, entities, repeats, seed))
    ]
    rng = np.random.default_rng([seed, 1])
    by_model = [_over_seeds(np.array(of_model), rng) for of_model in zip(*measured, strict=True)]
    found = {}
    for position, other in enumerate(others, 1):
        value, *drawn_values = by_model[0] - by_model[position]
        values, errors = (dict(zip(NAMES, of.tolist(), strict=True)) for of in (value, np.nanstd(drawn_values, axis=0)))
        found[other] = {
            name: Difference(values[name], errors[name], low, high)
            for name, (low, high) in _percentiles(drawn_values, confidence).items()
        }
    return found


def _over_seeds(measured: Float64, rng: np.random.Generator) -> Float64:
    """(1 + draws, NAMES) of (1 + draws, seeds, NAMES): the mean over all seeds, then over as many drawn of them."""
    count, seeds, _ = measured.shape
    of_seed = np.vstack([np.arange(seeds), rng.integers(seeds, size=(count - 1, seeds))])
    return np.take_along_axis(measured, of_seed[:, :, None], axis=1).mean(axis=1)


def _rankings(scored: Sequence[Predictions], frauds: Sequence[Bool]) -> list[tuple[Array, Ranking]]:
    """For each holdout the order of its rows from the highest score down, and the ranking."""
    found = []
    for one, fraud in zip(scored, frauds, strict=True):
        values, _ = checked(one.probabilities, fraud)
        order = np.argsort(-values, kind="stable")
        found.append((order, Ranking.of(values[order], fraud[order], one.threshold)))
    return found


def _mean(rankings: Sequence[tuple[Array, Ranking]], weights: Sequence[Array]) -> Float64:
    """NAMES, each the mean over the holdouts, whose rows are counted `weights` (rows,) times."""
    each = [ranking.metrics(of[order]) for (order, ranking), of in zip(rankings, weights, strict=True)]
    return np.mean(each, axis=0)


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


def _draws(frauds: Sequence[Bool], entities: Sequence[Array] | None, repeats: int, seed: int) -> Iterator[list[Array]]:
    """How often each row of each holdout counts, (rows,), in one resample after the other."""
    rng = np.random.default_rng(seed)
    if entities is not None:
        names, of_row = np.unique(np.concatenate(list(entities)), return_inverse=True)
        of_row, ends = of_row.astype(np.int32), np.cumsum([len(entity) for entity in entities])[:-1]
        for _ in range(repeats):
            yield np.split(_times_drawn(len(names), rng)[of_row], ends)
        return
    classes = [(np.flatnonzero(fraud), np.flatnonzero(~fraud)) for fraud in frauds]
    weights = [np.empty(len(fraud), np.int32) for fraud in frauds]
    for _ in range(repeats):
        for of, sides in zip(weights, classes, strict=True):
            for side in sides:
                of[side] = _times_drawn(len(side), rng)
        yield weights


def _times_drawn(count: int, rng: np.random.Generator) -> npt.NDArray[np.int32]:
    """How often each of `count` comes up in as many draws with replacement: one multinomial sample."""
    return np.bincount(rng.integers(count, size=count, dtype=np.int32), minlength=count).astype(np.int32)
