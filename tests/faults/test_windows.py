"""Window columns, their states, and what daily scoring made of them: nothing that was changed is taken for cached."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from fraud_ray.errors import DataError
from fraud_ray.windows.state import load_state, manifest_key
from tests.test_raw_scoring import HISTORY, Bank, bank_at, name, windows_of


@pytest.fixture
def bank(tmp_path: Path) -> Bank:
    return bank_at(tmp_path)


def kept_by(bank: Bank) -> Path:
    """The folder of the history's windows."""
    assert bank.model.windows
    return bank.root / "store" / "windows" / str(bank.model.windows["state"])


def edited(folder: Path) -> Path:
    file = sorted(folder.rglob("*.parquet"))[1]
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    return file


def swapped(folder: Path) -> Path:
    first, second, _ = sorted(folder.rglob("*.parquet"))
    moved = first.with_suffix(".moved")
    first.rename(moved)
    second.rename(first)
    moved.rename(second)
    return first


def cut(folder: Path) -> Path:
    file = sorted(folder.rglob("*.parquet"))[1]
    os.truncate(file, 100)
    return file


def cut_state(folder: Path) -> Path:
    file = min((folder / "state").iterdir())
    os.truncate(file, file.stat().st_size // 2)
    return file


def cut_manifest(folder: Path) -> Path:
    os.truncate(folder / "manifest.json", 100)
    return folder / "manifest.json"


damaged = pytest.mark.faults(
    "windows", "windows' partitions or state are edited, swapped or cut", "computed anew; a state alone is refused"
)


@damaged
@pytest.mark.parametrize(
    "change", [pytest.param(edited, marks=pytest.mark.quick), swapped, cut, cut_state, cut_manifest]
)
def test_windows_that_are_not_as_they_were_written_are_computed_anew(change: Callable[[Path], Path], bank: Bank):
    assert windows_of(bank.root / "raw", bank.storage).cached
    shutil.copytree(kept_by(bank), bank.root / "before")
    file = change(kept_by(bank))
    again = windows_of(bank.root / "raw", bank.storage)
    assert not again.cached
    assert again.remark == f"warning: {file} is damaged, so they were computed anew"
    for path in (bank.root / "before").rglob("*.*"):
        assert (kept_by(bank) / path.relative_to(bank.root / "before")).read_bytes() == path.read_bytes()
    assert windows_of(bank.root / "raw", bank.storage).cached


@damaged
@pytest.mark.parametrize("change", [pytest.param(cut_state, marks=pytest.mark.quick), cut_manifest])
def test_a_damaged_state_is_not_gone_on_from_until_it_is_made_again(change: Callable[[Path], Path], bank: Bank):
    bank.deliver(HISTORY)
    first = bank.score().state
    assert first is not None
    change(bank.root / "store" / "windows" / first)
    bank.deliver(HISTORY + 1)
    with pytest.raises(DataError, match=r"is damaged.* window state; go on from .* --state KEY"):
        bank.score()
    assert bank.model.windows
    assert bank.score(state=bank.model.windows["state"]).partitions == 2
    bank.deliver(HISTORY + 2)
    assert bank.score().partitions == 1


@damaged
def test_a_state_without_hashes_as_earlier_versions_kept_it_is_gone_on_from(bank: Bank):
    assert bank.model.windows
    key = manifest_key(bank.model.windows["state"])
    manifest = bank.storage.kept(key)
    assert manifest
    del manifest["parts"]
    bank.storage.delete([key])
    bank.storage.keep(key, manifest)
    assert load_state(bank.storage, bank.model.windows["state"]).parts == {}
    bank.deliver(HISTORY)
    assert bank.score().partitions == 1
    assert (bank.root / "out" / name(HISTORY)).exists()


@pytest.mark.faults(
    "daily", "outputs of daily scoring are deleted; a new output folder", "made again from what is kept"
)
@pytest.mark.quick
def test_outputs_that_are_not_there_are_made_again(bank: Bank):
    for day in range(HISTORY, HISTORY + 3):
        bank.deliver(day)
        state = bank.score().state
    before = {day: bank.read(day) for day in range(HISTORY, HISTORY + 3)}
    (bank.root / "out" / name(HISTORY)).unlink()
    again = bank.score()
    assert (again.partitions, again.rows, again.counted, again.state) == (1, 60, HISTORY + 2, state)
    assert bank.read(HISTORY).equals(before[HISTORY])
    assert bank.score().partitions == 0
    bank.deliver(HISTORY + 3)
    assert bank.score("elsewhere").partitions == 4
    assert all(bank.read(day, "elsewhere").equals(table) for day, table in before.items())
    assert not (bank.root / "elsewhere" / name(0)).exists()  # the model has learnt from it


@pytest.mark.faults("daily", "an output is deleted whose windows are pruned", "said, with the state to go on from")
def test_an_output_whose_windows_are_pruned_is_said_to_be_lost(bank: Bank):
    bank.deliver(HISTORY)
    state = bank.score().state
    shutil.rmtree(bank.root / "store" / "windows" / str(state) / "data")
    shutil.rmtree(bank.root / "out")
    told = bank.score()
    assert bank.model.windows
    own = bank.model.windows["state"]
    assert told.partitions == 0
    assert told.notes == (
        f"1 partition without output, such as {name(HISTORY)}, counted before and with windows that are not kept any "
        f"more: --state {own} scores again from there on",
    )
    assert bank.score(state=own).partitions == 1
    assert bank.score().notes == ()
