"""The passes over data that may be larger than memory, each a task an item, by files in the storage.

scatter   a partition: what windows need of its rows, in a block for each bucket of each entity
gather    a bucket of an entity: the blocks of all partitions, and of the state, together; its columns, in a block for
          each partition; and the rows that later transactions may still see: the next state
assemble  a partition: its file with the columns of all buckets beside its own, in the order of its rows

Window columns of window columns take another round of scatter and gather, before all is assembled.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from fraud_ray.data.contract import Violation, check_columns
from fraud_ray.data.keys import buckets_of, known_since
from fraud_ray.data.kinds import Reading
from fraud_ray.data.listing import parquet_name
from fraud_ray.data.source import Partition, open_file, open_filesystem, read_partition, readable, table_name
from fraud_ray.errors import DataError
from fraud_ray.model.encoder import strings
from fraud_ray.settings import INNER
from fraud_ray.storage import Storage
from fraud_ray.windows.definition import Definition, Group
from fraud_ray.windows.measures import calendar, compute
from fraud_ray.windows.timeline import Transactions

LABEL, KNOWN, ID, VALUE, TEXT = "label", "known", "id", "value:", "text:"  # columns of a block
Stored = tuple[str, str]  # key, and SHA-256 in hexadecimal; none of what earlier versions stored
_ROW = f"{INNER}row"  # beside window columns, which bear the user's names


@dataclass(frozen=True)
class Job:
    """What all passes need to know; goes to every task.

    root: of the source; filled: positions of the partitions that hold rows; folder, scratch: keys below which results,
    and blocks on their way, lie; needs_labels: whether a partition without them breaks the contract.
    """

    root: str
    filled: tuple[int, ...]
    definition: Definition
    buckets: int
    storage: Storage
    folder: str
    scratch: str
    needs_labels: bool

    @property
    def tasks(self) -> list[tuple[Group, int]]:
        """(group, bucket) of each task that gathers."""
        return [(group, bucket) for group in self.definition.groups for bucket in range(self.buckets)]

    def scattered(self, group: Group, partition: int) -> str:
        return f"{self.scratch}/scattered/{self.definition.groups.index(group)}/{partition:05d}.arrow"

    def gathered(self, task: int) -> str:
        return f"{self.scratch}/gathered/{task:05d}.arrow"


@dataclass(frozen=True)
class Scattered:
    """What scattering finds in one partition.

    first, last: times in microseconds; types: of entities and ids by column, `text` or `integers`; identity: SHA-256,
    in hexadecimal, over what windows read of it but for the labels, so that the same transactions are known again.
    """

    violations: tuple[Violation, ...]
    first: int = 0
    last: int = 0
    types: dict[str, str] = field(default_factory=dict)
    identity: str = ""


def scatter(item: tuple[int, Partition], job: Job, round: int) -> Scattered:
    """One partition, with its position in the source, for the groups of a round. Identified in the first round."""
    index, partition = item
    definition = job.definition
    table, violations = _checked(partition, job.root, definition, job.needs_labels)
    if violations or not table.num_rows:
        return Scattered(tuple(violations))
    needed, entities = _needed(table, definition), _entities(table, definition)
    identifier = definition.data.of_kind("id")
    named = entities if identifier is None else {identifier: needed[ID], **entities}
    types = {name: "integers" if pa.types.is_integer(held.type) else "text" for name, held in named.items()}
    groups = [group for group in definition.groups if group.round == round]
    earlier = _gathered(job, partition, index, {name for group in groups for name in group.window_columns})
    for group in groups:
        of_windows = {f"{VALUE}{name}": pa.array(earlier[name], pa.float64()) for name in group.window_columns}
        bucket = _bucket_of(entities[group.entity], job.buckets)
        order = np.argsort(bucket, kind="stable")
        block = pa.record_batch({**needed, **of_windows, "entity": entities[group.entity]}).take(pa.array(order))
        cuts = np.searchsorted(bucket[order], np.arange(job.buckets + 1))
        blocks = [block.slice(int(begin), int(end - begin)) for begin, end in pairwise(cuts)]
        job.storage.put(job.scattered(group, index), _written(blocks))
    times = needed["time"].to_numpy()
    identity = "" if round else _identity(needed, entities)
    return Scattered((), int(times.min()), int(times.max()), types, identity)


def identify(partition: Partition, root: str, definition: Definition) -> str | None:
    """The identity of a partition that holds rows; None where its columns break the contract."""
    table, violations = _checked(partition, root, definition, needs_labels=False)
    return None if violations else _identity(_needed(table, definition), _entities(table, definition))


def gather(task: int, job: Job, newest: int, state: Sequence[Stored], labels: pa.Table | None) -> Stored:
    """One bucket of one group, by its place in `job.tasks`; returns its part of the new state.

    newest: time of the newest transaction, in microseconds; state: the parts of the state that is extended, by task,
    if one is; labels: id and label of earlier transactions, known by now.
    """
    group, bucket = job.tasks[task]
    definition = job.definition
    blocks = [_read(job.storage, job.scattered(group, index), bucket) for index in job.filled]
    known = [held(job.storage, state[task])] if state else []
    rows = pa.Table.from_batches([*known, *(block.drop_columns("row") for block in blocks)])
    if labels is not None and ID in rows.column_names:
        rows = _with_labels(rows, labels)
    asked = np.arange(rows.num_rows) >= sum(block.num_rows for block in known)
    columns = compute(_transactions(rows, definition, group), asked, group.measures, definition.windows.decimals)
    made = pa.record_batch({_ROW: np.concatenate([block["row"].to_numpy() for block in blocks]), **columns})
    cuts = np.cumsum([0, *(block.num_rows for block in blocks)]).tolist()
    job.storage.put(job.gathered(task), _written([made.slice(begin, end - begin) for begin, end in pairwise(cuts)]))
    kept = rows.filter(pc.greater(rows["time"], newest - group.horizon))
    one = pa.record_batch([column.combine_chunks() for column in kept.columns], names=kept.column_names)
    return _put(job.storage, state_key(job.folder, task), _written([one]))


def assemble(item: tuple[int, Partition], job: Job) -> Stored:
    """One partition, with its position in the source; returns the one with windows."""
    index, partition = item
    definition = job.definition
    filesystem, _ = open_filesystem(job.root)
    readings = {name: Reading.declared(column) for name, column in definition.data.columns.items()}
    with (
        readable(filesystem, partition, definition.data.csv),
        open_file(filesystem, partition.path, definition.data.csv, readings, known=partition) as file,
    ):
        table = partition.kept(file.read(use_threads=False))
    columns: dict[str, npt.NDArray[Any]] = {}
    if definition.calendar:
        stamp = definition.timestamp
        times = read_partition(job.root, partition, definition.data, [stamp])[stamp]
        columns |= calendar(definition.calendar, times, definition.windows)
    columns |= _gathered(job, partition, index, {m.name for group in definition.groups for m in group.measures})
    for name in definition.names:
        if name in table.column_names:
            raise DataError(
                f"{partition.shown}: column '{name}' is there already; give the one below windows.columns another name"
            )
        values = columns[name]
        table = table.append_column(name, pa.array(values, from_pandas=True))
    sink = pa.BufferOutputStream()
    # Dictionaries of numbers that hardly repeat would take most of the time.
    texts = [name for name in table.column_names if pa.types.is_string(table.schema.field(name).type)]
    pq.write_table(table, sink, use_dictionary=texts)
    made = parquet_name(table_name(job.root, partition.shown))
    return _put(job.storage, f"{job.folder}/data/{made}", sink.getvalue().to_pybytes())


def _put(storage: Storage, key: str, content: bytes) -> Stored:
    storage.put(key, content)
    return key, hashlib.sha256(content).hexdigest()


def held(storage: Storage, part: Stored) -> pa.RecordBatch:
    """The transactions of one bucket of one group, of a state. Raises DataError where it is not whole."""
    key, sha256 = part
    content = storage.get(key)
    if content is None or (sha256 and hashlib.sha256(content).hexdigest() != sha256):
        raise DataError(
            f"{storage.path(key)} is {'missing' if content is None else 'damaged'}, a part of a window state; go on "
            "from the state before it, with all partitions since then in the input (fraud-ray score --state KEY), or "
            "compute the windows of the history anew"
        )
    return pa.ipc.open_file(pa.BufferReader(content)).get_batch(0)


def state_key(folder: str, task: int) -> str:
    """The key of a bucket's part of a state."""
    return f"{folder}/state/{task:05d}.arrow"


def _gathered(job: Job, partition: Partition, index: int, wanted: Collection[str]) -> dict[str, npt.NDArray[Any]]:
    """These gathered columns by name, in the order of a partition's rows; NaN where there is none.

    index: the partition's position in the source.
    """
    columns = {name: np.full(partition.rows, np.nan, np.float32) for name in wanted}
    for task, (group, _) in enumerate(job.tasks) if partition.rows else ():
        here = [measure.name for measure in group.measures if measure.name in columns]
        if here:
            block = _read(job.storage, job.gathered(task), job.filled.index(index))
            rows = block[_ROW].to_numpy()
            for name in here:
                columns[name][rows] = block[name].to_numpy()
    return columns


def _checked(
    partition: Partition, root: str, definition: Definition, needs_labels: bool
) -> tuple[pa.Table, list[Violation]]:
    """What windows read of a partition, and what of it breaks the contract."""
    data = definition.data
    table = read_partition(root, partition, data, definition.reads)
    later = [name for name in definition.labels if name not in table.column_names and not needs_labels]
    columns = {name: data.columns[name] for name in definition.reads if name not in later}
    return table, check_columns(table, columns, partition.shown, data.csv.decimal_point)


def _identity(needed: dict[str, pa.Array], entities: dict[str, pa.Array]) -> str:
    unlabelled = {name: column for name, column in needed.items() if name not in {LABEL, KNOWN}}
    written = [_written([pa.record_batch(columns)]) for columns in (unlabelled, entities) if columns]
    return hashlib.sha256(b"".join(written)).hexdigest()


def _entities(table: pa.Table, definition: Definition) -> dict[str, pa.Array]:
    return {name: names(table[name]) for name in definition.entities}


def _needed(table: pa.Table, definition: Definition) -> dict[str, pa.Array]:
    """What every block holds beside its entity: the row's place, time, values, texts, label, its time, and id."""
    data = definition.data
    label, identifier = data.label, data.of_kind("id")
    label_time, nulls = definition.label_time, pa.nulls(len(table), pa.int64())
    columns: dict[str, Any] = {
        "row": pa.array(np.arange(table.num_rows, dtype=np.int32)),
        "time": pc.cast(table[definition.timestamp], pa.int64()),
        **{f"{VALUE}{name}": pc.cast(table[name], pa.float64(), safe=False) for name in definition.values},
        **{f"{TEXT}{name}": _filled(strings(table[name])) for name in definition.texts},
        LABEL: pc.cast(table[label], pa.int8()) if label in table.column_names else pa.nulls(len(table), pa.int8()),
        **({} if identifier is None else {ID: names(table[identifier])}),
    }
    if label_time is not None:
        columns[KNOWN] = pc.cast(table[label_time], pa.int64()) if label_time in table.column_names else nulls
    return {n: c.combine_chunks() if isinstance(c, pa.ChunkedArray) else c for n, c in columns.items()}


def _with_labels(rows: pa.Table, labels: pa.Table) -> pa.Table:
    """The rows with the labels that have come since."""
    held, come = rows[ID], labels["id"]
    if held.type != come.type:
        held, come = strings(held), strings(come)
    found = pc.index_in(held, come)
    for name in (LABEL, KNOWN):
        if name in rows.column_names:
            come = pc.coalesce(labels[name].take(found), rows[name])
            rows = rows.set_column(rows.column_names.index(name), name, come)
    return rows


def _transactions(rows: pa.Table, definition: Definition, group: Group) -> Transactions:
    values = (*definition.values, *group.window_columns)
    return Transactions(
        entity=_codes(rows["entity"]),
        time=rows["time"].to_numpy(),
        values={n: pc.fill_null(rows[f"{VALUE}{n}"], math.nan).to_numpy() for n in values},
        texts={n: _codes(rows[f"{TEXT}{n}"]) for n in definition.texts},
        fraud=pc.fill_null(pc.equal(rows[LABEL], 1), False).to_numpy(),
        known=None if definition.label_time is None else _known(rows),
    )


def _known(rows: pa.Table) -> npt.NDArray[np.int64]:
    since = pc.if_else(pc.is_valid(rows[LABEL]), rows[KNOWN], None)
    return known_since(since, rows["time"])


def names(column: pa.ChunkedArray) -> pa.Array:
    """Entities or ids as int64 or text; missing, also the empty text, as null."""
    if pa.types.is_integer(column.type):
        return pc.cast(column, pa.int64()).combine_chunks()
    return _filled(strings(column).combine_chunks())


def _filled(texts: pa.ChunkedArray | pa.Array) -> Any:
    """The empty text as null."""
    return pc.if_else(pc.equal(texts, ""), None, texts)


def _bucket_of(entities: pa.Array, buckets: int) -> npt.NDArray[np.int16]:
    """0 to buckets - 1, the same for the same entity in every process and for ever; `buckets` where it is missing."""
    if pa.types.is_integer(entities.type):
        hashed = pd.util.hash_array(pc.fill_null(entities, 0).to_numpy()) % np.uint64(buckets)
    else:
        hashed = buckets_of(pc.fill_null(entities, "")) % buckets
    return np.where(pc.is_valid(entities).to_numpy(zero_copy_only=False), hashed, buckets).astype(np.int16)


def _codes(values: pa.ChunkedArray) -> npt.NDArray[np.int32]:
    """A code from 0 for each value, -1 where it is missing."""
    return pc.fill_null(values.combine_chunks().dictionary_encode().indices, -1).to_numpy()


def _written(blocks: Sequence[pa.RecordBatch]) -> bytes:
    """Blocks of one schema as an Arrow IPC file, of which a reader can take one."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, blocks[0].schema) as writer:
        for block in blocks:
            writer.write_batch(block)
    return sink.getvalue().to_pybytes()


def _read(storage: Storage, key: str, block: int) -> pa.RecordBatch:
    """One block of a file, without reading the others."""
    filesystem, root = open_filesystem(storage.root)
    path = f"{root}/{key}"
    opened = pa.memory_map(path) if storage.is_local else filesystem.open_input_file(path)
    return pa.ipc.open_file(opened).get_batch(block)
