"""A first configuration for data that nobody has declared: what `fraud-ray init` writes of three banks' extracts."""

from __future__ import annotations

import re
import shutil
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from typer.testing import CliRunner

from fraud_ray import pipeline
from fraud_ray.cli import app
from fraud_ray.data.contract import check
from fraud_ray.data.folds import plan_folds
from fraud_ray.data.source import open_source, read_partition
from fraud_ray.errors import EXIT_SETTINGS, DataError
from fraud_ray.intake.draft import draft
from fraud_ray.intake.texts import sniffed
from fraud_ray.progress import Quiet
from fraud_ray.settings import Settings, load_settings
from tests import extracts
from tests.cards import count_here


def drafted(path: Path, label: str | None = None) -> dict[str, Any]:
    """What is written of the data at a path, as settings read it."""
    text = draft(str(path), "cards", str(path.parent / "store"), label, lambda *_: None).text
    assert all(len(line) <= 130 for line in text.splitlines()), text
    file = path.parent / "cards.yaml"
    file.write_text(text)
    return load_settings(file).settings.model_dump(mode="json", exclude_unset=True)


def broken(path: Path) -> list[str]:
    """What the data at a path breaks of the contract that was written of it."""
    data = load_settings(path.parent / "cards.yaml").settings.data
    source = open_source(data)
    tables = ((p, read_partition(source.root, p, data, list(data.columns))) for p in source.partitions)
    return [str(v) for p, table in tables for v in check(table, data, p.shown)[0]]


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
    assert broken(tmp_path / "cards") == []
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
    assert broken(tmp_path / "cards") == []
    assert written["folds"]["delay_days"] == 3
    assert written["prepare"]["calendar"] is True


def test_an_extract_as_one_csv(tmp_path: Path) -> None:
    written = drafted(extracts.german_csv(tmp_path / "konto.csv"))
    assert written["data"]["csv"] == {"delimiter": ";", "decimal_point": ","}
    assert written["data"]["columns"] == {
        "Buchungsnr": {"kind": "id"},
        "Zeitpunkt": {"kind": "timestamp"},
        "Kontonummer": {"kind": "entity"},
        "Betrag": {"kind": "amount", "min": 0},
        "Kanal": {"kind": "categorical", "values": ["atm", "pos", "web"]},
        "Ausland": {"kind": "boolean", "true": "J"},
        "Betrug": {"kind": "label"},
    }


@pytest.mark.parametrize(
    ("lines", "delimiter", "decimal_point"),
    [
        (["a;b", "1,5;x, y", "-2;"], ";", ","),
        (["a\tb", "1.5\tx", "2\ty"], "\t", "."),
        (["a|b", "1,234|x", "2,345|y"], "|", "."),  # thousands, most likely
        (["a,b", '"12,50",x', '"3,1","y, z"'], ",", ","),
        (["a", "1", "2"], ",", "."),
    ],
)
def test_how_csv_is_written_is_read_from_its_first_lines(lines: list[str], delimiter: str, decimal_point: str) -> None:
    found = sniffed("\r\n".join(["\ufeff" + lines[0], *lines[1:], "cut of"]).encode())
    assert (found.delimiter, found.decimal_point) == (delimiter, decimal_point)


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
    assert broken(folder) == []
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


def test_text_that_is_0_and_1_is_declared_as_such_and_odd_texts_keep_to_their_comment(tmp_path: Path) -> None:
    odd = {"used": ["0", "1", "1"] * 160, "note": ["a\nb: [/b]"] * 480, "kind: of\n": ["x", "y"] * 240}
    columns = drafted(written_as(tmp_path / "cards", is_fraud=[str(int(i % 6 == 0)) for i in range(480)], **odd))
    assert columns["data"]["columns"]["is_fraud"] == {"kind": "label", "positive": "1"}
    assert columns["data"]["columns"]["used"] == {"kind": "boolean", "true": "1"}
    assert broken(tmp_path / "cards") == []


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
        "blob": "bytes, or text that is no UTF-8",
        "of_which": "of type struct<a: int64>",
        "odds": "240 rows infinite",
    }
    for name, reason in reasons.items():
        assert re.search(rf"^    # {name} +# {re.escape(reason)}", text, re.MULTILINE), name


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


def test_two_days_that_are_counted_in_seconds_hold_out_a_share_and_know_no_calendar(tmp_path: Path) -> None:
    """As the public credit cards of two days are: `Time` from 0 on, in which R writes 100,000 as 1e+05."""
    written = ["1e+05" if 360 * i == 100_080 else f"{360 * i}" for i in range(480)]
    lines = [f"{at},{i % 7},{3.5 * (i % 11)},{int(i % 6 == 0)}" for i, at in enumerate(written)]
    (tmp_path / "creditcard.csv").write_text("\n".join(["Time,V1,Amount,Class", *lines]))
    settings = drafted(tmp_path)
    assert settings["data"]["columns"]["Time"] == {"kind": "timestamp", "unit": "s", "since": "start"}
    assert settings["folds"] == {"holdout": "20%", "fit": "all", "delay_days": 0}
    assert "calendar" not in settings["prepare"]
    loaded = Settings.model_validate(settings)
    source = open_source(loaded.data)
    assert str(plan_folds(count_here(source, loaded), loaded.folds)) == (
        "fold selection-1: fit 0 s to 103679 s, holdout 103680 s to 138239 s\n"
        "fold final: fit 0 s to 138239 s, holdout 138240 s to 172440 s"
    )


@pytest.mark.parametrize(
    ("known_at", "told"),
    [
        ([at - timedelta(hours=1) for at in COLUMNS["at"]], "some are before the transaction"),
        ([at if i % 6 == 0 else None for i, at in enumerate(COLUMNS["at"])], ".* but 400 rows with a label lack it"),
    ],
)
def test_a_label_time_is_one_of_all_rows_and_after_the_transaction(tmp_path: Path, known_at: Any, told: str) -> None:
    text = draft(str(written_as(tmp_path / "cards", known_at=known_at)), "cards", "/store", None, lambda *_: None).text
    assert re.search(f"# known_at +# {told}", text)


def test_a_column_that_goes_on_with_time_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fraud_ray.intake.extract.BATCH_ROWS", 100)
    (tmp_path / "cards").mkdir()
    for day in range(20):
        rows = slice(24 * day, 24 * (day + 1))
        of_day = {name: values[rows] for name, values in COLUMNS.items()}
        clock = [3600.0 * hour for hour in range(480)[rows]]
        pq.write_table(pa.table({**of_day, "seconds": clock}), tmp_path / "cards" / f"{day:02}.parquet")
    assert "seconds" not in drafted(tmp_path / "cards")["data"]["columns"]


def test_an_id_is_met_once_in_all_rows(tmp_path: Path) -> None:
    ids = [f"T{i}" for i in range(12_000)]
    columns = {name: (values * 25)[: len(ids)] for name, values in COLUMNS.items()}
    written = drafted(written_as(tmp_path / "once", **columns, tx_id=ids))
    assert written["data"]["columns"]["tx_id"] == {"kind": "id"}
    written = drafted(written_as(tmp_path / "twice", **columns, tx_id=[*ids[:-1], ids[9_000]]))
    assert "tx_id" not in written["data"]["columns"]


def test_the_newest_days_without_labels_are_waited_for(tmp_path: Path) -> None:
    labels = [None if i >= 24 * 16 else i % 6 == 0 for i in range(480)]
    folds = drafted(written_as(tmp_path / "cards", is_fraud=labels))["folds"]
    assert folds == {"fit_days": 4, "delay_days": 4, "holdout_days": 2, "selection_shift_days": [6]}


def test_bounds_of_the_gate_are_above_what_needs_no_model(tmp_path: Path) -> None:
    amounts = [float(900 if i % 6 == 0 and i % 12 else 1 + i % 7) for i in range(480)]  # half of the frauds are dear
    gate = drafted(written_as(tmp_path / "cards", amount=amounts))["gate"]
    assert 0.67 < gate["min_f1"] < 0.8
    assert 0.55 < gate["min_average_precision"] < 0.75


def test_a_run_takes_what_was_written_as_it_is(
    ray_session: None, tmp_path: Path, mlflow_template: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    extracts.german_csv(tmp_path / "extract" / "konto.csv")
    (tmp_path / ".fraud_ray").mkdir()
    shutil.copy(mlflow_template, tmp_path / ".fraud_ray" / "mlflow.db")
    written = CliRunner().invoke(app, ["init", "extract/konto.csv"])
    assert written.exit_code == 0, written.output
    assert "run -c konto.yaml" in written.output
    outcome = pipeline.run(load_settings("konto.yaml"), Quiet())
    assert (outcome.status, Path(outcome.folder).parent) == ("registered", tmp_path / ".fraud_ray" / "runs")
    again = CliRunner().invoke(app, ["init", "extract/konto.csv"])
    assert again.exit_code == EXIT_SETTINGS
    assert "konto.yaml is there already; name another with --out, or write over it with --force" in again.output


def test_nothing_is_written_into_the_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(written_as(tmp_path / "cards"))
    refused = CliRunner().invoke(app, ["init", "."])
    assert refused.exit_code == EXIT_SETTINGS
    assert "lies in the data" in refused.output
    assert [file.name for file in Path().iterdir()] == ["part.parquet"]
