"""Histograms and profiles: merged in any order they are those of all rows, and they stay small."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import ks_2samp

from fraud_ray.data.drift import ks_distance
from fraud_ray.data.folds import plan_folds
from fraud_ray.data.prepare import feature_columns, prepare
from fraud_ray.model import histogram, profile
from fraud_ray.model.encoder import FeatureColumn
from fraud_ray.model.histogram import MOST_BINS, Histogram, aligned
from fraud_ray.model.profile import CategoryProfile, Profile
from fraud_ray.storage import Storage
from tests.cards import opened, write_days

COLUMNS = tuple(
    FeatureColumn(name, kind)
    for name, kind in (("amount", "numeric"), ("online", "boolean"), ("category", "categorical"))
)
numbers = st.lists(st.floats(allow_nan=False, allow_infinity=False, width=32), max_size=60).map(np.float32)
amounts = st.none() | st.floats(width=32)
row = st.tuples(
    amounts, st.none() | st.booleans(), st.none() | st.sampled_from(["food", "fuel", ""]), st.integers(0, 1)
)


def profiled(rows: list[tuple]) -> Profile:
    types = [pa.float64(), pa.bool_(), pa.string(), pa.int8()]
    names = [*(column.name for column in COLUMNS), "label"]
    values = [pa.array([r[i] for r in rows], kind) for i, kind in enumerate(types)]
    table = pa.table(dict(zip(names, values, strict=True)))
    scores = np.array([0.9 if r[3] else 0.1 for r in rows], np.float32)
    return Profile.of(table, COLUMNS, table["label"], scores)


def in_some_order(parts: list, merge, order: random.Random):
    held = order.sample(parts, len(parts))
    while len(held) > 1:
        count = order.randint(2, len(held))
        held = [*held[count:], merge(held[:count])]
    return held[0]


# Histograms.


@given(values=numbers, cuts=st.lists(st.integers(0, 60), max_size=6), order=st.randoms(use_true_random=False))
@settings(deadline=None)
def test_histograms_merge_in_any_order_to_that_of_all_numbers(values, cuts, order):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(histogram, "MOST_BINS", 8)
        parts = [Histogram.of(part) for part in np.split(values, sorted(cuts))]
        whole = Histogram.of(values)
        assert in_some_order(parts, Histogram.merge, order) == whole
        assert len(whole.keys) <= 8
        assert whole.rows == len(values)


@given(values=numbers.filter(len))
@settings(deadline=None)
def test_every_number_lies_in_its_bin(values):
    found = Histogram.of(values)
    rounded = np.sort(values.astype(np.float64))
    tolerance = 2.0**-17 * np.abs(rounded) + 1e-38
    position = np.repeat(np.arange(len(found.keys)), found.counts)
    assert (found.lows[position] <= rounded + tolerance).all()
    assert (found.highs[position] >= rounded - tolerance).all()
    assert Histogram.from_json(json.loads(json.dumps(found.to_json()))) == found


@pytest.mark.parametrize("mean", [0.0, 1_000.0, -10_000.0])
def test_a_million_numbers_keep_the_shape_of_their_distribution(mean: float):
    rng = np.random.default_rng(0)
    one, other = (rng.normal(mean + shift, 1, 1_000_000).astype(np.float32) for shift in (0, 0.1))
    exact = ks_2samp(one, other, method="asymp")
    histograms = Histogram.of(one), Histogram.of(other)
    assert all(len(found.keys) <= MOST_BINS for found in histograms)
    distance, p_value = ks_distance(*aligned(*histograms))
    assert exact.statistic - 0.001 < distance <= exact.statistic
    assert p_value >= exact.pvalue
    limits = np.quantile(one, [0.001, 0.2, 0.5, 0.9]).astype(np.float64)
    np.testing.assert_allclose(histograms[0].share_below(limits), [0.001, 0.2, 0.5, 0.9], atol=0.01)
    assert histograms[0].quantile(0.5) == pytest.approx(mean, abs=0.05)
    assert histograms[0].mean_and_deviation() == pytest.approx((one.mean(dtype=np.float64), one.std()), abs=0.002)


def test_a_few_numbers_are_counted_exactly_and_a_last_digit_makes_no_other_number():
    found = Histogram.of(np.array([0.5, np.nextafter(np.float32(0.5), np.float32(0)), -0.0, 0.0, 3, -7], np.float32))
    assert found.lows.tolist() == found.highs.tolist() == [-7, 0, 0.5, 3]
    assert found.counts.tolist() == [1, 2, 2, 1]
    assert found.share_below(np.array([-7.0, 0.25, 0.5, 4.0])).tolist() == [0, 0.5, 0.5, 1]


# Profiles.


@given(blocks=st.lists(st.lists(row, max_size=8), min_size=1, max_size=6), order=st.randoms(use_true_random=False))
@settings(deadline=None)
def test_profiles_merge_in_any_order_to_that_of_all_rows(blocks, order):
    parts = [profiled(rows) for rows in blocks]
    merged = in_some_order(parts, Profile.merge, order)
    assert merged == profiled([r for rows in blocks for r in rows])


def test_a_profile_tells_missing_values_from_all_others():
    rows = [(math.nan, True, "food", 1), (None, None, "", 0), (math.inf, False, None, 0), (2.0, True, "fuel", 0)]
    found = profiled(rows)
    assert {name: (c.missing, c.present) for name, c in found.columns.items()} == {
        "amount": (3, 1),
        "online": (1, 3),
        "category": (2, 2),
    }
    assert found.columns["online"].counts == {"true": 2, "false": 1}
    assert found.fraud_rate == 0.25
    assert found.scores.rows == 4
    assert Profile.from_json(json.loads(json.dumps(found.to_json()))) == found
    with pytest.raises(ValueError, match="format 9"):
        Profile.from_json({**found.to_json(), "format": 9})


def test_the_rarest_categories_are_counted_together_beyond_a_limit(monkeypatch):
    monkeypatch.setattr(profile, "MOST_CATEGORIES", 2)
    parts = [CategoryProfile.of(pa.chunked_array([list(text)]), "categorical") for text in ("aaabbc", "bbbad")]
    merged = CategoryProfile.merge(parts)
    assert merged.counts == {"b": 5, "a": 4}
    assert (merged.other, merged.present) == (2, 11)


def test_the_final_folds_profile_is_that_of_its_fit_rows(tmp_path: Path, ray_session: None):
    by_time = {"fit_days": 4, "delay_days": 1, "holdout_days": 2, "selection_shift_days": [2]}
    tables = write_days(tmp_path / "data", 12)
    given, source, census = opened(tmp_path / "data", folds=by_time)
    folds = plan_folds(census, given.folds)
    storage = Storage.at(str(tmp_path / "root"))
    made, found = (prepare(source, folds, given, storage, lambda *_: None) for _ in range(2))
    assert (made.cached, found.cached) == (False, True)
    columns = feature_columns(given.data, given.prepare)
    expected = Profile.merge(Profile.of(table, columns, table["is_fraud"]) for table in tables[5:9])
    assert made.final.profile == expected
    assert found.final.profile == expected
    assert expected.rows == made.final.fit.rows
    assert all(fold.profile is None for fold in made.selection)
