"""The audit record: a chain that two writers do not fork, and that shows whoever edits, removes or cuts."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from fraud_ray.errors import FraudRayError, SettingsError
from fraud_ray.registry import audit
from fraud_ray.registry.audit import Anchor, Fault, Record, append, newest, read, read_all, verify
from fraud_ray.storage import Storage
from tests.stores import s3


@pytest.fixture(scope="module")
def buckets() -> Iterator[dict[str, str]]:
    """The environment in which the bucket `audit` is found."""
    with s3("audit") as environment:
        yield environment


@pytest.fixture
def bucket(buckets: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> Storage:
    for name, value in buckets.items():
        monkeypatch.setenv(name, value)
    return Storage.at(f"s3://audit/{uuid.uuid4().hex}")


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return Storage.at(str(tmp_path))


def write(storage: Storage, run: str = "march") -> Record:
    record = append(storage, "run", lambda: {"run": run, "model": None, "status": "rejected"})
    assert record is not None
    return record


def anchor_of(record: Record, storage: Storage) -> Anchor:
    return Anchor(record.chain, record.number, record.sha256, storage.root, "the registry's tag")


def file_of(storage: Storage, number: int) -> Path:
    return Path(storage.path(f"audit/{number:08d}.json"))


def edit(storage: Storage, number: int, **changes: object) -> None:
    path = file_of(storage, number)
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}, indent=1))


def named(faults: list[Fault]) -> list[tuple[int, str]]:
    return [(fault.number, fault.what) for fault in faults]


# Writing.


def test_a_record_holds_who_when_and_what_and_the_hash_of_the_one_before(storage: Storage) -> None:
    first, second = write(storage), write(storage, "april")
    assert (first.number, first.facts["previous"]) == (1, None)
    assert (second.number, second.facts["previous"]) == (2, first.sha256)
    assert second.chain == first.chain
    assert second.facts["time"].endswith("+00:00")
    assert {"user", "host", "command", "git", "versions"} <= set(second.facts)
    assert read_all(storage) == [first, second]
    assert newest(storage) == read(storage, 2) == second
    assert audit.find(storage, "run", "april") == second
    assert audit.find(storage, "run", "may") is None


@pytest.mark.parametrize("where", ["storage", "bucket"])
def test_writers_at_the_same_time_make_one_chain(where: str, request: pytest.FixtureRequest) -> None:
    storage: Storage = request.getfixturevalue(where)
    with ThreadPoolExecutor(4) as pool:
        written = list(pool.map(lambda number: write(storage, str(number)), range(12)))
    assert sorted(record.number for record in written) == list(range(1, 13))
    assert sorted(record.facts["run"] for record in read_all(storage)) == sorted(map(str, range(12)))
    assert verify(storage, [anchor_of(read(storage, 12), storage)]) == []


def test_after_a_lost_race_the_facts_are_asked_for_again(storage: Storage) -> None:
    seen: list[int] = []

    def facts() -> dict[str, object]:
        seen.append(len(read_all(storage)))
        if len(seen) == 1:
            write(storage, "faster")
        return {"run": "slower", "model": None}

    record = append(storage, "run", facts)
    assert record is not None
    assert (record.number, seen) == (2, [0, 1])
    assert read(storage, 1).facts["run"] == "faster"


def test_a_record_whose_answer_was_lost_is_not_written_twice(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    create = Storage.create
    monkeypatch.setattr(Storage, "create", lambda *given: create(*given) and False)  # the store's own second try
    assert write(storage).number == 1
    assert len(read_all(storage)) == 1


def test_without_facts_nothing_is_written(storage: Storage) -> None:
    assert append(storage, "promote", lambda: None) is None
    assert newest(storage) is None


def test_a_record_that_does_not_exist_is_an_error_that_says_which_do(storage: Storage) -> None:
    with pytest.raises(SettingsError, match="there are none yet"):
        read(storage, 1)
    write(storage)
    with pytest.raises(SettingsError, match=r"no audit record 7 .*they go from 1 to 1"):
        read(storage, 7)


def test_a_password_on_the_command_line_stays_out_of_the_record(
    storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["fraud-ray", "run", "--set", "registry.uri=postgresql://ada:secret@db/mlflow"])
    write(storage)
    content = file_of(storage, 1).read_text()
    assert "postgresql://***@db/mlflow" in content
    assert "secret" not in content


# Verifying. Each tampering on a chain of five, whose newest record the registry knows.

TAMPERING: dict[str, tuple[Callable[[Storage], object], list[tuple[int, str]]]] = {
    "nothing": (lambda s: None, []),
    "a value in the middle": (lambda s: edit(s, 3, status="registered"), [(3, "edited")]),
    "a value in the newest": (lambda s: edit(s, 5, status="registered"), [(5, "edited")]),
    "a value in the first": (lambda s: edit(s, 1, user="nobody"), [(1, "edited")]),
    "two values": (lambda s: [edit(s, n, user="nobody") for n in (2, 4)], [(2, "edited"), (4, "edited")]),
    "a space": (lambda s: file_of(s, 2).write_text(file_of(s, 2).read_text() + " "), [(2, "edited")]),
    "half a file": (lambda s: file_of(s, 3).write_bytes(file_of(s, 3).read_bytes()[:99]), [(3, "edited")]),
    "one put in another's place": (lambda s: file_of(s, 4).replace(file_of(s, 3)), [(3, "edited"), (4, "removed")]),
    "one in the middle gone": (lambda s: file_of(s, 3).unlink(), [(3, "removed")]),
    "the first gone": (lambda s: file_of(s, 1).unlink(), [(1, "removed")]),
    "the newest gone": (lambda s: file_of(s, 5).unlink(), [(5, "cut off")]),
    "the last three gone": (lambda s: [file_of(s, n).unlink() for n in (3, 4, 5)], [(3, "cut off")]),
    "all gone": (lambda s: [file_of(s, n).unlink() for n in range(1, 6)], [(1, "cut off")]),
    "one cut off and another written": (lambda s: [file_of(s, 5).unlink(), write(s)], [(5, "edited")]),
    "all gone and a new chain begun": (
        lambda s: [*(file_of(s, n).unlink() for n in range(1, 6)), write(s)],
        [(2, "cut off")],
    ),
}


@pytest.mark.parametrize(("tamper", "faults"), TAMPERING.values(), ids=list(TAMPERING))
def test_tampering_is_found_and_the_record_named(
    storage: Storage, tamper: Callable[[Storage], object], faults: list[tuple[int, str]]
) -> None:
    known = anchor_of([write(storage) for _ in range(5)][-1], storage)
    tamper(storage)
    assert named(verify(storage, [known])) == faults


def test_a_chain_written_anew_is_denied_by_what_the_registry_keeps_of_each_run(storage: Storage) -> None:
    anchors = [anchor_of(write(storage), storage) for _ in range(4)]
    edit(storage, 2, status="registered")
    for number in (3, 4):  # a forger who makes the chain fit again
        edit(storage, number, previous=read(storage, number - 1).sha256)
    assert named(verify(storage, anchors)) == [(2, "edited"), (3, "edited"), (4, "edited")]
    assert "the registry's tag" in verify(storage, anchors)[0].reason


def test_only_the_record_that_lost_its_link_is_blamed_where_the_registry_confirms_the_one_before(
    storage: Storage,
) -> None:
    records = [write(storage) for _ in range(3)]
    edit(storage, 3, previous="0" * 64)
    assert named(verify(storage, [anchor_of(records[1], storage)])) == [(3, "edited")]


def test_a_registry_that_knows_other_storages_is_no_fault(storage: Storage) -> None:
    known = anchor_of(write(storage), storage)
    elsewhere = Anchor("another", 9, "0" * 64, "/another/storage", "the registry's tag")
    assert verify(storage, [known, elsewhere]) == []


def test_what_the_registry_was_not_told_of_is_forged_and_what_it_was_told_of_is_not_anchored(storage: Storage) -> None:
    known, told = anchor_of(write(storage), storage), anchor_of(write(storage), storage)
    assert named(verify(storage, [known], [told])) == [(2, "not anchored")]
    assert named(verify(storage, [known])) == [(2, "forged")]
    write(storage)
    assert named(verify(storage, [known], [told])) == [(2, "not anchored"), (3, "forged")]


def test_a_registry_that_knows_nothing_of_the_chain_is_a_fault(storage: Storage) -> None:
    assert verify(storage, []) == []
    write(storage)
    (fault,) = verify(storage, [])
    assert (fault.number, fault.what) == (1, "unconfirmed")


def test_a_file_that_is_no_record_is_passed_over_but_nothing_is_written_after_it(storage: Storage) -> None:
    write(storage)
    write(storage)
    file_of(storage, 2).write_text("torn")
    assert [record.number for record in read_all(storage)] == [1]
    with pytest.raises(FraudRayError, match=r"00000002\.json is no audit record; fraud-ray audit verify"):
        write(storage)
