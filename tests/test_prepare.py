"""Preparing: encoders fitted on fit rows, both sides encoded and stored once, and found again."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import replace
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from typer.testing import CliRunner

from fraud_ray.cli import app
from fraud_ray.data import cache, rows
from fraud_ray.data.contract import validate
from fraud_ray.data.folds import Folds, plan_folds
from fraud_ray.data.keys import to_date, to_day
from fraud_ray.data.prepare import Prepared, feature_columns, prepare
from fraud_ray.data.source import Source, open_source
from fraud_ray.errors import DataError
from fraud_ray.lease import hold
from fraud_ray.model.encoder import Encoder, Ratio, Statistics
from fraud_ray.settings import Settings
from fraud_ray.storage import Storage
from tests.cards import COLUMNS, card_settings, card_table, days, opened, write_days, write_partition

BY_TIME = {"fit_days": 4, "delay_days": 1, "holdout_days": 2, "selection_shift_days": [2]}
FEW = {"min_category_rows": 2}
EVERY_WAY = ("standard", "signed_log", "piecewise_linear")


def quiet(done: float, total: float, text: str) -> None:
    return None


def planned(root: Path, **sections: Any) -> tuple[Settings, Source, Folds]:
    settings, source, census = opened(root, **{"folds": BY_TIME, "prepare": FEW} | sections)
    return settings, source, plan_folds(census, settings.folds)


def prepared(root: Path, storage: Storage, **sections: Any) -> Prepared:
    settings, source, folds = planned(root, **sections)
    return prepare(source, folds, settings, storage, quiet)


@pytest.fixture
def storage(tmp_path) -> Storage:
    return Storage.at(str(tmp_path / "root"))


def of_days(tables: list[pa.Table], first: date, last: date) -> pa.Table:
    whole = pa.concat_tables(tables)
    stamps = whole["timestamp"].to_numpy()
    return whole.filter((stamps >= np.datetime64(first)) & (stamps < np.datetime64(last + timedelta(days=1))))


def in_words(amount: float | None) -> str:
    if amount is None:
        return ""
    return "below 10" if amount < 10 else "10 to below 25.5" if amount < 25.5 else "25.5 and above"


def test_each_fold_has_the_encoder_of_its_own_fit_rows_and_both_sides_in_order(tmp_path, storage, ray_session):
    tables = write_days(tmp_path / "data", 12)
    ways = FEW | {"numeric_encodings": EVERY_WAY, "ratios": {"reach": ["distance", "amount"]}, "calendar": True}
    decision = {"slices": ["category", "amount"], "slice_edges": {"amount": [10, 25.5]}}
    settings, source, folds = planned(tmp_path / "data", decision=decision, prepare=ways)
    result = prepare(source, folds, settings, storage, quiet)
    assert not result.cached
    columns = feature_columns(settings.data, settings.prepare)
    ratios = (Ratio("reach", "distance", "amount", EVERY_WAY),)
    width = len(result.final.encoder.feature_names) + sum(result.final.encoder.code_sizes)
    reads = "5 columns: 2 numbers, 1 category, 1 boolean, 1 timestamp, 1 ratio of them"
    assert f"{reads}, as {width} features" in str(result)
    for fold, plan in zip((*result.selection, result.final), folds.all, strict=True):
        assert (fold.name, fold.span) == (plan.name, plan.span)
        first, last, *held_out = map(to_date, (plan.fit.first, plan.fit.last, plan.holdout.first, plan.holdout.last))
        fit = of_days(tables, first, last)
        tables_fitted = [of_days(tables, d, d) for d in days(4, first)]
        daily = [Statistics.of(t, columns, ratios, t["is_fraud"].to_numpy()) for t in tables_fitted]
        assert fold.encoder == Encoder.fit(columns, Statistics.merge(daily), min_category_rows=2, ratios=ratios)
        for side, expected in (("fit", fit), ("holdout", of_days(tables, *held_out))):
            got = rows.load(storage, getattr(fold, side), with_roles=True)
            features, codes = fold.encoder.apply(expected)
            np.testing.assert_array_equal(got.features, features)
            np.testing.assert_array_equal(got.codes, codes)
            np.testing.assert_array_equal(got.label, expected["is_fraud"].to_numpy())
            if side == "fit":
                assert not got.roles
                assert not got.slices
                continue
            names = {"id": "transaction_id", "timestamp": "timestamp", "entity": "card", "amount": "amount"}
            for role, name in (names | {"true_probability": "probability"}).items():
                np.testing.assert_array_equal(got.roles[role], expected[name].to_numpy())
            assert got.slices["category"].tolist() == [c or "" for c in expected["category"].to_pylist()]
            ranges = [in_words(amount) for amount in expected["amount"].to_pylist()]
            assert got.slices["amount"].tolist() == ranges
            assert len(set(ranges)) == 3


def test_a_partition_becomes_one_part_of_each_side_and_the_part_tells_what_is_in_it(tmp_path, storage, ray_session):
    write_days(tmp_path / "data", 12)
    result = prepared(tmp_path / "data", storage)
    assert [part.key for part in result.final.holdout.parts] == [
        f"prepared/{result.key}/{result.writer}/final/holdout/part-{i:05d}.arrow" for i in (10, 11)
    ]
    for part in (*result.final.fit.parts, *result.final.holdout.parts):
        content = storage.get(part.key)
        table = rows.read_part(storage, part)
        assert (part.size, part.sha256) == (len(content), hashlib.sha256(content).hexdigest())
        assert (part.rows, part.frauds) == (table.num_rows, pc.sum(table["label"]).as_py())


@pytest.mark.parametrize("kind", ["entity", "stratified"])
def test_sides_that_share_partitions_get_their_rows_of_each(kind, tmp_path, storage, ray_session):
    tables = write_days(tmp_path / "data", 4, rows=200)
    folds = {"kind": kind, "holdout_share": 0.25, "selection_folds": 2, "max_fit_rows": 300}
    result = prepared(tmp_path / "data", storage, folds=folds)
    everything = pa.concat_tables(tables)
    by_id = dict(zip(everything["transaction_id"].to_pylist(), range(800), strict=True))
    held_out: set[int] = set()
    for fold in (*result.selection, result.final):
        holdout = rows.load(storage, fold.holdout, with_roles=True)
        positions = [by_id[i] for i in holdout.roles["id"].tolist()]
        assert positions == sorted(positions)
        expected = everything.take(positions)
        np.testing.assert_array_equal(holdout.features, fold.encoder.apply(expected)[0])
        np.testing.assert_array_equal(holdout.label, expected["is_fraud"].to_numpy())
        assert not held_out & set(positions)
        held_out |= set(positions)
        assert fold.fit.rows == 300


def test_the_same_again_is_found_and_other_settings_or_data_are_not(tmp_path, storage, ray_session):
    write_days(tmp_path / "data", 12)
    first = prepared(tmp_path / "data", storage)
    again = prepared(tmp_path / "data", storage)
    assert again.cached
    assert (again.key, again.selection, again.final) == (first.key, first.selection, first.final)
    others = [
        prepared(tmp_path / "data", storage, train={"epochs": 3}),
        prepared(tmp_path / "data", storage, prepare={"min_category_rows": 3}),
        prepared(tmp_path / "data", storage, folds=BY_TIME | {"max_fit_rows": 100}),
        prepared(tmp_path / "data", storage, decision={"slices": ["category"]}),
    ]
    write_days(tmp_path / "data", 12, seed=1)
    others.append(prepared(tmp_path / "data", storage))
    assert [other.cached for other in others] == [True, False, False, False, False]
    assert len({first.key, *(other.key for other in others)}) == 5


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "cut": lambda content: content[:100],
    "one bit": lambda content: content[:-100] + bytes([content[-100] ^ 1]) + content[-99:],
}


@pytest.mark.parametrize("victim", ["part", "manifest"])
@pytest.mark.parametrize("damage", ["missing", "cut", "one bit"])
def test_a_damaged_entry_is_named_and_prepared_anew_and_its_parts_are_not_used(
    victim, damage, tmp_path, storage, ray_session
):
    write_days(tmp_path / "data", 12)
    first = prepared(tmp_path / "data", storage)
    key = first.final.fit.parts[1].key if victim == "part" else f"prepared/{first.key}/manifest.json"
    if damage == "missing":
        storage.delete([key])
    else:
        storage.put(key, DAMAGES[damage](storage.get(key)))
    again = prepared(tmp_path / "data", storage)
    assert not again.cached
    if (victim, damage) != ("manifest", "missing"):
        assert again.remark == (
            f"warning: {storage.path(key)} {'was' if victim == 'manifest' else 'is'} "
            f"{'missing' if damage == 'missing' else 'damaged'}, so it was computed anew"
        )
    assert again.writer != first.writer
    assert [part.sha256 for part in again.final.fit.parts] == [part.sha256 for part in first.final.fit.parts]
    found = prepared(tmp_path / "data", storage)
    assert found.cached
    assert found.writer == again.writer


def aged(storage: Storage, key: str, days: float) -> None:
    """Makes an entry older than it is."""
    entry = cache.read_entry(storage, key)
    older = replace(entry, made=entry.made - timedelta(days=days))
    storage.keep(f"prepared/{key}/manifest.json", older.manifest, instead_of=entry.manifest)


def test_an_entry_is_used_for_seven_days_and_says_how_old_it_is(tmp_path, storage, ray_session):
    write_days(tmp_path / "data", 12)
    first = prepared(tmp_path / "data", storage)
    aged(storage, first.key, 6.9)
    found = prepared(tmp_path / "data", storage)
    assert (found.cached, found.remark) == (True, "cached 6 days ago")
    aged(storage, first.key, 1.1)
    stale = prepared(tmp_path / "data", storage)
    assert not stale.cached
    assert stale.remark == (
        "computed anew, as the entry is 8 days old, which is over the cache.max_staleness of 7 days"
    )
    aged(storage, first.key, 8)
    assert prepared(tmp_path / "data", storage, cache={"max_staleness": None}).cached
    assert not prepared(tmp_path / "data", storage, cache={"max_staleness": "PT0S"}).cached


def test_a_partition_that_was_touched_makes_another_entry(tmp_path, storage, ray_session):
    write_days(tmp_path / "data", 12)
    first = prepared(tmp_path / "data", storage)
    os.utime(tmp_path / "data" / f"date={days(12)[10]}" / "part-0.parquet")
    again = prepared(tmp_path / "data", storage)
    assert not again.cached
    assert again.key != first.key


def test_two_that_prepare_the_same_at_once_end_with_one_entry(tmp_path, storage, ray_session, monkeypatch):
    write_days(tmp_path / "data", 12)
    publish, others = cache.publish, []

    def overtaken(*values: Any) -> cache.Entry:
        monkeypatch.setattr(cache, "publish", publish)
        others.append(prepared(tmp_path / "data", storage))  # another run, which is done first
        return publish(*values)

    monkeypatch.setattr(cache, "publish", overtaken)
    mine = prepared(tmp_path / "data", storage)
    (other,) = others
    assert mine.writer == other.writer
    assert mine.final == other.final
    assert {key.split("/")[2] for key in storage.keys("prepared")} == {other.writer, "manifest.json"}


def test_pruning_removes_what_is_old_or_replaced_and_nothing_that_a_run_at_work_reads(tmp_path, storage, ray_session):
    write_days(tmp_path / "data", 12)
    old = prepared(tmp_path / "data", storage)
    aged(storage, old.key, 9)
    young = prepared(tmp_path / "data", storage, prepare={"min_category_rows": 3})
    replaced = storage.keys(f"prepared/{young.key}/{young.writer}")
    storage.put("prepared/brokenoff/abc/final/fit/part-00000.arrow", b"a run that was killed here")
    young = prepared(tmp_path / "data", storage, prepare={"min_category_rows": 3}, cache={"max_staleness": "PT0S"})
    storage.put("runs/april/run.json", b"{}")
    with hold(storage, "april"):
        assert cache.prune(storage, timedelta(days=7)) == cache.Pruned((), 0, ("april",))  # it may come to read any
        cache.note_use(storage, "april", old.key, old.writer)
        pruned = cache.prune(storage, timedelta(days=7))
        assert (pruned.entries, pruned.files, pruned.kept_for) == ((), len(replaced) + 1, ("april",))
    pruned = cache.prune(storage, timedelta(days=7))
    assert [entry.key for entry in pruned.entries] == [old.key]
    assert {key.split("/")[1] for key in storage.keys("prepared")} == {young.key}
    assert prepared(tmp_path / "data", storage, prepare={"min_category_rows": 3}).cached


def test_the_commands_list_what_is_kept_and_remove_it(tmp_path, storage, ray_session):
    def told(*words: str) -> Any:
        options = ["-c", "configs/local.yaml", "--set", f"storage.root={storage.root}", "--json"]
        done = CliRunner().invoke(app, ["cache", *words, *options])
        assert done.exit_code == 0, done.output
        return json.loads(done.stdout)

    write_days(tmp_path / "data", 12)
    kept = prepared(tmp_path / "data", storage)
    parts = [part for fold in (*kept.selection, kept.final) for part in (*fold.fit.parts, *fold.holdout.parts)]
    (listed,) = told("list")
    assert (listed["key"], listed["parts"], listed["bytes"]) == (kept.key, len(parts), sum(p.size for p in parts))
    assert told("prune")["removed"] == []
    pruned = told("prune", "--older-than", "0")
    assert [(removed["key"], removed["bytes"]) for removed in pruned["removed"]] == [(kept.key, listed["bytes"])]
    assert (pruned["files"], pruned["kept_for"]) == (len(parts) + 1, [])
    assert told("list") == storage.keys("prepared") == []


@pytest.mark.parametrize("folds", [BY_TIME, {"kind": "stratified", "holdout_share": 0.3, "delay_days": 1}])
def test_rows_whose_labels_are_late_change_nothing_of_what_is_prepared(folds, tmp_path, storage, ray_session):
    for day, table in zip(days(12), write_days(tmp_path / "data", 12), strict=True):
        write_partition(tmp_path / "without", f"date={day}/part-0.parquet", table)
    # The newest day has no labels, and so another type, as pandas writes it.
    table = card_table(days(13)[-1])
    floats = table.set_column(table.column_names.index("is_fraud"), "is_fraud", pa.nulls(60, pa.float64()))
    write_partition(tmp_path / "data", f"date={days(13)[-1]}/part-0.parquet", floats)
    settings = card_settings(tmp_path / "data", folds=folds, prepare=FEW)
    source = open_source(settings.data)
    census = validate(source, settings.data, quiet, settings.folds)
    assert (census.late, census.labelled_until, census.rows) == (60, to_day(days(12)[-1]), 780)
    late = prepare(source, plan_folds(census, settings.folds), settings, storage, quiet)
    none = prepared(tmp_path / "without", storage, folds=folds)
    for one, other in zip((*late.selection, late.final), (*none.selection, none.final), strict=True):
        assert one.encoder == other.encoder
        assert [p.sha256 for p in one.fit.parts] == [p.sha256 for p in other.fit.parts]
        assert [p.sha256 for p in one.holdout.parts] == [p.sha256 for p in other.holdout.parts]


def test_partitions_outside_of_all_folds_are_not_read(tmp_path, storage, ray_session):
    write_days(tmp_path / "data", 12)
    settings, source, folds = planned(tmp_path / "data")
    for day in days(12):
        inside = any(side.first <= to_day(day) <= side.last for fold in folds.all for side in (fold.fit, fold.holdout))
        if not inside:
            (tmp_path / "data" / f"date={day}" / "part-0.parquet").unlink()
    assert len(list((tmp_path / "data").rglob("*.parquet"))) == 9
    assert prepare(source, folds, settings, storage, quiet).final.fit.rows == 240


def test_progress_counts_the_rows_of_both_passes(tmp_path, storage, ray_session):
    write_days(tmp_path / "data", 12)
    settings, source, folds = planned(tmp_path / "data")
    told = []
    prepare(source, folds, settings, storage, lambda done, total, text: told.append((done, total, text)))
    fit_days, all_days = 6, 9
    assert told[-1] == ((fit_days + all_days) * 60, (fit_days + all_days) * 60, "encode")
    assert [text for _, _, text in told] == ["fit"] * fit_days + ["encode"] * all_days


def test_entities_of_any_type_and_missing_ones_are_carried(tmp_path, storage, ray_session):
    for day, table in zip(days(12), write_days(tmp_path / "data", 12), strict=True):
        cards = pc.if_else(pc.less(table["card"], 3), None, table["card"]).cast(pa.int32())
        ids = pc.binary_join_element_wise("t", table["transaction_id"].cast(pa.string()), "-").dictionary_encode()
        changed = table.set_column(2, "card", cards).set_column(0, "transaction_id", ids)
        write_partition(tmp_path / "data", f"date={day}/part-0.parquet", changed)
    columns = COLUMNS | {"card": {"kind": "entity", "nulls": True}}
    settings = card_settings(tmp_path / "data", columns, folds=BY_TIME)
    source = open_source(settings.data)
    folds = plan_folds(validate(source, settings.data, quiet), settings.folds)
    result = prepare(source, folds, settings, storage, quiet)
    roles = rows.load(storage, result.final.holdout, with_roles=True).roles
    assert {"", "3"} <= set(roles["entity"]) <= {"", *map(str, range(3, 40))}
    assert all(name.startswith("t-") for name in roles["id"])


def test_a_removal_that_leaves_no_fraud_is_refused_before_anything_is_stored(tmp_path, storage, ray_session):
    for day, table in zip(days(12), write_days(tmp_path / "data", 12), strict=True):
        everywhere = pa.array(np.where(table["is_fraud"].to_numpy() == 1, 0, table["card"].to_numpy() + 1))
        write_partition(tmp_path / "data", f"date={day}/part-0.parquet", table.set_column(2, "card", everywhere))
    with pytest.raises(DataError, match=r"fold 'final' .* its holdout side has \d+ rows and 0 frauds"):
        prepared(tmp_path / "data", storage, folds=BY_TIME | {"remove_compromised": True})
    assert storage.keys("prepared") == []


def test_limits_hold_after_the_removal(tmp_path, storage, ray_session):
    write_days(tmp_path / "data", 12, rows=100, cards=1_000)
    free = prepared(tmp_path / "data", storage, folds=BY_TIME | {"remove_compromised": True})
    assert 60 < free.final.holdout.rows < 200
    limits = {"remove_compromised": True, "max_holdout_rows": 60, "max_fit_rows": 90}
    limited = prepared(tmp_path / "data", storage, folds=BY_TIME | limits)
    assert (limited.final.holdout.rows, limited.final.fit.rows) == (60, 90)


def test_the_handbooks_final_fold_has_the_books_rows(handbook, storage, ray_session):
    columns = {
        "TX_AMOUNT": {"kind": "amount", "min": 0},
        "TERMINAL_ID_RISK_7DAY_WINDOW": {"kind": "numeric"},
        "TX_DURING_NIGHT": {"kind": "boolean"},
        "TX_FRAUD": {"kind": "label"},
        "TX_DATETIME": {"kind": "timestamp"},
        "CUSTOMER_ID": {"kind": "entity"},
        "TRANSACTION_ID": {"kind": "id"},
    }
    folds = {
        "start": "2018-07-25",
        "fit_days": 7,
        "delay_days": 7,
        "holdout_days": 7,
        "selection_shift_days": [28, 35],
        "remove_compromised": True,
    }
    settings = card_settings(handbook / "features", columns, folds=folds)
    source = open_source(settings.data)
    plan = plan_folds(validate(source, settings.data, quiet), settings.folds)
    result = prepare(source, plan, settings, storage, quiet)

    frame = pd.read_parquet(handbook / "features", columns=["TRANSACTION_ID", "TX_DATETIME", "CUSTOMER_ID", "TX_FRAUD"])
    day = frame.TX_DATETIME.dt.normalize()
    for fold, start in zip((*result.selection, result.final), ("2018-06-27", "2018-06-20", "2018-07-25"), strict=True):
        begin = pd.Timestamp(start)
        fit = frame[(day >= begin) & (day < begin + pd.Timedelta(days=7))]
        known = set(fit[fit.TX_FRAUD == 1].CUSTOMER_ID)
        remaining = []
        for i in range(7):
            new = frame[(day == begin + pd.Timedelta(days=6 + i)) & (frame.TX_FRAUD == 1)]
            known |= set(new.CUSTOMER_ID)
            held_out = frame[day == begin + pd.Timedelta(days=14 + i)]
            remaining.append(held_out[~held_out.CUSTOMER_ID.isin(known)])
        holdout = pd.concat(remaining)
        assert (fold.fit.rows, fold.fit.frauds) == (len(fit), fit.TX_FRAUD.sum())
        got = rows.load(storage, fold.holdout, with_roles=True)
        assert sorted(got.roles["id"].tolist()) == sorted(holdout.TRANSACTION_ID)
        assert got.label.sum() == holdout.TX_FRAUD.sum()
    # As printed in the handbook's chapter 3, "Baseline fraud detection system".
    assert (result.final.fit.rows, result.final.fit.frauds) == (67_240, 598)
    assert (result.final.holdout.rows, result.final.holdout.frauds) == (58_264, 385)
