"""What we ask of manifests beyond their schemas: security, limits, references, Ray's and KubeRay's own rules."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from tests.kube.render import Document, Finding

# Where the pod templates of a kind lie.
POD_TEMPLATES = {
    "Deployment": ("spec.template",),
    "CronJob": ("spec.jobTemplate.spec.template",),
    "RayJob": ("spec.submitterPodTemplate",),
    "RayCronJob": ("spec.jobTemplate.submitterPodTemplate",),
}
RAY_CLUSTERS = {"RayCluster": "spec", "RayJob": "spec.rayClusterSpec", "RayCronJob": "spec.jobTemplate.rayClusterSpec"}
RAY_JOBS = {"RayJob": "spec", "RayCronJob": "spec.jobTemplate"}
# KubeRay appends to these names and refuses what gets too long for a Service.
LONGEST_NAME = {"RayJob": 47, "RayCronJob": 36, "RayCluster": 53}
OBJECT_STORE_SHARE = 0.3  # of a container's memory, Ray's default


@dataclass(frozen=True)
class Pod:
    """A pod template and where it lies in its document."""

    document: Document
    field: str
    template: dict[str, Any]

    @property
    def spec(self) -> dict[str, Any]:
        return self.template["spec"]

    def containers(self) -> Iterator[tuple[str, dict[str, Any]]]:
        for group in ("initContainers", "containers"):
            for index, container in enumerate(self.spec.get(group, ())):
                yield f"{self.field}.spec.{group}[{index}]", container


def violations(documents: list[Document], external: set[str], ray_version: str) -> list[Finding]:
    """All findings in what an overlay renders.

    external: "Kind/name" of the objects that somebody else makes. ray_version: the one in the image.
    """
    found: list[Finding] = []
    for document in documents:
        found += _names(document)
        found += _schedules(document)
        found += _jobs(document)
        found += _clusters(document, ray_version)
        for pod in pods(document):
            found += [*_pod_security(pod), *_containers(pod), *_volumes(pod)]
    return [*found, *_references(documents, external), *_selectors(documents), *_networks(documents)]


def pods(document: Document) -> Iterator[Pod]:
    for path in POD_TEMPLATES.get(document.kind, ()):
        template = at(document.body, path)
        if template:
            yield Pod(document, path, template)
    if document.kind in RAY_CLUSTERS:
        path = RAY_CLUSTERS[document.kind]
        cluster = at(document.body, path)
        yield Pod(document, f"{path}.headGroupSpec.template", cluster["headGroupSpec"]["template"])
        for index, group in enumerate(cluster["workerGroupSpecs"]):
            yield Pod(document, f"{path}.workerGroupSpecs[{index}].template", group["template"])


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


def _names(document: Document) -> Iterator[Finding]:
    longest = LONGEST_NAME.get(document.kind, 253)
    if len(document.name) > longest:
        yield Finding(document, "metadata.name", f"longer than {longest} characters")


def _schedules(document: Document) -> Iterator[Finding]:
    if document.kind not in {"CronJob", "RayCronJob"}:
        return
    spec = document.body["spec"]
    if len(spec["schedule"].split()) != 5:
        yield Finding(document, "spec.schedule", f"'{spec['schedule']}' has not five fields")
    if not spec.get("timeZone"):
        yield Finding(document, "spec.timeZone", "missing: the schedule would be the controller's local time")
    if document.kind == "CronJob" and spec.get("concurrencyPolicy") != "Forbid":
        yield Finding(document, "spec.concurrencyPolicy", "must be Forbid")
    if document.kind == "CronJob" and not spec.get("startingDeadlineSeconds"):
        yield Finding(document, "spec.startingDeadlineSeconds", "missing")


def _jobs(document: Document) -> Iterator[Finding]:
    """KubeRay's admission rules for a RayJob (its ValidateRayJobSpec), as far as the definitions do not hold them."""
    if document.kind not in RAY_JOBS:
        return
    field = RAY_JOBS[document.kind]
    job = at(document.body, field)
    if not re.match(r"python jobs/(pipeline|retrain|score)\.py -c configs/", job["entrypoint"]):
        yield Finding(document, f"{field}.entrypoint", "must run a script of jobs/ with a file of configs/")
    for name in ("backoffLimit", "activeDeadlineSeconds", "preRunningDeadlineSeconds"):
        if job.get(name) is None:
            yield Finding(document, f"{field}.{name}", "missing")
        elif job[name] < (0 if name == "backoffLimit" else 1):
            yield Finding(document, f"{field}.{name}", f"{job[name]} is too small")
    rules = (job.get("deletionStrategy") or {}).get("deletionRules", [])
    shutdown = job.get("shutdownAfterJobFinishes", False)
    if rules and shutdown:
        yield Finding(document, f"{field}.deletionStrategy", "excludes shutdownAfterJobFinishes")
    if not rules and not shutdown:
        yield Finding(document, f"{field}.deletionStrategy", "nothing ever deletes the cluster")
    if job.get("suspend") and not shutdown:
        yield Finding(document, f"{field}.suspend", "needs shutdownAfterJobFinishes")
    if job.get("suspend") and "kueue.x-k8s.io/queue-name" not in document.body["metadata"].get("labels", {}):
        yield Finding(document, f"{field}.suspend", "without a queue nobody ever resumes it")
    if document.kind == "RayCronJob" and job.get("suspend"):
        yield Finding(document, f"{field}.suspend", "its RayJobs carry no queue label, so nobody ever resumes them")
    if job.get("submissionMode") == "SidecarMode":
        yield Finding(document, f"{field}.submissionMode", "its container has no securityContext")


def _clusters(document: Document, ray_version: str) -> Iterator[Finding]:
    if document.kind not in RAY_CLUSTERS:
        return
    field = RAY_CLUSTERS[document.kind]
    cluster = at(document.body, field)
    autoscaling = cluster.get("enableInTreeAutoscaling", False)
    if at(cluster, "authOptions.mode") != "token":
        yield Finding(document, f"{field}.authOptions.mode", "must be token: the dashboard runs code for whoever asks")
    if not at(cluster, "authOptions.secretName"):
        yield Finding(document, f"{field}.authOptions.secretName", "missing")
    if cluster.get("rayVersion") != ray_version:
        yield Finding(document, f"{field}.rayVersion", f"{cluster.get('rayVersion')}, but the image has {ray_version}")
    head = cluster["headGroupSpec"]
    if head.get("rayStartParams", {}).get("num-cpus") != "0":
        yield Finding(document, f"{field}.headGroupSpec.rayStartParams.num-cpus", 'must be "0": the head takes no work')
    if autoscaling:
        if at(cluster, "autoscalerOptions.version") != "v2":
            yield Finding(document, f"{field}.autoscalerOptions.version", "must be v2")
        options = cluster["autoscalerOptions"]
        yield from _container(document, f"{field}.autoscalerOptions", options)
    for index, group in enumerate(cluster["workerGroupSpecs"]):
        where = f"{field}.workerGroupSpecs[{index}]"
        if not autoscaling and not group.get("minReplicas") == group.get("maxReplicas") == group.get("replicas"):
            yield Finding(document, f"{where}.replicas", "without an autoscaler replicas, minimum and maximum are one")
        if group["groupName"] == "gpu":
            yield from _gpu_group(document, where, group)
    for pod in pods(document):
        if "GroupSpec" in pod.field and pod.spec.get("restartPolicy") != "Never":
            yield Finding(document, f"{pod.field}.spec.restartPolicy", "must be Never")


def _gpu_group(document: Document, where: str, group: dict[str, Any]) -> Iterator[Finding]:
    spec = group["template"]["spec"]
    if group["minReplicas"] != 0:
        yield Finding(document, f"{where}.minReplicas", "must be 0: an idle GPU costs the same as a busy one")
    if not spec["containers"][0]["resources"].get("limits", {}).get("nvidia.com/gpu"):
        yield Finding(document, f"{where}.template.spec.containers[0].resources.limits", "nvidia.com/gpu is missing")
    if not any(toleration.get("key") == "nvidia.com/gpu" for toleration in spec.get("tolerations", ())):
        yield Finding(document, f"{where}.template.spec.tolerations", "nvidia.com/gpu is not tolerated")
    if not spec.get("nodeSelector"):
        yield Finding(document, f"{where}.template.spec.nodeSelector", "missing")


def _pod_security(pod: Pod) -> Iterator[Finding]:
    """The pod's half of the standard `restricted`, and no token of Kubernetes where none is asked for."""
    context = pod.spec.get("securityContext", {})
    if context.get("runAsNonRoot") is not True:
        yield Finding(pod.document, f"{pod.field}.spec.securityContext.runAsNonRoot", "must be true")
    if at(context, "seccompProfile.type") != "RuntimeDefault":
        yield Finding(pod.document, f"{pod.field}.spec.securityContext.seccompProfile", "must be RuntimeDefault")
    if "serviceAccountName" not in pod.spec:
        yield Finding(pod.document, f"{pod.field}.spec.serviceAccountName", "missing")
    if "automountServiceAccountToken" not in pod.spec:
        yield Finding(pod.document, f"{pod.field}.spec.automountServiceAccountToken", "missing: say true or false")
    for name in ("hostNetwork", "hostPID", "hostIPC"):
        if pod.spec.get(name):
            yield Finding(pod.document, f"{pod.field}.spec.{name}", "must not be set")


def _containers(pod: Pod) -> Iterator[Finding]:
    for field, container in pod.containers():
        yield from _container(pod.document, field, container)
        image = container["image"]
        tag = image.rpartition("/")[2].partition("@")[0].partition(":")[2]
        if "@sha256:" not in image and tag in {"", "latest"}:
            yield Finding(pod.document, f"{field}.image", f"{image} names no version: give it a tag or a digest")


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
    volumes = {volume["name"]: volume for volume in pod.spec.get("volumes", ())}
    for index, volume in enumerate(pod.spec.get("volumes", ())):
        if "hostPath" in volume:
            yield Finding(pod.document, f"{pod.field}.spec.volumes[{index}]", "hostPath is not for pods of ours")
        if "emptyDir" in volume and "sizeLimit" not in volume["emptyDir"]:
            yield Finding(pod.document, f"{pod.field}.spec.volumes[{index}].emptyDir.sizeLimit", "missing")
    for field, container in pod.containers():
        mounts = {mount["mountPath"]: mount["name"] for mount in container.get("volumeMounts", ())}
        for path, name in mounts.items():
            if name not in volumes:
                yield Finding(pod.document, f"{field}.volumeMounts", f"{path}: the pod has no volume '{name}'")
        if "/tmp" not in mounts:
            yield Finding(pod.document, f"{field}.volumeMounts", "nothing writable at /tmp")
        if container["name"] in {"ray-head", "ray-worker"}:
            yield from _shared_memory(pod, field, container, volumes.get(mounts.get("/dev/shm", "")))


def _shared_memory(pod: Pod, field: str, container: dict[str, Any], volume: dict[str, Any] | None) -> Iterator[Finding]:
    memory = at(container, "resources.limits.memory")
    if volume is None or at(volume, "emptyDir.medium") != "Memory":
        yield Finding(pod.document, f"{field}.volumeMounts", "/dev/shm is not a volume in memory")
    elif memory and quantity(volume["emptyDir"]["sizeLimit"]) < OBJECT_STORE_SHARE * quantity(memory):
        yield Finding(pod.document, f"{field}.volumeMounts", f"/dev/shm holds less than Ray's object store of {memory}")


def _references(documents: list[Document], external: set[str]) -> Iterator[Finding]:
    """Every object that is named exists in the same namespace, or is external."""
    there = {(document.namespace, f"{document.kind}/{document.name}") for document in documents}
    keys = {(d.namespace, d.name): set(d.body.get("data", {})) for d in documents if d.kind == "ConfigMap"}

    def missing(document: Document, kind: str, name: str) -> bool:
        return (document.namespace, f"{kind}/{name}") not in there and f"{kind}/{name}" not in external

    for document in documents:
        for field, kind, name in _named(document):
            if missing(document, kind, name):
                message = f"no {kind} '{name}' in {document.namespace}, nor among the external ones"
                yield Finding(document, field, message)
        for pod in pods(document):
            maps = {v["name"]: v["configMap"]["name"] for v in pod.spec.get("volumes", ()) if "configMap" in v}
            for field, container in pod.containers():
                for mount in container.get("volumeMounts", ()):
                    held = keys.get((document.namespace, maps.get(mount["name"], "")))
                    if held is not None and mount.get("subPath") not in {None, *held}:
                        yield Finding(document, f"{field}.volumeMounts", f"the ConfigMap has no {mount['subPath']}")


def _named(document: Document) -> Iterator[tuple[str, str, str]]:
    """Field, kind and name of every object that a document names."""
    if document.kind == "RoleBinding":
        yield "roleRef", document.body["roleRef"]["kind"], document.body["roleRef"]["name"]
        for index, subject in enumerate(document.body["subjects"]):
            yield f"subjects[{index}]", subject["kind"], subject["name"]
    queue = document.body["metadata"].get("labels", {}).get("kueue.x-k8s.io/queue-name")
    if queue:
        yield "metadata.labels.kueue.x-k8s.io/queue-name", "LocalQueue", queue
    if document.kind in RAY_CLUSTERS:
        field = f"{RAY_CLUSTERS[document.kind]}.authOptions.secretName"
        secret = at(document.body, field)
        if secret:
            yield field, "Secret", secret
    for pod in pods(document):
        if "serviceAccountName" in pod.spec:
            yield f"{pod.field}.spec.serviceAccountName", "ServiceAccount", pod.spec["serviceAccountName"]
        for index, volume in enumerate(pod.spec.get("volumes", ())):
            field = f"{pod.field}.spec.volumes[{index}]"
            if "configMap" in volume:
                yield f"{field}.configMap.name", "ConfigMap", volume["configMap"]["name"]
            if "secret" in volume:
                yield f"{field}.secret.secretName", "Secret", volume["secret"]["secretName"]
            if "persistentVolumeClaim" in volume:
                claim = volume["persistentVolumeClaim"]["claimName"]
                yield f"{field}.persistentVolumeClaim.claimName", "PersistentVolumeClaim", claim
        for field, container in pod.containers():
            for source in container.get("envFrom", ()):
                for key, kind in (("secretRef", "Secret"), ("configMapRef", "ConfigMap")):
                    if key in source:
                        yield f"{field}.envFrom", kind, source[key]["name"]
            for variable in container.get("env", ()):
                for key, kind in (("secretKeyRef", "Secret"), ("configMapKeyRef", "ConfigMap")):
                    if key in variable.get("valueFrom", {}):
                        yield f"{field}.env[{variable['name']}]", kind, variable["valueFrom"][key]["name"]


def _selectors(documents: list[Document]) -> Iterator[Finding]:
    """Services and PodDisruptionBudgets select pods that somebody makes."""
    kuberay = {"ray.io/is-ray-node": "yes", "ray.io/node-type": "head"}
    labels = [(pod.document.namespace, at(pod.template, "metadata.labels") or {}) for d in documents for pod in pods(d)]
    labels += [(d.namespace, kuberay) for d in documents if d.kind in RAY_CLUSTERS]
    for document in documents:
        field = {"Service": "spec.selector", "PodDisruptionBudget": "spec.selector.matchLabels"}.get(document.kind)
        if field is None:
            continue
        wanted = at(document.body, field)
        if not any(space == document.namespace and wanted.items() <= held.items() for space, held in labels):
            yield Finding(document, field, f"{wanted} selects no pod")


def _networks(documents: list[Document]) -> Iterator[Finding]:
    """In each namespace with pods, one policy denies everything but DNS to all of them."""
    for space in [document for document in documents if document.kind == "Namespace"]:
        level = space.body["metadata"].get("labels", {}).get("pod-security.kubernetes.io/enforce")
        if level != "restricted":
            yield Finding(space, "metadata.labels.pod-security.kubernetes.io/enforce", "must be restricted")
        policies = [d for d in documents if d.kind == "NetworkPolicy" and d.namespace == space.name]
        for_all = [policy for policy in policies if policy.body["spec"]["podSelector"] == {}]
        if not any(set(policy.body["spec"]["policyTypes"]) == {"Ingress", "Egress"} for policy in for_all):
            yield Finding(space, "metadata.name", "no NetworkPolicy denies ingress and egress by default")
        for policy in for_all:
            ports = [port for rule in policy.body["spec"].get("egress", ()) for port in rule["ports"]]
            if not {("UDP", 53), ("UDP", 5353)} & {(port["protocol"], port["port"]) for port in ports}:
                yield Finding(policy, "spec.egress", "DNS is not let out, so nothing in this namespace starts")
