"""The Open Inference Protocol, version 2, over HTTP, as KServe's and Triton's clients speak it: a tensor a column.

Tensors come as JSON, or as bytes behind it (the extension for binary tensor data).
Source: kserve.github.io/open-inference-protocol, specification/protocol/inference_rest.md; Triton's
protocol/extension_binary_data.md.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from importlib.metadata import version as installed
from typing import Any

import msgspec
import numpy as np
from starlette.requests import Request
from starlette.responses import Response

from fraud_ray.serving.replies import Endpoint, as_json, body_of, decoded
from fraud_ray.serving.requests import Field, Form, RequestFault
from fraud_ray.serving.served import Served
from fraud_ray.serving.service import Scored, Service

_LENGTH = "Inference-Header-Content-Length"  # of the JSON before the bytes
_OUTPUTS = {"probability": ("FP32", np.float32), "decision": ("BOOL", np.bool_)}
DATATYPES = {
    "BOOL": "?",
    **{
        f"{prefix}{8 * size}": f"<{kind}{size}"
        for prefix, kind in (("INT", "i"), ("UINT", "u"))
        for size in (1, 2, 4, 8)
    },
    **{f"FP{8 * size}": f"<f{size}" for size in (2, 4, 8)},
}


class _Tensor(msgspec.Struct):
    name: str
    shape: list[int]
    datatype: str
    parameters: dict[str, Any] = {}
    data: list[Any] | None = None


class _Wanted(msgspec.Struct):
    name: str
    parameters: dict[str, Any] = {}


class _Inference(msgspec.Struct):
    inputs: list[_Tensor]
    id: str | None = None
    parameters: dict[str, Any] = {}
    outputs: list[_Wanted] | None = None


_DECODER = msgspec.json.Decoder(_Inference)


def endpoints(service: Service) -> Iterator[tuple[str, Endpoint, str, bool]]:
    """Path, endpoint, method, and whether it is open to those without a token."""

    def named(request: Request) -> tuple[Served, Form]:
        served, form = service.served()
        name, version = request.path_params["name"], request.path_params.get("version", served.version)
        if (name, version) != (served.name, served.version):
            message = f"is not what answers here, which is version {served.version} of {served.name}"
            raise RequestFault("model", message, 404)
        return served, form

    async def server(request: Request) -> Response:
        return as_json({"name": "fraud_ray", "version": installed("fraud_ray"), "extensions": ["binary_tensor_data"]})

    async def live(request: Request) -> Response:
        return as_json({"live": True})

    async def ready(request: Request) -> Response:
        service.served()
        return as_json({"ready": True})

    async def model(request: Request) -> Response:
        served, form = named(request)
        inputs = [_described(name, datatype_of(field)) for name, field in form.fields.items()]
        outputs = [_described(name, datatype) for name, (datatype, _) in _OUTPUTS.items()]
        waiting = service.waiting()
        told = {"waiting": dict(zip(("version", "reason"), waiting, strict=True))} if waiting else {}
        found = {"name": served.name, "versions": [served.version], "platform": "onnx_onnxruntime"}
        return as_json({**found, "inputs": inputs, "outputs": outputs, **told})

    async def model_ready(request: Request) -> Response:
        served, _ = named(request)
        return as_json({"name": served.name, "ready": True})

    async def infer(request: Request) -> Response:
        asked, tensors = _read(await body_of(request, service.settings.max_body), request.headers.get(_LENGTH))
        served, form = named(request)
        absent = [name for name in form.fields if name not in tensors]
        if absent:
            raise RequestFault(f"inputs.{absent[0]}", "is absent: the model reads a tensor of this name")
        rows = len(next(iter(tensors.values()), []))
        for name, values in tensors.items():
            if len(values) != rows:
                raise RequestFault(f"inputs.{name}", "has another number of rows than the tensors before it")
        service.limit(rows)
        scored = await service.score(served, form.read_columns(tensors, rows, time.time()), tensors)
        return _reply(asked, served, scored)

    yield "/v2", server, "GET", False
    yield "/v2/health/live", live, "GET", True
    yield "/v2/health/ready", ready, "GET", True
    for path in ("/v2/models/{name}", "/v2/models/{name}/versions/{version}"):
        yield path, model, "GET", False
        yield f"{path}/ready", model_ready, "GET", False
        yield f"{path}/infer", infer, "POST", False


def datatype_of(field: Field) -> str:
    """What a column's tensor is best sent as; others that hold the same values are taken too."""
    kinds = {"number": "FP64", "boolean": "BOOL", "integer": "INT64"}
    return kinds.get(field.schema["type"][0], "BYTES")


def _described(name: str, datatype: str) -> dict[str, Any]:
    return {"name": name, "datatype": datatype, "shape": [-1]}


def _read(body: bytes, length: str | None) -> tuple[_Inference, dict[str, list[Any]]]:
    """What is asked, and the values of each tensor. length: of the JSON that the body begins with."""
    if length is not None and not (length.isascii() and length.isdigit() and int(length) <= len(body)):
        raise RequestFault(_LENGTH, "is not a number of bytes that the body has", 400)
    head = len(body) if length is None else int(length)
    asked = decoded(_DECODER, body[:head])
    rest = body[head:]
    tensors: dict[str, list[Any]] = {}
    for tensor in asked.inputs:
        where = f"inputs.{tensor.name}"
        rows, *others = tensor.shape or [0]
        if not tensor.shape or rows < 0 or others not in ([], [1]):
            raise RequestFault(where, "has another shape than [rows] or [rows, 1]")
        if tensor.name in tensors:
            raise RequestFault(where, "is there twice")
        size = tensor.parameters.get("binary_data_size")
        if size is None:
            values = [one for held in tensor.data or [] for one in (held if isinstance(held, list) else [held])]
        elif type(size) is int and 0 <= size <= len(rest):
            values, rest = list(_unpacked(rest[:size], tensor.datatype, where)), rest[size:]
        else:
            raise RequestFault(where, "has a binary_data_size beyond the bytes that were sent")
        if len(values) != rows:
            raise RequestFault(where, "holds another number of values than its shape says")
        tensors[tensor.name] = values
    if rest:
        raise RequestFault(None, "the body has bytes after the last tensor", 400)
    return asked, tensors


def _unpacked(content: bytes, datatype: str, where: str) -> Iterator[Any]:
    """The values of a tensor's bytes."""
    if datatype in DATATYPES:
        kind = np.dtype(DATATYPES[datatype])
        if len(content) % kind.itemsize:
            raise RequestFault(where, f"has bytes that are no whole number of {datatype}")
        yield from np.frombuffer(content, kind).tolist()
        return
    if datatype != "BYTES":
        raise RequestFault(where, f"is of a datatype that is not known here: send BYTES, {', '.join(DATATYPES)}")
    at = 0
    while at < len(content):
        begin = at + 4
        at = begin + int.from_bytes(content[at:begin], "little")
        if begin > len(content) or at > len(content):
            raise RequestFault(where, "has bytes that end within a value")
        try:
            yield content[begin:at].decode()
        except UnicodeDecodeError:
            raise RequestFault(where, "has text that is no UTF-8") from None


def _reply(asked: _Inference, served: Served, scored: Scored) -> Response:
    values: dict[str, list[Any]] = {"probability": scored.probability, "decision": scored.decision}
    outputs, behind = [], []
    for output in asked.outputs or [_Wanted(name) for name in _OUTPUTS]:
        if output.name not in _OUTPUTS:
            raise RequestFault(f"outputs.{output.name}", f"is not there, but {' and '.join(_OUTPUTS)}")
        datatype, kind = _OUTPUTS[output.name]
        told: dict[str, Any] = {"name": output.name, "datatype": datatype, "shape": [len(values[output.name])]}
        if output.parameters.get("binary_data", asked.parameters.get("binary_data_output", False)) is True:
            behind.append(np.array(values[output.name], kind).tobytes())
            told["parameters"] = {"binary_data_size": len(behind[-1])}
        else:
            told["data"] = values[output.name]
        outputs.append(told)
    reply: dict[str, Any] = {"model_name": served.name, "model_version": served.version, "outputs": outputs}
    if asked.id is not None:
        reply["id"] = asked.id
    if any(scored.degraded):
        reply["parameters"] = {"degraded": True}
    if not behind:
        return as_json(reply)
    head = msgspec.json.encode(reply)
    return Response(b"".join([head, *behind]), 200, {_LENGTH: str(len(head))}, "application/octet-stream")
