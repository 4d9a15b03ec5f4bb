"""What neither Kubernetes' schemas nor KubeRay's definitions say: Pod Security `restricted`, secrets, resources, and
the rules that KubeRay's operator and Ray itself keep."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from tests.kube.render import Document, Finding

# Where the pod of a kind lies, beside those of a Ray cluster.
PODS = {
    "Deployment": "spec.template.spec",
    "StatefulSet": "spec.template.spec",
    "CronJob": "spec.jobTemplate.spec.template.spec",
    "RayJob": "spec.submitterPodTemplate.spec",
    "RayCronJob": "spec.jobTemplate.submitterPodTemplate.spec",
    "InferenceService": "spec.predictor",  # with the containers of its runtime, if it names one
}
RAY_CLUSTERS = {"RayCluster": "spec", "RayJob": "spec.rayClusterSpec", "RayCronJob": "spec.jobTemplate.rayClusterSpec"}
RAY_JOBS = {"RayJob": "spec", "RayCronJob": "spec.jobTemplate"}
REFERENCES = {
    "secretRef": "Secret",
    "secretKeyRef": "Secret",
    "configMapRef": "ConfigMap",
    "configMapKeyRef": "ConfigMap",
}
OBJECT_STORE_SHARE = 0.3  # of a container's memory, Ray's default
DRAIN_S = 30  # that Ray takes to drain a node


@dataclass(frozen=True)
class Pod:
    """A pod's spec and where it lies in its document; the labels beside it."""

    document: Document
    field: str
    spec: dict[str, Any]
    labels: dict[str, str]

    def containers(self) -> Iterator[tuple[str, dict[str, Any]]]:
        for group in ("initContainers", "containers"):
            for index, container in enumerate(self.spec.get(group, ())):
                yield f"{self.field}.{group}[{index}]", container


def violations(documents: list[Document], external: set[str]) -> list[Finding]:
    """All findings in what an overlay renders; external: "Kind/name" of the objects that somebody else makes."""
    found: list[Finding] = []
    for document in documents:
        found += [*_jobs(document), *_clusters(document), *_runtimes(document)]
        for pod in pods(document):
            found += [*_pod_security(pod), *_volumes(pod)]
            for field, container in pod.containers():
                found += _container(document, field, container)
    return [*found, *_references(documents, external), *_namespaces(documents)]


def pods(document: Document) -> Iterator[Pod]:
    path = PODS.get(document.kind)
    if path and at(document.body, path):
        yield _pod(document, path)
    if document.kind in RAY_CLUSTERS:
        path = RAY_CLUSTERS[document.kind]
        yield _pod(document, f"{path}.headGroupSpec.template.spec")
        for index, group in enumerate(at(document.body, path)["workerGroupSpecs"]):
            field = f"{path}.workerGroupSpecs[{index}].template.spec"
            yield Pod(document, field, group["template"]["spec"], {})


def _pod(document: Document, field: str) -> Pod:
    above = at(document.body, field.rpartition(".")[0])
    return Pod(document, field, at(document.body, field), at(above, "metadata.labels") or {})


def at(body: Any, path: str) -> Any:
    """The value below a dotted path, or None."""
    for part in path.split("."):
        body = body.get(part) if isinstance(body, dict) else None
    return body


def quantity(value: Any) -> float:
    """A Kubernetes quantity (500m, 16Gi, 2) as a number."""
    number, suffix = re.fullmatch(r"([0-9.]+)([a-zA-Z]*)", str(value)).groups()  # type: ignore[union-attr]
    powers = {"": 1, "m": 1e-3, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}
    return float(number) * (1024 ** " KMGT".index(suffix[0]) if suffix.endswith("i") else powers[suffix])


def _jobs(document: Document) -> Iterator[Finding]:
    """KubeRay's admission rules for a RayJob (its ValidateRayJobSpec), as far as the definitions do not hold them."""
    if document.kind not in RAY_JOBS:
        return
    field = RAY_JOBS[document.kind]
    job = at(document.body, field)
    if not re.match(r"exec python jobs/(pipeline|retrain)\.py -c configs/", job["entrypoint"]):
        yield Finding(document, f"{field}.entrypoint", "must exec a script of jobs/ with a file of configs/")
    if not job.get("shutdownAfterJobFinishes") or job.get("deletionStrategy"):
        message = "must be true, without a deletionStrategy: no rule takes down the cluster of a stopped job"
        yield Finding(document, f"{field}.shutdownAfterJobFinishes", message)
    if job.get("suspend") and "kueue.x-k8s.io/queue-name" not in document.body["metadata"].get("labels", {}):
        yield Finding(document, f"{field}.suspend", "without a queue nobody ever resumes it")


def _clusters(document: Document) -> Iterator[Finding]:
    if document.kind not in RAY_CLUSTERS:
        return
    field = RAY_CLUSTERS[document.kind]
    cluster = at(document.body, field)
    if at(cluster, "authOptions.mode") != "token":
        yield Finding(document, f"{field}.authOptions.mode", "must be token: the dashboard runs code for whoever asks")
    if cluster["headGroupSpec"].get("rayStartParams", {}).get("num-cpus") != "0":
        yield Finding(document, f"{field}.headGroupSpec.rayStartParams.num-cpus", 'must be "0": the head takes no work')
    if cluster.get("enableInTreeAutoscaling"):
        yield from _container(document, f"{field}.autoscalerOptions", cluster["autoscalerOptions"])


def _runtimes(document: Document) -> Iterator[Finding]:
    """A KServe runtime's containers; the rest of their pod is its InferenceService's."""
    if document.kind == "ServingRuntime":
        for index, container in enumerate(document.body["spec"]["containers"]):
            yield from _container(document, f"spec.containers[{index}]", container)


def _pod_security(pod: Pod) -> Iterator[Finding]:
    """The pod's half of the standard `restricted`, and no token of Kubernetes where none is asked for."""
    context = pod.spec.get("securityContext", {})
    if context.get("runAsNonRoot") is not True:
        yield Finding(pod.document, f"{pod.field}.securityContext.runAsNonRoot", "must be true")
    if at(context, "seccompProfile.type") != "RuntimeDefault":
        yield Finding(pod.document, f"{pod.field}.securityContext.seccompProfile", "must be RuntimeDefault")
    if "automountServiceAccountToken" not in pod.spec:
        yield Finding(pod.document, f"{pod.field}.automountServiceAccountToken", "missing: say true or false")
    if "GroupSpec" in pod.field and pod.spec.get("terminationGracePeriodSeconds", 30) < 2 * DRAIN_S:
        yield Finding(pod.document, f"{pod.field}.terminationGracePeriodSeconds", "is no longer than Ray's drain")
    for name in ("hostNetwork", "hostPID", "hostIPC"):
        if pod.spec.get(name):
            yield Finding(pod.document, f"{pod.field}.{name}", "must not be set")


def _container(document: Document, field: str, container: dict[str, Any]) -> Iterator[Finding]:
    context = container.get("securityContext", {})
    for name, wanted in (("allowPrivilegeEscalation", False), ("readOnlyRootFilesystem", True)):
        if context.get(name) is not wanted:
            yield Finding(document, f"{field}.securityContext.{name}", f"must be {str(wanted).lower()}")
    if at(context, "capabilities.drop") != ["ALL"] or at(context, "capabilities.add"):
        yield Finding(document, f"{field}.securityContext.capabilities", "must drop ALL and add none")
    for kind in ("requests", "limits"):
        for resource in ("cpu", "memory"):
            if not at(container, f"resources.{kind}.{resource}"):
                yield Finding(document, f"{field}.resources.{kind}", f"{resource} is missing")


def _volumes(pod: Pod) -> Iterator[Finding]:
    """Nothing of the node's disk without a limit, and room in memory for Ray's object store."""
    volumes = {volume["name"]: volume for volume in pod.spec.get("volumes", ())}
    for name, volume in volumes.items():
        if "hostPath" in volume or ("emptyDir" in volume and "sizeLimit" not in volume["emptyDir"]):
            yield Finding(pod.document, f"{pod.field}.volumes[{name}]", "is a hostPath, or has no sizeLimit")
    for field, container in pod.containers():
        memory = at(container, "resources.limits.memory")
        if container["name"] not in {"ray-head", "ray-worker"} or not memory:
            continue
        mounts = {mount["mountPath"]: mount["name"] for mount in container.get("volumeMounts", ())}
        held = at(volumes.get(mounts.get("/dev/shm", "")), "emptyDir") or {}
        if held.get("medium") != "Memory" or quantity(held["sizeLimit"]) < OBJECT_STORE_SHARE * quantity(memory):
            message = f"/dev/shm is not in memory, or holds less than Ray's object store of {memory}"
            yield Finding(pod.document, f"{field}.volumeMounts", message)


def _references(documents: list[Document], external: set[str]) -> Iterator[Finding]:
    """Every Secret, ConfigMap and claim that is named is in the same namespace, or external; no Secret is committed."""
    there = {(document.namespace, f"{document.kind}/{document.name}") for document in documents}
    for document in documents:
        if document.kind == "Secret":
            yield Finding(document, "kind", "a secret is made by who deploys, not committed")
        for field, named in _named(document):
            if (document.namespace, named) not in there and named not in external:
                yield Finding(document, field, f"no {named} in {document.namespace}, nor among the external ones")


def _named(document: Document) -> Iterator[tuple[str, str]]:
    """Field and Kind/name of every Secret, ConfigMap and claim that a document names."""
    if document.kind in RAY_CLUSTERS:
        field = f"{RAY_CLUSTERS[document.kind]}.authOptions.secretName"
        yield field, f"Secret/{at(document.body, field)}"
    for index, pull in enumerate(document.body.get("imagePullSecrets", ())):
        yield f"imagePullSecrets[{index}].name", f"Secret/{pull['name']}"
    for pod in pods(document):
        for index, volume in enumerate(pod.spec.get("volumes", ())):
            field = f"{pod.field}.volumes[{index}]"
            if "configMap" in volume:
                yield f"{field}.configMap.name", f"ConfigMap/{volume['configMap']['name']}"
            if "persistentVolumeClaim" in volume:
                claim = volume["persistentVolumeClaim"]["claimName"]
                yield f"{field}.persistentVolumeClaim.claimName", f"PersistentVolumeClaim/{claim}"
            if "secret" in volume:
                yield f"{field}.secret.secretName", f"Secret/{volume['secret']['secretName']}"
        for field, container in pod.containers():
            variables = [variable.get("valueFrom", {}) for variable in container.get("env", ())]
            for source in (*container.get("envFrom", ()), *variables):
                for key, kind in REFERENCES.items():
                    if key in source:
                        yield f"{field}.env", f"{kind}/{source[key]['name']}"


def _namespaces(documents: list[Document]) -> Iterator[Finding]:
    """Each namespace enforces `restricted`, and one of its policies denies everything to all of its pods."""
    for space in [document for document in documents if document.kind == "Namespace"]:
        level = space.body["metadata"].get("labels", {}).get("pod-security.kubernetes.io/enforce")
        if level != "restricted":
            yield Finding(space, "metadata.labels.pod-security.kubernetes.io/enforce", "must be restricted")
        policies = [d.body["spec"] for d in documents if d.kind == "NetworkPolicy" and d.namespace == space.name]
        if not any(p["podSelector"] == {} and {*p["policyTypes"]} == {"Ingress", "Egress"} for p in policies):
            yield Finding(space, "metadata.name", "no NetworkPolicy denies ingress and egress by default")
