"""The RayJob of an overlay, as `kubectl kustomize` renders it, filled with one attempt at a run."""

from __future__ import annotations

import copy
import hashlib
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from fraud_ray.errors import SettingsError
from fraud_ray.lease import user_name
from fraud_ray.settings import Settings
from fraud_ray.submission.order import CommandLine, Order

OVERLAYS = Path("cluster/overlays")
RUN_LABEL, ATTEMPT_LABEL, SETTINGS_ANNOTATION = "fraud-ray/run", "fraud-ray/attempt", "fraud-ray/settings"
_COMPONENT = "app.kubernetes.io/component"
LONGEST_NAME = 47  # KubeRay's limit for a RayJob: it appends to the name

Document = dict[str, Any]


@dataclass(frozen=True)
class Template:
    """An overlay's RayJob, and the ConfigMap with the settings that its pods read."""

    overlay: str
    job: Document
    settings: Document

    @property
    def namespace(self) -> str:
        return self.job["metadata"]["namespace"]

    @property
    def line(self) -> CommandLine:
        """The command line in the RayJob's entrypoint."""
        return CommandLine.parse(shlex.split(self.job["spec"]["entrypoint"]), f"{OVERLAYS / self.overlay}")


def render_overlay(overlay: str | None) -> Template:
    """Renders cluster/overlays/<overlay> below the working folder.

    Raises SettingsError where there is no such overlay or no kubectl, and with kubectl's words when it refuses.
    """
    folder = OVERLAYS / (overlay or "")
    if not overlay or not folder.is_dir():
        there = ", ".join(sorted(path.name for path in OVERLAYS.glob("*/"))) or "none: start this in the repository"
        raise SettingsError(f"cluster.overlay is {overlay or 'not set'}; in {OVERLAYS.absolute()} there are: {there}")
    kubectl = find_kubectl(f"renders {folder}")
    made = subprocess.run([kubectl, "kustomize", folder], capture_output=True, text=True)
    if made.returncode:
        raise SettingsError(f"kubectl kustomize {folder}: {made.stderr.strip()}")
    documents = [document for document in yaml.safe_load_all(made.stdout) if document]
    labelled = [d for d in documents if d["metadata"].get("labels", {}).get(_COMPONENT) == "run"]
    job = _only(folder, [d for d in labelled if d["kind"] == "RayJob"], f"RayJob with the label {_COMPONENT}: run")
    mounted = {volume["configMap"]["name"] for volume in _volumes(job) if "configMap" in volume}
    maps = [d for d in documents if d["kind"] == "ConfigMap" and d["metadata"]["name"] in mounted]
    return Template(overlay, job, _only(folder, maps, "ConfigMap that the RayJob mounts"))


def find_kubectl(purpose: str) -> str:
    """The path of kubectl. Raises SettingsError that says what it is for."""
    kubectl = shutil.which("kubectl")
    if kubectl is None:
        raise SettingsError(
            f"there is no kubectl on the PATH, which {purpose}; install it "
            "(https://kubernetes.io/docs/tasks/tools), or do this in a pod of the image, which holds one"
        )
    return kubectl


def fill(template: Template, order: Order, number: int) -> tuple[Document, Document]:
    """The RayJob of one attempt, and the ConfigMap that it reads, which holds the order's configuration file.

    Raises SettingsError for a name that Kubernetes does not take, and for an image that is a placeholder.
    """
    name = order.attempt_name(number)
    _require_name(name)
    job, settings = with_settings(template, order.settings, order.config)
    metadata = job["metadata"]
    metadata["name"] = name
    metadata["labels"] = {**metadata.get("labels", {}), RUN_LABEL: order.run, ATTEMPT_LABEL: str(number)}
    resolved = yaml.safe_dump(order.settings.recorded(), sort_keys=False, default_flow_style=None, width=110)
    metadata["annotations"] = {**metadata.get("annotations", {}), SETTINGS_ANNOTATION: resolved}
    # One quoting for two shells: the first takes it off, and `ray job submit` puts it on again for the second.
    job["spec"]["entrypoint"] = shlex.join(order.words)
    head = job["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["containers"][0]
    head["env"] = [*head["env"], asked_by()]
    return job, settings


def with_settings(template: Template, settings: Settings, config: Path) -> tuple[Document, Document]:
    """The overlay's RayJob with the image of these settings, and the ConfigMap that it reads, which holds `config`.

    Raises SettingsError for an image that is a placeholder.
    """
    job, config_map = copy.deepcopy(template.job), copy.deepcopy(template.settings)
    for container in _containers(job):
        container["image"] = settings.cluster.image or container["image"]
        _require_real(container["image"], template.overlay)
    _put_settings(job, config_map, Path(template.line.config).name, config.read_text(encoding="utf-8"))
    return job, config_map


def asked_by() -> Document:
    """The variable by which a pod's program knows who asked for it, as the audit record names them."""
    return {"name": "LOGNAME", "value": user_name()}


def to_yaml(documents: Sequence[Document]) -> str:
    """YAML that `kubectl apply -f -` and kustomize read."""
    return yaml.dump_all(documents, Dumper=_Dumper, sort_keys=False, width=10_000, allow_unicode=True)


class _Dumper(yaml.SafeDumper):
    """Writes texts of several lines as blocks, and every value in full rather than as an alias."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


_Dumper.add_representer(
    str,
    lambda dumper, text: dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None),
)


def _put_settings(job: Document, settings: Document, key: str, content: str) -> None:
    """Has the pods read this content; other content than the overlay's gets a ConfigMap of its own name."""
    if settings["data"].get(key) == content:
        return
    old = settings["metadata"]["name"]
    base = old.rpartition("-")[0]  # kustomize ends the name with a hash of the content
    new = f"{base}-{hashlib.sha256(content.encode()).hexdigest()[:10]}"
    settings["metadata"]["name"] = new
    settings["data"][key] = content
    for volume in _volumes(job):
        if volume.get("configMap", {}).get("name") == old:
            volume["configMap"]["name"] = new


def _require_name(name: str) -> None:
    if len(name) > LONGEST_NAME or not re.fullmatch("[a-z]([-a-z0-9]*[a-z0-9])?", name):
        raise SettingsError(
            f"the run would be the RayJob '{name}', which must begin with a lower-case letter, hold lower-case "
            f"letters, digits and '-' only, and have {LONGEST_NAME} characters at most; give it another --name"
        )


def _require_real(image: str, overlay: str) -> None:
    if image.endswith("@sha256:" + 64 * "0"):
        raise SettingsError(
            f"the image {image} is a placeholder: write the digest that your build pushed into "
            f"{OVERLAYS / overlay}/kustomization.yaml (images), or give --set cluster.image=REGISTRY/NAME@sha256:…"
        )


def _only(folder: Path, documents: list[Document], what: str) -> Document:
    if len(documents) != 1:
        raise SettingsError(f"{folder} renders {len(documents)} times a {what}; it should be one")
    return documents[0]


def pods_of(job: Document) -> Iterator[Document]:
    """The specs of a RayJob's pods: the head's, those of worker groups, the submitter's."""
    cluster = job["spec"]["rayClusterSpec"]
    for holder in (cluster["headGroupSpec"], *cluster.get("workerGroupSpecs", ())):
        yield holder["template"]["spec"]
    if "submitterPodTemplate" in job["spec"]:
        yield job["spec"]["submitterPodTemplate"]["spec"]


def _containers(job: Document) -> Iterator[Document]:
    return (container for pod in pods_of(job) for container in (*pod.get("initContainers", ()), *pod["containers"]))


def _volumes(job: Document) -> Iterator[Document]:
    return (volume for pod in pods_of(job) for volume in pod.get("volumes", ()))
