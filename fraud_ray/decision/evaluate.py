"""What a model is worth on held-out rows: ranking, threshold, calibration and top-k metrics, and all of them in one."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from sklearn.metrics import average_precision_score, brier_score_loss, roc_auc_score

from fraud_ray.decision.bootstrap import intervals
from fraud_ray.decision.cuts import Array, Bool, Cuts, Float64, Holdout, checked, equal_bins, fraud_amounts, reliability
from fraud_ray.decision.false_positives import at_false_positive_rates
from fraud_ray.progress import counted
from fraud_ray.settings import DecisionSettings
from fraud_ray.values import Value

FEW_FRAUDS = 100


@dataclass(frozen=True)
class Confusion:
    """Rows by what the threshold says of them and what they are: tp and fn are frauds, tp and fp are alerts."""

    tp: int
    fp: int
    fn: int
    tn: int


@dataclass(frozen=True)
class SliceEvaluation:
    """The metrics of the rows with one value, or in one range, of one column; the value "" stands for missing."""

    column: str
    value: str
    rows: int
    frauds: int
    metrics: dict[str, float]


@dataclass(frozen=True, repr=False)
class Evaluation(Value):
    """All figures of one model on one holdout.

    metrics: by name, without those undefined on these rows; intervals: (low, high) by metric; best_possible:
    average_precision and f1_score of the true probability on the same rows, None where it is not declared. importance:
    what average precision on a selection holdout loses by each column that is shuffled, the largest loss first.
    published: what others reached, as the settings have it: `name`, `source` and `figures` by metric.
    """

    rows: int
    frauds: int
    threshold: float
    metrics: dict[str, float]
    intervals: dict[str, tuple[float, float]]
    best_possible: dict[str, float] | None
    confusion: Confusion
    slices: tuple[SliceEvaluation, ...]
    importance: dict[str, float] = field(default_factory=dict)
    published: tuple[dict[str, Any], ...] = ()

    @property
    def remark(self) -> str | None:
        """What a reader of its figures should know, where it is of few frauds."""
        few = f"{counted(self.frauds, 'fraud')} in the holdout, fewer than {FEW_FRAUDS}"
        return (
            f"{few}: another week's would give other figures, so go by the intervals"
            if self.frauds < FEW_FRAUDS
            else None
        )

    def __repr__(self) -> str:
        shown = [name for name in ("average_precision", "f1_score") if name in self.metrics]
        figures = ", ".join(f"{name} {self.metrics[name]:.4f}" for name in shown)
        return f"{counted(self.rows, 'holdout row')}, {counted(self.frauds, 'fraud')}: {figures}"


def evaluate(probabilities: Array, rows: Holdout, threshold: float, settings: DecisionSettings) -> Evaluation:
    """The evaluation of probabilities (rows,), an alert being a row at or above the threshold.

    Card Precision needs entity and timestamp among the rows' roles, money an amount, precision at k at least k rows;
    without them they are left out. Intervals are drawn over entities where those are declared.
    Raises FraudRayError for probabilities that are not finite.
    """
    scores, fraud = checked(probabilities, rows.label)
    confusion = confusion_at(scores, fraud, threshold)
    metrics = rate_metrics(scores, fraud, confusion)
    for k in settings.precision_at:
        if k <= len(scores):
            metrics[f"precision_at_{k}"] = precision_at_k(scores, fraud, k)
    if "amount" in rows.roles:
        metrics |= money_metrics(scores, fraud, rows.roles["amount"], threshold, settings.cost_per_alert)
    entity, timestamp = rows.roles.get("entity"), rows.roles.get("timestamp")
    if entity is not None and timestamp is not None:
        k = settings.card_precision_at
        metrics[f"card_precision_at_{k}"] = card_precision_at_k(scores, fraud, entity, timestamp, k)
    groups = {column: rows.slices[column] for column in settings.slices}
    metrics |= at_false_positive_rates(scores, fraud, settings.recall_at_fpr, groups)
    truth = rows.roles.get("true_probability")
    return Evaluation(
        rows=len(scores),
        frauds=int(fraud.sum()),
        threshold=threshold,
        metrics=metrics,
        intervals=intervals(
            scores, fraud, threshold, entity, settings.bootstrap_repeats, settings.confidence, settings.seed
        ),
        best_possible=None if truth is None or not fraud.any() else best_possible(truth, fraud),
        confusion=confusion,
        slices=tuple(
            part
            for column, values in groups.items()
            for part in evaluate_slices(scores, fraud, threshold, column, values)
        ),
        published=tuple(one.model_dump() for one in settings.published),
    )


def evaluate_slices(
    scores: Array, labels: Array, threshold: float, column: str, values: Array
) -> list[SliceEvaluation]:
    """One evaluation a value of a column, values (rows,) of str or None; largest slices first."""
    names, of_row = np.unique(["" if value is None else value for value in values], return_inverse=True)
    order = np.argsort(of_row, kind="stable")
    found = []
    for name, members in zip(names.tolist(), np.split(order, np.cumsum(np.bincount(of_row))[:-1]), strict=True):
        score, fraud = checked(scores[members], labels[members])
        metrics = rate_metrics(score, fraud, confusion_at(score, fraud, threshold))
        found.append(SliceEvaluation(column, name, len(score), int(fraud.sum()), metrics))
    return sorted(found, key=lambda part: (-part.rows, part.value))


def confusion_at(scores: Float64, fraud: Bool, threshold: float) -> Confusion:
    """The four counts when rows at or above the threshold are alerts."""
    alert = scores >= threshold
    tp, alerts, frauds = (int(np.count_nonzero(which)) for which in (alert & fraud, alert, fraud))
    return Confusion(tp=tp, fp=alerts - tp, fn=frauds - tp, tn=len(fraud) - alerts - frauds + tp)


def rate_metrics(scores: Float64, fraud: Bool, confusion: Confusion) -> dict[str, float]:
    """Ranking, threshold and calibration metrics by name; those undefined on these rows are left out.

    Brier's skill is 1 - Brier / Brier of the base rate. Precision needs an alert, recall and F1 a fraud, the false
    positive rate a legitimate row, the ranking metrics and the skill both classes.
    """
    frauds, alerts, legitimate = confusion.tp + confusion.fn, confusion.tp + confusion.fp, confusion.fp + confusion.tn
    base_rate = frauds / len(fraud)
    has_both_classes = 0 < frauds < len(fraud)
    metrics: dict[str, float] = {}
    if has_both_classes:
        metrics["auc_roc"] = float(roc_auc_score(fraud, scores))
        metrics["average_precision"] = float(average_precision_score(fraud, scores))
    if alerts:
        metrics["precision"] = confusion.tp / alerts
    if frauds:
        metrics["recall"] = confusion.tp / frauds
        metrics["f1_score"] = 2 * confusion.tp / (alerts + frauds)
    if legitimate:
        metrics["false_positive_rate"] = confusion.fp / legitimate
    metrics["brier"] = float(brier_score_loss(fraud, scores, pos_label=True))
    if has_both_classes:
        metrics["brier_skill"] = 1 - metrics["brier"] / (base_rate * (1 - base_rate))
    metrics["calibration_error"] = calibration_error(scores, fraud)
    return metrics


def money_metrics(
    scores: Float64, fraud: Bool, amounts: Array, threshold: float, cost_per_alert: float | None
) -> dict[str, float]:
    """`amount_recall`, the share of the frauds' amount (rows,) that alerts catch, and the `money_saved` by them.

    Money saved is the amount caught less what the alerts cost; left out where that is not known.
    """
    at_stake, alert = fraud_amounts(amounts, fraud), scores >= threshold
    caught, total = float(at_stake[alert].sum()), float(at_stake.sum())
    metrics = {"amount_recall": caught / total} if total else {}
    if cost_per_alert is not None:
        metrics["money_saved"] = caught - cost_per_alert * int(np.count_nonzero(alert))
    return metrics


def best_possible(true_probability: Array, labels: Array) -> dict[str, float]:
    """Average precision and the maximum F1 over all cuts, with the true probability (rows,) as score."""
    cuts = Cuts.of(true_probability, labels)
    return {
        "average_precision": float(average_precision_score(labels, true_probability)),
        "f1_score": float(cuts.f1.max()),
    }


def calibration_error(probabilities: Array, labels: Array, bins: int = 10) -> float:
    """Expected calibration error: the mean distance of probability from fraud rate over bins of equal count, by rows.

    Source: Naeini, Cooper, Hauskrecht, "Obtaining Well Calibrated Probabilities Using Bayesian Binning" (2015).
    """
    values, fraud = checked(probabilities, labels)
    rows, probability, frauds = reliability(equal_bins(values, bins), values, fraud)
    return float(np.average(np.abs(probability - frauds / rows), weights=rows))


def precision_at_k(scores: Array, labels: Array, k: int) -> float:
    """Share of frauds among the k highest of scores (rows,). Ties go to the earlier row.

    Raises ValueError when k exceeds the number of rows.
    """
    values, fraud = checked(scores, labels)
    if k > len(values):
        raise ValueError(f"precision at {k} of {len(values)} rows is undefined")
    return float(fraud[np.argsort(-values, kind="stable")[:k]].mean())


def card_precision_at_k(scores: Array, labels: Array, entity: Array, timestamp: Array, k: int) -> float:
    """Mean over the days of the frauds found by looking at k entities a day, divided by k. All arrays are (rows,).

    Each day the k entities with the highest score of that day are looked at; those with a fraud that day are found,
    and left out on later days. Ties go to the earlier row. timestamp: datetime64 of any unit. As in the source, the
    divisor is k also on days with fewer than k entities.
    Source: Fraud-Detection-Handbook, chapter 4, "Precision top-k metrics" (with removal of detected cards).
    """
    values, fraud = checked(scores, labels)
    days = timestamp.astype("datetime64[D]")
    names, card = np.unique(entity, return_inverse=True)
    is_found = np.zeros(len(names), bool)
    order = np.lexsort((-values, days))
    shares = []
    for ranked in np.split(order, np.flatnonzero(np.diff(days[order])) + 1):
        remaining = ranked[~is_found[card[ranked]]]
        cards, best = np.unique(card[remaining], return_index=True)
        looked_at = cards[np.argsort(best)[:k]]
        found = np.intersect1d(looked_at, card[remaining[fraud[remaining]]])
        is_found[found] = True
        shares.append(len(found) / k)
    return float(np.mean(shares))
