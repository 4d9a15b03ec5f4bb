"""Metrics in words; light to import, since every command that prints figures does."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

# In the order in which people are shown them; precision at k and the like follow.
METRICS = {
    "auc_roc": "ROC AUC",
    "average_precision": "average precision",
    "precision": "precision",
    "recall": "recall",
    "f1_score": "F1",
    "false_positive_rate": "false positive rate",
    "amount_recall": "fraud amount caught",
    "money_saved": "money saved",
    "brier": "Brier score",
    "brier_skill": "Brier skill",
    "calibration_error": "calibration error",
}
AT_THRESHOLD = {"precision", "recall", "f1_score", "false_positive_rate", "amount_recall", "money_saved"}


def metric_name(name: str) -> str:
    """A metric as a sentence names it."""
    return METRICS.get(name, re.sub(r"\bfpr\b", "FPR", name.replace("_", " ")))


def in_order(names: Iterable[str]) -> list[str]:
    """Names of metrics in the order in which people are shown them."""
    order = list(METRICS)
    return sorted(names, key=lambda name: order.index(name) if name in METRICS else len(order))


def beside_published(
    metrics: Mapping[str, float], published: Sequence[Mapping[str, Any]]
) -> tuple[list[str], list[tuple[str, list[float | None], str]]]:
    """The metrics that others have published, and the lines of a table: whose values, by metric, and their source.

    published: as an evaluation has it. The first line is the run's own, which has these metrics; None: not known.
    """
    names = in_order({name for one in published for name in one["figures"]})
    own = {"name": "this run", "figures": metrics, "source": ""}
    of_all = [own, *published] if published else []
    return names, [(one["name"], [one["figures"].get(name) for name in names], one["source"]) for one in of_all]


def rate(value: float) -> str:
    """Alerts a day, with a digit after the point where that says something."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}".removesuffix(".0")
