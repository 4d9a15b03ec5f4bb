"""Window columns of a source, and the state from which those of later partitions go on.

A state holds the transactions that later ones may still see, and which partitions it has counted. It never changes:
extending it gives another one. Both lie, with the partitions that they came from, below windows/<key>/ in the storage:

data/...           the partitions as they were, under the same names, with the window columns beside their own
state/...          the transactions of each bucket of each entity
manifest.json      kept last: it is what makes the entry visible

windows/latest/<fingerprint of the windows>/<time of the newest transaction>-<key> names a state all of whose columns
have been used.
"""

from __future__ import annotations

import hashlib
import json
import math
import uuid
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from typing import Any

import pyarrow as pa
from pydantic import TypeAdapter

from fraud_ray.data.contract import Census, ContractViolation, validate
from fraud_ray.data.keys import BUCKETS
from fraud_ray.data.repeats import EACH_ONCE, without_repeats
from fraud_ray.data.source import Source, open_source, table_name
from fraud_ray.data.tasks import map_tasks
from fraud_ray.errors import DataError
from fraud_ray.progress import Progress, Update, counted
from fraud_ray.settings import Settings
from fraud_ray.storage import Storage
from fraud_ray.windows.definition import Definition
from fraud_ray.windows.passes import Job, Scattered, Stored, assemble, gather, scatter, state_key

ROOT = "windows"
LATEST = f"{ROOT}/latest"
# Part of the key: raise it when the same data and declarations come to give other columns.
VERSION = 2
# Rows that a bucket holds, where the settings do not say how many buckets there are: some hundred bytes each.
ROWS_A_BUCKET = 500_000
# Rows of which each pass makes a task of its own, and not of fewer: some tenths of a second.
ROWS_A_TASK = 200_000

_NEVER = -(2**62)  # microseconds since 1970


@dataclass(frozen=True)
class State:
    """What lies below windows/<key>/.

    definition: fingerprint of the windows; newest: time of the newest transaction, in microseconds since 1970; types:
    of entities and ids by column, `text` or `integers`; counted: partitions that it has seen, by the hash of their
    content, with the names they had; parent: key of the state that was extended; files: the stamp of each file, by its
    path, that is known to hold such a partition or no rows; parts: SHA-256, in hexadecimal, of all that lies there, by
    key (an earlier version kept none).
    """

    key: str
    definition: str
    buckets: int
    newest: int
    types: dict[str, str]
    counted: dict[str, str]
    parent: str | None
    files: dict[str, str] = field(default_factory=dict)
    parts: dict[str, str] = field(default_factory=dict)

    @property
    def folder(self) -> str:
        return f"{ROOT}/{self.key}"

    def part(self, task: int) -> Stored:
        """The part that a task of `Job.tasks` made."""
        key = state_key(self.folder, task)
        return key, self.parts.get(key, "")


_SHAPE = TypeAdapter(State)


@dataclass(frozen=True)
class Windowed:
    """Partitions with window columns below `root` (a path or URI), and the state after them; cached: whether they lay
    there already; remark: why they were computed anew, where what lay there was damaged."""

    root: str
    state: State
    cached: bool
    remark: str = ""


@dataclass(frozen=True)
class WithWindows:
    """A source with its window columns; origin: what a model has to carry of them to be scored with."""

    source: Source
    columns: int
    origin: dict[str, Any]
    cached: bool
    remark: str

    def __str__(self) -> str:
        told = "; cached" if self.cached else f"; {self.remark}" if self.remark else ""
        return f"{counted(self.columns, 'column')} for {counted(self.source.rows, 'row')}{told}"


def with_windows(source: Source, settings: Settings, storage: Storage, update: Update) -> WithWindows:
    """The data with the window columns that the settings declare."""
    definition = Definition.of(settings)
    assert definition is not None, "the settings declare windows"
    made = add_windows(source, definition, storage, update)
    origin = {"windows": {"definition": definition.to_json(), "state": made.state.key}}
    opened = open_source(settings.data.model_copy(update={"path": made.root}))
    return WithWindows(opened, len(definition.names), origin, made.cached, made.remark)


def take_in(source: Source, settings: Settings, storage: Storage, progress: Progress) -> tuple[Source, Census]:
    """The data to train on, which is the source itself where no windows are declared, and what it holds.

    Raises ContractViolation.
    """
    if settings.data.repeats == "last":
        with progress.stage("repeats") as stage:
            source = without_repeats(source, settings.data, stage.update)
            stage.say(EACH_ONCE.format(source))
    if settings.windows:
        with progress.stage("windows") as stage:
            made = with_windows(source, settings, storage, stage.update)
            stage.say(str(made))
            source = made.source
    with progress.stage("validate") as stage:
        census = validate(source, settings.data, stage.update, settings.folds)
        stage.say(str(census))
    return source, census


def load_state(storage: Storage, key: str) -> State:
    """Raises DataError where there is none."""
    found = read_state(storage, key)
    if found is None and storage.exists(manifest_key(key)):
        raise DataError(
            f"{storage.path(manifest_key(key))} is damaged, and so is the window state; go on from the one before it, "
            "with all partitions since then in the input (fraud-ray score --state KEY), or compute the windows of "
            "the history anew"
        )
    if found is None:
        raise DataError(
            f"no window state at {storage.path(f'{ROOT}/{key}')}; compute the windows of the history first, or name "
            "the storage.root below which that was done"
        )
    return found


def read_state(storage: Storage, key: str) -> State | None:
    """None where there is none, or a damaged one."""
    manifest = storage.kept(manifest_key(key), _SHAPE)
    return None if manifest is None else State(**manifest)


def make_latest(storage: Storage, state: State) -> None:
    """Lets `latest_after` find the state: call it when nothing is left to be done with the columns made with it."""
    newest = datetime.fromtimestamp(state.newest / 1e6, UTC)
    storage.put(f"{LATEST}/{state.definition}/{newest:%Y%m%dT%H%M%S%f}-{state.key}", b"")


def latest_after(storage: Storage, state: State) -> State:
    """The newest state made latest, of the same windows, that has counted all that this one has; else this one."""
    for found in reversed(storage.keys(f"{LATEST}/{state.definition}")):
        other = load_state(storage, found.rpartition("-")[2])
        if other.newest < state.newest:
            break
        if other.counted.keys() >= state.counted.keys():
            return other
    return state


def add_windows(
    source: Source,
    definition: Definition,
    storage: Storage,
    update: Update,
    state: State | None = None,
    labels: pa.Table | None = None,
) -> Windowed:
    """Computes windows on Ray Data, or finds them computed from the same data.

    state: that the partitions follow, to the bit as a computation over everything would go on; by default the source is
    a whole history. labels: as `read_labels` gives them, of transactions in the state, known by now; partitions that
    follow a state may come without. The same again, also after it was killed, is found or computed anew from the same
    state, so that nothing is counted twice. update: gets rows done and rows in all, over all passes.
    Raises ContractViolation for columns that windows need and that break the contract; DataError for values that cannot
    be summed exactly, a column's name that is taken, a partition that the state has counted or that holds older
    transactions than the state, and for a state of other windows.
    """
    if state is not None and state.definition != definition.fingerprint():
        raise DataError(
            f"the window state {storage.path(state.folder)} is of other windows than the model's; compute the windows "
            "of the history with the model's own declarations first"
        )
    key = _key(source.fingerprint, definition, state, labels)
    folder = f"{ROOT}/{key}"
    named = source.partitions[0].shown
    above = table_name(source.root, named).removesuffix(named)
    root = storage.path(f"{folder}/data/{above}").rstrip("/")
    there, remark = read_state(storage, key), ""
    # Pruning leaves a state that is needed without the partitions.
    if there is not None and len(storage.keys(f"{folder}/data")) == len(source.partitions):
        damage = _damage_of(there, storage, update)
        if not damage:
            return Windowed(root, there, cached=True)
        remark = f"warning: {damage}, so they were computed anew"
    elif there is None and storage.exists(manifest_key(key)):
        remark = f"warning: {storage.path(manifest_key(key))} is damaged, so they were computed anew"
    if state is None:
        buckets = definition.windows.buckets or min(math.ceil(source.rows / ROWS_A_BUCKET), BUCKETS)
        after = State(key, definition.fingerprint(), buckets, _NEVER, {}, {}, None)
    else:
        after = replace(state, key=key, parent=state.key, parts={})
    scratch = f"{folder}/scratch/{uuid.uuid4().hex}"  # another process may be at the same work
    filled = tuple(i for i, partition in enumerate(source.partitions) if partition.rows)
    job = Job(source.root, filled, definition, after.buckets, storage, folder, scratch, needs_labels=not state)
    items = list(enumerate(source.partitions))
    rows = [partition.rows for partition in source.partitions]
    done, total = 0, (2 * definition.rounds + 1) * source.rows

    def run(name: str, function: Callable[[Any], Any], items: Sequence[Any], weights: Sequence[int]) -> list[Any]:
        """Results in the order of the items."""
        nonlocal done
        results: dict[int, Any] = {}
        for position, result in map_tasks(function, items, weights, ROWS_A_TASK):
            results[position] = result
            done = min(done + weights[position], total)
            update(done, total, name)
        return [results[position] for position in range(len(items))]

    stored: list[Stored] = []
    try:
        for round in range(definition.rounds):
            scattered = run("scatter", partial(scatter, job=job, round=round), items, rows)
            if round == 0:
                after = _count(source, scattered, after)
            before = [state.part(task) for task in range(len(job.tasks))] if state else []
            gathering = partial(gather, job=job, newest=after.newest, state=before, labels=labels)
            tasks = [task for task, (group, _) in enumerate(job.tasks) if group.round == round]
            stored += run("gather", gathering, tasks, [math.ceil(source.rows / max(len(tasks), 1))] * len(tasks))
        stored += run("assemble", partial(assemble, job=job), items, rows)
    finally:
        storage.delete(storage.keys(scratch))
    after = replace(after, parts=dict(stored))
    storage.keep(manifest_key(key), asdict(after), storage.kept(manifest_key(key)), _SHAPE)
    return Windowed(root, after, False, remark)


def _damage_of(state: State, storage: Storage, update: Update) -> str:
    """What is wrong with the first part that is not as it was written; nothing where all are."""
    parts = list(state.parts.items())
    for position, damage in map_tasks(partial(_damage, storage=storage), parts, [1] * len(parts)):
        if damage:
            return damage
        update(position + 1, len(parts), "check")
    return ""


def _damage(part: Stored, storage: Storage) -> str:
    return storage.damage(*part)


def _count(source: Source, found: Sequence[Scattered], before: State) -> State:
    """The state with what was found in the partitions that follow it."""
    violations = [violation for scattered in found for violation in scattered.violations]
    if violations:
        raise ContractViolation(violations, len(source.partitions))
    newest, types, counted = before.newest, dict(before.types), dict(before.counted)
    for partition, scattered in zip(source.partitions, found, strict=True):
        if not partition.rows:
            continue
        if scattered.identity in counted:
            raise DataError(
                f"{partition.shown} holds the transactions of {counted[scattered.identity]}, which are counted "
                "already; leave it out, or begin with the state before it"
            )
        if scattered.first < before.newest:
            raise DataError(
                f"{partition.shown} begins at {_shown(scattered.first)}, before {_shown(before.newest)}, the newest "
                "transaction of the window state; windows go on in the order of time. Compute the history anew with it"
            )
        for name, held in scattered.types.items():
            if types.setdefault(name, held) != held:
                raise DataError(
                    f"{partition.shown}: column '{name}' is {held} and holds {types[name]} in the partitions "
                    "before it. Write one type in all."
                )
        counted[scattered.identity] = partition.shown
        newest = max(newest, scattered.last)
    files = before.files | {partition.path: partition.stamp for partition in source.partitions}
    return replace(before, newest=newest, types=types, counted=counted, files=files)


def history_key(fingerprint: str, definition: Definition) -> str:
    """Under what key `add_windows` keeps the windows of a source with this fingerprint."""
    return _key(fingerprint, definition, None, None)


def manifest_key(key: str) -> str:
    """Where the manifest of an entry lies, which makes it visible."""
    return f"{ROOT}/{key}/manifest.json"


def _key(fingerprint: str, definition: Definition, state: State | None, labels: pa.Table | None) -> str:
    """SHA-256, in hexadecimal, over all that the columns and the state after them come from."""
    digest = hashlib.sha256()
    if labels is not None:
        for name in labels.column_names:
            digest.update(json.dumps(labels[name].to_pylist()).encode())
    relevant = [VERSION, fingerprint, definition.fingerprint(), state.key if state else None, digest.hexdigest()]
    return hashlib.sha256(json.dumps(relevant).encode()).hexdigest()


def _shown(microseconds: int) -> str:
    return f"{datetime.fromtimestamp(microseconds / 1e6, UTC):%Y-%m-%d %H:%M:%S}"
