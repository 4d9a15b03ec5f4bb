"""The audit record held against the registry, which keeps its newest number and hash: so a cut at its end shows too."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping

from mlflow.entities import Run as MlflowRun

from fraud_ray.redaction import without_passwords
from fraud_ray.registry import audit
from fraud_ray.registry.audit import Anchor, Event, Fault, Record
from fraud_ray.registry.tracking import PARENT_TAG, RUN_TAG, TRIAL_TAG, TrackedRun, Tracking
from fraud_ray.registry.versions import CHALLENGER, CHAMPION, RegisteredModel, list_versions, registered_model
from fraud_ray.storage import Storage

ANCHOR_TAG = "fraud_ray.audit."
MOVES: tuple[Event, ...] = ("register", "promote", "rollback")


def anchor(tracking: Tracking, storage: Storage) -> None:
    """Tags the registered model, if there is one, with the newest record's number and hash.

    A tag that the record contradicts stays as it is: it is what `verify` finds the fault by.
    """
    while (model := registered_model(tracking)) and (newest := audit.newest(storage)):
        told = [anchor for anchor in _anchors(model.tags) if anchor.chain == newest.chain]
        if not all(audit.confirms(storage, anchor) for anchor in told):
            return
        with tracking.reported():
            tracking.client.set_registered_model_tag(model.name, *_tag(storage, newest))
        # Another writer may have tagged a newer record meanwhile, whose tag this one would have taken back.
        latest = audit.newest(storage)
        if latest and latest.number == newest.number:
            return


def anchor_in_run(run: TrackedRun, storage: Storage, record: Record) -> None:
    """Tags the run in MLflow with its record's number and hash."""
    run.tag(*_tag(storage, record))


def verify(tracking: Tracking, storage: Storage) -> list[Fault]:
    """Every fault of the audit record, aliases that are not where its last move put them, and what is there twice."""
    model = registered_model(tracking)
    with tracking.reported():
        runs = tracking.runs(f"tags.`{RUN_TAG}` != ''")
        trials = tracking.runs(f"tags.`{TRIAL_TAG}` != ''")
    told = [(f"the tag on MLflow run {run.data.tags[RUN_TAG]}", run.data.tags) for run in runs]
    told += [(f"the tag on registered model {model.name}", model.tags)] if model else []
    faults = audit.verify(storage, [anchor for where, tags in told for anchor in _anchors(tags, where)])
    faults = faults or (_unrecorded(model, storage) if model else [])
    twins = [
        *_twins("MLflow run", ((run.data.tags[RUN_TAG], run.info.run_id) for run in runs)),
        *_twins("MLflow run of a trial", ((_trial(run), run.info.run_id) for run in trials)),
        *_twins("version", ((one.run, f"version {one.version}") for one in list_versions(tracking) if one.run)),
    ]
    return [*faults, *twins]


def _trial(run: MlflowRun) -> str:
    return f"{run.data.tags[TRIAL_TAG]} of {run.data.tags.get(PARENT_TAG)}"


def _twins(what: str, found: Iterable[tuple[str, str]]) -> list[Fault]:
    """Those that belong to the same run or trial: each of them and what it is known by."""
    by_owner: dict[str, list[str]] = {}
    for owner, known_as in found:
        by_owner.setdefault(owner, []).append(known_as)
    return [
        Fault(
            0,
            "twice",
            f"{what} of {owner}: there are {', '.join(sorted(those))}. An answer of MLflow was lost; "
            "delete those in MLflow that hold nothing",
        )
        for owner, those in by_owner.items()
        if len(those) > 1
    ]


def _unrecorded(model: RegisteredModel, storage: Storage) -> list[Fault]:
    last = audit.last(storage, model.name, *MOVES)
    if last is None:
        return []
    faults = []
    for alias in (CHAMPION, CHALLENGER):
        held, recorded = (_shown(aliases.get(alias)) for aliases in (model.aliases, last.facts["aliases"]))
        if held != recorded:
            reason = (
                f"{alias} of {model.name} is {held}, and the last record makes it {recorded}: it was moved past "
                "fraud-ray, or a command was cut short, which the same command completes"
            )
            faults.append(Fault(last.number, "unrecorded", reason))
    return faults


def _shown(version: int | None) -> str:
    return "no version" if version is None else f"version {version}"


def _tag(storage: Storage, record: Record) -> tuple[str, str]:
    value = {"record": record.number, "sha256": record.sha256, "storage": without_passwords(storage.root)}
    return ANCHOR_TAG + record.chain, json.dumps(value)


def _anchors(tags: Mapping[str, str], where: str = "") -> list[Anchor]:
    told = {key.removeprefix(ANCHOR_TAG): json.loads(tags[key]) for key in tags if key.startswith(ANCHOR_TAG)}
    return [Anchor(chain, value["record"], value["sha256"], value["storage"], where) for chain, value in told.items()]
