"""Values that travel from stage to stage, and are kept as JSON on their way."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, Self

from pydantic import TypeAdapter


class Value:
    """A dataclass whose fields JSON can hold, tuples and dataclasses among them."""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)  # type: ignore[call-overload]

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> Self:
        """What `to_json` gave, read back; keys that are no field are passed over."""
        return TypeAdapter(cls).validate_python(stored)
