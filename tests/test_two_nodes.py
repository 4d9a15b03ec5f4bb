"""A cluster of two nodes: ranks that train together across them, and storage that both must see."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fraud_ray.runs import list_runs
from fraud_ray.storage import Storage
from tests.line import local
from tests.rays import BIN, two_nodes

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def cluster(ray_session: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with two_nodes(tmp_path_factory.mktemp("nodes")) as nodes:
        yield nodes


def run(cluster: Any, config: Path, overrides: list[str], cwd: Path, *more: str) -> subprocess.CompletedProcess[str]:
    words = [word for override in overrides for word in ("--set", override)]
    return subprocess.run(
        [BIN / "fraud-ray", "run", "-c", config, *words, "--json", *more],
        env={**os.environ, "RAY_ADDRESS": cluster.address},
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_a_network_is_trained_by_ranks_on_both_nodes(cluster: Any, simulated: Path, store: Path) -> None:
    """Two ranks reserve a CPU each, and no node has two."""
    overrides = ["run.name=both", "train.workers=2", "train.learning_rate=0.004", "train.negative_share=1"]
    done = run(cluster, *local(simulated, store, overrides), store, "--until", "search")
    assert done.returncode == 0, done.stderr
    (ledger,) = (store / "runs/both/search/ledger").iterdir()
    trial = json.loads(ledger.read_text())
    assert trial["status"] == "finished"
    assert [epoch["steps"] for epoch in trial["curve"]] == [40, 40]
    assert trial["average_precision"] > 0.1


def test_storage_that_a_node_does_not_share_is_refused_before_anything_is_prepared_and_the_node_is_named(
    cluster: Any, simulated: Path, mlflow_template: Path, tmp_path: Path
) -> None:
    """/proc/self/cwd is another folder for the processes of each node, as an unmounted path would be."""
    root = "/proc/self/cwd/store"
    overrides = [f"storage.root={root}", f"registry.uri=sqlite:///{mlflow_template}", "run.name=apart"]
    head = Path(f"/proc/{_raylet(cluster.head_node)}/cwd").resolve()
    done = run(cluster, *local(simulated, tmp_path, overrides), head)
    (worker,) = cluster.worker_nodes
    assert done.returncode == 2
    assert f"storage.root {root} is not shared: a worker on node" in done.stderr
    assert f"({worker.node_id[:8]})" in done.stderr
    assert f"({cluster.head_node.node_id[:8]})" not in done.stderr
    assert "✓" not in done.stderr
    assert list_runs(Storage.at(str(head / "store"))) == []
    assert Storage.at(str(head / "store")).keys("checks") == []


def _raylet(node: Any) -> int:
    return int(node.all_processes["raylet"][0].process.pid)
