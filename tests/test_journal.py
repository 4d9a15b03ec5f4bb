"""What was answered is written beside the requests: whole or not at all, with what the challenger says of it."""

from __future__ import annotations

import asyncio
import math
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fraud_ray.data.source import list_partitions
from fraud_ray.errors import DataError
from fraud_ray.registry.opened import open_folder
from fraud_ray.scoring.partitions import open_model, score_partitions
from fraud_ray.serving.following import served_of
from fraud_ray.serving.hours import answered, close_hour, close_left, hour_of, put_piece
from fraud_ray.serving.journal import Answered, Journal, table_of
from fraud_ray.serving.served import Scored, Served
from fraud_ray.settings import RegistrySettings, Settings, parse_settings
from fraud_ray.windows.definition import Definition
from tests.handmade import write_bundle

COLUMNS = {
    "transaction_id": {"kind": "id"},
    "timestamp": {"kind": "timestamp"},
    "card": {"kind": "entity"},
    "amount": {"kind": "amount"},
    "night": {"kind": "boolean"},
    "merchant": {"kind": "categorical"},
    "is_fraud": {"kind": "label"},
}
TEN = datetime(2024, 3, 1, 10, 30, tzinfo=UTC)


def settings_in(folder: Path, **sections: Any) -> Settings:
    return parse_settings({"data": {"path": "data", "columns": COLUMNS}, **sections}, "a test")


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Champion and challenger."""
    folder = tmp_path_factory.mktemp("bundles")
    return write_bundle(folder / "first"), write_bundle(folder / "second", slope=-0.01)


@pytest.fixture
def served(bundles: tuple[Path, Path], tmp_path: Path) -> tuple[Served, Served]:
    """Versions 1 and 2 of cards."""
    data = settings_in(tmp_path).data
    opened = (served_of(open_folder(str(bundle), tmp_path), data, TEN) for bundle in bundles)
    champion, challenger = (replace(one, name="cards", version=str(n)) for n, one in enumerate(opened, 1))
    return champion, challenger


def transaction(number: int, **others: Any) -> dict[str, Any]:
    at = f"2024-03-01T10:00:{number % 60:02}Z"
    seen = {"amount": 10.0 * number, "night": number % 2 == 0, "merchant": ["shop", "casino", None][number % 3]}
    return {"transaction_id": f"t{number}", "timestamp": at, "card": number % 5, **seen, **others}


def batch(served: Served, shadow: Served | None, sent: Sequence[Mapping[str, Any]]) -> Answered:
    """What the application hands over: the columns that the champion reads, as values of their kinds."""
    columns = {
        "amount": [float(one["amount"]) if one["amount"] is not None else math.nan for one in sent],
        "night": [float(one["night"]) if one["night"] is not None else math.nan for one in sent],
        "merchant": [one["merchant"] or "" for one in sent],
    }
    ids = [one["transaction_id"] for one in sent]
    arrays = {"amount": columns["amount"], "night": columns["night"], "merchant": columns["merchant"]}
    scores = served.scorer.score(pa.table(arrays))
    decision = (scores >= served.scorer.threshold).tolist()
    said = Scored(scores.tolist(), decision, [served.version] * len(sent), [], [])
    return Answered(served, shadow, sent, columns, ids, said)


def rows_at(target: Path) -> pa.Table:
    names = answered(str(target))
    return pa.concat_tables([pq.ParquetFile(target / name).read() for name in names]) if names else pa.table({})


def wait(holds: Callable[[], bool]) -> None:
    ends = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < ends, "it never came to be so"
        time.sleep(0.02)


def test_what_is_written_has_the_form_of_scoring_and_the_challengers_scores_are_those_of_scoring(
    served: tuple[Served, Served], bundles: tuple[Path, Path], tmp_path: Path
) -> None:
    sent = [transaction(number) for number in range(20)] + [transaction(20, amount=None, night=None)]
    found = table_of([batch(*served, sent[:7]), batch(*served, sent[7:])], *served)
    assert found.schema.names == [
        *("transaction_id", "timestamp", "card", "amount", "night", "merchant"),
        *("probability", "decision", "model_version", "shadow_probability", "shadow_decision", "shadow_version"),
    ]
    assert set(found["model_version"].to_pylist()) == {"cards/1"}
    assert set(found["shadow_version"].to_pylist()) == {"cards/2"}
    assert found["timestamp"][3].as_py() == datetime(2024, 3, 1, 10, 0, 3)
    assert (found["card"][3].as_py(), found["amount"][20].as_py(), found["night"][20].as_py()) == ("3", None, None)

    (tmp_path / "in").mkdir()
    pq.write_table(found.select(found.schema.names[:6]), tmp_path / "in/rows.parquet")
    for bundle, added in zip(bundles, ("", "shadow_"), strict=True):
        out = tmp_path / f"out{added}"
        score_partitions(open_model(str(bundle), RegistrySettings()), str(tmp_path / "in"), str(out))
        scored = pq.read_table(out / "rows.parquet")
        for name in ("probability", "decision"):
            assert found[f"{added}{name}"].to_pylist() == scored[name].to_pylist()


def test_a_column_that_only_the_challenger_reads_is_taken_from_what_was_sent(
    served: tuple[Served, Served], tmp_path: Path
) -> None:
    champion, challenger = served
    whole = batch(champion, challenger, [transaction(number) for number in range(6)])
    others = {name: values for name, values in whole.columns.items() if name != "merchant"}
    found = table_of([replace(whole, columns=others)], champion, challenger)
    assert found.equals(table_of([whole], champion, challenger))


@pytest.mark.parametrize(
    ("column", "values", "wanted"),
    [
        ("timestamp", ["2024-03-01T10:00:00Z", "2024-03-01T11:00:00+01:00", "soon"], [0, 0, None]),
        ("card", ["c1", 7, None], ["c1", "7", None]),
        ("transaction_id", ["a", "b", "c"], ["a", "b", "c"]),
    ],
)
def test_a_value_that_the_champion_does_not_read_is_null_where_it_is_none_of_its_kind(
    served: tuple[Served, Served], column: str, values: list[Any], wanted: list[Any]
) -> None:
    sent = [transaction(number, **{column: value}) for number, value in enumerate(values)]
    found = table_of([batch(*served, sent)], *served)[column].to_pylist()
    if column == "timestamp":
        found = [None if at is None else (at - datetime(2024, 3, 1, 10)).total_seconds() for at in found]
    assert found == wanted


def test_what_was_answered_is_a_partition_of_its_hour_once_the_process_ends(
    served: tuple[Served, Served], tmp_path: Path
) -> None:
    journals = [Journal(str(tmp_path / "served"), flush_s=0.05) for _ in range(2)]  # two replicas
    for journal in journals:
        journal.start()
    for start in range(0, 40, 10):
        for number, journal in enumerate(journals):
            journal.put(batch(*served, [transaction(100 * number + start + row) for row in range(10)]))
        time.sleep(0.1)
    wait(lambda: all(journal.written for journal in journals))
    with pytest.raises(DataError, match="holds no parquet"):
        list_partitions(str(tmp_path / "served"))
    for journal in journals:
        asyncio.run(journal.stop())
    files = list_partitions(str(tmp_path / "served")).files
    assert len(files) == 2
    assert all(name.startswith(f"date={hour_of(datetime.now(UTC))[:10]}/") for name in files)
    assert sorted(rows_at(tmp_path / "served")["transaction_id"].to_pylist()) == sorted(
        f"t{100 * number + row}" for number in range(2) for row in range(40)
    )
    assert not list((tmp_path / "served/_answered").iterdir())
    assert [(journal.written, journal.dropped, journal.fault) for journal in journals] == [(40, 0, None)] * 2


def test_a_killed_process_loses_what_it_answered_since_the_last_flush_alone(
    bundles: tuple[Path, Path], tmp_path: Path
) -> None:
    script = f"""
import os, time
from pathlib import Path
from tests.test_journal import *
champion = served_of(open_folder({str(bundles[0])!r}, Path("/")), settings_in(Path("/")).data, TEN)
journal = Journal({str(tmp_path / "served")!r}, flush_s=0.05)
journal.start()
journal.put(batch(champion, None, [transaction(number) for number in range(10)]))
wait(lambda: journal.written == 10)
journal.put(batch(champion, None, [transaction(10)]))
os._exit(9)
"""
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 9
    target = tmp_path / "served"
    assert rows_at(target).num_rows == 10
    close_left(str(target), datetime.now(UTC) + timedelta(hours=1))
    assert len(answered(str(target))) == 1, "its hour is not an hour ago, and it may live"
    assert answered(str(target))[0].startswith("_answered/")
    for _ in range(2):  # by two replicas
        close_left(str(target), datetime.now(UTC) + timedelta(hours=2))
        assert len(list_partitions(str(target)).files) == len(answered(str(target))) == 1
    assert rows_at(target)["shadow_probability"].null_count == 10


def test_a_partition_that_is_there_is_not_made_again_of_the_pieces_that_are_left(tmp_path: Path) -> None:
    target = str(tmp_path)
    for number in range(3):
        put_piece(target, "2024-03-01T10", "abc", number, pa.table({"id": [number]}))
    left = next((tmp_path / "_answered").rglob("*-000002.parquet"))
    content = left.read_bytes()
    close_hour(target, "2024-03-01T10", "abc")
    left.parent.mkdir()
    left.write_bytes(content)  # as where the process was killed while it deleted them
    close_left(target, TEN + timedelta(days=1))
    assert rows_at(tmp_path)["id"].to_pylist() == [0, 1, 2]


def test_forms_that_change_within_an_hour_are_partitions_of_their_own(tmp_path: Path) -> None:
    for number, table in enumerate([pa.table({"id": [1]}), pa.table({"id": ["a"]}), pa.table({"id": [2]})]):
        put_piece(str(tmp_path), "2024-03-01T10", "abc", number, table)
    close_hour(str(tmp_path), "2024-03-01T10", "abc")
    found = [pq.ParquetFile(tmp_path / name).read()["id"].to_pylist() for name in answered(str(tmp_path))]
    assert sorted(found, key=str) == [["a"], [1, 2]]


def test_a_full_queue_drops_and_counts_and_never_waits(served: tuple[Served, Served], tmp_path: Path) -> None:
    journal = Journal(str(tmp_path), most_rows=25)  # which nobody empties
    for start in range(0, 60, 10):
        journal.put(batch(*served, [transaction(start + row) for row in range(10)]))
    assert journal.dropped == 40
    journal.start()
    asyncio.run(journal.stop())
    assert (journal.written, rows_at(tmp_path).num_rows) == (20, 20)


def test_a_batch_that_makes_no_table_takes_no_other_with_it(
    served: tuple[Served, Served], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    champion, challenger = served
    broken = replace(batch(champion, challenger, [transaction(1)]), columns={"amount": ["secret"]})
    journal = Journal(str(tmp_path))
    for one in (broken, batch(champion, None, [transaction(2)])):
        journal.put(one)
    journal.start()
    wait(lambda: journal.dropped == 1)
    asyncio.run(journal.stop())
    assert rows_at(tmp_path)["transaction_id"].to_pylist() == ["t2"]
    assert [("unexpected" in line, "secret" in line) for line in caplog.messages] == [(True, False)]


def test_what_cannot_be_written_waits_until_it_can(served: tuple[Served, Served], tmp_path: Path) -> None:
    target = tmp_path / "served"
    target.write_text("in the way")
    journal = Journal(str(target), flush_s=0.05)
    journal.start()
    journal.put(batch(*served, [transaction(1)]))
    wait(lambda: journal.fault is not None)
    assert journal.written == 0
    target.unlink()
    wait(lambda: journal.written == 1)
    asyncio.run(journal.stop())
    assert (journal.fault, rows_at(target).num_rows) == (None, 1)


def test_a_challenger_that_cannot_score_what_was_sent_says_why_once(
    served: tuple[Served, Served], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    champion, challenger = served
    columns = {"spent_{days}d": {"entity": "card", "compute": "sum", "of": "amount", "days": [7]}}
    definition = Definition.of(settings_in(tmp_path, windows={"columns": columns}))
    windowed = replace(challenger, definition=definition)
    lacking = [{name: value for name, value in transaction(1).items() if name != "merchant"}]
    unread = replace(
        batch(champion, challenger, [transaction(1)]), sent=lacking, columns={"amount": [1.0], "night": [0.0]}
    )
    journal = Journal(str(tmp_path / "served"))
    for shadowed in (batch(champion, windowed, [transaction(2)]), unread, unread):
        journal.put(shadowed)
    journal.start()
    asyncio.run(journal.stop())
    assert rows_at(tmp_path / "served")["shadow_version"].null_count == 3
    told = [line.partition("shadow: ")[2] for line in caplog.messages]
    assert told == [
        "its windows are others than the champion's",
        "it reads merchant, which the transactions do not hold",
    ]
