"""Validation as an API server does it: KubeRay's and KServe's kinds by their definitions (structure, unknown fields,
CEL), the others by Kubernetes' own schemas."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import celpy
import jsonschema
import kubernetes_validate
import yaml

from tests.kube.render import Document, Finding

OLDEST_KUBERNETES = "1.30"

OBJECT_META: dict[str, Any] = {
    "type": "object",
    "additionalProperties": False,
    "required": ["name"],
    "properties": {
        "name": {"type": "string"},
        "namespace": {"type": "string"},
        "labels": {"type": "object", "additionalProperties": {"type": "string"}},
        "annotations": {"type": "object", "additionalProperties": {"type": "string"}},
    },
}


class Definitions:
    """The custom resource definitions in folders."""

    def __init__(self, *folders: Path) -> None:
        self._schemas: dict[tuple[str, str], dict[str, Any]] = {}
        for file in (file for folder in folders for file in sorted(folder.glob("*.yaml"))):
            definition = yaml.load(file.read_text(), Loader=yaml.CSafeLoader)["spec"]
            for version in definition["versions"]:
                api_version = f"{definition['group']}/{version['name']}"
                self._schemas[api_version, definition["names"]["kind"]] = version["schema"]["openAPIV3Schema"]
        self._validators: dict[tuple[str, str], jsonschema.Draft202012Validator] = {}

    def check(self, document: Document) -> list[Finding]:
        """Everything that the API server would refuse in a document."""
        key = (document.body["apiVersion"], document.kind)
        if key in self._schemas:
            return [*self._structure(document, key), *_cel(document, self._schemas[key])]
        return _core(document)

    def _structure(self, document: Document, key: tuple[str, str]) -> Iterator[Finding]:
        if key not in self._validators:
            schema = _closed(self._schemas[key])
            schema["properties"]["metadata"] = OBJECT_META
            self._validators[key] = jsonschema.Draft202012Validator(schema)
        for error in self._validators[key].iter_errors(document.body):
            yield from _explained(document, error)


def _core(document: Document) -> list[Finding]:
    error = _core_refusal(json.dumps(document.body))
    if isinstance(error, kubernetes_validate.ValidationError):
        return list(_explained(document, error))
    return [Finding(document, "kind", error.message)] if error else []


@cache
def _core_refusal(body: str) -> Any:
    """Reads the schemas anew for each object, and variants of an overlay have most of theirs in common."""
    try:
        kubernetes_validate.validate(json.loads(body), OLDEST_KUBERNETES, strict=True)
    except (kubernetes_validate.ValidationError, kubernetes_validate.SchemaNotFoundError) as error:
        return error
    return None


def _explained(document: Document, error: jsonschema.ValidationError) -> Iterator[Finding]:
    if error.validator != "additionalProperties":
        yield Finding(document, _dotted(error.absolute_path), error.message)
        return
    for name in sorted(set(error.instance) - set(error.schema.get("properties", {}))):
        yield Finding(document, _dotted([*error.absolute_path, name]), "there is no such field")


def _closed(schema: dict[str, Any]) -> dict[str, Any]:
    """A structural schema as a JSON schema that refuses the fields which an API server would prune."""
    closed = {key: value for key, value in schema.items() if not key.startswith("x-kubernetes-")}
    closed.pop("format", None)
    if schema.get("x-kubernetes-int-or-string"):
        closed["type"] = ["integer", "string"]
    if schema.get("nullable") and "type" in closed:
        closed["type"] = [closed["type"], "null"]
    if "properties" in schema:
        closed["properties"] = {name: _closed(inner) for name, inner in schema["properties"].items()}
    if isinstance(schema.get("items"), dict):
        closed["items"] = _closed(schema["items"])
    if isinstance(schema.get("additionalProperties"), dict):
        closed["additionalProperties"] = _closed(schema["additionalProperties"])
    elif schema.get("type") == "object" and not schema.get("x-kubernetes-preserve-unknown-fields"):
        closed["additionalProperties"] = False
    return closed


def _cel(document: Document, schema: dict[str, Any]) -> Iterator[Finding]:
    for path, inner, value in _walk((), schema, document.body):
        for validation in inner.get("x-kubernetes-validations", ()):
            if "oldSelf" in validation["rule"]:  # a transition rule: not evaluated when an object is created
                continue
            if not _program(validation["rule"]).evaluate({"self": celpy.json_to_cel(value)}):
                yield Finding(document, _dotted(path), validation["message"])


def _walk(path: tuple[Any, ...], schema: dict[str, Any], value: Any) -> Iterator[tuple[Any, dict[str, Any], Any]]:
    """Every value that is there, with its path and its schema."""
    yield path, schema, value
    if isinstance(value, dict):
        for name, inner in value.items():
            below = schema.get("properties", {}).get(name) or schema.get("additionalProperties")
            if isinstance(below, dict):
                yield from _walk((*path, name), below, inner)
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from _walk((*path, index), schema.get("items", {}), inner)


@lru_cache
def _program(rule: str) -> celpy.Runner:
    environment = celpy.Environment()
    return environment.program(environment.compile(rule))


def _dotted(path: Any) -> str:
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path).lstrip(".") or "(root)"
