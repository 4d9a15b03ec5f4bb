"""The past that serving begins with: the transactions of a window state, from the storage into a store."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Iterator
from contextlib import suppress
from itertools import groupby
from operator import itemgetter

import pyarrow as pa
import pyarrow.compute as pc

from fraud_ray.data.keys import NEVER
from fraud_ray.serving.history import History, Observe
from fraud_ray.serving.stores import (
    SPACE,
    Key,
    Layout,
    MemoryStore,
    Record,
    Store,
    StoreAwayError,
    ValkeyStore,
    open_store,
)
from fraud_ray.settings import ServingSettings
from fraud_ray.storage import Storage
from fraud_ray.windows.definition import DAY, Definition, Group
from fraud_ray.windows.passes import ID, KNOWN, LABEL, TEXT, VALUE, held
from fraud_ray.windows.past import NO_LABEL, Row, texts_of, values_of
from fraud_ray.windows.state import State, latest_after, load_state

NOTHING = ""  # in the place of a state's key, where serving begins without a past


def newest_state(storage: Storage, key: str) -> State:
    """The newest state that follows the one of a model. Raises DataError where its own is not in the storage."""
    return latest_after(storage, load_state(storage, key))


async def prime(store: Store, storage: Storage, definition: Definition, state: State) -> int:
    """Lets a store have the transactions of a state; returns how many it did not have yet.

    May be repeated, also with a later state, but for data without ids, which is loaded once. Raises StoreAwayError.
    """
    there = await store.primed()
    if there == state.key:
        return 0
    if there is not None and definition.data.of_kind("id") is None:
        return 0  # nothing says which of them it has
    groups = list(_pasts(storage, definition, state))
    return await store.prime(state.key, _records(groups), groups)


def _pasts(storage: Storage, definition: Definition, state: State) -> Iterator[tuple[Key, list[Row]]]:
    """Each entity's transactions, in the order of time."""
    for number, group in enumerate(definition.groups):
        for bucket in range(state.buckets):
            block = held(storage, state.part(number * state.buckets + bucket))
            table = pa.Table.from_batches([block]).sort_by([("entity", "ascending"), ("time", "ascending")])
            entities = pc.cast(table["entity"], pa.string()).to_pylist()
            for entity, rows in groupby(zip(entities, _rows(table, group), strict=True), itemgetter(0)):
                yield (number, entity), [row for _, row in rows]


def _rows(table: pa.Table, group: Group) -> Iterator[Row]:
    count = table.num_rows
    values = [pc.fill_null(table[f"{VALUE}{name}"], float("nan")).to_pylist() for name in values_of(group)]
    texts = [pc.fill_null(table[f"{TEXT}{name}"], "").to_pylist() for name in texts_of(group)]
    ids = pc.cast(table[ID], pa.string()).to_pylist() if ID in table.column_names else [None] * count
    known = pc.fill_null(table[KNOWN], NEVER).to_pylist() if KNOWN in table.column_names else [NEVER] * count
    labels = pc.fill_null(table[LABEL], NO_LABEL).to_pylist()
    of_values = zip(*values, strict=True) if values else [()] * count
    of_texts = zip(*texts, strict=True) if texts else [()] * count
    return map(Row, table["time"].to_pylist(), ids, of_values, of_texts, labels, known)


def _records(groups: list[tuple[Key, list[Row]]]) -> dict[str, Record]:
    """What is known under each id, in the order of time."""
    keys: dict[str, list[Key]] = defaultdict(list)
    rows: dict[str, Row] = {}
    for key, of_key in groups:
        for row in of_key:
            if row.id is not None:
                keys[row.id].append(key)
                rows[row.id] = row
    in_time = sorted(rows, key=lambda id: rows[id].time)
    return {id: Record(rows[id].time, tuple(keys[id])) for id in in_time}


class Histories:
    """The past of each definition of windows that is served, begun from a window state or a store that was primed."""

    def __init__(self, settings: ServingSettings, storage: Storage, observe: Observe, fresh: str | None = None) -> None:
        """observe: as of `History`. fresh: begin without a past, and name all keys in a shared store so."""
        self._settings, self._storage, self._observe, self._fresh = settings, storage, observe, fresh
        self._by_definition: dict[str, History] = {}

    def of(self, definition: Definition) -> History | None:
        """None where its past is not primed yet."""
        return self._by_definition.get(definition.fingerprint())

    async def primed(self, definition: Definition, state: str | None) -> bool:
        """Whether there is a past of these windows to answer from; one in memory is loaded from the newest state.

        state: the key of a model's own. Raises StoreAwayError, and DataError where that state is not in the storage.
        """
        key = definition.fingerprint()
        if key not in self._by_definition:
            layout = layout_of(definition, self._settings, self._fresh)
            store = open_store(layout, self._settings.store)
            if self._fresh is not None:
                await store.prime(NOTHING, {}, ())
            elif isinstance(store, MemoryStore) and state is not None:
                # A thread of its own, as this takes seconds and others are being answered.
                await asyncio.to_thread(self._load, store, definition, state)
            if await store.primed() is None:
                await store.close()
                return False
            self._by_definition[key] = History(layout, store, self._settings.degraded, self._observe)
        return True

    def all(self) -> tuple[History, ...]:
        return tuple(self._by_definition.values())

    async def close(self) -> None:
        """Lets go of the stores, without what was begun there for a check."""
        for history in self.all():
            store = history.store
            if self._fresh is not None and isinstance(store, ValkeyStore):
                with suppress(StoreAwayError):
                    await store.clear()
            await store.close()

    def _load(self, store: Store, definition: Definition, state: str) -> None:
        asyncio.run(prime(store, self._storage, definition, newest_state(self._storage, state)))


def layout_of(definition: Definition, settings: ServingSettings, space: str | None = None) -> Layout:
    """What is kept of windows, as the settings have it."""
    return Layout(definition, round(settings.late_days * DAY), space or SPACE)
