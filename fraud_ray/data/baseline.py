"""What today's data is compared with, and the comparison: a model's profile, or that of other partitions."""

from __future__ import annotations

import json
from pathlib import Path

from fraud_ray.data.drift import Drift, compare
from fraud_ray.data.prepare import feature_columns
from fraud_ray.data.profiling import profile_partitions
from fraud_ray.data.source import Source, open_source
from fraud_ray.model.bundle import GRAPH, PROFILE
from fraud_ray.model.encoder import FeatureColumn
from fraud_ray.model.profile import Baseline, Profile
from fraud_ray.model.scorer import GraphScorer
from fraud_ray.progress import Update
from fraud_ray.settings import Settings
from fraud_ray.storage import Storage


def baseline_at(path: str, settings: Settings, update: Update) -> Baseline:
    """The profile in a bundle's folder, else of all partitions below a folder or URI, declared as `data` declares."""
    stored = Storage.at(path).get(PROFILE) if "://" in path or Path(path).expanduser().is_dir() else None
    if stored is not None:
        profile, graph = Profile.from_json(json.loads(stored)), Storage.at(path).get(GRAPH)
        return Baseline(f"the bundle at {path}", profile, graph)
    data = settings.data.model_copy(update={"path": path})
    source = open_source(data)
    columns = feature_columns(data, settings.prepare)
    return Baseline(f"the partitions at {path}", profile_partitions(source, data, columns, update))


def measure_drift(baseline: Baseline | None, source: Source, settings: Settings, update: Update) -> Drift:
    """Profiles today's rows, the newest `drift.days` of a source, and compares them with the baseline.

    A column that the settings do not declare as the baseline has it is not compared, and no scores are then.
    """
    assert baseline is not None, "there is one where nothing is measured yet"
    lacking = {}
    declared = {column.name: column.kind for column in feature_columns(settings.data, settings.prepare)}
    columns = []
    for name, profile in baseline.profile.columns.items():
        if declared.get(name) == profile.kind:
            columns.append(FeatureColumn(name, profile.kind))
        elif name in declared:
            lacking[name] = f"{profile.kind} in the reference, declared as {declared[name]}"
        else:
            lacking[name] = "not declared as a feature in data.columns"
    lacking |= {name: "not in the reference" for name in declared if name not in baseline.profile.columns}
    graph = baseline.graph
    if graph is not None and any(declared.get(c.name) != c.kind for c in GraphScorer(graph).columns):
        graph = None
    today = profile_partitions(source, settings.data, columns, update, settings.drift.days, graph)
    return compare(baseline.profile, today, settings.drift, baseline.described, lacking)
