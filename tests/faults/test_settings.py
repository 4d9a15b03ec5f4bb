"""Settings and names that are written to do harm: one line within a second."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from fraud_ray.errors import SettingsError
from fraud_ray.runs import find_runs
from fraud_ray.settings import load_settings
from fraud_ray.settings.text import DEEPEST, MOST_BYTES
from fraud_ray.storage import Storage
from fraud_ray.windows.state import load_state
from tests.line import REPOSITORY

BOMB = "a0: &a0 [x]\n" + "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 12))
CHAIN = "a0: &a0 [x]\n" + "".join(f"a{n}: &a{n} [*a{n - 1}]\n" for n in range(1, 5_000))

TEXTS = {
    "an alias bomb": (BOMB, "comes to .* values or more with its aliases written out"),
    "a chain of aliases": (CHAIN, "lies deeper than settings do"),
    "an alias of itself": ("data: &a {columns: *a}", "line 1 holds itself by an alias"),
    "10 MB": ("data:\n" + "  key: {kind: numeric}\n" * 450_000, f"holds more than {MOST_BYTES:,} characters"),
    "brackets": ("[" * 900_000, "is not valid YAML"),
    "nested": ("a: " + "[" * 500 + "]" * 500, "lies deeper than settings do"),
    "a key twice": ("data:\n  path: a\n  path: b\n", "line 3: 'path' is there already, in line 2; keep one"),
    "a key twice in a line": ("data: {path: a, 'path': b}", "line 1: 'path' is there already, in line 1"),
    "a number of 10,000 digits": (f"data: {'9' * 10_000}", "holds a value that is not what its tag says"),
    "a day that is none": ("data: 2024-13-45", "holds a value that is not what its tag says"),
    "a tag without a value": ("data: !!int ''", "holds a value that is not what its tag says"),
    "a tag of Python": ("data: !!python/object/apply:os.system ['true']", "could not determine a constructor"),
    "20,000 keys": ("".join(f"key_{n}: 1\n" for n in range(20_000)), "and 19,9.. more faults"),
    "a long key": (f"{'k' * 1_000}: 1\ndata: {{path: {'v' * 10_000}, columns: {'w' * 10_000}}}", "is no setting"),
}

as_an_attack = pytest.mark.faults("18", "settings as an attack; a key twice", "one line within a second")


@as_an_attack
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.quick if "twice" in name else ()) for name in TEXTS]
)
def test_settings_that_do_harm_are_refused_at_once(name, tmp_path):
    text, told = TEXTS[name]
    file = tmp_path / "settings.yaml"
    file.write_text(text)
    began = time.process_time()
    with pytest.raises(SettingsError, match=told) as found:
        load_settings(file)
    assert time.process_time() - began < 1
    assert len(str(found.value)) < 40_000
    if "keys" not in name and "long" not in name:
        assert len(str(found.value).splitlines()) == 1
        assert len(str(found.value)) < 500


@as_an_attack
@pytest.mark.parametrize("override", [f"{'a.' * 10_000}b=1", f"train.epochs={BOMB}", "train=[" + "[" * 10_000])
def test_overrides_that_do_harm_are_refused_at_once(override):
    began = time.process_time()
    with pytest.raises(SettingsError, match="--set"):
        load_settings(REPOSITORY / "configs/local.yaml", [override])
    assert time.process_time() - began < 1


@as_an_attack
def test_anchors_and_merges_stay(tmp_path: Path):
    file = tmp_path / "settings.yaml"
    columns = "a: &n {kind: numeric, nulls: true}\n    b: {<<: *n, nulls: false}\n    y: {kind: label}"
    file.write_text(f"data:\n  path: x\n  columns:\n    {columns}\nfolds: {{kind: stratified}}\n")
    data = load_settings(file).settings.data
    assert (data.columns["a"].nulls, data.columns["b"].nulls, DEEPEST > 10) == (True, False, True)


@pytest.mark.faults("18", "a name that leads out of the storage", "one line, exit 2")
@pytest.mark.quick
@pytest.mark.parametrize("name", ["../x", "..", "a//b", "a\nb", "a/../../b"])
def test_names_stay_in_the_storage(name, tmp_path):
    storage = Storage.at(str(tmp_path))
    for read in (find_runs, load_state):
        with pytest.raises(SettingsError, match=r"cannot lie below .*; write a name without") as found:
            read(storage, name)
        assert len(str(found.value).splitlines()) == 1
