"""A first configuration for data that nobody has declared: what `fraud-ray init` writes of three banks' extracts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from fraud_ray.intake.draft import draft
from tests import extracts


def drafted(path: Path, **options: Any) -> dict[str, Any]:
    """What is written of the data at a path."""
    text = draft(str(path), "cards", str(path.parent / "store"), options.get("label"), lambda *_: None).text
    assert all(len(line) <= 130 for line in text.splitlines()), text
    return yaml.safe_load(text)


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
