"""The application: transactions in, scores out, over HTTP.

Started by `fraud-ray serve`, by uvicorn, in one process. TLS is left to what stands before it. Every mistake of a
caller's is a 4xx whose body says what is wrong, and in which field; what cannot be answered now is a 503 that says when
to ask again.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from fraud_ray.serving import inference
from fraud_ray.serving.openapi import described
from fraud_ray.serving.reasons import Reasons
from fraud_ray.serving.replies import Endpoint, answering, as_json, body_of, decoded, is_set, nowhere
from fraud_ray.serving.requests import Batch, Form, RequestFault
from fraud_ray.serving.service import Scored, Service
from fraud_ray.serving.tokens import Tokens


class _Transactions(msgspec.Struct, forbid_unknown_fields=True):
    transactions: list[dict[str, Any]]


class _Labels(msgspec.Struct, forbid_unknown_fields=True):
    labels: list[dict[str, Any]]


_DOCS = Path(__file__).with_name("docs.html")
_TRANSACTIONS, _LABELS = msgspec.json.Decoder(_Transactions), msgspec.json.Decoder(_Labels)


async def _nothing() -> None:
    return None


def create_app(service: Service, tokens: Tokens | None, close: Callable[[], Awaitable[None]] = _nothing) -> Starlette:
    """The application of a service.

    tokens: whose bearers may ask; None: everybody may. close: called once no request is left.
    """
    reasons = Reasons()

    async def score(request: Request) -> Response:
        with_reasons, with_columns = is_set(request, "reasons"), is_set(request, "columns")
        sent = decoded(_TRANSACTIONS, await body_of(request, service.settings.max_body)).transactions
        service.limit(len(sent))
        served, form = service.served()
        batch = form.read(sent, time.time())
        scored = await service.score(served, batch, sent)
        scores = _scores(scored, batch, form)
        if with_columns:
            for one, columns in zip(scores, scored.computed, strict=False):
                one["columns"] = columns
        if with_reasons:
            found = await reasons.of(served, batch, scored.computed, scored.decision)
            for one, why in zip(scores, found, strict=True):
                one["reasons"] = [{"column": name, "effect": effect} for name, effect in why]
        return as_json({"scores": scores})

    async def labels(request: Request) -> Response:
        sent = decoded(_LABELS, await body_of(request, service.settings.max_body)).labels
        service.limit(len(sent), "labels")
        served, _ = service.served()
        unknown = await service.label(served, sent)
        return as_json({"told": len(sent) - len(unknown), "unknown": unknown})

    async def metrics(request: Request) -> Response:
        return Response(service.metrics.page(service.current()), media_type="text/plain; version=0.0.4")

    async def openapi(request: Request) -> Response:
        return as_json(described(*service.served(), service.settings, tokens is not None))

    async def docs(request: Request) -> Response:
        return Response(_DOCS.read_bytes(), media_type="text/html")

    def route(path: str, endpoint: Endpoint, method: str = "GET", is_open: bool = False) -> Route:
        """is_open: whether no token is asked for."""

        async def asked(request: Request) -> Response:
            if tokens is not None:
                tokens.check(request.headers.get("authorization"))
            elif "origin" in request.headers:  # any page that its user looks at could add to the past
                raise RequestFault(None, "pages in a browser may ask only where a token is needed", 403)
            return await endpoint(request)

        return Route(path, answering(path, endpoint if is_open else asked, service.metrics), methods=[method])

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        yield
        reasons.close()
        await close()

    routes = [
        route("/score", score, "POST"),
        route("/labels", labels, "POST"),
        *(route(*endpoint) for endpoint in inference.endpoints(service)),
        route("/metrics", metrics, is_open=True),
        route("/openapi.json", openapi),
        route("/docs", docs, is_open=True),
    ]
    app = Starlette(routes=routes, exception_handlers={HTTPException: nowhere(service.metrics)}, lifespan=lifespan)
    app.router.redirect_slashes = False  # behind what ends TLS it would send callers, and their tokens, to http://
    return app


def _scores(scored: Scored, batch: Batch, form: Form) -> list[dict[str, Any]]:
    """A reply's entry for each transaction, with its id, where one is declared, under its column's name."""
    rows = zip(scored.probability, scored.decision, map(as_version, scored.version), scored.degraded, strict=True)
    scores: list[dict[str, Any]] = [
        {"probability": probability, "decision": decision, "model_version": version}
        | ({"degraded": True} if degraded else {})
        for probability, decision, version, degraded in rows
    ]
    if form.identifier is None:
        return scores
    return [{form.identifier: sent, **one} for sent, one in zip(batch.sent, scores, strict=True)]


def as_version(version: str) -> int | str:
    """A registered version's number; of a folder its digest."""
    return int(version) if version.isdecimal() else version
