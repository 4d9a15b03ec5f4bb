"""Partitions as they lie in a folder or a bucket: which there are, how to read one, and the fingerprint of them all."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from functools import lru_cache
from pathlib import Path
from types import MappingProxyType
from typing import Any
from urllib.parse import unquote

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pyarrow import fs

from fraud_ray.data.delimited import CsvFile
from fraud_ray.data.kinds import TIME_KINDS, Reading, from_text, harmonised, typed
from fraud_ray.data.listing import ENCRYPTED, MAGIC, Listing, entries_below, is_csv, leading_keys, select_partitions
from fraud_ray.errors import DataError
from fraud_ray.redaction import without_passwords
from fraud_ray.settings import CsvSettings, DataSettings
from fraud_ray.storage import unusable

FOOTER_THREADS = 16
UNREADABLE = (pa.ArrowException, OSError, UnicodeDecodeError)  # the last for a footer whose names are no text
INT96_UNIT = "us"  # nanoseconds, as Arrow reads INT96 by default, wrap in the year 2262
FOOTER_GUESS = 64 * 1024  # bytes: most footers are smaller, and one request fetches them
BUFFER = 2**20  # bytes of a column that are read at a time, as a file may be one row group
PREFETCHED = 256 * 2**20  # bytes up to which a file of a bucket is fetched whole, which takes fewer requests
PIECE = 4 * 2**20  # bytes that are hashed at a time
_NAME_A_FOLDER = "name the folder or URI of the parquet or CSV partitions (data.path in a configuration)"


@dataclass(frozen=True)
class Partition:
    """One parquet or CSV file: `path` is what the source's filesystem opens, `shown` the same relative to the source.

    rows: that count; stamp: tells of a change without reading the file; date: from a hive key `date=` in the path,
    where there is one; left_out: places of rows in the file that do not count; sha256, of_content: as Footer has them.
    """

    path: str
    shown: str
    rows: int
    stamp: str
    date: date | None
    left_out: npt.NDArray[np.int64] | None = field(default=None, compare=False)
    sha256: str = ""
    of_content: bool = False

    @classmethod
    def of(cls, root: str, name: str, info: fs.FileInfo, footer: Footer) -> Partition:
        """A file by its name below a root."""
        day = _as_date(hive_keys(root, name).get("date"))
        return cls(info.path, name, footer.rows, stamp_of(info), day, None, footer.sha256, footer.of_content)

    def kept(self, table: pa.Table) -> pa.Table:
        """Those of the file's rows that count."""
        if self.left_out is None:
            return table
        counts = np.ones(table.num_rows, bool)
        counts[self.left_out] = False
        return table.filter(pa.array(counts))


class ChangedError(DataError):
    """A partition that is not what it was when its source was opened, and so not what the fingerprint is of."""

    def __init__(self, shown: str) -> None:
        super().__init__(shown)

    def __str__(self) -> str:
        return (
            f"{self.args[0]} was changed or removed after this command had listed it; let nothing write to the data "
            "while it is read, and run the same command again"
        )


class UnreadableError(DataError):
    """A partition, or a column of it, that cannot be read; why: in words."""

    def __init__(self, shown: str, column: str | None, why: str) -> None:
        super().__init__(shown, column, why)
        self.shown, self.column, self.why = shown, column, why

    @property
    def told(self) -> str:
        """A sentence that begins after the partition, and the column where one is named."""
        return f"cannot be read: {self.why}; write {'the file' if self.column else 'it'} again"

    def __str__(self) -> str:
        return f"{self.shown}: column '{self.column}' {self.told}" if self.column else f"{self.shown} {self.told}"


@dataclass(frozen=True)
class Source:
    """The partitions below `root` (an absolute path or a URI), in the order of their names.

    fingerprint: SHA-256, in hexadecimal, over each partition's name, size, time of change and footer (of CSV: bytes),
    or, where data.fingerprint is `content`, its name and bytes.
    as_of: the newest day: of the hive keys `date=`, else of the timestamps, by the footers' statistics or, where a file
    has none (CSV, Spark's default INT96), by reading the column; else None.
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
        return {"data": without_passwords(self.root), "fingerprint": self.fingerprint}

    @property
    def rows(self) -> int:
        return sum(partition.rows for partition in self.partitions)


def open_source(data: DataSettings, found: Mapping[str, fs.FileInfo] | None = None) -> Source:
    """The partitions of `data.path`, whose footers it reads.

    found: those to open of what `list_partitions` found; by default all. Raises as `list_partitions` does, and
    DataError for a file that cannot be read, or where all partitions of the path are empty.
    """
    root = absolute(data.path)
    listing = list_partitions(root) if found is None else Listing(dict(found), ())
    by_content = data.fingerprint == "content"
    footers = read_footers(root, listing.files, data.csv, _declared(data, data.columns), by_content)
    partitions = []
    newest: list[date] = []
    unsaid: list[Partition] = []
    timestamp = data.of_kind("timestamp")
    digest = hashlib.sha256()
    for name, (info, footer) in footers.items():
        partitions.append(Partition.of(root, name, info, footer))
        digest.update(fingerprint_line(table_name(root, name), info, footer))
        last = partitions[-1].date or footer.newest
        if last:
            newest.append(last)
        elif footer.rows:
            unsaid.append(partitions[-1])
    if found is None and not any(partition.rows for partition in partitions):
        raise DataError(f"{root}: none of its {len(partitions)} files holds a row; write data there first")
    days = [p.date for p in partitions if p.date]
    if not days and timestamp:
        with ThreadPoolExecutor(FOOTER_THREADS) as pool:
            read = list(pool.map(lambda p: _read_newest_day(root, p, data, timestamp), unsaid))
        days = newest + [day for day in read if day]
    return Source(root, tuple(partitions), digest.hexdigest(), max(days, default=None), listing.notes)


def list_partitions(root: str) -> Listing:
    """The file of every partition at an absolute path or a URI, each real file once, and what else lies there.

    Raises DataError for a path that does not exist or that holds neither parquet nor CSV, for a link that leads
    nowhere, and for a table of Delta, Iceberg or Hudi; ServerError for a store out of reach.
    """
    entries = _list_entries(root)
    if entries is None:
        raise DataError(f"{root} does not exist; {_NAME_A_FOLDER}")
    listing = select_partitions(root, *open_filesystem(root), entries)
    if not listing.files:
        raise DataError("\n".join([f"{root} holds no parquet and no CSV files; {_NAME_A_FOLDER}", *listing.notes]))
    return listing


def stamp_of(info: fs.FileInfo) -> str:
    """A file's size in bytes, and its time of change in nanoseconds since 1970."""
    return f"{info.size} {info.mtime_ns}"


@dataclass(frozen=True)
class Footer:
    """What the end of a parquet file says, or all of a CSV file: rows, schema with metadata, SHA-256 in hexadecimal.

    newest: the newest day of the timestamps, where it says so; of_content: whether the hash, which is of the footer
    (of CSV: of all bytes), is of all bytes because that was asked for.
    """

    rows: int
    schema: pa.Schema
    sha256: str
    newest: date | None
    of_content: bool = False


def read_footers(
    root: str,
    found: Mapping[str, fs.FileInfo],
    csv: CsvSettings = CsvSettings(),  # noqa: B008 - frozen
    readings: Mapping[str, Reading] = MappingProxyType({}),
    by_content: bool = False,
) -> dict[str, tuple[fs.FileInfo, Footer]]:
    """File and footer of each partition that was found below a root. Raises DataError for a file that is none.

    readings: of the columns that are declared; by_content: whether all bytes are hashed.
    """
    filesystem, _ = open_filesystem(root)
    with ThreadPoolExecutor(FOOTER_THREADS) as pool:
        footers = list(pool.map(lambda info: read_footer(filesystem, info, csv, readings, by_content), found.values()))
    _refuse_broken(root, {name: footer for name, footer in zip(found, footers, strict=True) if isinstance(footer, str)})
    return {n: (found[n], footer) for n, footer in zip(found, footers, strict=True) if isinstance(footer, Footer)}


def fingerprint_line(name: str, info: fs.FileInfo, footer: Footer) -> bytes:
    """What tells one state of a partition from another: its name, size, time of change and footer, or all bytes."""
    if footer.of_content:
        return f"{name}\0{footer.sha256}\n".encode()
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

    Of the rows those that count. The types are those of `typed`. Raises UnreadableError where the file cannot be read.
    """
    readings = _declared(data, columns)
    filesystem, _ = open_filesystem(root)
    with (
        readable(filesystem, partition, data.csv),
        open_file(filesystem, partition.path, data.csv, readings, True, partition) as file,
    ):
        # One thread: the partitions are read side by side, one a CPU.
        table = file.read(columns=list(columns), use_threads=False)
        long = long_times(filesystem, partition.path, file, readings)
    for name in long.column_names:
        table = table.set_column(table.column_names.index(name), name, long[name])
    if len(set(table.column_names)) < table.num_columns:
        twice = next(name for name in table.column_names if table.column_names.count(name) > 1)
        raise DataError(f"{partition.shown}: column '{twice}' is there more than once; write it again with one")
    return partition.kept(typed(table, hive_keys(root, partition.shown), readings))


def long_times(
    filesystem: fs.FileSystem, path: str, file: pq.ParquetFile | CsvFile, readings: Mapping[str, Reading]
) -> pa.Table:
    """Columns of times, as INT96, of which a file holds some beyond what microseconds do, in milliseconds.

    Arrow reads such times as others, which wrap around into years that look right. readings: of the columns.
    """
    schema = () if file.metadata is None else file.metadata.schema
    int96 = [column.path for column in schema if column.physical_type == "INT96"]
    asked = [name for name, reading in readings.items() if reading.kind in TIME_KINDS and name in int96]
    if not asked:
        return pa.table({})
    read = file.read(columns=asked, use_threads=False)
    with filesystem.open_input_file(path) as opened:
        in_ms = pq.ParquetFile(opened, metadata=file.metadata, coerce_int96_timestamp_unit="ms").read(columns=asked)
    same = {name: pc.cast(read[name], in_ms[name].type, safe=False) for name in asked}
    apart = {name: pc.subtract(pc.cast(same[name], pa.int64()), pc.cast(in_ms[name], pa.int64())) for name in asked}
    return in_ms.select([name for name in asked if pc.any(pc.greater(pc.abs(apart[name]), 1)).as_py()])


@contextmanager
def readable(filesystem: fs.FileSystem, partition: Partition, csv: CsvSettings) -> Iterator[None]:
    """What is opened or read of a partition within is what its fingerprint is of, and whole.

    Raises ChangedError where it is not, and UnreadableError, by the first broken column, for a fault in reading.
    """
    try:
        yield
        _refuse_changed(filesystem, partition, csv)
    except UNREADABLE as fault:
        with suppress(OSError):
            _refuse_changed(filesystem, partition, csv)
        column = None if is_csv(partition.path) else _broken_column(filesystem, partition.path)
        raise UnreadableError(partition.shown, column, str(fault).splitlines()[0]) from None


def _refuse_changed(filesystem: fs.FileSystem, partition: Partition, csv: CsvSettings) -> None:
    """What `open_file` does not see: a file that is not there any more, or was written while it was read."""
    if not partition.of_content:
        changed = stamp_of(filesystem.get_file_info(partition.path)) != partition.stamp
    else:  # of parquet the bytes that were hashed are those that were read
        changed = is_csv(partition.path) and _hash_csv(filesystem, partition.path, csv) != partition.sha256
    if changed:
        raise ChangedError(partition.shown)


def _broken_column(filesystem: fs.FileSystem, path: str) -> str | None:
    with suppress(*UNREADABLE), open_file(filesystem, path, CsvSettings(), {}) as file:
        for name in file.schema_arrow.names:
            try:
                file.read(columns=[name], use_threads=False)
            except UNREADABLE:
                return name
    return None


@contextmanager
def open_file(
    filesystem: fs.FileSystem,
    path: str,
    csv: CsvSettings,
    readings: Mapping[str, Reading],
    with_dictionaries: bool = False,
    known: Partition | None = None,
) -> Iterator[pq.ParquetFile | CsvFile]:
    """A partition's file. Raises what UNREADABLE names, here and in reading, where it is none.

    known: what the file has to be, to the bytes that its hash is of; raises ChangedError where parquet is not.

    readings: of the columns that come as values of their kinds from a CSV file, whose others are text;
    with_dictionaries: whether categories come so that they are neither copied nor compared row by row.
    """
    if is_csv(path):
        yield CsvFile(filesystem, path, csv, readings)
        return
    with filesystem.open_input_file(path) as opened:
        content = opened.read_buffer() if known and known.of_content else None
        file = opened if content is None else pa.BufferReader(content)
        footer = _footer_bytes(file)
        if known and known.sha256 != hashlib.sha256(footer if content is None else content).hexdigest():
            raise ChangedError(known.shown)
        metadata = pq.read_metadata(pa.BufferReader(footer))
        texts = [field.name for field in metadata.schema.to_arrow_schema() if pa.types.is_string(field.type)]
        categories = [name for name, reading in readings.items() if reading.kind == "categorical"]
        yield pq.ParquetFile(
            file,
            metadata=metadata,
            pre_buffer=not isinstance(filesystem, fs.LocalFileSystem) and file.size() <= PREFETCHED,
            read_dictionary=[name for name in categories if name in texts] if with_dictionaries else None,
            coerce_int96_timestamp_unit=INT96_UNIT,
            page_checksum_verification=True,
            buffer_size=BUFFER,
        )


def hive_keys(root: str, name: str) -> dict[str, str]:
    """Keys and values of a partition by its name below a root, such as region=eu/date=2024-03-07/part-0.parquet."""
    folders = (folder.partition("=") for folder in table_name(root, name).split("/")[:-1])
    return {key: unquote(value) for key, equals, value in folders if equals}


def table_name(root: str, name: str) -> str:
    """A partition's name below the root of its hive table, of which `root` may be a folder or a file."""
    return "/".join([*leading_keys(*open_filesystem(root), name), name])


def read_footer(
    filesystem: fs.FileSystem,
    info: fs.FileInfo,
    csv: CsvSettings = CsvSettings(),  # noqa: B008 - frozen
    readings: Mapping[str, Reading] = MappingProxyType({}),
    by_content: bool = False,
) -> Footer | str:
    """A file's footer, or what is wrong with the file. readings: of the columns; by_content: hashes all its bytes."""
    timestamp = next((name for name, reading in readings.items() if reading.kind == "timestamp"), None)
    try:
        if is_csv(info.path):
            return _read_through(filesystem, info, csv, readings, timestamp, by_content)
        with filesystem.open_input_file(info.path) as file:
            footer = _footer_bytes(file)
            sha256 = (_hash_all(file) if by_content else hashlib.sha256(footer)).hexdigest()
        metadata = pq.read_metadata(pa.BufferReader(footer))
        schema = metadata.schema.to_arrow_schema().with_metadata(metadata.metadata)
        newest = _newest_by_statistics(metadata, timestamp)
        return Footer(metadata.num_rows, schema, sha256, newest, by_content)
    except UNREADABLE as fault:
        return str(fault).splitlines()[0]


def _footer_bytes(file: pa.NativeFile) -> bytes:
    """The end of a parquet file: footer, its length, and magic bytes. Raises ArrowInvalid for a file without one."""
    size = file.size()
    held = min(size, FOOTER_GUESS)
    tail = file.read_at(held, size - held)
    if tail[-4:] == ENCRYPTED:
        raise pa.ArrowInvalid("it is encrypted")
    if size < 12 or tail[-4:] != MAGIC:
        raise pa.ArrowInvalid("it does not end as a parquet file does")
    length = int.from_bytes(tail[-8:-4], "little") + 8
    return file.read_at(length, size - length) if held < length <= size else tail[-length:]


def _hash_all(file: pa.NativeFile) -> Any:
    digest = hashlib.sha256()
    file.seek(0)
    while piece := file.read(PIECE):
        digest.update(piece)
    return digest


def _hash_csv(filesystem: fs.FileSystem, path: str, csv: CsvSettings) -> str:
    """SHA-256, in hexadecimal, over a file's bytes and how they are read."""
    with filesystem.open_input_file(path) as opened:
        digest = _hash_all(opened)
    digest.update(csv.model_dump_json().encode())
    return digest.hexdigest()


def _read_through(
    filesystem: fs.FileSystem,
    info: fs.FileInfo,
    csv: CsvSettings,
    readings: Mapping[str, Reading],
    time: str | None,
    by_content: bool,
) -> Footer:
    """What a footer would say of a CSV file: one column is read for the number of rows, and the bytes for the hash."""
    file = CsvFile(filesystem, info.path, csv, readings)
    column = time if time in file.names else file.names[0]
    rows, newest = 0, None
    for batch in file.texts([column]):
        rows += batch.num_rows
        if column == time:
            times = from_text(pa.chunked_array([batch.column(0)]), readings[time])
            days = newest, _newest_of(harmonised(times, readings[time]))
            newest = max((day for day in days if day), default=None)
    return Footer(rows, file.schema_without_rows, _hash_csv(filesystem, info.path, csv), newest, by_content)


def _declared(data: DataSettings, columns: Iterable[str]) -> dict[str, Reading]:
    return {name: Reading.declared(data.columns[name]) for name in columns}


def _refuse_broken(root: str, broken: dict[str, str]) -> None:
    if broken:
        lines = [
            f"{root}/{name} is no readable {'CSV' if is_csv(name) else 'parquet'} file: {fault}"
            for name, fault in list(broken.items())[:10]
        ]
        if len(broken) > len(lines):
            lines.append(f"and {len(broken) - len(lines)} more")
        raise DataError("\n".join([*lines, "Write these files again, or remove them."]))


def _as_date(text: str | None) -> date | None:
    try:
        return date.fromisoformat(text) if text else None
    except ValueError:
        return None


def _newest_by_statistics(metadata: pq.FileMetaData, column: str | None) -> date | None:
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
    return _newest_of(table[timestamp]) if timestamp in table.column_names else None


def _newest_of(column: pa.ChunkedArray) -> date | None:
    if pa.types.is_timestamp(column.type):
        with suppress(OverflowError, ValueError):  # a year that Python cannot hold, which the contract tells of
            return _day_of(pc.max(column).as_py())
    return None


def _day_of(value: Any) -> date | None:
    if isinstance(value, datetime):
        return (value.astimezone(UTC) if value.tzinfo else value).date()
    return value if isinstance(value, date) else None
