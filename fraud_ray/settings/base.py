"""What all settings share: immutable, unknown keys refused, each field described; and faults in words."""

from __future__ import annotations

import difflib
import re
import typing
from collections.abc import Callable
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ByteSize,
    ConfigDict,
    Discriminator,
    Field,
    PositiveFloat,
    TypeAdapter,
)

Share = Annotated[float, Field(gt=0, lt=1)]


Probability = Annotated[float, Field(ge=0, le=1)]


# A setting marked so may change between two starts of the same run: it cannot change the result.
NO_EFFECT: dict[str, Any] = {"affects_result": False}


def alternatives(branch_of: Callable[[Any], str | None], wanted: str) -> Discriminator:
    """Lets one branch of a union judge a value, so that a bad value is one fault; None: `wanted` is the fault's text.

    Branch tags begin with '<', which keeps them out of dotted keys.
    """
    return Discriminator(branch_of, custom_error_type="alternatives", custom_error_message=f"should be {wanted}")


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


class Frozen(BaseModel):
    """Base of all settings: immutable, unknown keys refused, each field described by the text below it."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False, validate_default=True
    )


def _memory_in_bytes(resources: Any) -> Any:
    if isinstance(resources, dict) and isinstance(resources.get("memory"), str):
        return {**resources, "memory": int(TypeAdapter(ByteSize).validate_python(resources["memory"]))}
    return resources


Resources = Annotated[dict[Literal["CPU", "GPU", "memory"], PositiveFloat], BeforeValidator(_memory_in_bytes)]


def fault_in_words(error: Any) -> str:
    """A fault in words for people who know YAML, not Python."""
    if error["type"] in {"model_type", "dict_type"}:
        return "should be a mapping"
    if error["type"] == "tuple_type":
        return "should be a list"
    return re.sub("^(Value error, |(Value|Input|Tuple) (?=should))| after validation", "", error["msg"])


def suggestion(name: str, known: typing.Iterable[str]) -> str:
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f"; did you mean '{near[0]}'?" if near else ""


def nested_model(annotation: Any) -> Any:
    """The settings model inside an annotation such as `dict[str, Model]` or `Model | None`, else the annotation."""
    for argument in typing.get_args(annotation):
        found = nested_model(argument)
        if isinstance(found, type) and issubclass(found, BaseModel):
            return found
    return annotation
