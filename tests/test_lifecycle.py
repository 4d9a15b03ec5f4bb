"""Versions from registration to rollback: every move in the audit record, and none lost when a command is cut short."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from typer.testing import CliRunner, Result

from fraud_ray.cli import app
from fraud_ray.errors import ServerError, SettingsError
from fraud_ray.registry.anchors import ANCHOR_TAG, Registry, verify
from fraud_ray.registry.audit import append, read, read_all
from fraud_ray.registry.history import find_version, history
from fraud_ray.registry.promotion import promote, record_registration, record_run, rollback
from fraud_ray.registry.tracking import Tracking, connect
from fraud_ray.registry.versions import champion, register, registered_model
from fraud_ray.runs import Outcome, open_run, read_outcome
from fraud_ray.settings import Loaded, RegistrySettings, parse_settings
from fraud_ray.storage import Storage
from tests.handmade import example, write_bundle
from tests.line import local

MODEL = "fraud-detection-production"


@pytest.fixture(scope="module")
def registered(tmp_path_factory: pytest.TempPathFactory, mlflow_template: Path) -> Path:
    """A storage with three versions: 1 is champion, 3 challenger; each of a run of its own."""
    folder = tmp_path_factory.mktemp("registered")
    shutil.copy(mlflow_template, folder / "mlflow.db")
    tracking, bundle = registry_in(folder), write_bundle(folder / "bundle")
    for number in (1, 2, 3):
        run = tracking.start(f"run-{number}", {})
        record_registration(run, Storage.at(str(folder)), register(run, bundle, example()))
    return folder


@pytest.fixture
def storage(registered: Path, tmp_path: Path) -> Storage:
    shutil.copy(registered / "mlflow.db", tmp_path)
    shutil.copytree(registered / "audit", tmp_path / "audit")
    return Storage.at(str(tmp_path))


@pytest.fixture
def tracking(storage: Storage) -> Tracking:
    return registry_in(Path(storage.root))


def registry_in(folder: Path) -> Tracking:
    return connect(RegistrySettings(uri=f"sqlite:///{folder}/mlflow.db"))


def champion_of(tracking: Tracking) -> int:
    held = champion(tracking)
    assert held is not None
    return held.version


def events(storage: Storage) -> list[tuple[str, int | None]]:
    return [(record.event, record.version) for record in read_all(storage)]


REGISTERED = [("register", 1), ("register", 2), ("register", 3)]


# Moves.


def test_promotion_takes_the_challenger_and_rollback_walks_back(tracking: Tracking, storage: Storage) -> None:
    move = promote(tracking, storage)
    assert (move.version, move.replaced, move.record, move.completed) == (3, 1, 4, False)
    model = registered_model(tracking)
    assert model is not None
    assert model.aliases == {"champion": 3}
    assert promote(tracking, storage, 2).replaced == 3
    assert [rollback(tracking, storage).version for _ in range(2)] == [3, 1]
    with pytest.raises(SettingsError, match=r"no former champion.*there is 1 \(champion\), 2, 3"):
        rollback(tracking, storage)
    assert champion_of(tracking) == 1
    moves = [("promote", 3), ("promote", 2), ("rollback", 3), ("rollback", 1)]
    assert events(storage) == [*REGISTERED, *moves]
    assert verify(tracking, storage) == []


def test_a_promotion_of_the_champion_moves_and_records_nothing(tracking: Tracking, storage: Storage) -> None:
    assert promote(tracking, storage, 1).record is None
    assert events(storage) == REGISTERED


def test_what_cannot_be_promoted_is_an_error_that_says_what_can(tracking: Tracking, storage: Storage) -> None:
    with pytest.raises(SettingsError, match=r"has no version 9; there is 1 \(champion\), 2, 3 \(challenger\)"):
        promote(tracking, storage, 9)
    promote(tracking, storage)
    with pytest.raises(SettingsError, match=r"no version of .* is challenger"):
        promote(tracking, storage)
    assert events(storage) == [*REGISTERED, ("promote", 3)]


def test_rollback_passes_over_versions_that_were_deleted(tracking: Tracking, storage: Storage) -> None:
    promote(tracking, storage, 2)
    promote(tracking, storage, 3)
    tracking.client.delete_model_version(MODEL, "2")
    assert rollback(tracking, storage).version == 1


STEPS = (
    "set_registered_model_alias",
    "delete_registered_model_alias",
    "set_registered_model_tag",
    "get_registered_model",
)


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("calls", [1, 2, 3])
@pytest.mark.parametrize("step", STEPS)
def test_a_promotion_cut_short_is_completed_by_the_same_command(
    tracking: Tracking, storage: Storage, monkeypatch: pytest.MonkeyPatch, step: str, calls: int, when: str
) -> None:
    acts, seen = getattr(MlflowClient, step), itertools.count(1)

    def breaks(*arguments: Any, **options: Any) -> Any:
        if next(seen) < calls:
            return acts(*arguments, **options)
        if when == "after":
            acts(*arguments, **options)
        raise MlflowException("the connection broke")

    with monkeypatch.context() as broken:
        broken.setattr(MlflowClient, step, breaks)
        with contextlib.suppress(ServerError):  # where the step is not taken so often nothing breaks
            promote(tracking, storage)
    assert promote(tracking, storage, 3).version == 3
    assert events(storage) == [*REGISTERED, ("promote", 3)]
    assert verify(tracking, storage) == []
    assert rollback(tracking, storage).version == 1


def test_a_rollback_cut_short_is_completed_and_does_not_go_back_twice(
    tracking: Tracking, storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    promote(tracking, storage, 2)
    promote(tracking, storage, 3)

    def breaks(*arguments: Any) -> None:
        raise MlflowException("the connection broke")

    with monkeypatch.context() as broken:
        broken.setattr(MlflowClient, "set_registered_model_alias", breaks)
        with pytest.raises(ServerError):
            rollback(tracking, storage)
    assert [fault.what for fault in verify(tracking, storage)] == ["not anchored"]
    again = rollback(tracking, storage)
    assert (again.version, again.completed) == (2, True)
    assert champion_of(tracking) == 2
    assert verify(tracking, storage) == []


def test_a_move_written_down_by_another_is_made_before_the_next(
    tracking: Tracking, storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    create, raced = Storage.create, iter([True])

    def another_is_faster(held: Storage, key: str, content: bytes) -> bool:
        if next(raced, False):
            promote(tracking, storage, 2)
        return create(held, key, content)

    monkeypatch.setattr(Storage, "create", another_is_faster)
    assert promote(tracking, storage, 3).replaced == 2
    assert events(storage) == [*REGISTERED, ("promote", 2), ("promote", 3)]
    assert [rollback(tracking, storage).version for _ in range(2)] == [2, 1]


# What the registry knows of the record.


def test_the_registry_tells_when_the_newest_record_is_cut_off(tracking: Tracking, storage: Storage) -> None:
    promote(tracking, storage)
    storage.delete(["audit/00000004.json"])
    (fault,) = verify(tracking, storage)
    assert (fault.number, fault.what) == (4, "cut off")
    assert MODEL in fault.reason
    rollback(tracking, storage)  # goes on: a cut must not keep a bank from its former champion
    (fault,) = verify(tracking, storage)
    assert (fault.number, fault.what) == (4, "edited")


def test_a_champion_that_was_set_past_the_record_is_found(tracking: Tracking, storage: Storage) -> None:
    tracking.client.set_registered_model_alias(MODEL, "champion", "2")
    (fault,) = verify(tracking, storage)
    assert fault.what == "unrecorded"
    assert "is version 2, and the last record makes it version 1" in fault.reason


def test_a_late_writer_does_not_take_the_newest_tag_back(
    tracking: Tracking, storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    tag, raced = MlflowClient.set_registered_model_tag, iter([True])

    def another_is_faster(client: MlflowClient, *arguments: str) -> None:
        if arguments[1].startswith(ANCHOR_TAG) and next(raced, False):
            append(storage, "run", lambda: {"run": "other", "model": None}, Registry(tracking, storage))
        tag(client, *arguments)

    monkeypatch.setattr(MlflowClient, "set_registered_model_tag", another_is_faster)
    promote(tracking, storage)
    storage.delete(["audit/00000005.json"])
    assert [(fault.number, fault.what) for fault in verify(tracking, storage)] == [(5, "cut off")]


# The command line, and the record of real runs.


def fraud_ray(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments))


@pytest.fixture
def options(tracking: Tracking, storage: Storage, tmp_path: Path) -> list[str]:
    columns = {"is_fraud": {"kind": "label"}, "amount": {"kind": "amount"}, "at": {"kind": "timestamp"}}
    settings = {"data": {"path": "/data", "columns": columns}, "registry": tracking.registry.model_dump()}
    path = tmp_path / "bank.yaml"
    path.write_text(yaml.safe_dump({**settings, "storage": {"root": storage.root}}))
    return ["-c", str(path)]


def test_the_commands_move_list_and_verify(options: list[str], storage: Storage) -> None:
    assert (
        "version 3 is champion now, instead of version 1 (audit record 4)"
        in fraud_ray("models", "promote", *options).stdout
    )
    assert "version 3 is champion already" in fraud_ray("models", "promote", "3", *options).stdout
    rolled_back = fraud_ray("models", "rollback", "--reason", "too many alerts", "--json", *options)
    assert json.loads(rolled_back.stdout)["version"] == 1
    listed = json.loads(fraud_ray("models", "list", "--json", *options).stdout)
    assert [(one["version"], one["aliases"]) for one in listed] == [(3, []), (2, []), (1, ["champion"])]
    shown = fraud_ray("models", "show", "@champion", *options).stdout
    assert "version 1 restored to champion instead of version 3: too many alerts" in " ".join(shown.split())
    assert "does not know its run" in shown
    assert "fraud_ray.alias" in shown
    shown = fraud_ray("audit", "show", *options).stdout
    assert shown.count("registered as") == 3
    facts = json.loads(fraud_ray("audit", "show", "5", "--json", *options).stdout)["facts"]
    assert (facts["event"], facts["reason"]) == ("rollback", "too many alerts")
    done = fraud_ray("audit", "verify", *options)
    assert (done.exit_code, done.stdout) == (0, "records 1 to 5 are as they were written\n")
    assert fraud_ray("models", "show", "@challenger", *options).exit_code == 2


def test_verify_ends_with_1_and_names_what_was_edited_removed_and_cut_off(options: list[str], storage: Storage) -> None:
    fraud_ray("models", "promote", *options)
    path = Path(storage.path("audit/00000001.json"))
    path.write_text(path.read_text().replace('"version": 1', '"version": 2'))
    storage.delete(["audit/00000002.json", "audit/00000004.json"])
    done = fraud_ray("audit", "verify", *options)
    assert done.exit_code == 1
    assert [line.partition(":")[0] for line in done.stdout.splitlines()] == ["record 2 removed", "record 4 cut off"]
    found = json.loads(fraud_ray("audit", "verify", "--json", *options).stdout)
    assert [fault["number"] for fault in found] == [2, 4]


def test_commands_on_versions_make_no_registry_where_there_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = fraud_ray("models", "list")
    assert done.exit_code == 2
    assert "nothing is registered at sqlite" in done.output
    assert not list(tmp_path.rglob("*"))


def test_a_run_has_one_record_though_it_was_cut_short_before_its_outcome(march: Path, simulated: Path) -> None:
    storage = Storage.at(str(march))
    assert events(storage) == [("register", 1), ("run", 1)]
    outcome = read_outcome(storage, "march")
    assert outcome is not None
    made = read(storage, 2).facts
    assert outcome.gate is not None
    assert outcome.evaluation is not None
    assert made["status"] == "registered"
    assert made["checks"] == outcome.gate["checks"]
    assert made["metrics"] == outcome.evaluation["metrics"]
    assert made["seeds"] == {f"{name}.seed": 42 for name in ("folds", "train", "search", "decision")}
    assert made["data"]["rows"] == 40_000

    path, overrides = local(simulated, march)
    options = ["-c", str(path), *(word for override in overrides for word in ("--set", override))]
    assert fraud_ray("audit", "verify", *options).exit_code == 0
    shown = " ".join(fraud_ray("models", "show", "1", *options).stdout.split())
    for text in (
        made["data"]["fingerprint"],
        "40,000 rows in 24 partitions",
        made["started"]["git"]["commit"][:12],
        made["settings_hash"],
        "min_f1",
        ">= 0.0500",
        f"by {made['user']} on {made['host']}",
        "version 1 registered as champion",
    ):
        assert text in shown


def test_a_rejected_run_is_recorded_with_its_checks_and_anchored_in_mlflow(store: Path) -> None:
    storage, tracking = Storage.at(str(store)), registry_in(store)
    check = {"name": "min_f1", "value": 0.7, "bound": 0.85, "passed": False}
    columns = {"is_fraud": {"kind": "label"}, "amount": {"kind": "amount"}, "at": {"kind": "timestamp"}}
    raw = {"data": {"path": "/data", "columns": columns}, "run": {"name": "weak"}, "storage": {"root": str(store)}}
    loaded = Loaded(parse_settings(raw, "test"), "bank")
    with open_run(loaded, storage, "f" * 64) as run:
        storage.put(run.key("bundle/model.onnx"), b"a graph")
        outcome = Outcome.of_gate(
            False,
            name="weak",
            folder=run.folder,
            evaluation={"threshold": 0.5, "metrics": {"f1_score": 0.7}},
            gate={"checks": [check], "reason": "F1 0.7 is below the required 0.85"},
        )
        for _ in range(2):
            record_run(tracking.start("weak", {}), storage, loaded.settings, {"rows": 9}, 3, outcome)
    (record,) = read_all(storage)
    assert (record.facts["status"], record.model, record.facts["checks"]) == ("rejected", None, [check])
    assert record.facts["bundle"] == {"model.onnx": hashlib.sha256(b"a graph").hexdigest()}
    assert verify(tracking, storage) == []
    storage.delete(["audit/00000001.json"])
    (fault,) = verify(tracking, storage)
    assert (fault.what, fault.reason) == (
        "cut off",
        "gone from the end: the tag on MLflow run weak says that there were 1",
    )


def test_a_version_is_found_by_number_and_alias(tracking: Tracking, storage: Storage) -> None:
    versions = history(tracking, storage)
    assert find_version(versions, "2").version.run == "run-2"
    assert find_version(versions, "@challenger").version.version == 3
    with pytest.raises(SettingsError, match=r"no version '@next' .*there are 1 \(champion\), 2, 3 \(challenger\)"):
        find_version(versions, "@next")
