"""How much a model relies on each column: what its average precision loses when the column's values are shuffled."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pyarrow as pa
from sklearn.metrics import average_precision_score

from fraud_ray.decision.cuts import Array


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
