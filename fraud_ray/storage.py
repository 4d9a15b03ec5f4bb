"""The one root (a folder or a URI) below which runs and prepared data lie: atomic puts, create-if-absent, listing.

What is computed once is made visible last: `kept` reads a value that an earlier call kept, `keep` puts it there.

obstore serves what is fraud_ray's own, as leases, kept values and audit records need create-if-absent, which Arrow's
file systems lack; those serve the partitions of others (`data.source`), read in ranges and by any URI of Arrow's.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from typing import Any

import obstore
from obstore.exceptions import AlreadyExistsError, BaseError
from obstore.store import LocalStore, ObjectStore, from_url
from pydantic import ByteSize, TypeAdapter, ValidationError

from fraud_ray.errors import DamagedError, ServerError, SettingsError
from fraud_ray.redaction import starred

MAKE_ROOM = "make room there, or name another place, and give the same command again: it goes on from what is kept"
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_FULL_IN_WORDS = (*(f"os error {number})" for number in _FULL), *map(os.strerror, _FULL), "database or disk is full")
_PIECE = 4 * 2**20  # bytes that are hashed at a time
_SEAL = "sha256"  # of the other entries of a kept value


@dataclass(frozen=True)
class Stored:
    """An object: its key, its size in bytes, and when it was written."""

    key: str
    size: int
    changed: datetime


@dataclass(frozen=True)
class Storage:
    """Objects by key below `root`: an absolute path, or a URI such as s3://bucket/prefix.

    A put is visible whole or not at all, and makes the folder; what only reads makes none. Cheap to send to another
    process. Raises ServerError when the store does not answer.
    """

    root: str

    @classmethod
    def at(cls, root: str) -> Storage:
        """Storage below a path (made absolute; ~ is the home folder) or a URI."""
        return cls(root.rstrip("/") if "://" in root else str(Path(root).expanduser().absolute()))

    @property
    def is_local(self) -> bool:
        return "://" not in self.root

    @property
    def is_there(self) -> bool:
        """Whether anything was stored: a folder is made by the first put; a bucket counts as there."""
        return not self.is_local or Path(self.root).exists()

    def required(self) -> Storage:
        """This one; raises SettingsError where it is not there."""
        if not self.is_there:
            raise SettingsError(
                f"there is no storage at {self.root}: a run makes it. If it lies elsewhere, storage.root says where; "
                "if on a cluster, the same command with --to kuberay runs there"
            )
        return self

    def path(self, key: str) -> str:
        """The absolute path or URI of a key."""
        return f"{self.root}/{key}"

    def put(self, key: str, content: bytes | memoryview) -> None:
        with _reported(self, key):
            obstore.put(_open(self.root), key, content)

    def create(self, key: str, content: bytes) -> bool:
        """Puts only if the key is absent; returns whether this call created it."""
        with _reported(self, key):
            try:
                obstore.put(_open(self.root), key, content, mode="create")
            except AlreadyExistsError:
                return False
            return True

    def get(self, key: str) -> bytes | None:
        """The content, or None where the key is absent."""
        with _reported(self, key):
            try:
                return bytes(obstore.get(_existing(self), key).bytes())
            except FileNotFoundError:
                return None

    def sha256(self, key: str) -> str | None:
        """Hash of the content, in hexadecimal, read piece by piece; None where the key is absent."""
        with _reported(self, key):
            try:
                stream = obstore.get(_existing(self), key).stream(min_chunk_size=_PIECE)
            except FileNotFoundError:
                return None
            digest = hashlib.sha256()
            for piece in stream:
                digest.update(piece)
            return digest.hexdigest()

    def damage(self, key: str, sha256: str) -> str:
        """What is wrong with an object; nothing where its content has this hash."""
        found = self.sha256(key)
        return "" if found == sha256 else f"{self.path(key)} is {'missing' if found is None else 'damaged'}"

    def exists(self, key: str) -> bool:
        with _reported(self, key):
            try:
                obstore.head(_existing(self), key)
            except FileNotFoundError:
                return False
            return True

    def keys(self, prefix: str) -> list[str]:
        """Keys below a prefix (a folder), in order."""
        return sorted(stored.key for stored in self.listed(prefix))

    def listed(self, prefix: str) -> list[Stored]:
        """What lies below a prefix (a folder)."""
        with _reported(self, prefix):
            try:
                entries = (entry for page in obstore.list(_existing(self), prefix) for entry in page)
                return [Stored(entry["path"], entry["size"], entry["last_modified"]) for entry in entries]
            except FileNotFoundError:
                return []

    def delete(self, keys: list[str]) -> None:
        with _reported(self, ", ".join(keys[:1])):
            obstore.delete(_existing(self), keys)

    def fetch(self, folder: str, into: Path) -> Path:
        """Copies a folder's objects into a local folder, which it returns."""
        for key in self.keys(folder):
            content = self.get(key)
            if content is not None:
                (into / Path(key).name).write_bytes(content)
        return into

    def put_json(self, key: str, value: Any) -> None:
        """Puts JSON types, without the passwords in their URIs."""
        self.put(key, json.dumps(starred(value), indent=1, default=str).encode())

    def get_json(self, key: str) -> Any | None:
        """The value, or None where the key is absent. Raises DamagedError for what is no JSON."""
        content = self.get(key)
        try:
            return None if content is None else json.loads(content)
        except ValueError as fault:
            raise damaged(self.path(key), fault) from None

    def keep(
        self,
        key: str,
        value: Mapping[str, Any],
        instead_of: Mapping[str, Any] | None = None,
        shape: TypeAdapter[Any] | None = None,
    ) -> dict[str, Any]:
        """Keeps a value under a key for good; returns the one that is there now: of two that do so, the first one's.

        value: a mapping of JSON types; its file is readable JSON, with a hash of itself that tells damage. instead_of:
        a value, as `kept` gave it, that this one takes the place of, as it does of a damaged one; shape: as for `kept`.
        """
        kept: dict[str, Any] = starred(json.loads(json.dumps(value, default=str)))
        if not self.create(key, _sealed(kept)):
            there = self.kept(key, shape)
            if there is not None and there != instead_of:
                return there
            self.put(key, _sealed(kept))
        return kept

    def kept(self, key: str, shape: TypeAdapter[Any] | None = None) -> dict[str, Any] | None:
        """The value that `keep` put there; None where the key is absent, and where its file is damaged.

        shape: what the value has to be; one that is not counts as damaged.
        """
        content = self.get(key)
        try:
            value = None if content is None else json.loads(content)
        except ValueError:
            return None
        if not isinstance(value, dict):
            return None
        sealed = value.pop(_SEAL, None)
        if sealed not in (None, _hash(value)):  # files of earlier versions have no hash
            return None
        try:
            if shape is not None:
                shape.validate_python(value)
        except ValidationError:
            return None
        return value


def _sealed(value: dict[str, Any]) -> bytes:
    return json.dumps({**value, _SEAL: _hash(value)}, indent=1).encode()


def _hash(value: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


@lru_cache(maxsize=16)
def _open(root: str) -> ObjectStore:
    return from_url(root) if "://" in root else LocalStore(root, mkdir=True)


def _existing(storage: Storage) -> ObjectStore:
    """As `_open`; raises FileNotFoundError for a folder that is not there."""
    if not storage.is_there:
        raise FileNotFoundError(storage.root)
    return _open(storage.root)


def damaged(what: str, fault: Exception) -> DamagedError:
    """What a person can do about a file of ours that was cut or changed."""
    told = " ".join(str(fault).split()) or type(fault).__name__
    return DamagedError(f"{what} is damaged ({told}); put it back as it was, or remove what it belongs to")


def unusable(what: str, fault: BaseException, where: str = "") -> ServerError:
    """What a person can do about a folder, or a bucket, that does not let itself be read or written.

    where: the path or URI, whose free space is said where that is what is missing.
    """
    reason = next(iter(str(fault).splitlines()), type(fault).__name__)
    if is_full(fault):
        return ServerError(f"{what}: {reason}{free_space(where)}; {MAKE_ROOM}")
    return ServerError(
        f"{what}: {reason}; check the path, its permissions and its space and, for a bucket, the "
        "credentials in the environment"
    )


def is_full(fault: BaseException) -> bool:
    """Whether a fault says that a disk, or what of it one may use, is full."""
    told = str(fault)
    return getattr(fault, "errno", None) in _FULL or any(sign in told for sign in _FULL_IN_WORDS)


def free_space(place: str) -> str:
    """How much of a path's disk is free, in brackets, for messages; empty of a URI."""
    if not place or "://" in place:
        return ""
    there = next(folder for folder in (Path(place), *Path(place).parents) if folder.exists())
    usage = shutil.disk_usage(there)
    return f" ({ByteSize(usage.free).human_readable()} of {ByteSize(usage.total).human_readable()} free at {there})"


@contextmanager
def _reported(storage: Storage, key: str) -> Iterator[None]:
    """Turns a store's own errors into one that a person can act on."""
    try:
        yield
    except FileNotFoundError:
        raise
    except ValueError:
        raise SettingsError(
            f"{key!r} cannot lie below {storage.root}; write a name without '..', '//' and what is not printed"
        ) from None
    except (BaseError, OSError) as fault:
        where = storage.path(key)
        raise unusable(f"storage at {where}, below storage.root, cannot be used", fault, where) from fault
