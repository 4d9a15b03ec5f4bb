"""Runs in MLflow: one parent a pipeline run, one child a trial. Everything here may be repeated after a lost answer.

Only the driver writes (one writer: sqlite holds, and an outage touches one place). No function sets MLflow's global
tracking URI; a store is named by the settings and reached through its own client.
"""

from __future__ import annotations

import json
import numbers
import os
import re
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar
from urllib.parse import urlsplit

import sqlalchemy
from mlflow import MlflowClient
from mlflow.entities import Dataset as MlflowDataset
from mlflow.entities import DatasetInput, InputTag, Metric, Param, Run
from mlflow.exceptions import MlflowException
from mlflow.store.entities import PagedList
from mlflow.utils.mlflow_tags import MLFLOW_DATASET_CONTEXT, MLFLOW_PARENT_RUN_ID

from fraud_ray.errors import ServerError, SettingsError
from fraud_ray.settings import RegistrySettings, dotted, without_passwords

Status = Literal["FINISHED", "FAILED", "KILLED"]
_T = TypeVar("_T")

RUN_TAG = "fraud_ray.run"
TRIAL_TAG = "fraud_ray.trial"
REASON_TAG = "fraud_ray.reason"

FIRST_ANSWER_S = 5
# MLflow's own limits (mlflow.utils.validation).
_KEY_LENGTH, _PARAM_LENGTH, _TAG_LENGTH, _DIGEST_LENGTH = 250, 6_000, 8_000, 36
_PARAMS_A_BATCH, _METRICS_A_BATCH = 100, 1_000


@dataclass(frozen=True)
class Dataset:
    """What a run was trained on: a name, where it lies, its fingerprint and its rows."""

    name: str
    path: str
    fingerprint: str
    rows: int


@dataclass(frozen=True)
class Tracking:
    """One experiment in one MLflow store."""

    client: MlflowClient
    registry: RegistrySettings
    experiment_id: str

    @property
    def uri(self) -> str:
        return _uri(self.registry)

    def start(
        self,
        run: str,
        params: Mapping[str, Any],
        tags: Mapping[str, str] | None = None,
        dataset: Dataset | None = None,
    ) -> TrackedRun:
        """The parent run of the pipeline run of this name: found by its tag and resumed, else created.

        params: settings, nested or flat; a parameter that is logged already keeps its value, as MLflow demands.
        """
        with reported(self.uri):
            wanted = {**{key: value[:_TAG_LENGTH] for key, value in (tags or {}).items()}, RUN_TAG: run}
            found = self._search(f"tags.`{RUN_TAG}` = '{run}'")
            if found is None:
                found = self.client.create_run(self.experiment_id, tags=wanted, run_name=self.registry.run_name)
            else:
                self.client.update_run(found.info.run_id, status="RUNNING")
                for key, value in wanted.items():
                    self.client.set_tag(found.info.run_id, key, value)
            self._log_params(found, dict(dotted(params)))
            if dataset is not None:
                self._log_dataset(found, dataset)
            return TrackedRun(self, found.info.run_id, run)

    def _search(self, condition: str) -> Run | None:
        found = self.client.search_runs([self.experiment_id], condition, order_by=["attributes.start_time ASC"])
        return found[0] if found else None

    def _log_params(self, run: Run, params: Mapping[str, Any]) -> None:
        fresh = {
            entity_name(key): _text(value) for key, value in params.items() if entity_name(key) not in run.data.params
        }
        for batch in _batches([Param(key, value) for key, value in fresh.items()], _PARAMS_A_BATCH):
            self.client.log_batch(run.info.run_id, params=batch)

    def _log_dataset(self, run: Run, dataset: Dataset) -> None:
        digest = dataset.fingerprint[:_DIGEST_LENGTH]
        if run.inputs and any(known.dataset.digest == digest for known in run.inputs.dataset_inputs):
            return
        entity = MlflowDataset(
            name=dataset.name,
            digest=digest,
            source_type=urlsplit(dataset.path).scheme or "local",
            source=json.dumps({"uri": dataset.path}),
            profile=json.dumps({"num_rows": dataset.rows, "fingerprint": dataset.fingerprint}),
        )
        self.client.log_inputs(
            run.info.run_id, datasets=[DatasetInput(entity, [InputTag(MLFLOW_DATASET_CONTEXT, "training")])]
        )

    def _log_points(self, run_id: str, points: Sequence[Metric]) -> None:
        """Logs the points that the run does not have yet, by name, step and value."""
        known = self.client.get_run(run_id).data.metrics
        logged = {
            (point.key, point.step, point.value)
            for key in {point.key for point in points} & known.keys()
            for point in self.client.get_metric_history(run_id, key)
        }
        fresh = [point for point in points if (point.key, point.step, point.value) not in logged]
        for batch in _batches(fresh, _METRICS_A_BATCH):
            self.client.log_batch(run_id, metrics=batch)


@dataclass(frozen=True)
class TrackedRun:
    """The parent run of one pipeline run: MLflow's id, and the pipeline run's name."""

    tracking: Tracking
    id: str
    name: str

    def log_trial(
        self,
        trial: str,
        hyperparameters: Mapping[str, Any],
        curve: Sequence[Mapping[str, Any]],
        result: Mapping[str, Any],
        *,
        seconds: float = 0.0,
        status: Status = "FINISHED",
    ) -> str:
        """A child run with the trial's hyperparameters, curve and result; returns its id.

        curve: one mapping an epoch, in order; its numbers become metrics `epoch/<name>`, at the step that its `epoch`
        says (else its position). result: its numbers become metrics of their own names. A child that is finished is
        left as it is.
        """
        tracking, client = self.tracking, self.tracking.client
        with reported(tracking.uri):
            child = tracking._search(f"tags.`{MLFLOW_PARENT_RUN_ID}` = '{self.id}' and tags.`{TRIAL_TAG}` = '{trial}'")
            if child is None:
                child = client.create_run(
                    tracking.experiment_id,
                    start_time=now_ms() - int(1000 * seconds),
                    tags={MLFLOW_PARENT_RUN_ID: self.id, TRIAL_TAG: trial},
                    run_name=trial,
                )
            elif child.info.status == "FINISHED":
                return child.info.run_id
            tracking._log_params(child, hyperparameters)
            started = child.info.start_time
            points = _curve_points(curve, started, 1000 * seconds / max(len(curve), 1))
            points += [Metric(key, value, int(started + 1000 * seconds), 0) for key, value in _numbers(result)]
            tracking._log_points(child.info.run_id, points)
            client.set_terminated(child.info.run_id, status, end_time=int(started + 1000 * seconds))
            return child.info.run_id

    def log_curve(self, curve: Sequence[Mapping[str, Any]]) -> None:
        """The final fit's curve, written as a trial's is."""
        with reported(self.tracking.uri):
            self.tracking._log_points(self.id, _curve_points(curve, now_ms()))

    def log_metrics(self, metrics: Mapping[str, Any], step: int = 0) -> None:
        """The numbers among the values as metrics; what is logged already at this step is not logged again."""
        with reported(self.tracking.uri):
            points = [Metric(key, value, now_ms(), step) for key, value in _numbers(metrics)]
            self.tracking._log_points(self.id, points)

    def log_text(self, text: str, name: str) -> None:
        """A text artifact; `name` may hold folders."""
        with reported(self.tracking.uri):
            self.tracking.client.log_text(self.id, text, name)

    def log_json(self, value: Any, name: str) -> None:
        """A JSON artifact; `name` may hold folders."""
        self.log_text(json.dumps(value, indent=1, default=str), name)

    def tag(self, key: str, value: str) -> None:
        """Sets a tag of the run."""
        with reported(self.tracking.uri):
            self.tracking.client.set_tag(self.id, key, value[:_TAG_LENGTH])

    def finish(self, status: Status, reason: str | None = None) -> None:
        """Ends the run; the reason (of a rejection or a fault) becomes the tag fraud_ray.reason."""
        with reported(self.tracking.uri):
            if reason is not None:
                self.tracking.client.set_tag(self.id, REASON_TAG, reason[:_TAG_LENGTH])
            self.tracking.client.set_terminated(self.id, status)


def connect(registry: RegistrySettings) -> Tracking:
    """The settings' experiment in the settings' store, both created where they are missing.

    Raises ServerError within seconds when the store does not answer: MLflow by itself would try for minutes.
    """
    uri = _uri(registry)
    with reported(uri), _short_patience():
        if _is_database(uri):
            _probe(uri)
        client = MlflowClient(uri, registry_uri=uri)
        return Tracking(client, registry, _experiment(client, registry))


def connect_existing(registry: RegistrySettings) -> Tracking:
    """As `connect`, for commands about versions that are there.

    Raises SettingsError for an sqlite file that is not, which connecting would make.
    """
    uri = _uri(registry)
    if uri.startswith("sqlite:") and not Path(sqlalchemy.make_url(uri).database or "").exists():
        raise SettingsError(
            f"nothing is registered at {uri} yet: `fraud-ray run` does that, or registry.uri is another"
        )
    return connect(registry)


def ui_command(registry: RegistrySettings, port: int = 5000) -> list[str]:
    """The command that shows the store's pages on 127.0.0.1 at this port.

    Raises SettingsError where registry.uri is a tracking server, which has pages of its own.
    """
    uri = _uri(registry)
    if not _is_database(uri):
        raise SettingsError(f"registry.uri is a tracking server, which shows its own pages: open {uri} in a browser")
    folder = _artifact_folder(uri)
    return [
        *(sys.executable, "-m", "mlflow", "server", "--backend-store-uri", uri),
        *(("--default-artifact-root", str(folder)) if folder else ()),
        *("--no-serve-artifacts", "--workers", "1", "--host", "127.0.0.1", "--port", str(port)),
    ]


@contextmanager
def reported(uri: str) -> Iterator[None]:
    """Turns MLflow's faults, and those of what it stands on, into one that a person can act on."""
    try:
        yield
    except (MlflowException, sqlalchemy.exc.SQLAlchemyError, OSError) as fault:
        reason = str(fault).strip().splitlines()[0]
        cause = re.search(r'Caused by \w+\("?\w+\([^()]*\): (.+?)"?\)+$', reason)
        advice = "check registry.uri and that the server runs"
        if not _is_database(uri):
            advice += " (MLFLOW_TRACKING_TOKEN, or MLFLOW_TRACKING_USERNAME and _PASSWORD, say who asks)"
        shown = without_passwords(uri)
        raise ServerError(f"MLflow at {shown} cannot be used: {cause[1] if cause else reason}; {advice}") from fault


@contextmanager
def _short_patience() -> Iterator[None]:
    """Few and short requests for as long as it lasts, unless the environment says otherwise."""
    wanted = {"MLFLOW_HTTP_REQUEST_TIMEOUT": str(FIRST_ANSWER_S), "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1"}
    added = {name: value for name, value in wanted.items() if name not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            del os.environ[name]


def _probe(uri: str) -> None:
    """One connection to a database, which MLflow would try ten times, for over a minute."""
    url = sqlalchemy.make_url(uri)
    backend = url.get_backend_name()
    if backend == "sqlite" and url.database:
        Path(url.database).parent.mkdir(parents=True, exist_ok=True)
    limits = {"connect_timeout": FIRST_ANSWER_S} if backend in {"postgresql", "mysql"} else {}
    try:
        engine = sqlalchemy.create_engine(url, connect_args=limits)
    except ImportError as fault:
        raise SettingsError(
            f"registry.uri begins with {url.drivername}://, and the driver for that is not installed ({fault}): "
            "install it, or name the one that is (postgresql+psycopg2:// comes with this package)"
        ) from fault
    try:
        engine.connect().close()
    finally:
        engine.dispose()


def _experiment(client: MlflowClient, registry: RegistrySettings) -> str:
    """The experiment's id; creating it may be won by somebody else, whose experiment is then used."""
    found = client.get_experiment_by_name(registry.experiment)
    if found is None:
        uri = _uri(registry)
        folder = _artifact_folder(uri)
        if _is_database(uri) and folder is None:
            raise SettingsError(
                f"experiment '{registry.experiment}' does not exist, and registry.uri is a database, which does not "
                "say where artifacts go: create it with `mlflow experiments create --artifact-location`, or let "
                "registry.uri be a tracking server"
            )
        try:
            return client.create_experiment(registry.experiment, artifact_location=folder.as_uri() if folder else None)
        except MlflowException as fault:
            found = client.get_experiment_by_name(registry.experiment)
            if found is None:
                raise fault
    if found.lifecycle_stage != "active":
        raise SettingsError(
            f"experiment '{registry.experiment}' was deleted in MLflow: restore it there "
            f"(`mlflow experiments restore --experiment-id {found.experiment_id}`), or name another with "
            "registry.experiment"
        )
    return found.experiment_id


def _uri(registry: RegistrySettings) -> str:
    assert registry.uri is not None, "settings fill it in when they are read"
    return registry.uri


def _is_database(uri: str) -> bool:
    return urlsplit(uri).scheme.partition("+")[0] in {"sqlite", "postgresql", "mysql", "mssql"}


def _artifact_folder(uri: str) -> Path | None:
    """The folder beside an sqlite file; elsewhere the server knows."""
    if not uri.startswith("sqlite:"):
        return None
    return Path(sqlalchemy.make_url(uri).database or "").absolute().parent / "mlartifacts"


def every(page_after: Callable[[str | None], PagedList[_T]]) -> Iterator[_T]:
    """What a search finds, page after page. page_after: the page of a token; the first for None."""
    token = None
    while True:
        page = page_after(token)
        yield from page
        token = page.token
        if not token:
            return


def now_ms() -> int:
    """The time as MLflow writes it: milliseconds since 1970."""
    return int(1000 * time.time())


def entity_name(name: str) -> str:
    """A name that MLflow takes for a parameter or a metric."""
    return re.sub(r"[^\w./ :-]", "_", name)[:_KEY_LENGTH]


def _text(value: Any) -> str:
    return (value if isinstance(value, str) else json.dumps(value, default=str))[:_PARAM_LENGTH]


def _numbers(values: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    for key, value in values.items():
        if isinstance(value, numbers.Real):
            yield entity_name(key), float(value)


def _curve_points(curve: Sequence[Mapping[str, Any]], start_ms: int, epoch_ms: float = 0.0) -> list[Metric]:
    return [
        Metric(f"epoch/{key}", value, int(start_ms + epoch_ms * (position + 1)), int(row.get("epoch", position)))
        for position, row in enumerate(curve)
        for key, value in _numbers(row)
        if key != "epoch"
    ]


def _batches(items: Sequence[_T], size: int) -> Iterator[Sequence[_T]]:
    return (items[start : start + size] for start in range(0, len(items), size))
