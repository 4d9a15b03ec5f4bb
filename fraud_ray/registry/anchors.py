"""The audit record held against the registry, which keeps its newest number and hash: so a cut at its end shows too."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from mlflow.entities import Run as MlflowRun

from fraud_ray.errors import SettingsError
from fraud_ray.redaction import without_passwords
from fraud_ray.registry import audit
from fraud_ray.registry.audit import Anchor, Event, Fault, Record
from fraud_ray.registry.tracking import PARENT_TAG, RUN_TAG, TRIAL_TAG, TrackedRun, Tracking, every, unless_gone
from fraud_ray.registry.versions import CHALLENGER, CHAMPION, RegisteredModel, list_versions, registered_model
from fraud_ray.storage import Storage

ANCHOR_TAG, ANNOUNCED_TAG = "fraud_ray.audit.", "fraud_ray.announced."
MOVES: tuple[Event, ...] = ("register", "promote", "rollback")


@dataclass(frozen=True)
class Registry:
    """What is told of records, and asked of them: a run in MLflow, or else the registered model.

    A record is announced before it is written, and anchored after it, so what is anchored never says more than is
    written, and what is written was never unknown.
    """

    tracking: Tracking
    storage: Storage
    run: TrackedRun | None = None

    def knows(self, record: Record) -> bool:
        """Whether the record, or a later one, is anchored or announced, anywhere in the store."""
        return self.unknown_since(record) is None

    def unknown_since(self, newest: Record) -> int | None:
        """The first of the records, up to the newest, that is not, nor a later one, known here; None where all are."""
        model = registered_model(self.tracking)
        if model and self._told_up_to(newest, [model.tags]) == newest.number:
            return None
        told = self._told_up_to(newest, [tags for _, tags in _tags(self.tracking)[0]])
        return None if told == newest.number else told + 1

    def announce(self, record: Record) -> None:
        """Tells of a record that is written next."""
        key, value = f"{ANNOUNCED_TAG}{record.chain}.{record.sha256[:12]}", _told(self.storage, record)
        if self.run:
            self.run.tag(key, value)
        else:
            with self.tracking.reported():
                self.tracking.client.set_registered_model_tag(self.tracking.registry.model_name, key, value)

    def _told_up_to(self, newest: Record, places: Iterable[Mapping[str, str]]) -> int:
        """The number of the last record that tags name as it is, up to the newest; 0 where they name none."""
        found = [a for tags in places for p in (ANCHOR_TAG, ANNOUNCED_TAG) for a in _anchors(tags, prefix=p)]
        of_chain = sorted((a for a in found if a.chain == newest.chain), key=lambda a: a.number, reverse=True)
        told = next((a.number for a in of_chain if audit.confirms(self.storage, a)), 0)
        return min(told, newest.number)


def require_own(tracking: Tracking, storage: Storage) -> None:
    """Refuses to change a registry whose audit record lies in another storage: there would be two, and neither whole.

    A storage is known by its chain, which is made with its first record, and of which the registered model has a tag.
    Raises SettingsError; not for a model that has no record yet.
    """
    model = registered_model(tracking)
    told, newest = _anchors(model.tags) if model else [], audit.newest(storage)
    if model and told and (newest is None or newest.chain not in {anchor.chain for anchor in told}):
        places = ", ".join(dict.fromkeys(anchor.root for anchor in told))
        raise SettingsError(
            f"{model.name}, at {without_passwords(tracking.uri)}, keeps its audit record in the storage {places}, and "
            f"the one here, {storage.root}, has {'another' if newest else 'none'}: what is changed from here, that "
            "record would not know. Name that storage with storage.root, or, where it is a cluster's, give the same "
            "command with --to kuberay (for a run: fraud-ray submit)"
        )


def anchor(tracking: Tracking, storage: Storage) -> None:
    """Tags the registered model, if there is one, with the newest record's number and hash.

    A tag that the record contradicts stays as it is: it is what `verify` finds the fault by. So does one of which the
    registry was not told before the newest record was written.
    """
    registry = Registry(tracking, storage)
    while (model := registered_model(tracking)) and (newest := audit.newest(storage)):
        told = [anchor for anchor in _anchors(model.tags) if anchor.chain == newest.chain]
        if not all(audit.confirms(storage, anchor) for anchor in told) or not registry.knows(newest):
            return
        with tracking.reported():
            tracking.client.set_registered_model_tag(model.name, _key(newest), _told(storage, newest))
            for tag in _settled(model.tags, newest):
                with unless_gone():
                    tracking.client.delete_registered_model_tag(model.name, tag)
        # Another writer may have tagged a newer record meanwhile, whose tag this one would have taken back.
        latest = audit.newest(storage)
        if latest and latest.number == newest.number:
            return


def anchor_in_run(run: TrackedRun, storage: Storage, record: Record) -> None:
    """Tags the run in MLflow with its record's number and hash."""
    run.tag(_key(record), _told(storage, record))
    with run.tracking.reported():
        for tag in _settled(run.tracking.client.get_run(run.id).data.tags, record):
            with unless_gone():
                run.tracking.client.delete_tag(run.id, tag)


def verify(tracking: Tracking, storage: Storage) -> list[Fault]:
    """Every fault of the audit record, aliases that are not where its last move put them, and what is there twice."""
    model = registered_model(tracking)
    told, runs = _tags(tracking)
    with tracking.reported():
        trials = tracking.runs(f"tags.`{TRIAL_TAG}` != ''")
    anchors = [anchor for where, tags in told for anchor in _anchors(tags, where)]
    announced = [anchor for where, tags in told for anchor in _anchors(tags, where, ANNOUNCED_TAG)]
    faults = audit.verify(storage, anchors, announced, without_passwords(tracking.uri))
    if model and all(fault.what == "not anchored" for fault in faults):
        faults += _unrecorded(model, storage, {fault.number for fault in faults})
    twins = [
        *_twins("MLflow run", ((run.data.tags[RUN_TAG], run.info.run_id) for run in runs)),
        *_twins("MLflow run of a trial", ((_trial(run), run.info.run_id) for run in trials)),
        *_twins("version", ((one.run, f"version {one.version}") for one in list_versions(tracking) if one.run)),
    ]
    return [*faults, *twins]


def _tags(tracking: Tracking) -> tuple[list[tuple[str, Mapping[str, str]]], list[MlflowRun]]:
    """The tags of all registered models, and of the pipeline runs of all experiments; and our experiment's runs.

    A storage may be that of several models and experiments.
    """
    client, condition = tracking.client, f"tags.`{RUN_TAG}` != ''"
    with tracking.reported():
        ids = [found.experiment_id for found in every(lambda token: client.search_experiments(page_token=token))]
        runs = list(every(lambda token: client.search_runs(ids, condition, page_token=token)))
        models = list(every(lambda token: client.search_registered_models(page_token=token)))
    told = [(f"the tag on MLflow run {run.data.tags[RUN_TAG]}", run.data.tags) for run in runs]
    told += [(f"the tag on registered model {model.name}", model.tags) for model in models]
    return told, [run for run in runs if run.info.experiment_id == tracking.experiment_id]


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


def _unrecorded(model: RegisteredModel, storage: Storage, cut_short: Collection[int]) -> list[Fault]:
    """Aliases that are not where the last move put them, unless its record is one of those cut short."""
    last = audit.last(storage, model.name, *MOVES)
    if last is None or last.number in cut_short:
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


def _key(record: Record) -> str:
    return ANCHOR_TAG + record.chain


def _told(storage: Storage, record: Record) -> str:
    return json.dumps({"record": record.number, "sha256": record.sha256, "storage": without_passwords(storage.root)})


def _anchors(tags: Mapping[str, str], where: str = "", prefix: str = ANCHOR_TAG) -> list[Anchor]:
    told = [
        (key.removeprefix(prefix).partition(".")[0], json.loads(tags[key])) for key in tags if key.startswith(prefix)
    ]
    return [Anchor(chain, value["record"], value["sha256"], value["storage"], where) for chain, value in told]


def _settled(tags: Mapping[str, str], record: Record) -> list[str]:
    """The announcements of a chain's records up to one that is anchored."""
    keys = (key for key in tags if key.startswith(f"{ANNOUNCED_TAG}{record.chain}."))
    return [key for key in keys if json.loads(tags[key])["record"] <= record.number]
