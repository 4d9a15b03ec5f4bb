"""What today's data is compared with, and the comparison: a model's profile, or that of other partitions."""

from __future__ import annotations

from fraud_ray.data.drift import Drift, compare
from fraud_ray.data.prepare import feature_columns
from fraud_ray.data.profiling import profile_partitions
from fraud_ray.data.repeats import without_repeats
from fraud_ray.data.source import Source
from fraud_ray.model.profile import Baseline, profiled
from fraud_ray.model.scorer import GraphScorer
from fraud_ray.progress import Update
from fraud_ray.settings import Settings


def measure_drift(reference: Baseline | Source | None, source: Source, settings: Settings, update: Update) -> Drift:
    """Profiles today's rows, the newest `drift.days` of a source, and compares them with the reference.

    A column that the settings do not declare as the reference has it is not compared, and no scores are then.
    """
    assert reference is not None, "there is one where nothing is measured yet"
    baseline = _profiled(reference, settings) if isinstance(reference, Source) else reference
    lacking = {}
    features = feature_columns(settings.data, settings.prepare)
    declared = {column.name: column.kind for column in profiled(features)}
    for name, profile in baseline.profile.columns.items():
        if name not in declared:
            lacking[name] = "not declared as a feature in data.columns"
        elif declared[name] != profile.kind:
            lacking[name] = f"{profile.kind} in the reference, declared as {declared[name]}"
    lacking |= {name: "not in the reference" for name in declared if name not in baseline.profile.columns}
    columns = [column for column, one in zip(features, profiled(features), strict=True) if one.name not in lacking]
    read = {column.name: column.kind for column in features} | {settings.data.of_kind("timestamp"): "timestamp"}
    graph = baseline.graph
    if graph is not None and any(read.get(c.name) != c.kind for c in GraphScorer(graph).columns):
        graph = None
    today = profile_partitions(source, settings.data, columns, update, settings.drift.days, graph)
    return compare(baseline.profile, today, settings.drift, baseline.described, lacking)


def _profiled(reference: Source, settings: Settings) -> Baseline:
    if settings.data.repeats == "last":
        reference = without_repeats(reference, settings.data, lambda *_: None)
    columns = feature_columns(settings.data, settings.prepare)
    profile = profile_partitions(reference, settings.data, columns, lambda *_: None)
    return Baseline(f"the partitions at {reference.root}", profile)
