"""What is kept in the storage: once, the first of two that keep it, and nothing that was damaged since."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fraud_ray.data.output import refuse_to_keep_in
from fraud_ray.errors import SettingsError
from fraud_ray.storage import Storage

VALUE = {"name": "april", "score": 0.1 + 0.2, "trials": [{"id": 1, "fault": None}]}


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return Storage.at(str(tmp_path))


def test_the_first_of_two_that_keep_a_value_has_it_there(storage: Storage) -> None:
    assert storage.kept("a/value.json") is None
    assert storage.keep("a/value.json", VALUE) == VALUE
    assert storage.keep("a/value.json", {"name": "may"}) == VALUE == storage.kept("a/value.json")


def test_a_value_gives_way_only_to_one_that_names_it(storage: Storage) -> None:
    storage.keep("value.json", VALUE)
    assert storage.keep("value.json", {"name": "june"}, instead_of={"name": "may"}) == VALUE
    assert storage.keep("value.json", {"name": "june"}, instead_of=VALUE) == {"name": "june"}
    assert storage.kept("value.json") == {"name": "june"}


def test_a_kept_value_is_json_for_people_and_one_without_a_hash_is_read_as_well(storage: Storage) -> None:
    storage.keep("value.json", VALUE)
    assert {k: v for k, v in json.loads(storage.get("value.json")).items() if k != "sha256"} == VALUE
    storage.put_json("older.json", VALUE)
    assert storage.kept("older.json") == VALUE


def test_a_damaged_value_counts_as_absent_and_is_kept_anew(storage: Storage) -> None:
    storage.keep("value.json", VALUE)
    whole = storage.get("value.json")
    for at in range(whole.index(b'"sha256"')):
        storage.put("value.json", whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        assert storage.kept("value.json") in (None, VALUE), at  # digits beyond a float's precision change nothing
    storage.put("value.json", whole[:-10])
    assert storage.kept("value.json") is None
    assert storage.keep("value.json", VALUE) == VALUE == storage.kept("value.json")


def test_what_is_kept_may_lie_above_what_is_read_but_not_in_it(tmp_path: Path) -> None:
    data, root = tmp_path / "data", tmp_path / "root"
    (data / "day").mkdir(parents=True)
    root.mkdir()
    (tmp_path / "link").symlink_to(data)
    allowed = [
        (data, root),
        (root / "data", root),
        (data, "s3://bucket/store"),
        ("s3://bucket/a/data", "s3://bucket/a"),
    ]
    for source, place in allowed:
        refuse_to_keep_in("data", str(source), str(place), f"sqlite:///{root}/mlflow.db")
    (root / "prepared").symlink_to(data / "day")
    overlapping = [
        (data, data),
        (data, data / ".fraud_ray"),
        (data, tmp_path / "link/store"),
        (data, f"{tmp_path}/none/../data/store"),
        (data, root),
        (root / "windows/key/data", root),
        ("s3://bucket/data", "s3://bucket/data/store"),
    ]
    for source, place in overlapping:
        with pytest.raises(
            SettingsError, match=r"storage\.root's .* (lies in|holds) the data .*; nothing was read or wri"
        ):
            refuse_to_keep_in("data", str(source), str(place))
    with pytest.raises(SettingsError, match=r"registry\.uri's .* lies in the data"):
        refuse_to_keep_in("data", str(data), str(tmp_path), f"sqlite+pysqlite:///{tmp_path}/d%61ta/mlflow.db")
