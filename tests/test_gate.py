"""The quality gate."""

from __future__ import annotations

import itertools
import json
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import expit

from fraud_ray.data.rows import Rows
from fraud_ray.decision.bootstrap import Predictions
from fraud_ray.decision.curves import Curves
from fraud_ray.decision.cuts import Cuts
from fraud_ray.decision.evaluate import Confusion, Evaluation, SliceEvaluation, evaluate
from fraud_ray.decision.gate import Check, GateDecision, decide
from fraud_ray.decision.rejection import Cutoff, cutoffs, of_the_bounds, of_the_search
from fraud_ray.decision.rival import Rival, against
from fraud_ray.settings import DecisionSettings, GateSettings, SliceGate


def evaluation(slices=(), rows=1_000, **metrics):
    return Evaluation(rows, 100, 0.5, metrics, {}, None, Confusion(80, 20, 20, rows - 120), tuple(slices))


def place(value, frauds=50, **metrics):
    return SliceEvaluation("place", value, 500, frauds, metrics)


def test_the_rejection_tells_both_numbers():
    decision = decide(evaluation(f1_score=0.81234), GateSettings(min_f1=0.85), None)
    assert not decision.passed
    assert decision.reason == "F1 0.8123 is below the required 0.85 by 0.038"


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
        numbers = [float(word) for word in lower.message.split() if word[0].isdigit()][:2]
        assert numbers[0] != numbers[1]


def test_all_bounds_are_checked_and_every_failure_is_told():
    gate = GateSettings(min_f1=0.8, min_average_precision=0.7, min_auc=0.9, max_calibration_error=0.01)
    metrics = {"f1_score": 0.9, "average_precision": 0.6, "auc_roc": 0.95, "calibration_error": 0.02}
    decision = decide(evaluation(**metrics), gate, None)
    assert [check.passed for check in decision.checks] == [True, False, True, False]
    assert decision.reason == (
        "average precision 0.6000 is below the required 0.7 by 0.1; "
        "calibration error 0.0200 is above the allowed 0.01 by 0.01"
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
        "recall of place 'fuel' 0.4000 is below the required 0.5 by 0.1 (50 frauds in 500 rows); "
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
            "average precision 0.6900 is below the required 0.7 by 0.01 (the champion's on the same rows)"
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


# After a rejection.


def test_thresholds_are_offered_of_which_none_is_worse_in_both_and_the_models_own_is_marked():
    rng = np.random.default_rng(0)
    label = (rng.random(150) < 0.2).astype(np.int8)  # every cut is a point of the curve
    scores = 1 / (1 + np.exp(-rng.normal(2.0 * label - 2, 1.0)))
    cuts = Cuts.of(scores, label)
    rows = Rows(np.zeros((150, 0), np.float32), np.zeros((150, 0), np.int32), label)
    judged = evaluate(scores, rows, 0.5, DecisionSettings(bootstrap_repeats=0))
    offered = cutoffs(Curves.of(scores, label, 0.5, None, None, 0.95), judged)
    assert 5 <= len(offered) <= 8
    assert [one.threshold for one in offered] == sorted((one.threshold for one in offered), reverse=True)
    for one in offered:
        alert = scores >= one.threshold
        hits = int(label[alert].sum())
        assert (one.alerts, one.precision, one.recall) == pytest.approx(
            (alert.sum(), hits / alert.sum(), hits / label.sum())
        )
        better = (cuts.precision > one.precision + 1e-12) & (cuts.hits / cuts.frauds > one.recall + 1e-12)
        assert one.note == "the model's" or not better.any()
    assert max(one.f1 for one in offered) == pytest.approx(cuts.f1.max())
    (own,) = (one for one in offered if one.note == "the model's")
    assert (own.threshold, own.f1) == (0.5, judged.metrics["f1_score"])


def test_a_bound_that_no_threshold_or_no_model_keeps_is_told_from_one_that_another_threshold_keeps():
    def told(bound: float, rival: Rival | None = None, **known: Any) -> list[str]:
        judged = replace(evaluation(f1_score=0.6), **known)
        cutoff = Cutoff(0.25, 0.7, 0.7, 0.7, 9)
        return of_the_bounds(decide(judged, GateSettings(min_f1=bound), None), judged, [cutoff], rival)

    assert told(0.5) == []
    assert told(0.65) == ["with decision.threshold 0.2500 F1 would be 0.7000 on these rows"]
    assert told(0.8) == ["no threshold does: F1 is at most 0.7000, so the scores have to become better"]
    assert told(0.8, best_possible={"f1_score": 0.75}) == [
        "no model can: the best possible on these rows is 0.7500; lower gate.min_f1"
    ]
    rival = Rival("lightgbm", 8, 3.0, 0.95, {"f1_score": 0.68}, {})
    assert told(0.65, rival)[0] == "lightgbm keeps gate.min_f1 on these rows: 0.6800"
    assert told(0.8, rival)[0] == "lightgbm does not reach gate.min_f1 on these rows: 0.6800"


def test_a_rival_is_said_to_be_beaten_only_where_the_interval_lies_above_0():
    rng = np.random.default_rng(0)
    label = (rng.random(4_000) < 0.05).astype(np.int8)
    truth = 3 * label + rng.normal(0, 1, len(label))
    weak, strong = (Predictions(expit(truth - 3 + rng.normal(0, noise, len(label))), 0.5) for noise in (1, 0.01))
    told = {"name": "lightgbm", "trials": 8, "seconds": 3.4}
    for network, rival, verdict in ((strong, weak, "lead"), (weak, strong, "behind"), (weak, weak, "within noise")):
        found = against(network, rival, label, None, DecisionSettings(bootstrap_repeats=50), **told)
        assert found.differences["average_precision"].verdict == verdict
        assert f": {verdict})" in found.message
        assert found.message.endswith("It cost 3 s for 8 trials")
        assert Rival.from_json(json.loads(json.dumps(found.to_json()))) == found
    assert (
        "nothing to compare"
        in against(weak, strong, label, None, DecisionSettings(bootstrap_repeats=0), **told).message
    )


def test_few_frauds_are_remarked_on():
    assert replace(evaluation(f1_score=0.6), frauds=100).remark is None
    assert "75 frauds in the holdout, fewer than 100" in str(replace(evaluation(f1_score=0.6), frauds=75).remark)


def test_what_a_search_would_still_bring_is_told_from_its_trials_and_its_best_ones_curve():
    level = [{"average_precision": 0.6}] * 8
    assert "nothing was searched" in of_the_search([0.6], level)[0]
    assert of_the_search([0.5, 0.6], level)[0].startswith("2 trials: selection AP 0.6000 at best, 0.5500 at the median")
    scores = [0.5, 0.6, 0.55, 0.3, 0.4, 0.52]
    gain = 0.6 - np.mean([max(half) for half in itertools.combinations(scores, 3)])
    (told,) = of_the_search(scores, level)
    assert told.endswith(f"0.5100 at the median; twice as many would likely add about {gain:.3f}")
    assert of_the_search([0.6] * 6, level)[0].endswith("add less than 0.001")
    rising = [{"average_precision": epoch / 10} for epoch in range(8)]
    assert of_the_search(scores, rising)[1] == (
        "the best trial still rose by 0.2000 over its last 2 epochs: raise train.epochs"
    )
