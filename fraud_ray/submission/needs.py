"""What a run's pods need of a cluster before they can start, and the command that makes each."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from fraud_ray.submission.reasons import QUEUE_LABEL
from fraud_ray.submission.render import OVERLAYS, pods_of

Kind = Literal["definition", "namespace", "service account", "secret", "claim", "queue"]
_OPERATOR = (
    "helm install kuberay-operator kuberay/kuberay-operator --version 1.7.0 -n kuberay-system --create-namespace "
    "(cluster/README.md, step 1)"
)
_KEYS = {
    "mlflow-client": "--from-literal=MLFLOW_TRACKING_USERNAME=… --from-literal=MLFLOW_TRACKING_PASSWORD=…",
}


@dataclass(frozen=True)
class Need:
    """One object. command: what makes it, for a person to type."""

    kind: Kind
    name: str
    command: str

    def __str__(self) -> str:
        return f"{self.kind} {self.name}"


def needs(job: dict[str, Any], overlay: str) -> list[Need]:
    """What a RayJob of an overlay needs, each once: what stands first is needed by what follows."""
    namespace = job["metadata"]["namespace"]
    platform = (
        f"kubectl apply --server-side -k {OVERLAYS / overlay} -l 'app.kubernetes.io/component notin (run, interactive)'"
    )

    def secret(name: str) -> Need:
        return Need("secret", name, _secret_command(namespace, name, _KEYS.get(name, "--from-literal=…")))

    found = [Need("definition", "rayjobs.ray.io", _OPERATOR), Need("namespace", namespace, platform)]
    token = job["spec"]["rayClusterSpec"].get("authOptions", {}).get("secretName")
    found += [Need("secret", token, token_command(namespace, token))] if token else []
    for pod in pods_of(job):
        found += [Need("service account", pod["serviceAccountName"], platform)] if "serviceAccountName" in pod else []
        found += map(secret, _secrets(pod))
        claims = [
            volume["persistentVolumeClaim"] for volume in pod.get("volumes", ()) if "persistentVolumeClaim" in volume
        ]
        found += [Need("claim", claim["claimName"], platform) for claim in claims]
    queue = job["metadata"].get("labels", {}).get(QUEUE_LABEL)
    if queue:
        told = (
            f"a LocalQueue of that name in {namespace}, by who runs Kueue (kueue.sigs.k8s.io/docs/concepts/local_queue)"
        )
        found.append(Need("queue", queue, told))
    return list(dict.fromkeys(found))


def token_command(namespace: str, name: str) -> str:
    """What makes the secret of Ray's token."""
    return _secret_command(namespace, name, "--from-literal=auth_token=$(openssl rand -hex 32)")


def _secret_command(namespace: str, name: str, keys: str) -> str:
    return f"kubectl -n {namespace} create secret generic {name} {keys}"


def _secrets(pod: dict[str, Any]) -> Iterator[str]:
    """The secrets without which a pod does not start."""
    for container in (*pod.get("initContainers", ()), *pod["containers"]):
        named = [source.get("secretRef", {}) for source in container.get("envFrom", ())]
        named += [one.get("valueFrom", {}).get("secretKeyRef", {}) for one in container.get("env", ())]
        yield from (one["name"] for one in named if one and not one.get("optional"))
    mounted = [volume["secret"] for volume in pod.get("volumes", ()) if "secret" in volume]
    yield from (one["secretName"] for one in mounted if not one.get("optional"))
