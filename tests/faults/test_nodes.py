"""A node of two dies while ranks train: what is left goes on, or waits for another, and says so."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from fraud_ray.storage import Storage
from fraud_ray.training.trainer import load_fitted
from tests.line import local
from tests.rays import BIN, add_node, two_nodes

SOON_S = 300
LOST = ("3", "a node of two dies in training")


@pytest.fixture(scope="module")
def cluster(ray_session: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with two_nodes(tmp_path_factory.mktemp("nodes")) as nodes:
        yield nodes


def started(cluster: Any, simulated: Path, store: Path, *overrides: str, until: str) -> subprocess.Popen[str]:
    """A run that has this cluster; what it says is in said.txt beside its storage."""
    small = ("train.batch_size=256", "train.epochs=12", "train.patience_epochs=null")
    config, given = local(simulated, store, [*small, *overrides])
    words = [word for override in given for word in ("--set", override)]
    with (store / "said.txt").open("a") as said:
        return subprocess.Popen(
            [BIN / "fraud-ray", "run", "-c", config, *words, "--json", "--until", until],
            env={**os.environ, "RAY_ADDRESS": cluster.address},
            cwd=store,
            stdout=subprocess.PIPE,
            stderr=said,
            text=True,
        )


def until(run: subprocess.Popen[str], is_so: Callable[[], object]) -> None:
    deadline = time.monotonic() + SOON_S
    while not is_so():
        assert run.poll() is None, "the run has ended"
        assert time.monotonic() < deadline
        time.sleep(0.05)


def lose_a_node(cluster: Any) -> None:
    (worker,) = cluster.worker_nodes
    cluster.remove_node(worker, allow_graceful=False)


def trials(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(file.read_text()) for file in folder.glob("search/ledger/*.json")]


@pytest.mark.faults(*LOST, "trials go on with what is left, from where they were")
def test_trials_go_on_with_the_node_that_is_left(cluster: Any, simulated: Path, store: Path) -> None:
    folder = store / "runs/left"
    settings = ("run.name=left", "search.space={dropout: [0.0, 0.1]}")
    with started(cluster, simulated, store, *settings, until="search") as run:
        until(run, lambda: len(list(folder.glob("search/*/checkpoint.pt"))) == 2)
        lose_a_node(cluster)
        assert run.wait(SOON_S) == 0, (store / "said.txt").read_text()
    add_node(cluster)
    assert [trial["status"] for trial in trials(folder)] == ["finished"] * 2
    for trial in trials(folder):
        assert [epoch["epoch"] for epoch in trial["curve"]] == list(range(1, 13))


@pytest.mark.faults(
    *LOST, "ranks that lack room wait for another for cluster.wait_s, say so, and go on where they were"
)
def test_ranks_that_lose_their_node_wait_for_another(cluster: Any, simulated: Path, store: Path) -> None:
    """In the search it comes when the run has ended, in the refit it comes in time."""
    folder, said = store / "runs/lost", store / "said.txt"
    settings = ("run.name=lost", "train.workers=2")
    with started(cluster, simulated, store, *settings, "cluster.wait_s=5", until="refit") as run:
        until(run, lambda: list(folder.glob("search/*/checkpoint_*")))
        lose_a_node(cluster)
        assert run.wait(SOON_S) == 1, said.read_text()
    add_node(cluster)
    assert (
        "no room for 2 ranks (train.workers) of 1 CPU (train.resources_per_worker): a node is gone, and 1 node with "
        "room for 1 left. No other came within cluster.wait_s (5 s)"
    ) in said.read_text()
    assert "What run 'lost' has done is kept: the same command goes on from there" in said.read_text()

    with started(cluster, simulated, store, *settings, until="refit") as run:
        until(run, (folder / "refit/progress.json").exists)
        lose_a_node(cluster)
        add_node(cluster)
        assert run.wait(SOON_S) == 0, said.read_text()
    (trial,) = trials(folder)
    for curve in (trial["curve"], load_fitted(Storage.at(str(store)), "runs/lost/refit").curve):
        assert [epoch["epoch"] for epoch in curve] == list(range(1, 13))
