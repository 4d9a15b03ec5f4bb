"""The least that answers with the graph: an ASGI application without checks, and the same behind Ray Serve."""

from __future__ import annotations

import json
import os
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from fraud_ray.model.scorer import GraphScorer

HEADERS = [(b"content-type", b"application/json")]


def reply(scorer: GraphScorer, body: bytes) -> bytes:
    """The scores of transactions, as they come."""
    sent = json.loads(body)["transactions"]
    inputs: dict[str, Any] = {}
    for column in scorer.columns:
        kind: Any = object if column.kind == "categorical" else np.float32
        inputs[column.name] = np.array([[transaction[column.name]] for transaction in sent], kind)
    (found,) = scorer.session.run(["probability"], inputs)
    return json.dumps({"scores": [{"probability": float(one)} for one in found]}).encode()


@lru_cache
def _scorer() -> GraphScorer:
    return GraphScorer(Path(os.environ["BARE_GRAPH"]).read_bytes())


async def app(scope: Mapping[str, Any], receive: Callable[[], Awaitable[Any]], send: Callable[..., Any]) -> None:
    """The application, of the graph that BARE_GRAPH names."""
    if scope["type"] != "http":
        return
    body, more = b"", True
    while more:
        message = await receive()
        body, more = body + message.get("body", b""), message.get("more_body", False)
    await send({"type": "http.response.start", "status": 200, "headers": HEADERS})
    await send({"type": "http.response.body", "body": reply(_scorer(), body) if body else b"{}"})


@contextmanager
def on_ray_serve(graph: Path, port: int) -> Iterator[str]:
    """The URL of one replica on the Ray that this process has."""
    from ray import serve
    from starlette.requests import Request
    from starlette.responses import Response

    class Scored:
        def __init__(self) -> None:
            self.scorer = GraphScorer(graph.read_bytes())

        async def __call__(self, request: Request) -> Response:
            return Response(reply(self.scorer, await request.body()), media_type="application/json")

    deployment = serve.deployment(num_replicas=1, ray_actor_options={"num_cpus": 0.5})(Scored)
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    try:
        serve.run(deployment.bind(), name="scored", route_prefix="/")
        yield f"http://127.0.0.1:{port}/"
    finally:
        serve.shutdown()
