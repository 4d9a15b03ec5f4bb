"""Champion against challenger on the same holdout: is the difference there, and large enough to change for?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from fraud_ray.decision.bootstrap import Predictions, differences
from fraud_ray.decision.cuts import Array, checked
from fraud_ray.decision.evaluate import confusion_at, rate_metrics
from fraud_ray.decision.gate import bounds
from fraud_ray.decision.names import METRICS
from fraud_ray.errors import FraudRayError
from fraud_ray.settings import Settings
from fraud_ray.values import Value


@dataclass(frozen=True)
class Comparison(Value):
    """One metric of both models on the same rows.

    low, high: interval of the difference, challenger less champion, at this confidence, from a paired bootstrap;
    margin: the smallest difference for which the champion is replaced; version: the champion's.
    """

    metric: str
    champion: float
    challenger: float
    low: float
    high: float
    confidence: float
    margin: float
    rows: int
    version: int

    def __str__(self) -> str:
        return self.message

    def to_json(self) -> dict[str, Any]:
        return {**super().to_json(), "message": self.message}

    @property
    def difference(self) -> float:
        return self.challenger - self.champion

    @property
    def is_better(self) -> bool:
        """Whether the challenger is better by the margin, and by more than chance explains."""
        return self.difference >= self.margin and self.low > 0

    @property
    def message(self) -> str:
        """Both figures and what follows, as a sentence."""
        verdict = "the challenger takes its place" if self.is_better else "the champion stays"
        return (
            f"{METRICS[self.metric]} {self.challenger:.4f} against {self.champion:.4f} of the champion, version "
            f"{self.version}, on the same {self.rows:,} rows: {self.difference:+.4f} ({self.confidence:.0%} interval "
            f"{self.low:+.4f} to {self.high:+.4f}); {self.margin:g} and an interval above 0 are asked for; "
            f"{verdict}"
        )


def compare(
    challenger: Predictions,
    champion: Predictions,
    version: int,
    labels: Array,
    entity: Array | None,
    settings: Settings,
) -> Comparison:
    """The comparison on rows of these labels (rows,), 0 or 1, and entities (rows,), drawn whole where they are given.

    version: the champion's. The metric is `retrain.metric`, by default the gate's first. Raises FraudRayError where
    the metric is undefined, as it is for F1 where a model never alerts and there is no fraud.
    """
    metric, decision = judged_by(settings), settings.decision
    values = {name: _metric(of, labels, metric) for name, of in (("champion", champion), ("challenger", challenger))}
    found = differences(
        [[challenger]],
        {"champion": [[champion]]},
        [labels],
        None if entity is None else [entity],
        settings.retrain.repeats,
        decision.confidence,
        decision.seed,
    )["champion"][metric]
    return Comparison(
        metric,
        **values,
        low=found.low,
        high=found.high,
        confidence=decision.confidence,
        margin=settings.retrain.margin,
        rows=len(labels),
        version=version,
    )


def judged_by(settings: Settings) -> str:
    """The metric that decides about promotion: `retrain.metric`, else the first that the gate bounds, else F1."""
    bounded = (metric for _, metric, _, comparison in bounds(settings.gate) if comparison == ">=")
    return settings.retrain.metric or next(bounded, "f1_score")


def _metric(model: Predictions, labels: Array, name: str) -> float:
    scores, fraud = checked(model.probabilities, labels)
    found = rate_metrics(scores, fraud, confusion_at(scores, fraud, model.threshold)).get(name)
    if found is None:
        raise FraudRayError(f"{METRICS[name]} is undefined on the holdout, so champion and challenger do not compare")
    return found
