"""The encoder: statistics that merge in any order, JSON, and what encoded values mean."""

from __future__ import annotations

import json
import math
import random
from datetime import datetime, timedelta

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fraud_ray.model.encoder import (
    FIRST_CATEGORY,
    LIMIT,
    MISSING,
    RARE,
    UNSEEN,
    Encoder,
    FeatureColumn,
    Ratio,
    Statistics,
    with_derived,
)

BOTH = ("standard", "signed_log")
COLUMNS = (
    FeatureColumn("amount", "numeric", (*BOTH, "piecewise_linear")),
    FeatureColumn("distance", "numeric", ("standard",)),
    FeatureColumn("online", "boolean", ("standard",)),
    FeatureColumn("category", "categorical"),
)
RATIOS = (Ratio("amount_by_distance", "amount", "distance", (*BOTH, "piecewise_linear")),)

amounts = st.floats(-1e6, 1e6, width=32)
row = st.tuples(
    amounts,
    st.none() | amounts | st.just(math.nan),
    st.booleans(),
    st.none() | st.sampled_from(["food", "fuel", "travel", "gifts", ""]),
)
blocks_of_rows = st.lists(st.lists(row, max_size=12), min_size=1, max_size=8)


def table(rows: list[tuple]) -> pa.Table:
    names = [column.name for column in COLUMNS]
    types = [pa.float64(), pa.float64(), pa.bool_(), pa.string()]
    values = [pa.array([r[i] for r in rows], kind) for i, kind in enumerate(types)]
    return pa.table(dict(zip(names, values, strict=True)))


def statistics_of(rows: list[tuple]) -> Statistics:
    label = np.array([category == "gifts" for *_, category in rows], np.int8)
    return Statistics.of(table(rows), COLUMNS, RATIOS, label)


def fitted(statistics: Statistics) -> Encoder:
    return Encoder.fit(COLUMNS, statistics, min_category_rows=2, max_categories=3, ratios=RATIOS, bins=3)


@given(blocks=blocks_of_rows.filter(lambda blocks: any(blocks)), order=st.randoms(use_true_random=False))
@settings(deadline=None)
def test_statistics_merge_in_any_order_and_grouping_to_the_same_encoder(blocks, order: random.Random):
    statistics = [statistics_of(rows) for rows in blocks]
    at_once = fitted(Statistics.merge(statistics))
    held = order.sample(statistics, len(statistics))
    while len(held) > 1:
        count = order.randint(2, len(held))
        held = [*held[count:], Statistics.merge(held[:count])]
    assert fitted(held[0]) == at_once


@given(blocks=blocks_of_rows.filter(lambda blocks: any(blocks)))
@settings(deadline=None)
def test_merged_statistics_are_those_of_all_rows_at_once(blocks):
    merged = Statistics.merge(statistics_of(rows) for rows in blocks)
    whole = statistics_of([r for rows in blocks for r in rows])
    assert (merged.rows, merged.missing, merged.categories) == (whole.rows, whole.missing, whole.categories)
    assert merged.spreads == whole.spreads
    for name, ways in whole.moments.items():
        for way, moments in ways.items():
            expected = moments.mean_and_deviation()
            assert merged.moments[name][way].mean_and_deviation() == pytest.approx(expected, rel=1e-6, abs=1e-6)


@given(rows=st.lists(row, min_size=1, max_size=40))
@settings(deadline=None)
def test_an_encoder_from_json_encodes_alike(rows):
    encoder = fitted(statistics_of(rows))
    again = Encoder.from_json(json.loads(json.dumps(encoder.to_json())))
    assert again == encoder
    for before, after in zip(encoder.apply(table(rows)), again.apply(table(rows)), strict=True):
        np.testing.assert_array_equal(before, after)


def test_json_of_another_format_is_refused():
    stored = Encoder.fit(COLUMNS, Statistics.of(table([(1.0, 2.0, True, "food")]), COLUMNS)).to_json()
    with pytest.raises(ValueError, match="format 99"):
        Encoder.from_json({**stored, "format": 99})


def test_no_rows_fit_no_encoder():
    with pytest.raises(ValueError, match="no rows"):
        Encoder.fit(COLUMNS, Statistics.of(table([]), COLUMNS))


def test_numbers_are_standardised_plain_and_after_a_signed_logarithm():
    values = np.random.default_rng(0).lognormal(3, 2, 5_000).astype(np.float32) - 20
    columns = (FeatureColumn("x", "numeric", BOTH),)
    block = pa.table({"x": values})
    encoder = Encoder.fit(columns, Statistics.of(block, columns))
    assert encoder.feature_names == ("x", "x:log")
    features, codes = encoder.apply(block)
    assert codes.shape == (5_000, 0)
    logs = np.sign(values) * np.log1p(np.abs(values))
    for got, raw in ((features[:, 0], values), (features[:, 1], logs)):
        expected = np.clip((raw - raw.mean(dtype=np.float64)) / raw.std(dtype=np.float64), -LIMIT, LIMIT)
        np.testing.assert_allclose(got, expected, atol=1e-4)


@pytest.mark.faults("12", "NaN and null where the contract allows them", "the mean, and an indicator")
@pytest.mark.quick
def test_a_missing_number_becomes_the_mean_and_an_indicator_where_the_fit_rows_had_one():
    columns = (FeatureColumn("x", "numeric", ("standard",)), FeatureColumn("y", "numeric", ("standard",)))
    fit = pa.table({"x": [1.0, None, 3.0], "y": [1.0, 2.0, 3.0]})
    encoder = Encoder.fit(columns, Statistics.of(fit, columns))
    assert encoder.feature_names == ("x", "y", "x:missing")
    features, _ = encoder.apply(pa.table({"x": [None, math.nan, math.inf, 2.0], "y": [None, 2.0, math.nan, 2.0]}))
    np.testing.assert_array_equal(features, [[0, 0, 1], [0, 0, 1], [0, 0, 1], [0, 0, 0]])


@pytest.mark.faults("14", "categories that are rare, missing or new", "codes of their own")
@pytest.mark.quick
def test_categories_are_coded_by_frequency_with_rare_missing_and_unseen_apart():
    columns = (FeatureColumn("c", "categorical"),)
    fit = pa.table({"c": ["b"] * 3 + ["a"] * 2 + ["d"] * 2 + ["rare", None]})
    encoder = Encoder.fit(columns, Statistics.of(fit, columns), min_category_rows=2)
    assert encoder.code_sizes == (FIRST_CATEGORY + 3,)
    _, codes = encoder.apply(pa.table({"c": ["b", "a", "d", "rare", None, "", "new"]}))
    assert codes[:, 0].tolist() == [3, 4, 5, RARE, MISSING, MISSING, UNSEEN]
    limited = Encoder.fit(columns, Statistics.of(fit, columns), min_category_rows=2, max_categories=1)
    assert limited.apply(pa.table({"c": ["b", "a"]}))[1][:, 0].tolist() == [3, RARE]


@pytest.mark.parametrize("kind", [pa.int32(), pa.int64(), pa.string(), pa.dictionary(pa.int32(), pa.string())])
def test_a_category_is_coded_alike_in_every_type(kind):
    columns = (FeatureColumn("c", "categorical"),)
    fit = pa.table({"c": ["7", "7", "12"]})
    encoder = Encoder.fit(columns, Statistics.of(fit, columns), min_category_rows=1)
    block = pa.table({"c": pa.array([12, 7, None]).cast(pa.string()).cast(kind)})
    assert encoder.apply(block)[1][:, 0].tolist() == [4, 3, MISSING]


def test_hour_and_weekday_of_a_time_are_categories_in_utc_and_a_missing_time_is_a_missing_one():
    midnight = datetime(2024, 3, 4)  # a Monday
    moments = [
        *(midnight, midnight - timedelta(microseconds=1), midnight + timedelta(hours=23, minutes=59)),
        *(datetime(1970, 1, 1), datetime(1969, 12, 31, 23, 59, 59, 999_999), datetime(1, 1, 1), datetime(9999, 12, 31)),
    ]
    columns = (FeatureColumn("at", "timestamp"),)
    block = pa.table({"at": pa.array([*moments, None], pa.timestamp("us"))})
    found = with_derived(block, columns)
    assert found["at:hour"].to_pylist() == [*(f"{moment:%H}" for moment in moments), None]
    assert found["at:weekday"].to_pylist() == [*(f"{moment:%A}" for moment in moments), None]
    encoder = Encoder.fit(columns, Statistics.of(block, columns), min_category_rows=1)
    assert [book.column for book in encoder.categorical] == ["at:hour", "at:weekday"]
    again = Encoder.from_json(json.loads(json.dumps(encoder.to_json())))
    assert again.apply(block)[1][-1].tolist() == [MISSING, MISSING]
    # The typical row is of the most frequent hour and weekday.
    assert with_derived(again.typical_rows(), columns)["at:hour"].to_pylist() == ["00", None]
    for other in (pa.timestamp("ns"), pa.timestamp("us", "Asia/Tokyo")):
        recent = block.slice(0, 5)
        np.testing.assert_array_equal(
            again.apply(pa.table({"at": recent["at"].cast(other)}))[1], again.apply(recent)[1]
        )


def test_a_column_without_spread_is_encoded_as_zero():
    columns = (FeatureColumn("x", "numeric", BOTH),)
    block = pa.table({"x": [5.5] * 4})
    features, _ = Encoder.fit(columns, Statistics.of(block, columns)).apply(block)
    np.testing.assert_array_equal(features, np.zeros((4, 2)))


def test_a_ratio_is_encoded_like_a_number_and_missing_where_it_cannot_be_computed():
    columns = (FeatureColumn("x", "numeric", ()), FeatureColumn("y", "numeric", ()))
    ratios = (Ratio("x_by_y", "x", "y", ("standard",)),)
    fit = pa.table({"x": [1.0, 6.0, 2.0], "y": [1.0, 2.0, 0.0]})
    encoder = Encoder.fit(columns, Statistics.of(fit, columns, ratios), ratios=ratios)
    assert encoder.feature_names == ("x_by_y", "x_by_y:missing")
    block = pa.table({"x": [1.0, 6.0, 0.0, None, 1.0, math.inf, 0.0], "y": [1.0, 2.0, 0.0, 1.0, None, 1.0, math.inf]})
    features, _ = encoder.apply(block)
    np.testing.assert_array_equal(features, [[-1, 0], [1, 0], *[[0, 1]] * 5])


def test_pieces_rise_one_after_the_other_between_quantiles_of_all_rows_and_of_the_frauds():
    columns = (FeatureColumn("x", "numeric", ("piecewise_linear",)),)
    values = np.arange(101, dtype=np.float32)
    statistics = Statistics.of(pa.table({"x": values}), columns, label=(values >= 80).astype(np.int8))
    encoder = Encoder.fit(columns, statistics, bins=2)
    assert encoder.piecewise[0].edges == (0.0, 50.0, 80.0, 90.0, 100.0)
    features, _ = encoder.apply(pa.table({"x": [-5.0, 25.0, 50.0, 95.0, 1e38, None]}))
    expected = [[0, 0, 0, 0], [0.5, 0, 0, 0], [1, 0, 0, 0], [1, 1, 1, 0.5], [1, 1, 1, 1], [1, 0, 0, 0]]
    np.testing.assert_allclose(features, expected, atol=1e-6)


def test_a_column_of_one_number_has_no_pieces():
    columns = (FeatureColumn("x", "numeric", ("piecewise_linear",)),)
    for block in (pa.table({"x": [5.5] * 4}), pa.table({"x": pa.array([None] * 4, pa.float64())})):
        assert Encoder.fit(columns, Statistics.of(block, columns)).piecewise == ()


def test_an_encoder_stored_before_there_were_ratios_and_pieces_is_read():
    columns = (FeatureColumn("x", "numeric", BOTH),)
    encoder = Encoder.fit(columns, Statistics.of(pa.table({"x": [1.0, 2.0]}), columns))
    stored = encoder.to_json()
    del stored["ratios"], stored["piecewise"]
    assert Encoder.from_json({**stored, "format": 1}) == encoder
