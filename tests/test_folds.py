"""Folds: which rows are fitted on and which are held out."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as with_settings
from hypothesis import strategies as st

from fraud_ray.data.contract import Census, check
from fraud_ray.data.folds import Fold, Folds, plan_folds
from fraud_ray.data.keys import Keys, buckets_of, entities_of
from fraud_ray.errors import DataError, SettingsError
from fraud_ray.settings import Settings, parse_settings
from tests.cards import COLUMNS, FIRST_DAY, TIMED_COLUMNS, as_read, card_settings, card_table, days, timed, unlabelled

Row = tuple[int, int]  # partition, row in it


too_little = pytest.mark.faults(
    "15", "no frauds, or nothing else; few rows", "refused with dates and counts, before anything is trained"
)


def plan(tables: Sequence[pa.Table], columns: Any = None, **folds: Any) -> tuple[Settings, Folds]:
    settings = card_settings(Path("data"), columns, folds=folds)
    newest = max(pa.compute.max(table["timestamp"]).as_py() for table in tables).date()
    summaries = [
        check(as_read(table, settings.data), settings.data, "a.parquet", newest, settings.folds.delay_days)[1]
        for table in tables
    ]
    return settings, plan_folds(Census(tuple(summaries)), settings.folds)


def rows_of(tables: Sequence[pa.Table], settings: Settings, folds: Folds) -> dict[tuple[str, str], set[Row]]:
    """The rows of each side of each fold, after limits, found partition by partition as preparing does."""
    found: dict[tuple[str, str], set[Row]] = {(f.name, side): set() for f in folds.all for side in ("fit", "holdout")}
    for i, table in enumerate(tables):
        keys = Keys.of(table, settings.data)
        for fold, side, rows in folds.candidates(i, keys):
            drawn = fold.side(side).draw(rows, i, keys.label)
            assert (np.diff(drawn) > 0).all()
            found[fold.name, side] |= {(i, int(row)) for row in drawn}
    for fold in folds.all:
        for side in ("fit", "holdout"):
            if not (fold.compromised and side == "holdout"):
                assert fold.side(side).rows == len(found[fold.name, side])
    return found


def values(tables: Sequence[pa.Table], rows: set[Row], column: str) -> list[Any]:
    return [tables[i][column][row].as_py() for i, row in rows]


# By time


def test_the_final_fold_ends_on_the_newest_day_and_selection_folds_come_before():
    tables = [card_table(day) for day in days(40)]
    settings, folds = plan(tables, fit_days=10, delay_days=5, holdout_days=3, selection_shift_days=[7, 14])
    assert folds.final.span == "fit 2024-01-23 to 2024-02-01, holdout 2024-02-07 to 2024-02-09"
    assert [f.name for f in folds.all] == ["selection-1", "selection-2", "final"]
    assert folds.selection[1].span == "fit 2024-01-09 to 2024-01-18, holdout 2024-01-24 to 2024-01-26"
    found = rows_of(tables, settings, folds)
    for fold in folds.all:
        for name in ("fit", "holdout"):
            side = fold.side(name)
            held = {stamp.date() for stamp in values(tables, found[fold.name, name], "timestamp")}
            assert held == set(days((side.last - side.first).days + 1, side.first))
            assert side.rows == 60 * len(held)


def test_a_start_that_is_given_is_kept_and_files_need_not_follow_days():
    daily = [card_table(day) for day in days(20)]
    whole = pa.concat_tables(daily)
    tables = [whole.slice(0, 333), whole.slice(333)]
    settings, folds = plan(
        tables, start="2024-01-03", fit_days=4, delay_days=2, holdout_days=2, selection_shift_days=[2]
    )
    found = rows_of(tables, settings, folds)
    held = [stamp.date() for stamp in values(tables, found["final", "holdout"], "timestamp")]
    assert sorted(set(held)) == [date(2024, 1, 9), date(2024, 1, 10)]
    assert len(held) == 120


@pytest.mark.parametrize(
    ("start", "says"),
    [
        (None, "8 of 40 days unused: folds.fit_days 18 would fit on them"),
        ("2024-01-20", "5 of 40 days unused: folds.fit_days 15 and folds.start 2024-01-15 would fit on them"),
        # The newest five, whose labels may not be known, do not count.
        ("2024-01-16", "3 of 40 days unused: folds.fit_days 13 and folds.start 2024-01-15 would fit on them"),
    ],
)
def test_days_that_no_fold_has_are_told_with_the_settings_that_use_them(start, says):
    tables = [card_table(day) for day in days(40)]
    folds = {"fit_days": 10, "delay_days": 5, "holdout_days": 3, "selection_shift_days": [7, 14], "start": start}
    _, planned = plan(tables, **folds)
    assert str(planned).splitlines()[-1] == says
    remedy = {"fit_days": int(says.split("fit_days ")[1][:2]), "start": start and "2024-01-15"}
    _, mended = plan(tables, **(folds | remedy))
    assert mended.unused is None
    used = [d for t in tables for d in t["timestamp"].to_numpy().astype("datetime64[D]").astype(object)]
    before = [planned.selection[1].fit.first, planned.final.holdout.last]
    frauds = [f for t in tables for f in t["is_fraud"].to_pylist()]
    newest = mended.final.holdout.last
    assert planned.unused.frauds == sum(
        f for day, f in zip(used, frauds, strict=True) if day < before[0] or before[1] < day <= newest
    )


@too_little
@pytest.mark.quick
@pytest.mark.parametrize(
    ("asked", "says"),
    [
        (
            {"start": "2023-12-01"},
            [
                "fold 'final' (fit 2023-12-01 to 2023-12-05, holdout 2023-12-08 to 2023-12-09) lies outside",
                "The data covers 2024-01-01 to 2024-01-12 (12 days, 720 rows and ",
                "Set folds.start between 2024-01-03 and 2024-01-04",
            ],
        ),
        ({"start": "2024-01-05"}, ["'final'", "lies outside"]),
        ({"start": "2024-01-02"}, ["fold 'selection-1' (fit 2023-12-31 to"]),
        ({"fit_days": 30}, ["These folds take 36 days: lower folds.fit_days"]),
    ],
)
def test_folds_outside_of_the_data_are_refused_with_the_dates(asked, says):
    tables = [card_table(day) for day in days(12)]
    with pytest.raises(DataError) as fault:
        plan(tables, **{"fit_days": 5, "delay_days": 2, "holdout_days": 2, "selection_shift_days": [2]} | asked)
    assert fault.value.exit_code == 4
    for text in says:
        assert text in str(fault.value)


@too_little
@pytest.mark.quick
def test_a_side_of_one_class_is_refused_with_its_dates_and_counts():
    tables = [card_table(day) for day in days(12)]
    honest = pa.array(np.zeros(60, np.int8))
    tables[-2:] = [t.set_column(t.column_names.index("is_fraud"), "is_fraud", honest) for t in tables[-2:]]
    with pytest.raises(DataError) as fault:
        plan(tables, fit_days=5, delay_days=2, holdout_days=2, selection_shift_days=[2])
    assert (
        "fold 'final' (fit 2024-01-04 to 2024-01-08, holdout 2024-01-11 to 2024-01-12): its holdout side has 120 rows "
        "and 0 frauds"
    ) in str(fault.value)
    assert "The data covers 2024-01-01 to 2024-01-12 (12 days, 720 rows and " in str(fault.value)
    assert "selection-1" not in str(fault.value)


def test_a_side_on_days_without_rows_is_refused():
    tables = [card_table(day) for day in days(12) if day not in days(2, date(2024, 1, 9))]
    with pytest.raises(DataError, match="its holdout side has 0 rows and 0 frauds"):
        plan(tables, fit_days=5, delay_days=2, holdout_days=2, selection_shift_days=[2])


def removed_by_definition(frame: pd.DataFrame, fold: Fold, delay_days: int) -> set[Row]:
    """The handbook's rule, day by day: the holdout rows of entities without a fraud known by then."""
    day = frame.timestamp.dt.date
    kept: set[Row] = set()
    for held_out in days((fold.holdout.last - fold.holdout.first).days + 1, fold.holdout.first):
        known_until = held_out - timedelta(days=delay_days + 1)
        known = set(frame[(frame.is_fraud == 1) & (day >= fold.fit.first) & (day <= known_until)].card)
        remaining = frame[(day == held_out) & ~frame.card.isin(known)]
        kept |= set(zip(remaining.partition, remaining.row, strict=True))
    return kept


@pytest.mark.parametrize("delay_days", [0, 1, 4])
def test_entities_whose_fraud_was_known_are_left_out_of_each_holdout_day(delay_days):
    tables = [card_table(day, fraud_share=0.05) for day in days(24)]
    settings, folds = plan(
        tables,
        fit_days=4,
        delay_days=delay_days,
        holdout_days=6,
        selection_shift_days=[5],
        remove_compromised=True,
    )
    frame = pd.concat(
        [t.to_pandas().assign(partition=i, row=range(t.num_rows)) for i, t in enumerate(tables)], ignore_index=True
    )
    found = rows_of(tables, settings, folds)
    for fold in folds.all:
        expected = removed_by_definition(frame, fold, delay_days)
        assert found[fold.name, "holdout"] == expected
        assert 0 < len(expected) < fold.holdout.rows
        assert len(found[fold.name, "fit"]) == 4 * 60


# Labels that are not known yet


def late_days(count: int, late: int) -> list[pa.Table]:
    """A table a day, the newest `late` of them without labels but for four rows."""
    return [unlabelled(card_table(day), 56 if i >= count - late else 0) for i, day in enumerate(days(count))]


def test_folds_by_time_end_where_labels_are_known():
    asked = {"fit_days": 4, "delay_days": 4, "holdout_days": 2, "selection_shift_days": [2]}
    tables = late_days(15, late=3)
    settings, folds = plan(tables, **asked)
    assert folds.final.holdout.last == date(2024, 1, 12)
    assert folds.covers.endswith("; 168 labels not known yet, known up to 2024-01-12)")
    # Of a day that has nearly all of its labels the others are left out.
    tables[11] = unlabelled(card_table(days(12)[-1], rows=100), 1)
    settings, folds = plan(tables, **asked)
    assert (folds.final.holdout.last, folds.final.holdout.rows) == (date(2024, 1, 12), 60 + 99)
    rows_of(tables, settings, folds)
    with pytest.raises(DataError, match=r"fold 'final' .* lies outside[\s\S]*known up to 2024-01-12"):
        plan(tables, start="2024-01-04", **asked)
    with pytest.raises(DataError, match="no day has its labels yet"):
        plan([tables[14]], **asked)


@pytest.mark.parametrize("kind", ["entity", "stratified"])
def test_a_row_without_a_label_is_on_no_side(kind):
    tables = late_days(8, late=2)
    settings, folds = plan(tables, kind=kind, holdout_share=0.3, selection_folds=2, delay_days=2)
    found = rows_of(tables, settings, folds)
    labelled = {(i, row) for i, t in enumerate(tables) for row in np.flatnonzero(t["is_fraud"].is_valid()).tolist()}
    assert found["final", "fit"] | found["final", "holdout"] == labelled
    assert len(labelled) == 6 * 60 + 2 * 4


# Label times


def sides_by_definition(frame: pd.DataFrame, fold: Fold, removes: bool) -> dict[str, set[Row]]:
    """Row by row: fitted on is what was known when the holdout began; held out what is known by now, but for entities
    of which a fraud was known when its day began."""
    known = frame[frame.known.notna()]
    day, begins = known.timestamp.dt.date, pd.Timestamp(fold.holdout.first)
    fit = known[(day >= fold.fit.first) & (day <= fold.fit.last) & (known.known <= begins)]
    kept: set[Row] = set()
    for held_out in days((fold.holdout.last - fold.holdout.first).days + 1, fold.holdout.first):
        midnight = pd.Timestamp(held_out)
        earlier = known[(known.is_fraud == 1) & (day >= fold.fit.first) & (known.timestamp < midnight)]
        told = set(earlier[earlier.known <= midnight].card) if removes else set()
        remaining = known[(day == held_out) & ~known.card.isin(told)]
        kept |= set(zip(remaining.partition, remaining.row, strict=True))
    return {"fit": set(zip(fit.partition, fit.row, strict=True)), "holdout": kept}


@pytest.mark.parametrize(("removes", "delay_days"), [(False, 0), (True, 0), (True, 2)])
def test_with_label_times_a_fold_knows_what_was_known_when_its_holdout_began(removes, delay_days):
    tables = [timed(card_table(day, rows=150), days(31)[-1], seed) for seed, day in enumerate(days(30))]
    asked = {"fit_days": 6, "delay_days": delay_days, "holdout_days": 5, "selection_shift_days": [5]}
    settings, folds = plan(tables, TIMED_COLUMNS, **asked, remove_compromised=removes)
    frame = pd.concat(
        [t.to_pandas().assign(partition=i, row=range(t.num_rows)) for i, t in enumerate(tables)], ignore_index=True
    )
    late = frame.known.isna().groupby(frame.timestamp.dt.date).mean()
    assert folds.final.holdout.last == late[late <= 0.01].index.max() < date(2024, 1, 27)
    found = rows_of(tables, settings, folds)
    for fold in folds.all:
        expected = sides_by_definition(frame, fold, removes)
        assert {side: found[fold.name, side] for side in ("fit", "holdout")} == expected
        assert len(expected["fit"]) < 6 * 150 - 100
        assert (len(expected["holdout"]) < 5 * 149 - 100) == removes


def test_only_the_fraud_that_a_bank_was_told_of_is_no_label_time():
    tables = [timed(card_table(day), days(13)[-1]) for day in days(12)]
    frauds = [
        t.set_column(9, "known", pa.compute.if_else(pa.compute.equal(t["is_fraud"], 1), t["known"], None))
        for t in tables
    ]
    with pytest.raises(DataError, match="Bring older data, and the label times of legitimate rows, too"):
        plan(frauds, TIMED_COLUMNS, fit_days=4, delay_days=0, holdout_days=2, selection_shift_days=[2])


# By entity, and stratified

shares = st.floats(0.1, 0.5)
counts = st.lists(st.integers(2, 60), min_size=1, max_size=6)


@given(kind=st.sampled_from(["entity", "stratified"]), share=shares, sizes=counts, seed=st.integers(0, 1_000))
@with_settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow])
def test_every_row_is_on_one_side_of_every_fold_and_final_holdout_rows_in_no_selection_fold(kind, share, sizes, seed):
    tables = [card_table(rows=rows + 300, seed=i, cards=500) for i, rows in enumerate(sizes)]
    selection_folds = min(3, int(1 / share))
    settings, folds = plan(tables, kind=kind, holdout_share=share, selection_folds=selection_folds, seed=seed)
    found = rows_of(tables, settings, folds)
    everything = {(i, row) for i, table in enumerate(tables) for row in range(table.num_rows)}
    assert found["final", "fit"] | found["final", "holdout"] == everything
    assert not found["final", "fit"] & found["final", "holdout"]
    held_out: set[Row] = set()
    for fold in folds.selection:
        fit, holdout = found[fold.name, "fit"], found[fold.name, "holdout"]
        assert fit | holdout == found["final", "fit"]
        assert not fit & holdout
        assert not holdout & held_out
        held_out |= holdout


@given(share=shares, sizes=counts, seed=st.integers(0, 1_000))
@with_settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.too_slow])
def test_a_stratified_holdout_has_its_share_of_each_class_to_the_row(share, sizes, seed):
    tables = [card_table(rows=rows + 40, seed=i) for i, rows in enumerate(sizes)]
    _, folds = plan(tables, kind="stratified", holdout_share=share, selection_folds=1, seed=seed)
    labels = np.concatenate([t["is_fraud"].to_numpy() for t in tables])
    frauds, legitimate = int(labels.sum()), int((labels == 0).sum())
    assert folds.final.holdout.frauds == round(share * frauds)
    assert folds.final.holdout.rows - folds.final.holdout.frauds == round(share * legitimate)
    assert folds.selection[0].holdout.frauds == round(share * folds.final.fit.frauds)


def test_an_entity_is_never_on_both_sides():
    tables = [card_table(day) for day in days(5)]
    settings, folds = plan(tables, kind="entity", holdout_share=0.3, selection_folds=2)
    found = rows_of(tables, settings, folds)
    for fold in folds.all:
        fit, holdout = (set(values(tables, found[fold.name, side], "card")) for side in ("fit", "holdout"))
        assert fit
        assert holdout
        assert not fit & holdout


def test_an_entity_is_placed_alike_however_it_is_stored():
    numbers = pa.chunked_array([pa.array([7, 123, 7, 99_999])])
    stored = [numbers, numbers.cast(pa.int32()), numbers.cast(pa.string()), numbers.cast(pa.uint64())]
    placed = [entities_of(column).buckets.tolist() for column in stored]
    assert all(buckets == placed[0] for buckets in placed)
    assert placed[0][0] == placed[0][2]


def test_the_buckets_of_entities_never_change():
    """Pinned: other values would silently move cards between fit and holdout from one release to the next."""
    assert buckets_of(pa.array(["1", "2", "card-17", "Žižkov", ""])).tolist() == [852, 517, 565, 573, 986]


def test_the_buckets_of_entities_are_about_equal():
    filled = np.bincount(buckets_of(pa.array([str(i) for i in range(100_000)])), minlength=1_000)
    assert filled.min() > 50
    assert filled.max() < 160


def test_another_seed_draws_other_rows_and_the_same_seed_the_same():
    tables = [card_table(day) for day in days(5)]
    for kind in ("entity", "stratified"):
        drawn = [
            rows_of(tables, *plan(tables, kind=kind, holdout_share=0.3, seed=seed))["final", "holdout"]
            for seed in (1, 1, 2)
        ]
        assert drawn[0] == drawn[1]
        assert drawn[0] != drawn[2]


@too_little
@pytest.mark.quick
@pytest.mark.parametrize("kind", ["entity", "stratified"])
def test_data_of_one_class_cannot_be_split(kind):
    table = card_table()
    frauds = table.filter(pa.compute.equal(table["is_fraud"], 1))
    with pytest.raises(DataError, match="Each side needs frauds and legitimate rows"):
        plan([frauds], kind=kind, holdout_share=0.3)


def test_more_selection_rows_than_there_are_is_a_fault_of_the_settings():
    raw = {"data": {"path": "data", "columns": COLUMNS}, "folds": {"kind": "entity", "selection_folds": 6}}
    with pytest.raises(SettingsError, match="lower selection_folds or holdout_share"):
        parse_settings(raw, "a.yaml")


# Limits


@given(
    kind=st.sampled_from(["time", "entity", "stratified"]),
    fit=st.integers(30, 400),
    holdout=st.integers(30, 200),
    seed=st.integers(0, 99),
)
@with_settings(deadline=None, max_examples=30, suppress_health_check=[HealthCheck.too_slow])
def test_limits_leave_exactly_that_many_rows_and_the_fraud_rate(kind, fit, holdout, seed):
    tables = [card_table(day) for day in days(12)]
    by_time = {"fit_days": 5, "delay_days": 2, "holdout_days": 2, "selection_shift_days": [2]} if kind == "time" else {}
    _, free = plan(tables, kind=kind, seed=seed, **by_time)
    settings, folds = plan(tables, kind=kind, seed=seed, max_fit_rows=fit, max_holdout_rows=holdout, **by_time)
    found, allowed = rows_of(tables, settings, folds), rows_of(tables, settings, free)
    for fold, unlimited in zip(folds.all, free.all, strict=True):
        for side, limit in (("fit", fit), ("holdout", holdout)):
            limited, before = fold.side(side), unlimited.side(side)
            assert limited.rows == min(limit, before.rows)
            assert abs(limited.frauds - limited.rows * before.frauds / before.rows) <= 0.5
            assert found[fold.name, side] <= allowed[fold.name, side]


def test_limits_can_be_for_the_search_alone():
    tables = [card_table(day) for day in days(12)]
    _, folds = plan(
        tables,
        fit_days=5,
        delay_days=2,
        holdout_days=2,
        selection_shift_days=[2],
        max_fit_rows=50,
        limits_apply_to="selection",
    )
    assert folds.selection[0].fit.rows == 50
    assert folds.final.fit.rows == 300


@too_little
@pytest.mark.quick
def test_a_limit_that_leaves_no_fraud_is_refused():
    with pytest.raises(DataError, match="its fit side has 2 rows and 0 frauds"):
        plan([card_table(day, fraud_share=0.02) for day in days(12)], kind="stratified", max_fit_rows=2)


def test_days_begin_at_midnight():
    midnight = card_table(FIRST_DAY, rows=3)
    stamps = pa.array(np.array(["2024-01-01T00:00:00", "2024-01-01T23:59:59.999999", "2024-01-02"], "datetime64[us]"))
    data = card_settings(Path("data")).data
    keys = Keys.of(midnight.set_column(1, "timestamp", stamps), data)
    assert (keys.day - keys.day[0]).tolist() == [0, 0, 1]
