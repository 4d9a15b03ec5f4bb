"""What today's data is compared with: the champion, the bundle of another model, or other partitions."""

from __future__ import annotations

import json
import tempfile
from dataclasses import dataclass
from pathlib import Path

from fraud_ray.data.drift import Drift, compare
from fraud_ray.data.prepare import feature_columns
from fraud_ray.data.profiling import profile_partitions
from fraud_ray.data.source import Source, open_source
from fraud_ray.model.bundle import GRAPH, PROFILE, load_profile
from fraud_ray.model.encoder import FeatureColumn
from fraud_ray.model.profile import Profile
from fraud_ray.model.scorer import GraphScorer
from fraud_ray.progress import Update
from fraud_ray.registry.tracking import Tracking
from fraud_ray.registry.versions import champion, download
from fraud_ray.settings import Settings
from fraud_ray.storage import Storage


@dataclass(frozen=True)
class Reference:
    """A profile; `described` in words. graph: of the model that it comes from, so that scores are compared too."""

    described: str
    profile: Profile
    graph: bytes | None = None


def of_champion(tracking: Tracking) -> Reference | None:
    """The champion's profile; None where there is no champion, or its bundle holds none."""
    version = champion(tracking)
    if version is None:
        return None
    with tempfile.TemporaryDirectory() as scratch:
        folder = download(tracking, version, Path(scratch))
        profile, graph = load_profile(folder), (folder / GRAPH).read_bytes()
    described = f"the champion, {version.name} version {version.version}"
    return None if profile is None else Reference(described, profile, graph)


def of_path(path: str, settings: Settings, update: Update) -> Reference:
    """The profile in a bundle's folder, else of all partitions below a folder or URI, declared as `data` declares."""
    stored = Storage.at(path).get(PROFILE) if "://" in path or Path(path).expanduser().is_dir() else None
    if stored is not None:
        profile, graph = Profile.from_json(json.loads(stored)), Storage.at(path).get(GRAPH)
        return Reference(f"the bundle at {path}", profile, graph)
    data = settings.data.model_copy(update={"path": path})
    source = open_source(data)
    columns = feature_columns(data, settings.prepare)
    return Reference(f"the partitions at {path}", profile_partitions(source, data, columns, update))


def measure_drift(reference: Reference | None, source: Source, settings: Settings, update: Update) -> Drift:
    """Profiles today's rows, the newest `drift.days` of a source, and compares them with the reference.

    A column that the settings do not declare as the reference has it is not compared, and no scores are then.
    """
    assert reference is not None, "there is one where nothing is measured yet"
    lacking = {}
    declared = {column.name: column.kind for column in feature_columns(settings.data, settings.prepare)}
    columns = []
    for name, profile in reference.profile.columns.items():
        if declared.get(name) == profile.kind:
            columns.append(FeatureColumn(name, profile.kind))
        elif name in declared:
            lacking[name] = f"{profile.kind} in the reference, declared as {declared[name]}"
        else:
            lacking[name] = "not declared as a feature in data.columns"
    lacking |= {name: "not in the reference" for name in declared if name not in reference.profile.columns}
    graph = reference.graph
    if graph is not None and any(declared.get(c.name) != c.kind for c in GraphScorer(graph).columns):
        graph = None
    today = profile_partitions(source, settings.data, columns, update, settings.drift.days, graph)
    return compare(reference.profile, today, settings.drift, reference.described, lacking)
