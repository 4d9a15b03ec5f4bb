"""How work tells a person how far it is, and of how much, without knowing who listens."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

# Called with what is done, what there is in total, and what it is at.
Update = Callable[[float, float, str], None]


class Stage(Protocol):
    """One stage's line."""

    def update(self, done: float, total: float, text: str = "") -> None:
        """How much of the stage is done, and what it is at."""

    def say(self, text: str) -> None:
        """What the finished stage's line says: counts, findings."""


class Progress(Protocol):
    """Where stages are announced."""

    def stage(self, name: str) -> AbstractContextManager[Stage]:
        """A stage for as long as the context lasts; an exception ends it as failed."""

    def note(self, text: str) -> None:
        """A line at once."""


class Quiet:
    """Tells nobody: for tests and notebooks that want silence."""

    @contextmanager
    def stage(self, name: str) -> Iterator[Stage]:
        yield self

    def note(self, text: str) -> None:
        return None

    def update(self, done: float, total: float, text: str = "") -> None:
        return None

    def say(self, text: str) -> None:
        return None


def counted(count: int, noun: str, plural: str = "") -> str:
    """A count with its noun, such as `1 row` and `1,200 rows`. plural: where it is not the noun and an s."""
    return f"{count:,} {noun if count == 1 else plural or f'{noun}s'}"
