"""Scoring of raw partitions by a model of window columns: from a saved state, which the next call goes on from.

A partition is counted once: the next state takes the place of the one before it when all scores are written, so a call
that was killed begins again from the same state, and finds there what it had computed.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial, reduce

import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import fs

from fraud_ray.cluster import join_unless_few
from fraud_ray.data.contract import ContractViolation, check_columns
from fraud_ray.data.listing import parquet_name
from fraud_ray.data.output import count_foreign, list_written, refuse_to_keep_in
from fraud_ray.data.source import (
    Source,
    absolute,
    list_files,
    list_partitions,
    open_source,
    read_partition,
    stamp_of,
    table_name,
)
from fraud_ray.data.tasks import map_tasks
from fraud_ray.errors import DataError, SettingsError
from fraud_ray.model.encoder import strings
from fraud_ray.model.scorer import GraphScorer
from fraud_ray.progress import Progress, Update, counted
from fraud_ray.scoring.partitions import Model, ScoringResult, locate, score_partitions
from fraud_ray.settings import ClusterSettings, CsvSettings, DataSettings
from fraud_ray.storage import Storage
from fraud_ray.windows.definition import Definition
from fraud_ray.windows.passes import identify, names
from fraud_ray.windows.state import ROWS_A_TASK, State, add_windows, latest_after, load_state, make_latest, read_state


def score_raw(
    model: Model,
    source: str,
    target: str,
    storage: Storage,
    labels: str | None = None,
    state: str | None = None,
    cluster: ClusterSettings = ClusterSettings(),  # noqa: B008 - frozen
    update: Update = lambda *_: None,
    progress: Progress | None = None,
    csv: CsvSettings | None = None,
    fingerprint: str | None = None,
) -> ScoringResult:
    """Scores those partitions below `source` that the window state has not counted, with their window columns.

    Of those that an earlier call counted, it makes the output again where it is not there; not from a state asked for.
    storage: where the state lies. labels: folder or URI of labels, by id, of earlier transactions; it may be empty.
    state: key of the state to go on from; by default the model's own, or the newest one that follows it. csv,
    fingerprint: as in settings of data; by default as what the model was fitted on. Raises as `score_partitions` and
    `add_windows` do.
    """
    if model.windows is None:
        raise SettingsError(
            f"{model.version} carries no window columns, so it goes on from no state and takes no labels; leave out "
            "--state and --labels"
        )
    source, target = locate(source, target, labels)
    for what, read in {"input": source, "labels": labels}.items():
        if read is not None:
            refuse_to_keep_in(what, read, storage.root)
    definition = Definition.from_json(model.windows["definition"])
    how = {key: given for key, given in {"csv": csv, "fingerprint": fingerprint}.items() if given is not None}
    definition = replace(definition, data=definition.data.model_copy(update=how))
    listing = list_partitions(source)
    found = listing.files
    own = load_state(storage, model.windows["state"])
    before = load_state(storage, state) if state else latest_after(storage, own)
    # Only a file that the state does not know, or that was written again, is read.
    unknown = {name: info for name, info in found.items() if before.files.get(info.path) != stamp_of(info)}
    opened = open_source(_data(definition, source), unknown)
    are_labels = labels is not None and list_files(absolute(labels)) != {}
    told = open_source(_data(definition, labels or "")) if are_labels else None
    with join_unless_few(cluster, opened.rows, progress):
        before, fresh = _uncounted(before, opened, unknown, definition)
        hashed, after, scored = definition.data.fingerprint, before, []
        if fresh is not None:
            known = read_labels(told, definition.data) if told else None
            made = add_windows(fresh, definition, storage, update, before, known)
            after = made.state
            scored.append(score_partitions(model, made.root, target, cluster, update, fingerprint=hashed))
        fresh_names = {partition.shown for partition in fresh.partitions} if fresh else set()
        lost = [] if state else [name for name in _without_output(found, target, own) if name not in fresh_names]
        kept, notes = _windows_of(lost, source, before, storage)
        for root, names in kept.items():
            scored.append(score_partitions(model, root, target, cluster, update, fingerprint=hashed, only=names))
        if fresh is not None:
            make_latest(storage, after)
    threshold = GraphScorer(model.graph).threshold
    result = reduce(_together, scored, ScoringResult(model.version, threshold, target, 0, 0, 0, 0, 0.0, 0.0, 0))
    return replace(
        result,
        counted=len(found) - result.partitions,
        state=after.key,
        foreign=count_foreign(list_written(target), map(parquet_name, found)),
        notes=(*listing.notes, *notes),
    )


def _without_output(found: Mapping[str, fs.FileInfo], target: str, own: State) -> list[str]:
    """Those of the input's partitions that have no output, but for what the model's own state has counted."""
    there, learnt = list_written(target), set(own.counted.values())
    return [
        name
        for name, info in found.items()
        if parquet_name(name) not in there and name not in learnt and own.files.get(info.path) != stamp_of(info)
    ]


def _windows_of(
    names: Sequence[str], source: str, state: State, storage: Storage
) -> tuple[dict[str, list[str]], list[str]]:
    """Where a state, or one that it follows, keeps partitions with their windows: their names there, by root.

    names: of counted partitions, below the source. With a note on those of them that are not kept any more.
    """
    kept, gone = defaultdict[str, list[str]](list), defaultdict[str, list[str]](list)
    left, one = {name: parquet_name(table_name(source, name)) for name in names}, state
    while left and one.parent is not None:
        data = f"{one.folder}/data"
        there = set(storage.keys(data))
        for name, made in list(left.items()):
            key = f"{data}/{made}"
            if key in there and not (key in one.parts and storage.damage(key, one.parts[key])):
                root = storage.path(f"{data}/{made.removesuffix(parquet_name(name))}").rstrip("/")
                kept[root].append(parquet_name(name))
            elif key in one.parts:
                gone[one.parent].append(name)
            else:
                continue
            del left[name]
        before = read_state(storage, one.parent) if left else None
        if before is None:
            break
        one = before
    return kept, [
        f"{counted(len(of), 'partition')} without output, such as {of[0]}, counted before and with windows that are "
        f"not kept any more: --state {key} scores again from there on"
        for key, of in gone.items()
    ]


def _together(one: ScoringResult, other: ScoringResult) -> ScoringResult:
    """What two calls did."""
    names = ("partitions", "rows", "alerts", "kept", "seconds")
    sums = {name: getattr(one, name) + getattr(other, name) for name in names}
    scored = sum(result.rows_per_second * result.seconds for result in (one, other))
    return replace(one, **sums, rows_per_second=scored / sums["seconds"] if sums["seconds"] else 0.0)


def _uncounted(
    state: State, source: Source, unknown: Mapping[str, fs.FileInfo], definition: Definition
) -> tuple[State, Source | None]:
    """Those of a source's partitions, files that the state does not know, that it has not counted; None: none has rows.

    The state comes back knowing those of them that it has counted, under another name or with labels filled in.
    """
    filled = [partition for partition in source.partitions if partition.rows]
    if not filled:
        return state, None
    identity = partial(identify, root=source.root, definition=definition)
    identities = map_tasks(identity, filled, [partition.rows for partition in filled], ROWS_A_TASK)
    counted = {filled[position].shown for position, content in identities if content in state.counted}
    again = {unknown[name].path: stamp_of(unknown[name]) for name in counted}
    if len(counted) == len(filled):
        fresh = None
    elif counted:
        fresh = open_source(
            _data(definition, source.root), {name: info for name, info in unknown.items() if name not in counted}
        )
    else:  # as on most days
        fresh = source
    return replace(state, files=state.files | again), fresh


def read_labels(source: Source, data: DataSettings) -> pa.Table:
    """Labels by id: columns `id` (int64 or text), `label` (int8) and, where label times are declared, `known` (int64,
    in microseconds since 1970). Raises DataError for partitions without one of them, ContractViolation for values."""
    identifier, label_time = data.of_kind("id"), data.of_kind("label_time")
    if identifier is None:
        raise DataError("labels are fed by id; declare a column of kind 'id' under data.columns")
    tables = []
    needed = [identifier, data.label, *([label_time] if label_time else [])]
    for partition in source.partitions:
        table = read_partition(source.root, partition, data, needed)
        for name in needed:
            if name not in table.column_names:
                raise DataError(
                    f"{partition.shown}: column '{name}' is missing; labels need '{identifier}' beside them"
                )
        checked = {name: data.columns[name].model_copy(update={"nulls": True}) for name in needed}
        violations = check_columns(table, checked, partition.shown, data.csv.decimal_point)
        if violations:
            raise ContractViolation(violations, len(source.partitions))
        columns = {"id": names(table[identifier]), "label": pc.cast(table[data.label], pa.int8())}
        if label_time:
            columns["known"] = pc.cast(table[label_time], pa.int64())
        tables.append(pa.table(columns))
    if len({table.schema for table in tables}) > 1:
        tables = [table.set_column(0, "id", strings(table["id"])) for table in tables]
    return pa.concat_tables(tables)


def _data(definition: Definition, path: str) -> DataSettings:
    return definition.data.model_copy(update={"path": path})
