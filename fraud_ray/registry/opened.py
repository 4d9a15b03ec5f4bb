"""A model's files as those read them who score: they are the ones that were written down when it was made.

The one way in for score, serve, drift and the comparison with the champion. Of a registered version its registration
says what the files are, in this storage's audit record or in a tag of the registry; of a folder its own bundle.json.
The graph and what lies beside it are read as data: no Python of a version is run.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fraud_ray.errors import FraudRayError, SettingsError
from fraud_ray.model.scorer import FILES, FORMAT, GRAPH, INFO
from fraud_ray.redaction import without_passwords
from fraud_ray.registry import audit
from fraud_ray.settings import RegistrySettings
from fraud_ray.storage import Storage

if TYPE_CHECKING:  # MLflow takes seconds to import, which a folder does without
    from fraud_ray.registry.tracking import Tracking
    from fraud_ray.registry.versions import RegisteredVersion

UNRECORDED = "registered before hashes were recorded, so nothing says what its files were then"
UNVERIFIED = "not verified, as was asked for"


@dataclass(frozen=True)
class Opened:
    """A model to score with.

    version: None of one that is not from a registry. folder: its files, on this machine. graph: its graph, as it was
    checked. note: what there is to say of where it comes from; "" where its registration confirms it.
    """

    version: RegisteredVersion | None
    folder: Path
    graph: bytes
    note: str

    @property
    def windows(self) -> dict[str, Any] | None:
        """Definition and state's key of the window columns that it reads; None where it reads none."""
        found: dict[str, Any] | None = _info(self.folder).get("origin", {}).get("windows")
        return found

    @property
    def named(self) -> str:
        """What its rows carry: 'fraud-detection-production/3', or the graph's own digest."""
        return f"{self.version.name}/{self.version.version}" if self.version else f"sha256:{sha256(self.graph)[:12]}"


def open_uri(
    uri: str, registry: RegistrySettings, storage: Storage | None, scratch: Path, verified: bool = True
) -> Opened:
    """The model of a URI, models:/NAME@ALIAS or models:/NAME/VERSION, or of a bundle's folder or graph on disk.

    storage: whose audit record is asked; None: the registry's tag alone. scratch: a version is downloaded below it.
    verified: whether files are refused that are not as they were written down. Raises FraudRayError, also where there
    is no such model, which says how to get one.
    """
    if not uri.startswith("models:"):
        return open_folder(uri, scratch, verified)
    from fraud_ray.registry.versions import find

    return open_version(*find(registry, uri), storage, scratch, verified)


def open_version(
    tracking: Tracking, version: RegisteredVersion, storage: Storage | None, scratch: Path, verified: bool = True
) -> Opened:
    """A registered version, as `open_uri` opens it."""
    from fraud_ray.registry.versions import download, recorded_hashes

    folder, note = download(tracking, version, scratch), UNVERIFIED
    contents = {file.name: file.read_bytes() for file in folder.iterdir() if file.is_file()}
    if verified:
        where, of = without_passwords(tracking.uri), (version.name, version.version)
        record = storage and audit.of_registration(storage, *of, where, version.run)
        recorded = record.facts["bundle"] if record else recorded_hashes(tracking, version)
        note = "" if recorded else UNRECORDED
        found = {name: sha256(content) for name, content in contents.items()}
        if recorded and found != recorded:
            by = f"audit record {record.number} at {storage.root}" if record and storage else "its tag in the registry"
            raise FraudRayError(
                f"version {version.version} of {version.name}, at {where}, is not what was registered: "
                f"{_differences(found, recorded)}, says {by}; nothing was read of it. Make another version champion "
                "(fraud-ray models rollback, or promote), or put its artifacts back; fraud-ray score --unverified "
                "takes them as they are"
            )
    _refuse_other_format(folder)
    if GRAPH not in contents:
        raise FraudRayError(f"version {version.version} of {version.name} holds no {GRAPH}; take another version")
    return Opened(version, folder, contents[GRAPH], note)


def open_folder(place: str, scratch: Path, verified: bool = True) -> Opened:
    """A bundle's folder, on disk or at a URI, or a graph on disk, as `open_uri` opens it."""
    path = Storage.at(place).fetch("", scratch) if "://" in place else Path(place).expanduser().absolute()
    path = path / GRAPH if path.is_dir() else path
    if not path.is_file():
        raise SettingsError(
            f"there is no model at {path}; name a registered one as models:/NAME@champion or models:/NAME/VERSION, or "
            "the folder of a bundle"
        )
    folder, graph = path.parent, path.read_bytes()
    _refuse_other_format(folder)
    if not verified:
        return Opened(None, folder, graph, f"not from a registry; {UNVERIFIED}")
    recorded = _manifest(folder)
    beside = {name: (folder / name).read_bytes() for name in recorded if (folder / name).is_file()} | {path.name: graph}
    found = {name: sha256(content) for name, content in beside.items() if name in recorded}
    if found != recorded:
        raise FraudRayError(
            f"the model at {folder} is not what was written there: {_differences(found, recorded)}, says its {INFO}; "
            "nothing was read of it. Copy the whole folder again, or name the version in the registry; "
            "fraud-ray score --unverified takes it as it is"
        )
    known = sha256(graph) in recorded.values()
    told = f"; its files are those that {INFO} names" if known else ", and nothing says what it was when it was made"
    return Opened(None, folder, graph, f"not from a registry{told}")


def _manifest(folder: Path) -> dict[str, str]:
    """The hashes that a bundle's own file holds; empty of a bundle from before those, and of a bare graph."""
    manifest: dict[str, str] = _info(folder).get(FILES, {})
    return manifest


def _refuse_other_format(folder: Path) -> None:
    held = _info(folder).get("format", FORMAT)
    if held != FORMAT:
        raise SettingsError(
            f"the bundle at {folder} has format {held!r}, and this version of fraud_ray reads {FORMAT}; nothing was "
            "scored. Use it with the version that wrote it, or train and register the model again with this one"
        )


def _info(folder: Path) -> dict[str, Any]:
    """A bundle's own file; empty of a bare graph."""
    file = folder / INFO
    try:
        held: dict[str, Any] = json.loads(file.read_text()) if file.is_file() else {}
        return {**held}
    except (ValueError, TypeError) as fault:
        raise SettingsError(f"{file} is not what was written there ({fault}); copy the whole folder again") from fault


def _differences(found: Mapping[str, str], recorded: Mapping[str, str]) -> str:
    told = [f"{name} is gone" for name in recorded.keys() - found.keys()]
    told += [f"{name} was added" for name in found.keys() - recorded.keys()]
    told += [
        f"{name} has the SHA-256 {found[name]}, not {recorded[name]}"
        for name in found.keys() & recorded.keys()
        if found[name] != recorded[name]
    ]
    return ", ".join(sorted(told))


def sha256(content: bytes) -> str:
    """In hexadecimal."""
    return hashlib.sha256(content).hexdigest()
