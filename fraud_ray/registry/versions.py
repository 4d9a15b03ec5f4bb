"""Versions of the registered model: a bundle goes in once a run, and comes out by version or alias.

Registering is a chain of steps, each of which looks for what an interrupted attempt left behind before it acts:
logged model (found by its run, uploaded again unless it was finished), registered model, version (found by its run),
alias (set once a version, which a tag records, so that repeating never takes an alias back from a later version).
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version as installed
from pathlib import Path
from typing import Any

import mlflow.artifacts
import mlflow.pyfunc
import onnx
import pandas as pd
from mlflow import MlflowClient
from mlflow.entities import LoggedModel, LoggedModelOutput, Metric
from mlflow.entities.logged_model_status import LoggedModelStatus
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from mlflow.models import Model, ModelSignature
from mlflow.types.schema import AnyType, ColSpec, DataType, Schema
from mlflow.utils.mlflow_tags import MLFLOW_MODEL_VERSIONS

from fraud_ray.registry.tracking import RUN_TAG, TrackedRun, Tracking, entity_name, every, now_ms, reported
from fraud_ray.storage import Storage
from fraud_ray.values import Value

CHAMPION, CHALLENGER = "champion", "challenger"
ALIAS_TAG = "fraud_ray.alias"
REQUIREMENTS = ("mlflow", "numpy", "onnxruntime", "pandas")
GRAPH = "model.onnx"
_SCORER = Path(__file__).with_name("scorer.py")


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


def register(
    run: TrackedRun,
    bundle: str | Path,
    example: pd.DataFrame,
    metrics: Mapping[str, float],
    tags: Mapping[str, str] | None = None,
    description: str | None = None,
) -> RegisteredVersion:
    """The version of this run: logs the bundle's graph as an MLflow model and registers it, unless that was done.

    bundle: a folder whose model.onnx states its columns and threshold; its other files are logged beside the graph.
    example: a few rows with at least the graph's columns. metrics: belong to the run and are linked to the model.
    The alias is champion when no version holds that yet, else challenger.
    """
    tracking, name = run.tracking, run.tracking.registry.model_name
    client = tracking.client
    with reported(tracking.uri):
        version = _version_of(client, name, run)
        created = version is None
        if version is None:
            model = _logged_model(run, Path(bundle), example, metrics)
            _create_registered_model(client, name)
            # Not the URI models:/<model_id>: MLflow would look that up in its global tracking store.
            version = client.create_model_version(
                name,
                source=model.artifact_location,
                run_id=run.id,
                tags={**(tags or {}), RUN_TAG: run.name},
                description=description,
                model_id=model.model_id,
            )
        if ALIAS_TAG not in version.tags:
            _announce(run, version)
        return _described(client.get_model_version(name, version.version), created)


def champion(tracking: Tracking) -> RegisteredVersion | None:
    """The version that holds the alias champion, or None while there is none."""
    return next((version for version in list_versions(tracking) if version.alias == CHAMPION), None)


def list_versions(tracking: Tracking) -> list[RegisteredVersion]:
    """All versions of the registered model, the newest first."""
    with reported(tracking.uri):
        found = _search(tracking.client, f"name = '{tracking.registry.model_name}'")
        # A search does not say which aliases a version holds.
        aliases = tracking.client.get_registered_model(tracking.registry.model_name).aliases if found else {}
    holders = {version: alias for alias, version in aliases.items()}
    versions = [_described(version, alias=holders.get(version.version)) for version in found]
    return sorted(versions, key=lambda version: -version.version)


def download(tracking: Tracking, version: RegisteredVersion, folder: str | Path) -> Path:
    """The version's bundle (graph, weights, encoder, metadata) in a folder below `folder`; returns that folder."""
    with reported(tracking.uri):
        location = tracking.client.get_model_version_download_uri(version.name, str(version.version))
        Path(folder).mkdir(parents=True, exist_ok=True)
        return Path(
            mlflow.artifacts.download_artifacts(
                f"{location.rstrip('/')}/artifacts", dst_path=str(folder), tracking_uri=tracking.uri
            )
        )


def write_model(bundle: Path, example: pd.DataFrame, folder: str, identity: Model | None = None) -> None:
    """Writes a bundle as an MLflow model: the scorer's code, the bundle's files, signature, example, requirements."""
    stored = {entry.key: entry.value for entry in onnx.load(str(bundle / GRAPH)).metadata_props}
    kinds = {column["name"]: column["kind"] for column in json.loads(stored["columns"])}
    # MLflow refuses 64-bit integers and booleans for a `double`, numbers and NaN for a `boolean`, and numbers and
    # categories for a `string`, where the scorer takes them all: so the signature demands the columns by name only.
    signature = ModelSignature(
        inputs=Schema([ColSpec(AnyType(), name) for name in kinds]),
        outputs=Schema([ColSpec(DataType.float, "probability"), ColSpec(DataType.boolean, "decision")]),
    )
    shown = example[list(kinds)].astype(object)
    beside = [file for file in sorted(bundle.iterdir()) if file.is_file() and file.name != GRAPH]
    mlflow.pyfunc.save_model(
        folder,
        python_model=str(_SCORER),
        artifacts={"graph": str(bundle / GRAPH), **{file.name: str(file) for file in beside}},
        signature=signature,
        input_example=shown.where(shown.notna(), None),
        pip_requirements=[f"{package}=={installed(package)}" for package in REQUIREMENTS],
        metadata={"columns": kinds, "threshold": float(stored["threshold"])},
        mlflow_model=identity,
    )


def _version_of(client: MlflowClient, name: str, run: TrackedRun) -> ModelVersion | None:
    found = _search(client, f"name = '{name}' and tags.`{RUN_TAG}` = '{run.name}'")
    found = found or _search(client, f"name = '{name}' and run_id = '{run.id}'")
    return min(found, key=lambda version: int(version.version), default=None)


def _search(client: MlflowClient, condition: str) -> list[ModelVersion]:
    return list(every(lambda token: client.search_model_versions(condition, page_token=token)))


def _described(version: ModelVersion, created: bool = False, alias: str | None = None) -> RegisteredVersion:
    held = sorted(version.aliases or ())
    return RegisteredVersion(
        version.name,
        int(version.version),
        alias or (CHAMPION if CHAMPION in held else held[0] if held else None),
        version.tags.get(RUN_TAG),
        version.run_id,
        created,
    )


def _create_registered_model(client: MlflowClient, name: str) -> None:
    try:
        client.create_registered_model(name)
    except MlflowException as fault:
        if fault.error_code != "RESOURCE_ALREADY_EXISTS":
            raise


def _announce(run: TrackedRun, version: ModelVersion) -> None:
    """Links the version to its logged model, gives it the alias that is free, and notes that this was done."""
    client = run.tracking.client
    model = _find_logged_model(run)
    if model is not None:
        link = [{"name": version.name, "version": version.version}]
        client.set_logged_model_tags(model.model_id, {MLFLOW_MODEL_VERSIONS: json.dumps(link)})
    holders = client.get_registered_model(version.name).aliases
    alias = CHAMPION if holders.get(CHAMPION, version.version) == version.version else CHALLENGER
    client.set_registered_model_alias(version.name, alias, version.version)
    client.set_model_version_tag(version.name, version.version, ALIAS_TAG, alias)


def _find_logged_model(run: TrackedRun) -> LoggedModel | None:
    found = run.tracking.client.search_logged_models([run.tracking.experiment_id], f"source_run_id = '{run.id}'")
    return next(iter(found), None)


def _logged_model(run: TrackedRun, bundle: Path, example: pd.DataFrame, metrics: Mapping[str, float]) -> LoggedModel:
    """The run's finished logged model, uploaded if it is not."""
    client = run.tracking.client
    model = _find_logged_model(run) or client.create_logged_model(
        run.tracking.experiment_id, run.tracking.registry.model_name, run.id, tags={RUN_TAG: run.name}
    )
    if model.status == LoggedModelStatus.READY:
        return model
    with tempfile.TemporaryDirectory() as scratch:
        identity = Model(
            artifact_path=model.artifact_location, run_id=run.id, model_uuid=model.model_id, model_id=model.model_id
        )
        write_model(bundle, example, f"{scratch}/model", identity)
        client.log_model_artifacts(model.model_id, f"{scratch}/model")
    outputs = client.get_run(run.id).outputs
    if model.model_id not in {output.model_id for output in (outputs.model_outputs if outputs else ())}:
        client.log_outputs(run.id, [LoggedModelOutput(model.model_id, step=0)])
    _link_metrics(run, model, metrics)
    return client.finalize_logged_model(model.model_id, LoggedModelStatus.READY)


def _link_metrics(run: TrackedRun, model: LoggedModel, metrics: Mapping[str, float]) -> None:
    """Logs the metrics for the model too, as the very points that the run has where it has them."""
    client = run.tracking.client
    known = client.get_run(run.id).data.metrics
    points = []
    for key, value in ((entity_name(name), float(value)) for name, value in metrics.items()):
        history = client.get_metric_history(run.id, key) if key in known else []
        point = next((point for point in history if point.value == value), None)
        when, step = (point.timestamp, point.step) if point else (now_ms(), 0)
        points.append(Metric(key, value, when, step, model_id=model.model_id, run_id=run.id))
    client.log_batch(run.id, metrics=points)


def register_stored(
    run: TrackedRun,
    storage: Storage,
    folder: str,
    example: pd.DataFrame,
    metrics: Mapping[str, float],
    tags: Mapping[str, str],
    description: str,
) -> RegisteredVersion:
    """`register`, of the bundle that lies below a key of the storage."""
    with tempfile.TemporaryDirectory() as scratch:
        return register(run, storage.fetch(folder, Path(scratch)), example, metrics, tags, description)
