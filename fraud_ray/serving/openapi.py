"""The application described, by OpenAPI 3.1, from the columns of the version that answers."""

from __future__ import annotations

from importlib.metadata import version as installed
from typing import Any

from fraud_ray.serving.inference import DATATYPES
from fraud_ray.serving.requests import Field, Form
from fraud_ray.serving.served import Served
from fraud_ray.settings import ServingSettings

Schema = dict[str, Any]

_FAULTS = {
    400: "The body cannot be read.",
    401: "No token that is known here.",
    403: "A page in a browser asks, and no token is asked for here.",
    404: "Another model or version answers.",
    409: "The version that answers computes no windows, so it learns nothing of labels.",
    413: "The body, or the number of rows, is above its limit.",
    422: "A value cannot be taken; `field` says which.",
    503: "Not now; `Retry-After` says in how many seconds to ask again.",
}
_BODY_FAULTS = (400, 413, 422)


def described(served: Served, form: Form, settings: ServingSettings, with_tokens: bool) -> Schema:
    """The document. with_tokens: whether callers need one."""
    transaction = _object({name: field.schema for name, field in form.fields.items()})
    scores: Schema = {
        "probability": {"type": "number"},
        "decision": {"type": "boolean"},
        "model_version": {"type": ["integer", "string"]},
    }
    optional: Schema = {
        "degraded": {"type": "boolean", "description": "The windows were computed as if there were no past."},
        "columns": {"type": "object", "description": "The window columns."},
        "reasons": _list(_object({"column": {"type": "string"}, "effect": {"type": "number"}})),
    }
    if form.identifier is not None:
        transaction["properties"].setdefault(form.identifier, {"type": ["string", "integer", "null"]})
        optional[form.identifier] = {}
    score = _object(scores)
    score["properties"] |= optional
    flags = [
        _parameter("query", "reasons", {"type": "boolean"}, "Also say which columns weigh most in each alert."),
        _parameter("query", "columns", {"type": "boolean"}, "Also give the window columns."),
    ]
    paths: dict[str, Schema] = {
        "/score": {
            "post": _operation(
                "Score transactions, in their order",
                _closed({"transactions": _list(_reference("Transaction"), settings.max_transactions)}),
                _object({"scores": _list(_reference("Score"))}),
                parameters=flags,
            )
        },
        "/labels": {
            "post": _operation(
                "Tell which transactions were fraud, once that is known",
                _closed({"labels": _list(_label(served), settings.max_transactions)}),
                _object({"told": {"type": "integer"}, "unknown": _list({})}),
                faults=(409,),
            )
        },
        "/v2": {"get": _operation("What this server is", answer=_OPEN)},
        "/v2/health/live": {"get": {**_operation("Whether it runs", answer=_OPEN), "security": []}},
        "/v2/health/ready": {"get": {**_operation("Whether it answers", answer=_OPEN), "security": []}},
    }
    for versions in ("", f"/versions/{served.version}"):
        path = f"/v2/models/{served.name}{versions}"
        paths[path] = {"get": _operation("The model's tensors", answer=_OPEN, faults=(404,))}
        paths[f"{path}/ready"] = {"get": _operation("Whether the model answers", answer=_OPEN, faults=(404,))}
        paths[f"{path}/infer"] = {
            "post": _operation("Probability and decision of a tensor a column", _inference(), _OPEN, faults=(404,))
        }
    bearer = {"securitySchemes": {"bearer": {"type": "http", "scheme": "bearer"}}} if with_tokens else {}
    return {
        "openapi": "3.1.0",
        "info": {
            "title": f"{served.name} version {served.version}",
            "version": installed("fraud_ray"),
            "description": "Scores transactions as they happen.",
        },
        "paths": paths,
        "components": {
            "schemas": {
                "Transaction": {**transaction, "examples": [form.example()]},
                "Score": score,
                "Error": _object({"error": {"type": "string"}, "field": {"type": ["string", "null"]}}),
            },
            **bearer,
        },
        **({"security": [{"bearer": []}]} if with_tokens else {}),
    }


_OPEN: Schema = {"type": "object"}


def _operation(
    summary: str,
    body: Schema | None = None,
    answer: Schema | None = None,
    parameters: list[Schema] | None = None,
    faults: tuple[int, ...] = (),
) -> Schema:
    told: Schema = {"200": {"description": "The answer.", "content": _as_json(answer or _OPEN)}}
    for status in sorted({401, 403, 503, *faults, *(_BODY_FAULTS if body else ()), *((422,) if parameters else ())}):
        told[str(status)] = {"description": _FAULTS[status], "content": _as_json(_reference("Error"))}
    operation: Schema = {"summary": summary, "responses": told}
    if parameters:
        operation["parameters"] = parameters
    if body:
        operation["requestBody"] = {"required": True, "content": _as_json(body)}
    return operation


def _label(served: Served) -> Schema:
    data = served.data
    names = [name for name in (data.of_kind("id"), data.label, data.of_kind("label_time")) if name is not None]
    return _object({name: Field.declared(data.columns[name]).schema for name in names})


def _inference() -> Schema:
    shape = {**_list({"type": "integer", "minimum": 0}, 2), "minItems": 1}
    tensor = _object({"name": {"type": "string"}, "shape": shape, "datatype": {"enum": ["BYTES", *DATATYPES]}})
    tensor["properties"] |= {"data": {"type": "array"}, "parameters": _OPEN}
    wanted = _object({"name": {"enum": ["probability", "decision"]}})
    wanted["properties"]["parameters"] = _OPEN
    inference = _object({"inputs": _list(tensor)})
    inference["properties"] |= {"id": {"type": "string"}, "parameters": _OPEN, "outputs": _list(wanted)}
    return inference


def _object(properties: dict[str, Schema]) -> Schema:
    """All of whose properties are required."""
    return {"type": "object", "properties": {**properties}, "required": [*properties]}


def _closed(properties: dict[str, Schema]) -> Schema:
    """That holds nothing else."""
    return {**_object(properties), "additionalProperties": False}


def _list(items: Schema, most: int | None = None) -> Schema:
    return {"type": "array", "items": items} | ({} if most is None else {"maxItems": most})


def _parameter(where: str, name: str, schema: Schema, description: str) -> Schema:
    return {"name": name, "in": where, "schema": schema, "description": description}


def _reference(name: str) -> Schema:
    return {"$ref": f"#/components/schemas/{name}"}


def _as_json(schema: Schema) -> Schema:
    return {"application/json": {"schema": schema}}
