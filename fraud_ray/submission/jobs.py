"""Attempts at runs, whatever they run on: what is known of one, and when a submission makes a new one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal, Protocol

from fraud_ray.errors import RunDiffersError, ServerError, SettingsError
from fraud_ray.runs import differences
from fraud_ray.settings import parse_settings
from fraud_ray.submission.order import Order

State = Literal["pending", "running", "succeeded", "failed", "stopped"]
_STANDING = {"pending", "running", "succeeded"}
_CONTENDERS = 3


@dataclass(frozen=True)
class Attempt:
    """One job that `submit` made. settings: the run's, resolved, as JSON types."""

    name: str
    run: str
    number: int
    state: State
    created: datetime | None
    message: str
    settings: dict[str, Any]


class Jobs(Protocol):
    """Where jobs run. Every method raises ServerError where it does not answer or refuses."""

    def attempts(self) -> list[Attempt]:
        """All attempts at all runs, in the order of their creation."""
        ...

    def create(self, order: Order, number: int) -> bool:
        """Starts an attempt; False if somebody else has made the attempt of that number meanwhile."""
        ...

    def logs(self, attempt: Attempt, follow: bool) -> Iterator[str]:
        """What the run has printed, piece by piece; follow: until it ends."""
        ...

    def stop(self, attempt: Attempt) -> None:
        """Ends the attempt by SIGTERM, on which a run lets go of its lease; what it concluded is kept."""
        ...


def submit(jobs: Jobs, order: Order) -> tuple[Attempt, bool]:
    """The attempt that is under way or succeeded, else a new one; and whether it is new.

    Raises RunDiffersError if such an attempt has other settings.
    """
    for _ in range(_CONTENDERS):
        known = [attempt for attempt in jobs.attempts() if attempt.run == order.run]
        standing = next((attempt for attempt in reversed(known) if attempt.state in _STANDING), None)
        if standing:
            _require_same_settings(standing, order)
            return standing, False
        number = 1 + max((attempt.number for attempt in known), default=0)
        if jobs.create(order, number):
            return find(jobs, order.attempt_name(number)), True
    raise ServerError(f"attempts at run '{order.run}' are being made and ended by somebody else; look with jobs list")


def find(jobs: Jobs, name: str) -> Attempt:
    """The attempt of this name, or the newest attempt at the run of this name.

    Raises SettingsError that names the jobs there are.
    """
    known = jobs.attempts()
    found = [a for a in known if a.name == name] or [a for a in known if a.run == name]
    if not found:
        there = ", ".join(attempt.name for attempt in known) or "none yet"
        raise SettingsError(f"no job and no run '{name}'; there are: {there}")
    return max(found, key=lambda attempt: attempt.number)


def by_age(attempt: Attempt) -> tuple[datetime, int]:
    """Sorts attempts; one that has no time yet is the newest."""
    return attempt.created or datetime.max.replace(tzinfo=UTC), attempt.number


def _require_same_settings(standing: Attempt, order: Order) -> None:
    there = parse_settings(standing.settings, standing.name)
    changed = differences(there.identity(), order.settings.identity())
    if changed:
        lines = [f"  {key}: {old} there, {new} now" for key, (old, new) in changed.items()]
        raise RunDiffersError(
            "\n".join([f"run '{order.run}' is {standing.state} as job {standing.name}, and differs in", *lines])
            + f"\nGive this one another name with --name, or end that one first (fraud-ray jobs stop {standing.name})"
        )
