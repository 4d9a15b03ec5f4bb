"""Runs as jobs on Kubernetes: a RayJob an attempt, each with a cluster of its own, which KubeRay makes and removes.

A second submission of a run that is under way or done answers with that attempt; one that failed or was stopped is
followed by the next, which resumes the run from its storage.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import urllib3
import yaml
from kubernetes import client, config
from kubernetes.client.exceptions import ApiException

from fraud_ray.errors import RunDiffersError, ServerError, SettingsError
from fraud_ray.runs import differences, named
from fraud_ray.settings import parse_settings
from fraud_ray.submission import reasons
from fraud_ray.submission.needs import Kind, Need, needs
from fraud_ray.submission.order import Order
from fraud_ray.submission.reasons import State, Surroundings
from fraud_ray.submission.render import ATTEMPT_LABEL, RUN_LABEL, SETTINGS_ANNOTATION, Document, Template, fill

_STANDING = {"queued", "pending", "running", "succeeded", "rejected"}
_CONTENDERS = 3
_POLL_S, _STOPPING_S = 2.0, 60.0
_PATIENCE: dict[str, Any] = {"_request_timeout": 30}  # seconds, per try; a followed log may be silent for longer
_KUEUE = "kueue.x-k8s.io"
_RAYJOBS: dict[str, Any] = {"group": "ray.io", "version": "v1", "plural": "rayjobs", **_PATIENCE}
_FORBIDDEN, _NOT_FOUND, _CONFLICT = 403, 404, 409
_ADVICE = {
    401: "; log in again",
    403: "; ask for a role that may do this in the namespace",
    404: "; is KubeRay installed, and has the overlay been applied?",
}


@dataclass(frozen=True)
class Attempt:
    """One job that `submit` made.

    says: the state with its reason, in words. tries, most_tries: KubeRay's own, so far and at most. seconds: from its
    submission to its end, or until now. settings: the run's, resolved, as JSON types.
    """

    name: str
    run: str
    number: int
    state: State
    says: str
    tries: int
    most_tries: int
    created: datetime | None
    seconds: float | None
    message: str
    settings: dict[str, Any]
    job: Document = field(repr=False)

    @property
    def has_ended(self) -> bool:
        return self.state in reasons.ENDED


class KubeRayJobs:
    """The RayJobs in the namespace of an overlay. Methods raise ServerError where the API is silent or refuses."""

    def __init__(self, template: Template, context: str | None = None) -> None:
        """Takes the cluster and the account of the kubeconfig's context, or those of the pod that this runs in."""
        self.template = template
        self.namespace = template.namespace
        try:
            self.place = f"{_load_account(context)}, namespace {self.namespace}"
        except config.ConfigException as fault:
            raise ServerError(
                f"there is no cluster to submit to: {_why_none(context)}. Set KUBECONFIG or log in, or run "
                "this in a pod with a service account; --render prints the manifests without a cluster"
            ) from fault
        self.objects: Any = client.CustomObjectsApi()
        self.core: Any = client.CoreV1Api()
        self.unread: list[str] = []  # kinds that the account may not read

    def attempts(self, with_reasons: bool = False) -> list[Attempt]:
        """All attempts at all runs, in the order of their creation.

        with_reasons: `says` also has what pods, events and queues tell, as far as they may be read.
        """
        with self._reported():
            found = self.objects.list_namespaced_custom_object(
                **_RAYJOBS, namespace=self.namespace, label_selector=RUN_LABEL
            )["items"]
            around = self._surroundings(found) if with_reasons else Surroundings()
        return sorted((_attempt(job, around) for job in found), key=_age)

    def _surroundings(self, jobs: list[Document]) -> Surroundings:
        """What may be read beside these jobs; of jobs that have all ended, the pods alone."""
        self.unread.clear()
        pods = self._listed("pods", self.core.list_namespaced_pod)
        if all(reasons.tell(job, Surroundings())[0] in reasons.ENDED for job in jobs):
            return Surroundings(pods=pods)
        return Surroundings(
            clusters=self._listed("rayclusters", self._custom, group="ray.io", version="v1", plural="rayclusters"),
            pods=pods,
            events=self._listed("events", self.core.list_namespaced_event),
            workloads=self._workloads() if any(_is_queued(job) for job in jobs) else [],
        )

    def _workloads(self) -> list[Document]:
        version, plural = self._served(_KUEUE), "workloads"
        return self._listed(plural, self._custom, group=_KUEUE, version=version, plural=plural) if version else []

    def _custom(self, namespace: str, **named: Any) -> Any:
        return self.objects.list_namespaced_custom_object(namespace=namespace, **named)

    def _listed(self, what: str, ask: Callable[..., Any], **named: Any) -> list[Document]:
        """The documents of a kind in the namespace; none, and a note of it, where they may not be read."""
        try:
            found = self.core.api_client.sanitize_for_serialization(ask(namespace=self.namespace, **named, **_PATIENCE))
        except ApiException as fault:
            if fault.status not in {_FORBIDDEN, _NOT_FOUND}:
                raise
            self.unread.append(what)
            return []
        return found["items"]

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

    def look(self, order: Order) -> list[str]:
        """Looks for what a run's pods need; what could not be looked for, for want of rights.

        Raises ServerError that names what is missing, each with the command that makes it.
        """
        job, _ = fill(self.template, order, 1)
        missing: dict[str, list[str]] = {}
        unseen = []
        with self._reported():
            for need in needs(job, self.template.overlay):
                try:
                    is_there = self._is_there(need)
                except ApiException as fault:
                    if fault.status != _FORBIDDEN:
                        raise
                    unseen.append(str(need))
                else:
                    if not is_there:
                        missing.setdefault(need.command, []).append(str(need))
        if missing:
            lines = [f"  {', '.join(lacking)}: {command}" for command, lacking in missing.items()]
            raise ServerError("\n".join([f"{self.place} lacks what the run needs; nothing was submitted:", *lines]))
        return unseen

    def _is_there(self, need: Need) -> bool:
        place: dict[str, Any] = {"name": need.name, "namespace": self.namespace, **_PATIENCE}
        read: dict[Kind, Callable[[], Any]] = {
            "definition": lambda: self._served("ray.io"),
            "namespace": lambda: self.core.read_namespace(need.name, **_PATIENCE),
            "service account": lambda: self.core.read_namespaced_service_account(**place),
            "secret": lambda: self.core.read_namespaced_secret(**place),
            "claim": lambda: self.core.read_namespaced_persistent_volume_claim(**place),
            "queue": lambda: self._queue(place),
        }
        try:
            return bool(read[need.kind]())
        except ApiException as fault:
            if fault.status != _NOT_FOUND:
                raise
            return False

    def _queue(self, place: dict[str, Any]) -> Any:
        version = self._served(_KUEUE)
        of_queues: dict[str, Any] = {"group": _KUEUE, "version": version, "plural": "localqueues", **place}
        return version and self.objects.get_namespaced_custom_object(**of_queues)

    def _served(self, group: str) -> str | None:
        """The version of a group that the API serves; discovery is everybody's."""
        groups = client.ApisApi(self.core.api_client).get_api_versions(**_PATIENCE).groups
        return next((one.versions[0].version for one in groups if one.name == group), None)

    def log(self, attempt: Attempt, printed: Collection[str] = (), follow: bool = False) -> tuple[str, Iterator[str]]:
        """The newest pod that prints an attempt's log, and what it prints, piece by piece; follow: until it ends.

        printed: the pods whose log is known. The pod is empty where there is none yet, or none any more.
        """
        with self._reported():
            # KubeRay calls the submitter's Job like the RayJob; its pod prints the driver's log.
            pods = self.core.list_namespaced_pod(
                self.namespace, label_selector=f"job-name={attempt.name}", **_PATIENCE
            ).items
        started = [pod for pod in pods if pod.status and pod.status.phase not in {None, "Pending"}]
        newest = max(started, key=lambda pod: pod.metadata.creation_timestamp, default=None)
        name = newest.metadata.name if newest else ""
        return ("", iter(())) if not name or name in printed else (name, self._printed(name, follow))

    def _printed(self, pod: str, follow: bool) -> Iterator[str]:
        with self._reported():
            stream = self.core.read_namespaced_pod_log(pod, self.namespace, follow=follow, _preload_content=False)
            for piece in stream.stream(decode_content=True):
                yield piece.decode(errors="replace")

    def stop(self, attempt: Attempt) -> bool:
        """Ends the attempt by SIGTERM, on which a run lets go of its lease, and keeps a record of it.

        False if KubeRay has not ended it in a minute: then nothing was recorded, and it may go on ending it.
        """
        place: dict[str, Any] = {**_RAYJOBS, "namespace": self.namespace}
        with self._reported():
            # By its finalizer KubeRay first stops the Ray job, then takes the cluster down.
            self.objects.delete_namespaced_custom_object(**place, name=attempt.name)
            deadline = time.monotonic() + _STOPPING_S
            while self._exists(attempt.name):
                if time.monotonic() > deadline:
                    return False
                time.sleep(_POLL_S)
            try:
                self.objects.create_namespaced_custom_object(**place, body=_record(attempt))
            except ApiException as fault:
                if fault.status != _CONFLICT:  # somebody has submitted the run again meanwhile
                    raise
        return True

    def end_rest(self, attempts: list[Attempt]) -> None:
        """Deletes the clusters of failed attempts that may still run them: those of which KubeRay had no word."""
        for cluster in filter(None, (reasons.left_behind(attempt.job) for attempt in attempts)):
            with self._reported():
                try:
                    place: dict[str, Any] = {**_RAYJOBS, "plural": "rayclusters", "namespace": self.namespace}
                    self.objects.delete_namespaced_custom_object(**place, name=cluster)
                except ApiException as fault:
                    if fault.status != _NOT_FOUND:
                        raise

    def lacks_token(self, attempt: Attempt) -> str | None:
        """The secret without which KubeRay can stop nothing, if it is known to be missing."""
        secret = attempt.job["spec"]["rayClusterSpec"].get("authOptions", {}).get("secretName")
        if not secret:
            return None
        try:
            self.core.read_namespaced_secret(secret, self.namespace, **_PATIENCE)
        except ApiException as fault:
            return str(secret) if fault.status == _NOT_FOUND else None
        return None

    def _exists(self, name: str) -> bool:
        try:
            self.objects.get_namespaced_custom_object(**_RAYJOBS, namespace=self.namespace, name=name)
        except ApiException as fault:
            if fault.status != _NOT_FOUND:
                raise
            return False
        return True

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


def submit(jobs: KubeRayJobs, order: Order) -> tuple[Attempt, bool, list[str]]:
    """The attempt that is under way or done, else a new one; whether it is new; what could not be looked for first.

    What is left of a failed attempt is ended before the next is made. Raises RunDiffersError if such an attempt has
    other settings, and ServerError that names what the cluster lacks.
    """
    for _ in range(_CONTENDERS):
        known = [attempt for attempt in jobs.attempts() if attempt.run == order.run]
        standing = next((attempt for attempt in reversed(known) if attempt.state in _STANDING), None)
        if standing:
            _require_same_settings(standing, order)
            return standing, False, []
        stopped = next((attempt for attempt in reversed(known) if attempt.state == "stopped"), None)
        if stopped and reasons.stopped_record(stopped.job).get("state") == "running":
            _require_same_settings(stopped, order)  # the run's own, in its storage, are these
        number = 1 + max((attempt.number for attempt in known), default=0)
        unseen = jobs.look(order)
        jobs.end_rest(known)
        if jobs.create(order, number):
            return find(jobs, order.attempt_name(number)), True, unseen
    raise ServerError(f"attempts at run '{order.run}' are being made and ended by somebody else; look with jobs list")


def follow(jobs: KubeRayJobs, name: str, say: Callable[[str], object]) -> Iterator[str]:
    """What a job prints, from its beginning to its end, attempt after attempt; say: told why it prints nothing."""
    printed: list[str] = []
    said = ""
    attempt = find(jobs, name, with_reasons=True)
    while True:
        pod, pieces = jobs.log(attempt, printed, follow=True)
        if pod:
            printed.append(pod)
            yield from pieces
        elif attempt.says not in {said, "running"}:
            said = attempt.says
            say(said)
        if attempt.has_ended and not pod:
            return
        if not pod:
            time.sleep(_POLL_S)
        try:
            attempt = find(jobs, attempt.name, with_reasons=True)
        except SettingsError:
            say("stopped, or deleted: it is there no more")
            return


def find(jobs: KubeRayJobs, name: str, with_reasons: bool = False) -> Attempt:
    """The attempt of this name, or the newest attempt at the run that is meant, as `runs.named` has it.

    Raises SettingsError that names the jobs there are.
    """
    known = jobs.attempts(with_reasons)
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
            + "\nGive this one another name with --name"
            + ("" if standing.has_ended else f", or end that one first (fraud-ray jobs stop {standing.name})")
        )


def _age(attempt: Attempt) -> tuple[datetime, int]:
    """Sorts attempts; one that has no time yet is the newest."""
    return attempt.created or datetime.max.replace(tzinfo=UTC), attempt.number


def _load_account(context: str | None) -> str:
    """Loads it, and says whose it is."""
    file = os.environ.get("KUBECONFIG")
    try:
        config.load_kube_config(file, context=context)
    except config.ConfigException:
        if context:
            raise
        config.load_incluster_config()
        return "this pod's cluster"
    return f"context {context or config.list_kube_config_contexts(file)[1]['name']}"


def _why_none(context: str | None) -> str:
    try:
        known = ", ".join(one["name"] for one in config.list_kube_config_contexts(os.environ.get("KUBECONFIG"))[0])
    except config.ConfigException:
        return "no kubeconfig, and this is no pod"
    return f"the kubeconfig has no context '{context}'; there are: {known}" if context else "the kubeconfig is unusable"


def _record(attempt: Attempt) -> Document:
    """What stays of a job that was stopped: a RayJob that is suspended, in no queue, so that nothing starts it."""
    metadata = attempt.job["metadata"]
    now = f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}"
    stopped = {"state": attempt.state, "created": metadata.get("creationTimestamp"), "at": now}
    return {
        **{key: attempt.job[key] for key in ("apiVersion", "kind")},
        "metadata": {
            "name": attempt.name,
            "labels": {key: text for key, text in metadata["labels"].items() if key != reasons.QUEUE_LABEL},
            "annotations": {**metadata["annotations"], reasons.STOPPED_ANNOTATION: json.dumps(stopped)},
        },
        "spec": {**attempt.job["spec"], "suspend": True},
    }


def _is_queued(job: Document) -> bool:
    return reasons.QUEUE_LABEL in job["metadata"]["labels"]


def _attempt(job: Document, around: Surroundings) -> Attempt:
    metadata, status = job["metadata"], job.get("status") or {}
    state, says = reasons.tell(job, around)
    tries, most_tries = reasons.attempts(job)
    return Attempt(
        name=metadata["name"],
        run=metadata["labels"][RUN_LABEL],
        number=int(metadata["labels"][ATTEMPT_LABEL]),
        state=state,
        says=says,
        tries=tries,
        most_tries=most_tries,
        created=reasons.created(job),
        seconds=reasons.seconds(job),
        message=": ".join(status[key] for key in ("reason", "message") if status.get(key)),
        settings=yaml.safe_load(metadata["annotations"][SETTINGS_ANNOTATION]),
        job=job,
    )


def _told(fault: ApiException) -> str:
    """The API server's own sentence."""
    try:
        message = json.loads(fault.body or "")["message"]
    except (TypeError, ValueError, KeyError):
        message = fault.reason or "no reason given"
    return f"{message} ({fault.status}){_ADVICE.get(fault.status or 0, '')}"
