"""The quality gate."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fraud_ray.decision.evaluate import Confusion, Evaluation, SliceEvaluation
from fraud_ray.decision.gate import Check, GateDecision, decide
from fraud_ray.settings import GateSettings, SliceGate


def evaluation(slices=(), rows=1_000, **metrics):
    return Evaluation(rows, 100, 0.5, metrics, {}, None, Confusion(80, 20, 20, rows - 120), tuple(slices))


def place(value, frauds=50, **metrics):
    return SliceEvaluation("place", value, 500, frauds, metrics)


def test_the_rejection_tells_both_numbers():
    decision = decide(evaluation(f1_score=0.81234), GateSettings(min_f1=0.85), None)
    assert not decision.passed
    assert decision.reason == "F1 0.8123 is below the required 0.85"


def test_a_model_at_the_bound_passes():
    decision = decide(evaluation(f1_score=0.85), GateSettings(min_f1=0.85), None)
    assert decision.passed
    assert decision.checks == (Check("min_f1", "F1", 0.85, 0.85, ">=", passed=True),)
    assert decision.checks[0].message == "F1 0.8500 reaches the required 0.85"
    assert decision.reason == "the one check passed"


@given(st.floats(0, 1), st.floats(0, 1))
def test_a_check_passes_exactly_when_the_bound_is_kept_and_shows_different_numbers_where_they_differ(value, bound):
    gate = GateSettings(min_f1=bound, max_calibration_error=bound)
    lower, upper = decide(evaluation(f1_score=value, calibration_error=value), gate, None).checks
    assert lower.passed == (value >= bound)
    assert upper.passed == (value <= bound)
    if abs(value - bound) > 1e-15:
        numbers = [float(word) for word in lower.message.split() if word[0].isdigit()][-2:]
        assert numbers[0] != numbers[1]


def test_all_bounds_are_checked_and_every_failure_is_told():
    gate = GateSettings(min_f1=0.8, min_average_precision=0.7, min_auc=0.9, max_calibration_error=0.01)
    metrics = {"f1_score": 0.9, "average_precision": 0.6, "auc_roc": 0.95, "calibration_error": 0.02}
    decision = decide(evaluation(**metrics), gate, None)
    assert [check.passed for check in decision.checks] == [True, False, True, False]
    assert decision.reason == (
        "average precision 0.6000 is below the required 0.7; calibration error 0.0200 is above the allowed 0.01"
    )


@pytest.mark.parametrize("metrics", [{}, {"f1_score": math.nan}, {"f1_score": math.inf}])
def test_an_undefined_value_never_passes(metrics):
    decision = decide(evaluation(**metrics), GateSettings(min_f1=0.0), None)
    assert not decision.passed
    assert decision.checks[0].value is None
    assert decision.reason == "F1 is undefined on these rows; required is 0"


def test_each_slice_with_enough_frauds_is_judged():
    slices = [place("fuel", recall=0.4), place("shop", recall=0.6), place("web", frauds=3, recall=0.0), place("bar")]
    gate = GateSettings(min_f1=None, slices=SliceGate(metric="recall", min=0.5, min_frauds=20))
    decision = decide(evaluation(slices), gate, None)
    assert {check.name: check.passed for check in decision.checks} == {
        "slices.place.fuel": False,
        "slices.place.shop": True,
        "slices.place.bar": False,
    }
    assert decision.reason.startswith(
        "recall of place 'fuel' 0.4000 is below the required 0.5 (50 frauds in 500 rows); "
    )


def test_no_slice_with_enough_frauds_passes_and_is_said():
    gate = GateSettings(min_f1=None, slices=SliceGate(min=0.5))
    (check,) = decide(evaluation([place("web", frauds=3, recall=0.0)]), gate, None).checks
    assert check.passed
    assert check.message == "recall by slice: no slice of decision.slices has 20 frauds, so none is judged"


@pytest.mark.parametrize(("challenger", "passes"), [(0.71, True), (0.70, True), (0.69, False)])
def test_a_worse_model_than_the_champion_is_rejected(challenger, passes):
    gate = GateSettings(min_f1=None, beats_champion=True)
    decision = decide(evaluation(average_precision=challenger), gate, evaluation(average_precision=0.70))
    assert decision.passed == passes
    if not passes:
        assert decision.reason == (
            "average precision 0.6900 is below the required 0.7 (the champion's on the same rows)"
        )


def test_without_a_champion_there_is_nothing_to_beat():
    gate = GateSettings(min_f1=None, beats_champion=True)
    (check,) = decide(evaluation(average_precision=0.1), gate, None).checks
    assert check.passed
    assert check.note == "there is no champion to compare with"


def test_a_champion_evaluated_on_other_rows_is_refused():
    gate = GateSettings(beats_champion=True)
    with pytest.raises(ValueError, match="on 2,000 rows with 100 frauds, the challenger on 1,000 with 100"):
        decide(evaluation(average_precision=0.7), gate, evaluation(average_precision=0.7, rows=2_000))


def test_an_open_gate_says_so():
    decision = decide(evaluation(f1_score=0.1), GateSettings(min_f1=None), None)
    assert decision.passed
    assert decision.reason == "no check is set"


def test_a_decision_survives_json():
    gate = GateSettings(min_auc=0.9, beats_champion=True)
    decision = decide(evaluation(f1_score=0.8), gate, None)
    assert GateDecision.from_json(json.loads(json.dumps(decision.to_json()))) == decision
