"""Writes the synthetic world as partitioned parquet on Ray, and measures the best possible scores."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from pyarrow import fs

from fraud_ray.cluster import join_or_start
from fraud_ray.data import world
from fraud_ray.data.patterns import Ints
from fraud_ray.data.source import absolute, open_filesystem
from fraud_ray.data.tasks import map_tasks
from fraud_ray.errors import DataError, FraudRayError
from fraud_ray.progress import Progress, Update, counted
from fraud_ray.settings import Settings, SimulateSettings
from fraud_ray.storage import unusable

# Beside the partitions: the settings they were simulated from and, once all are written, the result.
MARKER = "_simulated.json"
PROBABILITY_BINS = 1_000_000


@dataclass(frozen=True)
class Simulated:
    """What was written, and the scores of the true probability on it: no model beats them but by chance.

    The scores are exact to a millionth of probability, and 0 where no row is fraud.
    """

    rows: int
    frauds: int
    files: int
    best_average_precision: float
    best_f1: float

    def __str__(self) -> str:
        return (
            f"{counted(self.rows, 'row')}, {counted(self.frauds, 'fraud')}; best possible AP "
            f"{self.best_average_precision:.4f}, F1 {self.best_f1:.4f}"
        )


def simulate(settings: SimulateSettings, out: str, update: Update | None = None) -> Simulated:
    """Writes `out`/date=YYYY-MM-DD/part-<block>.parquet, columns as `world.SCHEMA`, rows by time within a file.

    out: a path, or a URI that pyarrow opens; on a cluster, one that all nodes see. The rows are the same whatever the
    parallelism. A path comes into being when everything is written; below a URI the marker without a result says that
    it is not (`holds_data`). An interrupted call is repeated from the start, a finished one answers at once.
    Raises DataError where `out` holds anything else, FraudRayError where it cannot be written.
    """
    with _writing(out):
        return simulated_before(settings, out) or _simulate(settings, *open_filesystem(absolute(out)), update)


def simulated_before(settings: SimulateSettings, out: str) -> Simulated | None:
    """What an earlier call with these settings wrote, where it was finished. Raises as `simulate` does."""
    with _writing(out):
        return _result_of_the_same_call(settings, *open_filesystem(absolute(out)), out)


def holds_data(path: str) -> bool:
    """Whether anything lies at a path or URI but a simulation that was interrupted."""
    filesystem, target = open_filesystem(absolute(path))
    marker = _read_marker(filesystem, target)
    return bool(_files_below(filesystem, target)) and (marker is None or marker["result"] is not None)


def simulate_if_absent(settings: Settings, progress: Progress, session: ExitStack) -> None:
    """Writes the data that `settings.simulate` describes, if it does, where data.path holds nothing.

    session: keeps the Ray that this takes.
    """
    if settings.simulate is None or holds_data(settings.data.path):
        return
    with progress.stage("simulate") as stage:
        session.enter_context(join_or_start(settings.cluster, progress))
        stage.say(str(simulate(settings.simulate, settings.data.path, stage.update)))


@dataclass(frozen=True)
class WrittenBlock:
    """A block's number of files, and the rows and frauds in each bin of the fraud probability that occurs in it."""

    files: int
    bins: Ints
    rows: Ints
    frauds: Ints


def write_block(block: int, settings: SimulateSettings, filesystem: fs.FileSystem, folder: str) -> WrittenBlock:
    """Generates one block and writes its days, a file each. Raises FraudRayError where they cannot be written."""
    table = world.generate(settings, block)
    days = table["timestamp"].to_numpy().astype("datetime64[D]")
    starts = np.flatnonzero(np.diff(days, prepend=days[0] - 1).astype(bool))
    for start, end in zip(starts, [*starts[1:], len(days)], strict=True):
        partition = f"{folder}/date={days[start]}"
        with _writing(partition):
            if isinstance(filesystem, fs.LocalFileSystem):
                filesystem.create_dir(partition)
            pq.write_table(
                table.slice(start, end - start),
                f"{partition}/part-{block:05d}.parquet",
                filesystem=filesystem,
                use_dictionary=["merchant_category"],
                compression="zstd",
            )
    probability = table["fraud_probability"].to_numpy()
    bins = np.minimum((probability * PROBABILITY_BINS).astype(np.int64), PROBABILITY_BINS - 1)
    occurring, positions = np.unique(bins, return_inverse=True)
    frauds = np.bincount(positions, weights=table["is_fraud"].to_numpy()).astype(np.int64)
    return WrittenBlock(len(starts), occurring, np.bincount(positions), frauds)


def best_scores(rows: Ints, frauds: Ints) -> tuple[float, float]:
    """Average precision and highest F1 of a score, from the rows and frauds in its bins, (bins,), lowest bin first."""
    flagged, found = np.cumsum(rows[::-1]), np.cumsum(frauds[::-1])
    total = found[-1]
    if not total:
        return 0.0, 0.0
    precision = found / np.maximum(flagged, 1)
    return float((precision * frauds[::-1]).sum() / total), float((2 * found / (flagged + total)).max())


def _simulate(settings: SimulateSettings, filesystem: fs.FileSystem, target: str, update: Update | None) -> Simulated:
    # Only a local folder can be renamed as a whole.
    is_local = isinstance(filesystem, fs.LocalFileSystem)
    folder = f"{target}.partial" if is_local else target
    if _files_below(filesystem, folder):
        if _read_marker(filesystem, folder) is None:
            raise DataError(f"{folder}, where the data is written first, holds something else; move it away")
        filesystem.delete_dir_contents(folder)
    if is_local:
        filesystem.create_dir(folder)
    _write_marker(filesystem, folder, settings, None)

    rows, frauds, files = np.zeros(PROBABILITY_BINS, np.int64), np.zeros(PROBABILITY_BINS, np.int64), 0
    sizes = world.rows_of_blocks(settings.rows)
    write = partial(write_block, settings=settings, filesystem=filesystem, folder=folder)
    for _, block in map_tasks(write, range(len(sizes)), sizes):
        rows[block.bins] += block.rows
        frauds[block.bins] += block.frauds
        files += block.files
        if update:
            update(float(rows.sum()), settings.rows, f"{rows.sum():,} rows, {frauds.sum():,} frauds")
    if files != sum(path.endswith(".parquet") for path in _files_below(filesystem, folder)):
        raise FraudRayError(f"{folder} was changed by somebody else while it was written; simulate once more")

    result = Simulated(int(rows.sum()), int(frauds.sum()), files, *best_scores(rows, frauds))
    _write_marker(filesystem, folder, settings, result)
    if is_local:
        Path(folder).rename(target)
    return result


@contextmanager
def _writing(where: str) -> Iterator[None]:
    try:
        yield
    except OSError as fault:
        raise unusable(f"{where} cannot be written", fault, where) from fault


def _result_of_the_same_call(
    settings: SimulateSettings, filesystem: fs.FileSystem, target: str, out: str
) -> Simulated | None:
    """None where nothing was written yet, or not all of it. Raises DataError for any other content."""
    if filesystem.get_file_info(target).type == fs.FileType.File:
        raise DataError(f"{out} is a file; name a folder to simulate into")
    if not _files_below(filesystem, target):
        return None
    marker = _read_marker(filesystem, target)
    if marker is None:
        raise DataError(f"{out} holds data that was not simulated; choose another folder, or remove it")
    wanted, there = settings.model_dump(mode="json"), marker["settings"]
    differing = [f"{key} {there.get(key)} there, {wanted[key]} now" for key in wanted if there.get(key) != wanted[key]]
    if differing:
        raise DataError(
            f"{out} was simulated with other settings ({'; '.join(differing)}); choose another folder, or remove it"
        )
    return Simulated(**marker["result"]) if marker["result"] else None


def _files_below(filesystem: fs.FileSystem, folder: str) -> list[str]:
    selected = filesystem.get_file_info(fs.FileSelector(folder, recursive=True, allow_not_found=True))
    return [info.path for info in selected if info.type == fs.FileType.File]


def _write_marker(filesystem: fs.FileSystem, folder: str, settings: SimulateSettings, result: Simulated | None) -> None:
    content = {"settings": settings.model_dump(mode="json"), "result": result and asdict(result)}
    with filesystem.open_output_stream(f"{folder}/{MARKER}") as stream:
        stream.write(json.dumps(content, indent=1).encode())


def _read_marker(filesystem: fs.FileSystem, folder: str) -> dict[str, Any] | None:
    path = f"{folder}/{MARKER}"
    if filesystem.get_file_info(path).type != fs.FileType.File:
        return None
    with filesystem.open_input_stream(path) as stream:
        return json.loads(stream.read())
