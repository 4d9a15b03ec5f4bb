"""Partitions as they are written for others: whole or not at all, and as their input was written."""

from __future__ import annotations

import os
import posixpath
import re
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs

from fraud_ray.cluster import local_path
from fraud_ray.data.delimited import CsvFile
from fraud_ray.data.listing import is_hidden
from fraud_ray.data.source import absolute, list_files, open_filesystem
from fraud_ray.errors import SettingsError
from fraud_ray.storage import Storage, unusable

KEPT = ("runs", "prepared", "windows", "audit", "drift", "checks", "mlartifacts", "mlflow.db")  # below storage.root

_SAME_STORE = {"gcs": "gs", "abfss": "abfs"}  # two schemes of one store
_UNFINISHED = re.compile(r"(^|.*/)\.[^/]+\.[0-9a-f]{32}\.partial")


def refuse_to_write_into(what: str, source: str, *targets: str, written: str = "the output") -> None:
    """Raises SettingsError for an output that is, holds or lies in what is read, by any link, `..` or spelling.

    what, written: name the source and the outputs in the message. Links below either place count as well, as writing
    goes through them.
    """
    read = _reached(source)
    for target in targets:
        reached = _reached(target)
        for ours, theirs in ((ours, theirs) for ours in reached for theirs in read):
            if _holds(theirs, ours) or _holds(ours, theirs):
                relation = "lies in" if _holds(theirs, ours) else "holds"
                followed = "" if (ours, theirs) == (reached[0], read[0]) else f" ({ours[1]} and {theirs[1]} overlap)"
                raise SettingsError(
                    f"{written} {target} {relation} the {what} {source}{followed}; nothing was read or written; name a "
                    f"folder outside of it, and with no link to it"
                )


def refuse_to_keep_in(what: str, source: str, root: str, registry: str | None = None) -> None:
    """As `refuse_to_write_into`, for all that is kept below a storage root, and for an sqlite that `registry` names.

    What is read may lie below the root, beside what is kept there.
    """
    refuse_to_write_into(what, source, *map(Storage.at(root).path, KEPT), written="storage.root's")
    if registry and (file := local_path(registry)):
        refuse_to_write_into(what, source, str(file), written="registry.uri's")


def _reached(place: str) -> list[tuple[str, str]]:
    """Store and normal path of a place and, on disk, of where the links below it lead."""
    uri = urlsplit(place) if "://" in place else None
    if uri and uri.scheme != "file":  # told by its URI: a bucket may be out of reach, and nothing is to be read yet
        endpoint = parse_qs(uri.query).get("endpoint_override", [""])[0]
        bucket = uri.netloc.rpartition("@")[2]
        store = f"{_SAME_STORE.get(uri.scheme, uri.scheme)} {endpoint}"
        return [(store, posixpath.normpath(f"/{bucket}/{unquote(uri.path)}"))]
    found = [os.path.realpath(unquote(uri.path) if uri else absolute(place))]
    for folder in found:  # grows while it is read
        for inside, folders, files in os.walk(folder):
            links = [link for name in (*folders, *files) if (link := Path(inside, name)).is_symlink()]
            found += [real for real in dict.fromkeys(map(os.path.realpath, links)) if real not in found]
    return [("disk", real) for real in found]


def _holds(outer: tuple[str, str], inner: tuple[str, str]) -> bool:
    return outer[0] == inner[0] and f"{inner[1]}/".startswith(f"{outer[1].rstrip('/')}/")


def list_written(target: str) -> dict[str, fs.FileInfo]:
    """The files below a folder or URI by relative name, in order.

    The beginnings of partitions that a killed process left are deleted. Raises ServerError.
    """
    written = list_files(target) or {}
    filesystem, _ = open_filesystem(target)
    for name in [name for name in written if _UNFINISHED.fullmatch(name)]:
        filesystem.delete_file(written.pop(name).path)
    return written


def count_foreign(written: Mapping[str, fs.FileInfo], known: Iterable[str]) -> int:
    """How many files that a reader would see lie at an output beside those that are known."""
    return sum(not is_hidden(name) for name in written.keys() - set(known))


@contextmanager
def writing(
    target: str, name: str, like: pq.ParquetFile | CsvFile, added: Sequence[pa.Field]
) -> Iterator[pq.ParquetWriter]:
    """Writes a partition, as parquet, with the columns of another one, of parquet also its encodings, and more columns.

    As `writing_whole`.
    """
    schema = pa.schema([*like.schema_arrow, *added], like.schema_arrow.metadata)
    with writing_whole(target, name, schema, **_encodings(like.metadata, added)) as writer:
        yield writer


@contextmanager
def writing_whole(target: str, name: str, schema: pa.Schema, **encodings: Any) -> Iterator[pq.ParquetWriter]:
    """Writes a parquet file that lies under a hidden name until it is whole. Raises ServerError where it cannot be."""
    filesystem, base = open_filesystem(target)
    folder, _, file = f"{base}/{name}".rpartition("/")
    hidden = f"{folder}/.{file}.{uuid.uuid4().hex}.partial"
    try:
        if isinstance(filesystem, fs.LocalFileSystem):
            filesystem.create_dir(folder)
        try:
            with (
                filesystem.open_output_stream(hidden) as stream,
                pq.ParquetWriter(stream, schema, **encodings) as writer,
            ):
                yield writer
            filesystem.move(hidden, f"{folder}/{file}")
        except BaseException:
            if filesystem.get_file_info(hidden).type == fs.FileType.File:
                filesystem.delete_file(hidden)
            raise
    except OSError as fault:
        raise unusable(f"{target}/{name} cannot be written", fault, target) from fault


def _encodings(metadata: pq.FileMetaData | None, added: Sequence[pa.Field]) -> dict[str, Any]:
    """A writer's options for a file like another one: its codec, or zstd for one that Arrow only reads, as Hadoop's
    LZ4, and which columns have a dictionary."""
    if metadata is None or not metadata.num_row_groups:
        return {}
    group = metadata.row_group(0)
    columns = [group.column(position) for position in range(group.num_columns)]
    codec = columns[0].compression
    dictionaries = [column.path_in_schema for column in columns if column.has_dictionary_page]
    dictionaries += [field.name for field in added if pa.types.is_string(field.type)]
    return {"compression": _written_as(codec), "use_dictionary": dictionaries}


def _written_as(codec: str) -> str:
    if codec == "UNCOMPRESSED":
        return "NONE"
    with suppress(ValueError):  # of names that Arrow's codecs do not bear
        return codec if pa.Codec.is_available(codec.lower()) else "ZSTD"
    return "ZSTD"
