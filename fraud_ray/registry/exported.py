"""A version where other programs' model servers look for it."""

from __future__ import annotations

from pathlib import Path

from fraud_ray.errors import FraudRayError
from fraud_ray.model.scorer import GRAPH, PORTABLE, VOCABULARY
from fraud_ray.registry.opened import Opened
from fraud_ray.storage import Storage


def export(opened: Opened, target: Storage) -> str:
    """Writes a registered version's portable graph as NAME/VERSION/model.onnx below the target; returns where that is.

    Its vocabulary comes beside it. This is the layout of OpenVINO's model server and of Triton's, which answer with the
    highest version that they find: so other versions below NAME go, when this one is there. Raises FraudRayError for a
    version that has no portable graph.
    """
    version = opened.version
    assert version is not None, "folders have no version to be named by"
    if not (opened.folder / PORTABLE).is_file():
        raise FraudRayError(
            f"version {version.version} of {version.name} is from before there was a {PORTABLE}: "
            "`fraud-ray run -c FILE` under a new name, or `fraud-ray retrain`, registers one that has it"
        )
    folder = f"{version.name}/{version.version}"
    for written, name in ((VOCABULARY, VOCABULARY), (GRAPH, PORTABLE)):
        target.put(f"{folder}/{written}", (opened.folder / name).read_bytes())
    others = [key for key in target.keys(version.name) if not key.startswith(f"{folder}/")]
    target.delete(others)
    if target.is_local:  # an empty folder would be taken for a version
        for emptied in {Path(target.path(key)).parent for key in others}:
            emptied.rmdir()
    return target.path(folder)
