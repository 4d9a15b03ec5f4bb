"""Runs as jobs on Kubernetes: a RayJob an attempt, each with a cluster of its own, which KubeRay makes and removes.

A second submission of a run that is under way or done answers with that attempt; one that failed or was stopped is
followed by the next, which resumes the run from its storage.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

import urllib3
import yaml
from kubernetes import client, config
from kubernetes.client.exceptions import ApiException

from fraud_ray.errors import RunDiffersError, ServerError, SettingsError
from fraud_ray.runs import differences, named
from fraud_ray.settings import parse_settings
from fraud_ray.submission.order import Order
from fraud_ray.submission.render import ATTEMPT_LABEL, RUN_LABEL, SETTINGS_ANNOTATION, Document, Template, fill

State = Literal["pending", "running", "succeeded", "failed", "stopped"]
_STANDING = {"pending", "running", "succeeded"}
_CONTENDERS = 3
_PATIENCE: dict[str, Any] = {"_request_timeout": 30}  # seconds, per try; a followed log may be silent for longer
_RAYJOBS: dict[str, Any] = {"group": "ray.io", "version": "v1", "plural": "rayjobs", **_PATIENCE}
_CONFLICT, _NOT_FOUND = 409, 404
_ADVICE = {
    401: "; log in again",
    403: "; ask for a role that may do this in the namespace",
    404: "; is KubeRay installed, and has the overlay been applied?",
}


@dataclass(frozen=True)
class Attempt:
    """One job that `submit` made. settings: the run's, resolved, as JSON types."""

    name: str
    run: str
    number: int
    state: State
    created: datetime | None
    message: str
    settings: dict[str, Any]


class KubeRayJobs:
    """The RayJobs in the namespace of an overlay. Methods raise ServerError where the API is silent or refuses."""

    def __init__(self, template: Template) -> None:
        """Takes the cluster and the account of the kubeconfig, or those of the pod that this runs in."""
        self.template = template
        self.namespace = template.namespace
        try:
            _load_account()
        except config.ConfigException as fault:
            raise ServerError(
                "there is no cluster to submit to: no kubeconfig, and this is no pod. Set KUBECONFIG or log in, or run "
                "this in a pod with a service account; --render prints the manifests without a cluster"
            ) from fault
        self.objects: Any = client.CustomObjectsApi()
        self.core: Any = client.CoreV1Api()

    def attempts(self) -> list[Attempt]:
        """All attempts at all runs, in the order of their creation."""
        with self._reported():
            found = self.objects.list_namespaced_custom_object(
                **_RAYJOBS, namespace=self.namespace, label_selector=RUN_LABEL
            )
        return sorted((_attempt(job) for job in found["items"]), key=_age)

    def create(self, order: Order, number: int) -> bool:
        """Starts an attempt; False if somebody else has made the attempt of that number meanwhile."""
        job, settings = fill(self.template, order, number)
        with self._reported():
            self._create_settings(settings)
            try:
                self.objects.create_namespaced_custom_object(
                    **_RAYJOBS, namespace=self.namespace, body=job, field_validation="Strict"
                )
            except ApiException as fault:
                if fault.status == _CONFLICT:
                    return False
                raise
            return True

    def logs(self, attempt: Attempt, follow: bool) -> Iterator[str]:
        """What the run has printed, piece by piece; follow: until it ends."""
        with self._reported():
            # KubeRay calls the submitter's Job like the RayJob; its pod prints the driver's log.
            pods = self.core.list_namespaced_pod(
                self.namespace, label_selector=f"job-name={attempt.name}", **_PATIENCE
            ).items
            started = [pod for pod in pods if pod.status and pod.status.phase not in {None, "Pending"}]
            if not started:
                raise ServerError(
                    f"job {attempt.name} is {attempt.state} and has no log yet, or none any more: its pod prints it, "
                    f"between the start of its cluster and its removal (kubectl -n {self.namespace} get pods)"
                )
            newest = max(started, key=lambda pod: pod.metadata.creation_timestamp)
            stream = self.core.read_namespaced_pod_log(
                newest.metadata.name, self.namespace, follow=follow, _preload_content=False
            )
            for piece in stream.stream(decode_content=True):
                yield piece.decode(errors="replace")

    def stop(self, attempt: Attempt) -> None:
        """Ends the attempt by SIGTERM, on which a run lets go of its lease; what it concluded is kept."""
        with self._reported():
            # By its finalizer KubeRay first stops the Ray job, then takes the cluster down.
            self.objects.delete_namespaced_custom_object(**_RAYJOBS, namespace=self.namespace, name=attempt.name)

    def _create_settings(self, settings: Document) -> None:
        """One that exists is right, by its name; looked for first, as the schedule may not create any."""
        name = settings["metadata"]["name"]
        try:
            self.core.read_namespaced_config_map(name, self.namespace, **_PATIENCE)
        except ApiException as fault:
            if fault.status != _NOT_FOUND:
                raise
            self.core.create_namespaced_config_map(self.namespace, settings, **_PATIENCE)

    @contextmanager
    def _reported(self) -> Iterator[None]:
        """Turns the API's refusals, and its silence, into a message that a person can act on."""
        host = self.objects.api_client.configuration.host
        try:
            yield
        except ApiException as fault:
            raise ServerError(f"Kubernetes at {host} refused: {_told(fault)}") from fault
        except (urllib3.exceptions.HTTPError, OSError) as fault:
            raise ServerError(
                f"Kubernetes at {host} does not answer: {fault}; check KUBECONFIG and the network"
            ) from fault


def submit(jobs: KubeRayJobs, order: Order) -> tuple[Attempt, bool]:
    """The attempt that is under way or succeeded, else a new one; and whether it is new.

    Raises RunDiffersError if such an attempt has other settings.
    """
    for _ in range(_CONTENDERS):
        known = [attempt for attempt in jobs.attempts() if attempt.run == order.run]
        standing = next((attempt for attempt in reversed(known) if attempt.state in _STANDING), None)
        if standing:
            _require_same_settings(standing, order)
            return standing, False
        number = 1 + max((attempt.number for attempt in known), default=0)
        if jobs.create(order, number):
            return find(jobs, order.attempt_name(number)), True
    raise ServerError(f"attempts at run '{order.run}' are being made and ended by somebody else; look with jobs list")


def find(jobs: KubeRayJobs, name: str) -> Attempt:
    """The attempt of this name, or the newest attempt at the run that is meant, as `runs.named` has it.

    Raises SettingsError that names the jobs there are.
    """
    known = jobs.attempts()
    run = None if any(a.name == name for a in known) else named(name, [a.run for a in known])
    found = [a for a in known if name == a.name or run == a.run]
    if not found:
        there = ", ".join(attempt.name for attempt in known) or "none yet"
        raise SettingsError(f"no job and no run '{name}'; there are: {there}")
    return max(found, key=lambda attempt: attempt.number)


def _require_same_settings(standing: Attempt, order: Order) -> None:
    there = parse_settings(standing.settings, standing.name)
    changed = differences(there.identity(), order.settings.identity())
    if changed:
        lines = [f"  {key}: {old} there, {new} now" for key, (old, new) in changed.items()]
        raise RunDiffersError(
            "\n".join([f"run '{order.run}' is {standing.state} as job {standing.name}, and differs in", *lines])
            + f"\nGive this one another name with --name, or end that one first (fraud-ray jobs stop {standing.name})"
        )


def _age(attempt: Attempt) -> tuple[datetime, int]:
    """Sorts attempts; one that has no time yet is the newest."""
    return attempt.created or datetime.max.replace(tzinfo=UTC), attempt.number


def _load_account() -> None:
    try:
        config.load_kube_config(os.environ.get("KUBECONFIG"))
    except config.ConfigException:
        config.load_incluster_config()


def _attempt(job: dict[str, Any]) -> Attempt:
    metadata, status = job["metadata"], job.get("status") or {}
    created = metadata.get("creationTimestamp")
    return Attempt(
        name=metadata["name"],
        run=metadata["labels"][RUN_LABEL],
        number=int(metadata["labels"][ATTEMPT_LABEL]),
        state=_state(job),
        created=datetime.fromisoformat(created) if created else None,
        message=": ".join(status[key] for key in ("reason", "message") if status.get(key)),
        settings=yaml.safe_load(metadata["annotations"][SETTINGS_ANNOTATION]),
    )


def _state(job: dict[str, Any]) -> State:
    """KubeRay tells of the Ray job and of its own work around it; a retry makes the former start again."""
    status = job.get("status") or {}
    deployment, ray_job = status.get("jobDeploymentStatus"), status.get("jobStatus")
    if job["metadata"].get("deletionTimestamp"):
        return "stopped"
    if deployment in {"Failed", "ValidationFailed"} or (deployment == "Complete" and ray_job == "FAILED"):
        return "failed"
    if deployment == "Complete":
        return "stopped" if ray_job == "STOPPED" else "succeeded"
    return "running" if deployment == "Running" and ray_job == "RUNNING" else "pending"


def _told(fault: ApiException) -> str:
    """The API server's own sentence."""
    try:
        message = json.loads(fault.body or "")["message"]
    except (TypeError, ValueError, KeyError):
        message = fault.reason or "no reason given"
    return f"{message} ({fault.status}){_ADVICE.get(fault.status or 0, '')}"
