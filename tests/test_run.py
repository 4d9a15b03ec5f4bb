"""A run's identity: names, what is kept and read back, and that only one process works on it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import date
from pathlib import Path
from typing import Any

import pytest

from fraud_ray import lease
from fraud_ray.errors import FraudRayError, RunDiffersError, RunHeldError, SettingsError
from fraud_ray.lease import hold, holders_of
from fraud_ray.runs import Outcome, Run, differences, list_runs, open_run, read_run, run_name
from fraud_ray.settings import Loaded, parse_settings
from fraud_ray.storage import Storage

FINGERPRINT = "f" * 64


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return Storage.at(str(tmp_path))


def loaded(name: str | None = "march", **sections: Any) -> Loaded:
    columns = {"is_fraud": {"kind": "label"}, "amount": {"kind": "amount"}, "at": {"kind": "timestamp"}}
    raw = {"data": {"path": "/data", "columns": columns}, "run": {"name": name}, **sections}
    return Loaded(parse_settings(raw, "test"), "bank")


def kept(run: Run, stage: str, value: Any) -> Any:
    """A stage of the run whose value is its own JSON."""
    return run.once(stage, lambda: value, dict)


# Names.


def test_a_name_is_made_of_configuration_date_settings_and_data() -> None:
    plain = run_name(loaded(None), FINGERPRINT, date(2024, 3, 9))
    assert plain.startswith("bank-2024-03-09-")
    assert len(plain.rpartition("-")[2]) == 6
    assert plain == run_name(loaded(None, cluster={"cpus": 2}), FINGERPRINT, date(2024, 3, 9))
    assert plain != run_name(loaded(None, train={"epochs": 3}), FINGERPRINT, date(2024, 3, 9))
    assert plain != run_name(loaded(None), "e" * 64, date(2024, 3, 9))
    assert run_name(loaded(None), FINGERPRINT).startswith("bank-undated-")


def test_no_password_is_kept_and_another_one_is_the_same_run(storage: Storage) -> None:
    def with_password(password: str) -> Loaded:
        return loaded(registry={"uri": f"postgresql://ada:{password}@db/mlflow"})

    with open_run(with_password("secret"), storage, FINGERPRINT):
        written = [storage.get(key) or b"" for key in storage.keys("")]
    assert any(b"postgresql://***@db/mlflow" in content for content in written)
    assert not any(b"secret" in content for content in written)
    assert run_name(with_password("secret"), FINGERPRINT) == run_name(with_password("changed"), FINGERPRINT)
    assert with_password("secret").settings.identity() == with_password("changed").settings.identity()


def test_a_name_may_hold_the_date_of_the_data() -> None:
    monthly = loaded("fraud-{as_of:%Y-%m}")
    assert run_name(monthly, FINGERPRINT, date(2024, 3, 9)) == "fraud-2024-03"
    with pytest.raises(SettingsError, match="no date to fill in"):
        run_name(monthly, FINGERPRINT, None)


# What is kept.


def test_a_concluded_stage_is_read_back_and_not_computed_again(storage: Storage) -> None:
    with pytest.raises(KeyboardInterrupt), open_run(loaded(), storage, FINGERPRINT) as run:
        assert not run.has("search")
        kept(run, "search", {"best": 3})
        raise KeyboardInterrupt
    with open_run(loaded(), storage, FINGERPRINT) as run:
        assert run.has("search")
        assert run.once("search", lambda: pytest.fail("computed again"), dict) == {"best": 3}
        assert set(run.timings) == {"search"}


def test_the_time_of_a_run_is_the_walls_and_that_of_earlier_starts_is_told_apart(storage: Storage) -> None:
    with pytest.raises(KeyboardInterrupt), open_run(loaded(), storage, FINGERPRINT) as run:
        run.once("search", lambda: time.sleep(0.05), lambda value: value)
        raise KeyboardInterrupt
    with open_run(loaded(), storage, FINGERPRINT) as run:
        run.began -= 60  # as if Ray had taken that long to start
        run.stage("search", lambda _: None, lambda value: value)
        run.stage("plan", lambda _: time.sleep(0.01))
        took = run.took
    assert 60 < took["seconds"] < 70
    assert took["earlier_seconds"] == took["timings"]["search"] >= 0.05
    assert took["timings"]["plan"] >= 0.01


def test_a_concluded_run_answers_with_its_outcome(storage: Storage) -> None:
    evaluation = {"metrics": {"auc_roc": 0.9}, "threshold": 0.5}
    with open_run(loaded(), storage, FINGERPRINT) as run:
        outcome = Outcome.of_gate(False, name=run.name, folder=run.folder, plan=("a", "b"), evaluation=evaluation)
        run.conclude(outcome)
    assert (outcome.status, outcome.exit_code) == ("rejected", 3)
    with open_run(loaded(), storage, FINGERPRINT) as run:
        assert run.concluded == outcome
    assert len(storage.keys("runs/march/lease")) == 1, "a concluded run is not held again"
    assert read_run(storage, "march").state == "rejected"


def test_the_record_tells_settings_data_code_and_who(storage: Storage) -> None:
    with open_run(loaded(train={"epochs": 3}), storage, FINGERPRINT):
        record = read_run(storage, "march").record
    assert record["settings"]["train"]["epochs"] == record["identity"]["train.epochs"] == 3
    assert record["fingerprint"] == FINGERPRINT
    assert {"fraud_ray", "ray", "torch", "mlflow", "python"} <= set(record["versions"])
    assert record["user"]
    assert record["host"]
    assert record["command"]


def test_other_settings_or_data_under_the_same_name_are_refused_by_their_keys(storage: Storage) -> None:
    with open_run(loaded(train={"epochs": 3}), storage, FINGERPRINT):
        pass
    with pytest.raises(RunDiffersError) as fault, open_run(loaded(train={"epochs": 4}), storage, "e" * 64):
        pass
    message = str(fault.value)
    assert "train.epochs: 3 there, 4 now" in message
    assert "data fingerprint:" in message
    assert "--name" in message
    assert len(message.splitlines()) == 4
    with open_run(loaded(train={"epochs": 3, "max_failures": 9}), storage, FINGERPRINT):
        pass


def test_a_setting_that_came_since_a_run_has_its_default_there(storage: Storage) -> None:
    with open_run(loaded(train={"epochs": 3}), storage, FINGERPRINT) as run:
        run.conclude(Outcome(run.name, run.folder, "registered"))
    record = read_run(storage, "march").record
    del record["settings"]["train"]["network"], record["identity"]["train.network"]
    storage.put_json("runs/march/run.json", record)
    with open_run(loaded(train={"epochs": 3}), storage, FINGERPRINT) as run:
        assert run.concluded
    with (
        pytest.raises(RunDiffersError, match=r'train\.network: "mlp" there, "residual" now'),
        open_run(loaded(train={"epochs": 3, "network": "residual"}), storage, FINGERPRINT),
    ):
        pass


def test_a_run_that_fails_before_it_wrote_anything_leaves_its_name_free(storage: Storage) -> None:
    with pytest.raises(FraudRayError), open_run(loaded(train={"workers": 64}), storage, FINGERPRINT):
        raise FraudRayError("too many workers")
    assert list_runs(storage) == []
    with open_run(loaded(train={"workers": 2}), storage, FINGERPRINT) as run:
        kept(run, "search", 1)


def test_runs_are_listed_with_their_state(storage: Storage) -> None:
    with open_run(loaded("one"), storage, FINGERPRINT) as run:
        run.conclude(Outcome.of_gate(True, name="one", folder=run.folder))
    with open_run(loaded("two"), storage, FINGERPRINT):
        pass
    with open_run(loaded("three"), storage, FINGERPRINT):
        states = {run.name: run.state for run in list_runs(storage)}
    assert states == {"one": "registered", "two": "unfinished", "three": "running"}
    with pytest.raises(SettingsError, match=r"no run 'four' .* there are: one, three, two"):
        read_run(storage, "four")


def test_differences_name_what_either_side_lacks() -> None:
    assert differences({"a": 1, "b": 2, "c": [1]}, {"b": 3, "c": [1], "d": None}) == {
        "a": ("1", "absent"),
        "b": ("2", "3"),
        "d": ("absent", "null"),
    }


# Who works on it.

HOLDS = """
import sys, time
from fraud_ray.errors import RunHeldError
from fraud_ray.lease import hold
from fraud_ray.storage import Storage
try:
    with hold(Storage.at(sys.argv[1]), "march"):
        print("held", flush=True)
        time.sleep(float(sys.argv[2]))
except RunHeldError as fault:
    print("refused", flush=True)
"""


@contextmanager
def contender(storage: Storage, seconds: float = 60) -> Iterator[subprocess.Popen[str]]:
    """Another process that tries to hold the run; it says `held` or `refused`."""
    command = [sys.executable, "-c", HOLDS, storage.root, str(seconds)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def said(process: subprocess.Popen[str]) -> str:
    assert process.stdout
    return process.stdout.readline().strip()


@pytest.mark.faults("4", "SIGKILL of who holds a run", "the next one takes it over at once")
@pytest.mark.quick
def test_a_run_that_a_living_process_holds_is_refused_and_a_killed_one_is_taken_over(storage: Storage) -> None:
    with contender(storage) as process:
        assert said(process) == "held"
        with pytest.raises(RunHeldError, match=rf"held by .* \(process {process.pid}\) since"), hold(storage, "march"):
            pass
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert holders_of(storage, ["march"]) == {}
    with hold(storage, "march") as taken:
        assert taken.number == 2


def test_of_many_processes_exactly_one_gets_the_lease(storage: Storage) -> None:
    storage.put_json("runs/march/lease/000001.json", other_machine(released=True))
    with contender(storage) as a, contender(storage) as b, contender(storage) as c:
        assert sorted(map(said, (a, b, c))) == ["held", "refused", "refused"]


def test_a_lease_is_released_at_the_end(storage: Storage) -> None:
    with hold(storage, "march"):
        assert set(holders_of(storage, ["march"])) == {"march"}
    with hold(storage, "march") as again:
        assert again.number == 2


def other_machine(**changes: Any) -> dict[str, Any]:
    now = time.time()
    return {
        "id": "1",
        "user": "ann",
        "host": "elsewhere",
        "machine": "another boot",
        "pid": os.getpid(),
        "process_start": "1",
        "since": now,
        "heartbeat": now,
        "released": False,
        **changes,
    }


def test_a_holder_on_another_machine_that_renews_keeps_its_run_whatever_the_clocks_say(
    storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "SILENCE_S", 5.0)
    key, ended = "runs/march/lease/000001.json", threading.Event()

    def renew() -> None:
        while not ended.wait(0.1):
            storage.put_json(key, other_machine(heartbeat=time.time() - 30))

    storage.put_json(key, other_machine(heartbeat=time.time() - 30))
    renewing = threading.Thread(target=renew)
    renewing.start()
    try:
        with pytest.raises(RunHeldError, match="ann on elsewhere"), hold(storage, "march"):
            pass
    finally:
        ended.set()
        renewing.join()


def test_a_silent_holder_on_another_machine_is_taken_over_as_a_retry_on_a_new_pod_must(
    storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "SILENCE_S", 0.5)
    storage.put_json("runs/march/lease/000001.json", other_machine(heartbeat=time.time() + 1_000))
    with hold(storage, "march") as taken:
        assert taken.number == 2


def test_a_process_id_that_was_given_again_is_no_holder(storage: Storage) -> None:
    with hold(storage, "march"):
        stored = storage.get_json("runs/march/lease/000001.json")
    storage.put_json("runs/march/lease/000002.json", {**stored, "released": False, "process_start": "long ago"})
    assert holders_of(storage, ["march"]) == {}


def test_a_holder_that_was_taken_over_stops_at_the_next_stage(
    storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "SILENCE_S", 0.5)
    with open_run(loaded(), storage, FINGERPRINT) as run:
        kept(run, "search", 1)
        storage.put_json("runs/march/lease/000002.json", other_machine())
        with pytest.raises(RunHeldError, match="was taken over by ann on elsewhere"):
            run.once("refit", lambda: pytest.fail("went on"), dict)
        with pytest.raises(RunHeldError):
            run.conclude(Outcome.of_gate(True, name=run.name, folder=run.folder))
    assert read_run(storage, "march").outcome is None


def test_a_held_lease_is_renewed(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "RENEWAL_S", 0.05)
    with hold(storage, "march") as held:
        time.sleep(0.4)
        stored = json.loads(storage.get("runs/march/lease/000001.json") or b"{}")
        assert stored["heartbeat"] > stored["since"] + 0.2
        assert stored["id"] == held.holder.id


def test_leases_work_in_a_bucket(monkeypatch: pytest.MonkeyPatch) -> None:
    import boto3
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        for name, value in {
            "AWS_ENDPOINT_URL": f"http://{host}:{port}",
            "AWS_ALLOW_HTTP": "true",
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_DEFAULT_REGION": "us-east-1",
        }.items():
            monkeypatch.setenv(name, value)
        boto3.client("s3").create_bucket(Bucket="leases")
        bucket = Storage.at("s3://leases/root")
        with hold(bucket, "march"):
            with pytest.raises(RunHeldError), hold(bucket, "march"):
                pass
            assert not bucket.create("runs/march/lease/000001.json", b"{}")
        with hold(bucket, "march") as again:
            assert again.number == 2
    finally:
        server.stop()
