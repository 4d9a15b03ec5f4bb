"""A first configuration for data that nobody has declared: what `fraud-ray init` writes of three banks' extracts."""

from __future__ import annotations

import re
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from fraud_ray.errors import DataError
from fraud_ray.intake.draft import draft
from tests import extracts


def drafted(path: Path, **options: Any) -> dict[str, Any]:
    """What is written of the data at a path."""
    text = draft(str(path), "cards", str(path.parent / "store"), options.get("label"), lambda *_: None).text
    assert all(len(line) <= 130 for line in text.splitlines()), text
    return yaml.safe_load(text.replace("true: T", "'true': T"))


def test_an_extract_of_spark(tmp_path: Path) -> None:
    written = drafted(extracts.spark(tmp_path / "cards"))
    assert written["data"]["columns"] == {
        "txn_id": {"kind": "id"},
        "event_time": {"kind": "timestamp"},
        "card_number": {"kind": "entity"},
        "amount": {"kind": "amount", "min": 0},
        "mcc": {"kind": "categorical", "values": ["4829", "5411", "5812", "5999"]},
        "channel": {"kind": "categorical", "values": ["atm", "pos", "web"]},
        "is_abroad": {"kind": "boolean", "true": "T"},
        "limit_left": {"kind": "numeric", "min": 0, "nulls": True},
        "is_fraud": {"kind": "label", "positive": "Y"},
    }
    folds = written["folds"]
    assert folds["fit_days"] + folds["delay_days"] + folds["holdout_days"] + sum(folds["selection_shift_days"]) == 40


def test_an_extract_of_a_file_each_half_hour(tmp_path: Path) -> None:
    written = drafted(extracts.half_hours(tmp_path / "cards"))
    assert written["data"]["columns"] == {
        "ts": {"kind": "timestamp", "unit": "ms"},
        "account_id": {"kind": "entity"},
        "value": {"kind": "amount", "min": 0},
        "channel": {"kind": "categorical", "values": ["atm", "pos", "web"]},
        "terminal_no": {"kind": "categorical"},
        "abroad": {"kind": "boolean"},
        "label": {"kind": "label"},
        "label_known_at": {"kind": "label_time"},
    }
    assert written["folds"]["delay_days"] == 3
    assert written["prepare"]["calendar"] is True


def test_what_is_written_holds_for_rows_that_no_sample_has(tmp_path: Path) -> None:
    """The odd rows are the last of a file in the middle."""
    folder = extracts.spark(tmp_path / "cards")
    file = folder / "year=2024/month=4/day=7/part-00000-c000.snappy.parquet"
    table = pq.read_table(file, partitioning=None)
    odd = {"amount": -3, "channel": "kiosk", "is_abroad": None, "limit_left": -10.5, "mcc": 7995}
    rows = table.to_pylist()
    rows[-1] |= odd
    pq.write_table(pa.Table.from_pylist(rows, table.schema), file, use_deprecated_int96_timestamps=True)
    columns = drafted(folder)["data"]["columns"]
    assert columns["amount"] == {"kind": "amount"}
    assert columns["channel"] == {"kind": "categorical", "values": ["atm", "kiosk", "pos", "web"]}
    assert columns["is_abroad"] == {"kind": "boolean", "true": "T", "nulls": True}
    assert columns["limit_left"] == {"kind": "numeric", "nulls": True}
    assert columns["mcc"]["values"] == ["4829", "5411", "5812", "5999", "7995"]


COLUMNS: dict[str, Any] = {
    "at": [datetime(2024, 3, 1) + timedelta(hours=i) for i in range(480)],
    "amount": [float(i % 37) for i in range(480)],
    "is_fraud": [i % 6 == 0 for i in range(480)],
}


def written_as(folder: Path, **columns: Any) -> Path:
    """A file of COLUMNS with these beside them, or in place of them; None: without the column."""
    folder.mkdir()
    held = {name: values for name, values in {**COLUMNS, **columns}.items() if values is not None}
    pq.write_table(pa.table(held), folder / "part.parquet")
    return folder


def test_columns_of_no_use_are_left_out_with_the_reason(tmp_path: Path) -> None:
    told = {
        "constant": ["EUR"] * 480,
        "empty": [None] * 480,
        "memo": [f"thanks {i}" for i in range(480)],
        "confirmed": ["yes" if i % 6 == 0 else "no" for i in range(480)],
        "refund": [1.5 * i if i % 6 == 0 else None for i in range(480)],
        "fraud_score": [0.1 * (i % 5) for i in range(480)],
        "decision": ["ok", "stop"] * 240,
        "blob": [b"\xff\xfe"] * 480,
        "of_which": [{"a": 1}] * 480,
        "odds": [float("inf"), 1.0] * 240,
        "zahl": ["1.234,56", "2,50"] * 240,
    }
    text = draft(str(written_as(tmp_path / "cards", **told)), "cards", "/store", None, lambda *_: None).text
    assert list(yaml.safe_load(text)["data"]["columns"]) == ["at", "amount", "is_fraud", "zahl"]
    reasons = {
        "constant": "one value in all rows: EUR",
        "empty": "no row has a value",
        "memo": "text, another value in each row: too many",
        "confirmed": "tells the label",
        "refund": "tells the label",
        "fraud_score": "its name speaks of fraud",
        "decision": "its name is that of a column which scoring writes",
        "blob": "of type binary",
        "of_which": "of type struct<a: int64>",
        "odds": "240 rows infinite",
    }
    for name, reason in reasons.items():
        assert re.search(rf"^    # {name} +# {re.escape(reason)}", text, re.MULTILINE), name


def test_a_time_that_frauds_alone_have_is_no_label_time(tmp_path: Path) -> None:
    rows = zip(COLUMNS["at"], COLUMNS["is_fraud"], strict=True)
    times = [at + timedelta(days=2) if is_fraud else None for at, is_fraud in rows]
    told = draft(str(written_as(tmp_path / "cards", reported_at=times)), "cards", "/store", None, lambda *_: None).text
    assert list(yaml.safe_load(told)["data"]["columns"]) == ["at", "amount", "is_fraud"]
    assert re.search(r"^    # reported_at +# .* but 400 rows with a label lack it", told, re.MULTILINE)


TWO, THREE = ["a", "b"] * 240, ["Y", "N", "U"] * 160


@pytest.mark.parametrize(
    ("columns", "told"),
    [
        ({"is_fraud": None, "flagged_by": TWO}, "no label found.* two values: flagged_by.*--label flagged_by"),
        ({"is_fraud": None}, "no column holds two values"),
        ({"is_fraud": THREE}, "3 values: 'N' in 160 rows, 'U' in 160 rows, 'Y' in 160 rows; a label has two"),
        ({"is_fraud": [0] * 480}, "holds only '0' in 480 rows"),
        (
            {"amount": None, "memo": [f"text {i}" for i in range(480)]},
            "no column that a model could read:\n  memo: text",
        ),
    ],
)
def test_data_from_which_nothing_can_be_learnt_is_refused(tmp_path: Path, columns: dict[str, Any], told: str) -> None:
    with pytest.raises(DataError, match=told):
        drafted(written_as(tmp_path / "cards", **columns))


@pytest.mark.parametrize(
    ("at", "told"),
    [
        (None, "there is no timestamp"),
        ([datetime(2024, 3, 1)] * 480, "1 day cannot give each side of two folds a fraud"),
    ],
)
def test_folds_are_stratified_where_time_gives_none(tmp_path: Path, at: Any, told: str) -> None:
    folder = written_as(tmp_path / "cards", at=at)
    assert drafted(folder)["folds"] == {"kind": "stratified"}
    assert told in draft(str(folder), "cards", "/store", None, lambda *_: None).text


def test_the_newest_days_without_labels_are_waited_for(tmp_path: Path) -> None:
    labels = [None if i >= 24 * 16 else i % 6 == 0 for i in range(480)]
    folds = drafted(written_as(tmp_path / "cards", is_fraud=labels))["folds"]
    assert folds == {"fit_days": 8, "delay_days": 4, "holdout_days": 2, "selection_shift_days": [2]}


def test_bounds_of_the_gate_are_above_what_needs_no_model(tmp_path: Path) -> None:
    amounts = [float(900 if i % 6 == 0 and i % 12 else 1 + i % 7) for i in range(480)]  # half of the frauds are dear
    gate = drafted(written_as(tmp_path / "cards", amount=amounts))["gate"]
    assert 0.67 < gate["min_f1"] < 0.8
    assert 0.55 < gate["min_average_precision"] < 0.75
