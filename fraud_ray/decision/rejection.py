"""What helps a person whose model was rejected: other thresholds, and what search and threshold would still bring."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median

import numpy as np

from fraud_ray.decision.curves import Curves, spread
from fraud_ray.decision.evaluate import Evaluation
from fraud_ray.decision.gate import GateDecision
from fraud_ray.decision.rival import Rival
from fraud_ray.progress import counted
from fraud_ray.values import Value

LITTLE = 0.001  # of average precision: what is not worth another search
SHOWN = 6


@dataclass(frozen=True)
class Cutoff(Value):
    """What a threshold does on the final holdout. alerts: how many; note: what is special about it."""

    threshold: float
    precision: float
    recall: float
    f1: float
    alerts: float
    note: str = ""


def cutoffs(curves: Curves, evaluation: Evaluation) -> tuple[Cutoff, ...]:
    """Thresholds of which none is better in both precision and recall, spread evenly, from the highest down.

    The one of the largest F1 and the model's own are among them.
    """
    points = curves.model.precision_recall
    recall, precision, threshold = (np.array(points[name]) for name in ("recall", "precision", "threshold"))
    best_after = np.append(np.maximum.accumulate(precision[::-1])[-2::-1], -1.0)
    front = np.flatnonzero((precision > best_after) & (np.diff(recall, prepend=0.0) > 0))
    f1 = 2 * precision * recall / np.maximum(precision + recall, 1e-300)
    inner = front[spread(recall[front] - precision[front], SHOWN + 2)]
    largest = int(front[np.argmax(f1[front])])
    shown = {*(inner if len(inner) <= SHOWN else inner[1:-1]).tolist(), largest}
    found = [
        Cutoff(
            threshold=float(threshold[i]),
            precision=float(precision[i]),
            recall=float(recall[i]),
            f1=float(f1[i]),
            alerts=float(recall[i] * evaluation.frauds / precision[i]),
            note="largest F1" if i == largest else "",
        )
        for i in sorted(shown)
    ]
    hits, raised = evaluation.confusion.tp, evaluation.confusion.tp + evaluation.confusion.fp
    if raised:
        own = hits / raised, hits / evaluation.frauds, 2 * hits / (raised + evaluation.frauds)
        found = [one for one in found if round(one.alerts) != raised]
        found.append(Cutoff(evaluation.threshold, *own, raised, "the model's"))
    return tuple(sorted(found, key=lambda one: -one.threshold))


def of_the_bounds(
    decision: GateDecision, evaluation: Evaluation, offered: Sequence[Cutoff], rival: Rival | None = None
) -> list[str]:
    """Whether another threshold, the rival, or any model at all would keep the bounds that are not kept."""
    failed = {check.name: check.bound for check in decision.checks if not check.passed and check.bound is not None}
    metrics = {"min_f1": "f1_score", "min_average_precision": "average_precision", "min_auc": "auc_roc"}
    told = []
    for name, bound in failed.items():
        reached = rival.metrics.get(metrics.get(name, "")) if rival else None
        if rival and reached is not None:
            keeps = "keeps" if reached >= bound else "does not reach"
            told.append(f"{rival.name} {keeps} gate.{name} on these rows: {reached:.4f}")
        possible = (evaluation.best_possible or {}).get(metrics.get(name, ""), math.inf)
        if possible < bound:
            told.append(f"no model can: the best possible on these rows is {possible:.4f}; lower gate.{name}")
        elif name == "min_f1" and offered:
            best = max(offered, key=lambda one: one.f1)
            told.append(
                f"with decision.threshold {best.threshold:.4f} F1 would be {best.f1:.4f} on these rows"
                if best.f1 >= bound
                else f"no threshold does: F1 is at most {best.f1:.4f}, so the scores have to become better"
            )
    return told


def of_the_search(scores: Sequence[float], curve: Sequence[Mapping[str, float]]) -> list[str]:
    """What more trials and more epochs would likely bring.

    scores: selection AP of the trials, one at least; curve: of the best trial, an entry an epoch.
    """
    ranked = sorted(scores, reverse=True)
    told = [f"{counted(len(ranked), 'trial')}: selection AP {ranked[0]:.4f} at best"]
    if len(ranked) == 1:
        told = ["nothing was searched: search.space 'default' with search.algorithm 'random' tries other networks"]
    elif len(ranked) < 4:
        told[0] += f", {median(ranked):.4f} at the median; more trials (search.space) may find a better one"
    else:
        gain = ranked[0] - _best_of_half(ranked)
        likely = f"less than {LITTLE}" if gain < LITTLE else f"about {gain:.3f}"
        told[0] += f", {median(ranked):.4f} at the median; twice as many would likely add {likely}"
    by_epoch = [entry["average_precision"] for entry in curve]
    last = max(1, len(by_epoch) // 4)
    rise = by_epoch[-1] - by_epoch[-1 - last] if len(by_epoch) > last else 0.0
    if rise > LITTLE:
        told.append(
            f"the best trial still rose by {rise:.4f} over its last {counted(last, 'epoch')}: raise train.epochs"
        )
    return told


def _best_of_half(ranked: Sequence[float]) -> float:
    """The expected highest of half of the scores, drawn at random; they come from the highest down."""
    rows, half = len(ranked), len(ranked) // 2
    return sum(score * math.comb(rows - 1 - i, half - 1) for i, score in enumerate(ranked)) / math.comb(rows, half)
