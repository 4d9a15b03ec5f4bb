"""Runs in MLflow: one parent a pipeline run, one child a trial. Everything here may be repeated after a lost answer.

Only the driver writes (one writer: sqlite holds, and an outage touches one place). No function sets MLflow's global
tracking URI; a store is named by the settings and reached through its own client.
"""

from __future__ import annotations

import json
import numbers
import re
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from mlflow import MlflowClient
from mlflow.entities import Dataset as MlflowDataset
from mlflow.entities import DatasetInput, InputTag, Metric, Param, Run, RunTag
from mlflow.exceptions import MlflowException

from fraud_ray.errors import SettingsError
from fraud_ray.redaction import redacted, starred, without_passwords
from fraud_ray.registry.server import open_experiment, reported, sqlite_file, uri_of
from fraud_ray.runs import REPORT, named
from fraud_ray.settings import RegistrySettings, dotted

Status = Literal["FINISHED", "FAILED", "KILLED"]
# What MLflow has no status for: it knows of no rejection.
State = Literal["running", "registered", "rejected", "failed", "interrupted", "stopped"]

RUN_TAG = "fraud_ray.run"
TRIAL_TAG = "fraud_ray.trial"
STATE_TAG = "fraud_ray.state"
REASON_TAG = "fraud_ray.reason"
# MLflow's own tags.
PARENT_TAG, _CONTEXT_TAG = "mlflow.parentRunId", "mlflow.data.context"

# MLflow's own limits.
_KEY_LENGTH, _PARAM_LENGTH, _TAG_LENGTH, _DIGEST_LENGTH = 250, 6_000, 8_000, 36
_PARAMS_A_BATCH, _ENTRIES_A_BATCH = 100, 1_000


# What MLflow answers to a deletion of what is deleted.
_GONE = {"RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"}


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
        return uri_of(self.registry)

    def reported(self) -> AbstractContextManager[None]:
        """Turns a fault of the store into a ServerError that names it."""
        return reported(self.uri)

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
        with self.reported():
            told = {key: redacted(value)[:_TAG_LENGTH] for key, value in (tags or {}).items()}
            wanted = {**told, RUN_TAG: run, STATE_TAG: "running"}
            create = partial(
                self.client.create_run, self.experiment_id, tags=wanted, run_name=self.registry.run_name or run
            )
            found, is_new = self.one_run(f"tags.`{RUN_TAG}` = '{run}'", create)
            if not is_new:
                self.client.update_run(found.info.run_id, status="RUNNING")
                if REASON_TAG in found.data.tags:
                    with unless_gone():
                        self.client.delete_tag(found.info.run_id, REASON_TAG)
            self.log(found, dict(dotted(params)), tags={} if is_new else wanted)
            if dataset is not None:
                self._log_dataset(found, dataset)
            return TrackedRun(self, found, run)

    def one_run(self, condition: str, create: Callable[[], Run]) -> tuple[Run, bool]:
        """The run of the experiment for which a condition holds, and whether it had to be made.

        MLflow's client asks again by itself where the answer to a request was lost, so two may have been made: the one
        that holds something stays, of empty ones the first, and the empty others are ended and deleted.
        """
        found = self.runs(condition)
        is_new = not found
        if is_new:
            made = create()
            found = self.runs(condition) or [made]
        run, *others = sorted(found, key=lambda one: (_is_empty(one), one.info.start_time, one.info.run_id))
        for twin in filter(_is_empty, others):
            self.client.set_terminated(twin.info.run_id, "KILLED")
            with unless_gone():
                self.client.delete_run(twin.info.run_id)
        return run, is_new

    def runs(self, condition: str) -> list[Run]:
        """The experiment's runs for which a condition holds."""
        return list(every(lambda token: self.client.search_runs([self.experiment_id], condition, page_token=token)))

    def report_of(self, wanted: str) -> str:
        """The page that a run of the pipeline left here, for where its storage is not at hand.

        wanted: as `runs.named` has it. Raises SettingsError that names the runs there are.
        """
        with self.reported():
            found = {run.data.tags[RUN_TAG]: run.info.run_id for run in reversed(self.runs(f"tags.`{RUN_TAG}` != ''"))}
            name = named(wanted, list(found))
            if name is None:
                there = ", ".join(found) or "none yet"
                raise SettingsError(f"no run '{wanted}' in MLflow at {without_passwords(self.uri)}; there are: {there}")
            if REPORT not in [file.path for file in self.client.list_artifacts(found[name])]:
                raise SettingsError(f"run '{name}' has no report in MLflow yet; its end writes one")
            with tempfile.TemporaryDirectory() as scratch:
                return Path(self.client.download_artifacts(found[name], REPORT, scratch)).read_text(encoding="utf-8")

    def log(
        self,
        run: Run,
        params: Mapping[str, Any] | None = None,
        points: Sequence[Metric] = (),
        tags: Mapping[str, str] | None = None,
    ) -> None:
        """Logs all of it in as few requests as MLflow takes it in; parameters that the run had are left as they are.

        A point that the store has already, of the same time, step and value, it leaves out by itself.
        """
        fresh = {entity_name(key): _text(value) for key, value in (params or {}).items()}
        left = [Param(key, value) for key, value in fresh.items() if key not in run.data.params]
        labels, points = [RunTag(key, value) for key, value in (tags or {}).items()], list(points)
        while left or points or labels:
            now, left = left[:_PARAMS_A_BATCH], left[_PARAMS_A_BATCH:]
            room = _ENTRIES_A_BATCH - len(now) - len(labels)
            self.client.log_batch(run.info.run_id, metrics=points[:room], params=now, tags=labels)
            labels, points = [], points[room:]

    def _log_dataset(self, run: Run, dataset: Dataset) -> None:
        digest = dataset.fingerprint[:_DIGEST_LENGTH]
        if run.inputs and any(known.dataset.digest == digest for known in run.inputs.dataset_inputs):
            return
        entity = MlflowDataset(
            name=dataset.name,
            digest=digest,
            source_type=urlsplit(dataset.path).scheme or "local",
            source=json.dumps({"uri": without_passwords(dataset.path)}),
            profile=json.dumps({"num_rows": dataset.rows, "fingerprint": dataset.fingerprint}),
        )
        self.client.log_inputs(run.info.run_id, datasets=[DatasetInput(entity, [InputTag(_CONTEXT_TAG, "training")])])


@dataclass(frozen=True)
class TrackedRun:
    """The parent run of one pipeline run: as MLflow had it when it was started or resumed, and its pipeline name."""

    tracking: Tracking
    run: Run
    name: str

    @property
    def id(self) -> str:
        return self.run.info.run_id

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
        with tracking.reported():
            create = partial(
                client.create_run,
                tracking.experiment_id,
                start_time=_now_ms() - int(1000 * seconds),
                tags={PARENT_TAG: self.id, TRIAL_TAG: trial},
                run_name=_trial_name(hyperparameters),
            )
            condition = f"tags.`{PARENT_TAG}` = '{self.id}' and tags.`{TRIAL_TAG}` = '{trial}'"
            child, _ = tracking.one_run(condition, create)
            if child.info.status == "FINISHED":
                return child.info.run_id
            started = child.info.start_time
            ended = int(started + 1000 * seconds)
            points = _curve_points(curve, started, 1000 * seconds / max(len(curve), 1))
            points += [Metric(key, value, ended, 0) for key, value in _numbers(result)]
            tracking.log(child, hyperparameters, points)
            client.set_terminated(child.info.run_id, status, end_time=ended)
            return child.info.run_id

    def log_curve(self, curve: Sequence[Mapping[str, Any]]) -> None:
        """The final fit's curve, written as a trial's is, with the time at which the run was started."""
        with self.tracking.reported():
            self.tracking.log(self.run, points=_curve_points(curve, self.run.info.start_time))

    def log_metrics(self, metrics: Mapping[str, Any]) -> None:
        """The numbers among the values as metrics; one that the run has with this value is not logged again."""
        with self.tracking.reported():
            known = self.tracking.client.get_run(self.id).data.metrics
            points = [Metric(key, value, _now_ms(), 0) for key, value in _numbers(metrics) if known.get(key) != value]
            self.tracking.log(self.run, points=points)

    def log_text(self, text: str, name: str) -> None:
        """A text artifact; `name` may hold folders."""
        with self.tracking.reported():
            self.tracking.client.log_text(self.id, text, name)

    def log_json(self, value: Any, name: str) -> None:
        """A JSON artifact; `name` may hold folders."""
        self.log_text(json.dumps(starred(value), indent=1, default=str), name)

    def tag(self, key: str, value: str) -> None:
        """Sets a tag of the run."""
        with self.tracking.reported():
            self.tracking.client.set_tag(self.id, key, redacted(value)[:_TAG_LENGTH])

    def finish(self, status: Status, state: State, reason: str | None = None) -> None:
        """Ends the run; its state, and the reason of a rejection, a fault or a stop, become tags."""
        self.tag(STATE_TAG, state)
        if reason is not None:
            self.tag(REASON_TAG, reason)
        with self.tracking.reported():
            self.tracking.client.set_terminated(self.id, status)


def connect(registry: RegistrySettings) -> Tracking:
    """The settings' experiment in the settings' store, both created where they are missing.

    Raises ServerError within seconds when the store does not answer: MLflow by itself would try for minutes.
    """
    client, experiment_id = open_experiment(registry)
    return Tracking(client, registry, experiment_id)


def connect_existing(registry: RegistrySettings) -> Tracking:
    """As `connect`, for commands about versions that are there.

    Raises SettingsError for an sqlite file that is not, which connecting would make.
    """
    file = sqlite_file(uri_of(registry))
    if file and not file.exists():
        raise SettingsError(
            f"nothing is registered at {registry.uri} yet ({file} is missing): `fraud-ray run` does that, or "
            "registry.uri is another; of a cluster's, the same command with --to kuberay tells"
        )
    return connect(registry)


@contextmanager
def unless_gone() -> Iterator[None]:
    """For a deletion, which the store may have made already when the answer to it was lost."""
    try:
        yield
    except MlflowException as fault:
        if fault.error_code not in _GONE:
            raise


def every(page_after: Callable[[str | None], Any]) -> Iterator[Any]:
    """What a search finds, page after page. page_after: the page of a token; the first for None."""
    token = None
    while True:
        page = page_after(token)
        yield from page
        token = page.token
        if not token:
            return


def entity_name(name: str) -> str:
    """A name that MLflow takes for a parameter or a metric; as a path it leads nowhere else."""
    return re.sub(r"[^\w./ :-]|(?<!\w)/|/(?!\w)", "_", name)[:_KEY_LENGTH]


def _is_empty(run: Run) -> bool:
    return not run.data.params and not run.data.metrics


def _trial_name(hyperparameters: Mapping[str, Any]) -> str:
    """Such as `learning_rate=0.002 dropout=0.1`."""
    shown = {
        key: f"{value:.3g}" if isinstance(value, float) else _text(value) for key, value in hyperparameters.items()
    }
    return " ".join(f"{key}={value}" for key, value in shown.items())[:_KEY_LENGTH] or "settings as given"


def _now_ms() -> int:
    """The time as MLflow writes it: milliseconds since 1970."""
    return int(1000 * time.time())


def _text(value: Any) -> str:
    told = starred(value, without_passwords)
    return (told if isinstance(told, str) else json.dumps(told, default=str))[:_PARAM_LENGTH]


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
