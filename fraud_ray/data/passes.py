"""What the two passes of preparing do with one partition: statistics of its fit rows; then its rows, encoded."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Set
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from fraud_ray.data import rows
from fraud_ray.data.folds import SIDES, Folds
from fraud_ray.data.keys import Int64, Keys
from fraud_ray.data.sides import Counts, EntityGroups
from fraud_ray.data.source import Partition, read_partition
from fraud_ray.model.encoder import Encoder, FeatureColumn, Ratio, Statistics, strings
from fraud_ray.model.profile import Profile
from fraud_ray.settings import DataSettings
from fraud_ray.storage import Storage


@dataclass(frozen=True)
class Job:
    """What both passes need to know; goes to every task. slices: columns carried beside holdout rows."""

    root: str
    data: DataSettings
    columns: tuple[FeatureColumn, ...]
    ratios: tuple[Ratio, ...]
    folds: Folds
    slices: tuple[str, ...]

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
        kinds = {"label", *(["entity"] if by_entity else []), *(["timestamp"] if not self.folds.grouping else [])}
        placing = self._of_kinds(kinds)
        names = [*placing, *(self._of_kinds(set(rows.ROLES)) if with_roles else ())]
        names += [column.name for column in self.columns] if with_features else []
        names += self.slices if with_roles else ()
        table = read_partition(self.root, partition, self.data, list(dict.fromkeys(names)))
        return table, Keys.of(table.select([name for name in placing if name in table.column_names]), self.data)

    def _of_kinds(self, kinds: Set[str]) -> list[str]:
        return [name for name, column in self.data.columns.items() if column.kind in kinds]


@dataclass(frozen=True)
class Fitted:
    """What the fit pass finds in one partition: by fold, statistics of its fit rows, and its holdout rows by class.

    holdouts: only of folds that leave compromised entities out; of the others the census knows. profiles: of the final
    fold's fit rows, where there are any.
    """

    partition: int
    statistics: dict[str, Statistics]
    holdouts: dict[str, Counts]
    profiles: list[Profile]


def fit_partition(item: tuple[int, Partition], job: Job) -> Fitted:
    """The fit pass over one partition (with its position in the source)."""
    index, partition = item
    fits = any(fold.fit.taken[index] != (0, 0) for fold in job.folds.all)
    table, keys = job.read(index, partition, with_features=fits, with_roles=False)
    fitted = Fitted(index, {}, {}, [])
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
                fitted.profiles.append(Profile.of(block, job.columns, block[job.data.label]))
    return fitted


@dataclass(frozen=True)
class Written:
    """One part that the encode pass stored."""

    partition: int
    fold: str
    side: str
    part: rows.Part


def encode_partition(
    item: tuple[int, Partition], job: Job, encoders: Mapping[str, Encoder], storage: Storage, prefix: str
) -> list[Written]:
    """The encode pass over one partition: a part for each side of a fold that has rows in it, in their order."""
    index, partition = item
    holds_out = any(fold.holdout.taken[index] != (0, 0) for fold in job.folds.all)
    table, keys = job.read(index, partition, with_features=True, with_roles=holds_out)
    written = []
    for fold, side, found in job.folds.candidates(index, keys):
        drawn = fold.side(side).draw(found, index, keys.label)
        if not len(drawn):
            continue
        needed = table if side == "holdout" else table.select([column.name for column in job.columns])
        block, label = _taken(needed, drawn), keys.label[drawn]
        features, codes = encoders[fold.name].apply(block)
        carried = _carried(block, job) if side == "holdout" else {}
        encoded = rows.to_table(features, codes, label, carried)
        content = rows.serialize(encoded)
        key = f"{prefix}/{fold.name}/{side}/part-{index:05d}.arrow"
        storage.put(key, content)
        sha256 = hashlib.sha256(content).hexdigest()
        written.append(
            Written(index, fold.name, side, rows.Part(key, len(drawn), int(label.sum()), len(content), sha256))
        )
    return written


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
    carried |= {rows.SLICE + name: pc.fill_null(strings(table[name]), "") for name in job.slices}
    return carried | {rows.RAW + column.name: table[column.name] for column in job.columns}
