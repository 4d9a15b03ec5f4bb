"""What a RayJob is doing, and why not: one sentence from what Kubernetes tells of it, its cluster, pods and events.

Pure functions of documents of the API, as KubeRay 1.7 and Kueue write them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

from fraud_ray.errors import EXIT_CONTRACT, EXIT_REJECTED, EXIT_SETTINGS

Document = dict[str, Any]
State = Literal["queued", "pending", "running", "succeeded", "rejected", "failed", "stopping", "stopped"]
ENDED = {"succeeded", "rejected", "failed", "stopped"}

QUEUE_LABEL, STOPPED_ANNOTATION = "kueue.x-k8s.io/queue-name", "fraud-ray/stopped"
_NO_STATUS = "JobStatusCheckTimeoutExceeded"
_EXITS = {EXIT_SETTINGS: "its settings were refused", EXIT_CONTRACT: "its data breaks the contract", 137: "killed"}
_NO_IMAGE = {"ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull", "ImageInspectError"}
_ON_THE_WAY = {"PodInitializing", "ContainerCreating", None}
_NO_VOLUME = {"FailedMount", "FailedAttachVolume"}
_NO_POD = {"FailedToCreateHeadPod", "FailedToCreateWorkerPod"}


@dataclass(frozen=True)
class Surroundings:
    """What stands beside RayJobs in their namespace, as documents of the API; empty where it may not be read."""

    clusters: Sequence[Document] = ()
    pods: Sequence[Document] = ()
    events: Sequence[Document] = ()
    workloads: Sequence[Document] = ()

    def pods_of(self, job: Document) -> list[Document]:
        """A job's pods that are to stay: the head first, then the submitter, then workers."""
        cluster, name = _status(job).get("rayClusterName"), job["metadata"]["name"]
        found = [
            pod
            for pod in self.pods
            if not pod["metadata"].get("deletionTimestamp")
            and (_label(pod, "job-name") == name or (cluster and _label(pod, "ray.io/cluster") == cluster))
        ]
        order = ["head", "submitter"]
        return sorted(found, key=lambda pod: order.index(role) if (role := _role(pod)) in order else len(order))

    def told_of(self, kind: str, name: str | None, reasons: set[str]) -> str | None:
        """The newest message of the events of an object with one of these reasons."""
        told = [
            event.get("message", "")
            for event in self.events
            if event["involvedObject"].get("kind") == kind
            and event["involvedObject"].get("name") == name
            and event.get("reason") in reasons
        ]
        return told[-1] if told else None


def tell(job: Document, around: Surroundings) -> tuple[State, str]:
    """A job's state, and the sentence that gives its reason too: `pending: submitter waits for memory (1Gi)`."""
    ended = _ended(job, around)
    is_deleted = bool(job["metadata"].get("deletionTimestamp"))
    if ended:
        return ended[0], ended[1] + ("; its record is being deleted" if is_deleted else "")
    if is_deleted:
        return "stopping", "stopping: KubeRay ends the run, then its cluster"
    if job["spec"].get("suspend"):
        return _waiting(job, around)
    status = _status(job)
    failed = status.get("jobStatus") == "FAILED" or status.get("jobDeploymentStatus") == "Retrying"
    if failed:
        number, most = attempts(job)
        return "pending", f"pending: attempt {number} of {most} ended ({_failure(status)[1]}), and the next begins"
    state: State = "running" if status.get("jobStatus") == "RUNNING" else "pending"
    silent = status.get("jobStatusCheckFailureStartTime")
    reasons = [f"no status since {silent[11:19]} UTC"] if silent else []
    reasons += [held for held in [_held_up(job, around)] if held]
    if not reasons and state == "pending":
        reasons = [_stage(status)]
    return state, ": ".join([state, "; ".join(reasons)]) if reasons else state


def attempts(job: Document) -> tuple[int, int]:
    """Which of KubeRay's own attempts at a job is the newest, and how many there may be."""
    status = _status(job)
    failed = int(status.get("failed") or 0)
    counted = status.get("jobDeploymentStatus") in {"Failed", "ValidationFailed", "Retrying"}
    return failed if counted and failed else failed + 1, int(job["spec"].get("backoffLimit") or 0) + 1


def created(job: Document) -> datetime | None:
    """When a job was submitted."""
    return _time(stopped_record(job).get("created") or job["metadata"].get("creationTimestamp"))


def seconds(job: Document, now: datetime | None = None) -> float | None:
    """How long a job has taken, or took: from its submission to its end, all attempts included."""
    began = created(job)
    ended = stopped_record(job).get("at") or _status(job).get("endTime")
    return None if began is None else ((_time(ended) or now or datetime.now(UTC)) - began).total_seconds()


def stopped_record(job: Document) -> dict[str, str]:
    """What is kept of a job that `jobs stop` ended: state, created, at. Empty of any other."""
    return json.loads(job["metadata"].get("annotations", {}).get(STOPPED_ANNOTATION, "{}"))


def left_behind(job: Document) -> str | None:
    """The cluster that may still run a job which KubeRay has given up, for want of its status."""
    status = _status(job)
    return status.get("rayClusterName") if status.get("reason") == _NO_STATUS else None


def _ended(job: Document, around: Surroundings) -> tuple[State, str] | None:
    status = _status(job)
    deployment, ray_job = status.get("jobDeploymentStatus"), status.get("jobStatus")
    if stopped_record(job) or (deployment == "Complete" and ray_job == "STOPPED"):
        return "stopped", "stopped"
    if ray_job == "SUCCEEDED" or (deployment == "Complete" and ray_job != "FAILED"):
        return "succeeded", "succeeded"
    number, most = attempts(job)
    is_last = deployment == "Running" and ray_job == "FAILED" and number >= most
    if not (is_last or deployment in {"Failed", "ValidationFailed", "Complete"}):
        return None
    state, told = _failure(status)
    if status.get("reason") == _NO_STATUS and any(_role(pod) == "head" for pod in around.pods_of(job)):
        told += "; its pods stand, and may run it to its end"
    return state, told


def _failure(status: Document) -> tuple[State, str]:
    """How an attempt failed: by the program's own last words or its exit code, else as KubeRay tells it."""
    message = status.get("message") or ""
    if status.get("reason") == _NO_STATUS:
        limit = re.search(r"timeout of (\d+)s", message)
        return "failed", f"failed: no status for {limit[1]} s" if limit else "failed: no status"
    words = re.findall(r"^error: (.+)$", message, re.MULTILINE)
    exit_code = re.search(r"exit code (-?\d+)", message)
    code = int(exit_code[1]) if exit_code else None
    if code == EXIT_REJECTED:
        return "rejected", "rejected by the gate"
    if code is not None:
        return "failed", f"failed: {words[-1] if words else _EXITS.get(code, 'its program ended')} (exit code {code})"
    why = ": ".join(part for part in (status.get("reason"), message.partition("\n")[0]) if part)
    return "failed", f"failed: {why}" if why else "failed"


def _waiting(job: Document, around: Surroundings) -> tuple[State, str]:
    """Of a job that is suspended, as Kueue does until there is room."""
    queue = _label(job, QUEUE_LABEL)
    if queue is None:
        return "pending", f"pending: suspended, and nothing will start it: no label {QUEUE_LABEL} names a queue"
    name = job["metadata"]["name"]
    own = [w for w in around.workloads if any(o["name"] == name for o in w["metadata"].get("ownerReferences", ()))]
    for condition in (condition for workload in own for condition in _status(workload).get("conditions", ())):
        if condition["type"] == "QuotaReserved" and condition["status"] == "False" and condition.get("message"):
            return "queued", f"queued in {queue}: {_first(condition['message'])}"
    return "queued", f"queued in {queue}"


def _held_up(job: Document, around: Surroundings) -> str | None:
    """What one of a job's pods waits for, or why there is none."""
    cluster = _status(job).get("rayClusterName")
    found = around.pods_of(job)
    held = next((held for pod in found if (held := _pod_waits(pod, around))), None)
    if held or any(_role(pod) == "head" for pod in found):
        return held
    refused = around.told_of("RayCluster", cluster, _NO_POD) if cluster else None
    return _refusal(refused) if refused else _cluster_waits(cluster, around)


def _cluster_waits(cluster: str | None, around: Surroundings) -> str | None:
    """What a cluster's conditions say of its head, where its pods may not be read."""
    for one in around.clusters:
        for condition in _status(one).get("conditions", ()) if one["metadata"]["name"] == cluster else ():
            _, detailed, detail = condition.get("message", "").partition("; ray-head: ")
            if condition["type"] == "HeadPodReady" and condition["status"] == "False" and detailed:
                return f"head: {_plain(detail)}"
    return None


def _pod_waits(pod: Document, around: Surroundings) -> str | None:
    status, name = _status(pod), pod["metadata"]["name"]
    if status.get("phase") not in {"Pending", "Running", None}:
        return None
    role = _role(pod)
    scheduled = next((c for c in status.get("conditions") or () if c["type"] == "PodScheduled"), None)
    if scheduled and scheduled["status"] == "False":
        return f"{role} waits for {_room(scheduled.get('message', ''), pod)}"
    if status.get("phase") == "Running" and all(_containers_ready(status)):
        return None
    if not scheduled and status.get("phase") == "Pending":
        told = around.told_of("Pod", name, {"FailedScheduling"})
        return f"{role} waits for {_room(told, pod)}" if told else None
    for container in (*(status.get("initContainerStatuses") or ()), *(status.get("containerStatuses") or ())):
        waiting = container["state"].get("waiting")
        reason = waiting and waiting.get("reason")
        if waiting and reason in _NO_IMAGE:
            return f"image {container.get('image') or _image(pod, container['name'])} cannot be pulled"
        if waiting and reason not in _ON_THE_WAY:
            return f"{role}: {_plain(waiting.get('message') or reason)}"
    told = around.told_of("Pod", name, _NO_VOLUME) if status.get("phase") == "Pending" else None
    return f"{role} waits for a volume: {_first(told)}" if told else None


def _containers_ready(status: Document) -> Iterator[bool]:
    return (container.get("ready", False) for container in status.get("containerStatuses") or ())


def _room(message: str, pod: Document) -> str:
    """What a pod lacks that no node takes, from the scheduler's message, with how much of it the pod asks for."""
    lacking = list(dict.fromkeys(re.findall(r"Insufficient ([\w./-]*\w)", message)))
    if not lacking:
        told = re.search(r"nodes are available: (.+?)\. ", message + " ")
        return f"a node: {told[1] if told else _first(message)}"
    return ", ".join(f"{name}{_requested(pod, name)}" for name in lacking)


def _requested(pod: Document, name: str) -> str:
    asked = [c.get("resources", {}).get("requests", {}).get(name) for c in pod.get("spec", {}).get("containers", ())]
    told = " + ".join(amount for amount in asked if amount)
    return f" ({told})" if told else ""


def _refusal(message: str) -> str:
    """Why the API server made no pod of a cluster."""
    account = re.search(r'serviceaccount "([^"]+)" not found', message)
    return f"service account {account[1]} not found" if account else _plain(message.rpartition(" is forbidden: ")[2])


def _stage(status: Document) -> str:
    """What comes next of a job that nothing holds up."""
    if not status:
        return "KubeRay has not taken it up yet"
    if status.get("jobStatus") == "PENDING":
        return "the run starts"
    return "submitter starts" if status.get("jobDeploymentStatus") == "Running" else "its cluster starts"


def _role(pod: Document) -> str:
    node = _label(pod, "ray.io/node-type")
    if node == "worker":
        return f"{_label(pod, 'ray.io/group')} worker"
    return "head" if node == "head" else "submitter"


def _image(pod: Document, container: str) -> str:
    spec = pod.get("spec", {})
    named = (c for c in (*spec.get("initContainers", ()), *spec.get("containers", ())) if c["name"] == container)
    return next((c["image"] for c in named), f"of {container}")


def _plain(text: str) -> str:
    """A message without the quotes around names."""
    return _first(re.sub(r'"([^"]+)"', r"\1", text))


def _first(text: str) -> str:
    return text.strip().partition("\n")[0].partition("; ")[0]


def _status(document: Document) -> Document:
    return document.get("status") or {}


def _label(document: Document, name: str) -> str | None:
    return document["metadata"].get("labels", {}).get(name)


def _time(iso: str | None) -> datetime | None:
    return datetime.fromisoformat(iso) if iso else None
