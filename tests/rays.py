"""A Ray of its own for tests that talk to one over the network: a head with a token, which ends with the test."""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

BIN = Path(sys.executable).parent


@dataclass(frozen=True)
class Head:
    """A head: its dashboard's address, and the environment in which its token is known."""

    dashboard: str
    token: str
    environment: dict[str, str]


@contextmanager
def head(cwd: Path, environment: Mapping[str, str], cpus: int = 2, options: Sequence[str] = ()) -> Iterator[Head]:
    """A head that lives in `cwd`, as in an image's folder, and has nothing of Ray's but these in its environment."""
    token = secrets.token_hex(16)
    known = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    gcs, dashboard, client = free_ports(3)
    # The address as KubeRay sets it: without it Ray's state API asks whatever Ray of this machine started last.
    known |= {"RAY_ADDRESS": f"127.0.0.1:{gcs}", "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token, **environment}
    known["PATH"] = f"{BIN}{os.pathsep}{os.environ['PATH']}"  # jobs start `python`
    scratch = tempfile.mkdtemp(prefix="ray-")  # short: the paths of sockets have a limit
    url = f"http://127.0.0.1:{dashboard}"
    ports = [f"--port={gcs}", f"--dashboard-port={dashboard}", f"--ray-client-server-port={client}"]
    ports += ["--dashboard-host=127.0.0.1", "--dashboard-agent-listen-port=0", f"--temp-dir={scratch}"]
    command = [str(BIN / "ray"), "start", "--head", "--block", f"--num-cpus={cpus}", *ports, *options]
    with subprocess.Popen(
        command, cwd=cwd, env=known, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    ) as process:
        try:
            wait_for(f"{url}/api/gcs_healthz", process)
            yield Head(url, token, {**known, "RAY_API_SERVER_ADDRESS": url})
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(5)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
            shutil.rmtree(scratch, ignore_errors=True)


@contextmanager
def two_nodes(folder: Path) -> Iterator[Any]:
    """Nodes of one CPU each, every one in a working folder of its own below `folder`; the first is the head."""
    from ray.cluster_utils import Cluster

    (port,) = free_ports(1)
    known = {"RAY_ADDRESS": f"127.0.0.1:{port}", "RAY_AUTH_MODE": "token"}  # as KubeRay sets them
    with pytest.MonkeyPatch.context() as patch:
        for name in ("head", "worker"):
            (folder / name).mkdir()
        patch.chdir(folder / "head")
        cluster = Cluster(True, head_node_args={"num_cpus": 1, "gcs_server_port": port, "env_vars": known})
        try:
            patch.chdir(folder / "worker")
            add_node(cluster)
            yield cluster
        finally:
            cluster.shutdown()


def add_node(cluster: Any) -> Any:
    """One more node of one CPU."""
    return cluster.add_node(num_cpus=1, env_vars={"RAY_ADDRESS": cluster.address, "RAY_AUTH_MODE": "token"})


def free_ports(count: int) -> list[int]:
    with ExitStack() as held:
        sockets = [held.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


def wait_for(url: str, process: subprocess.Popen[bytes], seconds: float = 90) -> None:
    """Until what a process serves there answers."""
    deadline = time.monotonic() + seconds
    while process.poll() is None and time.monotonic() < deadline:
        try:
            urllib.request.urlopen(url, timeout=5).close()
            return
        except OSError:
            time.sleep(0.2)
    raise AssertionError(f"{url} does not answer")
