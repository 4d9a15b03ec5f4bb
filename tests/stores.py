"""The stores of production on this machine: an S3 server, PostgreSQL, and MLflow as the manifests start it on both."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3
import psycopg2
import redis
from moto.server import ThreadedMotoServer

from tests.rays import BIN, free_ports

CREDENTIALS = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "us-east-1"}
_UNPRIVILEGED = "nobody"


@contextmanager
def s3(*buckets: str) -> Iterator[dict[str, str]]:
    """The environment in which these buckets are found."""
    server = ThreadedMotoServer(port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        url = f"http://{host}:{port}"
        keys = {"aws_access_key_id": "test", "aws_secret_access_key": "test", "region_name": "us-east-1"}
        client = boto3.client("s3", endpoint_url=url, **keys)
        for bucket in buckets:
            client.create_bucket(Bucket=bucket)
        yield {**CREDENTIALS, "AWS_ENDPOINT_URL": url, "AWS_ALLOW_HTTP": "true"}
    finally:
        server.stop()


@contextmanager
def postgres(postgres_folder: Path) -> Iterator[str]:
    """The URI of an empty database; the server refuses to run as root, so it runs as nobody there."""
    folder = Path(tempfile.mkdtemp(prefix="postgres-"))
    as_server: list[str] = []
    if os.geteuid() == 0:
        shutil.chown(folder, _UNPRIVILEGED)
        as_server = ["setpriv", f"--reuid={_UNPRIVILEGED}", "--regid=nogroup", "--clear-groups"]
    (port,) = free_ports(1)
    make = [*as_server, postgres_folder / "initdb", "-D", folder / "data", "-U", "mlflow", "-A", "trust", "--no-sync"]
    subprocess.run(make, check=True, capture_output=True, cwd=folder)
    options = ["-p", str(port), "-k", folder, "-c", "listen_addresses=127.0.0.1", "-c", "fsync=off"]
    with _process([*as_server, postgres_folder / "postgres", "-D", folder / "data", *options], cwd=folder) as process:
        try:
            address = f"mlflow@127.0.0.1:{port}/postgres"
            _wait(process, lambda: _accepts(f"postgresql://{address}"))
            yield f"postgresql+psycopg2://{address}"
        finally:
            process.terminate()
            process.wait(20)
            shutil.rmtree(folder)


def find_postgres() -> Path | None:
    """Folder of PostgreSQL's programs: on the PATH, or where Debian puts them."""
    on_path = shutil.which("postgres")
    if on_path:
        return Path(on_path).parent
    return next((folder for folder in sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)), None)


@dataclass
class Valkey:
    """A server of our own, which can be stopped and started again; it keeps what it holds in a file."""

    port: int
    folder: Path
    process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def start(self) -> None:
        program = shutil.which("valkey-server") or shutil.which("redis-server")
        assert program, "install Debian's redis-server, or valkey-server"
        options = ["--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(self.folder), "--save", ""]
        self.process = _process([program, *options, "--appendonly", "yes", "--appendfsync", "always"])
        _wait(self.process, self._answers)

    def stop(self) -> None:
        if self.process is not None:
            self.process.terminate()
            self.process.wait(20)
            self.process = None

    def _answers(self) -> bool:
        try:
            return bool(redis.Redis.from_url(self.url).ping())
        except redis.RedisError:
            return False


@contextmanager
def valkey(folder: Path) -> Iterator[Valkey]:
    """Valkey, or Redis, which speaks the same, with an append-only file in a folder."""
    (port,) = free_ports(1)
    server = Valkey(port, folder)
    server.start()
    try:
        yield server
    finally:
        server.stop()


@contextmanager
def mlflow_of(deployment: dict[str, Any], secrets: Mapping[str, Mapping[str, str]], scratch: Path) -> Iterator[str]:
    """MLflow's URL, started with the commands, arguments and environment of a rendered Deployment.

    secrets: keys and values by name. Only the port differs, and /tmp, the pod's own, is `scratch` here.
    """
    spec = deployment["spec"]["template"]["spec"]
    (migrate,), (server,) = spec["initContainers"], spec["containers"]
    (port,) = free_ports(1)
    made = subprocess.run(
        migrate["command"], env=_environment(migrate, secrets, scratch), capture_output=True, text=True
    )
    assert made.returncode == 0, made.stderr
    arguments = [argument.replace("5000", str(port)) for argument in server["args"]]
    command = [BIN / server["command"][0], *server["command"][1:], *arguments]
    with _process(command, env=_environment(server, secrets, scratch)) as process:
        try:
            url = f"http://localhost:{port}"
            _wait(process, lambda: status_of(f"{url}{server['startupProbe']['httpGet']['path']}") == 200)
            yield url
        finally:
            process.terminate()
            process.wait(20)


def status_of(url: str, headers: Mapping[str, str] | None = None) -> int | None:
    """The status that a GET gets, or None where nothing answers."""
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=dict(headers or {})), timeout=10) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as fault:
        return fault.code
    except OSError:
        return None


def _accepts(database: str) -> bool:
    try:
        psycopg2.connect(database).close()
    except psycopg2.OperationalError:
        return False
    return True


def _environment(container: dict[str, Any], secrets: Mapping[str, Mapping[str, str]], scratch: Path) -> dict[str, str]:
    given = {"PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}"}
    for source in container["envFrom"]:
        given |= secrets[source["secretRef"]["name"]]
    for variable in container["env"]:
        key = variable.get("valueFrom", {}).get("secretKeyRef")
        value = secrets[key["name"]][key["key"]] if key else variable["value"]
        given[variable["name"]] = value.replace("/tmp", str(scratch)) if not key else value
    return given


def _process(command: list[Any], **options: Any) -> subprocess.Popen[bytes]:
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, **options)


def _wait(process: subprocess.Popen[bytes], ready: Callable[[], bool], seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not ready():
        assert process.poll() is None, f"{process.args} ended with {process.returncode}"
        assert time.monotonic() < deadline, f"{process.args} does not answer"
        time.sleep(0.2)
