"""Scoring of raw partitions: the same command each day, from a state that moves on once all is written."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from typer.testing import CliRunner

from fraud_ray.cli import app
from fraud_ray.data.cache import Pruned
from fraud_ray.data.source import open_source
from fraud_ray.errors import DataError, SettingsError
from fraud_ray.runs import open_run
from fraud_ray.scoring import raw as raw_scoring
from fraud_ray.scoring.partitions import Model, ScoringResult, open_model, score_partitions
from fraud_ray.scoring.raw import score_raw
from fraud_ray.settings import Loaded, RegistrySettings, Settings
from fraud_ray.storage import Storage
from fraud_ray.windows import kept
from fraud_ray.windows.definition import Definition
from fraud_ray.windows.state import add_windows
from tests.cards import card_table, days, write_partition
from tests.handmade import write_bundle

# The handmade graph reads `amount`, `night` and `merchant`; the first two are windows here.
SETTINGS: dict[str, Any] = {
    "data": {
        "columns": {
            "transaction_id": {"kind": "id"},
            "timestamp": {"kind": "timestamp"},
            "merchant": {"kind": "categorical", "nulls": True},
            "spent": {"kind": "amount"},
            "is_fraud": {"kind": "label"},
        },
    },
    "windows": {
        "label_delay_days": 1,
        "columns": {
            "amount": {"compute": "sum", "of": "spent", "among": "frauds", "entity": "merchant", "days": [2]},
            "night": {"compute": "night"},
        },
    },
    "folds": {"delay_days": 1},
}
HISTORY, LAST = 3, 7  # days that the model has seen, and days in all


def quiet(done: float, total: float, text: str) -> None:
    return None


@dataclass
class Bank:
    """Raw partitions and labels that arrive day by day, and a model of the first days' windows."""

    root: Path
    model: Model
    tables: list[pa.Table]

    @property
    def storage(self) -> Storage:
        return Storage.at(str(self.root / "store"))

    def deliver(self, day: int) -> None:
        """The day's partition, without labels, and the labels of the day before."""
        write_partition(self.root, f"raw/{name(day)}", self.tables[day].drop_columns("is_fraud"))
        labels = self.tables[day - 1].select(["transaction_id", "is_fraud"])
        write_partition(self.root, f"labels/{name(day - 1)}", labels)

    def score(self, out: str = "out", **given: Any) -> ScoringResult:
        folders = {"source": self.root / "raw", "target": self.root / out, "labels": self.root / "labels"}
        named = {key: str(path) for key, path in folders.items()}
        return score_raw(self.model, storage=self.storage, **{**named, **given})

    def read(self, day: int, out: str = "out") -> pa.Table:
        return pq.ParquetFile(self.root / out / name(day)).read()

    def expected(self) -> list[pa.Table]:
        """The scores of all days, of windows computed over everything at once."""
        for day, table in enumerate(self.tables):
            write_partition(self.root, f"everything/{name(day)}", table)
        made = windows_of(self.root / "everything", Storage.at(str(self.root / "elsewhere")))
        score_partitions(self.model, made.root, str(self.root / "whole"))
        return [self.read(day, "whole") for day in range(LAST)]


def name(day: int) -> str:
    return f"date={days(LAST)[day]}/part-0.parquet"


def definition_of(folder: Path) -> Definition:
    settings = Settings.model_validate({**SETTINGS, "data": {**SETTINGS["data"], "path": str(folder)}})
    definition = Definition.of(settings)
    assert definition is not None
    return definition


def windows_of(folder: Path, storage: Storage) -> Any:
    definition = definition_of(folder)
    return add_windows(open_source(definition.data), definition, storage, quiet)


def bank_at(root: Path) -> Bank:
    tables = [card_table(day).rename_columns({"amount": "spent", "category": "merchant"}) for day in days(LAST)]
    tables = [table.select(list(SETTINGS["data"]["columns"])) for table in tables]
    for day in range(HISTORY):
        write_partition(root, f"raw/{name(day)}", tables[day])
    made = windows_of(root / "raw", Storage.at(str(root / "store")))
    bundle = write_bundle(root / "bundle")
    windows = {"definition": definition_of(root / "raw").to_json(), "state": made.state.key}
    (bundle / "bundle.json").write_text(json.dumps({"origin": {"windows": windows}}))
    return Bank(root, open_model(str(bundle), RegistrySettings()), tables)


@pytest.fixture
def bank(tmp_path: Path, ray_session: None) -> Bank:
    return bank_at(tmp_path)


def assert_same(got: pa.Table, expected: pa.Table) -> None:
    """To the bit, but for the label, which raw partitions have not yet."""
    assert got.equals(expected.drop_columns("is_fraud"))


def test_the_same_command_each_day_gives_what_one_computation_over_all_gives_to_the_bit(bank: Bank) -> None:
    expected = bank.expected()
    states = []
    for day in range(HISTORY, LAST):
        bank.deliver(day)
        scored = bank.score()
        assert (scored.partitions, scored.rows, scored.counted, scored.foreign) == (1, 60, day, 0)
        states.append(scored.state)
    assert len(set(states)) == LAST - HISTORY
    for day in range(HISTORY, LAST):
        assert_same(bank.read(day), expected[day])
    assert not (bank.root / "out" / name(0)).exists(), "the model's own history is not scored"


def test_several_days_at_once_and_a_folder_a_day_are_as_good(bank: Bank) -> None:
    expected = bank.expected()
    for day in range(HISTORY, LAST - 1):
        bank.deliver(day)
    assert bank.score().partitions == LAST - 1 - HISTORY
    bank.deliver(LAST - 1)
    alone = (bank.root / "raw" / name(LAST - 1)).parent
    scored = bank.score(source=str(alone), target=str(bank.root / "alone"))
    assert (scored.partitions, scored.counted) == (1, 0)
    for day in range(HISTORY, LAST - 1):
        assert_same(bank.read(day), expected[day])
    assert_same(pq.ParquetFile(bank.root / "alone/part-0.parquet").read(), expected[LAST - 1])


@pytest.mark.parametrize("killed_at", ["score_partitions", "make_latest"])
def test_killed_and_repeated_nothing_is_counted_twice(
    bank: Bank, monkeypatch: pytest.MonkeyPatch, killed_at: str
) -> None:
    def kill(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    expected = bank.expected()
    bank.deliver(HISTORY)
    with monkeypatch.context() as patched:
        patched.setattr(raw_scoring, killed_at, kill)
        with pytest.raises(KeyboardInterrupt):
            bank.score()
    repeated = bank.score()
    assert (repeated.partitions, repeated.kept) == (1, int(killed_at == "make_latest"))
    done = bank.score()
    assert (done.partitions, done.counted, done.state) == (0, HISTORY + 1, repeated.state)
    bank.deliver(HISTORY + 1)
    bank.score()
    for day in (HISTORY, HISTORY + 1):
        assert_same(bank.read(day), expected[day])


def test_labels_that_were_filled_in_do_not_make_a_partition_a_new_one(bank: Bank) -> None:
    bank.deliver(HISTORY)
    state = bank.score().state
    write_partition(bank.root, f"raw/{name(HISTORY)}", bank.tables[HISTORY])
    again = bank.score()
    assert (again.partitions, again.counted, again.state) == (0, HISTORY + 1, state)


def test_what_was_counted_is_not_read_again_however_much_lies_there(bank: Bank) -> None:
    bank.deliver(HISTORY)
    bank.score()
    bank.deliver(HISTORY + 1)
    write_partition(bank.root, f"raw/{name(HISTORY)}", bank.tables[HISTORY])  # its labels have come
    bank.score()
    for day in range(HISTORY + 2):
        path = bank.root / "raw" / name(day)
        stat = path.stat()
        path.write_bytes(bytes(stat.st_size))
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    bank.deliver(HISTORY + 2)
    scored = bank.score()
    assert (scored.partitions, scored.rows, scored.counted) == (1, 60, HISTORY + 2)
    assert bank.score().partitions == 0
    (bank.root / "raw" / name(0)).touch()
    with pytest.raises(DataError, match="is no readable parquet file"):
        bank.score()


def test_a_newer_model_of_the_same_windows_goes_on_from_the_newest_state(bank: Bank) -> None:
    bank.deliver(HISTORY)
    state = bank.score().state
    newer = replace(bank, model=replace(bank.model, version="newer"))
    bank.deliver(HISTORY + 1)
    scored = newer.score(source=str((bank.root / "raw" / name(HISTORY + 1)).parent))
    assert scored.partitions == 1
    assert json.loads((bank.root / f"store/windows/{scored.state}/manifest.json").read_text())["parent"] == state


def test_the_command_line_names_the_state_and_takes_one_and_labels(bank: Bank) -> None:
    expected = bank.expected()
    config = {**SETTINGS, "data": {**SETTINGS["data"], "path": "nowhere"}, "storage": {"root": bank.storage.root}}
    (bank.root / "config.yaml").write_text(yaml.safe_dump(config))
    folders = ["--input", str(bank.root / "raw"), "--labels", str(bank.root / "labels")]
    fixed = ["score", "--model", str(bank.root / "bundle"), *folders, "-c", str(bank.root / "config.yaml"), "--json"]
    states = []
    for day in (HISTORY, HISTORY + 1):
        bank.deliver(day)
        result = CliRunner().invoke(app, [*fixed, "--output", str(bank.root / "out")])
        assert result.exit_code == 0, result.output
        states.append(json.loads(result.stdout)["state"])
    again = CliRunner().invoke(app, [*fixed, "--output", str(bank.root / "again"), "--state", states[0]])
    told = json.loads(again.stdout)
    assert (told["state"], told["partitions"], told["counted"]) == (states[1], 1, HISTORY + 1)
    assert_same(bank.read(HISTORY + 1, "again"), expected[HISTORY + 1])


def test_pruning_leaves_the_states_that_scoring_goes_on_from_and_nothing_else(bank: Bank) -> None:
    expected = bank.expected()
    states = []
    for day in (HISTORY, HISTORY + 1):
        bank.deliver(day)
        states.append(bank.score().state)
    assert bank.model.windows is not None
    own, storage = bank.model.windows["state"], bank.storage
    storage.put("runs/april/run.json", b"{}")
    storage.put("runs/april/bundle/bundle.json", (bank.root / "bundle/bundle.json").read_bytes())
    assert kept.prune(storage, timedelta(days=7)) == Pruned((), 0, ())
    make_older(bank.root / "store/windows", days=8)
    pruned = kept.prune(storage, timedelta(days=7))
    assert {one.key for one in pruned.entries} == {own, *states}
    assert {one.key for one in kept.list_kept(storage)} == {own, states[1]}
    assert [key for key in storage.keys("windows") if "/data/" in key or states[0] in key] == []
    bank.deliver(HISTORY + 2)
    last = bank.score()
    assert last.partitions == 1
    assert_same(bank.read(HISTORY + 2), expected[HISTORY + 2])
    # The history's columns, which went, are computed again for who asks for them.
    for day in range(HISTORY, HISTORY + 3):
        (bank.root / "raw" / name(day)).unlink()
    again = windows_of(bank.root / "raw", storage)
    assert (again.state.key, again.cached) == (own, False)
    assert windows_of(bank.root / "raw", storage).cached
    storage.put("runs/april/outcome.json", json.dumps({"name": "", "folder": "", "status": "rejected"}).encode())
    kept.prune(storage, timedelta())
    assert {one.key for one in kept.list_kept(storage)} == {last.state}


def test_pruning_leaves_what_a_run_at_work_reads(bank: Bank) -> None:
    settings = definition_of(bank.root / "raw").data
    loaded = Loaded(Settings.model_validate({**SETTINGS, "data": settings}), "bank")
    config = {**SETTINGS, "data": {**SETTINGS["data"], "path": "nowhere"}, "storage": {"root": bank.storage.root}}
    (bank.root / "config.yaml").write_text(yaml.safe_dump(config))

    def told(*words: str) -> Any:
        done = CliRunner().invoke(app, ["cache", *words, "-c", str(bank.root / "config.yaml"), "--json"])
        assert done.exit_code == 0, done.output
        return json.loads(done.stdout)

    (listed,) = told("list")
    assert bank.model.windows is not None
    assert (listed["kind"], listed["key"]) == ("windows", bank.model.windows["state"])
    with open_run(loaded, bank.storage, open_source(settings).fingerprint) as run:
        assert told("prune", "--older-than", "0") == {"removed": [], "files": 0, "kept_for": [run.name]}
    pruned = told("prune", "--older-than", "0")
    assert pruned == {"removed": [listed], "files": listed["parts"], "kept_for": []}
    assert bank.storage.keys("windows") == []


def make_older(folder: Path, days: float) -> None:
    for path in folder.rglob("*"):
        stat = path.stat()
        os.utime(path, (stat.st_atime, stat.st_mtime - 86_400 * days))


def test_what_cannot_be_meant_is_refused(bank: Bank) -> None:
    with pytest.raises(DataError, match=r"no window state at .*/nothing; compute the windows of the history first, or"):
        bank.score(state="nothing")
    with pytest.raises(SettingsError, match=r"carries no window columns, .* leave out --state and --labels"):
        score_raw(replace(bank.model, windows=None), "in", "out", bank.storage, labels="labels")
    with pytest.raises(SettingsError, match="lies in the input"):
        bank.score(target=str(bank.root / "raw/scored"))
