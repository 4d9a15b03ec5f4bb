"""What is kept below windows/ in the storage, and what of it can go.

A model goes on from its state, and from those that follow it, for as long as it scores. The partitions beside a state
are read by the run, or the scoring, that they were made for: whoever wants them later computes the same again.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import ClassVar

from fraud_ray.data.cache import Pruned, age_of
from fraud_ray.model.scorer import INFO
from fraud_ray.runs import read_outcome, read_record, run_names, runs_at_work
from fraud_ray.settings import parse_settings
from fraud_ray.storage import Storage, Stored
from fraud_ray.windows.definition import Definition
from fraud_ray.windows.state import LATEST, ROOT, history_key, latest_after, load_state, manifest_key


@dataclass(frozen=True)
class Kept:
    """What lies below windows/<key>/, or some of it. made: when the newest of all was written."""

    key: str
    made: datetime
    parts: tuple[Stored, ...]
    kind: ClassVar = "windows"

    @property
    def age(self) -> timedelta:
        return age_of(self.made)

    @property
    def size(self) -> int:
        """In bytes."""
        return sum(part.size for part in self.parts)


def list_kept(storage: Storage) -> list[Kept]:
    """All of it, oldest first."""
    found: dict[str, list[Stored]] = defaultdict(list)
    for stored in storage.listed(ROOT):
        if not stored.key.startswith(f"{LATEST}/"):
            found[stored.key.split("/")[1]].append(stored)
    kept = [Kept(key, max(part.changed for part in parts), tuple(parts)) for key, parts in found.items()]
    return sorted(kept, key=lambda one: one.made)


def prune(
    storage: Storage, max_staleness: timedelta, at_work: Callable[[Storage], Iterable[str]] = runs_at_work
) -> Pruned[Kept]:
    """Removes what is of this age or more; of a state that is needed only the partitions beside it.

    Needed are the state of a run's model, unless the gate rejected it, the one that scoring by it goes on from, and the
    latest of all windows. What a run at work reads stays as it is; at_work: gives the names of those.
    """
    readers = dict(_read_by(storage, at_work(storage)))
    old = [one for one in list_kept(storage) if one.age >= max_staleness]
    idle = [one for one in old if one.key not in readers]
    needed = set(_needed(storage)) if idle else set()
    parts = {one.key: tuple(p for p in one.parts if one.key not in needed or not _is_of_state(p)) for one in idle}
    gone = [replace(one, parts=parts[one.key]) for one in idle if parts[one.key]]
    lost = {one.key for one in gone} - needed
    markers = [marker for marker in storage.keys(LATEST) if marker.rpartition("-")[2] in lost]
    manifests = {manifest_key(key) for key in lost}
    found = [part.key for one in gone for part in one.parts]
    # What makes a state known goes before what it consists of.
    storage.delete(markers)
    storage.delete([key for key in found if key in manifests])
    storage.delete([key for key in found if key not in manifests])
    return Pruned(tuple(gone), len(markers) + len(found), tuple(readers[one.key] for one in old if one.key in readers))


def _is_of_state(stored: Stored) -> bool:
    return stored.key.split("/")[2] in ("state", "manifest.json")


def _read_by(storage: Storage, runs: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Key of the windows of each of these runs that declares any, and the run."""
    for name in runs:
        record = read_record(storage, name)
        definition = Definition.of(parse_settings(record["settings"], storage.path(f"runs/{name}/run.json")))
        if definition is not None:
            yield history_key(record["fingerprint"], definition), name


def _needed(storage: Storage) -> Iterator[str]:
    """Keys of the states that scoring may go on from."""
    yield from {key.rpartition("/")[0]: key.rpartition("-")[2] for key in storage.keys(LATEST)}.values()
    for run in run_names(storage):
        outcome = read_outcome(storage, run)
        if outcome is None or outcome.status != "rejected":
            model = storage.get_json(f"runs/{run}/bundle/{INFO}")
            windows = model and model["origin"].get("windows")
            if windows and storage.exists(manifest_key(windows["state"])):
                yield windows["state"]
                yield latest_after(storage, load_state(storage, windows["state"])).key
