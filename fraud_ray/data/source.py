"""Partitions as they lie in a folder or a bucket: which there are, how to read one, and the fingerprint of them all."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, date, datetime
from functools import lru_cache
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pyarrow import fs

from fraud_ray.data.kinds import Reading, typed
from fraud_ray.data.listing import ENCRYPTED, MAGIC, Listing, entries_below, leading_keys, select_partitions
from fraud_ray.errors import DataError
from fraud_ray.settings import DataSettings
from fraud_ray.storage import unusable

FOOTER_THREADS = 16
INT96_UNIT = "us"  # nanoseconds, as Arrow reads INT96 by default, wrap in the year 2262
FOOTER_GUESS = 64 * 1024  # bytes: most footers are smaller, and one request fetches them
_NAME_A_FOLDER = "name the folder or URI of the parquet partitions (data.path in a configuration)"


@dataclass(frozen=True)
class Partition:
    """One parquet file: `path` is what the source's filesystem opens, `shown` the same relative to the source.

    stamp: tells of a change without reading the file; date: from a hive key `date=` in the path, where there is one.
    """

    path: str
    shown: str
    rows: int
    stamp: str
    date: date | None


@dataclass(frozen=True)
class Source:
    """The partitions below `root` (an absolute path or a URI), in the order of their names.

    fingerprint: SHA-256, in hexadecimal, over each partition's name, size, time of change and footer.
    as_of: the newest day: of the hive keys `date=`, else of the timestamps, by the footers' statistics or, where a file
    has none (Spark's default, INT96), by reading the column; else None.
    notes: what else lies there, in words.
    """

    root: str
    partitions: tuple[Partition, ...]
    fingerprint: str
    as_of: date | None
    notes: tuple[str, ...] = ()

    @property
    def origin(self) -> dict[str, str]:
        """Where a model's data came from, as its bundle says it."""
        return {"data": self.root, "fingerprint": self.fingerprint}

    @property
    def rows(self) -> int:
        return sum(partition.rows for partition in self.partitions)


def open_source(data: DataSettings, found: Mapping[str, fs.FileInfo] | None = None) -> Source:
    """The partitions of `data.path`, whose footers it reads.

    found: those to open of what `list_partitions` found; by default all. Raises as `list_partitions` does, and
    DataError for a file that is no parquet, or where all partitions of the path are empty.
    """
    root = absolute(data.path)
    listing = list_partitions(root) if found is None else Listing(dict(found), ())
    footers = read_footers(root, listing.files)
    partitions = []
    newest: list[date] = []
    unsaid: list[Partition] = []
    timestamp = data.of_kind("timestamp")
    digest = hashlib.sha256()
    for name, (info, footer) in footers.items():
        day = _as_date(hive_keys(root, name).get("date"))
        partitions.append(Partition(info.path, name, footer.metadata.num_rows, stamp_of(info), day))
        digest.update(fingerprint_line(table_name(root, name), info, footer))
        last = day or _newest_day(footer.metadata, timestamp)
        if last:
            newest.append(last)
        elif footer.metadata.num_rows:
            unsaid.append(partitions[-1])
    if found is None and not any(partition.rows for partition in partitions):
        raise DataError(f"{root}: none of its {len(partitions)} parquet files holds a row; write data there first")
    days = [p.date for p in partitions if p.date]
    if not days and timestamp:
        with ThreadPoolExecutor(FOOTER_THREADS) as pool:
            read = list(pool.map(lambda p: _read_newest_day(root, p, data, timestamp), unsaid))
        days = newest + [day for day in read if day]
    return Source(root, tuple(partitions), digest.hexdigest(), max(days, default=None), listing.notes)


def list_partitions(root: str) -> Listing:
    """The file of every partition at an absolute path or a URI, each real file once, and what else lies there.

    Raises DataError for a path that does not exist or that holds no parquet, for a link that leads nowhere, and for a
    table of Delta, Iceberg or Hudi; ServerError for a store out of reach.
    """
    entries = _list_entries(root)
    if entries is None:
        raise DataError(f"{root} does not exist; {_NAME_A_FOLDER}")
    listing = select_partitions(root, *open_filesystem(root), entries)
    if not listing.files:
        raise DataError("\n".join([f"{root} holds no parquet files; {_NAME_A_FOLDER}", *listing.notes]))
    return listing


def stamp_of(info: fs.FileInfo) -> str:
    """A file's size in bytes, and its time of change in nanoseconds since 1970."""
    return f"{info.size} {info.mtime_ns}"


@dataclass(frozen=True)
class Footer:
    """The end of a parquet file: its schema, and the row groups' sizes and statistics; and the hash of its bytes."""

    metadata: pq.FileMetaData
    sha256: str


def read_footers(root: str, found: Mapping[str, fs.FileInfo]) -> dict[str, tuple[fs.FileInfo, Footer]]:
    """File and footer of each partition that was found below a root. Raises DataError for a file that is no parquet."""
    filesystem, _ = open_filesystem(root)
    with ThreadPoolExecutor(FOOTER_THREADS) as pool:
        footers = list(pool.map(lambda info: read_footer(filesystem, info), found.values()))
    _refuse_broken(root, {name: footer for name, footer in zip(found, footers, strict=True) if isinstance(footer, str)})
    return {n: (found[n], footer) for n, footer in zip(found, footers, strict=True) if isinstance(footer, Footer)}


def fingerprint_line(name: str, info: fs.FileInfo, footer: Footer) -> bytes:
    """What tells one state of a partition from another: its name, size, time of change and footer."""
    return f"{name}\0{info.size}\0{info.mtime_ns}\0{footer.sha256}\n".encode()


def absolute(path: str) -> str:
    """A path as an absolute one (~ is the home folder); a URI as it is, without a slash at its end."""
    return path.rstrip("/") if "://" in path else str(Path(path).expanduser().absolute())


def list_files(root: str) -> dict[str, fs.FileInfo] | None:
    """Every file below a folder or URI by its relative name, in order; None where nothing is there.

    A file is listed as itself. Raises ServerError for a store out of reach.
    """
    entries = _list_entries(root)
    return entries and {name: info for name, info in entries.items() if info.type == fs.FileType.File}


def _list_entries(root: str) -> dict[str, fs.FileInfo] | None:
    filesystem, base = open_filesystem(root)
    try:
        info = filesystem.get_file_info(base)
        if info.type == fs.FileType.NotFound:
            return None
        if info.type == fs.FileType.File:
            return {info.base_name: info}
        found = entries_below(filesystem, base)
    except OSError as fault:
        raise unusable(f"{root} cannot be listed", fault) from fault
    return dict(sorted({Path(f.path).relative_to(base).as_posix(): f for f in found}.items()))


@lru_cache(maxsize=16)
def open_filesystem(root: str) -> tuple[fs.FileSystem, str]:
    """Arrow's filesystem for an absolute path or a URI, and the path that it opens.

    Raises DataError for what is no URI, ServerError for a store out of reach.
    """
    if "://" not in root:
        return fs.LocalFileSystem(), root
    try:
        return fs.FileSystem.from_uri(root)
    except (pa.ArrowInvalid, ValueError) as fault:
        raise DataError(f"{root} is no path and no URI that Arrow opens: {fault}; use s3://, gs:// or a path") from None
    except OSError as fault:
        raise unusable(f"{root} cannot be listed", fault) from fault


def read_partition(root: str, partition: Partition, data: DataSettings, columns: Sequence[str]) -> pa.Table:
    """Those of the declared columns that the file or its hive keys hold, in types that do not depend on the writer.

    The types are those of `typed`. Raises DataError where the file cannot be read.
    """
    filesystem, _ = open_filesystem(root)
    try:
        with filesystem.open_input_file(partition.path) as opened:
            metadata = pq.read_metadata(opened)
            schema = metadata.schema.to_arrow_schema()
            texts = [name for name in columns if name in schema.names and pa.types.is_string(schema.field(name).type)]
            file = pq.ParquetFile(
                opened,
                metadata=metadata,
                pre_buffer=not isinstance(filesystem, fs.LocalFileSystem),
                # Categories repeat: read as dictionaries they are neither copied nor compared row by row.
                read_dictionary=[name for name in texts if data.columns[name].kind == "categorical"],
                coerce_int96_timestamp_unit=INT96_UNIT,
            )
            # One thread: the partitions are read side by side, one a CPU.
            table = file.read(columns=[c for c in columns if c in schema.names], use_threads=False)
    except (pa.ArrowException, OSError) as fault:
        raise DataError(f"{partition.shown} cannot be read: {str(fault).splitlines()[0]}; write it again") from None
    if len(set(table.column_names)) < table.num_columns:
        twice = next(name for name in table.column_names if table.column_names.count(name) > 1)
        raise DataError(f"{partition.shown}: column '{twice}' is there more than once; write it again with one")
    return typed(table, hive_keys(root, partition.shown), {n: Reading.declared(data.columns[n]) for n in columns})


def hive_keys(root: str, name: str) -> dict[str, str]:
    """Keys and values of a partition by its name below a root, such as region=eu/date=2024-03-07/part-0.parquet."""
    folders = (folder.partition("=") for folder in table_name(root, name).split("/")[:-1])
    return {key: unquote(value) for key, equals, value in folders if equals}


def table_name(root: str, name: str) -> str:
    """A partition's name below the root of its hive table, of which `root` may be a folder or a file."""
    return "/".join([*leading_keys(*open_filesystem(root), name), name])


def read_footer(filesystem: fs.FileSystem, info: fs.FileInfo) -> Footer | str:
    """A file's footer, or what is wrong with the file."""
    try:
        with filesystem.open_input_file(info.path) as file:
            held = min(info.size, FOOTER_GUESS)
            tail = file.read_at(held, info.size - held)
            if tail[-4:] == ENCRYPTED:
                return "it is encrypted"
            if info.size < 12 or tail[-4:] != MAGIC:
                return "it does not end as a parquet file does"
            length = int.from_bytes(tail[-8:-4], "little") + 8
            if held < length <= info.size:
                tail = file.read_at(length, info.size - length)
        return Footer(pq.read_metadata(pa.BufferReader(tail)), hashlib.sha256(tail[-length:]).hexdigest())
    except (pa.ArrowException, OSError) as fault:
        return str(fault).splitlines()[0]


def _refuse_broken(root: str, broken: dict[str, str]) -> None:
    if broken:
        lines = [f"{root}/{name} is no readable parquet file: {fault}" for name, fault in list(broken.items())[:10]]
        if len(broken) > len(lines):
            lines.append(f"and {len(broken) - len(lines)} more")
        raise DataError("\n".join([*lines, "Write these files again, or remove them."]))


def _as_date(text: str | None) -> date | None:
    try:
        return date.fromisoformat(text) if text else None
    except ValueError:
        return None


def _newest_day(metadata: pq.FileMetaData, column: str | None) -> date | None:
    """The newest day of a column by the row groups' statistics; None where they do not say."""
    names = metadata.schema.names
    if column not in names:
        return None
    position = names.index(column)
    groups = (metadata.row_group(i).column(position).statistics for i in range(metadata.num_row_groups))
    with suppress(OverflowError, ValueError):  # a year that Python cannot hold, which the contract tells of
        days = [_day_of(s.max) for s in groups if s is not None and s.has_min_max]
        return max((day for day in days if day is not None), default=None)
    return None


def _read_newest_day(root: str, partition: Partition, data: DataSettings, timestamp: str) -> date | None:
    """The newest day of the timestamps in a file, or in its hive keys; None where it holds none."""
    table = read_partition(root, partition, data, [timestamp])
    if timestamp not in table.column_names or not pa.types.is_timestamp(table[timestamp].type):
        return None
    with suppress(OverflowError, ValueError):  # a year that Python cannot hold, which the contract tells of
        return _day_of(pc.max(table[timestamp]).as_py())
    return None


def _day_of(value: Any) -> date | None:
    if isinstance(value, datetime):
        return (value.astimezone(UTC) if value.tzinfo else value).date()
    return value if isinstance(value, date) else None
