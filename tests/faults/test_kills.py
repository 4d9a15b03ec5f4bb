"""Processes that are killed, interrupted, or at the same thing at once: one parent, one version, one champion."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from multiprocessing.synchronize import Barrier
from pathlib import Path

import pytest
import torch

from fraud_ray.registry.anchors import verify
from fraud_ray.registry.audit import read_all
from fraud_ray.registry.promotion import promote, record_registration
from fraud_ray.registry.tracking import RUN_TAG, Tracking, connect
from fraud_ray.registry.versions import champion, list_versions, register
from fraud_ray.runs import list_runs
from fraud_ray.settings import RegistrySettings
from fraud_ray.storage import Storage
from fraud_ray.training.trainer import load_checkpoint
from tests.handmade import example, write_bundle
from tests.line import Start, local
from tests.prepared import made_fold
from tests.rays import Head, head
from tests.test_search import descendants, killed_at, made_settings, searched


def registry_in(folder: Path) -> Tracking:
    return connect(RegistrySettings(uri=f"sqlite:///{folder}/mlflow.db"))


def a_trial() -> int:
    """The process of a trial of this process's Ray."""
    name = b"ImplicitFunc"
    return next(pid for pid in descendants(os.getpid()) if name in Path(f"/proc/{pid}/cmdline").read_bytes())


@pytest.mark.faults("2", "SIGKILL of a trial's process", "the same weights as undisturbed")
def test_a_trial_goes_on_after_its_process_was_killed(ray_session: None, tmp_path: Path) -> None:
    storage = Storage.at(str(tmp_path))
    folds = [made_fold(storage, "selection", 3_000, 500)]
    settings = made_settings({}, train={"epochs": 40, "batch_size": 32, "patience_epochs": None})
    whole, _ = searched(folds, settings, storage, "runs/whole")
    killer = killed_at(tmp_path / f"runs/killed/{whole.best.id}/checkpoint.pt", a_trial)
    killed, _ = searched(folds, settings, storage, "runs/killed")
    killer.join(1)
    assert not killer.is_alive()
    assert [row["epoch"] for row in killed.best.curve] == list(range(1, 41))
    assert [row["loss"] for row in killed.best.curve] == [row["loss"] for row in whole.best.curve]
    one, other = (load_checkpoint(storage, f"{found.folder}/{found.best.id}") for found in (whole, killed))
    assert all(torch.equal(one["folds"][0]["network"][name], w) for name, w in other["folds"][0]["network"].items())


# The command itself, with a signal to itself when a stage has computed its value, which is not kept yet, or as soon as
# a stage tells of something done (`search~`), or when the champion's alias has moved (`alias`).
DRIVER = """
import os, sys, time
from mlflow import MlflowClient
from fraud_ray.cli import app
from fraud_ray.runs import Run

number, at, told = int(sys.argv[1]), sys.argv[2], sys.argv[3]
stage, move = Run.stage, MlflowClient.set_registered_model_alias

def end(now):
    if now == at:
        with open(told, "w") as file:
            file.write(str(time.time()))
        os.kill(os.getpid(), number)

def staged(run, name, compute, *more, **named):
    def computed(update):
        def updated(done, total, text=""):
            update(done, total, text)
            if done:
                end(name + "~")
        value = compute(updated)
        end(name)
        return value
    return stage(run, name, computed, *more, **named)

def moved(*given):
    move(*given)
    end("alias")

Run.stage, MlflowClient.set_registered_model_alias = staged, moved
app(sys.argv[4:])
"""

WINDOW = "windows.columns={spent_1d: {compute: sum, of: transaction_amount, entity: card_id, days: [1]}}"
ENDS = (
    *((signal.SIGKILL, stage) for stage in ("repeats", "windows", "validate", "plan", "drift", "prepare")),
    *((signal.SIGTERM, "search~"), (signal.SIGKILL, "search~"), (signal.SIGKILL, "search")),
    *((signal.SIGINT, "refit~"), (signal.SIGKILL, "refit~")),
    *((signal.SIGKILL, stage) for stage in ("refit", "evaluate", "gate", "register", "challenge", "alias")),
)


@pytest.fixture(scope="module")
def ray_up(ray_session: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Head]:
    with head(tmp_path_factory.mktemp("head"), {}) as up:
        yield up


@pytest.mark.faults(
    "4",
    "SIGKILL of the driver at each stage, of retrain between register and promote",
    "one parent, one version, one champion; finished trials are not repeated",
)
@pytest.mark.faults(
    "23", "SIGTERM in the search, SIGINT in the refit", "ended within seconds, the lease is free, resumable"
)
def test_a_retraining_that_is_killed_at_every_stage_comes_to_one_version_and_one_champion(
    ray_up: Head, run: Start, simulated: Path, store: Path, tmp_path: Path
) -> None:
    run("run.name=march", "train.epochs=1", "train.learning_rate=0.00001", "gate.min_f1=null")
    storage, folder = Storage.at(str(store)), store / "runs/april"
    config, overrides = local(
        simulated,
        store,
        [
            *("run.name=april", "folds.fit_days=8", "gate.min_f1=null", "retrain.metric=average_precision"),
            *("train.epochs=6", "train.learning_rate=0.005", "data.repeats=last", WINDOW),
        ],
    )
    command = ["retrain", "-c", str(config), *(word for given in overrides for word in ("--set", given)), "--json"]
    kept: dict[Path, bytes] = {}
    for number, at in ENDS:
        driver = [sys.executable, "-c", DRIVER, str(int(number)), at, str(tmp_path / "ended"), *command]
        done = subprocess.run(driver, env=ray_up.environment, cwd=tmp_path, capture_output=True, text=True, timeout=300)
        took = time.time() - float((tmp_path / "ended").read_text())
        assert done.returncode == (-number if number == signal.SIGKILL else 128 + number), (at, done.stderr)
        assert took < 30
        assert [run.state for run in list_runs(storage) if run.name == "april"] == ["unfinished"]
        assert {file: file.read_bytes() for file in kept} == kept, f"what was kept before {at} was computed again"
        kept = {file: file.read_bytes() for part in ("stages", "search/ledger") for file in folder.glob(f"{part}/*")}
    done = subprocess.run(
        [sys.executable, "-m", "fraud_ray", *command],
        env=ray_up.environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert {file: file.read_bytes() for file in kept} == kept
    tracking, version = registry_in(store), json.loads(done.stdout)["version"]
    assert (version["version"], version["alias"]) == (2, "champion")
    assert [version.run for version in list_versions(tracking)] == ["april", "march"]
    (parent,) = tracking.client.search_runs([tracking.experiment_id], f"tags.`{RUN_TAG}` = 'april'")
    assert parent.info.status == "FINISHED"
    held = champion(tracking)
    assert held is not None
    assert held.version == 2
    told = [(record.event, record.version) for record in read_all(storage)]
    assert told == [("register", 1), ("run", 1), ("register", 2), ("promote", 2), ("run", 2)]
    assert verify(tracking, storage) == []


ROUNDS = 3


def one_of_two(number: int, folder: Path, at_once: Barrier) -> None:
    tracking, storage = registry_in(folder), Storage.at(str(folder))
    for again in range(ROUNDS):
        name = f"run-{number}-{again}"
        bundle = write_bundle(folder / "runs" / name / "bundle", slope=(1 + number + 2 * again) / 100)
        at_once.wait(300)
        run = tracking.start(name, {})
        version = register(run, bundle, example())
        record_registration(run, storage, version)
        at_once.wait(300)
        promote(tracking, storage, version.version)


@pytest.mark.faults(
    "7", "two runs register and promote at once", "a version each, one champion, the audit record clean"
)
def test_two_runs_that_register_and_promote_at_once_are_told_apart(tmp_path: Path, mlflow_template: Path) -> None:
    shutil.copy(mlflow_template, tmp_path / "mlflow.db")
    spawning = multiprocessing.get_context("spawn")
    at_once = spawning.Barrier(2)
    both = [spawning.Process(target=one_of_two, args=(number, tmp_path, at_once)) for number in range(2)]
    for process in both:
        process.start()
    for process in both:
        process.join(300)
    assert [process.exitcode for process in both] == [0, 0]
    tracking, storage = registry_in(tmp_path), Storage.at(str(tmp_path))
    names = {f"run-{number}-{again}" for number in range(2) for again in range(ROUNDS)}
    versions, records = list_versions(tracking), read_all(storage)
    assert sorted(version.version for version in versions) == list(range(1, 2 * ROUNDS + 1))
    assert {version.run for version in versions} == names
    assert sorted(record.facts["run"] for record in records if record.event == "register") == sorted(names)
    moves = [record for record in records if record.event == "promote"]
    held = champion(tracking)
    assert held is not None
    assert held.version == moves[-1].version
    assert verify(tracking, storage) == []
