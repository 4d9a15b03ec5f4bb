"""What was answered, as partitions: date=2024-03-01/10-<process>-<form>.parquet holds what a process wrote in an hour.

Until the hour is over it lies in pieces, every few seconds a file of its own, below _answered/, where no reader of
partitions looks. The process that wrote them makes the hour's partition of them; of one that was killed, any other does
so an hour later. Each partition is made of all pieces of one process and hour, and never of some: whoever makes it
again writes the same, and pieces are deleted only once it is there.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime, timedelta

import pyarrow as pa
import pyarrow.parquet as pq

from fraud_ray.data.listing import is_hidden
from fraud_ray.data.output import writing_whole
from fraud_ray.data.source import list_files, open_filesystem
from fraud_ray.storage import unusable

_PIECES = "_answered"
_ROWS_A_GROUP = 131_072


def hour_of(moment: datetime) -> str:
    """Such as 2024-03-01T10, in UTC."""
    return f"{moment.astimezone(UTC):%Y-%m-%dT%H}"


def put_piece(target: str, hour: str, process: str, number: int, table: pa.Table) -> None:
    """Keeps rows that a process answered. hour: the one that it is; number: of the piece. Raises ServerError."""
    form = hashlib.sha256(table.schema.to_string().encode()).hexdigest()[:8]
    with writing_whole(target, f"{_PIECES}/{hour}-{process}/{form}-{number:06}.parquet", table.schema) as writer:
        writer.write_table(table)


def close_hour(target: str, hour: str, process: str) -> None:
    """Makes the partitions of what a process answered in an hour that is over, or that it answers nothing more in.

    Raises ServerError.
    """
    folder = f"{_PIECES}/{hour}-{process}"
    there = list_files(target) or {}
    pieces = defaultdict(list)
    for name in _whole(name for name in there if name.startswith(f"{folder}/")):
        pieces[name.rpartition("/")[2].partition("-")[0]].append(name)
    filesystem, base = open_filesystem(target)
    try:
        for form, names in pieces.items():
            day, _, clock = hour.partition("T")
            partition = f"date={day}/{clock}-{process}-{form}.parquet"
            if partition in there:
                continue
            tables = (pq.read_table(f"{base}/{name}", filesystem=filesystem) for name in sorted(names))
            grouped = _grouped(tables)
            first = next(grouped)
            with writing_whole(target, partition, first.schema) as writer:
                for table in (first, *grouped):
                    writer.write_table(table)
        if pieces:
            filesystem.delete_dir(f"{base}/{folder}")
    except FileNotFoundError:  # another process was faster
        return
    except OSError as fault:
        raise unusable(f"{target} cannot be written", fault, target) from fault


def close_left(target: str, now: datetime) -> None:
    """Makes the partitions of those whose processes were killed, an hour after theirs. Raises ServerError."""
    latest = hour_of(now - timedelta(hours=1))
    folders = {name.split("/")[1] for name in list_files(target) or {} if name.startswith(f"{_PIECES}/")}
    for folder in sorted(folders):
        hour, _, process = folder.rpartition("-")
        if hour < latest:
            close_hour(target, hour, process)


def answered(target: str) -> list[str]:
    """The files of all that was answered, those of hours that are not over last; some rows may be there twice."""
    names = [name for name in list_files(target) or {} if name.endswith(".parquet")]
    pieces = _whole(name for name in names if name.startswith(f"{_PIECES}/"))
    return [*(name for name in names if not is_hidden(name)), *pieces]


def _whole(pieces: Iterable[str]) -> list[str]:
    """Those of the pieces that are not being written."""
    return [name for name in pieces if not is_hidden(name.rpartition("/")[2])]


def _grouped(tables: Iterator[pa.Table]) -> Iterator[pa.Table]:
    """The same rows in fewer tables."""
    held: list[pa.Table] = []
    for table in tables:
        held.append(table)
        if sum(one.num_rows for one in held) >= _ROWS_A_GROUP:
            yield pa.concat_tables(held)
            held = []
    if held:
        yield pa.concat_tables(held)
