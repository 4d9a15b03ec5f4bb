"""From scores to decisions: calibration, threshold, the gate, drift, and when a champion is replaced."""

from __future__ import annotations

import typing
from typing import Annotated, Any, Literal

from pydantic import (
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    Tag,
)

from fraud_ray.settings.base import NO_EFFECT, Frozen, Probability, Share, alternatives, is_number

ReferenceName = Literal["logistic_regression", "random_forest", "xgboost", "lightgbm", "catboost"]


class RecallAtPrecision(Frozen):
    recall_at_precision: Share
    """Highest recall among thresholds whose precision is at least this."""


class AlertsPerDay(Frozen):
    alerts_per_day: PositiveFloat
    """As many alerts a day as the team can look at (needs a timestamp)."""


def _branch_of_threshold(value: Any) -> str | None:
    if isinstance(value, RecallAtPrecision) or (isinstance(value, dict) and "recall_at_precision" in value):
        return "<recall>"
    if isinstance(value, AlertsPerDay) or (isinstance(value, dict) and "alerts_per_day" in value):
        return "<alerts>"
    return "<probability>" if is_number(value) else "<rule>" if value in ("max_f1", "min_cost") else None


ThresholdRule = Annotated[
    Annotated[Literal["max_f1", "min_cost"], Tag("<rule>")]
    | Annotated[Probability, Tag("<probability>")]
    | Annotated[RecallAtPrecision, Tag("<recall>")]
    | Annotated[AlertsPerDay, Tag("<alerts>")],
    alternatives(
        _branch_of_threshold, "max_f1, min_cost, a probability, {recall_at_precision: …} or {alerts_per_day: …}"
    ),
]


class Published(Frozen):
    name: str
    """Whose figures they are: a model's, or those of the rules in use."""
    source: str
    """Where they can be read, and on which rows they were measured where those are others."""
    figures: Annotated[dict[str, float], Field(min_length=1)]
    """Values by the names that metrics have in a run's JSON, such as average_precision."""


class DecisionSettings(Frozen):
    calibration: Literal["none", "platt", "isotonic"] = "platt"
    """How scores become probabilities; fitted on the selection holdouts."""
    threshold: ThresholdRule = "max_f1"
    """`max_f1`, `min_cost`, a fixed probability, `{recall_at_precision: 0.9}` or `{alerts_per_day: 100}`; chosen on the
    selection holdouts. `min_cost`: a missed fraud costs its amount, an alert `cost_per_alert`."""
    cost_per_alert: PositiveFloat | None = None
    """What it costs to look into an alert, in the currency of the amount; null: not known, and no money saved is
    reported."""
    precision_at: tuple[PositiveInt, ...] = (100, 1_000)
    """k of precision at k."""
    card_precision_at: PositiveInt = 100
    """k of Card Precision: cards that are looked at each day."""
    recall_at_fpr: tuple[Share, ...] = ()
    """False positive rates at which recall is reported, and by column of `slices` the ratio of the lowest rate of a
    slice to the highest."""
    bootstrap_repeats: NonNegativeInt = 200
    """Resamples behind each interval; 0: none."""
    confidence: Share = 0.95
    """Level of the intervals."""
    importance_rows: NonNegativeInt = 20_000
    """Rows of a selection holdout on which each column's importance is measured, all frauds among them; 0: none."""
    slices: tuple[str, ...] = ()
    """Columns whose values are evaluated one by one: categorical ones, and those of `slice_edges`."""
    slice_edges: dict[str, Annotated[tuple[float, ...], Field(min_length=1)]] = Field(default={})
    """Where the ranges of a number in `slices` begin: with `{customer_age: [50]}` they are `below 50` and `50 and
    above`."""
    rival: ReferenceName | None = None
    """A model of another kind that a run also fits, of eight trials on the same folds and columns, and tells of beside
    the network, with what it cost; null: none."""
    seed: NonNegativeInt = 42
    """Seed of the bootstrap."""
    published: tuple[Published, ...] = Field(default=(), json_schema_extra=NO_EFFECT)
    """Figures that others reached on the same holdout, which a run shows beside its own."""


class SliceGate(Frozen):
    metric: Literal["f1_score", "recall", "precision", "average_precision", "auc_roc"] = "recall"
    """What is bounded."""
    min: Probability
    """Smallest value allowed in any slice."""
    min_frauds: PositiveInt = 20
    """Slices with fewer frauds are not judged."""


class GateSettings(Frozen):
    min_f1: Probability | None = 0.85
    """Smallest F1 at the threshold; null: not checked."""
    min_average_precision: Probability | None = None
    """Smallest average precision."""
    min_auc: Probability | None = None
    """Smallest ROC AUC."""
    max_calibration_error: Probability | None = None
    """Largest expected calibration error (ten bins of equal count)."""
    slices: SliceGate | None = None
    """Bound for each value of each column in decision.slices."""
    beats_champion: bool = False
    """Whether the champion, scored on the same holdout, must not be better in average precision."""


class BacktestSettings(Frozen):
    shift_days: Annotated[tuple[NonNegativeInt, ...], Field(min_length=1)] = (0, 7, 14, 21)
    """One final fold an entry, that many days before the final fold of a run."""
    later_days: tuple[PositiveInt, ...] = ()
    """Further final folds, that many days after the final fold of a run, with tables of their own: nothing is chosen
    anew for them."""
    references: tuple[ReferenceName, ...] = typing.get_args(ReferenceName)
    """Models fitted beside the network on the same folds and columns, with as many trials, eight at least; those whose
    package is not installed are left out (extra `compare`)."""
    seeds: PositiveInt = 5
    """How often each model is fitted on each final fold, each time with another seed; the first is the one that
    everything is chosen with."""


class DriftSettings(Frozen):
    action: Literal["ignore", "warn", "fail"] = Field(default="warn", json_schema_extra=NO_EFFECT)
    """What `run` does when the data has drifted from what the champion was fitted on: `warn` reports it and puts a
    warning into the plan, `fail` stops before training, with exit code 5; `ignore` does not measure it, which saves
    reading the data once."""
    days: PositiveInt | None = None
    """Today's data is that of the newest days, this many of them; null: everything at data.path."""
    max_ks: PositiveFloat = 0.1
    """Largest Kolmogorov-Smirnov statistic of a number or the model's score: the largest distance between the two
    cumulative distributions."""
    max_psi: PositiveFloat = 0.2
    """Largest population stability index: of a number or the score over the reference's deciles, of a category over
    its most frequent values."""
    max_missing_change: PositiveFloat = 0.05
    """Largest change of a column's share of missing values, up or down."""
    max_new_category_share: PositiveFloat = 0.01
    """Largest share of rows whose category the reference does not have."""
    max_label_rate_ratio: Annotated[float, Field(gt=1)] = 2.0
    """Largest ratio of the two fraud rates, either way; rows whose label is not known yet do not count, but frauds that
    are still labelled as legitimate do."""


class RetrainSettings(Frozen):
    metric: Literal["f1_score", "average_precision", "auc_roc"] | None = None
    """What champion and challenger are compared by; by default the first of them that the gate bounds, else F1."""
    margin: NonNegativeFloat = 0.005
    """How much better than the champion a challenger has to be to take its place."""
    repeats: PositiveInt = 1_000
    """Resamples of the paired bootstrap; its interval, at decision.confidence, has to lie above 0."""
