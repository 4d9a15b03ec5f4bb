"""The reference of all settings, made from the fields themselves."""

from __future__ import annotations

import json
import types
import typing
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt, Le, Lt
from pydantic import (
    BaseModel,
    ByteSize,
    TypeAdapter,
)

from fraud_ray.settings.base import nested_model
from fraud_ray.settings.whole import Settings


@dataclass(frozen=True)
class Entry:
    """One line of the settings reference."""

    key: str
    type: str
    default: str
    meaning: str


def reference(model: type[BaseModel] = Settings, prefix: str = "") -> Iterator[Entry]:
    """Every setting with its type, default and meaning, in the order of the file."""
    for name, field in model.model_fields.items():
        key = f"{prefix}{name}"
        nested = nested_model(field.annotation)
        inner = nested if isinstance(nested, type) and issubclass(nested, BaseModel) else None
        if inner is None or field.description:
            default = "required" if field.is_required() else _shown(field.get_default())
            meaning = " ".join((field.description or "").split())
            yield Entry(key, _type_name(field.annotation, field.metadata), default, meaning)
        if inner is not None and typing.get_origin(field.annotation) is dict and name == "columns":
            yield from reference(inner, f"{key}.<name>.")
        elif inner is not None and inner in _types_of(field.annotation):
            yield from reference(inner, f"{key}.")


def _types_of(annotation: Any) -> tuple[Any, ...]:
    """What a value may be, where that is a model or null."""
    arguments = typing.get_args(annotation)
    return arguments if type(None) in arguments else (annotation,)


def _shown(value: Any) -> str:
    if isinstance(value, ByteSize):
        return value.human_readable()
    if isinstance(value, str):
        return value if len(value) > 1 else json.dumps(value)  # a comma alone is no YAML
    if isinstance(value, timedelta):
        return TypeAdapter(timedelta).dump_python(value, mode="json")
    return json.dumps(value, default=str)


_TYPE_NAMES = {
    type(None): "null",
    ByteSize: "size",
    str: "text",
    bool: "boolean",
    int: "integer",
    float: "number",
    date: "date",
    datetime: "time",
    timedelta: "duration",
}


_BOUNDS = {Gt: (">", "gt"), Ge: (">=", "ge"), Lt: ("<", "lt"), Le: ("<=", "le")}


def _type_name(annotation: Any, constraints: typing.Sequence[Any] = ()) -> str:
    """A type in words, with its bounds: `number > 0`, `list of integer > 0`, `time, entity or stratified`."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Annotated:
        return _type_name(arguments[0], arguments[1:])
    if origin is Literal:
        return _in_words([str(value) for value in arguments])
    if origin in (typing.Union, types.UnionType):
        return _in_words(list(dict.fromkeys(_type_name(branch) for branch in arguments)))
    if origin is tuple:
        return f"list of {_type_name(arguments[0])}"
    if origin is dict or (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
        return "mapping"
    given = [bound for constraint in constraints for bound in (constraint, *getattr(constraint, "metadata", ()))]
    bounds = [f"{_BOUNDS[type(b)][0]} {getattr(b, _BOUNDS[type(b)][1]):g}" for b in given if type(b) in _BOUNDS]
    return " ".join([_TYPE_NAMES.get(annotation, "any"), " and ".join(bounds)]).strip()


def _in_words(names: list[str]) -> str:
    return " or ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)
