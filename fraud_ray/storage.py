"""The one root (a folder or a URI) below which runs and prepared data lie: atomic puts, create-if-absent, listing."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from typing import Any

import obstore
from obstore.exceptions import AlreadyExistsError, BaseError
from obstore.store import LocalStore, ObjectStore, from_url

from fraud_ray.errors import ServerError

_PIECE = 4 * 2**20  # bytes that are hashed at a time


@dataclass(frozen=True)
class Stored:
    """An object: its key, its size in bytes, and when it was written."""

    key: str
    size: int
    changed: datetime


@dataclass(frozen=True)
class Storage:
    """Objects by key below `root`: an absolute path, or a URI such as s3://bucket/prefix.

    A put is visible whole or not at all. Cheap to send to another process. Raises ServerError when the store does
    not answer.
    """

    root: str

    @classmethod
    def at(cls, root: str) -> Storage:
        """Storage below a path (made absolute; ~ is the home folder) or a URI."""
        return cls(root.rstrip("/") if "://" in root else str(Path(root).expanduser().absolute()))

    @property
    def is_local(self) -> bool:
        return "://" not in self.root

    def path(self, key: str) -> str:
        """The absolute path or URI of a key."""
        return f"{self.root}/{key}"

    def put(self, key: str, content: bytes | memoryview) -> None:
        with _Reported(self, key):
            obstore.put(_open(self.root), key, content)

    def create(self, key: str, content: bytes) -> bool:
        """Puts only if the key is absent; returns whether this call created it."""
        with _Reported(self, key):
            try:
                obstore.put(_open(self.root), key, content, mode="create")
            except AlreadyExistsError:
                return False
            return True

    def get(self, key: str) -> bytes | None:
        """The content, or None where the key is absent."""
        with _Reported(self, key):
            try:
                return bytes(obstore.get(_open(self.root), key).bytes())
            except FileNotFoundError:
                return None

    def sha256(self, key: str) -> str | None:
        """Hash of the content, in hexadecimal, read piece by piece; None where the key is absent."""
        with _Reported(self, key):
            try:
                stream = obstore.get(_open(self.root), key).stream(min_chunk_size=_PIECE)
            except FileNotFoundError:
                return None
            digest = hashlib.sha256()
            for piece in stream:
                digest.update(piece)
            return digest.hexdigest()

    def exists(self, key: str) -> bool:
        with _Reported(self, key):
            try:
                obstore.head(_open(self.root), key)
            except FileNotFoundError:
                return False
            return True

    def keys(self, prefix: str) -> list[str]:
        """Keys below a prefix (a folder), in order."""
        return sorted(stored.key for stored in self.listed(prefix))

    def listed(self, prefix: str) -> list[Stored]:
        """What lies below a prefix (a folder)."""
        with _Reported(self, prefix):
            entries = (entry for page in obstore.list(_open(self.root), prefix) for entry in page)
            return [Stored(entry["path"], entry["size"], entry["last_modified"]) for entry in entries]

    def delete(self, keys: list[str]) -> None:
        with _Reported(self, ", ".join(keys[:1])):
            obstore.delete(_open(self.root), keys)

    def fetch(self, folder: str, into: Path) -> Path:
        """Copies a folder's objects into a local folder, which it returns."""
        for key in self.keys(folder):
            content = self.get(key)
            if content is not None:
                (into / Path(key).name).write_bytes(content)
        return into

    def put_json(self, key: str, value: Any) -> None:
        self.put(key, json.dumps(value, indent=1, default=str).encode())

    def get_json(self, key: str) -> Any | None:
        content = self.get(key)
        return None if content is None else json.loads(content)


@lru_cache(maxsize=16)
def _open(root: str) -> ObjectStore:
    return from_url(root) if "://" in root else LocalStore(root, mkdir=True)


class _Reported:
    """Turns a store's own errors into one that a person can act on."""

    def __init__(self, storage: Storage, key: str) -> None:
        self.where = storage.path(key)

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, fault: BaseException | None, trace: Any) -> None:
        if isinstance(fault, BaseError | OSError) and not isinstance(fault, FileNotFoundError):
            raise ServerError(
                f"storage at {self.where} cannot be used: {str(fault).splitlines()[0]}; "
                "check storage.root, its permissions and, for a bucket, the credentials in the environment"
            ) from fault
