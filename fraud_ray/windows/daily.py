"""Day after day: the state to go on from, the partitions that it has not counted, and the labels that came since.

windows/latest/<fingerprint of the windows>/<time of the newest transaction>-<key> names a state all of whose columns
have been used.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial

import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import fs

from fraud_ray.data.source import Source, open_source, read_partition, stamp_of
from fraud_ray.data.tasks import map_tasks
from fraud_ray.errors import DataError
from fraud_ray.model.encoder import strings
from fraud_ray.settings import DataSettings
from fraud_ray.storage import Storage
from fraud_ray.windows.definition import Definition
from fraud_ray.windows.passes import identify, names
from fraud_ray.windows.state import ROOT, ROWS_A_TASK, State, load_state

LATEST = f"{ROOT}/latest"


def uncounted(
    state: State, data: DataSettings, found: Mapping[str, fs.FileInfo], definition: Definition
) -> tuple[State, Source | None]:
    """Those of the partitions found below `data.path` that the state has not counted; None where none holds a row.

    Only a file that the state does not know, or that was written again, is read, on Ray. The state comes back knowing
    those of them that it has counted, under another name or with labels filled in.
    """
    unknown = {name: info for name, info in found.items() if state.files.get(info.path) != stamp_of(info)}
    source = open_source(data, unknown)
    filled = [partition for partition in source.partitions if partition.rows]
    if not filled:
        return state, None
    identity = partial(identify, root=source.root, definition=definition)
    identities = map_tasks(identity, filled, [partition.rows for partition in filled], ROWS_A_TASK)
    counted = {filled[position].shown for position, content in identities if content in state.counted}
    again = {found[name].path: stamp_of(found[name]) for name in counted}
    if len(counted) == len(filled):
        fresh = None
    elif counted:
        fresh = open_source(data, {name: info for name, info in unknown.items() if name not in counted})
    else:  # as on most days
        fresh = source
    return replace(state, files=state.files | again), fresh


def make_latest(storage: Storage, state: State) -> None:
    """Lets `latest_after` find the state: call it when nothing is left to be done with the columns made with it."""
    newest = datetime.fromtimestamp(state.newest / 1e6, UTC)
    storage.put(f"{_latest(state)}/{newest:%Y%m%dT%H%M%S%f}-{state.key}", b"")


def latest_after(storage: Storage, state: State) -> State:
    """The newest state made latest, of the same windows, that has counted all that this one has; else this one."""
    for found in reversed(storage.keys(_latest(state))):
        other = load_state(storage, found.rpartition("-")[2])
        if other.newest < state.newest:
            break
        if other.counted.keys() >= state.counted.keys():
            return other
    return state


def read_labels(source: Source, data: DataSettings) -> pa.Table:
    """Labels by id: columns `id` (int64 or text) and `label` (int8). Raises DataError for partitions without either."""
    identifier = data.of_kind("id")
    if identifier is None:
        raise DataError("labels are fed by id; declare a column of kind 'id' under data.columns")
    tables = []
    for partition in source.partitions:
        table = read_partition(source.root, partition, data, [identifier, data.label])
        for name in (identifier, data.label):
            if name not in table.column_names:
                raise DataError(
                    f"{partition.shown}: column '{name}' is missing; labels need '{identifier}' beside them"
                )
        tables.append(pa.table({"id": names(table[identifier]), "label": pc.cast(table[data.label], pa.int8())}))
    if len({table.schema for table in tables}) > 1:
        tables = [table.set_column(0, "id", strings(table["id"])) for table in tables]
    return pa.concat_tables(tables)


def _latest(state: State) -> str:
    """The prefix of the latest states of the same windows."""
    return f"{LATEST}/{state.definition}"
