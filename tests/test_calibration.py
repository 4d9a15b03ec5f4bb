"""Calibration from logits, and the threshold that a rule finds."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.special import expit
from sklearn.linear_model import LogisticRegression

from fraud_ray.decision.calibration import MAX_KNOTS, Costs, choose_threshold, fit_calibration
from fraud_ray.decision.evaluate import calibration_error
from fraud_ray.errors import FraudRayError
from fraud_ray.settings import AlertsPerDay, DecisionSettings, RecallAtPrecision

quick = settings(max_examples=80, deadline=None)


@st.composite
def scored_rows(draw, low=0.0, high=1.0, max_rows=50):
    """float32 scores with ties, and labels of both classes."""
    count = draw(st.integers(2, max_rows))
    labels = draw(arrays(np.int8, count, elements=st.integers(0, 1)))
    labels[0], labels[-1] = 1, 0
    steps = st.integers(0, 20).map(lambda i: low + (high - low) * i / 20) | st.floats(low, high, width=32)
    return draw(arrays(np.float64, count, elements=steps)).astype(np.float32), labels


def overconfident(rows, seed=0):
    """Logits of a network whose calibrated logit is 0.6 * logit - 1."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(-4, 3, rows).astype(np.float32)
    return logits, (rng.random(rows) < expit(0.6 * logits - 1)).astype(np.int8)


@quick
@given(scored_rows(-30, 30), st.sampled_from(["none", "platt", "isotonic"]))
def test_calibration_keeps_the_order_of_scores(scored, method):
    logits, labels = scored
    calibration = fit_calibration(logits, labels, method)
    probabilities = calibration.apply(np.unique(np.append(logits, np.linspace(-40, 40, 99))).astype(np.float32))
    assert (np.diff(probabilities) >= 0).all()
    assert (probabilities >= 0).all()
    assert (probabilities <= 1).all()


@quick
@given(scored_rows(-30, 30))
def test_isotonic_knots_rise_and_are_float32_numbers_that_the_graph_can_hold(scored):
    logits, labels = scored
    x, y = np.array(fit_calibration(logits, labels, "isotonic").knots).T
    assert 2 <= len(x) <= MAX_KNOTS
    assert (np.diff(x) > 0).all()
    assert (np.diff(y) > 0).all() or len(y) == 2
    assert (x == x.astype(np.float32)).all()
    assert (y == y.astype(np.float32)).all()


@pytest.mark.parametrize("method", ["platt", "isotonic"])
def test_calibration_mends_an_overconfident_network_on_other_rows(method):
    calibration = fit_calibration(*overconfident(400_000), method)
    logits, labels = overconfident(400_000, seed=1)
    # The true probabilities themselves have an error of 0.001 on as many rows.
    assert calibration_error(expit(logits), labels) > 0.04
    assert calibration_error(calibration.apply(logits), labels) < 0.004


def test_platt_is_the_maximum_likelihood():
    logits, labels = overconfident(50_000)
    calibration = fit_calibration(logits, labels, "platt")
    reference = LogisticRegression(C=1e9, tol=1e-8).fit(logits[:, None], labels)
    assert calibration.slope == pytest.approx(reference.coef_[0, 0], abs=2e-3)
    assert calibration.intercept == pytest.approx(reference.intercept_[0], abs=5e-3)


def test_isotonic_needs_no_more_than_its_knots_and_loses_little_against_the_truth():
    logits, labels = overconfident(200_000)
    calibration = fit_calibration(logits, labels, "isotonic")
    assert len(calibration.knots) == MAX_KNOTS
    truth = expit(0.6 * logits - 1)
    assert np.abs(calibration.apply(logits) - truth).mean() < 0.005
    assert len(np.unique(calibration.apply(logits))) > 0.5 * len(np.unique(logits))


def test_separable_scores_get_a_finite_calibration():
    logits = np.linspace(-5, 5, 100).astype(np.float32)
    calibration = fit_calibration(logits, logits > 0, "platt")
    assert 0.5 < calibration.apply(logits)[-1] <= 1
    assert 0 < calibration.slope < 100


def test_scores_that_hardly_differ_get_finite_probabilities():
    logits = np.array([0, 1e-40, 1e-40, 2e-40], np.float32)
    probabilities = fit_calibration(logits, np.array([0, 1, 1, 1]), "platt").apply(logits)
    assert np.isfinite(probabilities).all()
    assert probabilities == pytest.approx(0.68, abs=0.05)


def test_a_network_worse_than_chance_is_not_turned_round():
    logits = np.linspace(-5, 5, 100).astype(np.float32)
    calibration = fit_calibration(logits, logits < 0, "platt")
    assert calibration.slope > 0
    assert calibration.apply(logits) == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize("method", ["platt", "isotonic"])
def test_scores_that_say_nothing_get_the_base_rate(method):
    labels = (np.arange(1_000) % 10 == 0).astype(np.int8)
    calibration = fit_calibration(np.zeros(1_000, np.float32), labels, method)
    assert calibration.apply(np.zeros(1, np.float32))[0] == pytest.approx(0.1, abs=2e-3)


def test_one_class_and_diverged_logits_are_errors():
    with pytest.raises(ValueError, match="all 5 rows are of one class"):
        fit_calibration(np.zeros(5), np.zeros(5), "platt")
    with pytest.raises(FraudRayError, match="training diverged"):
        fit_calibration(np.array([0, np.nan]), np.array([0, 1]), "isotonic")


@quick
@given(scored_rows())
def test_no_cut_has_a_better_f1_than_max_f1(scored):
    probabilities, labels = scored

    def f1(threshold):
        alert = probabilities.astype(np.float64) >= threshold
        return 2 * labels[alert].sum() / (alert.sum() + labels.sum())

    chosen = choose_threshold(probabilities, labels, "max_f1")
    assert f1(chosen) == max(f1(cut) for cut in np.unique(probabilities))
    assert chosen == np.float32(chosen)


@quick
@given(scored_rows(), st.sampled_from([0.3, 0.5, 0.8]))
def test_recall_at_a_precision_is_the_highest_over_all_cuts(scored, precision):
    probabilities, labels = scored
    cuts = [probabilities >= cut for cut in np.unique(probabilities)]
    reached = [labels[alert].sum() for alert in cuts if labels[alert].mean() >= precision]
    rule = RecallAtPrecision(recall_at_precision=precision)
    if not reached:
        with pytest.raises(FraudRayError, match=rf"no threshold reaches precision {precision}"):
            choose_threshold(probabilities, labels, rule)
        return
    alert = probabilities.astype(np.float64) >= choose_threshold(probabilities, labels, rule)
    assert labels[alert].mean() >= precision
    assert labels[alert].sum() == max(reached)


@quick
@given(scored_rows(), st.integers(1, 20), st.integers(1, 3))
def test_alerts_a_day_are_as_many_as_fit_within_the_limit(scored, per_day, days):
    probabilities, labels = scored
    chosen = choose_threshold(probabilities, labels, AlertsPerDay(alerts_per_day=per_day), days)
    alerts = int((probabilities.astype(np.float64) >= chosen).sum())
    possible = [int((probabilities >= cut).sum()) for cut in np.unique(probabilities)]
    within = [count for count in possible if count <= per_day * days]
    assert alerts == (max(within) if within else min(possible))


@quick
@given(scored_rows(), st.data())
def test_no_cut_costs_less_than_min_cost(scored, data):
    probabilities, labels = scored
    cents = data.draw(arrays(np.int64, len(labels), elements=st.integers(0, 10_000)))
    costs = Costs(cents / 100, per_alert=data.draw(st.sampled_from([0.5, 5.0, 50.0])))

    def cost(threshold):
        alert = probabilities.astype(np.float64) >= threshold
        return costs.amounts[(labels == 1) & ~alert].sum() + costs.per_alert * alert.sum()

    chosen = choose_threshold(probabilities, labels, "min_cost", costs=costs)
    assert cost(chosen) == pytest.approx(min(cost(cut) for cut in np.unique(probabilities)))


def test_the_minimum_cost_needs_costs():
    with pytest.raises(ValueError, match="what errors cost"):
        choose_threshold(np.ones(3), np.ones(3), "min_cost")


def test_alerts_a_day_need_days():
    with pytest.raises(ValueError, match="number of days"):
        choose_threshold(np.ones(3), np.ones(3), AlertsPerDay(alerts_per_day=1))


def test_a_fixed_threshold_is_kept():
    rule = DecisionSettings(threshold=0.5).threshold
    assert choose_threshold(np.array([0.1, 0.2]), np.array([0, 1]), rule) == 0.5


def test_the_threshold_lies_between_scores_so_that_rounding_moves_no_row():
    chosen = choose_threshold(np.array([0.9, 0.8, 0.2], np.float32), np.array([1, 1, 0]), "max_f1")
    assert chosen == pytest.approx(0.5)
