"""Prepared folds: for each, an encoder fitted on its fit rows, and both sides encoded; kept in the cache."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any, TypeVar

from fraud_ray.data import cache, rows
from fraud_ray.data.folds import SIDES, Folds
from fraud_ray.data.passes import Job, encode_partition, fit_partition
from fraud_ray.data.profiling import MERGE_AT
from fraud_ray.data.source import Partition, Source
from fraud_ray.data.tasks import map_tasks
from fraud_ray.model.encoder import Encoder, FeatureColumn, Ratio, Statistics
from fraud_ray.model.profile import Profile
from fraud_ray.progress import Update
from fraud_ray.settings import DataSettings, PrepareSettings, Settings
from fraud_ray.storage import Storage

# Part of the key: raise it when the same data and settings come to be prepared differently.
VERSION = 6

Result = TypeVar("Result")


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
        folds, final = len(self.selection), self.final
        return (
            f"{final.fit.rows:,} fit and {final.holdout.rows:,} holdout rows, {folds} selection fold"
            f"{'s' if folds > 1 else ''}, {len(final.encoder.feature_names)} features"
            + (f"; {self.remark}" if self.remark else "")
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
    job = Job(source.root, settings.data, columns, ratios, folds, settings.decision.slices)
    passes = _Passes(source, update, job)

    statistics: dict[str, list[Statistics]] = {fold.name: [] for fold in folds.all}
    profiles: list[Profile] = []
    holdouts = {}
    for fitted in passes.run("fit", job.reads_to_fit, partial(fit_partition, job=job)):
        holdouts[fitted.partition] = fitted.holdouts
        for name, of_partition in fitted.statistics.items():
            statistics[name].append(of_partition)
            if len(statistics[name]) == MERGE_AT:
                statistics[name] = [Statistics.merge(statistics[name])]
        profiles += fitted.profiles
        if len(profiles) >= MERGE_AT:
            profiles = [Profile.merge(profiles)]
    folds = folds.recounted(holdouts)
    folds.require_both_classes()
    how = settings.prepare.min_category_rows, settings.prepare.max_categories, ratios, settings.prepare.piecewise_bins
    encoders = {name: Encoder.fit(columns, Statistics.merge(held), *how) for name, held in statistics.items()}

    writer, folder = cache.new_folder(key)
    encode = partial(encode_partition, job=replace(job, folds=folds), encoders=encoders, storage=storage, prefix=folder)
    parts: dict[tuple[str, str], dict[int, rows.Part]] = {(f.name, side): {} for f in folds.all for side in SIDES}
    for written in passes.run("encode", job.reads_to_encode, encode):
        for one in written:
            parts[one.fold, one.side][one.partition] = one.part
    sides = {at: rows.RowSet(tuple(part for _, part in sorted(of.items()))) for at, of in parts.items()}
    *selection, final = (
        rows.PreparedFold(f.name, f.span, encoders[f.name], sides[f.name, "fit"], sides[f.name, "holdout"])
        for f in folds.all
    )
    value = _to_json((*selection, replace(final, profile=Profile.merge(profiles))))
    return _prepared(cache.publish(storage, key, writer, value, found.replaced), False, found.reason)


def feature_columns(data: DataSettings, prepare: PrepareSettings) -> tuple[FeatureColumn, ...]:
    """What the model reads, in the order of the settings, and how each column is encoded."""

    def column(name: str) -> FeatureColumn:
        declared = data.columns[name]
        if declared.kind == "categorical":
            return FeatureColumn(name, "categorical")
        if declared.kind == "boolean":
            return FeatureColumn(name, "boolean", ("standard",))
        ways = prepare.numeric_encodings if declared.encodings is None else declared.encodings
        return FeatureColumn(name, "numeric", ways)

    return tuple(column(name) for name in data.features)


def prepared_key(source: Source, settings: Settings) -> str:
    """SHA-256, in hexadecimal, over the data's fingerprint and every setting that changes what is prepared."""
    relevant = [
        VERSION,
        source.fingerprint,
        [[name, column.model_dump(mode="json")] for name, column in settings.data.columns.items()],
        settings.folds.model_dump(mode="json"),
        settings.prepare.model_dump(mode="json"),
        settings.decision.slices,
    ]
    return hashlib.sha256(json.dumps(relevant, sort_keys=True).encode()).hexdigest()


class _Passes:
    """Runs both passes, and tells how many of their rows are done."""

    def __init__(self, source: Source, update: Update, job: Job) -> None:
        self.partitions = source.partitions
        self.update = update
        both = (job.reads_to_fit, job.reads_to_encode)
        self.total = sum(p.rows for reads in both for i, p in enumerate(self.partitions) if reads(i))
        self.done = 0

    def run(
        self, name: str, reads: Callable[[int], bool], function: Callable[[tuple[int, Partition]], Result]
    ) -> Iterator[Result]:
        """The results of one pass, in the order in which tasks finish."""
        items = [(i, partition) for i, partition in enumerate(self.partitions) if reads(i)]
        weights = [partition.rows for _, partition in items]
        for position, result in map_tasks(function, items, weights):
            yield result
            self.done += weights[position]
            self.update(self.done, self.total, name)


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
