"""Where the past of entities is kept: in this process's memory, or in a Valkey or Redis that all replicas share.

A store keeps transactions by entity and knows nothing of what is computed from them. A transaction joins the past of
all its entities at once, under its id and with its answer, or not at all: so the same id again finds the answer that
was given, whichever replica is asked, and is counted once. What no window can see any more is dropped.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from secrets import token_hex
from typing import Protocol
from urllib.parse import urlsplit

import msgspec
import redis.asyncio as redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from fraud_ray.errors import SettingsError
from fraud_ray.redaction import refuse_misread, without_passwords
from fraud_ray.serving.requests import UnavailableError
from fraud_ray.windows.definition import DAY, Definition
from fraud_ray.windows.past import Past, Row

SPACE = "fraud_ray"  # begins the names of keys in a shared store
Told = tuple[str, int, int]  # a transaction's id, its label, and since when it is known, in microseconds since 1970
Key = tuple[int, str]  # position of the group in the definition, and the entity
_PRIMED_ROWS = 512  # rows of an event while a store is primed
_HELD_ROWS = 2_000_000  # of pasts that a replica holds beside the shared store, some fifty bytes each
_CHUNK = 2_000  # commands of a pipeline while a store is primed


class Answer(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """What was answered of a transaction. version: of the model; columns: its window columns as float32, in the order
    of the definition; degraded: whether they were computed as if there were no past."""

    probability: float
    decision: bool
    version: str
    columns: bytes = b""
    degraded: bool = False


class Record(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """A transaction under its id. time: microseconds since 1970; keys: of the pasts that it has joined; answer: None
    where it came with a window state."""

    time: int
    keys: tuple[Key, ...]
    answer: Answer | None = None


class StoreAwayError(UnavailableError):
    """The store does not answer."""


class NotPrimedError(UnavailableError):
    """The store holds no past of these windows."""


@dataclass(frozen=True)
class Layout:
    """What is kept for a definition. late: microseconds by which a transaction may come late and find its whole past;
    space: begins the names of all keys in a store that is shared."""

    definition: Definition
    late: int
    space: str = SPACE

    def past(self, key: Key) -> Past:
        """One that is empty."""
        return Past(self.definition.groups[key[0]], self.definition.windows.decimals, self.late)

    @property
    def reach(self) -> int:
        """The age, in microseconds, beyond which a transaction is of no use; a day at the least."""
        return max([DAY, *(group.horizon for group in self.definition.groups)]) + self.late


class Store(Protocol):
    """All of it raises StoreAwayError."""

    async def primed(self) -> str | None:
        """The key of the window state that it was primed with; empty where it began without a past."""

    async def prime(self, state: str, records: Mapping[str, Record], pasts: Iterable[tuple[Key, Sequence[Row]]]) -> int:
        """Takes in transactions that it does not have yet; returns how many."""

    async def read(self, id: str | None, keys: Sequence[Key]) -> tuple[Record | None, list[Past]]:
        """What is known under an id, and the pasts. Raises NotPrimedError."""

    async def join(self, id: str | None, record: Record, rows: Sequence[Row]) -> Record | None:
        """Adds a transaction, a row for each of its record's keys; returns the record that was there already, if there
        was one, and then adds nothing."""

    async def label(self, labels: Sequence[Told]) -> list[bool]:
        """Gives transactions their labels; for each whether there is a transaction of its id."""

    async def close(self) -> None: ...


class MemoryStore:
    """For one process: what it holds ends with it. A transaction takes some 500 bytes an entity."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._state: str | None = None
        self._records: dict[str, Record] = {}
        self._pasts: dict[Key, Past] = {}  # those that were longest without a transaction first

    async def primed(self) -> str | None:
        return self._state

    async def prime(self, state: str, records: Mapping[str, Record], pasts: Iterable[tuple[Key, Sequence[Row]]]) -> int:
        known = self._records.keys() & records.keys()
        for key, rows in pasts:
            self._past(key).join([row for row in rows if row.id not in known])
        fresh = {id: record for id, record in records.items() if id not in known}
        self._records |= fresh
        self._state = state
        return len(fresh)

    async def read(self, id: str | None, keys: Sequence[Key]) -> tuple[Record | None, list[Past]]:
        if self._state is None:
            raise NotPrimedError("the past of these windows is not loaded yet")
        record = None if id is None else self._records.get(id)
        return record, [self._pasts.get(key) or self._layout.past(key) for key in keys]

    async def join(self, id: str | None, record: Record, rows: Sequence[Row]) -> Record | None:
        if id is not None:
            there = self._records.setdefault(id, record)
            if there is not record:
                return there
        for key, row in zip(record.keys, rows, strict=True):
            self._past(key).join([row])
        self._forget(record.time - self._layout.reach)
        return None

    async def label(self, labels: Sequence[Told]) -> list[bool]:
        for id, label, known in labels:
            record = self._records.get(id)
            for key in record.keys if record else ():
                if record and key in self._pasts:
                    self._pasts[key].label(record.time, id, label, known)
        return [id in self._records for id, *_ in labels]

    async def close(self) -> None:
        return None

    def _past(self, key: Key) -> Past:
        past = self._pasts.pop(key, None) or self._layout.past(key)
        self._pasts[key] = past
        return past

    def _forget(self, before: int) -> None:
        """Drops what is older, more of it than one transaction brings."""
        for _ in range(len(self._layout.definition.groups) + 1):
            id, oldest = next(iter(self._records.items()), (None, None))
            if id is not None and oldest is not None and oldest.time < before:
                del self._records[id]
            key, past = next(iter(self._pasts.items()), (None, None))
            if key is not None and past is not None and past.newest is not None and past.newest < before:
                del self._pasts[key]


class _Joined(msgspec.Struct, tag="joined", array_like=True):
    rows: list[Row]


class _Labelled(msgspec.Struct, tag="labelled", array_like=True):
    time: int
    id: str
    label: int
    known: int


_events = msgspec.msgpack.Decoder(_Joined | _Labelled)
_records = msgspec.msgpack.Decoder(Record)
_encoder = msgspec.msgpack.Encoder()

# Entries are ordered, and dropped, by the time of their transactions: an entry's number begins with that, or with the
# one before it where that is later. KEYS: the id's record, then streams; ARGV: milliseconds that all is kept, the
# record (empty: none), the time in milliseconds, that before which entries are dropped, then an event for each stream.
_ADD = """
if ARGV[2] ~= '' then
  local there = redis.call('GET', KEYS[1])
  if there then return there end
  redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[1])
end
for i = 2, #KEYS do
  local event = ARGV[i + 3]
  local added = redis.pcall('XADD', KEYS[i], 'MINID', '~', ARGV[4], ARGV[3] .. '-*', 'e', event)
  if type(added) == 'table' then
    local last = redis.call('XREVRANGE', KEYS[i], '+', '-', 'COUNT', 1)
    local after = last[1] and string.match(last[1][1], '%d+') or ARGV[3]
    redis.call('XADD', KEYS[i], 'MINID', '~', ARGV[4], after .. '-*', 'e', event)
  end
  redis.call('PEXPIRE', KEYS[i], ARGV[1])
end
return false
"""


@dataclass
class _Held:
    """A past as far as it was read. last: the newest entry of its stream that it has."""

    past: Past
    last: bytes = b"0-0"


class ValkeyStore:
    """Shared by all replicas, which it survives: an entity's past is a stream of what happened to it.

    A replica reads a stream once, and then only what came since; so a request costs two round trips however long the
    past. The first request of an entity at a replica reads its whole stream, some ten microseconds a transaction.
    """

    def __init__(self, layout: Layout, url: str) -> None:
        refuse_misread("serving.store", url)
        self._layout = layout
        self._where = without_passwords(url)
        self._space = f"{layout.space}:{layout.definition.fingerprint()[:16]}"
        self._keep = str(layout.reach // 1_000)
        self._client = _client_of(url)
        self._add = self._client.register_script(_ADD)
        self._primed: bytes | None = None
        self._held: OrderedDict[Key, _Held] = OrderedDict()  # used longest ago first
        self._rows = 0

    async def primed(self) -> str | None:
        async with self._reached():
            state = await self._client.get(f"{self._space}:primed")
        return None if state is None else _bytes(state).decode().partition(":")[0]

    async def prime(self, state: str, records: Mapping[str, Record], pasts: Iterable[tuple[Key, Sequence[Row]]]) -> int:
        async with self._reached():
            known = await self._known(list(records))
            pipeline, written = self._client.pipeline(transaction=False), 0
            for key, rows in pasts:
                fresh = [row for row in rows if row.id not in known]
                for begin in range(0, len(fresh), _PRIMED_ROWS):
                    block = fresh[begin : begin + _PRIMED_ROWS]
                    event = _encoder.encode(_Joined(block))
                    await self._add(["", self._stream(key)], self._arguments(b"", block[-1].time, [event]), pipeline)
                if len(pipeline) >= _CHUNK:
                    await pipeline.execute()
            for id, record in records.items():
                if id not in known:
                    pipeline.set(self._record(id), _encoder.encode(record), px=int(self._keep), nx=True)
                    written += 1
                if len(pipeline) >= _CHUNK:
                    await pipeline.execute()
            # Last: it says that all is there; each time another, so that replicas notice that all was lost before.
            pipeline.set(f"{self._space}:primed", f"{state}:{token_hex(8)}")
            await pipeline.execute()
        return written

    async def read(self, id: str | None, keys: Sequence[Key]) -> tuple[Record | None, list[Past]]:
        async with self._reached():
            pipeline = self._client.pipeline(transaction=False)
            pipeline.get(f"{self._space}:primed")
            pipeline.get(self._record(id or ""))
            held = [self._held.get(key) or _Held(self._layout.past(key)) for key in keys]
            for key, one in zip(keys, held, strict=True):
                pipeline.xrange(self._stream(key), min=b"(" + one.last)
            primed, record, *entries = await pipeline.execute()
        if primed is None:
            raise NotPrimedError(
                f"the store at {self._where} holds no past of these windows; load it: fraud-ray serve --prime -c FILE"
            )
        if primed != self._primed:
            is_first, self._primed = self._primed is None, primed
            if not is_first:  # primed again, perhaps after all was lost
                self._held.clear()
                self._rows = 0
                return await self.read(id, keys)
        for key, one, found in zip(keys, held, entries, strict=True):
            self._hold(key, one, found)
        return None if record is None or id is None else _records.decode(record), [one.past for one in held]

    async def join(self, id: str | None, record: Record, rows: Sequence[Row]) -> Record | None:
        streams = [self._stream(key) for key in record.keys]
        written = b"" if id is None else _encoder.encode(record)
        events = [_encoder.encode(_Joined([row])) for row in rows]
        async with self._reached():
            there = await self._add([self._record(id or ""), *streams], self._arguments(written, record.time, events))
        return None if there is None else _records.decode(_bytes(there))

    async def label(self, labels: Sequence[Told]) -> list[bool]:
        async with self._reached():
            found = await self._client.mget([self._record(id) for id, *_ in labels]) if labels else []
            pipeline = self._client.pipeline(transaction=False)
            for (id, label, known), there in zip(labels, found, strict=True):
                if there is not None:
                    record = _records.decode(_bytes(there))
                    streams = [self._stream(key) for key in record.keys]
                    events = [_encoder.encode(_Labelled(record.time, id, label, known))] * len(streams)
                    await self._add(["", *streams], self._arguments(b"", record.time, events), pipeline)
            await pipeline.execute()
        return [there is not None for there in found]

    async def clear(self) -> None:
        """Removes all that it holds of these windows. Raises StoreAwayError."""
        async with self._reached():
            keys = [key async for key in self._client.scan_iter(f"{self._space}:*", count=_CHUNK)]
            for begin in range(0, len(keys), _CHUNK):
                await self._client.unlink(*keys[begin : begin + _CHUNK])

    async def close(self) -> None:
        await self._client.aclose()

    def _hold(self, key: Key, held: _Held, entries: Sequence[tuple[bytes, Mapping[bytes, bytes]]]) -> None:
        """Adds to a past what happened since it was read last, and keeps it for the next request."""
        before = len(held.past) if self._held.pop(key, None) is held else 0
        joined: list[Row] = []
        for entry, fields in entries:
            if _order(entry) <= _order(held.last):  # another request of this process has read it meanwhile
                continue
            held.last = entry
            event = _events.decode(fields[b"e"])
            if isinstance(event, _Joined):
                joined += event.rows
            else:
                held.past.join(_new(joined, held.past))
                joined = []
                held.past.label(event.time, event.id, event.label, event.known)
        held.past.join(_new(joined, held.past))
        self._held[key] = held
        self._rows += len(held.past) - before
        while self._rows > _HELD_ROWS and len(self._held) > 1:
            _, dropped = self._held.popitem(last=False)
            self._rows -= len(dropped.past)

    async def _known(self, ids: Sequence[str]) -> set[str]:
        known: set[str] = set()
        for begin in range(0, len(ids), _CHUNK):
            block = ids[begin : begin + _CHUNK]
            found = await self._client.mget([self._record(id) for id in block])
            known.update(id for id, record in zip(block, found, strict=True) if record is not None)
        return known

    @asynccontextmanager
    async def _reached(self) -> AsyncIterator[None]:
        try:
            yield
        except RedisError as fault:
            raise StoreAwayError(f"the store at {self._where} does not answer: {fault}") from fault

    def _arguments(self, record: bytes, time: int, events: Sequence[bytes]) -> list[str | bytes]:
        """Of the script that adds. time: of the transaction, in microseconds since 1970."""
        milliseconds = (max(at, 0) // 1_000 for at in (time, time - self._layout.reach))
        return [self._keep, record, *map(str, milliseconds), *events]

    def _stream(self, key: Key) -> str:
        return f"{self._space}:{key[0]}:{key[1]}"

    def _record(self, id: str) -> str:
        return f"{self._space}:id:{id}"


def _client_of(url: str) -> redis.Redis:
    """Raises SettingsError for what is no address of a store."""
    try:
        client = redis.Redis.from_url(url, socket_timeout=1.0, socket_connect_timeout=1.0, retry=Retry(NoBackoff(), 1))
        client.connection_pool.make_connection()  # connects nothing, and knows what the address may hold
        # Another path would be read as database 0.
        is_one = url.startswith("unix:") or re.fullmatch(r"/?|/\d+", urlsplit(url).path) is not None
    except (TypeError, ValueError):
        is_one = False
    if not is_one:
        raise SettingsError(
            f"serving.store is no address of a Valkey or Redis: {without_passwords(url)}; write redis://HOST:PORT/DB"
        )
    return client


def _new(rows: list[Row], past: Past) -> list[Row]:
    """Those that a past does not have, each once.

    A stream has some twice where two replicas primed the store at once, or one was cut short and began again.
    """
    once = {at if row.id is None else row.id: row for at, row in enumerate(rows)}
    return [row for row in once.values() if row.id is None or not len(past) or not past.has(row.time, row.id)]


def _bytes(found: bytes | str) -> bytes:
    """What the client, which does not decode, returns."""
    return found.encode() if isinstance(found, str) else found


def _order(entry: bytes) -> tuple[int, int]:
    """By which entries of a stream come after each other."""
    time, _, number = entry.partition(b"-")
    return int(time), int(number)


def open_store(layout: Layout, url: str | None) -> Store:
    """The one of `serving.store`."""
    return MemoryStore(layout) if url is None else ValkeyStore(layout, url)
