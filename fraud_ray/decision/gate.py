"""The quality gate: an evaluation and its bounds in, checks and a decision out; pure."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

from fraud_ray.decision.evaluate import Evaluation
from fraud_ray.decision.names import METRICS
from fraud_ray.progress import counted
from fraud_ray.settings import GateSettings, SliceGate
from fraud_ray.values import Value


@dataclass(frozen=True)
class Check:
    """One bound, and whether the value keeps it.

    name: unique in a decision; subject: what is bounded, in words; value: None where it is undefined, which never
    passes; bound: None where there is nothing to compare with, which passes; note: what a reader should know.
    """

    name: str
    subject: str
    value: float | None
    bound: float | None
    comparison: Literal[">=", "<="]
    passed: bool
    note: str = ""

    @property
    def message(self) -> str:
        """The check as a sentence with both numbers, such as "F1 0.8123 is below the required 0.85 by 0.038"."""
        note = f" ({self.note})" if self.note else ""
        if self.bound is None:
            return f"{self.subject}: {self.note}"
        limit = "required" if self.comparison == ">=" else "allowed"
        if self.value is None:
            return f"{self.subject} is undefined on these rows; {limit} is {_told_apart(0, self.bound)[1]}{note}"
        value, bound = _told_apart(self.value, self.bound)
        if self.comparison == ">=":
            relation = "reaches" if self.passed else "is below"
        else:
            relation = "is within" if self.passed else "is above"
        gap = "" if self.passed else f" by {abs(self.value - self.bound):.2g}"
        return f"{self.subject} {value} {relation} the {limit} {bound}{gap}{note}"


@dataclass(frozen=True, repr=False)
class GateDecision(Value):
    """Every check; the model passes when all of them do."""

    checks: tuple[Check, ...]

    def __repr__(self) -> str:
        return f"{'passed' if self.passed else 'rejected'}: {self.reason}"

    def to_json(self) -> dict[str, Any]:
        return {**super().to_json(), "passed": self.passed, "reason": self.reason}

    @property
    def passed(self) -> bool:
        return all(check.passed for check in self.checks)

    @property
    def reason(self) -> str:
        """Why the model was rejected, or that nothing speaks against it."""
        if self.passed:
            passed = "the one check" if len(self.checks) == 1 else f"all {len(self.checks)} checks"
            return f"{passed} passed" if self.checks else "no check is set"
        return "; ".join(check.message for check in self.checks if not check.passed)


def decide(evaluation: Evaluation, gate: GateSettings, champion: Evaluation | None) -> GateDecision:
    """The gate's decision on an evaluation.

    champion: the champion's evaluation on the same holdout, None where there is no champion.
    Raises ValueError when the champion was evaluated on other rows.
    """
    metrics = evaluation.metrics
    checks = [
        _check(name, METRICS[metric], metrics.get(metric), bound, comparison)
        for name, metric, bound, comparison in bounds(gate)
    ]
    if gate.slices:
        checks += _slice_checks(evaluation, gate.slices)
    if gate.beats_champion:
        checks.append(_champion_check(evaluation, champion))
    return GateDecision(tuple(checks))


def bounds(gate: GateSettings) -> list[tuple[str, str, float, Literal[">=", "<="]]]:
    """Setting, metric, bound and comparison of every bound on all rows that is set."""
    possible: tuple[tuple[str, str, float | None, Literal[">=", "<="]], ...] = (
        ("min_f1", "f1_score", gate.min_f1, ">="),
        ("min_average_precision", "average_precision", gate.min_average_precision, ">="),
        ("min_auc", "auc_roc", gate.min_auc, ">="),
        ("max_calibration_error", "calibration_error", gate.max_calibration_error, "<="),
    )
    return [(name, metric, bound, comparison) for name, metric, bound, comparison in possible if bound is not None]


def _check(
    name: str, subject: str, value: float | None, bound: float, comparison: Literal[">=", "<="], note: str = ""
) -> Check:
    if value is None or not math.isfinite(value):
        return Check(name, subject, None, bound, comparison, passed=False, note=note)
    passed = value >= bound if comparison == ">=" else value <= bound
    return Check(name, subject, value, bound, comparison, passed, note)


def _slice_checks(evaluation: Evaluation, gate: SliceGate) -> list[Check]:
    subject = METRICS[gate.metric]
    judged = [part for part in evaluation.slices if part.frauds >= gate.min_frauds]
    if not judged:
        note = f"no slice of decision.slices has {counted(gate.min_frauds, 'fraud')}, so none is judged"
        return [Check("slices", f"{subject} by slice", None, None, ">=", passed=True, note=note)]
    return [
        _check(
            f"slices.{part.column}.{part.value}",
            f"{subject} of {part.column} '{part.value}'",
            part.metrics.get(gate.metric),
            gate.min,
            ">=",
            note=f"{counted(part.frauds, 'fraud')} in {counted(part.rows, 'row')}",
        )
        for part in judged
    ]


def _champion_check(evaluation: Evaluation, champion: Evaluation | None) -> Check:
    name, metric = "beats_champion", "average_precision"
    value = evaluation.metrics.get(metric)
    if champion is None:
        note = "there is no champion to compare with"
        return Check(name, METRICS[metric], value, None, ">=", passed=True, note=note)
    if (champion.rows, champion.frauds) != (evaluation.rows, evaluation.frauds):
        raise ValueError(
            f"the champion was evaluated on {champion.rows:,} rows with {champion.frauds:,} frauds, the challenger on "
            f"{evaluation.rows:,} with {evaluation.frauds:,}; compare them on the same holdout"
        )
    bound = champion.metrics.get(metric, math.nan)
    return _check(name, METRICS[metric], value, bound, ">=", note="the champion's on the same rows")


def _told_apart(value: float, bound: float) -> tuple[str, str]:
    """Both numbers with four digits, or as many as tell them apart; the bound without closing zeros."""
    digits = 4
    while value != bound and f"{value:.{digits}f}" == f"{bound:.{digits}f}" and digits < 17:
        digits += 1
    shown = f"{bound:.{digits}f}"
    return f"{value:.{digits}f}", shown.rstrip("0").rstrip(".") if "." in shown else shown
