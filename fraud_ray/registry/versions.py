"""Versions of the registered model: a bundle goes in once a run, and comes out by version, alias or URI.

Registering is a chain of steps that may be cut short anywhere and repeated: the model's files are written to their
place in the run again, the registered model may be there, the version is found by its run, and it gets an alias once,
which a tag records, so that a repeat never takes an alias back from a later version.
"""

from __future__ import annotations

import hashlib
import json
import re
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version as installed
from pathlib import Path
from typing import Any

import mlflow.artifacts
import mlflow.pyfunc
import onnx
import pandas as pd
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from mlflow.models import Model, ModelSignature
from mlflow.types.schema import AnyType, ColSpec, DataType, Schema

from fraud_ray.errors import FraudRayError, SettingsError
from fraud_ray.model.encoder import Encoder
from fraud_ray.redaction import without_passwords
from fraud_ray.registry.tracking import RUN_TAG, TrackedRun, Tracking, connect_existing, every, unless_gone
from fraud_ray.settings import RegistrySettings
from fraud_ray.storage import Storage
from fraud_ray.values import Value

CHAMPION, CHALLENGER = "champion", "challenger"
ALIAS_TAG = "fraud_ray.alias"
HASHES_TAG = "fraud_ray.files"  # of a version: the SHA-256 of each of its files, as JSON
REQUIREMENTS = ("mlflow", "numpy", "onnxruntime", "pandas")
GRAPH = "model.onnx"
_SCORER = Path(__file__).with_name("scorer.py")
_FOLDER = "model"  # of the run's artifacts


@dataclass(frozen=True)
class RegisteredVersion(Value):
    """One version: `alias` is what it holds now, `run` the pipeline run it comes from, `run_id` that run in MLflow."""

    name: str
    version: int
    alias: str | None
    run: str | None
    run_id: str | None
    created: bool = False

    def __str__(self) -> str:
        return f"{self.name} version {self.version}, {self.alias}"

    def to_json(self) -> dict[str, Any]:
        return {**super().to_json(), "uri": self.uri}

    @property
    def uri(self) -> str:
        """What mlflow.pyfunc.load_model takes, with registry.uri as the tracking URI; stays with this version."""
        return f"models:/{self.name}/{self.version}"


@dataclass(frozen=True)
class RegisteredModel:
    """A registered model's aliases, each with the version that holds it, and its tags."""

    name: str
    aliases: dict[str, int]
    tags: dict[str, str]

    def aliases_of(self, version: int) -> tuple[str, ...]:
        return tuple(alias for alias, holder in self.aliases.items() if holder == version)

    def shown(self, version: int) -> str:
        """A version with its aliases, for messages: 3 (challenger)."""
        held = ", ".join(self.aliases_of(version))
        return f"{version} ({held})" if held else str(version)


def register(
    run: TrackedRun,
    bundle: str | Path,
    example: pd.DataFrame,
    tags: Mapping[str, str] | None = None,
    description: str | None = None,
) -> RegisteredVersion:
    """The version of this run: keeps the bundle as an MLflow model of the run and registers it, unless that was done.

    bundle: a folder whose model.onnx states its columns and threshold; its other files are kept beside the graph, and
    the hashes of all of them in a tag of the version.
    example: a few rows with at least the graph's columns. The alias is champion when no version holds that yet, else
    challenger.
    """
    tracking, client, name = run.tracking, run.tracking.client, run.tracking.registry.model_name
    with tracking.reported():
        versions = _versions_of(run)
        created = not versions
        if created:
            with tempfile.TemporaryDirectory() as scratch:
                write_model(Path(bundle), example, f"{scratch}/{_FOLDER}", run.id)
                client.log_artifacts(run.id, f"{scratch}/{_FOLDER}", _FOLDER)
            _create_registered_model(tracking)
            client.create_model_version(
                name,
                source=f"{run.run.info.artifact_uri}/{_FOLDER}",
                run_id=run.id,
                tags={**(tags or {}), RUN_TAG: run.name, HASHES_TAG: json.dumps(_hashes(Path(bundle)))},
                description=description,
            )
            versions = _versions_of(run)
        version, *twice = versions
        for surplus in twice:  # MLflow's client asks again by itself where the answer to a request was lost
            if surplus.run_id == run.id and ALIAS_TAG not in surplus.tags:
                with unless_gone():
                    client.delete_model_version(name, surplus.version)
        number, aliases = int(version.version), existing_model(tracking).aliases
        if ALIAS_TAG not in version.tags:
            alias = CHAMPION if aliases.get(CHAMPION, number) == number else CHALLENGER
            client.set_registered_model_alias(name, alias, version.version)
            client.set_model_version_tag(name, version.version, ALIAS_TAG, alias)
            aliases = {**aliases, alias: number}
        return _described(version, aliases, created)


def register_stored(
    run: TrackedRun, storage: Storage, folder: str, encoder: Encoder, origin: Mapping[str, Any], description: str
) -> RegisteredVersion:
    """`register`, of the bundle that lies below a key of the storage. origin: its data's fingerprint, its settings."""
    tags = {f"fraud_ray.{name}": origin[name] for name in ("fingerprint", "settings")}
    with tempfile.TemporaryDirectory() as scratch:
        bundle, example = storage.fetch(folder, Path(scratch)), encoder.typical_rows().to_pandas()
        return register(run, bundle, example, tags, description)


def registered_model(tracking: Tracking) -> RegisteredModel | None:
    """The settings' registered model, or None while it has no version."""
    with tracking.reported():
        try:
            found = tracking.client.get_registered_model(tracking.registry.model_name)
        except MlflowException as fault:
            if fault.error_code == "RESOURCE_DOES_NOT_EXIST":
                return None
            raise
        aliases = {alias: int(version) for alias, version in found.aliases.items()}
        return RegisteredModel(found.name, aliases, dict(found.tags))


def existing_model(tracking: Tracking) -> RegisteredModel:
    """The settings' registered model; raises SettingsError while it has no version."""
    model = registered_model(tracking)
    if model is None:
        raise SettingsError(
            f"{tracking.registry.model_name} has no version yet; a `fraud-ray run` that passes the gate registers one"
        )
    return model


def list_versions(tracking: Tracking) -> list[RegisteredVersion]:
    """All versions of the registered model, the newest first."""
    with tracking.reported():
        model = registered_model(tracking)
        # A search does not say which aliases a version holds.
        found = _search(tracking, f"name = '{model.name}'") if model else []
        versions = [_described(version, model.aliases) for version in found] if model else []
    return sorted(versions, key=lambda version: -version.version)


def champion(tracking: Tracking) -> RegisteredVersion | None:
    """The version that holds the alias champion, or None while there is none."""
    return next((version for version in list_versions(tracking) if version.alias == CHAMPION), None)


def version_of(tracking: Tracking, number: int) -> tuple[RegisteredVersion, datetime]:
    """One version, and when it was registered."""
    with tracking.reported():
        found = tracking.client.get_model_version(tracking.registry.model_name, str(number))
        registered = datetime.fromtimestamp(found.creation_timestamp / 1000, UTC)
        return _described(found, existing_model(tracking).aliases), registered


def tags_of_version(tracking: Tracking, version: int) -> dict[str, str]:
    """The tags of one version."""
    with tracking.reported():
        return dict(tracking.client.get_model_version(tracking.registry.model_name, str(version)).tags)


def recorded_hashes(tracking: Tracking, version: RegisteredVersion) -> dict[str, str]:
    """The SHA-256 of each of a version's files, as its tag has them; empty of one from before there was that tag."""
    hashes: dict[str, str] = json.loads(tags_of_version(tracking, version.version).get(HASHES_TAG, "{}"))
    return hashes


def download(tracking: Tracking, version: RegisteredVersion, folder: str | Path) -> Path:
    """The version's bundle (graph, weights, encoder, metadata) in a folder below `folder`; returns that folder."""
    with tracking.reported():
        location = tracking.client.get_model_version_download_uri(version.name, str(version.version))
        Path(folder).mkdir(parents=True, exist_ok=True)
        return Path(
            mlflow.artifacts.download_artifacts(
                f"{location.rstrip('/')}/artifacts", dst_path=str(folder), tracking_uri=tracking.uri
            )
        )


def find(registry: RegistrySettings, uri: str) -> tuple[Tracking, RegisteredVersion]:
    """The version of a URI that people write, models:/name@alias or models:/name/version, and the store that has it.

    Raises FraudRayError that says which versions there are, and how to get one, where the URI names none.
    """
    written = re.fullmatch(r"models:/([^/@]+)(?:@([^/@]+)|/(\d+))", uri)
    if not written:
        raise SettingsError(f"{uri} is no URI of a version; write models:/NAME@ALIAS or models:/NAME/VERSION")
    name, alias, number = written.groups()
    tracking = connect_existing(registry.model_copy(update={"model_name": name}))
    versions, model = list_versions(tracking), registered_model(tracking)
    if alias and model:
        number = model.aliases.get(alias)
    found = next((version for version in versions if str(version.version) == str(number)), None)
    if found is None:
        shown = [model.shown(version.version) for version in versions] if model else []
        raise FraudRayError(f"{uri} does not exist: {_what_there_is(tracking, name, shown)}")
    return tracking, found


def write_model(bundle: Path, example: pd.DataFrame, folder: str, run_id: str | None = None) -> None:
    """Writes a bundle as an MLflow model: the scorer's code, the bundle's files, signature, example, requirements.

    run_id: of the MLflow run that it comes from.
    """
    stored = {entry.key: entry.value for entry in onnx.load(str(bundle / GRAPH)).metadata_props}
    kinds = {column["name"]: column["kind"] for column in json.loads(stored["columns"])}
    # MLflow refuses 64-bit integers and booleans for a `double`, numbers and NaN for a `boolean`, numbers and
    # categories for a `string`, text and zones for a `datetime`, where the scorer takes them all: so the signature
    # demands the columns by name only, and the metadata say what each is.
    signature = ModelSignature(
        inputs=Schema([ColSpec(AnyType(), name) for name in kinds]),
        outputs=Schema([ColSpec(DataType.float, "probability"), ColSpec(DataType.boolean, "decision")]),
    )
    shown = example[list(kinds)].astype(object)
    beside = [file for file in _files(bundle) if file.name != GRAPH]
    mlflow.pyfunc.save_model(
        folder,
        python_model=str(_SCORER),
        artifacts={"graph": str(bundle / GRAPH), **{file.name: str(file) for file in beside}},
        signature=signature,
        input_example=shown.where(shown.notna(), None),
        pip_requirements=[f"{package}=={installed(package)}" for package in REQUIREMENTS],
        metadata={"columns": kinds, "threshold": float(stored["threshold"])},
        mlflow_model=Model(run_id=run_id),
    )


def _files(bundle: Path) -> list[Path]:
    return [file for file in sorted(bundle.iterdir()) if file.is_file()]


def _hashes(bundle: Path) -> dict[str, str]:
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in _files(bundle)}


def _versions_of(run: TrackedRun) -> list[ModelVersion]:
    """The versions that this run made, the first one first."""
    name = run.tracking.registry.model_name
    found = _search(run.tracking, f"name = '{name}' and tags.`{RUN_TAG}` = '{run.name}'")
    return sorted(found, key=lambda version: int(version.version))


def _search(tracking: Tracking, condition: str) -> list[ModelVersion]:
    return list(every(lambda token: tracking.client.search_model_versions(condition, page_token=token)))


def _described(version: ModelVersion, aliases: Mapping[str, int], created: bool = False) -> RegisteredVersion:
    """aliases: of the registered model; of several that a version holds, champion comes first."""
    held = sorted(alias for alias, holder in aliases.items() if holder == int(version.version))
    return RegisteredVersion(
        version.name,
        int(version.version),
        CHAMPION if CHAMPION in held else next(iter(held), None),
        version.tags.get(RUN_TAG),
        version.run_id,
        created,
    )


def _create_registered_model(tracking: Tracking) -> None:
    try:
        tracking.client.create_registered_model(tracking.registry.model_name)
    except MlflowException as fault:
        if fault.error_code != "RESOURCE_ALREADY_EXISTS":
            raise


def _what_there_is(tracking: Tracking, name: str, versions: Sequence[str]) -> str:
    where = f"the registry at {without_passwords(tracking.uri)}"
    if versions:
        return (
            f"{where} has versions {', '.join(versions)} of '{name}'. `fraud-ray models promote` makes one of them "
            "champion, `fraud-ray run -c FILE` registers another"
        )
    with tracking.reported():
        others = ", ".join(sorted(model.name for model in tracking.client.search_registered_models()))
    return (
        f"{where} has no '{name}'{f', but {others}' if others else ''}. `fraud-ray run -c FILE` trains and registers "
        "one; the first becomes champion"
    )
