"""What KubeRay wrote on a real cluster, scenario by scenario, as documents of the Kubernetes API."""

from __future__ import annotations

import copy
import json
import os
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest

Body = dict[str, Any]


@cache
def scenarios() -> dict[str, Any]:
    """By name; the test skips where they are not at hand: they lie beside KubeRay's definitions."""
    named = os.environ.get("FRAUD_RAY_CRDS")
    file = Path(named).parent / "transitions.json" if named else None
    if file is None or not file.exists():
        pytest.skip("no transitions.json, as recorded on a cluster, beside the folder that FRAUD_RAY_CRDS names")
    return json.loads(file.read_text())["scenarios"]


@dataclass(frozen=True)
class Moment:
    """A RayJob and what stands around it."""

    job: Body
    pods: list[Body]
    clusters: list[Body]
    events: list[Body]

    @property
    def name(self) -> str:
        return str(self.job["metadata"]["name"])


def moment(submitted: Body, scenario: str, step: int, capture: str | None = None) -> Moment:
    """What a submitted RayJob would be at a step of a scenario, with what was captured beside it."""
    recorded = scenarios()[scenario]
    wrote = recorded["rayjob"][step]
    captured = recorded.get("captured", {}).get(capture, {}) if capture else {}
    name = _name(recorded)
    job = copy.deepcopy(submitted)
    job["spec"] |= {key: wrote[key] for key in ("suspend",) if key in wrote}
    job["status"] = copy.deepcopy(wrote["status"])
    starts = [one["status"]["startTime"] for one in recorded["rayjob"] if "startTime" in one["status"]]
    metadata = {key: wrote[key] for key in ("finalizers", "deletionTimestamp") if key in wrote}
    job["metadata"] |= {"name": name, "uid": name, "creationTimestamp": min(starts, default=None), **metadata}
    job["metadata"]["labels"] |= {"fraud-ray/run": name.rpartition("-")[0]}
    if scenario == "queued_by_kueue":
        job["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] = "fraud"
    if scenario == "service_account_missing" and captured:  # the name of its cluster is not recorded in the status
        job["status"] = {**wrote["status"], "rayClusterName": captured["events"][0]["name"]}
    stood = captured.get("clusters_and_jobs", ())
    return Moment(
        job,
        [_pod(job, pod) for pod in captured.get("pods", ())] + _unlisted(job, captured),
        [_cluster(job, one) for one in stood if "state" in one],
        [_event(job, number, event) for number, event in enumerate(captured.get("events", ()))],
    )


def _name(recorded: dict[str, Any]) -> str:
    named = [one["status"]["rayClusterName"] for one in recorded["rayjob"] if "rayClusterName" in one["status"]]
    named += [
        e["name"] for c in recorded.get("captured", {}).values() for e in c["events"] if e["kind"] == "RayCluster"
    ]
    return named[0].rpartition("-")[0] if named else "unlabelled-1"


def _pod(job: Body, told: Body) -> Body:
    labels = told["labels"]
    cluster, spec = job["spec"]["rayClusterSpec"], job["spec"]["submitterPodTemplate"]["spec"]
    if labels.get("ray.io/node-type") == "head":
        spec = cluster["headGroupSpec"]["template"]["spec"]
    elif labels.get("ray.io/node-type") == "worker":
        spec = cluster["workerGroupSpecs"][0]["template"]["spec"]
    init = [one for one in told.get("containerStatuses") or () if one["name"].startswith("wait-")]
    rest = [one for one in told.get("containerStatuses") or () if one not in init]
    gone = {"deletionTimestamp": told["deletionTimestamp"]} if told.get("deletionTimestamp") else {}
    return {
        "metadata": {"name": told["name"], "labels": labels, "creationTimestamp": job["metadata"]["creationTimestamp"]}
        | gone,
        "spec": spec,
        "status": {
            "phase": told["phase"],
            "conditions": told["conditions"],
            "initContainerStatuses": [_complete(one) for one in init],
            "containerStatuses": [_complete(one) for one in rest],
        },
    }


def _complete(container: Body) -> Body:
    return {"image": "fraud-ray:dev", "imageID": "", "restartCount": 0, **container}


def _unlisted(job: Body, captured: Body) -> list[Body]:
    """Submitters of which the events alone were captured."""
    listed = {pod["name"] for pod in captured.get("pods", ())}
    named = {e["name"] for e in captured.get("events", ()) if e["kind"] == "Pod" and "head" not in e["name"]} - listed
    name, cluster = job["metadata"]["name"], job["status"].get("rayClusterName", "?")
    own = [one for one in named if one.startswith(f"{name}-") and not one.startswith(cluster)] if not listed else []
    waits = {"labels": {"job-name": name}, "phase": "Pending", "conditions": [], "containerStatuses": []}
    return [_pod(job, {"name": one, **waits}) for one in own]


def _cluster(job: Body, told: Body) -> Body:
    owner = {"kind": "RayJob", "name": job["metadata"]["name"], "uid": job["metadata"]["uid"]}
    return {
        "metadata": {"name": told["name"], "ownerReferences": [owner]},
        "status": {"state": told["state"] or "", "conditions": told["conditions"]},
    }


def _event(job: Body, number: int, told: Body) -> Body:
    return {
        "metadata": {"name": f"{told['name']}.{number}"},
        "involvedObject": {"kind": told["kind"], "name": told["name"]},
        **{key: told[key] for key in ("type", "reason", "message")},
    }
