"""Ids that occur more than once in a table: found exactly, in bounded memory, and refused or left out.

A first pass over the ids alone gathers a 64-bit hash of each, a range of hashes after the other where there are more
than AT_ONCE. Where some occur twice, a second one compares these ids themselves and finds the last row of each, and a
third one all other rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from fraud_ray.data.kinds import TIMES
from fraud_ray.data.source import Partition, Source, read_partition
from fraud_ray.data.tasks import Merged, map_tasks
from fraud_ray.errors import DataError
from fraud_ray.model.encoder import strings
from fraud_ray.progress import Update, counted
from fraud_ray.settings import DataSettings

AT_ONCE = 2**26  # hashes that this process holds, of 8 bytes, twice while it puts them together
SENT = 2**20  # hashes that the further passes are made for at a time, as each of their tasks is given all of them
ROWS_A_TASK = 500_000
EACH_ONCE = "each id once in {0.rows:,} rows"

_FIRST = np.iinfo(np.int64).min

Hashes = npt.NDArray[np.uint64]
Placed = tuple[int, Partition]  # a partition and its position in the source


@dataclass(frozen=True)
class Repeated:
    """Rows of one partition whose id a later row has, of this partition or another, and the first of them in words."""

    rows: npt.NDArray[np.int64]
    example: str

    def beside(self, other: Repeated | None) -> Repeated:
        """Both, of the same partition."""
        if other is None:
            return self
        return Repeated(np.union1d(self.rows, other.rows), min(self, other, key=lambda one: one.rows[0]).example)


def find_repeats(source: Source, data: DataSettings, update: Update) -> dict[int, Repeated]:
    """By position of the partition, the rows that are not the last of their id, by timestamp, path and row.

    Missing ids, also empty texts, are no repeats; ids that cannot be read are left to the contract. Empty where no
    column of kind 'id' is declared. update: gets rows done and rows in all.
    """
    found: dict[int, Repeated] = {}
    if data.of_kind("id") is None:
        return found
    placed, weights = list(enumerate(source.partitions)), [partition.rows for partition in source.partitions]
    for hashes in _seen_twice(source, data, update):
        of_hashes = partial(_rows_of, root=source.root, data=data, hashes=hashes)
        latest = Merged(_latest)
        for _, rows in map_tasks(partial(_latest_in, rows_of=of_hashes), placed, weights, ROWS_A_TASK):
            latest.add(rows)
        others = partial(_others_in, rows_of=of_hashes, latest=latest.result())
        for place, of_one in map_tasks(others, placed, weights, ROWS_A_TASK):
            if of_one is not None:
                rows, told, (there, row) = of_one
                example = f"{told}, as {source.partitions[there].shown} has at row {row}"
                found[place] = Repeated(rows, example).beside(found.get(place))
    return dict(sorted(found.items()))


def without_repeats(source: Source, data: DataSettings, update: Update) -> Source:
    """The source without the rows that `find_repeats` finds."""
    found = find_repeats(source, data, update)
    if not found:
        return source
    partitions = list(source.partitions)
    for place, repeated in found.items():
        partition = partitions[place]
        left = partition.rows - len(repeated.rows)
        partitions[place] = replace(partition, rows=left, left_out=repeated.rows)
    count = sum(len(repeated.rows) for repeated in found.values())
    note = f"left out: {counted(count, 'row')} whose id a later one has"
    return replace(source, partitions=tuple(partitions), notes=(*source.notes, note))


def _seen_twice(source: Source, data: DataSettings, update: Update) -> Iterator[Hashes]:
    """The hashes that more than one row has, in order, SENT at a time at most."""
    rows = [partition.rows for partition in source.partitions]
    ranges = -(-source.rows // AT_ONCE)
    done, total = 0, ranges * source.rows
    for low, end in pairwise(number * 2**64 // ranges for number in range(ranges + 1)):
        found = []
        within = partial(_hashes_within, root=source.root, data=data, low=low, high=end - 1)
        for position, hashes in map_tasks(within, source.partitions, rows, ROWS_A_TASK):
            found.append(hashes)
            done += rows[position]
            update(done, total, "ids")
        together = np.sort(np.concatenate(found))
        again = np.unique(together[1:][together[1:] == together[:-1]])
        del found, together
        yield from np.split(again, range(SENT, len(again), SENT)) if len(again) else ()


def _hashes_within(partition: Partition, root: str, data: DataSettings, low: int, high: int) -> Hashes:
    hashes = _hashed(_ids(partition, root, data)["id"])
    return hashes[(hashes >= np.uint64(low)) & (hashes <= np.uint64(high))]


def _latest_in(item: Placed, rows_of: Callable[[Placed], pa.Table]) -> pa.Table:
    return _latest([rows_of(item)])


def _latest(tables: Sequence[pa.Table]) -> pa.Table:
    """The last row of each id, by time, place and row."""
    rows = pa.concat_tables(tables)
    order = [("id", "ascending"), ("time", "ascending"), ("place", "ascending"), ("row", "ascending")]
    rows = rows.take(pc.sort_indices(rows, order)).combine_chunks()
    is_last = np.append(pc.not_equal(rows["id"][:-1], rows["id"][1:]).to_numpy(), True)[: rows.num_rows]
    return rows.filter(pa.array(is_last.astype(bool)))


def _others_in(
    item: Placed, rows_of: Callable[[Placed], pa.Table], latest: pa.Table
) -> tuple[npt.NDArray[np.int64], str, tuple[int, int]] | None:
    """Rows that are not the last of their id, in order; the first in words; and place and row of the last one of it."""
    rows = rows_of(item)
    last = latest.take(pc.index_in(rows["id"], latest["id"]))
    is_other = pc.or_(pc.not_equal(rows["place"], last["place"]), pc.not_equal(rows["row"], last["row"]))
    others, last = rows.filter(is_other), last.filter(is_other)
    if not others.num_rows:
        return None
    told = f"first at row {others['row'][0]}: {others['id'][0].as_py()!r}"
    return others["row"].to_numpy(), told, (last["place"][0].as_py(), last["row"][0].as_py())


def _rows_of(item: Placed, root: str, data: DataSettings, hashes: Hashes) -> pa.Table:
    """Id as text, time, row and place of a partition's rows whose ids have these hashes, which are in order."""
    place, partition = item
    ids = _ids(partition, root, data, data.of_kind("timestamp"))
    found = _hashed(ids["id"])
    is_asked = hashes[np.minimum(np.searchsorted(hashes, found), len(hashes) - 1)] == found
    asked = ids.filter(pa.array(is_asked))
    return asked.set_column(0, "id", strings(asked["id"])).append_column("place", pa.repeat(place, asked.num_rows))


def _ids(partition: Partition, root: str, data: DataSettings, timestamp: str | None = None) -> pa.Table:
    """Id, time in microseconds and row of a partition's rows that have an id; a time that is missing is the first."""
    name = data.of_kind("id")
    assert name is not None, "else there is nothing to look for"
    try:
        table = read_partition(root, partition, data, [name, *([timestamp] if timestamp else [])])
    except DataError:  # the contract tells of it, and of what else does not fit
        table = pa.table({})
    held = {one: table[one] for one in table.column_names}
    ids, time = held.get(name), held.get(timestamp or "")
    if ids is None or not (pa.types.is_string(ids.type) or pa.types.is_int64(ids.type)):
        ids = pa.chunked_array([], pa.int64())
    if time is None or time.type != TIMES or len(time) != len(ids):
        time = pa.chunked_array([pa.nulls(len(ids), TIMES)])
    time = pc.fill_null(pc.cast(time, pa.int64()), _FIRST)
    rows = pa.table({"id": ids, "time": time, "row": np.arange(len(ids))})
    present = pc.is_valid(ids)
    if pa.types.is_string(ids.type):
        present = pc.and_kleene(present, pc.not_equal(ids, ""))
    return rows.filter(present)


def _hashed(ids: pa.ChunkedArray) -> Hashes:
    """The same for the same id in every process."""
    return pd.util.hash_array(ids.to_numpy(), categorize=False)
