"""What a model catches at a false positive rate, and whether that rate is alike in all groups.

Source: Jesus et al., "Turning the Tables: Biased, Imbalanced, Dynamic Tabular Datasets for ML Evaluation" (2022), whose
protocol takes the threshold with a false positive rate of 5 %, the recall there, and the ratio of the groups' rates
("predictive equality").
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import numpy as np

from fraud_ray.decision.cuts import Array, Cuts, checked


def at_false_positive_rates(
    scores: Array, labels: Array, rates: Sequence[float], groups: Mapping[str, Array]
) -> dict[str, float]:
    """`recall_at_fpr_<rate>` of each rate, and `fpr_ratio_<column>_at_fpr_<rate>` of each column of groups.

    scores, labels: (rows,); groups: by column the value (rows,) of str or None of each row. Left out is what is
    undefined: the recall without a fraud or without a legitimate row, the ratio with fewer than two groups or without
    a false positive in any.
    """
    values, fraud = checked(scores, labels)
    found: dict[str, float] = {}
    if fraud.all() or not fraud.any():
        return found
    for rate in rates:
        threshold, recall = cut_at(values, fraud, rate)
        found[f"recall_at_fpr_{rate:g}"] = recall
        for column, group in groups.items():
            by_group = false_positive_rates(values, fraud, threshold, group).values()
            if len(by_group) > 1 and max(by_group):
                # MLflow takes no other characters in a metric's name.
                name = re.sub(r"[^\w .:/-]", "_", column)
                found[f"fpr_ratio_{name}_at_fpr_{rate:g}"] = min(by_group) / max(by_group)
    return found


def cut_at(scores: Array, labels: Array, rate: float) -> tuple[float, float]:
    """The threshold with the most alerts whose false positive rate is at most `rate`, and its recall.

    scores, labels: (rows,), of both classes. The threshold is infinite where already the highest score has too many.
    """
    cuts = Cuts.of(scores, labels)
    within = int(np.searchsorted(cuts.alerts - cuts.hits, rate * (cuts.rows - cuts.frauds), side="right"))
    if not within:
        return float("inf"), 0.0
    return float(cuts.scores[within - 1]), float(cuts.hits[within - 1] / cuts.frauds)


def false_positive_rates(scores: Array, labels: Array, threshold: float, groups: Array) -> dict[str, float]:
    """By group the share of its legitimate rows that are alerts; without groups that have none.

    scores, labels: (rows,); groups: (rows,) of str or None, which counts as "".
    """
    values, fraud = checked(scores, labels)
    names, of_row = np.unique(["" if value is None else value for value in groups[~fraud]], return_inverse=True)
    alerts = np.bincount(of_row, weights=values[~fraud] >= threshold)
    return dict(zip(names.tolist(), (alerts / np.bincount(of_row)).tolist(), strict=True))
