"""Jobs on a Ray that is up, with a token: `ray job submit` with a script of jobs/, and a RayJob's own command line."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml
from mlflow import MlflowClient

from tests.line import REPOSITORY, local
from tests.rays import BIN, Head, head

MODEL = "fraud-detection-production"
SPACE = "search.space={learning_rate: [0.001, 0.002, 0.003, 0.004]}"
SEARCH = (SPACE, "search.concurrency=1", "train.epochs=4", "train.patience_epochs=null")


@pytest.fixture(scope="module")
def ray_up(kubectl: Path) -> Iterator[Head]:
    """A head with the environment that the manifests give theirs."""
    rendered = _render(kubectl, "--set", "cluster.overlay=dev")
    (container,) = rendered["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["containers"]
    environment = {variable["name"]: variable["value"] for variable in container["env"]}
    with head(REPOSITORY, environment) as up:
        yield up


def sets(overrides: list[str]) -> list[str]:
    return [word for override in overrides for word in ("--set", override)]


def ray(up: Head, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Ray's own command, as a user types it in the repository."""
    command = [str(BIN / "ray"), *arguments]
    return subprocess.run(command, cwd=REPOSITORY, env=up.environment, capture_output=True, text=True, timeout=300)


def wait_until(condition: Callable[[], Any], seconds: float = 180) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def ledger(store: Path, run: str) -> dict[str, bytes]:
    """The finished trials of a run."""
    return {file.name: file.read_bytes() for file in (store / f"runs/{run}/search/ledger").glob("*.json")}


def lease(store: Path, run: str) -> dict[str, Any]:
    newest = max((store / f"runs/{run}/lease").glob("*.json"))
    return json.loads(newest.read_text())


def test_a_submitted_job_is_read_and_stopped_and_its_run_could_go_on(
    ray_up: Head, simulated: Path, store: Path
) -> None:
    submit = ("job", "submit", "--working-dir", ".")
    line = ("--", "exec", "python", "jobs/pipeline.py", "-c", "configs/local.yaml", "--name", "april")
    lost = ray(ray_up, *submit, "--submission-id", "lost", *line)
    assert lost.returncode == 1
    assert "data.path is data/simulated, relative to the working folder of this job" in lost.stdout

    overrides = local(simulated, store, [*SEARCH, "train.epochs=60"])[1]
    begun = ray(ray_up, *submit, "--no-wait", "--submission-id", "april-1", *line, *sets(overrides))
    assert begun.returncode == 0, begun.stderr
    wait_until((store / "runs/april/search").exists)
    assert ray(ray_up, "job", "stop", "april-1").returncode == 0
    assert _ended(ray_up, "april-1") == "STOPPED"
    read = ray(ray_up, "job", "logs", "april-1").stdout
    assert re.search("✓ prepare .* fit and .* holdout rows", read)
    assert "terminated; a run goes on from here with the same command" in read
    assert lease(store, "april")["released"]
    assert not (store / "runs/april/outcome.json").exists()


@pytest.mark.long
def test_a_rendered_rayjob_that_is_killed_and_stopped_in_the_search_finishes_without_repeating_trials(
    ray_up: Head, simulated: Path, store: Path, kubectl: Path
) -> None:
    overrides = local(simulated, store, [*SEARCH, "train.dropout=0.05", f"registry.uri=sqlite:///{store}/mlflow.db"])[1]
    # One shell word with everything that a shell might take: the overlay's simulate stays, as nothing is to be made.
    overrides = [o for o in overrides if not o.startswith("simulate=")]
    job = _render(kubectl, *sets(["cluster.overlay=dev", *overrides]))
    assert "runtimeEnvYAML" not in job["spec"], "its working folder is the image's"

    first = _submit_as_kuberay(ray_up, job, "first")
    wait_until(lambda: len(ledger(store, "june")) >= 1)
    os.kill(lease(store, "june")["pid"], signal.SIGKILL)
    assert _ended(ray_up, first) == "FAILED"
    finished = ledger(store, "june")
    assert 1 <= len(finished) < 4

    second = _submit_as_kuberay(ray_up, job, "second")
    wait_until(lambda: len(ledger(store, "june")) > len(finished))
    _client(ray_up).stop_job(second)  # as KubeRay does; `ray job stop` starts for seconds, while trials go on
    assert _ended(ray_up, second) == "STOPPED"
    assert lease(store, "june")["released"], _log(ray_up, second)
    assert {name: ledger(store, "june")[name] for name in finished} == finished
    finished = ledger(store, "june")

    third = _submit_as_kuberay(ray_up, job, "third")
    assert _ended(ray_up, third) == "SUCCEEDED", _log(ray_up, third)
    assert len(ledger(store, "june")) == 4
    assert {name: ledger(store, "june")[name] for name in finished} == finished
    outcome = (store / "runs/june/outcome.json").stat()
    began = time.monotonic()
    fourth = _submit_as_kuberay(ray_up, job, "fourth")
    assert _ended(ray_up, fourth) == "SUCCEEDED"
    assert time.monotonic() - began < 30
    assert "✓" not in _log(ray_up, fourth), "no stage ran"
    assert f"registered {MODEL} version 1, champion" in _log(ray_up, fourth)
    assert (store / "runs/june/outcome.json").stat() == outcome

    client = MlflowClient(f"sqlite:///{store}/mlflow.db")
    (version,) = client.search_model_versions(f"name = '{MODEL}'")
    logged = client.get_run(version.run_id).data.params
    submitted = yaml.safe_load(job["metadata"]["annotations"]["fraud-ray/settings"])
    assert logged["train.dropout"] == "0.05"
    assert logged["train.epochs"] == str(submitted["train"]["epochs"]) == "4"
    assert logged["gate.min_f1"] == str(submitted["gate"]["min_f1"])


def test_a_ray_job_scores_every_row_with_the_champion(
    ray_up: Head, simulated: Path, march: Path, tmp_path: Path
) -> None:
    words = f"--model models:/{MODEL}@champion --input {simulated} --output {tmp_path / 'scores'}"
    where = f"--set storage.root={march} --set registry.uri=sqlite:///{march}/mlflow.db"
    entrypoint = f"exec python jobs/score.py -c configs/cluster.yaml {words} {where}"
    done = _submit_as_kuberay(ray_up, {"spec": {"entrypoint": entrypoint}}, "score")
    assert _ended(ray_up, done) == "SUCCEEDED", _log(ray_up, done)
    scored = pq.read_table(tmp_path / "scores", partitioning=None)
    assert set(scored["model_version"].to_pylist()) == {f"{MODEL}/1"}
    assert scored.num_rows == sum(pq.read_metadata(file).num_rows for file in simulated.rglob("*.parquet"))


def _render(kubectl: Path, *options: str) -> dict[str, Any]:
    """The RayJob of run `june`, as `fraud-ray submit --render` prints it."""
    environment = {**os.environ, "PATH": f"{kubectl.parent}{os.pathsep}{os.environ['PATH']}"}
    order = ["submit", "-c", "configs/cluster.yaml", "--name", "june", "--render", *options]
    command = [str(BIN / "fraud-ray"), *order]
    printed = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=60)
    assert printed.returncode == 0, printed.stderr
    return next(document for document in yaml.safe_load_all(printed.stdout) if document["kind"] == "RayJob")


def _submit_as_kuberay(up: Head, job: dict[str, Any], name: str) -> str:
    """The command of KubeRay's submitter pod (its GetK8sJobCommand), with the entrypoint put into it as it is."""
    line = f"ray job submit --address {up.dashboard} --no-wait --submission-id {name} -- {job['spec']['entrypoint']} ;"
    done = subprocess.run(["bash", "-ce", "--", line], env=up.environment, cwd="/", capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return name


def _ended(up: Head, name: str) -> str:
    """The status of a job when it has ended."""
    from ray.job_submission import JobStatus

    client = _client(up)
    statuses: list[JobStatus] = []
    wait_until(lambda: statuses.append(client.get_job_status(name)) or statuses[-1].is_terminal())
    return str(statuses[-1].value)


def _log(up: Head, name: str) -> str:
    return str(_client(up).get_job_logs(name))


def _client(up: Head) -> Any:
    from ray.job_submission import JobSubmissionClient

    os.environ["RAY_API_SERVER_ADDRESS"] = up.dashboard
    try:
        return JobSubmissionClient(up.dashboard, headers={"Authorization": f"Bearer {up.token}"})
    finally:
        del os.environ["RAY_API_SERVER_ADDRESS"]
