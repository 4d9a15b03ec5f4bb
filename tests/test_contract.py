"""The contract: what is accepted, what is a violation, and what the census counts."""

from __future__ import annotations

import pickle
from datetime import date, datetime, timedelta
from decimal import Decimal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from fraud_ray.data.contract import SHOWN_CAUSES, Census, ContractViolation, Violation, check, validate
from fraud_ray.data.keys import NO_TIME, buckets_of, to_day
from fraud_ray.data.source import open_source
from fraud_ray.errors import DataError
from fraud_ray.settings import DataSettings, FoldSettings
from tests.cards import (
    FIRST_DAY,
    TIMED_COLUMNS,
    as_read,
    card_settings,
    card_table,
    days,
    timed,
    unlabelled,
    write_days,
    write_partition,
)

NO_LISTENER = lambda done, total, text: None  # noqa: E731


def broken(kind: str, values: pa.Array, /, **declared: object) -> list[Violation]:
    """The violations of one column of a kind, as a file `a.parquet` holds it."""
    other = "numeric" if kind == "label" else "label"
    columns = {"x": {"kind": kind, **declared}, "y": {"kind": other}, "z": {"kind": "numeric"}}
    data = DataSettings.model_validate({"path": "data", "columns": columns})
    zeros = pa.array([0] * len(values))
    return check(as_read(pa.table({"x": values, "y": zeros, "z": zeros}), data), data, "a.parquet")[0]


def not_utf8(*values: bytes) -> pa.Array:
    """Strings as a writer leaves them that does not check its bytes."""
    binary = pa.array(values, pa.binary())
    return pa.StringArray.from_buffers(len(values), *binary.buffers()[1:], binary.buffers()[0])


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        ("numeric", pa.array([1, 2], pa.int32())),
        ("numeric", pa.array([1, 2], pa.uint64())),
        ("numeric", pa.array([1.5, 2], pa.float32())),
        ("numeric", pa.array([Decimal("1.5")])),
        ("amount", pa.array([Decimal("1.5")])),
        ("categorical", pa.array(["a"]).dictionary_encode()),
        ("categorical", pa.array(["a"], pa.large_string())),
        ("categorical", pa.array([5, 6], pa.int16())),
        ("categorical", pa.array([5.0, 7.0])),
        ("categorical", pa.array([b"a"])),
        ("boolean", pa.array([True, False])),
        ("boolean", pa.array([0, 1], pa.int8())),
        ("boolean", pa.array([0.0, 1.0])),
        ("label", pa.array([True, False])),
        ("label", pa.array([0, 1], pa.int64())),
        ("entity", pa.array([1, 2], pa.int32())),
        ("entity", pa.array(["c1"]).dictionary_encode()),
        ("id", pa.array([2**63], pa.uint64())),
        ("timestamp", pa.array([date(2024, 1, 1)])),
        ("timestamp", pa.array([datetime(2024, 1, 1)], pa.timestamp("ns", "UTC"))),
        ("true_probability", pa.array([0.0, 1.0])),
    ],
)
def test_harmless_types_are_accepted(kind, values):
    assert broken(kind, values) == []


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        ("numeric", pa.array(["1.5"])),
        ("numeric", pa.array([True])),
        ("amount", pa.array([date(2024, 1, 1)])),
        ("categorical", pa.array([1.5])),
        ("categorical", pa.array([["a"]])),
        ("entity", pa.array([1.0])),
        ("id", pa.array([{"a": 1}])),
        ("categorical", pa.array([{"a": 1}])),
        ("timestamp", pa.array(["2024-01-01"])),
        ("true_probability", pa.array(["0.5"])),
    ],
)
def test_another_type_than_the_kind_is_for_is_a_violation_that_names_both(kind, values):
    [violation] = broken(kind, values)
    assert str(violation).startswith(f"a.parquet: column 'x' is of type {values.type}; kind '{kind}' is for ")
    assert "data.columns.x.kind" in violation.message


@pytest.mark.faults(
    "12",
    "missing values, NaN, infinities, and values beyond their bounds",
    "each counted, with file, column and first row",
)
@pytest.mark.quick
@pytest.mark.parametrize(
    ("kind", "declared", "values", "count", "first", "says"),
    [
        ("amount", {"min": 0}, [1, -3.2, -1], 2, 1, "2 values below 0 (first at row 1: -3.2); the contract says >= 0."),
        ("amount", {"min": 0}, [1, -3.2, -1], 2, 1, "or change data.columns.x.min."),
        ("numeric", {"max": 10}, [1, 11], 1, 1, "1 value above 10 (first at row 1: 11.0); the contract says <= 10."),
        ("numeric", {}, [1.0, None, float("nan")], 2, 1, "2 missing values (first at row 1); the contract allows none"),
        ("numeric", {}, [1.0, None], 1, 1, "allow them with data.columns.x.nulls: true"),
        ("numeric", {"nulls": True, "min": 0}, [None, float("inf")], 1, 1, "1 infinite value (first at row 1: inf)"),
        ("categorical", {}, ["a", None], 1, 1, "1 missing value"),
        ("categorical", {"values": ["a"]}, ["b", "a", "c"], 2, 0, "2 unknown values (first at row 0: 'b')"),
        ("categorical", {"values": ["a"]}, ["b", "a", "c"], 2, 0, "data.columns.x.values"),
        ("categorical", {"values": ["5"]}, [5, 6], 1, 1, "1 unknown value (first at row 1: '6')"),
        ("boolean", {}, [0, 2], 1, 1, "1 value other than 0 and 1 (first at row 1: 2)"),
        ("label", {}, [0, 1, 2, 3], 2, 2, "2 values other than 0 and 1 (first at row 2: 2); a label is 0 or 1."),
        ("label", {}, [0, None], 1, 1, "1 missing value (first at row 1); the contract allows none. Fix the file."),
        ("entity", {}, ["c1", None], 1, 1, "1 missing value"),
        ("id", {}, [1, None], 1, 1, "1 missing value"),
        ("timestamp", {}, [datetime(2024, 1, 1), None], 1, 1, "1 missing value"),
        ("true_probability", {}, [0.5, 1.5], 1, 1, "1 value above 1 (first at row 1: 1.5)"),
        ("true_probability", {}, [-0.5, 1.0], 1, 0, "1 value below 0 (first at row 0: -0.5)"),
    ],
)
def test_a_wrong_value_is_counted_and_the_first_row_shown(kind, declared, values, count, first, says):
    [violation] = broken(kind, pa.array(values, from_pandas=False), **declared)
    assert (violation.count, violation.first_row) == (count, first)
    assert says in str(violation)


@pytest.mark.parametrize(
    ("kind", "declared", "values", "count", "first", "says"),
    [
        ("numeric", {}, pa.array([1, 2**53 + 1]), 1, 1, "1 value beyond 2^53 (first at row 1: 9007199254740993)"),
        (
            "categorical",
            {},
            not_utf8(b"a", b"\xff"),
            1,
            1,
            "cannot be read as UTF-8 (first at row 1: b'\\xff')",
        ),
        ("id", {}, pa.array([b"\xff", b"a"]), 1, 0, "read as UTF-8"),
        ("timestamp", {}, pa.array([0, 10**13], pa.timestamp("s")), 1, 1, "1 value outside the years 1 to 9999"),
        ("timestamp", {}, pa.array([0, 10**13], pa.timestamp("ms")), 0, 0, ""),
        ("timestamp", {}, pa.array([0, 2**30], pa.date32()), 1, 1, "1 value outside the years 1 to 9999"),
        ("timestamp", {}, pa.array([2**60, 0], pa.timestamp("us")), 1, 0, "1 value outside the years 1 to 9999"),
        ("timestamp", {"unit": "s"}, pa.array([0, 2**60]), 1, 1, "1 value outside the years 1 to 9999"),
        (
            "timestamp",
            {},
            pa.array([date(2024, 1, 1), date(9999, 12, 31)]),
            1,
            1,
            "1 value 9999-12-31 in place of",
        ),
        ("timestamp", {"nulls": True}, pa.array([datetime(1, 1, 1)], pa.timestamp("us")), 1, 0, "0001-01-01"),
        ("timestamp", {}, pa.array([1_700_000_000]), 1, 0, "Say with data.columns.x.unit in what they count"),
        ("boolean", {}, pa.array(["N", "Y"]), 2, 0, "Say which text means 1 with data.columns.x.true, such as 'Y'."),
        ("label", {}, pa.array(["1", "0"]), 2, 0, "Say which text means 1 with data.columns.x.positive, such as '1'."),
        ("boolean", {}, pa.array([0, 300]), 1, 1, "1 value other than 0 and 1 (first at row 1: 300)"),
        ("boolean", {}, pa.array([0.5, 1.0]), 1, 0, "1 value other than 0 and 1 (first at row 0: 0.5)"),
    ],
)
def test_a_value_that_no_type_of_the_kind_holds_is_named_with_its_row(kind, declared, values, count, first, says):
    found = broken(kind, values, **declared)
    assert [(violation.count, violation.first_row) for violation in found] == ([(count, first)] if count else [])
    assert says in "".join(map(str, found))


@pytest.mark.faults(
    "13", "labels are missing, or no 0 and 1", "a violation, but for days whose labels cannot be known yet"
)
@pytest.mark.quick
def test_labels_younger_than_the_delay_may_be_missing_and_are_counted():
    data, newest = card_settings("data").data, days(9)[-1]
    old, young = (as_read(unlabelled(card_table(day), 7), data) for day in (days(7)[-1], days(8)[-1]))
    violations, summary = check(young, data, "a.parquet", newest, folds=FoldSettings(delay_days=2))
    assert violations == []
    assert (summary.rows, summary.labelled) == (60, 53)
    assert summary.times.to_pylist() == [
        {"tick": to_day(days(8)[-1]), "known": NO_TIME, "rows": 53, "frauds": summary.frauds, "late": 7}
    ]
    assert summary.frauds == np.nansum(young["is_fraud"].to_numpy())
    assert sum(rows for rows, _ in summary.buckets.values()) == 53
    census = Census((check(as_read(card_table(), data), data, "b.parquet")[1], summary))
    assert census.notes == ("7 labels not known yet, known up to 2024-01-01",)
    [violation] = check(old, data, "a.parquet", newest, folds=FoldSettings(delay_days=2))[0]
    assert str(violation) == (
        "a.parquet: column 'is_fraud' has 7 missing values (first at row 53); labels may be missing on the newest 2 "
        "days alone (folds.delay_days), of which the last is 2024-01-09. Write them, leave these rows out, or raise "
        "folds.delay_days."
    )


@pytest.mark.faults("13", "labels are known before their transaction", "a violation")
@pytest.mark.quick
def test_a_label_time_is_not_before_its_transaction_and_says_which_labels_may_be_missing():
    data = card_settings("data", TIMED_COLUMNS).data
    table = timed(card_table(), days(3)[-1])
    late = table["known"].null_count
    violations, summary = check(as_read(table, data), data, "a.parquet")
    assert (violations, summary.rows - summary.labelled, pc.sum(summary.times["late"]).as_py()) == ([], late, late)
    assert late > 5
    assert pc.sum(summary.times["rows"]).as_py() == summary.labelled == 60 - late
    # A label whose time is missing is not known yet, whatever it says.
    told = table.set_column(7, "is_fraud", card_table()["is_fraud"])
    assert check(as_read(told, data), data, "a.parquet") == ([], summary)
    early = pc.subtract(table["known"], pa.scalar(timedelta(days=6)))
    [violation] = check(as_read(table.set_column(9, "known", early), data), data, "a.parquet")[0]
    assert str(violation).startswith(f"a.parquet: column 'known' has {60 - late} values before the transaction's own")
    [violation] = check(as_read(unlabelled(told, 60), data), data, "a.parquet")[0]
    assert f"'is_fraud' has {60 - late} missing values (first at row 0); known says since when they are" in str(
        violation
    )


def test_a_date_as_label_time_counts_from_its_end_on():
    data = card_settings("data", TIMED_COLUMNS).data
    table = card_table().append_column("known", pa.array([FIRST_DAY] * 60))
    violations, summary = check(as_read(table, data), data, "a.parquet")
    [times] = summary.times.to_pylist()
    assert (violations, times["tick"], times["known"]) == ([], to_day(FIRST_DAY), to_day(days(2)[-1]))


def test_a_day_has_its_labels_where_at_most_one_in_a_hundred_is_missing():
    data, newest = card_settings("data").data, days(4)[-1]
    tables = [unlabelled(card_table(day, rows=200), late) for day, late in zip(days(4), (0, 2, 3, 200), strict=True)]
    summaries = [
        check(as_read(table, data), data, "a.parquet", newest, folds=FoldSettings(delay_days=3))[1] for table in tables
    ]
    assert Census(tuple(summaries)).labelled_until == to_day(days(2)[-1])
    assert Census(tuple(summaries[2:])).labelled_until is None


def test_allowed_gaps_are_no_violation_beside_the_other_rules():
    assert broken("numeric", pa.array([None, 1.0, float("nan")]), nulls=True, min=0, max=2) == []
    assert broken("categorical", pa.array([None, "a"]), nulls=True, values=["a"]) == []
    assert broken("boolean", pa.array([None, True]), nulls=True) == []
    assert broken("timestamp", pa.nulls(2), nulls=True) == []


def test_a_partition_without_rows_breaks_nothing():
    settings = card_settings("data")
    violations, summary = check(as_read(card_table(rows=0), settings.data), settings.data, "a.parquet")
    assert violations == []
    assert (summary.rows, summary.times.num_rows, summary.first) == (0, 0, None)


def test_the_summary_counts_rows_and_frauds_by_day_and_by_bucket():
    data = card_settings("data").data
    table = pa.concat_tables([card_table(day) for day in days(3)])
    violations, summary = check(as_read(table, data), data, "a.parquet")
    frame = table.to_pandas()
    assert violations == []
    assert (summary.rows, summary.frauds) == (len(frame), frame.is_fraud.sum())
    by_day = frame.groupby(frame.timestamp.dt.date).is_fraud.agg(["size", "sum"])
    times = summary.times.select(["tick", "rows", "frauds"]).to_pylist()
    assert [tuple(one.values()) for one in times] == [(to_day(day), n, f) for day, n, f in by_day.itertuples()]
    assert (summary.first, summary.last) == (frame.timestamp.min(), frame.timestamp.max())
    frauds = frame[frame.is_fraud == 1]
    of_cards = zip(frauds.card.astype(str), frauds.timestamp.dt.date, strict=True)
    assert set(summary.frauds_of) == {(card, to_day(day), None) for card, day in of_cards}
    buckets = buckets_of(pa.array(frame.card.astype(str)))
    by_bucket = frame.groupby(buckets).is_fraud.agg(["size", "sum"])
    assert summary.buckets == {bucket: (n, f) for bucket, n, f in by_bucket.itertuples()}


def test_days_are_days_in_utc_whatever_the_zone_of_the_file():
    data = card_settings("data").data
    table = card_table(rows=2)
    instants = pa.array([datetime(2024, 1, 1, 23, 30), datetime(2024, 1, 2, 0, 30)], pa.timestamp("us", "UTC"))
    table = table.set_column(1, "timestamp", instants.cast(pa.timestamp("us", "America/New_York")))
    ticks = check(as_read(table, data), data, "a.parquet")[1].times["tick"].to_pylist()
    assert ticks == [to_day(date(2024, 1, 1)), to_day(date(2024, 1, 2))]


def test_validation_lists_what_all_partitions_break_and_names_file_column_count_and_row(tmp_path, ray_session):
    write_days(tmp_path, 3)
    amounts = card_table(date(2024, 2, 2), rows=4).set_column(3, "amount", pa.array([1.0, -3.2, 2.0, -1.0]))
    write_partition(tmp_path, "negative.parquet", amounts)
    write_partition(tmp_path, "short.parquet", card_table(date(2024, 2, 1)).drop_columns(["distance", "online"]))
    path = write_partition(tmp_path, "torn.parquet", card_table())
    content = bytearray(path.read_bytes())
    content[4:400] = b"\xff" * 396
    path.write_bytes(content)
    data = card_settings(tmp_path).data
    with pytest.raises(ContractViolation) as fault:
        validate(open_source(data), data, NO_LISTENER)
    assert fault.value.exit_code == 4
    assert {(v.path, v.column, v.count, v.first_row) for v in fault.value.violations} == {
        ("negative.parquet", "amount", 2, 1),
        ("short.parquet", "distance", 60, 0),
        ("short.parquet", "online", 60, 0),
        ("torn.parquet", "transaction_id", 60, 0),
    }
    lines = str(fault.value).splitlines()
    assert lines[0] == "the data breaks the contract: 4 violations in 3 of 6 partitions"
    assert (
        "negative.parquet: column 'amount' has 2 values below 0 (first at row 1: -3.2); the contract says >= 0. "
        "Fix the file, or change data.columns.amount.min." in lines
    )


def test_validation_counts_partitions_in_their_order_and_tells_how_far_it_is(tmp_path, ray_session):
    tables = write_days(tmp_path, 5)
    write_partition(tmp_path, "date=2024-01-02/part-1.parquet", card_table(rows=7))
    data = card_settings(tmp_path).data
    told = []
    census = validate(open_source(data), data, lambda done, total, text: told.append((done, total)))
    assert isinstance(census, Census)
    assert [s.rows for s in census.summaries] == [60, 60, 7, 60, 60, 60]
    assert census.frauds == sum(np.sum(t["is_fraud"]) for t in tables) + np.sum(card_table(rows=7)["is_fraud"])
    assert told == sorted(told)
    assert told[-1] == (2 * 307, 2 * 307)
    assert validate(open_source(data), data.model_copy(update={"expected_rows": 307}), NO_LISTENER).rows == 307
    with pytest.raises(DataError, match=r"holds 307 rows, and data\.expected_rows says 1,308: it is not whole"):
        validate(open_source(data), data.model_copy(update={"expected_rows": 1308}), NO_LISTENER)


def test_an_entity_that_is_text_in_one_partition_and_a_number_in_the_others_is_a_violation(tmp_path, ray_session):
    write_days(tmp_path, 3)
    table = card_table(date(2024, 2, 1))
    write_partition(tmp_path, "text.parquet", table.set_column(2, "card", table["card"].cast(pa.string())))
    data = card_settings(tmp_path).data
    with pytest.raises(ContractViolation) as fault:
        validate(open_source(data), data, NO_LISTENER)
    [violation] = fault.value.violations
    assert str(violation).startswith("text.parquet: column 'card' is text and holds integers in 3 partitions, such as ")


def test_a_label_in_letters_has_one_other_value_in_all_partitions(tmp_path, ray_session):
    for name, texts in {"a": ["Y", "N", "N"], "b": ["N", "Y", None], "c": ["J", "N", "N"]}.items():
        label = pa.array(texts).fill_null("Y")
        write_partition(tmp_path, f"{name}.parquet", pa.table({"x": [1.0, 2.0, 3.0], "is_fraud": label}))
    columns = {"x": {"kind": "numeric"}, "is_fraud": {"kind": "label", "positive": "Y"}}
    data = DataSettings.model_validate({"path": str(tmp_path), "columns": columns})
    with pytest.raises(ContractViolation) as fault:
        validate(open_source(data), data, NO_LISTENER)
    [violation] = fault.value.violations
    assert str(violation).startswith(
        "c.parquet: column 'is_fraud' holds 'J', 'N' beside 'Y', where a.parquet holds 'N'"
    )
    (tmp_path / "c.parquet").unlink()
    census = validate(open_source(data), data, NO_LISTENER)
    assert (census.rows, census.frauds) == (6, 3)


@pytest.mark.parametrize("what", ["values below 0", "missing values"])
def test_the_message_shows_each_cause_once_and_the_exception_keeps_all(what):
    found = f"has {{:,}} {what} (first at row {{}}: -1.0); the contract says otherwise. Fix the file."
    violations = [Violation(f"{i}.parquet", "x", found.format(i, i), i, i) for i in range(1, 1_500)]
    violations += [Violation("0.parquet", f"column_{i}", "is missing.", 1, 0) for i in range(SHOWN_CAUSES + 4)]
    fault = pickle.loads(pickle.dumps(ContractViolation(violations, 3_000)))
    assert fault.violations == tuple(violations)
    summary, first, likewise, *lines, rest = str(fault).splitlines()
    assert summary.startswith("the data breaks the contract: 1,515 violations in 1500 of 3,000 partitions")
    assert first == f"1.parquet: column 'x' {found.format(1, 1)}"
    assert likewise == "  likewise in 1,498 other partitions, 1,124,250 rows in all"
    assert lines == [f"0.parquet: column 'column_{i}' is missing." for i in range(SHOWN_CAUSES - 1)]
    assert rest == "and 5 more causes; `fraud-ray validate --all` lists all"
