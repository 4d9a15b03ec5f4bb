"""What is known of each version of the registered model: who made it, of what, and who let it go live."""

from __future__ import annotations

from dataclasses import dataclass

from fraud_ray.errors import SettingsError
from fraud_ray.registry import audit
from fraud_ray.registry.audit import Record
from fraud_ray.registry.tracking import Tracking
from fraud_ray.registry.versions import RegisteredVersion, list_versions, registered_model
from fraud_ray.storage import Storage


@dataclass(frozen=True)
class VersionHistory:
    """A version, the aliases that it holds, and what the audit record says of it.

    origin: the record of the run that made it; moves: those that registered it, made it champion or took that away, in
    order. Both are empty for a version from before the audit record.
    """

    version: RegisteredVersion
    aliases: tuple[str, ...]
    origin: Record | None
    moves: tuple[Record, ...]

    def __str__(self) -> str:
        held = f" ({', '.join(self.aliases)})" if self.aliases else ""
        return f"{self.version.version}{held}"


def history(tracking: Tracking, storage: Storage) -> list[VersionHistory]:
    """Every version with its history, the newest first."""
    model = registered_model(tracking)
    if model is None:
        return []
    about = [r for r in audit.read_all(storage) if r.model == model.name]

    def of(version: RegisteredVersion) -> VersionHistory:
        its = [r for r in about if version.version in (r.version, r.facts.get("replaced"))]
        origin = next((r for r in its if r.event == "run"), None)
        return VersionHistory(
            version, model.aliases_of(version.version), origin, tuple(r for r in its if r.event != "run")
        )

    return [of(version) for version in list_versions(tracking)]


def find_version(histories: list[VersionHistory], wanted: str) -> VersionHistory:
    """The version of this number or @alias; raises SettingsError that says which there are."""
    for one in histories:
        if wanted == str(one.version.version) or wanted in {f"@{alias}" for alias in one.aliases}:
            return one
    there = ", ".join(map(str, reversed(histories)))
    raise SettingsError(f"no version '{wanted}' is registered; there {f'are {there}' if there else 'is none yet'}")
