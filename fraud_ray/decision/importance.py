"""How much a model relies on each column, and how much a search's scores depend on each hyperparameter."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pyarrow as pa
from sklearn.ensemble import RandomForestRegressor
from sklearn.metrics import average_precision_score

from fraud_ray.decision.cuts import Array

FEWEST_TRIALS = 4


def permutation_importance(
    score: Callable[[pa.Table], Array],
    table: pa.Table,
    labels: Array,
    columns: Sequence[str],
    most_rows: int,
    seed: int,
) -> dict[str, float]:
    """The loss of average precision by column, the largest first.

    score: scores (rows,) of a table; labels: (rows,), 0 or 1. Of more than `most_rows` rows all frauds and a draw of
    the others count, which are weighted back. Columns that say the same share what they say: each alone loses little.
    Source: Breiman, "Random Forests" (2001), section 10.
    """
    rng = np.random.default_rng(seed)
    fraud = np.asarray(labels) == 1
    kept, weights = _sample(fraud, most_rows, rng)
    table, fraud = table.take(pa.array(kept)), fraud[kept]

    def average_precision(rows: pa.Table) -> float:
        return float(average_precision_score(fraud, score(rows), sample_weight=weights))

    whole = average_precision(table)
    losses = {}
    for name in columns:
        shuffled = table[name].take(pa.array(rng.permutation(len(fraud))))
        losses[name] = whole - average_precision(table.set_column(table.column_names.index(name), name, shuffled))
    return dict(sorted(losses.items(), key=lambda item: -item[1]))


def _sample(fraud: Array, most_rows: int, rng: np.random.Generator) -> tuple[Array, Array]:
    """Positions of the rows that count, rising, and the weight of each."""
    if len(fraud) <= most_rows:
        return np.arange(len(fraud)), np.ones(len(fraud))
    frauds, others = np.flatnonzero(fraud), np.flatnonzero(~fraud)
    drawn = rng.choice(others, size=max(1, min(len(others), most_rows - len(frauds))), replace=False)
    kept = np.sort(np.concatenate([frauds, drawn]))
    return kept, np.where(fraud[kept], 1.0, len(others) / len(drawn))


def forest_importance(points: Mapping[str, Sequence[float]], scores: Sequence[float], seed: int) -> dict[str, float]:
    """How much each hyperparameter says about the scores of trials; the shares add up to 1.

    points: by hyperparameter, where each trial's value stands (trials,), NaN where it has none; scores: (trials,). The
    mean decrease of variance over the splits of a random forest. Empty for fewer than FEWEST_TRIALS trials, for trials
    that all score the same, and where fewer than two hyperparameters vary.
    Source: Breiman, "Random Forests" (2001).
    """
    varied = [name for name, values in points.items() if len({str(value) for value in values}) > 1]
    if len(scores) < FEWEST_TRIALS or len(varied) < 2 or len(set(scores)) == 1:
        return {}
    # Leaves grow with the trials, so that chance differences are not split on.
    forest = RandomForestRegressor(200, min_samples_leaf=max(1, len(scores) // 25), random_state=seed)
    forest.fit(np.array([points[name] for name in varied]).T, scores)
    return dict(zip(varied, forest.feature_importances_.tolist(), strict=True))
