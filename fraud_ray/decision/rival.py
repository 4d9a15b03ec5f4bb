"""A model of another kind on the same rows: what the network gains over it, beyond noise or not."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fraud_ray.decision.bootstrap import Difference, Predictions, differences
from fraud_ray.decision.cuts import Array, checked
from fraud_ray.decision.evaluate import confusion_at, rate_metrics
from fraud_ray.decision.names import METRICS
from fraud_ray.progress import counted
from fraud_ray.settings import DecisionSettings
from fraud_ray.values import Value

_JUDGED = ("average_precision", "f1_score")


@dataclass(frozen=True)
class Rival(Value):
    """A rival's metrics on the final holdout, by name, and by how much the network's exceed them.

    name: in words; trials: of which it is the best; seconds: of these and the fit.
    """

    name: str
    trials: int
    seconds: float
    confidence: float
    metrics: dict[str, float]
    differences: dict[str, Difference]

    def __str__(self) -> str:
        return self.message

    def to_json(self) -> dict[str, Any]:
        return {**super().to_json(), "message": self.message}

    @property
    def message(self) -> str:
        """The figures that models are judged by, as a sentence."""
        told = []
        for metric in _JUDGED:
            if metric in self.metrics and metric in self.differences:
                found = self.differences[metric]
                told.append(
                    f"{METRICS[metric]} {self.metrics[metric]:.4f}, the network {found.value:+.4f} "
                    f"({self.confidence:.0%} interval {found.low:+.4f} to {found.high:+.4f}: {found.verdict})"
                )
        figures = "; ".join(told) or "nothing to compare, as metrics are undefined or decision.bootstrap_repeats is 0"
        return (
            f"{self.name} on the same rows: {figures}. It cost {self.seconds:.0f} s for {counted(self.trials, 'trial')}"
        )


def against(
    network: Predictions,
    rival: Predictions,
    labels: Array,
    entity: Array | None,
    decision: DecisionSettings,
    **told: Any,
) -> Rival:
    """The rival on rows of these labels (rows,), 0 or 1, and entities (rows,), drawn whole where they are given.

    told: name, trials and seconds.
    """
    scores, fraud = checked(rival.probabilities, labels)
    found: Mapping[str, Mapping[str, Difference]] = {}
    if decision.bootstrap_repeats:
        entities = None if entity is None else [entity]
        drawn = decision.bootstrap_repeats, decision.confidence, decision.seed
        found = differences([[network]], {"rival": [[rival]]}, [labels], entities, *drawn)
    metrics = rate_metrics(scores, fraud, confusion_at(scores, fraud, rival.threshold))
    return Rival(**told, confidence=decision.confidence, metrics=metrics, differences=dict(found.get("rival", {})))
