"""The metrics, their intervals, the curves, and the evaluation that holds them."""

from __future__ import annotations

import json
import math
import time
from datetime import date, timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score, precision_recall_fscore_support, roc_auc_score, roc_curve
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from fraud_ray.data.rows import Rows
from fraud_ray.decision.bootstrap import NAMES, Predictions, Ranking, differences, intervals
from fraud_ray.decision.curves import (
    MAX_POINTS,
    Curves,
    alert_calibration_points,
    calibration_points,
    histogram_points,
    ranking_curves,
    share_interval,
)
from fraud_ray.decision.evaluate import (
    Evaluation,
    best_possible,
    calibration_error,
    card_precision_at_k,
    evaluate,
    precision_at_k,
)
from fraud_ray.decision.false_positives import at_false_positive_rates
from fraud_ray.decision.names import metric_name
from fraud_ray.errors import FraudRayError
from fraud_ray.settings import DecisionSettings

quick = settings(max_examples=60, deadline=None)


@st.composite
def scored_rows(draw, min_rows=2, max_rows=60):
    """Scores with many ties, and labels of both classes."""
    count = draw(st.integers(min_rows, max_rows))
    labels = draw(arrays(np.int8, count, elements=st.integers(0, 1)))
    labels[0], labels[-1] = 1, 0
    return draw(arrays(np.float64, count, elements=st.integers(0, 20).map(lambda i: i / 20))), labels


def simulated(rows, seed=0, cards=500):
    """Rows whose probability is known, as preparing would hand them over."""
    rng = np.random.default_rng(seed)
    card = rng.integers(cards, size=rows)
    truth = 1 / (1 + np.exp(-rng.normal(-5, 2.5, rows) - rng.normal(0, 1, cards)[card]))
    roles = {
        "entity": np.array([f"card-{i}" for i in card], object),
        "timestamp": np.datetime64("2024-03-01", "us") + np.sort(rng.integers(0, 7 * 86_400, rows)).astype("m8[s]"),
        "true_probability": truth,
    }
    place = np.array(["shop", "fuel", None], object)[rng.integers(3, size=rows)]
    label = (rng.random(rows) < truth).astype(np.int8)
    return Rows(np.zeros((rows, 1), np.float32), np.zeros((rows, 0), np.int32), label, roles, {"place": place})


def card_precision_by_loop(scores, labels, entities, days, k):
    """Card Precision as its definition reads, one entity after the other."""
    found, shares = set(), []
    for day in sorted(set(days)):
        highest, with_fraud = {}, set()
        for row in range(len(scores)):
            if days[row] != day or entities[row] in found:
                continue
            if entities[row] not in highest or scores[row] > highest[entities[row]][0]:
                highest[entities[row]] = (scores[row], -row)
            if labels[row]:
                with_fraud.add(entities[row])
        looked_at = sorted(highest, key=lambda entity: highest[entity], reverse=True)[:k]
        caught = [entity for entity in looked_at if entity in with_fraud]
        shares.append(len(caught) / k)
        found.update(caught)
    return sum(shares) / len(shares)


@quick
@given(scored_rows(), st.sampled_from([np.exp, np.cbrt, lambda x: 3 * x - 1]))
def test_ranking_metrics_see_only_the_order_of_the_scores(scored, transform):
    scores, labels = scored
    for row_weights in (np.ones(len(labels), np.int32), np.arange(len(labels), dtype=np.int32)[::-1] + 1):
        by_score, by_transformed = (ranking_metrics(s, labels, row_weights) for s in (scores, transform(scores)))
        assert by_score[:2] == by_transformed[:2]


def ranking_metrics(scores, labels, weights, threshold=0.5):
    order = np.argsort(-scores, kind="stable")
    ranking = Ranking.of(scores[order], labels[order] == 1, threshold)
    return ranking.metrics(weights[order]).tolist()


@quick
@given(scored_rows(), st.data())
def test_weighted_metrics_equal_scikit_learns(scored, data):
    scores, labels = scored
    weights = data.draw(arrays(np.int32, len(scores), elements=st.integers(0, 4)))
    weights[[0, -1]] = 1
    alerts = scores >= 0.5
    precision, recall, f1, _ = precision_recall_fscore_support(
        labels, alerts, average="binary", sample_weight=weights, zero_division=np.nan
    )
    expected = [
        roc_auc_score(labels, scores, sample_weight=weights),
        average_precision_score(labels, scores, sample_weight=weights),
        precision,
        recall,
        f1,
    ]
    assert ranking_metrics(scores, labels, weights) == pytest.approx(expected, abs=1e-12, nan_ok=True)


@quick
@given(scored_rows(max_rows=80), st.data())
def test_card_precision_equals_a_literal_reading_of_its_definition(scored, data):
    scores, labels = scored
    entities = data.draw(arrays(np.int64, len(scores), elements=st.integers(0, 9)))
    days = data.draw(arrays(np.int64, len(scores), elements=st.integers(0, 3)))
    k = data.draw(st.integers(1, 6))
    timestamps = np.datetime64("2024-03-01T09:30", "us") + days.astype("m8[D]")
    assert card_precision_at_k(scores, labels, entities, timestamps, k) == pytest.approx(
        card_precision_by_loop(scores, labels, entities.tolist(), days.tolist(), k)
    )


def test_a_found_card_is_not_looked_at_again():
    scores, labels = np.array([0.9, 0.1, 0.9, 0.8]), np.array([1, 0, 1, 1])
    cards = np.array(["a", "b", "a", "b"])
    days = np.array(["2024-03-01", "2024-03-01", "2024-03-02", "2024-03-02"], "M8[us]")
    assert card_precision_at_k(scores, labels, cards, days, 1) == 1.0
    assert card_precision_at_k(scores, labels, cards, days, 2) == 0.5


def test_ties_at_k_go_to_the_earlier_row():
    assert precision_at_k(np.array([0.5, 0.9, 0.5, 0.5]), np.array([1, 0, 0, 0]), 2) == 0.5
    assert precision_at_k(np.array([0.5, 0.9, 0.5, 0.5]), np.array([0, 0, 1, 1]), 2) == 0.0
    with pytest.raises(ValueError, match="precision at 5 of 4 rows"):
        precision_at_k(np.ones(4), np.ones(4), 5)


@quick
@given(scored_rows())
def test_calibration_error_is_a_share_and_ignores_the_order_of_rows(scored):
    scores, labels = scored
    error = calibration_error(scores, labels)
    assert 0 <= error <= 1
    assert error == pytest.approx(calibration_error(scores[::-1], labels[::-1]))
    constant = np.full(len(labels), labels.mean())
    assert calibration_error(constant, labels) == pytest.approx(0, abs=1e-12)


def test_true_probabilities_are_calibrated_and_shifted_ones_are_not():
    rows = simulated(50_000)
    truth = rows.roles["true_probability"]
    assert calibration_error(truth, rows.label) < 0.004
    assert calibration_error(np.minimum(truth + 0.1, 1), rows.label) == pytest.approx(0.1, abs=0.01)


@quick
@given(scored_rows())
def test_the_best_possible_f1_is_the_best_over_all_cuts(scored):
    scores, labels = scored
    by_cut = [2 * (labels[scores >= cut].sum()) / ((scores >= cut).sum() + labels.sum()) for cut in np.unique(scores)]
    assert best_possible(scores, labels)["f1_score"] == max(by_cut)


@pytest.mark.parametrize("by_entity", [False, True])
def test_intervals_cover_the_value_and_shrink_with_rows(by_entity):
    widths = []
    for count in (3_000, 48_000):
        rows = simulated(count, cards=count // 20)
        scores, entity = rows.roles["true_probability"], rows.roles["entity"] if by_entity else None
        value = dict(zip(NAMES, ranking_metrics(scores, rows.label, np.ones(count, np.int32)), strict=True))
        found = intervals(scores, rows.label, 0.5, entity, repeats=200, confidence=0.95, seed=1)
        assert list(found) == list(NAMES)
        assert all(low <= value[name] <= high for name, (low, high) in found.items())
        widths.append({name: high - low for name, (low, high) in found.items()})
    assert all(widths[1][name] < 0.5 * widths[0][name] for name in NAMES)


def test_intervals_are_wider_where_the_rows_of_a_card_go_together():
    rng = np.random.default_rng(3)
    card = np.repeat(np.arange(400), 20)
    labels = (rng.random(400) < 0.1)[card]
    scores = np.clip(labels * 0.3 + rng.normal(0.4, 0.2, 400)[card], 0, 1)
    by_row, by_card = (intervals(scores, labels, 0.5, entity, 100, 0.95, 1) for entity in (None, card))
    low, high = np.transpose([by_row["average_precision"], by_card["average_precision"]])
    assert high[1] - low[1] > 2 * (high[0] - low[0])


def test_the_interval_holds_the_truth_as_often_as_it_says():
    limit = best_possible((big := simulated(400_000, seed=99)).roles["true_probability"], big.label)
    held = 0
    for seed in range(60):
        rows = simulated(4_000, seed=seed, cards=400)
        low, high = intervals(rows.roles["true_probability"], rows.label, 0.5, None, 100, 0.9, seed)[
            "average_precision"
        ]
        held += low <= limit["average_precision"] <= high
    assert 0.75 <= held / 60 <= 1.0


@pytest.mark.parametrize("by_entity", [False, True])
def test_two_hundred_repeats_on_two_hundred_thousand_rows_take_less_than_three_seconds(by_entity):
    rows = simulated(200_000, cards=5_000)
    entity = np.unique(rows.roles["entity"], return_inverse=True)[1] if by_entity else None
    started = time.process_time()
    intervals(rows.roles["true_probability"], rows.label, 0.5, entity, repeats=200, confidence=0.95, seed=1)
    assert time.process_time() - started < 3


def test_seeds_that_differ_widen_the_interval_of_a_difference():
    rows, noise = simulated(4_000, 1), np.random.default_rng(0)
    truth, entities = rows.roles["true_probability"], [rows.roles["entity"]]
    seeds = [[Predictions(truth * np.exp(noise.normal(0, 1, len(truth))), 0.5)] for _ in range(5)]
    labels = [rows.label]
    alone, five, itself = (
        differences(seeds, {"other": other}, labels, entities, 200, 0.95, seed=0)["other"]["average_precision"]
        for other in (seeds[:1], seeds, seeds)
    )
    means = [average_precision_score(rows.label, fit.probabilities) for [fit] in seeds]
    assert alone.value == pytest.approx(np.mean(means) - means[0])
    assert five == itself
    assert five.value == 0
    assert five.low < 0 < five.high


@pytest.mark.parametrize("by_entity", [True, False])
def test_a_difference_between_models_is_of_means_over_weeks_on_the_same_draws(by_entity):
    weeks = [simulated(4_000, seed) for seed in (1, 2)]
    model, labels = [rows.roles["true_probability"] for rows in weeks], [rows.label for rows in weeks]
    noise = np.random.default_rng(0)
    other = [truth * np.exp(noise.normal(0, 0.5, len(truth))) for truth in model]
    entities = [rows.roles["entity"] for rows in weeks] if by_entity else None
    scored = [[Predictions(probabilities, 0.5) for probabilities in of] for of in (model, other)]
    found = differences([scored[0]], {"noisy": [scored[1]]}, labels, entities, 100, 0.95, seed=0)
    lead = found["noisy"]["average_precision"]
    means = [np.mean([average_precision_score(y, p) for y, p in zip(labels, of, strict=True)]) for of in (model, other)]
    assert lead.value == pytest.approx(means[0] - means[1])
    assert 0 < lead.low < lead.value < lead.high
    alone = intervals(model[0], labels[0], 0.5, entities and entities[0], 100, 0.95, seed=0)["average_precision"]
    assert lead.high - lead.low < 0.7 * (alone[1] - alone[0])


def test_an_evaluation_holds_every_figure_and_survives_json():
    rows = simulated(5_000)
    settings = DecisionSettings(precision_at=(10, 9_999), card_precision_at=20, slices=("place",), bootstrap_repeats=20)
    found = evaluate(rows.roles["true_probability"].astype(np.float32), rows, 0.4, settings)
    assert list(found.metrics) == [
        "auc_roc",
        "average_precision",
        "precision",
        "recall",
        "f1_score",
        "false_positive_rate",
        "brier",
        "brier_skill",
        "calibration_error",
        "precision_at_10",
        "card_precision_at_20",
    ]
    counts = found.confusion
    assert counts.tp + counts.fn == found.frauds == rows.label.sum()
    assert counts.tp + counts.fp + counts.fn + counts.tn == found.rows == 5_000
    assert found.metrics["f1_score"] == pytest.approx(2 * counts.tp / (2 * counts.tp + counts.fp + counts.fn))
    assert found.best_possible["average_precision"] == pytest.approx(found.metrics["average_precision"])
    assert found.best_possible["f1_score"] >= found.metrics["f1_score"]
    assert {part.value for part in found.slices} == {"shop", "fuel", ""}
    assert sum(part.rows for part in found.slices) == 5_000
    assert sum(part.frauds for part in found.slices) == found.frauds
    assert Evaluation.from_json(json.loads(json.dumps(found.to_json()))) == found


def test_money_is_counted_where_an_amount_is_declared():
    labels = np.array([1, 1, 0, 0, 1], np.int8)
    amounts = np.array([100.0, 40.0, 500.0, 7.0, np.nan])
    rows = Rows(np.zeros((5, 1), np.float32), np.zeros((5, 0), np.int32), labels, {"amount": amounts})
    scores = np.array([0.9, 0.2, 0.8, 0.1, 0.7])
    metrics = evaluate(scores, rows, 0.5, DecisionSettings(bootstrap_repeats=0, cost_per_alert=10)).metrics
    assert metrics["amount_recall"] == pytest.approx(100 / 140)
    assert metrics["money_saved"] == pytest.approx(100 - 3 * 10)
    assert "money_saved" not in evaluate(scores, rows, 0.5, DecisionSettings(bootstrap_repeats=0)).metrics


def test_recall_at_a_false_positive_rate_and_the_ratio_of_the_groups_rates_are_those_of_the_roc_curve():
    rows, rng = simulated(5_000), np.random.default_rng(3)
    scores = np.clip(rows.roles["true_probability"] + rng.normal(0, 0.02, 5_000), 0, 1).round(3)  # with ties
    place = np.array([name or "" for name in rows.slices["place"]])
    settings = DecisionSettings(recall_at_fpr=(0.05, 0.2), slices=("place",), bootstrap_repeats=0)
    metrics = evaluate(scores, rows, 0.5, settings).metrics
    false, caught, thresholds = roc_curve(rows.label, scores, drop_intermediate=False)
    for rate in (0.05, 0.2):
        at = int(np.flatnonzero(false <= rate)[-1])
        assert metrics[f"recall_at_fpr_{rate}"] == pytest.approx(caught[at])
        legitimate = [(place == name) & (rows.label == 0) for name in ("shop", "fuel", "")]
        rates = [(scores[group] >= thresholds[at]).mean() for group in legitimate]
        assert metrics[f"fpr_ratio_place_at_fpr_{rate}"] == pytest.approx(min(rates) / max(rates))
    assert metric_name("recall_at_fpr_0.05") == "recall at FPR 0.05"
    tied = at_false_positive_rates(
        np.ones(4), np.array([1, 0, 0, 0]), (0.05,), {"place": np.array(["a", "b", "a", "b"])}
    )
    assert tied == {"recall_at_fpr_0.05": 0.0}


def test_what_needs_an_undeclared_role_is_left_out():
    rows = simulated(500)
    bare = Rows(rows.features, rows.codes, rows.label)
    found = evaluate(np.linspace(0, 1, 500), bare, 0.5, DecisionSettings(bootstrap_repeats=5))
    assert found.best_possible is None
    assert not any(name.startswith("card_precision") for name in found.metrics)
    assert set(found.intervals) == set(NAMES)


@pytest.mark.parametrize(
    ("label", "defined"),
    [
        (0, {"precision", "false_positive_rate", "brier", "calibration_error"}),
        (1, {"precision", "recall", "f1_score", "brier", "calibration_error"}),
    ],
)
def test_a_one_class_slice_leaves_undefined_metrics_out(label, defined):
    rows = simulated(300)
    place = np.array(["one", "other"], object)[np.arange(300) % 2]
    labels = np.where(place == "one", label, rows.label).astype(np.int8)
    rows = Rows(rows.features, rows.codes, labels, rows.roles, {"place": place})
    settings = DecisionSettings(slices=("place",), bootstrap_repeats=0)
    one = next(part for part in evaluate(np.linspace(0, 1, 300), rows, 0.5, settings).slices if part.value == "one")
    assert set(one.metrics) == defined
    assert all(math.isfinite(value) for value in one.metrics.values())


def test_without_alerts_precision_is_left_out_and_f1_is_zero():
    rows = simulated(500)
    metrics = evaluate(np.linspace(0, 0.4, 500), rows, 0.5, DecisionSettings(bootstrap_repeats=5)).metrics
    assert "precision" not in metrics
    assert metrics["recall"] == metrics["f1_score"] == 0


def test_probabilities_that_are_not_numbers_are_an_error_that_names_the_rows():
    rows = simulated(100)
    probabilities = np.full(100, 0.5)
    probabilities[[7, 9]] = np.nan
    with pytest.raises(FraudRayError, match=r"nan for 2 of 100 holdout rows \(first at row 7\)"):
        evaluate(probabilities, rows, 0.5, DecisionSettings())


def test_curves_are_thin_and_keep_the_area():
    rows = simulated(20_000)
    scores = rows.roles["true_probability"]
    curves = ranking_curves(scores, rows.label, 100)
    roc = curves.roc
    assert len(roc["recall"]) == len(roc["false_positive_rate"]) <= MAX_POINTS
    assert (roc["recall"][0], roc["recall"][-1], roc["false_positive_rate"][-1]) == (0, 1, 1)
    assert np.trapezoid(roc["recall"], roc["false_positive_rate"]) == pytest.approx(
        roc_auc_score(rows.label, scores), abs=1e-3
    )
    curve = curves.precision_recall
    assert len(curve["precision"]) == len(curve["threshold"]) <= MAX_POINTS
    for recall, precision, threshold in zip(curve["recall"], curve["precision"], curve["threshold"], strict=True):
        alert = scores >= threshold
        assert precision == rows.label[alert].mean()
        assert recall == rows.label[alert].sum() / rows.label.sum()


def test_bins_and_histogram_count_every_row_once():
    rows = simulated(10_000)
    bins = calibration_points(rows.roles["true_probability"], rows.label)
    assert sum(bins["rows"]) == 10_000
    assert bins["probability"] == sorted(bins["probability"])
    for low, rate, high in zip(bins["low"], bins["fraud_rate"], bins["high"], strict=True):
        assert 0 <= low <= rate <= high <= 1
    histogram = histogram_points(rows.roles["true_probability"], rows.label)
    assert sum(histogram["legitimate"]) + sum(histogram["fraud"]) == 10_000
    assert json.dumps([bins, histogram])


@quick
@given(scored_rows(), st.integers(1, 60))
def test_alerts_are_counted_up_to_a_limit(sample, most_alerts):
    scores, labels = sample
    points = ranking_curves(scores, labels, most_alerts).alerts
    assert all(alerts <= most_alerts for alerts in points["alerts"][1:])
    for alerts, frauds, threshold in zip(points["alerts"], points["frauds"], points["threshold"], strict=True):
        assert (alerts, frauds) == (np.sum(scores >= threshold), labels[scores >= threshold].sum())


def test_alerts_are_compared_with_their_probability_in_five_bins_by_score():
    rng = np.random.default_rng(0)
    truth = rng.beta(0.3, 2, 20_000)
    labels = (rng.random(len(truth)) < truth).astype(np.int8)
    points = alert_calibration_points(truth, labels, 0.4)
    assert sum(points["rows"]) == (truth >= 0.4).sum()
    assert max(points["rows"]) - min(points["rows"]) <= 1
    assert points["probability"] == sorted(points["probability"])
    for probability, low, high in zip(points["probability"], points["low"], points["high"], strict=True):
        assert low <= probability <= high
    assert alert_calibration_points(truth, labels, 1.1)["rows"] == []


def test_an_interval_of_a_share_is_wilsons():
    """Newcombe, "Two-sided confidence intervals for the single proportion" (1998), table I, method 3."""
    assert share_interval(81, 263, 0.95) == pytest.approx((0.2553, 0.3662), abs=1e-4)
    assert share_interval(0, 20, 0.95) == pytest.approx((0, 0.1611), abs=1e-4)


def test_curves_are_the_same_after_a_round_through_json():
    rows = simulated(5_000)
    truth = rows.roles["true_probability"]
    for known, days in ((truth, 7), (None, None)):
        curves = Curves.of(truth**0.5, rows.label, 0.4, known, days, 0.95)
        assert Curves.from_json(json.loads(json.dumps(curves.to_json()))) == curves
        assert (curves.best_possible is None) == (known is None)


def test_the_published_logistic_regression_is_reproduced(handbook: Path):
    """Chapter 3's table, start 2018-07-25: ROC AUC 0.871, AP 0.606, Card Precision@100 0.291."""
    start = date(2018, 7, 25)
    tables = [
        pq.read_table(handbook / "features" / f"date={start + timedelta(days)}" / "part-0.parquet", partitioning=None)
        for days in range(21)
    ]
    roles = ("TRANSACTION_ID", "TX_DATETIME", "CUSTOMER_ID", "TERMINAL_ID", "TX_TIME_SECONDS", "TX_TIME_DAYS")
    features = [n for n in tables[0].column_names if n not in (*roles, "TX_FRAUD", "TX_FRAUD_SCENARIO")]
    assert len(features) == 15

    def defrauded(table):
        return set(table["CUSTOMER_ID"].to_numpy()[table["TX_FRAUD"].to_numpy() == 1].tolist())

    def values(table):
        return np.column_stack([table[name].to_numpy() for name in features])

    fit = pa.concat_tables(tables[:7])
    known, held_out = defrauded(fit), []
    for day in range(7):
        known |= defrauded(tables[7 + day - 1])
        table = tables[14 + day]
        held_out.append(table.filter(pa.array([c not in known for c in table["CUSTOMER_ID"].to_pylist()])))
    holdout = pa.concat_tables(held_out)
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=200))
    model.fit(values(fit), fit["TX_FRAUD"].to_numpy())
    scores, labels = model.predict_proba(values(holdout))[:, 1], holdout["TX_FRAUD"].to_numpy()
    roles_of_rows = {"entity": holdout["CUSTOMER_ID"].to_numpy(), "timestamp": holdout["TX_DATETIME"].to_numpy()}
    rows = Rows(np.zeros((len(labels), 1), np.float32), np.zeros((len(labels), 0), np.int32), labels, roles_of_rows)
    metrics = evaluate(scores, rows, 0.5, DecisionSettings(bootstrap_repeats=0)).metrics
    published = {"auc_roc": 0.871, "average_precision": 0.606, "card_precision_at_100": 0.291}
    assert {name: metrics[name] for name in published} == pytest.approx(published, abs=1e-3)
