"""Which rows of a partition a side of a fold takes: by time or by group, and after a limit. Seeded, so repeatable."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from fraud_ray.data.clock import Int64
from fraud_ray.data.keys import NO_LABEL, Keys

# (legitimate rows, frauds)
Counts = tuple[int, int]


@dataclass(frozen=True)
class Side:
    """The rows of one side of a fold: those of the ticks `first` to `last` (both included), or of `groups`.

    Rows whose label is not known yet are on no side; nor are those whose label was not known when the tick `known_by`
    began, where label times are declared and one is given.
    counts: what each partition has of them, before the limit; limit: most rows, drawn at random in each class, so that
    the fraud rate stays; seed: of that draw.
    """

    counts: tuple[Counts, ...]
    first: int | None = None
    last: int | None = None
    groups: frozenset[int] = frozenset()
    limit: int | None = None
    seed: tuple[int, ...] = ()
    known_by: int | None = None

    @cached_property
    def taken(self) -> tuple[Counts, ...]:
        """What each partition gives after the limit."""
        total = sum(legitimate + frauds for legitimate, frauds in self.counts)
        if self.limit is None or total <= self.limit:
            return self.counts
        of_class = np.array(self.counts, np.int64)
        frauds = round(self.limit * int(of_class[:, 1].sum()) / total)
        shares = [
            apportion(rows, of_class[:, label], np.random.default_rng([*self.seed, label]))
            for label, rows in enumerate((self.limit - frauds, frauds))
        ]
        return tuple(zip(shares[0].tolist(), shares[1].tolist(), strict=True))

    @property
    def rows(self) -> int:
        return sum(legitimate + frauds for legitimate, frauds in self.taken)

    @property
    def frauds(self) -> int:
        return sum(frauds for _, frauds in self.taken)

    def holds(self, keys: Keys, groups: Int64 | None) -> npt.NDArray[np.bool_]:
        """Whether each row of a partition is of this side; groups: each row's, where folds are not by time."""
        is_labelled = keys.label != NO_LABEL
        if keys.known is not None and self.known_by is not None:
            is_labelled &= keys.known <= self.known_by
        if groups is not None:
            # Groups are few: comparing with each is faster than np.isin.
            return is_labelled & np.logical_or.reduce([groups == group for group in self.groups])
        assert keys.tick is not None and self.first is not None and self.last is not None, "folds by time have ticks"
        return is_labelled & (keys.tick >= self.first) & (keys.tick <= self.last)

    def draw(self, rows: Int64, partition: int, label: npt.NDArray[np.int8]) -> Int64:
        """Those of a partition's rows that stay after the limit, in the order of the partition."""
        if self.taken[partition] == self.counts[partition]:
            return rows
        kept = [
            np.random.default_rng([*self.seed, partition, of_class]).permutation(rows[label[rows] == of_class])[:count]
            for of_class, count in enumerate(self.taken[partition])
        ]
        return np.sort(np.concatenate(kept))


@dataclass(frozen=True)
class EntityGroups:
    """Groups of entities: the group of each entity bucket."""

    of_bucket: tuple[int, ...]

    def of(self, partition: int, keys: Keys) -> Int64:
        """The group of each row, shape (rows,)."""
        assert keys.entities is not None, "settings require an entity column"
        return np.array(self.of_bucket)[keys.entities.buckets]


@dataclass(frozen=True)
class StratifiedGroups:
    """Groups of rows, drawn in each class: `sizes[partition][label]` are the sizes of the groups 0, 1, ...

    The rows that are left are the last group.
    """

    sizes: tuple[tuple[tuple[int, ...], tuple[int, ...]], ...]
    seed: int

    def of(self, partition: int, keys: Keys) -> Int64:
        """The group of each row, shape (rows,)."""
        groups = np.full(len(keys.label), len(self.sizes[partition][0]), np.int64)
        for label, sizes in enumerate(self.sizes[partition]):
            rows = np.random.default_rng([self.seed, partition, label]).permutation(np.flatnonzero(keys.label == label))
            groups[rows[: sum(sizes)]] = np.repeat(np.arange(len(sizes)), sizes)
        return groups


def apportion(rows: int, counts: Int64, rng: np.random.Generator) -> Int64:
    """Splits `rows` over partitions of these counts in proportion, none above its count, the sum exact.

    Each share is its exact proportion rounded up or down; where the rounding begins is drawn.
    """
    total = int(counts.sum())
    if not total:
        return np.zeros_like(counts)
    # Python integers: the products exceed 64 bits only for absurd data, and exactness is the point.
    reached, before, offset = [], 0, int(rng.integers(total))
    for held in np.cumsum(counts).tolist():
        bound = (rows * held + offset) // total
        reached.append(bound - before)
        before = bound
    return np.array(reached, np.int64)
