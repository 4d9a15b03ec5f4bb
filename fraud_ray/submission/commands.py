"""A command as a short-lived Kubernetes Job: of the run's image, settings, volume and accounts, in a pod of its own.

Its log is followed until it ends, and its exit code handed on.
"""

from __future__ import annotations

import copy
import itertools
import secrets
import shlex
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import urllib3
from kubernetes import client
from kubernetes.client.exceptions import ApiException

from fraud_ray.cluster import refuse_relative_folders
from fraud_ray.errors import ServerError
from fraud_ray.settings import Settings, load_settings
from fraud_ray.submission.kuberay import KubeRayJobs
from fraud_ray.submission.order import refuse_passwords
from fraud_ray.submission.reasons import QUEUE_LABEL
from fraud_ray.submission.render import Document, Template, asked_by, with_settings
from fraud_ray.submission.streams import IN_POD, MARK

COMMAND_LABEL, LINE_ANNOTATION = "fraud-ray/command", "fraud-ray/line"
_COMPONENT = {"app.kubernetes.io/component": "command"}
_KEPT_S = {True: 86_400, False: 60}  # after its end; one that works on data is in `jobs list` for that long
_LONGEST_S = 86_400
_POLL_S = 0.5
_PATIENCE: dict[str, Any] = {"_request_timeout": 30}  # seconds, per try; a followed log may be silent for longer
_FORBIDDEN, _NOT_FOUND = 403, 404
_STARTING = {"ContainerCreating", "PodInitializing"}


@dataclass(frozen=True)
class Command:
    """A command to run on a cluster.

    name: that of its Job. line: what was asked for. words: what the pod's program gets. works: whether it works on
    data, so that it gets what a worker gets, and waits in the runs' queue where there is one; else it gets what a
    submitter gets.
    """

    name: str
    line: str
    words: tuple[str, ...]
    settings: Settings
    config: Path
    works: bool


@dataclass(frozen=True)
class Sent:
    """A command's Job, as the cluster has it.

    line: what was asked for. state: queued, pending, running, succeeded or failed, with its reason.
    seconds: from its creation to its end, or until now.
    """

    name: str
    line: str
    state: str
    created: datetime
    seconds: float


def command(
    path: Sequence[str], rest: Sequence[str], config: Path, overrides: Sequence[str], template: Template, works: bool
) -> Command:
    """The command of this path (`runs`, `list`) with its other words, -c left out: it reads what a run reads.

    The overlay's own overrides come first. Raises SettingsError for invalid settings, passwords in words, and folders
    that no job can see.
    """
    base = template.line
    refuse_passwords(rest)
    settings = load_settings(config, [*base.overrides, *overrides]).settings
    refuse_relative_folders(settings)
    own = (word for override in base.overrides for word in ("--set", override))
    name = "-".join([*path, secrets.token_hex(3)])
    return Command(name, shlex.join([*path, *rest]), (*path, "-c", base.config, *own, *rest), settings, config, works)


def fill_command(template: Template, command: Command) -> tuple[Document, Document]:
    """The Job of a command, and the ConfigMap that it reads.

    Its pod is a worker's, or without work the head's, with the secrets of the head, which talks to MLflow, and the
    account of the submitter, which may ask nothing of Kubernetes.
    """
    rayjob, settings = with_settings(template, command.settings, command.config)
    cluster, submitter = rayjob["spec"]["rayClusterSpec"], rayjob["spec"]["submitterPodTemplate"]["spec"]
    head = cluster["headGroupSpec"]["template"]
    worker = cluster["workerGroupSpecs"][0]["template"]["spec"]
    like = worker if command.works else head["spec"]
    sized = worker if command.works else submitter
    container = {key: value for key, value in like["containers"][0].items() if key != "ports"}
    container |= {
        "name": "fraud-ray",
        "command": ["fraud-ray", *(word.replace("$(", "$$(") for word in command.words)],
        "env": [*container["env"], {"name": IN_POD, "value": command.name}, asked_by()],
        "envFrom": head["spec"]["containers"][0]["envFrom"],
        "resources": sized["containers"][0]["resources"],
    }
    account = {key: submitter[key] for key in ("serviceAccountName", "automountServiceAccountToken")}
    metadata = rayjob["metadata"]
    queue = {key: value for key, value in metadata["labels"].items() if command.works and key == QUEUE_LABEL}
    labels = {**_COMPONENT, COMMAND_LABEL: "-".join(command.name.split("-")[:-1])}
    pod = {
        "metadata": {"labels": labels, "annotations": head["metadata"]["annotations"]},
        "spec": {**like, **account, "restartPolicy": "Never", "containers": [container]},
    }
    job = {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {
            "name": command.name,
            "namespace": metadata["namespace"],
            "labels": {**labels, **queue},
            "annotations": {LINE_ANNOTATION: command.line},
        },
        "spec": {
            "backoffLimit": 0,
            "ttlSecondsAfterFinished": _KEPT_S[command.works],
            "activeDeadlineSeconds": _LONGEST_S,
            "template": pod,
        },
    }
    return copy.deepcopy(job), settings


class CommandJobs(KubeRayJobs):
    """The Jobs of commands in the namespace of an overlay. Methods raise ServerError as those of KubeRayJobs do."""

    def __init__(self, template: Template, context: str | None = None) -> None:
        super().__init__(template, context)
        self.batch: Any = client.BatchV1Api()

    def run(self, command: Command, write: Callable[[str], object], say: Callable[[str], object]) -> int:
        """Runs a command to its end, and returns its exit code; an interruption ends it there too.

        write: gets each line of its log. say: is told why it waits. It may wait for cluster.wait_s.
        """
        job, settings = fill_command(self.template, command)
        with self._reported():
            self._create_settings(settings)
            try:
                self.batch.create_namespaced_job(self.namespace, job, field_validation="Strict", **_PATIENCE)
                pod = self._started(command, say)
                if command.works:
                    say(f"job {command.name}, which jobs list, logs and stop know")
                return self._followed(command.name, pod, write, say)
            except KeyboardInterrupt:
                self._end(command.name)
                raise

    def sent(self) -> list[Sent]:
        """The Jobs of all commands that are still there, in the order of their creation."""
        with self._reported():
            try:
                found = self.batch.list_namespaced_job(self.namespace, label_selector=COMMAND_LABEL, **_PATIENCE).items
            except ApiException as fault:
                if fault.status != _FORBIDDEN:  # by a Role from before there were commands
                    raise
                return []
        return sorted(map(_sent, found), key=lambda one: one.created)

    def printed(self, job: str, follow: bool) -> Iterator[str]:
        """The log of a command's Job so far, line by line; follow: until it ends."""
        with self._reported():
            pod = self._pod(job)
            if pod is None or pod.status.phase in {None, "Pending"}:
                why = _waits_for(pod) if pod else self._refusal(job)
                raise ServerError(f"job {job} has printed nothing yet{f': {why}' if why else ''}; ask again")
            yield from (f"{line.removeprefix(MARK)}\n" for line in self._lines(pod.metadata.name, follow))

    def end(self, job: str) -> None:
        """Ends a command and removes its Job."""
        with self._reported():
            self._end(job)

    def _started(self, command: Command, say: Callable[[str], object]) -> str:
        """The name of the Job's pod, once it runs or has run."""
        began, told = time.monotonic(), ""
        while (waited := time.monotonic() - began) < command.settings.cluster.wait_s:
            pod = self._pod(command.name)
            if pod and pod.status and pod.status.phase not in {None, "Pending"}:
                return str(pod.metadata.name)
            reason = _waits_for(pod) if pod else self._refusal(command.name)
            if reason and reason != told and waited > _POLL_S:
                told = reason
                say(f"job {command.name} waits: {reason}")
            time.sleep(_POLL_S)
        self._end(command.name)
        raise ServerError(
            f"job {command.name} did not start within {command.settings.cluster.wait_s:g} s (cluster.wait_s), and was "
            f"taken back: {told or 'Kubernetes does not say why'}"
        )

    def _followed(self, job: str, pod: str, write: Callable[[str], object], say: Callable[[str], object]) -> int:
        """Writes the pod's log, line by line, until it has ended; returns its exit code."""
        written, ended = 0, None
        while ended is None:
            ended = self._ended(job)  # asked before the log is read, which then is whole
            for line in itertools.islice(self._lines(pod, ended is None), written, None):
                write(line)
                written += 1
            if ended is None:
                time.sleep(_POLL_S)
        if ended.reason == "OOMKilled":
            say(f"job {job} was killed: it needs more memory than its pod may have")
        return int(ended.exit_code)

    def _lines(self, pod: str, follow: bool) -> Iterator[str]:
        """The log of a pod so far, or until it ends; one whose connection breaks is read again."""
        stream = self.core.read_namespaced_pod_log(pod, self.namespace, follow=follow, _preload_content=False)
        rest = b""
        try:
            for piece in stream.stream(decode_content=True):
                *whole, rest = (rest + piece).split(b"\n")
                yield from (line.decode(errors="replace") for line in whole)
        except urllib3.exceptions.ProtocolError:
            return
        if rest and not follow:
            yield rest.decode(errors="replace")

    def _ended(self, job: str) -> Any:
        """How the Job's container ended, with its exit code; None before that. Raises ServerError where it is gone."""
        pod = self._pod(job)
        if pod is None:
            raise ServerError(f"the pod of job {job} is gone, and with it how the command ended; look, and ask again")
        for container in pod.status.container_statuses or ():
            if container.state and container.state.terminated:
                return container.state.terminated
        if pod.status.phase == "Failed":
            told = ": ".join(part for part in (pod.status.reason, pod.status.message) if part)
            raise ServerError(f"the pod of job {job} was ended before its command did ({told}); ask again")
        return None

    def _pod(self, job: str) -> Any:
        """The Job's pod; None before there is one."""
        found = self.core.list_namespaced_pod(self.namespace, label_selector=f"job-name={job}", **_PATIENCE).items
        return next(iter(found), None)

    def _refusal(self, job: str) -> str | None:
        """Why Kubernetes makes no pod of a Job, by the newest event of it."""
        about = f"involvedObject.kind=Job,involvedObject.name={job}"
        try:
            found = self.core.list_namespaced_event(self.namespace, field_selector=about, **_PATIENCE).items
        except ApiException:  # who may not read events waits without a reason
            return None
        return found[-1].message if found else None

    def _end(self, job: str) -> None:
        """Deletes the Job, upon which its pod gets SIGTERM."""
        try:
            self.batch.delete_namespaced_job(job, self.namespace, propagation_policy="Background", **_PATIENCE)
        except ApiException as fault:
            if fault.status != _NOT_FOUND:
                raise


def _sent(job: Any) -> Sent:
    created, status = job.metadata.creation_timestamp, job.status
    conditions = (status and status.conditions) or ()  # none of one that was made just now
    ended = next((c for c in conditions if c.type in {"Complete", "Failed"} and c.status == "True"), None)
    if ended is not None:
        state = "succeeded" if ended.type == "Complete" else f"failed: {ended.message or ended.reason}"
    else:
        state = "queued" if job.spec.suspend else "running" if status and status.ready else "pending"
    until = ended.last_transition_time if ended else datetime.now(UTC)
    line = job.metadata.annotations[LINE_ANNOTATION]
    return Sent(job.metadata.name, line, state, created, (until - created).total_seconds())


def _waits_for(pod: Any) -> str | None:
    """Why a pod does not run yet, by its conditions and containers."""
    for condition in pod.status.conditions or ():
        if condition.type == "PodScheduled" and condition.status == "False":
            return condition.message
    for container in pod.status.container_statuses or ():
        waiting = container.state and container.state.waiting
        if waiting and waiting.reason not in _STARTING:
            return f"{waiting.reason}: {waiting.message}" if waiting.message else waiting.reason
    return None
