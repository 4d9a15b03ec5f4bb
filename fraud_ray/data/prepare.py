"""Prepared folds: for each, an encoder fitted on its fit rows, and both sides encoded; kept in the cache."""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from fraud_ray.data import cache, rows
from fraud_ray.data.clock import Int64
from fraud_ray.data.folds import SIDES, Folds
from fraud_ray.data.keys import Keys
from fraud_ray.data.sides import Counts, EntityGroups
from fraud_ray.data.source import Partition, Source, read_partition
from fraud_ray.data.tasks import Merged, map_tasks
from fraud_ray.model.encoder import Encoder, FeatureColumn, Ratio, Statistics, strings
from fraud_ray.model.profile import Profile
from fraud_ray.progress import Update, counted
from fraud_ray.settings import DataSettings, PrepareSettings, Settings
from fraud_ray.storage import Storage

# Part of the key: raise it when the same data and settings come to be prepared differently.
VERSION = 8

# A partition and its position in the source.
Placed = tuple[int, Partition]


@dataclass(frozen=True, repr=False)
class Prepared:
    """All folds, encoded, below prepared/<key>/<writer>/ in the storage.

    cached: whether they lay there already; remark: that they did and for how long, or why they were computed anew.
    """

    key: str
    writer: str
    cached: bool
    remark: str
    selection: tuple[rows.PreparedFold, ...]
    final: rows.PreparedFold

    def __repr__(self) -> str:
        final, folds = self.final, counted(len(self.selection), "selection fold")
        return f"{final.fit.rows:,} fit and {final.holdout.rows:,} holdout rows, {folds}; {final.reads}" + (
            f"; {self.remark}" if self.remark else ""
        )


def prepare(source: Source, folds: Folds, settings: Settings, storage: Storage, update: Update) -> Prepared:
    """Encodes every fold on Ray Data, or finds them in the cache, prepared from the same data with the same settings.

    Fit parts hold features, codes and label; holdout parts also the declared roles and the columns of
    decision.slices. A partition is read at most once to fit and once to encode, for all folds together, and becomes at
    most one part of each side. update: gets rows done and rows in all.
    Raises DataError for a side that the removal of compromised entities leaves empty or with one class.
    """
    key = prepared_key(source, settings)
    found = cache.find(storage, key, settings.cache.max_staleness, update)
    if found.entry is not None:
        return _prepared(found.entry, True, f"cached {cache.in_words(found.entry.age)} ago")
    columns = feature_columns(settings.data, settings.prepare)
    ratios = tuple(Ratio(name, *of, settings.prepare.numeric_encodings) for name, of in settings.prepare.ratios.items())
    job = Job(
        source.root, settings.data, columns, ratios, folds, settings.decision.slices, settings.decision.slice_edges
    )
    placed = list(enumerate(source.partitions))
    to_fit = [(i, partition) for i, partition in placed if job.reads_to_fit(i)]
    to_encode = [(i, partition) for i, partition in placed if job.reads_to_encode(i)]
    total, done = sum(partition.rows for _, partition in (*to_fit, *to_encode)), 0

    def each(name: str, items: Sequence[Placed], function: Callable[[Placed], Any]) -> Iterator[tuple[int, Any]]:
        """A pass: positions in the source, and what the function makes of them."""
        nonlocal done
        for position, result in map_tasks(function, items, [partition.rows for _, partition in items]):
            index, partition = items[position]
            yield index, result
            done += partition.rows
            update(done, total, name)

    statistics: dict[str, Merged[Statistics]] = defaultdict(lambda: Merged(Statistics.merge))
    profile: Merged[Profile] = Merged(Profile.merge)
    holdouts: dict[int, dict[str, Counts]] = {}
    fitted: Fitted
    for index, fitted in each("fit", to_fit, partial(fit_partition, job=job)):
        holdouts[index] = fitted.holdouts
        for name, of_partition in fitted.statistics.items():
            statistics[name].add(of_partition)
        if fitted.profile is not None:
            profile.add(fitted.profile)
    folds = folds.recounted(holdouts)
    folds.require_both_classes()
    how = settings.prepare.min_category_rows, settings.prepare.max_categories, ratios, settings.prepare.piecewise_bins
    encoders = {fold.name: Encoder.fit(columns, statistics[fold.name].result(), *how) for fold in folds.all}

    writer, folder = cache.new_folder(key)
    encode = partial(encode_partition, job=replace(job, folds=folds), encoders=encoders, storage=storage, prefix=folder)
    parts = dict(each("encode", to_encode, encode))

    def side(fold: str, name: str) -> rows.RowSet:
        return rows.RowSet(tuple(parts[i][fold, name] for i in sorted(parts) if (fold, name) in parts[i]))

    prepared = [
        rows.PreparedFold(f.name, f.span, encoders[f.name], side(f.name, "fit"), side(f.name, "holdout"))
        for f in folds.all
    ]
    prepared[-1] = replace(prepared[-1], profile=profile.result())
    return _prepared(cache.publish(storage, key, writer, _to_json(prepared), found.replaced), False, found.reason)


def feature_columns(data: DataSettings, prepare: PrepareSettings) -> tuple[FeatureColumn, ...]:
    """What the model reads, in the order of the settings, and how each column is encoded; a timestamp stands last."""

    def column(name: str) -> FeatureColumn:
        declared = data.columns[name]
        if declared.kind == "categorical":
            return FeatureColumn(name, "categorical")
        if declared.kind == "boolean":
            return FeatureColumn(name, "boolean", ("standard",), declared.true)
        ways = prepare.numeric_encodings if declared.encodings is None else declared.encodings
        return FeatureColumn(name, "numeric", ways)

    timestamp = data.of_kind("timestamp") if prepare.calendar else None
    clock = [FeatureColumn(timestamp, "timestamp", unit=data.columns[timestamp].unit)] if timestamp else []
    return (*(column(name) for name in data.features), *clock)


def prepared_key(source: Source, settings: Settings) -> str:
    """SHA-256, in hexadecimal, over the data's fingerprint and every setting that changes what is prepared."""
    relevant = [
        VERSION,
        source.fingerprint,
        [[name, column.model_dump(mode="json")] for name, column in settings.data.columns.items()],
        settings.folds.model_dump(mode="json"),
        settings.prepare.model_dump(mode="json"),
        settings.decision.slices,
        *([settings.decision.slice_edges] if settings.decision.slice_edges else []),
        *([settings.data.repeats] if settings.data.repeats != "refuse" else []),
    ]
    return hashlib.sha256(json.dumps(relevant, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class Job:
    """What both passes need to know; goes to every task.

    slices: columns carried beside holdout rows; edges: where the ranges of those begin that are numbers.
    """

    root: str
    data: DataSettings
    columns: tuple[FeatureColumn, ...]
    ratios: tuple[Ratio, ...]
    folds: Folds
    slices: tuple[str, ...]
    edges: Mapping[str, tuple[float, ...]]

    def reads_to_fit(self, partition: int) -> bool:
        """Whether the fit pass needs a partition: for fit rows, or to count what a removal leaves of a holdout."""
        return self._counts_holdout(partition) or any(f.fit.taken[partition] != (0, 0) for f in self.folds.all)

    def reads_to_encode(self, partition: int) -> bool:
        return any(fold.side(side).taken[partition] != (0, 0) for fold in self.folds.all for side in SIDES)

    def _counts_holdout(self, partition: int) -> bool:
        return any(f.compromised and f.holdout.counts[partition] != (0, 0) for f in self.folds.all)

    def read(self, index: int, partition: Partition, with_features: bool, with_roles: bool) -> tuple[pa.Table, Keys]:
        """The columns asked for of a partition, and what places its rows."""
        by_entity = isinstance(self.folds.grouping, EntityGroups) or self._counts_holdout(index)
        kinds = {
            "label",
            "label_time",
            *(["entity"] if by_entity else []),
            *(["timestamp"] if not self.folds.grouping else []),
        }
        placing = self._of_kinds(kinds)
        names = [*placing, *(self._of_kinds(set(rows.ROLES)) if with_roles else ())]
        names += [column.name for column in self.columns] if with_features else []
        names += self.slices if with_roles else ()
        table = read_partition(self.root, partition, self.data, list(dict.fromkeys(names)))
        return table, Keys.of(
            table.select([name for name in placing if name in table.column_names]), self.data, self.folds.clock
        )

    def _of_kinds(self, kinds: Set[str]) -> list[str]:
        return [name for name, column in self.data.columns.items() if column.kind in kinds]


@dataclass
class Fitted:
    """What the fit pass finds in one partition: by fold, statistics of its fit rows, and its holdout rows by class.

    holdouts: only of folds that leave compromised entities out; of the others the census knows. profile: of the final
    fold's fit rows; None where there are none.
    """

    statistics: dict[str, Statistics]
    holdouts: dict[str, Counts]
    profile: Profile | None = None


def fit_partition(item: Placed, job: Job) -> Fitted:
    """The fit pass over one partition."""
    index, partition = item
    fits = any(fold.fit.taken[index] != (0, 0) for fold in job.folds.all)
    table, keys = job.read(index, partition, with_features=fits, with_roles=False)
    fitted = Fitted({}, {})
    for fold, side, found in job.folds.candidates(index, keys):
        if side == "holdout":
            if fold.compromised:
                frauds = int(keys.label[found].sum())
                fitted.holdouts[fold.name] = (len(found) - frauds, frauds)
            continue
        drawn = fold.fit.draw(found, index, keys.label)
        if len(drawn):
            block = _taken(table, drawn)
            fitted.statistics[fold.name] = Statistics.of(block, job.columns, job.ratios, keys.label[drawn])
            if fold is job.folds.final:
                fitted.profile = Profile.of(block, job.columns, block[job.data.label])
    return fitted


def encode_partition(
    item: Placed, job: Job, encoders: Mapping[str, Encoder], storage: Storage, prefix: str
) -> dict[tuple[str, str], rows.Part]:
    """The encode pass over one partition: by fold and side, the part that was stored, where the side has rows in it."""
    index, partition = item
    holds_out = any(fold.holdout.taken[index] != (0, 0) for fold in job.folds.all)
    table, keys = job.read(index, partition, with_features=True, with_roles=holds_out)
    parts = {}
    for fold, side, found in job.folds.candidates(index, keys):
        drawn = fold.side(side).draw(found, index, keys.label)
        if not len(drawn):
            continue
        needed = table if side == "holdout" else table.select([column.name for column in job.columns])
        block, label = _taken(needed, drawn), keys.label[drawn]
        features, codes = encoders[fold.name].apply(block)
        content = rows.serialize(
            rows.to_table(features, codes, label, _carried(block, job) if side == "holdout" else {})
        )
        key = f"{prefix}/{fold.name}/{side}/part-{index:05d}.arrow"
        storage.put(key, content)
        sha256 = hashlib.sha256(content).hexdigest()
        parts[fold.name, side] = rows.Part(key, len(drawn), int(label.sum()), len(content), sha256)
    return parts


def _taken(table: pa.Table, positions: Int64) -> pa.Table:
    return table if len(positions) == table.num_rows else table.take(pa.array(positions))


def _carried(table: pa.Table, job: Job) -> dict[str, pa.ChunkedArray]:
    carried = {}
    for role in rows.ROLES:
        name = job.data.of_kind(role)
        if name is None:
            continue
        values = table[name]
        if role in {"amount", "true_probability"}:
            values = pc.cast(values, pa.float64(), safe=False)
        elif role in {"id", "entity"} and job.data.columns[name].nulls:
            # Where some may be missing, all are text: integers with gaps would come as rounded floats.
            values = pc.fill_null(strings(values), "")
        carried[rows.ROLE + role] = values
    for name in job.slices:
        of_slice = ranges(table[name], job.edges[name]) if name in job.edges else strings(table[name])
        carried[rows.SLICE + name] = pc.fill_null(of_slice, "")
    # A champion may read the timestamp where this run does not.
    raw = dict.fromkeys([*(column.name for column in job.columns), *filter(None, [job.data.of_kind("timestamp")])])
    return carried | {rows.RAW + name: table[name] for name in raw}


def ranges(numbers: pa.ChunkedArray, edges: Sequence[float]) -> pa.Array:
    """In which range, in words, each number lies; null where it is missing. edges: where ranges begin, rising."""
    values = pc.cast(numbers, pa.float64(), safe=False).to_numpy()
    between = [f"{low:g} to below {high:g}" for low, high in pairwise(edges)]
    names = np.array([f"below {edges[0]:g}", *between, f"{edges[-1]:g} and above"], object)
    found = names[np.searchsorted(edges, values, side="right")]
    return pa.array(found, pa.string(), mask=np.isnan(values))


def _to_json(folds: Sequence[rows.PreparedFold]) -> dict[str, Any]:
    stored = [
        {
            "name": fold.name,
            "span": fold.span,
            "encoder": fold.encoder.to_json(),
            "fit": [asdict(part) for part in fold.fit.parts],
            "holdout": [asdict(part) for part in fold.holdout.parts],
            "profile": fold.profile and fold.profile.to_json(),
        }
        for fold in folds
    ]
    return {"folds": stored}


def _prepared(entry: cache.Entry, cached: bool, remark: str) -> Prepared:
    def side(parts: list[dict[str, Any]]) -> rows.RowSet:
        return rows.RowSet(tuple(rows.Part(**part) for part in parts))

    *selection, final = (
        rows.PreparedFold(
            f["name"],
            f["span"],
            Encoder.from_json(f["encoder"]),
            side(f["fit"]),
            side(f["holdout"]),
            f["profile"] and Profile.from_json(f["profile"]),
        )
        for f in entry.value["folds"]
    )
    return Prepared(entry.key, entry.writer, cached, remark, tuple(selection), final)
