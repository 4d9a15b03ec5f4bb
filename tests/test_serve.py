"""`fraud-ray serve` as a person types it: a process that says how to ask, and ends when all have their replies."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import yaml
from typer.testing import CliRunner

from fraud_ray.cli import app
from fraud_ray.errors import SettingsError
from fraud_ray.model.bundle import Bundle, open_graph
from fraud_ray.model.calibration import Calibration
from fraud_ray.model.reasons import Explainer
from fraud_ray.serving.reasons import COUNT
from fraud_ray.serving.tokens import tokens_of
from fraud_ray.settings import ServingSettings
from tests.rays import free_ports
from tests.test_graph import COLUMNS, made_bundle, table

KINDS = {column.name: {"kind": column.kind} for column in COLUMNS}


class Served:
    """A server that was started, what it said, and the folder that it stores in."""

    def __init__(self, folder: Path) -> None:
        self.folder, [self.port] = folder, free_ports(1)
        made = made_bundle(COLUMNS, Calibration())
        made.save(folder / "bundle")
        threshold = float(np.median(open_graph(folder / "bundle").score(table(200))))
        replace(made, threshold=threshold).save(folder / "bundle")
        settings = {
            "data": {
                "path": "unused",
                "columns": {"transaction_id": {"kind": "id"}, "is_fraud": {"kind": "label"}, **KINDS},
            },
            "storage": {"root": str(folder / "store")},
            "serving": {"port": self.port},
        }
        (folder / "settings.yaml").write_text(yaml.safe_dump(settings))
        self.arguments = ["serve", "-c", str(folder / "settings.yaml"), "--model", str(folder / "bundle")]
        command = [sys.executable, "-m", "fraud_ray", *self.arguments]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        self.said = [self.process.stdout.readline() for _ in range(3)]
        self.url = f"http://127.0.0.1:{self.port}"

    def score(self, transactions: list[dict[str, Any]], query: str = "") -> httpx.Response:
        token = (self.folder / "store/serving/token").read_text().strip()
        return httpx.post(
            f"{self.url}/score{query}",
            json={"transactions": transactions},
            headers={"Authorization": f"Bearer {token}"},
            timeout=60,
        )


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    served = Served(tmp_path_factory.mktemp("serve"))
    yield served
    served.process.kill()
    served.process.wait()


def rows(count: int) -> list[dict[str, Any]]:
    """Transactions as JSON has them."""
    sent = table(count).to_pylist()
    return [{**row, "at": row["at"] and row["at"].isoformat(), "transaction_id": n} for n, row in enumerate(sent)]


def test_what_it_prints_is_where_it_listens_and_a_call_that_is_answered(server):
    where, export, curl = server.said
    assert re.search(rf"bundle version \w{{12}} at {server.url} ", where)
    ran = subprocess.run(["bash", "-c", f"{export.strip()}; {curl.strip()} -sf"], capture_output=True, text=True)
    assert re.fullmatch(r'{"scores":\[{"transaction_id":"t1","probability":[\d.e-]+,"decision":\w+,.*}\]}', ran.stdout)
    token = server.folder / "store/serving/token"
    assert token.stat().st_mode & 0o777 == 0o600


def test_scores_are_those_of_batch_scoring_to_the_bit(server):
    sent = rows(501)
    wanted = open_graph(server.folder / "bundle").score(table(501))
    found = np.array([score["probability"] for score in server.score(sent).json()["scores"]], np.float32)
    assert found.tobytes() == wanted.tobytes()
    alone = server.score(sent[-1:]).json()["scores"][0]["probability"]
    assert np.float32(alone).tobytes() == wanted[-1:].tobytes()


def test_another_server_on_the_same_port_is_refused_with_what_to_do(server):
    ran = CliRunner().invoke(app, server.arguments)
    assert ran.exit_code == 1
    assert f"error: cannot listen on 127.0.0.1:{server.port}: " in ran.stderr
    assert "--set serving.port=PORT" in ran.stderr


def test_reasons_are_those_of_batch_scoring_without_torch_in_the_server_which_ends_when_all_have_their_reply(server):
    sent, replies = rows(200), []
    asking = threading.Thread(target=lambda: replies.append(server.score(sent, "?reasons=true")))
    asking.start()
    while "spawn_main" not in children_of(server.process.pid):  # the reply waits for a process that imports torch
        assert asking.is_alive()
    loaded = Path(f"/proc/{server.process.pid}/maps").read_text()
    assert "onnxruntime" in loaded
    assert "torch" not in loaded and "_raylet" not in loaded
    server.process.send_signal(signal.SIGTERM)
    asking.join()
    scores = replies[0].json()["scores"]
    alerts = [row for row, score in enumerate(scores) if score["decision"]]
    assert 0 < len(alerts) < 200
    names, effects = Explainer.of(Bundle.load(server.folder / "bundle")).reasons(table(200).take(alerts), COUNT)
    for row, of_name, of_effect in zip(alerts, names, effects, strict=True):
        assert [reason["column"] for reason in scores[row]["reasons"]] == of_name.tolist()
        assert [reason["effect"] for reason in scores[row]["reasons"]] == pytest.approx(of_effect.tolist(), abs=1e-5)
    assert all(not score["reasons"] for score in scores if not score["decision"])
    _, told = server.process.communicate(timeout=30)
    assert server.process.returncode == 143
    assert told.splitlines()[-1] == "terminated"
    assert "Traceback" not in told


def test_the_process_that_finds_reasons_ends_with_a_server_that_was_killed():
    code = (
        "import multiprocessing, os, signal\n"
        "from concurrent.futures import ProcessPoolExecutor\n"
        "from fraud_ray.serving.reasons import begin\n"
        "pool = ProcessPoolExecutor(1, multiprocessing.get_context('spawn'), begin)\n"
        "print(pool.submit(os.getpid).result(), flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    ran = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert ran.stdout is not None
    child, deadline = Path("/proc", ran.stdout.readline().strip()), time.monotonic() + 30
    while child.exists() and "Z" not in (child / "stat").read_text().split()[2]:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert ran.wait() == -signal.SIGKILL


def children_of(process: int) -> str:
    """The command lines of a process's children."""
    ran = subprocess.run(["ps", "-ww", "-o", "args=", "--ppid", str(process)], capture_output=True, text=True)
    return ran.stdout


def test_beyond_this_machine_nobody_asks_without_a_token(tmp_path):
    beyond = ServingSettings(host="0.0.0.0")
    with pytest.raises(SettingsError, match=r"serving\.tokens"):
        tokens_of(beyond, str(tmp_path), without_token=False)
    with pytest.raises(SettingsError, match="of this machine alone"):
        tokens_of(beyond, str(tmp_path), without_token=True)
    (tmp_path / "empty").write_text("\n")
    with pytest.raises(SettingsError, match="holds no token"):
        tokens_of(ServingSettings(tokens=tmp_path / "empty"), str(tmp_path), without_token=False)
    for host in ("127.0.0.1", "localhost", "::1"):
        assert tokens_of(ServingSettings(host=host), str(tmp_path), without_token=True) is None


def test_a_token_that_is_made_is_kept_and_beside_a_bucket_lies_with_its_user(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    for root, folder in ((str(tmp_path / "root"), "root/serving"), ("s3://bucket/root", "state/fraud_ray")):
        first = tokens_of(ServingSettings(), root, without_token=False)
        assert first is not None
        assert first.path == tmp_path / folder / "token"
        made = first.path.read_text()
        assert len(made.strip()) == 64
        again = tokens_of(ServingSettings(), root, without_token=False)
        assert again is not None
        assert again.path.read_text() == made
