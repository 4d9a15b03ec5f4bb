"""Many runs and many trials in one process: what they take, they give back."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.line import REPOSITORY

# Says what the process holds, a line of JSON each time: after each of ten runs, and after each of 200 trials.
SOAK = """
import gc, json, os, sys, threading, time
from pathlib import Path
import ray
from ray.util.state import list_objects
from fraud_ray import pipeline
from fraud_ray.cluster import join_or_start
from fraud_ray.progress import Quiet
from fraud_ray.settings import ClusterSettings, load_settings
from fraud_ray.storage import Storage
from fraud_ray.training.search import search
from tests.line import local
from tests.prepared import made_fold
from tests.test_search import made_settings, quiet

data, store = map(Path, sys.argv[1:])

def tell(phase, **more):
    gc.collect()
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    told = {"phase": phase, "memory_MB": int(status["VmRSS"].split()[0]) / 1024, "threads": threading.active_count()}
    print(json.dumps({**told, "handles": len(os.listdir("/proc/self/fd")), **more}), flush=True)

def tell_all(phase):
    time.sleep(3)  # Ray lets go of what nobody refers to a moment later
    known = ray.get_runtime_context().gcs_address
    objects = list_objects(known, limit=10_000, raise_on_missing_output=False)
    tell(phase, objects=len(objects), bytes_free=ray.available_resources()["object_store_memory"])

with join_or_start(ClusterSettings(cpus=2, dashboard=True)):
    for number in range(10):
        small = [f"run.name=run-{number}", f"train.seed={number}", "train.epochs=1", "gate.min_f1=null"]
        assert pipeline.run(load_settings(*local(data, store, small)), Quiet()).status == "registered"
        tell("run")
        if number in (1, 9):
            tell_all("runs")
    folds = [made_fold(Storage.at(str(store)), "selection", 400, 200)]
    rates = [0.001 + 0.0001 * number for number in range(200)]
    settings = made_settings({"learning_rate": rates}, train={"epochs": 1})
    tell_all("search")
    search(folds, settings, Storage.at(str(store)), "runs/many", lambda trial: tell("trial"), quiet)
    tell_all("search")
"""


@pytest.fixture(scope="module")
def told(ray_session: None, simulated: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Any]]:
    """What was told, by phase."""
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    command = [sys.executable, "-c", SOAK, str(simulated), str(tmp_path_factory.mktemp("soak"))]
    done = subprocess.run(command, env=environment, cwd=REPOSITORY, capture_output=True, text=True, timeout=1800)
    assert done.returncode == 0, done.stderr
    by_phase: dict[str, list[Any]] = {}
    for line in map(json.loads, filter(lambda line: line.startswith("{"), done.stdout.splitlines())):
        by_phase.setdefault(line.pop("phase"), []).append(line)
    print("\n".join(f"{phase}: {line}" for phase, lines in by_phase.items() for line in lines))
    return by_phase


@pytest.mark.faults(
    "26",
    "ten runs in one process; a search of 200 trials",
    "handles, threads and objects as at the start, memory within 5 %; Ray keeps 5 KB a search, and 0.1 MB a trial",
)
@pytest.mark.parametrize(("phase", "each", "searches"), [("runs", "run", 8), ("search", "trial", 1)])
def test_a_process_holds_no_more_after_many(told: dict[str, list[Any]], phase: str, each: str, searches: int) -> None:
    """Of ten runs the first two are the start: they import and open what all use.

    What Ray keeps until the process ends is what Tune was given, two objects a search, and of each trial what its
    driver knows of it (ray#64231), with a reference to an object that is gone.
    """
    start, end = told[phase]
    assert end["handles"] <= start["handles"] + 2  # a connection may have been opened anew
    assert end["threads"] <= start["threads"]
    trials = len(told[each]) if each == "trial" else 0
    assert end["objects"] <= start["objects"] + 2 * searches + trials
    assert end["bytes_free"] >= start["bytes_free"] - 10_000 * searches
    memory = [line["memory_MB"] for line in told[each]]
    assert memory[-1] <= 1.05 * memory[len(memory) * 2 // 3]
