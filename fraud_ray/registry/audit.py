"""The audit record: who did what, when, with which code, data and settings; a chain that cannot be changed unseen.

One JSON object a record below `audit/` in the storage, numbered from 1 and made by create-if-absent, so that no two
writers get the same number. Each holds the SHA-256 of the one before, so a record that is edited or removed shows in
the next. The newest has no next: its number and hash are kept in the registry too, as an `Anchor`, and are announced
there before it is written, so that one that a process was killed over is told from one that somebody put there.

With a key in FRAUD_RAY_AUDIT_KEY, or in the file that FRAUD_RAY_AUDIT_KEY_FILE names, each record is signed:
HMAC-SHA256 (RFC 2104) of its content, in hexadecimal.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, Literal, Protocol

from fraud_ray.errors import FraudRayError, SettingsError
from fraud_ray.redaction import starred, without_passwords
from fraud_ray.runs import now, provenance
from fraud_ray.storage import Storage

Event = Literal["run", "register", "promote", "rollback"]
What = (
    Literal["edited", "removed", "cut off", "unconfirmed", "unrecorded", "twice"]
    | Literal["not anchored", "forged", "another registry's"]
)

KEY, KEY_FILE = "FRAUD_RAY_AUDIT_KEY", "FRAUD_RAY_AUDIT_KEY_FILE"
_SIGNATURE, _UNKNOWN = "signature", "unknown_to_registry"
_READERS = 16
_CUT_SHORT = "its writer was cut short before the registry confirmed it, which the next command does"
_REQUIRED = {"number", "chain", "previous", "event", "run", "model"}


@dataclass(frozen=True)
class Record:
    """One record: its number, the SHA-256 of its file in hexadecimal, and what the file holds.

    facts: empty where the file holds no record of this number; else number, chain (an id that all records of a chain
    share), previous (the hash of the record before; None in the first), time, event, the writer's provenance, and what
    the event is about: at least run and model, the latter with name and version, or None.
    """

    number: int
    sha256: str
    facts: dict[str, Any]

    @property
    def event(self) -> Event:
        return self.facts["event"]

    @property
    def chain(self) -> str:
        return self.facts["chain"]

    @property
    def model(self) -> str | None:
        """The registered model that it is about."""
        return (self.facts["model"] or {}).get("name")

    @property
    def registry(self) -> str | None:
        """Where its writer's registry was, without passwords; None where it does not say."""
        settings = self.facts.get("settings") or {}
        return self.facts.get("registry") or settings.get("registry", {}).get("uri")

    @property
    def version(self) -> int | None:
        """The version that it is about."""
        return (self.facts["model"] or {}).get("version")


@dataclass(frozen=True)
class Anchor:
    """What the registry says of a chain: that it came to this number, and the hash of that record.

    root: the storage that it lay in; where: the registry's entry that says so, for messages.
    """

    chain: str
    number: int
    sha256: str
    root: str
    where: str = ""


@dataclass(frozen=True)
class Fault:
    """A record that is not what was written, or what else is not as it should be. number: the record's; 0: of none."""

    number: int
    what: What
    reason: str


class Witness(Protocol):
    """The registry, as a writer needs it."""

    def unknown_since(self, newest: Record) -> int | None:
        """The first of the records, up to the newest, that it was not told of, nor of a later one; None: of none."""

    def announce(self, record: Record) -> None:
        """Tells it of a record that is written next."""


def append(
    storage: Storage,
    event: Event,
    facts: Callable[[], Mapping[str, Any] | None],
    witness: Witness | None = None,
) -> Record | None:
    """Writes the next record, with this process's provenance; None where the facts are None.

    facts: asked for again after another writer was faster, so that they hold for the place that the record gets.
    """
    key = signing_key()
    while True:
        before = newest(storage)
        told = facts()
        if told is None:
            return None
        number = before.number + 1 if before else 1
        content = {
            "number": number,
            "chain": before.chain if before else uuid.uuid4().hex[:12],
            "previous": before.sha256 if before else None,
            "time": now(),
            "event": event,
            **provenance(),
            **told,
        }
        if before and witness and (first := witness.unknown_since(before)):
            content[_UNKNOWN] = first  # with those after it; for good, as this record is anchored and holds its hash
        written = _signed(starred(json.loads(json.dumps(content, default=str))), key)
        record = Record(number, _sha256(written), json.loads(written))
        if witness:
            witness.announce(record)
        # A store whose answer was lost is asked again, and then says that the key is there: it may be by this writer.
        if storage.create(_key(number), written) or storage.get(_key(number)) == written:
            return record


def signing_key() -> bytes | None:
    """The key that records are signed with, if there is one. Raises SettingsError for a file that cannot be read."""
    if name := os.environ.get(KEY_FILE):
        try:
            key = Path(name).read_bytes().strip()
        except OSError as fault:
            raise SettingsError(
                f"{KEY_FILE} is {name}, which cannot be read ({fault.strerror}); name the key's file"
            ) from None
    else:
        key = os.environ.get(KEY, "").encode()
    if not key and (KEY in os.environ or KEY_FILE in os.environ):
        raise SettingsError(f"{KEY} or {KEY_FILE} gives an empty key; give one, such as of `openssl rand -hex 32`")
    return key or None


def newest(storage: Storage) -> Record | None:
    """The record with the highest number, or None before there is any."""
    keys = _keys(storage)
    return _readable(storage, keys[-1]) if keys else None


def read_all(storage: Storage) -> list[Record]:
    """All records that can be read, in order; `verify` tells of the others."""
    return [record for _, record in sorted(_records(storage).items()) if record.facts]


def read(storage: Storage, number: int) -> Record:
    """One record; raises SettingsError that says which there are."""
    if not storage.exists(_key(number)):
        last = newest(storage)
        there = f"they go from 1 to {last.number}" if last else "there are none yet"
        raise SettingsError(f"no audit record {number} at {storage.path('audit')}; {there}")
    return _readable(storage, _key(number))


def find(storage: Storage, event: Event, run: str) -> Record | None:
    """The record of this event that is about the run, or None."""
    return next((r for r in read_all(storage) if r.event == event and r.facts["run"] == run), None)


def last(storage: Storage, model: str, *events: Event) -> Record | None:
    """The newest record of one of these events that is about the registered model, or None."""
    return next((r for r in reversed(read_all(storage)) if r.event in events and r.model == model), None)


def of_registration(storage: Storage, model: str, version: int, registry: str, run: str | None) -> Record | None:
    """The newest record that holds the hashes of a version's files; None where this storage has none.

    registry: where it is registered, without passwords; run: the one that it says to come from. Records of a version of
    the same number in another registry don't count. Those of a registration hold hashes since serving came; before, the
    record of its run does.
    """
    about = [r for r in read_all(storage) if (r.model, r.version) == (model, version)]
    made = [r for r in about if r.event == "register" and (r.facts["run"] == run or r.facts["registry"] == registry)]
    runs = {run, *(r.facts["run"] for r in made)}
    its = [r for r in about if r.event in {"register", "run"} and r.facts["run"] in runs and r.facts.get("bundle")]
    return its[-1] if its else None


def confirms(storage: Storage, anchor: Anchor) -> bool:
    """Whether the record that an anchor names is there, unchanged."""
    content = storage.get(_key(anchor.number))
    return content is not None and _sha256(content) == anchor.sha256


def verify(
    storage: Storage, anchors: Iterable[Anchor], announced: Iterable[Anchor] = (), registry: str | None = None
) -> list[Fault]:
    """Every record that is not as it was written, is gone, or was not written by us, in order; empty where all is well.

    anchors: what the registry says of this chain and of others; those of others count where they lay in this storage.
    announced: what it was told of before it was written. registry: where it is, without passwords; records that it does
    not know, and that say of another one, are named apart. With a key, signatures count, from the first record that has
    one.
    """
    records, announced, key = _records(storage), list(announced), signing_key()
    chains = {record.chain for record in records.values() if record.facts}
    ours = [anchor for anchor in anchors if anchor.chain in chains or anchor.root == without_passwords(storage.root)]
    length, furthest = max(records, default=0), max(ours, key=lambda anchor: anchor.number, default=None)
    faults = []
    for number in range(1, length + 1):
        if number not in records:
            faults.append(
                Fault(number, "removed", f"{storage.path(_key(number))} is gone, and later records are there")
            )
        elif reason := _contradiction(number, records, ours):
            faults.append(Fault(number, "edited", reason))
    if furthest and furthest.number > length:
        others = f", with all up to {furthest.number}" if furthest.number > length + 1 else ""
        reason = f"gone from the end{others}: {furthest.where} says that there were {furthest.number}"
        faults.append(Fault(length + 1, "cut off", reason))
    are_told = [anchor for anchor in announced if anchor.chain in chains]
    if records and not ours and not are_told:
        reason = "nothing in the registry says how many records there are, so a cut at the end would not show"
        faults.append(Fault(length, "unconfirmed", reason))
    else:
        tail = [record for number, record in records.items() if number > (furthest.number if furthest else 0)]
        known = {(anchor.number, anchor.sha256) for anchor in are_told}
        cut_short = [record for record in tail if (record.number, record.sha256) in known]
        faults += [Fault(record.number, "not anchored", _CUT_SHORT) for record in cut_short]
        untold = [record for record in tail if record not in cut_short]
        faults += _unknown(untold, registry, "the registry was never told of it")
    for number, record in records.items():
        if _UNKNOWN in record.facts:
            unknown = [records[one] for one in range(record.facts[_UNKNOWN], number) if one in records]
            told = f"when record {number} was written, its registry knew nothing of it"
            faults += _unknown(unknown, record.registry, told)
    faults += _wrongly_signed(records, key) if key else []
    by_number = {fault.number: fault for fault in reversed(faults)}  # what was found first says most
    return [by_number[number] for number in sorted(by_number)]


def signed(storage: Storage) -> int:
    """How many records have a signature."""
    return sum(_SIGNATURE in record.facts for record in read_all(storage))


def _unknown(records: Sequence[Record], registry: str | None, told: str) -> Iterator[Fault]:
    """Records that a registry does not know: forged, or by their own words another's.

    registry: where it is; None: nobody knows.
    """
    readable = [record for record in records if record.facts]
    for named, those in groupby(readable, lambda record: record.registry):
        if registry is None or named in (None, registry):
            yield from (Fault(one.number, "forged", f"{told}: it was written past fraud-ray") for one in those)
        else:
            first, *others = (one.number for one in those)
            up_to = f", as of all up to {others[-1]}" if others else ""
            reason = f"{told}{up_to}; its own is {named}, as it says: verify it with that as registry.uri"
            yield Fault(first, "another registry's", reason)


def _wrongly_signed(records: dict[int, Record], key: bytes) -> list[Fault]:
    first = min((number for number, record in records.items() if _SIGNATURE in record.facts), default=None)
    wrong = [n for n, r in sorted(records.items()) if first and n >= first and r.facts and not _is_signed(r.facts, key)]
    return [Fault(number, "forged", f"it is not signed with the key of {KEY}") for number in wrong]


def _signed(content: dict[str, Any], key: bytes | None) -> bytes:
    """A record's file, with the content's signature where there is a key."""
    return json.dumps({**content, _SIGNATURE: _signature(content, key)} if key else content, indent=1).encode()


def _is_signed(facts: dict[str, Any], key: bytes) -> bool:
    content = {name: value for name, value in facts.items() if name != _SIGNATURE}
    return hmac.compare_digest(str(facts.get(_SIGNATURE, "")), _signature(content, key))


def _signature(content: dict[str, Any], key: bytes) -> str:
    return hmac.new(key, json.dumps(content, sort_keys=True).encode(), hashlib.sha256).hexdigest()


def _records(storage: Storage) -> dict[int, Record]:
    """Every record by its number, as it lies there."""
    with ThreadPoolExecutor(_READERS) as pool:
        found = pool.map(lambda key: _read(storage, key), _keys(storage))
        return {record.number: record for record in found if record}


def _contradiction(number: int, records: dict[int, Record], anchors: list[Anchor]) -> str | None:
    """What speaks against a record: its own form, the registry, or, where that is silent, the records beside it."""
    record, before, after = records[number], records.get(number - 1), records.get(number + 1)
    if not record.facts:
        return f"its file holds no record of the number {number}"
    held = [anchor for anchor in anchors if anchor.number == number]
    denied = next((anchor for anchor in held if anchor.sha256 != record.sha256), None)
    if denied:
        return f"its hash is not the one that {denied.where} holds: changed, or written anew after a cut"
    if not held and after and after.facts and after.facts["previous"] != record.sha256:
        return f"its hash is not the one that record {number + 1} holds"
    is_before_confirmed = before and any((a.number, a.sha256) == (number - 1, before.sha256) for a in anchors)
    if before and is_before_confirmed and record.facts["previous"] != before.sha256:
        return f"it does not hold the hash of record {number - 1}, which the registry confirms"
    return None


def _readable(storage: Storage, key: str) -> Record:
    record = _read(storage, key)
    if record is None or not record.facts:
        raise FraudRayError(f"{storage.path(key)} is no audit record; fraud-ray audit verify says what is wrong")
    return record


def _read(storage: Storage, key: str) -> Record | None:
    content, number = storage.get(key), int(Path(key).stem)
    if content is None:
        return None
    try:
        facts = json.loads(content)
    except ValueError:
        facts = None
    is_record = isinstance(facts, dict) and set(facts) >= _REQUIRED and facts["number"] == number
    return Record(number, _sha256(content), facts if is_record else {})


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _keys(storage: Storage) -> list[str]:
    return [key for key in storage.keys("audit") if Path(key).stem.isdecimal()]


def _key(number: int) -> str:
    return f"audit/{number:08d}.json"
