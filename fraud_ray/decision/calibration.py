"""From logits on the selection holdouts to a calibration and a threshold."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy.optimize import isotonic_regression, minimize
from scipy.special import expit

from fraud_ray.decision.cuts import Array, Bool, Cuts, Float64, Holdout, checked, days_of, fraud_amounts
from fraud_ray.errors import FraudRayError
from fraud_ray.model.calibration import Calibration
from fraud_ray.settings import AlertsPerDay, DecisionSettings, RecallAtPrecision

MAX_KNOTS = 64
# Above zero, so that a calibration never turns the order of the scores round, and finite in the graph's float32.
SLOPES = (1e-3, 1e3)

Rule = Literal["max_f1", "min_cost"] | float | RecallAtPrecision | AlertsPerDay


@dataclass(frozen=True)
class Costs:
    """What errors cost: a missed fraud its amount (rows,), an alert always the same."""

    amounts: Array
    per_alert: float


def calibrate(
    holdouts: Sequence[Holdout], logits: Sequence[Array], settings: DecisionSettings
) -> tuple[Calibration, float]:
    """The calibration and the threshold that selection holdouts give together.

    logits: an array (rows,) a holdout. Raises what `fit_calibration` and `choose_threshold` raise.
    """
    labels, scores = np.concatenate([rows.label for rows in holdouts]), np.concatenate(list(logits))
    calibration = fit_calibration(scores, labels, settings.calibration)
    days = sum(days_of(rows) for rows in holdouts) or None
    costs = None
    if settings.cost_per_alert is not None and all("amount" in rows.roles for rows in holdouts):
        costs = Costs(np.concatenate([rows.roles["amount"] for rows in holdouts]), settings.cost_per_alert)
    return calibration, choose_threshold(calibration.apply(scores), labels, settings.threshold, days, costs)


def fit_calibration(logits: Array, labels: Array, method: Literal["none", "platt", "isotonic"]) -> Calibration:
    """The calibration of logits (rows,) against labels (rows,), 0 or 1. It keeps the order of the scores.

    Raises ValueError for no rows or a single class, FraudRayError for logits that are not finite.
    """
    scores, fraud = checked(logits, labels)
    if method == "none":
        return Calibration()
    if fraud.all() or not fraud.any():
        raise ValueError(f"calibration needs frauds and legitimate rows; all {len(fraud):,} rows are of one class")
    return _platt(scores, fraud) if method == "platt" else _isotonic(scores, fraud)


def choose_threshold(
    probabilities: Array, labels: Array, rule: Rule, days: int | None = None, costs: Costs | None = None
) -> float:
    """The threshold that a rule finds in probabilities (rows,) and labels (rows,): a row is alerted on from there up.

    days: on which the rows lie, for alerts a day; costs: for `min_cost`. `max_f1` and `min_cost` look at every cut, and
    take the one with fewest alerts among the best. Alerts a day are a limit: the most alerts within it, or the fewest
    possible where equal scores exceed it.
    Raises ValueError for alerts a day without days and min_cost without costs, FraudRayError when no threshold has the
    precision asked for.
    """
    if isinstance(rule, float | int):
        return float(rule)
    cuts = Cuts.of(probabilities, labels)
    if isinstance(rule, RecallAtPrecision):
        return cuts.threshold(_cut_at_precision(cuts, rule.recall_at_precision))
    if isinstance(rule, AlertsPerDay):
        if days is None:
            raise ValueError("alerts a day need the number of days that the rows lie on")
        within = int(np.searchsorted(cuts.alerts, rule.alerts_per_day * days, side="right"))
        return cuts.threshold(max(within - 1, 0))
    if rule == "min_cost":
        if costs is None:
            raise ValueError("the minimum cost needs what errors cost")
        return cuts.threshold(int(np.argmin(_cost_of_cuts(cuts, probabilities, labels, costs))))
    return cuts.threshold(int(np.argmax(cuts.f1)))


def _cost_of_cuts(cuts: Cuts, probabilities: Array, labels: Array, costs: Costs) -> Float64:
    """What each cut costs (cuts,), less the amount of all frauds."""
    values, fraud = checked(probabilities, labels)
    at_stake = fraud_amounts(costs.amounts, fraud)[np.argsort(-values, kind="stable")]
    return costs.per_alert * cuts.alerts - np.cumsum(at_stake)[cuts.alerts - 1]


def _cut_at_precision(cuts: Cuts, precision: float) -> int:
    eligible = np.flatnonzero(cuts.precision >= precision)
    if not len(eligible):
        raise FraudRayError(
            f"no threshold reaches precision {precision:g} on the selection holdouts (the highest is "
            f"{cuts.precision.max():.4f}); lower decision.threshold.recall_at_precision, or choose max_f1"
        )
    return int(eligible[np.argmax(cuts.hits[eligible])])


def _platt(scores: Float64, fraud: Bool) -> Calibration:
    """Maximum likelihood of sigmoid(slope * logit + intercept) against labels moved a pseudo-row towards each other.

    The moved labels keep the slope finite where the classes are separable.
    Source: Platt, "Probabilistic Outputs for Support Vector Machines" (1999), section 2.2.
    """
    frauds = np.count_nonzero(fraud)
    target = np.where(fraud, (frauds + 1) / (frauds + 2), 1 / (len(fraud) - frauds + 2))
    centre, spread = scores.mean(), scores.std() or 1.0
    x = (scores - centre) / spread

    def loss(parameters: Float64) -> tuple[float, Float64]:
        z = parameters[0] * x + parameters[1]
        residual = expit(z) - target
        return float((np.logaddexp(0, z) - target * z).mean()), np.array([(residual * x).mean(), residual.mean()])

    start = np.array([spread, centre])
    fitted = minimize(
        loss,
        start,
        jac=True,
        method="L-BFGS-B",
        bounds=[(SLOPES[0] * spread, SLOPES[1] * spread), (None, None)],
        options={"ftol": 1e-15, "gtol": 1e-10},
    ).x
    slope = fitted[0] / spread
    return Calibration("platt", float(slope), float(fitted[1] - slope * centre))


def _isotonic(scores: Float64, fraud: Bool) -> Calibration:
    """Centred isotonic regression: a knot in the middle of each block of equal fitted values, lines between them.

    Unlike the plain regression's steps it rises strictly, so that it ties no scores. The outer knots are at the lowest
    and the highest logit. Beyond MAX_KNOTS blocks, neighbours are joined where the squared error grows least.
    Source: Oron, Flournoy, "Centered Isotonic Regression" (2017).
    """
    x, of_row = np.unique(scores.astype(np.float32).astype(np.float64), return_inverse=True)
    rows = np.bincount(of_row).astype(np.float64)
    frauds = np.bincount(of_row, weights=fraud)
    starts = isotonic_regression(frauds / rows, weights=rows).blocks[:-1]
    block_rows, block_frauds, block_logits = (np.add.reduceat(v, starts) for v in (rows, frauds, rows * x))
    while len(block_rows) > 1:
        rate = block_frauds / block_rows
        is_rising = bool((np.diff(rate.astype(np.float32)) > 0).all())
        if is_rising and len(rate) <= MAX_KNOTS:
            break
        cost = np.diff(rate) ** 2 * block_rows[:-1] * block_rows[1:] / (block_rows[:-1] + block_rows[1:])
        first = int(np.argmin(cost))
        block_rows, block_frauds, block_logits = (
            np.concatenate([v[:first], [v[first] + v[first + 1]], v[first + 2 :]])
            for v in (block_rows, block_frauds, block_logits)
        )
    rate, centre = block_frauds / block_rows, block_logits / block_rows
    highest = max(x[-1], x[0] + 1) if len(rate) == 1 else x[-1]
    at = np.concatenate([x[:1], centre[1:-1], [highest]]).astype(np.float32)
    height = np.concatenate([rate[:1], rate[1:-1], rate[-1:]]).astype(np.float32)
    return Calibration("isotonic", knots=tuple(zip(at.tolist(), height.tolist(), strict=True)))
