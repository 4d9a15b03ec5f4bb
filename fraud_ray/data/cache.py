"""Prepared folds that are kept by what they were computed from: entries of the storage, below prepared/<key>/.

<writer>/...     the parts, below a name that nobody else writes to
manifest.json    kept once they are all there, which is what makes the entry visible; it names its writer and the hash
                 of every part

Of two runs that compute the same entry at once, the one that is done first has its manifest; the other takes that and
removes what it wrote. An entry that replaces another leaves the old parts to whoever still reads them.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cached_property, partial
from typing import Annotated, Any, ClassVar, Generic, TypeVar

from annotated_types import MinLen
from pydantic import BaseModel, NonNegativeInt, PositiveInt, TypeAdapter

from fraud_ray.data.folds import SIDES
from fraud_ray.data.rows import Part
from fraud_ray.data.tasks import map_tasks
from fraud_ray.progress import Update
from fraud_ray.runs import runs_at_work
from fraud_ray.storage import Storage

ROOT = "prepared"
# In a run's folder: what it reads.
_USES = "prepared.json"


class _Part(BaseModel):
    key: str
    rows: PositiveInt
    frauds: NonNegativeInt
    size: PositiveInt
    sha256: str


class _Fold(BaseModel):
    name: str
    span: str
    encoder: dict[str, Any]
    fit: Annotated[list[_Part], MinLen(1)]
    holdout: Annotated[list[_Part], MinLen(1)]


class _Value(BaseModel):
    folds: Annotated[list[_Fold], MinLen(1)]


class _Manifest(BaseModel):
    writer: str
    made: datetime
    value: _Value


_SHAPE = TypeAdapter(_Manifest)


@dataclass(frozen=True)
class Entry:
    """A complete entry. value: what its writer kept there, as JSON types: `folds`, each with the parts of its sides."""

    key: str
    writer: str
    made: datetime
    value: dict[str, Any]
    kind: ClassVar = "prepared"

    @cached_property
    def parts(self) -> tuple[Part, ...]:
        """All that was written below the writer's name."""
        return tuple(Part(**part) for fold in self.value["folds"] for side in SIDES for part in fold[side])

    @property
    def age(self) -> timedelta:
        return age_of(self.made)

    @property
    def size(self) -> int:
        """Bytes of its parts."""
        return sum(part.size for part in self.parts)

    @property
    def manifest(self) -> dict[str, Any]:
        """As it is kept."""
        return {"writer": self.writer, "made": self.made.isoformat(timespec="milliseconds"), "value": self.value}

    @classmethod
    def of(cls, key: str, manifest: Mapping[str, Any]) -> Entry:
        return cls(key, manifest["writer"], datetime.fromisoformat(manifest["made"]), manifest["value"])


@dataclass(frozen=True)
class Found:
    """What there is under a key. entry: one that may be used; else `reason` says why there is none.

    replaced: an entry that may not be used, and that a new one takes the place of.
    """

    entry: Entry | None
    reason: str = ""
    replaced: Entry | None = None


def find(storage: Storage, key: str, max_staleness: timedelta | None, update: Update) -> Found:
    """The entry under a key, if it is whole and young enough; every byte of it is read and hashed, on Ray.

    max_staleness: age from which on it is not used; None: it never grows too old. update: gets bytes read, and in all.
    """
    entry = read_entry(storage, key)
    if entry is None:
        damaged = f"warning: {storage.path(_manifest(key))} was damaged, so it was computed anew"
        return Found(None, damaged if storage.exists(_manifest(key)) else "")
    if max_staleness is not None and entry.age >= max_staleness:
        if not max_staleness:
            return Found(None, f"computed anew beside an entry {in_words(entry.age)} old", entry)
        limit = f"cache.max_staleness of {in_words(max_staleness)}"
        told = f"is {in_words(entry.age)} old, which is over the {limit}"
        if entry.made > datetime.now(UTC):
            told = f"is dated {entry.made:%Y-%m-%d %H:%M}, by a clock that was ahead"
        return Found(None, f"computed anew, as the entry {told}", entry)
    done = 0
    for position, damage in map_tasks(partial(_damage, storage=storage), entry.parts, [p.size for p in entry.parts]):
        if damage:
            return Found(None, f"warning: {damage}, so it was computed anew", entry)
        done += entry.parts[position].size
        update(done, entry.size, "check")
    return Found(entry)


def new_folder(key: str) -> tuple[str, str]:
    """A writer's name, and the folder below which nobody else writes."""
    writer = uuid.uuid4().hex[:12]
    return writer, f"{ROOT}/{key}/{writer}"


def publish(storage: Storage, key: str, writer: str, value: dict[str, Any], replaced: Entry | None) -> Entry:
    """Makes what a writer has put there the entry, or returns the one that somebody else made meanwhile.

    value: as `Entry` has it; replaced: as `Found` has it.
    """
    made = Entry(key, writer, datetime.now(UTC), value)
    kept = storage.keep(_manifest(key), made.manifest, replaced.manifest if replaced else None, _SHAPE)
    entry = Entry.of(key, kept)
    if entry.writer != writer:
        storage.delete([part.key for part in made.parts])
    return entry


def read_entry(storage: Storage, key: str) -> Entry | None:
    """The entry as its manifest describes it, unchecked; None where there is no manifest, or a damaged one."""
    manifest = storage.kept(_manifest(key), _SHAPE)
    return None if manifest is None else Entry.of(key, manifest)


def list_entries(storage: Storage) -> list[Entry]:
    """All entries, oldest first."""
    keys = {key.split("/")[1] for key in storage.keys(ROOT)}
    entries = (read_entry(storage, key) for key in keys)
    return sorted((entry for entry in entries if entry), key=lambda entry: entry.made)


def note_use(storage: Storage, run: str, key: str, writer: str) -> None:
    """Keeps `prune` from what a run reads for as long as the run is held."""
    storage.put_json(f"runs/{run}/{_USES}", {"key": key, "writer": writer})


def claim(storage: Storage, run: str, key: str, writer: str, is_new: bool, say: Callable[[str], object] = str) -> None:
    """`note_use`; and if the entry is new, removes what it replaced, which may be of no use to anybody now.

    say: is told where a run on another machine has to be watched for that.
    """
    note_use(storage, run, key, writer)
    if is_new:
        prune(storage, None, partial(runs_at_work, say=say), only=key, but=run)


Kept = TypeVar("Kept")


@dataclass(frozen=True)
class Pruned(Generic[Kept]):
    """entries: that were removed; files: removed in all, with what broken-off and replaced ones left; kept_for: runs
    at work that may still read what was left alone."""

    entries: tuple[Kept, ...]
    files: int
    kept_for: tuple[str, ...]


def prune(
    storage: Storage,
    max_staleness: timedelta | None,
    at_work: Callable[[Storage], Iterable[str]] = runs_at_work,
    only: str = "",
    but: str = "",
) -> Pruned[Entry]:
    """Removes entries of this age or more, and what broken-off, damaged and replaced ones left.

    Nothing goes that a run at work reads. A run that has not come to its data yet may be about to read, or to write,
    any of them, and keeps them all. at_work: gives the names of runs at work, and is asked after the files were listed,
    so that no file is younger; only: a key, for that one alone; but: a run that does not count, as it asks.
    """
    entries = [entry for entry in (read_entry(storage, only),) if entry] if only else list_entries(storage)
    manifests = {_manifest(entry.key) for entry in entries}
    found = [key for key in storage.keys(f"{ROOT}/{only}" if only else ROOT) if key not in manifests]
    old = [entry for entry in entries if max_staleness is not None and entry.age >= max_staleness]
    whole = {entry.writer for entry in entries} - {entry.writer for entry in old}
    if not old and all(key.split("/")[2] in whole for key in found):
        return Pruned((), 0, ())
    working = [run for run in at_work(storage) if run != but]
    uses = [storage.get_json(f"runs/{run}/{_USES}") for run in working]
    used = {use["writer"] for use in uses if use is not None}
    if None in uses:
        return Pruned((), 0, tuple(working))
    gone = tuple(entry for entry in old if entry.writer not in used)
    storage.delete([_manifest(entry.key) for entry in gone])  # first: from here on nobody finds them
    left = [key for key in found if key.split("/")[2] not in whole | used]
    storage.delete(left)
    return Pruned(gone, len(left) + len(gone), tuple(working))


def age_of(made: datetime) -> timedelta:
    """How long ago that was; of a time to come, as a clock that is ahead gives it, how far away it is."""
    return abs(datetime.now(UTC) - made)


def in_words(age: timedelta) -> str:
    """A span of time in its largest unit, such as `3 hours`."""
    seconds = age.total_seconds()
    for unit, length in (("day", 86_400), ("hour", 3_600), ("minute", 60)):
        if seconds >= length:
            count = int(seconds // length)
            return f"{count:,} {unit}{'' if count == 1 else 's'}"
    return f"{int(seconds)} s"


def _damage(part: Part, storage: Storage) -> str:
    """A Ray task: what is wrong with a part; nothing where it is as it was written."""
    return storage.damage(part.key, part.sha256)


def _manifest(key: str) -> str:
    return f"{ROOT}/{key}/manifest.json"
