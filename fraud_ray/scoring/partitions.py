"""Batch scoring: partitions in, the same partitions with probability, decision and model version out.

A partition is written whole or not at all, and its metadata says by which model and from which state of its input.
So the same call again does only what is left, and each input row has one output row, in the same place.
"""

from __future__ import annotations

import hashlib
import tempfile
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs

from fraud_ray.cluster import join_unless_few
from fraud_ray.data.contract import ContractViolation, Violation, check_type
from fraud_ray.data.delimited import CsvFile
from fraud_ray.data.kinds import Reading, typed
from fraud_ray.data.listing import parquet_name
from fraud_ray.data.output import count_foreign, list_written, refuse_to_write_into, writing
from fraud_ray.data.source import (
    FOOTER_THREADS,
    Footer,
    Partition,
    absolute,
    fingerprint_line,
    hive_keys,
    list_partitions,
    long_times,
    open_file,
    open_filesystem,
    read_footer,
    read_footers,
    readable,
    table_name,
)
from fraud_ray.data.tasks import map_tasks
from fraud_ray.errors import SettingsError
from fraud_ray.model.scorer import GRAPH, GraphError, GraphScorer
from fraud_ray.progress import Progress, Update
from fraud_ray.registry.opened import open_uri
from fraud_ray.settings import ClusterSettings, CsvSettings, RegistrySettings
from fraud_ray.storage import Storage

if TYPE_CHECKING:
    from fraud_ray.model.reasons import Explainer

ADDED = (
    pa.field("probability", pa.float32()),
    pa.field("decision", pa.bool_()),
    pa.field("model_version", pa.string()),
)
ROWS_PER_BATCH = 131_072  # read, scored and written as one row group: what a worker holds of a partition
MADE_BY, MADE_WITH, MADE_FROM, ALERTS = b"fraud_ray.model", b"fraud_ray.graph", b"fraud_ray.input", b"fraud_ray.alerts"
EXPLAINED = b"fraud_ray.reasons"
REASONS = 3  # columns named for an alert, where reasons are asked for


@dataclass(frozen=True)
class Model:
    """A graph, and the version that its rows carry: 'fraud-detection-production/3', or the graph's own digest.

    windows: definition and state's key of the window columns that it reads; None where it reads none, and for a bare
    graph. explainer: what says why it alerts; None where that is not asked for. note: as `Opened` has it.
    """

    version: str
    graph: bytes
    windows: Mapping[str, Any] | None = None
    explainer: Explainer | None = None
    note: str = ""

    @property
    def added(self) -> tuple[pa.Field, ...]:
        """The columns that scoring adds."""
        return ADDED if self.explainer is None else (*ADDED, *self.explainer.fields(REASONS))


@dataclass(frozen=True)
class ScoringResult:
    """What a call did, and what lies at `output` after it.

    partitions, rows, alerts: of the whole input; alerts reach the threshold. kept: partitions that an earlier call had
    finished. seconds, rows_per_second: of the others. foreign: files at `output` that the input does not have.
    notes: what else lies in the input, in words.
    For a model of window columns also `state`, the key of the one after the input, and `counted`, the partitions that
    the one before it had counted: they are no part of the other figures.
    """

    model: str
    threshold: float
    output: str
    partitions: int
    rows: int
    alerts: int
    kept: int
    seconds: float
    rows_per_second: float
    foreign: int
    counted: int = 0
    state: str | None = None
    notes: tuple[str, ...] = ()

    @property
    def alert_rate(self) -> float:
        return self.alerts / self.rows if self.rows else 0.0

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "alert_rate": self.alert_rate}


def open_model(
    uri: str,
    registry: RegistrySettings,
    with_reasons: bool = False,
    storage: Storage | None = None,
    verified: bool = True,
) -> Model:
    """The model of a URI, models:/name@alias or models:/name/version, or of a bundle's folder or graph on disk.

    with_reasons: whether it shall also say why it alerts, for which a bare graph is not enough. storage, verified, and
    what is raised: as in `open_uri`.
    """
    with tempfile.TemporaryDirectory() as scratch:
        opened = open_uri(uri, registry, storage, Path(scratch), verified)
        try:
            _scorer(opened.graph)
        except GraphError as fault:
            raise SettingsError(f"{uri} is no model of this package: {fault}; name the {GRAPH} of a bundle") from None
        windows = None if Path(uri).expanduser().is_file() else opened.windows
        return Model(opened.named, opened.graph, windows, _explainer(opened.folder, with_reasons), opened.note)


def score_partitions(
    model: Model,
    source: str,
    target: str,
    cluster: ClusterSettings = ClusterSettings(),  # noqa: B008 - frozen
    update: Update = lambda *_: None,
    progress: Progress | None = None,
    csv: CsvSettings = CsvSettings(),  # noqa: B008 - frozen
    fingerprint: str = "footer",
    only: Collection[str] | None = None,
) -> ScoringResult:
    """Scores every partition below `source` into one of the same name below `target`; both are folders or URIs.

    Of CSV partitions parquet is made, where columns that the model does not read are text.

    An output partition has its input's rows in their order, all columns, and ADDED; from a model with an explainer also
    the REASONS columns that weigh most in each alert, and what each adds to its log-odds. One that this model has made
    from the input as it is now is kept; any other is replaced. Uses the Ray that this process has, else joins or starts
    one where there are more rows than a few. progress: told that one is; fingerprint: as in settings of data; only:
    names of those to score, in place of all.
    Raises ContractViolation that lists every column which the model reads and a partition lacks, or has in another
    type, before anything is scored.
    """
    source, target = locate(source, target)
    listing = list_partitions(source)
    scorer = _scorer(model.graph)
    readings = {column.name: Reading.of_model(column) for column in scorer.columns}
    files = {name: info for name, info in listing.files.items() if only is None or name in only}
    footers = read_footers(source, files, csv, readings, fingerprint == "content")
    _check_contract(source, footers, readings, model.added)
    explained = str(REASONS if model.explainer else 0)
    made = {MADE_BY: model.version.encode(), MADE_WITH: _digest(model.graph), EXPLAINED: explained.encode()}
    jobs = [
        _Job(
            partition=Partition.of(source, name, info, footer),
            stamp={**made, MADE_FROM: _digest(fingerprint_line(table_name(source, name), info, footer))},
        )
        for name, (info, footer) in footers.items()
    ]
    there = list_written(target)
    finished = _finished(target, jobs, there)
    left = [job for job in jobs if job.name not in finished]
    rows, alerts = sum(job.rows for job in jobs), sum(finished.values())
    to_score = [job.rows for job in left]
    done, seconds = rows - sum(to_score), 0.0
    if left:
        with join_unless_few(cluster, sum(to_score), progress):
            began = time.monotonic()
            score_one = partial(_score_partition, model=model, source=source, target=target, csv=csv)
            for position, found in map_tasks(score_one, left, to_score):
                done += to_score[position]
                alerts += found
                update(done, rows, f"{done:,} of {rows:,} rows, {alerts:,} alerts")
            seconds = time.monotonic() - began
    return ScoringResult(
        model=model.version,
        threshold=scorer.threshold,
        output=target,
        partitions=len(jobs),
        rows=rows,
        alerts=alerts,
        kept=len(finished),
        seconds=seconds,
        rows_per_second=sum(to_score) / seconds if seconds else 0.0,
        foreign=count_foreign(there, {job.output for job in jobs}),
        notes=listing.notes,
    )


def locate(source: str, target: str, labels: str | None = None) -> tuple[str, str]:
    """Input and output as absolute paths or URIs. Raises SettingsError for an output that overlaps what is read."""
    source, target = absolute(source), absolute(target)
    refuse_to_write_into("input", source, target)
    if labels is not None:
        refuse_to_write_into("labels", absolute(labels), target)
    return source, target


@dataclass(frozen=True)
class _Job:
    """One partition to score.

    stamp: what the metadata of its output says of the model, and of the state of the input, that it comes from.
    """

    partition: Partition
    stamp: dict[bytes, bytes]

    @property
    def name(self) -> str:
        """Relative to the source."""
        return self.partition.shown

    @property
    def rows(self) -> int:
        return self.partition.rows

    @property
    def output(self) -> str:
        """The name of what is made of it, relative to the target."""
        return parquet_name(self.name)


def _explainer(bundle: Path, is_wanted: bool) -> Explainer | None:
    """Raises SettingsError for a folder that lacks what reasons are computed from."""
    if not is_wanted:
        return None
    from fraud_ray.model.bundle import PARTS, Bundle  # torch takes seconds to import
    from fraud_ray.model.reasons import Explainer

    absent = [name for name in PARTS if not (bundle / name).is_file()]
    if absent:
        raise SettingsError(
            f"{bundle} holds no {', '.join(absent)}, from which reasons are computed; name a registered version or the "
            "folder of a bundle, or score without --reasons"
        )
    return Explainer.of(Bundle.load(bundle))


def _check_contract(
    source: str,
    footers: Mapping[str, tuple[fs.FileInfo, Footer]],
    readings: Mapping[str, Reading],
    added: Sequence[pa.Field],
) -> None:
    violations = [
        Violation(name, column, message, footer.rows, 0)
        for name, (_, footer) in footers.items()
        for column, message in _faults(hive_keys(source, name), footer.schema, readings, added)
    ]
    if violations:
        raise ContractViolation(violations, len(footers))


def _faults(
    keys: Mapping[str, str], schema: pa.Schema, readings: Mapping[str, Reading], added: Sequence[pa.Field]
) -> Iterator[tuple[str, str]]:
    """(column, what is wrong with it) of a partition of these hive keys and this schema."""
    twice = sorted({column for column in schema.names if schema.names.count(column) > 1})
    if twice:
        yield from ((column, "is there more than once. Write the file again with one.") for column in twice)
        return
    for field in added:
        if field.name in schema.names:
            yield field.name, "has the name of one that scoring adds. Rename it in the file."
    table = typed(schema.empty_table(), keys, readings)
    for column, reading in readings.items():
        unfit = check_type(table, column, reading)
        if unfit:
            yield column, unfit[0]


def _finished(target: str, jobs: list[_Job], there: Mapping[str, fs.FileInfo]) -> dict[str, int]:
    """The alerts in each partition that bears the stamp it would be given now, by name."""
    filesystem, _ = open_filesystem(target)

    def alerts(job: _Job) -> int | None:
        footer = read_footer(filesystem, there[job.output])
        made = (footer.schema.metadata or {}) if isinstance(footer, Footer) else {}
        return int(made[ALERTS]) if made.items() >= job.stamp.items() else None

    found = [job for job in jobs if job.output in there]
    with ThreadPoolExecutor(FOOTER_THREADS) as pool:
        counted = zip(found, pool.map(alerts, found), strict=True)
        return {job.name: count for job, count in counted if count is not None}


def _score_partition(job: _Job, model: Model, source: str, target: str, csv: CsvSettings) -> int:
    """Scores one partition in this process; returns its alerts."""
    scorer = _scorer(model.graph)
    readings = {column.name: Reading.of_model(column) for column in scorer.columns}
    keys = hive_keys(source, job.name)
    alerts = 0
    filesystem, _ = open_filesystem(source)
    with ExitStack() as held:
        with readable(filesystem, job.partition, csv):
            opened = open_file(filesystem, job.partition.path, csv, readings, known=job.partition)
            file = held.enter_context(opened)
            long = long_times(filesystem, job.partition.path, file, readings)
        _check_types(typed(long, {}, readings), {name: readings[name] for name in long.column_names}, job.name, csv)
        writer = held.enter_context(writing(target, job.output, file, model.added))
        for table in _batches(file, filesystem, job.partition, csv):
            read = typed(table, keys, readings)
            _check_types(read, readings, job.name, csv)
            probability = scorer.score(read)
            decision = probability >= scorer.threshold
            version = pa.repeat(model.version, table.num_rows)
            why = model.explainer.of_alerts(read, decision, REASONS) if model.explainer else ()
            made = (pa.array(probability), pa.array(decision), version, *why)
            for field, values in zip(model.added, made, strict=True):
                table = table.append_column(field, values)
            writer.write_table(table)
            alerts += int(decision.sum())
        writer.add_key_value_metadata({**job.stamp, ALERTS: str(alerts).encode()})
    return alerts


def _check_types(read: pa.Table, readings: Mapping[str, Reading], name: str, csv: CsvSettings) -> None:
    unfit = {column: check_type(read, column, reading, None, csv.decimal_point) for column, reading in readings.items()}
    broken = [Violation(name, column, *finding) for column, finding in unfit.items() if finding]
    if broken:
        raise ContractViolation(broken, 1)


def _batches(
    file: pq.ParquetFile | CsvFile, filesystem: fs.FileSystem, partition: Partition, csv: CsvSettings
) -> Iterator[pa.Table]:
    """The file's rows in order; one thread, for the partitions are scored side by side."""
    with readable(filesystem, partition, csv):
        for batch in file.iter_batches(ROWS_PER_BATCH, use_threads=False):
            yield pa.Table.from_batches([batch])


@lru_cache(maxsize=2)
def _scorer(graph: bytes) -> GraphScorer:
    """One session a process and model, kept from partition to partition."""
    return GraphScorer(graph)


def _digest(content: bytes) -> bytes:
    return hashlib.sha256(content).hexdigest().encode()
