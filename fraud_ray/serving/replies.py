"""Requests and replies as HTTP has them: bodies within limits, and every fault as JSON that says what and where."""

from __future__ import annotations

import logging
import time
import traceback
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import msgspec
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from fraud_ray.serving.metrics import Metrics
from fraud_ray.serving.requests import RequestFault, UnavailableError

Endpoint = Callable[[Request], Awaitable[Response]]

_RETRY_AFTER_S = "1"
_LOG = logging.getLogger(__name__)


def answering(path: str, endpoint: Endpoint, metrics: Metrics) -> Endpoint:
    """An endpoint that counts its replies by path, and raises nothing."""

    async def answered(request: Request) -> Response:
        began = time.perf_counter()
        try:
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
        metrics.count_request(path, response.status_code, time.perf_counter() - began)
        return response

    return answered


def nowhere(metrics: Metrics) -> Callable[[Request, Exception], Awaitable[Response]]:
    """Answers what no route takes."""

    async def answered(request: Request, fault: Exception) -> Response:
        assert isinstance(fault, HTTPException), "it is registered for these"
        metrics.count_request("other", fault.status_code, 0.0)
        error = {404: "there is nothing here", 405: "not by this method"}.get(fault.status_code, "refused")
        told = {"error": f"{error}; /docs lists what there is", "field": None}
        return as_json(told, fault.status_code, fault.headers)

    return answered


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


def is_set(request: Request, name: str) -> bool:
    """A query parameter that is true or false. Raises RequestFault."""
    value = request.query_params.get(name, "false")
    if value not in {"true", "false"}:
        raise RequestFault(name, "is true or false")
    return value == "true"
