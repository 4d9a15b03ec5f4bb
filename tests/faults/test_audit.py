"""The audit record when a writer is killed, and when somebody writes into it past fraud-ray."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from fraud_ray.errors import SettingsError
from fraud_ray.registry import anchors, audit
from fraud_ray.registry.promotion import promote, record_registration
from fraud_ray.registry.tracking import Tracking, connect
from fraud_ray.registry.versions import existing_model, register
from fraud_ray.settings import RegistrySettings
from fraud_ray.storage import Storage
from tests.handmade import example, write_bundle

KILLED = """
import os, signal, sys
from fraud_ray.registry import anchors, promotion
from fraud_ray.registry.tracking import connect
from fraud_ray.settings import RegistrySettings
from fraud_ray.storage import Storage

def killed(*arguments):
    os.kill(os.getpid(), signal.SIGKILL)

setattr(promotion, "_make", killed) if sys.argv[2] == "written" else setattr(Storage, "create", killed)
registry = RegistrySettings(uri=f"sqlite:///{sys.argv[1]}/mlflow.db", model_name="cards")
promotion.promote(connect(registry), Storage.at(sys.argv[1]), 2)
"""


@pytest.fixture
def kept(tmp_path: Path, mlflow_template: Path) -> tuple[Tracking, Storage]:
    """Two versions, registered and recorded."""
    shutil.copy(mlflow_template, tmp_path / "mlflow.db")
    registry = RegistrySettings(uri=f"sqlite:///{tmp_path}/mlflow.db", model_name="cards")
    tracking, storage = connect(registry), Storage.at(str(tmp_path))
    for number, name in enumerate(["march", "april"], 1):
        run = tracking.start(name, {})
        bundle = write_bundle(tmp_path / "runs" / name / "bundle", slope=number / 100)
        record_registration(run, storage, register(run, bundle, example()))
    return tracking, storage


def forge(storage: Storage) -> None:
    """A record at the end, which fits the chain as one of fraud-ray's does."""
    newest = audit.newest(storage)
    assert newest is not None
    facts = {**newest.facts, "number": newest.number + 1, "previous": newest.sha256, "user": "nobody"}
    file = Path(storage.path(f"audit/{newest.number + 1:08d}.json"))
    file.write_text(json.dumps(facts, indent=1))


def named(kept: tuple[Tracking, Storage]) -> list[tuple[int, str]]:
    return [(fault.number, fault.what) for fault in anchors.verify(*kept)]


@pytest.mark.faults("21", "a forged record at the end", "named as forged, also after others were written behind it")
@pytest.mark.quick
def test_a_forged_record_at_the_end_stays_named(kept: tuple[Tracking, Storage]) -> None:
    tracking, storage = kept
    assert named(kept) == []
    forge(storage)
    assert named(kept) == [(3, "forged")]
    anchors.anchor(tracking, storage)  # as every command does that writes
    assert named(kept) == [(3, "forged")]
    promote(tracking, storage, 2)
    assert named(kept) == [(3, "forged")]
    Path(storage.path("audit/00000004.json")).unlink()
    assert (4, "cut off") in named(kept)


@pytest.mark.faults("21", "one storage is used with two registries", "records are named as another registry's")
def test_a_record_of_another_registry_is_no_forgery_and_no_move_of_this_one(
    kept: tuple[Tracking, Storage], tmp_path: Path, mlflow_template: Path
) -> None:
    first, storage = kept
    promote(first, storage, 2)
    shutil.copy(mlflow_template, tmp_path / "other.db")
    second = connect(first.registry.model_copy(update={"uri": f"sqlite:///{tmp_path}/other.db"}))
    run = second.start("may", {})
    record_registration(run, storage, register(run, write_bundle(tmp_path / "runs/may/bundle"), example()))
    before, after = (1, "another registry's"), (4, "another registry's")
    assert (named((first, storage)), named((second, storage))) == ([before, after], [before])
    told = [fault.reason for fault in anchors.verify(first, storage)]
    assert told[0].startswith("when record 4 was written, its registry knew nothing of it, as of all up to 3; its own")
    assert told[1].endswith(f"{tmp_path}/other.db, as it says: verify it with that as registry.uri")
    assert not promote(second, storage, 1).completed  # it is the champion already; the last move was the first one's
    assert existing_model(second).aliases == {"champion": 1}
    forge(storage)
    assert (5, "forged") in named((second, storage))


@pytest.mark.faults("21", "SIGKILL between a record and its anchor", "'not anchored', until the next command")
def test_a_record_whose_writer_was_killed_is_not_anchored_rather_than_forged(kept: tuple[Tracking, Storage]) -> None:
    tracking, storage = kept
    assert _killed(storage, "written") == -signal.SIGKILL
    assert audit.read(storage, 3).event == "promote"
    assert named(kept) == [(3, "not anchored")]
    assert promote(tracking, storage, 2).completed
    assert named(kept) == []


@pytest.mark.faults("21", "SIGKILL between the announcement of a record and the record", "nothing is missing")
def test_a_record_that_was_only_announced_leaves_nothing(kept: tuple[Tracking, Storage]) -> None:
    tracking, storage = kept
    assert _killed(storage, "announced") == -signal.SIGKILL
    assert named(kept) == []
    promote(tracking, storage, 2)
    assert named(kept) == []
    model = tracking.client.get_registered_model("cards")
    assert not [tag for tag in model.tags if tag.startswith(anchors.ANNOUNCED_TAG)]


@pytest.mark.faults("21", "a record without, or with another, signature where a key is given", "named as forged")
def test_records_are_signed_where_a_key_is_given(
    kept: tuple[Tracking, Storage], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    tracking, storage = kept
    (tmp_path / "key").write_text("a key of the bank\n")
    monkeypatch.setenv(audit.KEY_FILE, str(tmp_path / "key"))
    promote(tracking, storage, 2)
    record = audit.read(storage, 3)
    assert len(record.facts["signature"]) == 2 * hashlib.sha256().digest_size
    assert b"a key" not in Path(storage.path("audit/00000003.json")).read_bytes()
    assert named(kept) == []

    monkeypatch.delenv(audit.KEY_FILE)
    monkeypatch.setenv(audit.KEY, "another key")
    assert named(kept) == [(3, "forged")]
    monkeypatch.setenv(audit.KEY, "a key of the bank")
    assert named(kept) == []
    # Whoever writes to the registry too, but has not the key.
    forge(storage)
    forged = audit.newest(storage)
    assert forged is not None
    anchors.Registry(tracking, storage).announce(forged)
    anchors.anchor(tracking, storage)
    assert named(kept) == [(4, "forged")]


@pytest.mark.parametrize("name", [audit.KEY, audit.KEY_FILE])
def test_an_empty_key_and_one_that_cannot_be_read_are_refused(
    kept: tuple[Tracking, Storage], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str
) -> None:
    (tmp_path / "empty").touch()
    monkeypatch.setenv(name, "" if name == audit.KEY else str(tmp_path / "empty"))
    with pytest.raises(SettingsError, match="empty key"):
        anchors.verify(*kept)
    monkeypatch.setenv(audit.KEY_FILE, str(tmp_path / "none"))
    with pytest.raises(SettingsError, match=r"none, which cannot be read"):
        anchors.verify(*kept)


def _killed(storage: Storage, when: str) -> int:
    command = [sys.executable, "-c", KILLED, storage.root, when]
    return subprocess.run(command, env=dict(os.environ), check=False).returncode
