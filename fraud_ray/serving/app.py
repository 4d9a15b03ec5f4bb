"""The application: transactions in, scores out, over HTTP.

Started by `fraud-ray serve`, by uvicorn, in one process. TLS is left to what stands before it. Every mistake of a
caller's is a 4xx whose body says what is wrong, and in which field; what cannot be answered now is a 503 that says when
to ask again.
"""

from __future__ import annotations

import logging
import time
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import msgspec
import numpy as np
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from fraud_ray.serving.history import History, Score
from fraud_ray.serving.metrics import Metrics
from fraud_ray.serving.reasons import Reasons
from fraud_ray.serving.requests import Batch, Form, RequestFault, UnavailableError, read_labels
from fraud_ray.serving.served import Served
from fraud_ray.serving.tokens import Tokens
from fraud_ray.settings import ServingSettings
from fraud_ray.windows.definition import Definition

Endpoint = Callable[[Request], Awaitable[Response]]

_RETRY_AFTER_S = "1"

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Scored:
    """What was answered of a batch; lists (rows,).

    computed: the window columns by name; none for a version that reads none. degraded: whether they were computed as if
    there were no past.
    """

    probability: list[float]
    decision: list[bool]
    version: list[str]
    computed: list[dict[str, float]]
    degraded: list[bool]


@dataclass
class Service:
    """Scores batches by the version that answers now.

    current: that version; None while there is none. history_of: the past of entities for windows; None while it is not
    there. histories: all that are kept, which learn of labels.
    """

    current: Callable[[], Served | None]
    settings: ServingSettings
    history_of: Callable[[Definition], History | None] = lambda definition: None
    histories: Callable[[], Sequence[History]] = tuple
    metrics: Metrics = field(default_factory=Metrics)
    _form: tuple[Served, Form] | None = None

    def served(self) -> tuple[Served, Form]:
        """The version that answers, and what its transactions must hold. Raises UnavailableError."""
        served = self.current()
        if served is None:
            raise UnavailableError("no version is ready to answer yet")
        if self._form is None or self._form[0] is not served:
            self._form = served, Form.of(served, self.settings.ahead_s)
        return self._form

    def limit(self, rows: int) -> None:
        """Raises RequestFault for more transactions than a request may have."""
        most = self.settings.max_transactions
        if rows > most:
            message = f"holds {rows:,} transactions, and a request may hold {most:,} (serving.max_transactions)"
            raise RequestFault("transactions", message, 413)

    async def score(self, served: Served, batch: Batch) -> Scored:
        """Raises RequestFault and UnavailableError."""
        if served.definition is None:
            with self.metrics.timed("graph"):
                found = served.scorer.run(batch.inputs(served.scorer.columns), len(batch))
            rows = len(batch)
            decision = (found >= served.scorer.threshold).tolist()
            scored = Scored(found.tolist(), decision, [served.version] * rows, [], [False] * rows)
        else:
            history = self.history_of(served.definition)
            if history is None:
                raise UnavailableError("the past that its windows look back on is not loaded yet")
            answers = await history.answer(batch, _score_by_row(served, batch))
            scored = Scored(
                [answer.probability for answer in answers],
                [answer.decision for answer in answers],
                [answer.version for answer in answers],
                [history.named(answer) for answer in answers],
                [answer.degraded for answer in answers],
            )
        self.metrics.count_decisions(scored.decision)
        return scored

    async def label(self, served: Served, sent: Sequence[Mapping[str, Any]]) -> list[Any]:
        """Tells labels, and returns the ids that are unknown here. Raises RequestFault and UnavailableError."""
        if served.definition is None:
            raise RequestFault(
                None, f"version {served.version} computes no windows, so it learns nothing of labels", 409
            )
        labels = read_labels(served.data, sent, time.time() + self.settings.ahead_s)
        known = [False] * len(labels)
        for history in self.histories():
            for at, told in enumerate(labels):
                known[at] |= await history.label(*told)
        return [id for (id, *_), is_known in zip(labels, known, strict=True) if not is_known]


def _score_by_row(served: Served, batch: Batch) -> Score:
    """Scores one transaction of a batch with its window columns."""
    scorer = served.scorer
    assert served.definition is not None, "windows are computed"
    computed = [column for column in scorer.columns if column.name in served.definition.names]
    sent = batch.inputs([column for column in scorer.columns if column not in computed])

    def score(row: int, columns: Mapping[str, float]) -> tuple[float, bool, str]:
        windows = {column.name: np.full((1, 1), columns[column.name], np.float32) for column in computed}
        [probability] = scorer.run({**{name: values[row : row + 1] for name, values in sent.items()}, **windows}, 1)
        return float(probability), bool(probability >= scorer.threshold), served.version

    return score


class _Labels(msgspec.Struct, forbid_unknown_fields=True):
    labels: list[dict[str, Any]]


class _Transactions(msgspec.Struct, forbid_unknown_fields=True):
    transactions: list[dict[str, Any]]


_DECODER = msgspec.json.Decoder(_Transactions)
_LABELS = msgspec.json.Decoder(_Labels)


async def _nothing() -> None:
    return None


def create_app(service: Service, tokens: Tokens | None, close: Callable[[], Awaitable[None]] = _nothing) -> Starlette:
    """The application of a service.

    tokens: whose bearers may ask; None: everybody may. close: called once no request is left.
    """
    reasons = Reasons()

    async def score(request: Request) -> Response:
        with_reasons, with_columns = _is_set(request, "reasons"), _is_set(request, "columns")
        sent = decoded(_DECODER, await body_of(request, service.settings.max_body)).transactions
        service.limit(len(sent))
        served, form = service.served()
        batch = form.read(sent, time.time())
        scored = await service.score(served, batch)
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
        service.limit(len(sent))
        served, _ = service.served()
        unknown = await service.label(served, sent)
        return as_json({"told": len(sent) - len(unknown), "unknown": unknown})

    async def live(request: Request) -> Response:
        return as_json({"live": True})

    async def ready(request: Request) -> Response:
        service.served()
        return as_json({"ready": True})

    async def metrics(request: Request) -> Response:
        return Response(service.metrics.page(service.current()), media_type="text/plain; version=0.0.4")

    def route(path: str, endpoint: Endpoint, method: str = "GET", is_open: bool = False) -> Route:
        """is_open: whether no token is asked for."""

        async def answered(request: Request) -> Response:
            began = time.perf_counter()
            try:
                if tokens is not None and not is_open:
                    tokens.check(request.headers.get("authorization"))
                response = await endpoint(request)
            except RequestFault as fault:
                response = as_json({"error": str(fault), "field": fault.field}, fault.status)
                if fault.status == 401:
                    response.headers["WWW-Authenticate"] = "Bearer"
            except UnavailableError as fault:
                response = as_json({"error": str(fault), "field": None}, 503)
                response.headers["Retry-After"] = _RETRY_AFTER_S
            except ClientDisconnect:
                response = Response(status_code=400)  # nobody reads it
            except Exception as fault:  # whatever it is, the caller gets an answer, and the log no value of it
                at = traceback.extract_tb(fault.__traceback__)[-1]
                _LOG.error("unexpected %s at %s:%s", type(fault).__name__, at.filename, at.lineno)
                response = as_json({"error": "unexpected; the server's log says where", "field": None}, 500)
            service.metrics.count_request(path, response.status_code, time.perf_counter() - began)
            return response

        return Route(path, answered, methods=[method])

    async def nowhere(request: Request, fault: Exception) -> Response:
        status = fault.status_code if isinstance(fault, HTTPException) else 500
        service.metrics.count_request("other", status, 0.0)
        error = {404: "there is nothing here", 405: "not by this method"}.get(status, "refused")
        headers = fault.headers if isinstance(fault, HTTPException) else None
        return as_json({"error": f"{error}: GET /docs lists what there is", "field": None}, status, headers)

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        yield
        reasons.close()
        await close()

    routes = [
        route("/score", score, "POST"),
        route("/labels", labels, "POST"),
        route("/v2/health/live", live, is_open=True),
        route("/v2/health/ready", ready, is_open=True),
        route("/metrics", metrics, is_open=True),
    ]
    return Starlette(routes=routes, exception_handlers={HTTPException: nowhere}, lifespan=lifespan)


def as_json(value: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """A reply; numbers that are none become null."""
    return Response(msgspec.json.encode(value), status, headers, "application/json")


def decoded(decoder: msgspec.json.Decoder[Any], body: bytes) -> Any:
    """Raises RequestFault for what is no JSON, or has another shape."""
    try:
        return decoder.decode(body)
    except msgspec.ValidationError as fault:
        told, _, where = str(fault).partition(" - at `$")
        raise RequestFault(where.strip(".`") or None, told) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as fault:
        raise RequestFault(None, f"the body is no JSON that can be read: {fault}", 400) from None


async def body_of(request: Request, most: int) -> bytes:
    """Raises RequestFault for a body of more than `most` bytes."""
    whole = bytearray()
    if int(request.headers.get("content-length", 0)) <= most:
        async for piece in request.stream():
            whole += piece
            if len(whole) > most:
                break
        else:
            return bytes(whole)
    raise RequestFault(None, f"the body has more than {most:,} bytes (serving.max_body)", 413)


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


def _is_set(request: Request, name: str) -> bool:
    """A query parameter that is true or false. Raises RequestFault."""
    value = request.query_params.get(name, "false")
    if value not in {"true", "false"}:
        raise RequestFault(name, "is true or false")
    return value == "true"
