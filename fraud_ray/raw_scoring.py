"""Scoring of raw partitions by a model of window columns: from a saved state, which the next call goes on from.

A partition is counted once: the next state takes the place of the one before it when all scores are written, so a call
that was killed begins again from the same state, and finds there what it had computed.
"""

from __future__ import annotations

from dataclasses import replace

from fraud_ray.cluster import join_or_start
from fraud_ray.data.output import list_written
from fraud_ray.data.source import absolute, list_files, list_partitions, open_source
from fraud_ray.errors import SettingsError
from fraud_ray.model.scorer import GraphScorer
from fraud_ray.progress import Update
from fraud_ray.scoring import Model, Scored, locate, score_partitions
from fraud_ray.settings import ClusterSettings, DataSettings
from fraud_ray.storage import Storage
from fraud_ray.windows.daily import latest_after, make_latest, read_labels, uncounted
from fraud_ray.windows.definition import Definition
from fraud_ray.windows.state import extend, load_state


def score_raw(
    model: Model,
    source: str,
    target: str,
    storage: Storage,
    labels: str | None = None,
    state: str | None = None,
    cluster: ClusterSettings = ClusterSettings(),  # noqa: B008 - frozen
    update: Update = lambda *_: None,
) -> Scored:
    """Scores those partitions below `source` that the window state has not counted, with their window columns.

    storage: where the state lies. labels: folder or URI of labels, by id, of earlier transactions; it may be empty.
    state: key of the state to go on from; by default the model's own, or the newest one that follows it. Raises as
    `score_partitions` and `extend` do.
    """
    if model.windows is None:
        raise SettingsError(
            f"{model.version} carries no window columns, so it goes on from no state and takes no labels; leave out "
            "--state and --labels"
        )
    source, target = locate(source, target)
    definition = Definition.from_json(model.windows["definition"])
    found = list_partitions(source)
    with join_or_start(cluster):
        before = load_state(storage, state or model.windows["state"])
        before = before if state else latest_after(storage, before)
        before, fresh = uncounted(before, _data(definition, source), found, definition)
        if fresh is None:
            after, scored = before, _nothing(model, target)
        else:
            known = None
            if labels is not None and list_files(absolute(labels)) != {}:
                known = read_labels(open_source(_data(definition, labels)), definition.data)
            made = extend(before, fresh, definition, storage, update, known)
            after, scored = made.state, score_partitions(model, made.root, target, cluster, update)
            make_latest(storage, after)
    return replace(
        scored,
        counted=len(found) - scored.partitions,
        state=after.key,
        foreign=sum(name.endswith(".parquet") for name in list_written(target).keys() - found.keys()),
    )


def _data(definition: Definition, path: str) -> DataSettings:
    return definition.data.model_copy(update={"path": path})


def _nothing(model: Model, target: str) -> Scored:
    return Scored(model.version, GraphScorer(model.graph).threshold, target, 0, 0, 0, 0, 0.0, 0.0, 0)
