"""The life of a model version: its run, its registration, promotion and rollback, each in the audit record.

A promotion or rollback is written down before it is made. One that is cut short in between is completed by the next,
which the tag `fraud_ray.champions` makes known: it names the last move that was made, and the former champions.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from fraud_ray.decision.comparison import Comparison
from fraud_ray.errors import SettingsError
from fraud_ray.redaction import without_passwords
from fraud_ray.registry import audit
from fraud_ray.registry.anchors import Registry, anchor, anchor_in_run, require_own
from fraud_ray.registry.audit import Record
from fraud_ray.registry.tracking import TrackedRun, Tracking, unless_gone
from fraud_ray.registry.versions import (
    CHALLENGER,
    CHAMPION,
    RegisteredModel,
    RegisteredVersion,
    existing_model,
    list_versions,
    registered_model,
)
from fraud_ray.runs import Outcome, read_record
from fraud_ray.settings import Settings, settings_hash
from fraud_ray.storage import Storage

CHAMPIONS_TAG = "fraud_ray.champions"

_STARTED = ("created", "user", "host", "command", "git", "versions")


@dataclass(frozen=True)
class Move:
    """A change of champion.

    version: the champion now; replaced: the one before. record: the number of its audit record; None where the version
    was champion already, so that nothing moved. completed: whether an earlier command, cut short, had begun it.
    """

    model: str
    version: int
    replaced: int | None
    record: int | None
    completed: bool = False


# The version that is to be champion and the former champions then, oldest first; None: nothing is to move.
Choice = tuple[int, list[int]] | None


def record_run(
    run: TrackedRun, storage: Storage, settings: Settings, data: Mapping[str, Any], epochs: int, outcome: Outcome
) -> None:
    """Writes the record of a run that came to its outcome, unless that was done.

    data: what it was trained on, as JSON types; epochs: of the final fit.
    """
    assert outcome.evaluation is not None, "a run that came to its outcome has figures"
    assert outcome.gate is not None, "and a decision"
    started = read_record(storage, outcome.name)
    facts = {
        "run": outcome.name,
        "status": outcome.status,
        "reason": outcome.gate["reason"],
        "model": {key: outcome.version[key] for key in ("name", "version")} if outcome.version else None,
        "started": {key: started[key] for key in _STARTED},
        "data": dict(data),
        "settings_hash": settings_hash(settings),
        "settings": settings.recorded(),
        "seeds": {key: value for key, value in settings.identity().items() if key.endswith(".seed")},
        "hyperparameters": outcome.hyperparameters,
        "epochs": epochs,
        "threshold": outcome.evaluation["threshold"],
        "metrics": outcome.evaluation["metrics"],
        "checks": outcome.gate["checks"],
        "comparison": outcome.comparison,
        "bundle": bundle_hashes(storage, outcome.name),
        "mlflow_run": run.id,
    }
    record = audit.find(storage, "run", outcome.name) or audit.append(
        storage, "run", lambda: facts, Registry(run.tracking, storage, run)
    )
    assert record is not None, "there are facts"
    anchor_in_run(run, storage, record)
    anchor(run.tracking, storage)


def record_registration(run: TrackedRun, storage: Storage, version: RegisteredVersion) -> None:
    """Writes the record of a version that was registered, with the hashes of its files, unless that was done."""

    def facts() -> dict[str, Any]:
        told = _facts_of_move(run.tracking, version, existing_model(run.tracking).aliases, replaced=None)
        return {**told, "bundle": bundle_hashes(storage, run.name)}

    if audit.find(storage, "register", run.name) is None:
        audit.append(storage, "register", facts, Registry(run.tracking, storage, run))
    anchor(run.tracking, storage)


def bundle_hashes(storage: Storage, run: str) -> dict[str, str]:
    """SHA-256, in hexadecimal, of each file of a run's bundle."""
    contents = {Path(key).name: storage.get(key) for key in storage.keys(f"runs/{run}/bundle")}
    return {name: hashlib.sha256(content).hexdigest() for name, content in contents.items() if content is not None}


def promote(tracking: Tracking, storage: Storage, version: int | None = None, reason: str = "") -> Move:
    """Makes a version the champion, by default the challenger; the former champion is remembered for `rollback`.

    reason: why, for the record.

    Raises SettingsError for a version that does not exist, or where there is no challenger.
    """

    def choose(model: RegisteredModel, former: list[int]) -> Choice:
        chosen = model.aliases.get(CHALLENGER) if version is None else version
        champion = model.aliases.get(CHAMPION)
        if chosen is None:
            raise SettingsError(
                f"no version of {model.name} is {CHALLENGER}: name the one to promote; {_there(tracking, model)}"
            )
        if chosen == champion:
            return None
        return chosen, former if champion is None else [*former, champion]

    return _move(tracking, storage, "promote", choose, version, reason)


def promote_if_better(
    run: TrackedRun, storage: Storage, version: RegisteredVersion, comparison: Comparison | None
) -> RegisteredVersion:
    """The version as it is then: champion, if the comparison with the champion says so."""
    if comparison is None or not comparison.is_better:
        return version
    promote(run.tracking, storage, version.version, comparison.message)
    return replace(version, alias=CHAMPION)


def rollback(tracking: Tracking, storage: Storage, reason: str = "") -> Move:
    """Makes the version champion again that was it before the last promotion; repeated, the one before that.

    reason: why, for the record.

    Versions that were deleted since are passed over. Raises SettingsError where there is no former champion.
    """

    def choose(model: RegisteredModel, former: list[int]) -> Choice:
        there = {version.version for version in list_versions(tracking)} - {model.aliases.get(CHAMPION)}
        left = [version for version in former if version in there]
        if not left:
            raise SettingsError(
                f"{model.name} has no former champion to go back to; `fraud-ray models promote VERSION` makes any "
                f"version champion; {_there(tracking, model)}"
            )
        return left[-1], left[:-1]

    return _move(tracking, storage, "rollback", choose, reason=reason)


def _move(
    tracking: Tracking,
    storage: Storage,
    event: Literal["promote", "rollback"],
    choose: Callable[[RegisteredModel, list[int]], Choice],
    version: int | None = None,
    reason: str = "",
) -> Move:
    require_own(tracking, storage.required())
    cut_short = _complete(tracking, storage)
    if cut_short and cut_short.event == event and version in (None, cut_short.version):
        return _told(cut_short, completed=True)

    def facts() -> dict[str, Any] | None:
        _complete(tracking, storage)  # by now another command may have been cut short
        model = existing_model(tracking)
        choice = choose(model, _champions(model).get("former", []))
        if choice is None:
            return None
        chosen, former = choice
        described = next((v for v in list_versions(tracking) if v.version == chosen), None)
        if described is None:
            raise SettingsError(f"{model.name} has no version {chosen}; {_there(tracking, model)}")
        kept = {alias: holder for alias, holder in model.aliases.items() if (alias, holder) != (CHALLENGER, chosen)}
        told = _facts_of_move(tracking, described, {**kept, CHAMPION: chosen}, model.aliases.get(CHAMPION))
        return {**told, "former": former, **({"reason": reason} if reason else {})}

    record = audit.append(storage, event, facts, Registry(tracking, storage))
    if record is None:
        model = existing_model(tracking)
        return Move(model.name, model.aliases[CHAMPION], None, None)
    _make(tracking, storage, record)
    return _told(record)


def _complete(tracking: Tracking, storage: Storage) -> Record | None:
    """Makes the last move if it was only written down; returns its record if so."""
    model = registered_model(tracking)
    last = audit.last(storage, model.name, "promote", "rollback") if model else None
    if model is None or last is None:
        return None
    if last.registry != without_passwords(tracking.uri):  # a move in another registry
        return None
    made = _champions(model)
    # A move of another chain, and so of another storage, came later.
    if made and (made["chain"] != last.chain or made["record"] >= last.number):
        return None
    _make(tracking, storage, last)
    return last


def _make(tracking: Tracking, storage: Storage, record: Record) -> None:
    """Makes a move that is written down; may be repeated. The tag comes last: it says that all is done."""
    client, name, version = tracking.client, tracking.registry.model_name, record.version
    assert version is not None, "a move is about a version"
    made = {"chain": record.chain, "record": record.number, "former": record.facts["former"]}
    with tracking.reported():
        client.set_registered_model_alias(name, CHAMPION, str(version))
        model = existing_model(tracking)
        if model.aliases.get(CHALLENGER) == version:
            with unless_gone():
                client.delete_registered_model_alias(name, CHALLENGER)
        anchor(tracking, storage)
        client.set_registered_model_tag(name, CHAMPIONS_TAG, json.dumps(made))
    last = audit.last(storage, model.name, "promote", "rollback")
    if last and last.number > record.number:  # made by another command meanwhile, and perhaps undone by this one
        _make(tracking, storage, last)


def _facts_of_move(
    tracking: Tracking, version: RegisteredVersion, aliases: dict[str, int], replaced: int | None
) -> dict[str, Any]:
    """What a record says of a move. aliases: as they are after it; replaced: the champion before it."""
    return {
        "run": version.run,
        "model": {"name": version.name, "version": version.version},
        "registry": without_passwords(tracking.uri),
        "aliases": aliases,
        "replaced": replaced,
    }


def _told(record: Record, completed: bool = False) -> Move:
    assert record.model is not None and record.version is not None, "a move is about a version"
    return Move(record.model, record.version, record.facts["replaced"], record.number, completed)


def _champions(model: RegisteredModel) -> dict[str, Any]:
    champions: dict[str, Any] = json.loads(model.tags.get(CHAMPIONS_TAG, "{}"))
    return champions


def _there(tracking: Tracking, model: RegisteredModel) -> str:
    return "there is " + ", ".join(model.shown(version.version) for version in reversed(list_versions(tracking)))
