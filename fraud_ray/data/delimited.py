"""CSV partitions, read by Arrow.

They have no footers: whenever a source is opened, each file is read once, in threads, to count its rows. And a file is
one unit of memory, however large. So what is read often, or holds gigabytes, is better written as parquet once.
"""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property

import pyarrow as pa
from pyarrow import csv as arrow_csv
from pyarrow import fs

from fraud_ray.data.kinds import Reading, from_text
from fraud_ray.progress import counted
from fraud_ray.settings import CsvSettings

_SHOWN = 80  # characters of a line in a message
_HEAD = 64 * 1024  # bytes, in which the line of names lies
_BLOCK = 1 << 20  # bytes that are parsed at a time, in which a row lies


class CsvFile:
    """A CSV file, also a compressed one, in the place of a `pq.ParquetFile`. Its first line holds the names.

    readings: of the columns that come as values of their kinds, where all their texts read so; others come as strings.
    A value in quotes may hold line ends; an empty one is null. Raises ArrowInvalid, here and in reading, for what is no
    such file.
    """

    metadata = None

    def __init__(self, filesystem: fs.FileSystem, path: str, how: CsvSettings, readings: Mapping[str, Reading]) -> None:
        self.filesystem, self.path, self.readings, self.decimal_point = filesystem, path, readings, how.decimal_point
        self.delimiter = "\t" if ".tsv" in path.rpartition("/")[2].lower() else how.delimiter
        with self._stream() as stream:
            head = stream.read(_HEAD)
        if b"\0" in head:
            raise pa.ArrowInvalid("it is no text in UTF-8, which CSV is read as; write it as that")
        lines = csv.reader(io.StringIO(head.decode("utf-8-sig", "replace"), newline=""), delimiter=self.delimiter)
        self.names = next((line for line in lines if line), [])
        self.is_empty = not any(lines)
        self._check_names()

    @cached_property
    def _whole(self) -> pa.Table:
        return self.read()

    @property
    def schema_arrow(self) -> pa.Schema:
        return self._whole.schema

    @property
    def schema_without_rows(self) -> pa.Schema:
        """What the schema is if all texts read as their kinds."""
        return self._as_values(pa.schema([(name, pa.string()) for name in self.names]).empty_table()).schema

    def iter_batches(self, batch_size: int, use_threads: bool = False) -> Iterator[pa.RecordBatch]:
        del use_threads  # as of ParquetFile
        yield from self._whole.combine_chunks().to_batches(batch_size)

    def read(self, columns: Sequence[str] | None = None, use_threads: bool = False) -> pa.Table:
        """Those of these columns that are there, or all."""
        del use_threads
        wanted = [name for name in self.names if columns is None or name in columns]
        read = wanted or self.names[:1]
        texts = pa.Table.from_batches(self.texts(read), pa.schema([(name, pa.string()) for name in read]))
        return self._as_values(texts.select(wanted))

    def _as_values(self, texts: pa.Table) -> pa.Table:
        for at, name in enumerate(texts.column_names):
            if name in self.readings:
                values = from_text(texts.column(at), self.readings[name], self.decimal_point)
                texts = texts.set_column(at, name, values)
        return texts

    def texts(self, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        """These columns as strings, a block at a time; raises ArrowInvalid after the last where lines are broken."""
        if self.is_empty:
            return
        broken = Counter[str]()

        def keep(row: arrow_csv.InvalidRow) -> str:
            told = f"line {row.number:,} has {row.actual_columns}: {row.text[:_SHOWN]!r}" if not broken else ""
            broken[next(iter(broken), told)] += 1
            return "skip"

        with (
            self._stream() as stream,
            arrow_csv.open_csv(
                stream,
                arrow_csv.ReadOptions(use_threads=False, block_size=_BLOCK),
                arrow_csv.ParseOptions(delimiter=self.delimiter, newlines_in_values=True, invalid_row_handler=keep),
                # Text is looked at by whoever makes values of it, so that a fault is told with its row.
                arrow_csv.ConvertOptions(
                    check_utf8=False,
                    column_types={name: pa.string() for name in columns},
                    include_columns=list(columns),
                    null_values=[""],
                    strings_can_be_null=True,
                ),
            ) as reader,
        ):
            try:
                yield from reader
            except pa.ArrowInvalid as fault:
                if "block boundaries" not in str(fault):
                    raise
                told = f"a row is longer than {_BLOCK:,} bytes, as after a quote that nothing closes"
                raise pa.ArrowInvalid(told) from None
        for first, count in broken.items():
            raise pa.ArrowInvalid(
                f"{counted(count, 'line')} without as many values as the first line has names, {len(self.names)}: "
                f"{first}; quote a value that holds {self.delimiter!r}"
            )

    def _stream(self) -> pa.NativeFile:
        return self.filesystem.open_input_stream(self.path, compression="detect")

    def _check_names(self) -> None:
        if not self.names:
            raise pa.ArrowInvalid("it is empty; its first line should hold the columns' names")
        first = f"its first line {self.delimiter.join(self.names)[:_SHOWN]!r}"
        other = next((one for one in ";\t|," if one in self.names[0]), None) if len(self.names) == 1 else None
        if other:
            raise pa.ArrowInvalid(f"{first} holds one column by {self.delimiter!r}; set data.csv.delimiter: {other!r}")
        numbers = pa.chunked_array([self.names])
        number = Reading("numeric")
        if not self.readings.keys() & set(self.names) and any(
            not pa.types.is_string(from_text(numbers.slice(at, 1), number, self.decimal_point).type)
            for at in range(len(self.names))
        ):
            raise pa.ArrowInvalid(f"{first} holds values; write the columns' names above it")
        twice = [name for name, count in Counter(self.names).items() if name and count > 1]
        if twice:
            raise pa.ArrowInvalid(f"column {twice[0]!r} is there more than once; write it with one")
