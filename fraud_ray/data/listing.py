"""Which files below a folder or a bucket are partitions: each real file once, and what else lies there, in words."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from pyarrow import fs

from fraud_ray.errors import DataError
from fraud_ray.progress import counted

THREADS = 16
SUFFIXES = (".parquet", ".parq", ".pq")  # what a file claims to be parquet by, in any case of letters
CSV = re.compile(r"\.[ct]sv(\.gz|\.bz2|\.zst)?$", re.IGNORECASE)
MAGIC, ENCRYPTED = b"PAR1", b"PARE"  # what a parquet file begins and ends with

_UNFINISHED = "._COPYING_"  # what Hadoop's copying leaves behind the names of its files until they are whole
_SHOWN = 3

# By the entry that tells of a table whose parquet files are not its rows: what it is, and how Spark reads its rows.
_FORMATS = {
    "_delta_log": ("a Delta table", "spark.read.format('delta').load('{}')"),
    ".hoodie": ("a Hudi table", "spark.read.format('hudi').load('{}')"),
    ".hoodie_partition_metadata": ("a Hudi table", "spark.read.format('hudi').load('{}')"),
    "_spark_metadata": ("the output of a Spark stream", "spark.read.parquet('{}')"),
    "metadata": ("an Iceberg table", "spark.read.format('iceberg').load('{}')"),
}


@dataclass(frozen=True)
class Listing:
    """Partitions by relative name, in order; notes: what is left out, or is not what its name says, a kind each."""

    files: dict[str, fs.FileInfo]
    notes: tuple[str, ...]


def entries_below(filesystem: fs.FileSystem, base: str) -> list[fs.FileInfo]:
    """All but the folders below a folder; a link that leads nowhere comes as not found.

    Links are followed, but not back into a folder that they lie in. Raises OSError, and DataError for a name that is no
    text.
    """
    if not isinstance(filesystem, fs.LocalFileSystem):
        found = filesystem.get_file_info(fs.FileSelector(base, recursive=True))
    else:
        paths = list(_walked(base, frozenset()))
        for path in paths:
            if any("\ud800" <= letter <= "\udfff" for letter in path):
                raise DataError(f"{os.fsencode(path)!r} has a name that is no UTF-8; rename or remove it")
        found = filesystem.get_file_info(paths)
    return [info for info in found if info.type != fs.FileType.Directory]


def select_partitions(root: str, filesystem: fs.FileSystem, base: str, entries: Mapping[str, fs.FileInfo]) -> Listing:
    """Those of the entries at `base`, by relative name, that are partitions: each file that is parquet, once.

    A file is CSV by its name, and counts where there is no parquet; else parquet by its content, whatever its name; one
    that is not, but is named so, counts as one, so that it is refused when it is read. Names that begin with '_' or '.'
    are left out, but for folders such as _key=value. Raises DataError for a link that leads nowhere, for a table of a
    format whose files are not its rows, and for two CSV files of which scoring would make one.
    """
    _refuse_formats(root, filesystem, base, entries)
    is_one_file = any(info.path == base for info in entries.values())
    hidden = [] if is_one_file else [name for name in entries if is_hidden(name)]
    shown = {name: info for name, info in entries.items() if name not in set(hidden)}
    for name, info in shown.items():
        if info.type == fs.FileType.NotFound:
            raise DataError(f"{root}/{name} is a link to what is not there; mend it, or remove it")
    shown = {name: info for name, info in shown.items() if info.type == fs.FileType.File}
    again = _named_again(base, shown) if isinstance(filesystem, fs.LocalFileSystem) else {}
    once = {name: info for name, info in shown.items() if name not in again}
    csv = [name for name in once if is_csv(name)]
    unclear = [name for name in once if not name.lower().endswith(SUFFIXES) and name not in set(csv)]
    with ThreadPoolExecutor(THREADS) as pool:
        looks = list(pool.map(lambda name: _looks_like_parquet(filesystem, once[name]), unclear))
    parquet = [name for name, is_parquet in zip(unclear, looks, strict=True) if is_parquet]
    other = {name for name, is_parquet in zip(unclear, looks, strict=True) if not is_parquet}
    if len(once) > len(csv) + len(other):
        format, left = "parquet", csv
    else:
        format, left = ("CSV" if csv else "parquet"), []
        _refuse_same_names(root, csv)
    notes = (
        _note("left out: {} whose name begins with _ or .", "left out: {} whose names begin with _ or .", hidden),
        _note(f"left out: {{}} that is no {format}", f"left out: {{}} that are no {format}", sorted({*other, *left})),
        _note(
            "left out: {} that is there under another name",
            "left out: {} that are there under other names",
            [f"{name} is {first}" for name, first in sorted(again.items())],
        ),
        _note("{} is parquet by its content, not by its name", "{} are parquet by content, not by name", parquet),
    )
    files = {name: info for name, info in once.items() if name not in other and name not in set(left)}
    return Listing(files, tuple(note for note in notes if note))


def is_csv(name: str) -> bool:
    """Whether a file is CSV, by its name: .csv or .tsv, also compressed."""
    return CSV.search(name) is not None


def parquet_name(name: str) -> str:
    """The name of the parquet file that is made of a partition."""
    return CSV.sub(".parquet", name)


def is_hidden(name: str) -> bool:
    """Whether a relative name is one of those that Spark and Hive do not read."""
    parts = name.split("/")
    return name.endswith(_UNFINISHED) or any(p.startswith(".") or (p.startswith("_") and "=" not in p) for p in parts)


def leading_keys(filesystem: fs.FileSystem, base: str, name: str) -> list[str]:
    """The folders key=value that lead to `base`, where it is a folder of a hive table, or the file `name` in one.

    A link has the keys of where it leads, if it has none of its own.
    """
    paths = [base, os.path.realpath(base)] if isinstance(filesystem, fs.LocalFileSystem) else [base]
    for path in paths:
        folders = path.rstrip("/").split("/")
        if folders[-1] == name:
            folders.pop()
        first = len(folders)
        while first and folders[first - 1].find("=") > 0:
            first -= 1
        if first < len(folders):
            return folders[first:]
    return []


def _walked(folder: str, within: frozenset[str]) -> Iterator[str]:
    real = os.path.realpath(folder)
    if real in within:
        return
    with os.scandir(folder) as entries:
        paths = [entry.path for entry in entries]
    for path in paths:
        if Path(path).is_dir():
            yield from _walked(path, within | {real})
        else:
            yield path


def _named_again(base: str, files: Mapping[str, fs.FileInfo]) -> dict[str, str]:
    """The names of files that have another one, with that one: it has more hive keys, or is reached through no link."""
    top = os.path.realpath(base)
    by_file: dict[object, list[tuple[int, bool, str]]] = {}
    for name, info in files.items():
        real = os.path.realpath(info.path)
        stat = Path(real).stat()
        # Some mounted stores number no files; those know no hard links either.
        identity = (stat.st_dev, stat.st_ino) if stat.st_nlink > 1 and stat.st_ino else real
        by_file.setdefault(identity, []).append((-name.count("="), real != f"{top}/{name}", name))
    ordered = [sorted(names) for names in by_file.values() if len(names) > 1]
    return {name: names[0][2] for names in ordered for _, _, name in names[1:]}


def _refuse_same_names(root: str, names: Sequence[str]) -> None:
    """Raises DataError for such as a.csv beside a.csv.gz, most likely the same rows."""
    seen: dict[str, str] = {}
    for name in names:
        other = seen.setdefault(parquet_name(name), name)
        if other != name:
            raise DataError(f"{root} holds {other} and {name}, most likely the same rows; remove or rename one of them")


def _looks_like_parquet(filesystem: fs.FileSystem, info: fs.FileInfo) -> bool:
    """Whether a file begins or ends as parquet does, so that half a file is none that is left out."""
    if not info.size:
        return False
    try:
        with filesystem.open_input_file(info.path) as file:
            ends = {file.read_at(4, 0), file.read_at(4, max(info.size - 4, 0))}
    except OSError:  # whoever reads its footer says so
        return True
    return bool(ends & {MAGIC, ENCRYPTED})


def _refuse_formats(root: str, filesystem: fs.FileSystem, base: str, entries: Mapping[str, fs.FileInfo]) -> None:
    found = next(filter(None, map(_format_of, entries)), None)
    if found:
        entry, inner = found
        table = f"{root}/{inner}".rstrip("/")
    else:
        above = _format_above(filesystem, base, is_file=any(info.path == base for info in entries.values()))
        if above is None:
            return
        entry, table = above
        table = f"{root.partition('://')[0]}://{table}" if "://" in root else table
    what, read = _FORMATS[entry]
    raise DataError(
        f"{table} is {what}, as {entry} in it says: its parquet files hold rows that were replaced or deleted beside "
        "those that count. Write those that count as plain parquet to a folder of its own, such as with Spark "
        f"{read.format(table)}.write.parquet('NEW'), and name that folder"
    )


def _format_of(name: str) -> tuple[str, str] | None:
    """The entry in a relative name that tells of a format, and the folder that holds it."""
    parts = name.split("/")
    for position, part in enumerate(parts):
        is_iceberg = part == "metadata" and position == len(parts) - 2 and ".metadata.json" in parts[-1]
        if is_iceberg or (part in _FORMATS and part != "metadata"):
            return part, "/".join(parts[:position])
    return None


def _format_above(filesystem: fs.FileSystem, base: str, is_file: bool) -> tuple[str, str] | None:
    """The entry that tells of a format in the folder `base` or in those that it may be a part of; and that folder."""
    folder = os.path.realpath(base) if isinstance(filesystem, fs.LocalFileSystem) else base
    folder = folder.rpartition("/")[0] if is_file else folder
    folders = [folder]
    while "=" in folder.rpartition("/")[2]:
        folder = folder.rpartition("/")[0]
        folders.append(folder)
    folders = [folder for folder in (*folders, folder.rpartition("/")[0]) if folder]
    # One who may see a part alone is not told more: there may be a table without a format, too.
    with suppress(OSError):
        for info in filesystem.get_file_info([f"{folder}/{entry}" for folder in folders for entry in _FORMATS]):
            if info.type != fs.FileType.Directory:
                continue
            inside = filesystem.get_file_info(fs.FileSelector(info.path)) if info.base_name == "metadata" else []
            if info.base_name != "metadata" or any(".metadata.json" in held.base_name for held in inside):
                return info.base_name, info.path.rpartition("/")[0]
    return None


def _note(one: str, several: str, names: Sequence[str]) -> str | None:
    if not names:
        return None
    shown = ", ".join([*names[:_SHOWN], *(["…"] if len(names) > _SHOWN else [])])
    return f"{(one if len(names) == 1 else several).format(counted(len(names), 'file'))} ({shown})"
