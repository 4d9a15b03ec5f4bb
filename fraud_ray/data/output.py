"""Partitions as they are written for others: whole or not at all, and as their input was written."""

from __future__ import annotations

import re
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs

from fraud_ray.data.source import list_files, open_filesystem
from fraud_ray.storage import unusable

_UNFINISHED = re.compile(r"(^|.*/)\.[^/]+\.[0-9a-f]{32}\.partial")


def list_written(target: str) -> dict[str, fs.FileInfo]:
    """The files below a folder or URI by relative name, in order.

    The beginnings of partitions that a killed process left are deleted. Raises ServerError.
    """
    written = list_files(target) or {}
    filesystem, _ = open_filesystem(target)
    for name in [name for name in written if _UNFINISHED.fullmatch(name)]:
        filesystem.delete_file(written.pop(name).path)
    return written


@contextmanager
def writing(target: str, name: str, like: pq.ParquetFile, added: Sequence[pa.Field]) -> Iterator[pq.ParquetWriter]:
    """Writes a partition with the columns and encodings of another one, and more columns.

    It lies under a hidden name until it is whole. Raises ServerError where it cannot be written.
    """
    filesystem, base = open_filesystem(target)
    folder, _, file = f"{base}/{name}".rpartition("/")
    hidden = f"{folder}/.{file}.{uuid.uuid4().hex}.partial"
    schema = pa.schema([*like.schema_arrow, *added], like.schema_arrow.metadata)
    try:
        if isinstance(filesystem, fs.LocalFileSystem):
            filesystem.create_dir(folder)
        try:
            with (
                filesystem.open_output_stream(hidden) as stream,
                pq.ParquetWriter(stream, schema, **_encodings(like.metadata, added)) as writer,
            ):
                yield writer
            filesystem.move(hidden, f"{folder}/{file}")
        except BaseException:
            if filesystem.get_file_info(hidden).type == fs.FileType.File:
                filesystem.delete_file(hidden)
            raise
    except OSError as fault:
        raise unusable(f"{target}/{name} cannot be written", fault) from fault


def _encodings(metadata: pq.FileMetaData, added: Sequence[pa.Field]) -> dict[str, Any]:
    """A writer's options for a file like another one: its codec, and which columns have a dictionary."""
    if not metadata.num_row_groups:
        return {}
    group = metadata.row_group(0)
    columns = [group.column(position) for position in range(group.num_columns)]
    codec = columns[0].compression
    dictionaries = [column.path_in_schema for column in columns if column.has_dictionary_page]
    dictionaries += [field.name for field in added if pa.types.is_string(field.type)]
    return {"compression": "NONE" if codec == "UNCOMPRESSED" else codec, "use_dictionary": dictionaries}
