"""Transactions sorted by entity and time, so that a window is a range of positions, and sums over it that are exact.

A transaction at time t sees, of its entity, those in (t - delay - length, t - delay]; without a delay those before t,
and itself where the column says so. Transactions at the same instant do not see each other, so that no value depends
on the order of rows, files or identifiers. Where label times are declared, columns by label see transactions at the
time when their label became known.

Sums are of whole numbers (values in units of 10^-decimals), hence exact: a value is a function of the transactions in
its window alone, to the bit, however long the history before them, and wherever a computation starts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from fraud_ray.errors import DataError
from fraud_ray.windows.definition import Measure

Int32 = npt.NDArray[np.int32]
Int64 = npt.NDArray[np.int64]
Float64 = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]

# Keys of entity and time, and the sums over a window, stay below it.
_LARGEST = 2**62
# Squares are summed in two halves, of which the lower has so many bits: sums over eight million rows fit.
LOW_BITS = 20
_ALL = slice(None)


@dataclass(frozen=True)
class Transactions:
    """Transactions of some entities, in any order; all arrays of shape (rows,).

    entity: codes from 0, the same for the same entity; time: microseconds; values: by column, NaN where missing;
    texts: by column, codes from 0, -1 where missing; fraud: whether the label says so, False where there is none yet;
    known: when the label became known, which is after `time`, NEVER where it is not yet, where label times are
    declared; counts: which rows are in windows at all, by default all.
    """

    entity: Int32
    time: Int64
    values: Mapping[str, Float64]
    texts: Mapping[str, Int32]
    fraud: Mask
    known: Int64 | None = None
    counts: Mask | None = None

    def at_label_times(self, asked: Mask, wait: int) -> tuple[Transactions, Mask]:
        """Those whose label was known after `wait` microseconds or less, at that time; and, in their order, those
        asked for at their own time, which do not count. With which of them are asked for."""
        assert self.known is not None, "measures wait for labels where label times are declared"
        labelled = np.flatnonzero(self.known <= self.time + wait)
        at = np.concatenate([labelled, np.flatnonzero(asked)])
        counts = np.arange(len(at)) < len(labelled)
        placed = Transactions(
            self.entity[at],
            np.where(counts, self.known[at], self.time[at]),
            {name: values[at] for name, values in self.values.items()},
            {name: codes[at] for name, codes in self.texts.items()},
            self.fraud[at],
            counts=counts,
        )
        return placed, ~counts


class Timeline:
    """Transactions in the order of entity and time; windows and sums are of those asked for, in that order.

    asked: positions of the rows asked for, shape (asked,); the other rows count as history alone. Both ends of the
    windows never decrease from one row asked for to the next.
    """

    def __init__(self, rows: Transactions, order: Int64 | slice, asked: Int64, decimals: int) -> None:
        """order: what brings the rows into their order.

        Raises DataError, now or when sums are asked for, for values too large to be summed exactly.
        """
        self.order, self.asked = order, asked
        self.entity, self.time = rows.entity[order], rows.time[order]
        self.unit = 10.0**decimals
        self._rows = rows
        self._edges: dict[int, Int64] = {}
        self._sums: dict[tuple[str, ...], Int64] = {}

    def window(self, measure: Measure) -> tuple[Int64, Int64]:
        """The range [low, high) of each row asked for, without itself."""
        high = self.edge(measure.delay) if measure.delay or measure.wait else self.begins
        return self.edge(measure.delay + measure.length), high

    def total(self, measure: Measure, running: Int64) -> Int64:
        """The sum over each window, itself included where the measure says so; running: as `_running` gives it."""
        low, high = self.window(measure)
        total = running[high] - running[low]
        if measure.current:
            total += running[self.asked + 1] - running[self.asked]
        return total

    @cached_property
    def instant(self) -> Int64:
        """The first row of each row's entity and time."""
        begins = np.ones(len(self.time), bool)
        begins[1:] = (self.entity[1:] != self.entity[:-1]) | (self.time[1:] != self.time[:-1])
        return np.maximum.accumulate(np.where(begins, np.arange(len(begins)), 0))

    @cached_property
    def begins(self) -> Int64:
        """The first row of the entity and time of each row asked for."""
        return self.instant[self.asked]

    def is_among(self, among: str, rows: slice = _ALL) -> Mask:
        """Which rows count, shape (rows,): all, or by their label. rows: only these of them, here and below."""
        counts = self._rows.counts
        here = np.ones(len(self.time[rows]), bool) if counts is None else counts[self.order][rows]
        if among == "all":
            return here
        fraud = self._rows.fraud[self.order][rows]
        return here & (fraud if among == "frauds" else ~fraud)

    def values(self, column: str, among: str = "all", rows: slice = _ALL) -> Float64:
        """Shape (rows,); NaN also for rows that do not count."""
        values = self._rows.values[column][self.order][rows]
        return values if among == "all" else np.where(self.is_among(among, rows), values, np.nan)

    def texts(self, column: str, among: str) -> Int32:
        """Codes, shape (rows,); -1 also for rows that do not count."""
        return np.where(self.is_among(among), self._rows.texts[column][self.order], np.int32(-1))

    def edge(self, age: int) -> Int64:
        """The first row of the entity that is younger than `age` at the time of each row asked for."""
        if age not in self._edges:
            self._edges[age] = self._edge(age)
        return self._edges[age]

    def members(self, among: str) -> Int64:
        """Running number of rows that count."""
        return self._running(("members", among), lambda rows: self.is_among(among, rows))

    def present(self, column: str, among: str) -> Int64:
        """Running number of values that are not missing."""
        return self._running(("present", column, among), lambda rows: ~np.isnan(self.values(column, among, rows)))

    def sums(self, column: str, among: str) -> Int64:
        """Running sum in units."""
        return self._running(("sums", column, among), lambda rows: self._units(column, among, rows))

    def squares(self, column: str, among: str) -> Int64:
        """Running sums of high * high, high * low and low * low, where high * 2^LOW_BITS + low are a value's units;
        shape (3, rows + 1)."""

        def products(rows: slice) -> Int64:
            units = self._units(column, among, rows)
            high, low = units >> LOW_BITS, units & (2**LOW_BITS - 1)
            self._check_sum(column, np.square(np.abs(high).max(initial=0), dtype=float))
            return np.stack([high * high, high * low, low * low])

        return self._running(("squares", column, among), products)

    def _running(self, key: tuple[str, ...], of: Callable[[slice], npt.NDArray[np.generic]]) -> Int64:
        """Sums of the first 0, 1, ... of the rows that `of` gives, shape (..., rows + 1). Where they wrap around, their
        differences stay exact. key: names them among all such sums."""
        if key not in self._sums:
            self._sums[key] = self._summed(key, of)
        return self._sums[key]

    def _summed(self, key: tuple[str, ...], of: Callable[[slice], npt.NDArray[np.generic]]) -> Int64:
        each = of(_ALL)
        none = np.zeros((*each.shape[:-1], 1), np.int64)
        return np.concatenate([none, np.cumsum(each, axis=-1, dtype=np.int64)], axis=-1)

    def _units(self, column: str, among: str, rows: slice) -> Int64:
        """Values in whole units, 0 where missing."""
        scaled = np.rint(np.nan_to_num(self.values(column, among, rows)) * self.unit)
        self._check_sum(column, np.abs(scaled).max(initial=0))
        return scaled.astype(np.int64)

    def _check_sum(self, column: str, largest: float) -> None:
        longest = self._longest
        if largest * longest >= _LARGEST:
            raise DataError(
                f"column '{column}' holds values up to {np.nanmax(np.abs(self.values(column))):g}, too large for exact "
                f"sums over the {longest:,} rows that one entity has; lower windows.decimals, or mend the values"
            )

    @cached_property
    def _longest(self) -> int:
        """Rows of the entity that has most."""
        return int(np.bincount(self.entity).max(initial=0))

    def _edge(self, age: int) -> Int64:
        raise NotImplementedError


class Sorted(Timeline):
    """Transactions of many entities, given in any order."""

    def __init__(self, rows: Transactions, asked: Mask, decimals: int, reach: int) -> None:
        """asked: which rows are; reach: the largest age, in microseconds, at which a window begins."""
        by_time = np.argsort(rows.time, kind="stable")
        narrow = np.min_scalar_type(int(rows.entity.max(initial=0)))  # 16 bits or less are sorted by radix
        order = by_time[np.argsort(rows.entity[by_time].astype(narrow), kind="stable")]
        super().__init__(rows, order, np.flatnonzero(asked[order]), decimals)
        self.reach = reach
        self._place = (np.cumsum(asked) - 1)[order[self.asked]]

    def in_given_order(self, values: npt.NDArray[np.generic]) -> npt.NDArray[np.float32]:
        """A value of each row asked for, in the order in which the rows were given."""
        placed = np.empty(len(values), np.float32)
        placed[self._place] = values
        return placed

    def _edge(self, age: int) -> Int64:
        found = np.empty(len(self.asked), np.int64)
        for first, key in self._keys:
            block = slice(*np.searchsorted(self.asked, (first, first + len(key))))
            found[block] = first + np.searchsorted(key, key[self.asked[block] - first] - age, side="right")
        return found

    @cached_property
    def _keys(self) -> list[tuple[int, Int64]]:
        """For blocks of whole entities their first row, and of each row a key that grows with entity and time.

        Entities are so far apart that no age within reach leads to another, and blocks so small that keys fit in 64
        bits.
        """
        if not len(self.time):
            return []
        start = int(self.time.min()) - self.reach
        span = int(self.time.max()) - start + 1
        cuts = np.searchsorted(self.entity, np.arange(0, int(self.entity[-1]) + 1, _LARGEST // span))
        blocks = [slice(first, last) for first, last in pairwise([*cuts.tolist(), len(self.entity)]) if first < last]
        return [
            (b.start, (self.entity[b] - self.entity[b.start]).astype(np.int64) * span + (self.time[b] - start))
            for b in blocks
        ]
