"""An extract as it was handed over: its files, and their columns as they lie, without a declaration."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import fs

from fraud_ray.data.delimited import CsvFile
from fraud_ray.data.kinds import HIVE_NULL
from fraud_ray.data.listing import is_csv
from fraud_ray.data.source import (
    UNREADABLE,
    absolute,
    hive_keys,
    list_partitions,
    open_file,
    open_filesystem,
    read_footers,
)
from fraud_ray.errors import DataError
from fraud_ray.intake.texts import sniffed, values_of
from fraud_ray.settings import CsvSettings

BATCH_ROWS = 65_536
HEADS, HEAD_ROWS = 20, 500
HEAD_BYTES = 64 * 1024
THREADS = os.cpu_count() or 1


@dataclass(frozen=True)
class Extract:
    """The files at `root`, an absolute path or a URI, by relative name, and what else lies there, in words.

    columns: of all files and hive keys, in the order in which they are met; csv: how the files are written, None where
    they are parquet.
    """

    root: str
    files: Mapping[str, fs.FileInfo]
    rows: Mapping[str, int]
    columns: tuple[str, ...]
    notes: tuple[str, ...]
    csv: CsvSettings | None

    @property
    def groups(self) -> list[list[str]]:
        """The files in their order, small neighbours together: each file costs as much as a thousand rows."""
        groups, rows = list[list[str]](), BATCH_ROWS
        for name in (name for name in self.files if self.rows[name]):
            if rows + self.rows[name] > BATCH_ROWS:
                groups.append([])
                rows = 0
            groups[-1].append(name)
            rows += self.rows[name]
        return groups

    def tables(self, names: Sequence[str], columns: Sequence[str] | None = None) -> Iterator[tuple[str, pa.Table]]:
        """The rows of some files in their order, with the first file of each table; columns: by default all.

        Small files of the same columns and types come as one table. Raises DataError where one cannot be read.
        """
        held: list[pa.Table] = []
        first = names[0]
        for name in names:
            for table in self._batches(name, self.columns if columns is None else columns, BATCH_ROWS):
                if held and (table.schema != held[0].schema or sum(map(len, held)) + len(table) > BATCH_ROWS):
                    yield first, self._values(held)
                    held = []
                first = name if not held else first
                held.append(table)
        if held:
            yield first, self._values(held)

    def _values(self, tables: Sequence[pa.Table]) -> pa.Table:
        table = pa.concat_tables(tables)
        return values_of(table, self.csv.decimal_point) if self.csv else table

    def _batches(self, name: str, columns: Sequence[str], rows: int) -> Iterator[pa.Table]:
        """The rows of a file, its hive keys as columns; of CSV as text, and in batches of their own size."""
        filesystem, _ = open_filesystem(self.root)
        keys = hive_keys(self.root, name)
        try:
            with open_file(filesystem, self.files[name].path, self.csv or CsvSettings(), {}) as file:
                in_file = file.names if isinstance(file, CsvFile) else file.schema_arrow.names
                twice = [column for column, count in Counter(in_file).items() if count > 1]
                if twice:
                    raise DataError(
                        f"{self.root}/{name}: column '{twice[0]}' is there more than once; write it with one"
                    )
                added = {key: _read(text) for key, text in keys.items() if key in columns and key not in in_file}
                held = [column for column in columns if column in in_file]
                for batch in (
                    file.texts(held or in_file[:1])
                    if isinstance(file, CsvFile)
                    else file.iter_batches(rows, columns=held, use_threads=False)
                ):
                    table = pa.table(batch).select(held)
                    for key, value in added.items():
                        table = table.append_column(key, pa.repeat(value, batch.num_rows))
                    yield table
        except UNREADABLE as fault:
            raise DataError(
                f"{self.root}/{name} cannot be read: {str(fault).splitlines()[0]}; write it again"
            ) from None

    def heads(self) -> Iterator[tuple[str, pa.Table]]:
        """The first rows of files that lie evenly apart, each with the file's name."""
        names = [name for name in self.files if self.rows[name]]
        for name in names[:: -(-len(names) // HEADS)]:
            yield name, self._values([next(self._batches(name, self.columns, HEAD_ROWS)).slice(0, HEAD_ROWS)])


def open_extract(path: str) -> Extract:
    """What lies at a path or a URI; raises DataError for what cannot be read or holds no row."""
    root = absolute(path)
    listing = list_partitions(root)
    csv = _sniffed(root, next(iter(listing.files.items())))
    footers = read_footers(root, listing.files, csv or CsvSettings(), {})
    rows = {name: footer.rows for name, (_, footer) in footers.items()}
    if not any(rows.values()):
        raise DataError(f"{root}: none of its {len(rows)} files holds a row; write data there first")
    columns: dict[str, None] = {}
    for name, (_, footer) in footers.items():
        columns |= dict.fromkeys([*footer.schema.names, *hive_keys(root, name)])
    return Extract(root, listing.files, rows, tuple(columns), listing.notes, csv)


def _sniffed(root: str, file: tuple[str, fs.FileInfo]) -> CsvSettings | None:
    """How a file of CSV is written; None for parquet."""
    name, info = file
    if not is_csv(name):
        return None
    try:
        with open_filesystem(root)[0].open_input_stream(info.path, compression="detect") as stream:
            return sniffed(stream.read(HEAD_BYTES))
    except UNREADABLE as fault:
        raise DataError(f"{root}/{name} cannot be read: {str(fault).splitlines()[0]}; write it again") from None


def _read(text: str) -> pa.Scalar:
    """A hive key's value as a day, a number or a boolean where it reads as one."""
    if text == HIVE_NULL:
        return pa.scalar(None)
    for kind in (pa.date32(), pa.int64(), pa.float64(), pa.bool_()):
        with suppress(pa.ArrowInvalid):
            return pc.cast(pa.scalar(text), kind)
    return pa.scalar(text)
