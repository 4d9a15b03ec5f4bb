"""A real MLflow server, and a proxy before it that loses answers, or is not there."""

from __future__ import annotations

import http.client
import os
import signal
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from fraud_ray.registry.server import ui_command
from fraud_ray.settings import RegistrySettings
from tests.rays import free_ports, wait_for


@contextmanager
def server(file: Path) -> Iterator[int]:
    """A server on an sqlite store; yields its port."""
    (port,) = free_ports(1)
    command = ui_command(RegistrySettings(uri=f"sqlite:///{file}"), port)
    environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}  # else it starts eight processes more
    process = subprocess.Popen(
        command,
        cwd=file.parent,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=environment,
        start_new_session=True,
    )
    try:
        wait_for(f"http://127.0.0.1:{port}/api/2.0/mlflow/experiments/get-by-name?experiment_name=Default", process)
        yield port
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(timeout=30)


class Lossy:
    """What stands between: `loses` says of each request whether its answer is lost; `asked` is what came, in order."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.loses: Callable[[str], bool] = lambda asked: False

    def each_write_once(self) -> None:
        """Loses the answer to the first request of each kind that writes."""
        lost: set[str] = set()

        def loses(asked: str) -> bool:
            is_first = not asked.startswith("GET") and not asked.endswith("search") and asked not in lost
            lost.add(asked)
            return is_first

        self.loses = loses


@contextmanager
def proxy(port: int) -> Iterator[tuple[str, Lossy]]:
    """A proxy before a port; yields its URI and what it loses. A lost answer ends the connection, as a network does."""
    lossy = Lossy()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def pass_on(self) -> None:
            asked = f"{self.command} {self.path.partition('?')[0]}"
            lossy.asked.append(asked)
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            behind = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
            headers = {name: value for name, value in self.headers.items() if name.lower() != "accept-encoding"}
            behind.request(self.command, self.path, body, headers)
            answer = behind.getresponse()
            content = answer.read()
            behind.close()
            if lossy.loses(asked):
                self.close_connection = True
                self.connection.shutdown(socket.SHUT_RDWR)
                return
            self.send_response(answer.status)
            self.send_header("Content-Type", answer.headers.get("Content-Type", "application/json"))
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_POST = do_PATCH = do_DELETE = do_PUT = pass_on  # noqa: N815 - as http.server calls them

        def log_message(self, *told: object) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as served:
        threading.Thread(target=served.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{served.server_port}", lossy
        finally:
            served.shutdown()
