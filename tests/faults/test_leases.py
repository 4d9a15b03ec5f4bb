"""Who works on a run, where clocks differ and disks are full."""

from __future__ import annotations

import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from typer.testing import CliRunner

from fraud_ray import lease
from fraud_ray.cli import app
from fraud_ray.errors import RunHeldError, ServerError
from fraud_ray.lease import Holder, hold, holders_of
from fraud_ray.registry.tracking import connect
from fraud_ray.runs import open_run
from fraud_ray.settings import RegistrySettings
from fraud_ray.storage import Storage
from tests.test_run import FINGERPRINT, loaded

KEY = "runs/march/lease/000001.json"


@contextmanager
def renewed_elsewhere(storage: Storage, behind_s: float) -> Iterator[None]:
    """A living holder on another machine, whose clock is behind ours, or ahead of it."""
    holder, ended = replace(Holder.this_process(), machine="another boot", host="elsewhere"), threading.Event()

    def renew() -> None:
        while True:
            storage.put_json(KEY, asdict(replace(holder, heartbeat=time.time() - behind_s)))
            if ended.wait(0.1):
                return

    renewing = threading.Thread(target=renew)
    renewing.start()
    try:
        while not storage.exists(KEY):
            time.sleep(0.01)
        yield
    finally:
        ended.set()
        renewing.join()


@pytest.mark.faults("24", "a host whose clock is minutes ahead, or behind", "no lease of a living run is taken")
@pytest.mark.parametrize("behind_s", [pytest.param(120, marks=pytest.mark.quick), 86_400, -120])
def test_a_living_holder_keeps_its_run_whatever_the_clocks_say(
    tmp_path: Path, behind_s: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "SILENCE_S", 2.0)
    storage, said = Storage.at(str(tmp_path)), list[str]()
    with renewed_elsewhere(storage, behind_s):
        with pytest.raises(RunHeldError, match="elsewhere"), hold(storage, "march", said.append):
            pass
        assert list(holders_of(storage, ["march"])) == ["march"]
    assert len(said) == 1
    assert said[0].endswith("elsewhere: watching for up to 2 s whether it lives")

    # It is silent from now on, and loses the run, however young its last renewal is.
    assert holders_of(storage, ["march"]) == {}
    with hold(storage, "march") as taken:
        assert taken.number == 2


@pytest.mark.faults("24", "several runs are held elsewhere", "all are watched at the same time, which is said")
def test_runs_that_are_held_elsewhere_are_watched_once_and_all_at_the_same_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    waited: list[float] = []
    clock = SimpleNamespace(sleep=waited.append, monotonic=lambda: sum(waited), time=time.time)
    monkeypatch.setattr(lease, "time", clock)
    storage, settings = Storage.at(str(tmp_path / "root")), {"storage": {"root": str(tmp_path / "root")}}
    gone = asdict(replace(Holder.this_process(), machine="another boot", host="elsewhere"))
    for name in ("april", "march", "may"):
        with open_run(loaded(name, **settings), storage, FINGERPRINT) as run:
            storage.put(run.key("kept"), b"")
        storage.put_json(f"runs/{name}/lease/000002.json", gone)
    storage.put("prepared/key/broken off/part", b"")
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump(loaded("april", **settings).settings.resolved()))
    for command in (("runs", "list"), ("runs", "compare", "march", "april"), ("cache", "prune", "--older-than", "0")):
        waited.clear()
        told = CliRunner().invoke(app, [*command, "-c", str(config)])
        assert (told.exit_code, sum(waited)) == (0, lease.SILENCE_S)
        watched = [line for line in told.stderr.splitlines() if "watching for up to 20 s whether it lives" in line]
        assert len(watched) == (2 if command[1] == "compare" else 3)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 1 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)], capture_output=True, check=False
    )
    if done.returncode:
        pytest.skip("only root mounts a small disk")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(folder: Path) -> None:
    with pytest.raises(OSError, match="No space left"), (folder / "ballast").open("wb", buffering=0) as file:
        while True:
            file.write(b"x" * 4096)


@pytest.mark.faults("8", "the disk of storage.root is full", "path, cause, free space; no lease is held")
@pytest.mark.quick
def test_a_full_disk_is_named_with_what_is_free_and_holds_no_run(small_disk: Path) -> None:
    storage = Storage.at(str(small_disk / "store"))
    with pytest.raises(ServerError) as told, hold(storage, "march"):
        fill(small_disk)
        storage.put("runs/march/bundle/model.onnx", b"x" * 8192)
    message = str(told.value)
    assert message.startswith(f"storage at {small_disk}/store/runs/march/bundle/model.onnx, below storage.root, cannot")
    assert "No space left on device" in message
    assert "(0B of 1.0MiB free at " in message
    assert message.endswith(
        "make room there, or name another place, and give the same command again: it goes on from what is kept"
    )
    # This process lives, and holds nothing.
    assert holders_of(storage, ["march"]) == {}
    (small_disk / "ballast").unlink()
    with hold(storage, "march") as again:
        assert again.number == 2


@pytest.mark.faults("8", "the disk of MLflow's sqlite is full", "path, cause, free space; no trace of SQLAlchemy")
def test_a_full_disk_below_mlflow_is_named(small_disk: Path) -> None:
    (small_disk / "ballast").write_bytes(b"x" * 400_000)
    registry = RegistrySettings(uri=f"sqlite:///{small_disk}/mlflow.db")
    with pytest.raises(ServerError) as told:
        connect(registry)
    message = str(told.value)
    assert message.startswith(
        f"MLflow at {registry.uri} cannot be written: (sqlite3.OperationalError) database or disk"
    )
    assert f"free at {small_disk}/mlflow.db)" in message
    assert "\n" not in message
