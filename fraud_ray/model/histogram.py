"""Counts of numbers in bins as fine as a fixed number of bins allows: mergeable in any order, without loss.

A float32's bits, read as an integer, are in the order of the numbers; dropping low bits gives bins whose width is
relative to the number. A histogram drops as few bits as keep it within MOST_BINS bins. How many that are depends on the
set of numbers alone, neither on their order nor on how they were split: so parts merge to exactly what the whole gives.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

MOST_BINS = 2_048
# Low bits that even the finest bins lack. A bin's middle is a round number, so that 0.5 falls into the same one after a
# computation that errs in the last digit (another processor's, another library's).
ROUNDED_BITS = 5
COARSE_BITS = 10  # further ones, without which 2^17 bins are left
_HALF = np.uint32(1 << (ROUNDED_BITS - 1))
_SIGN = np.uint32(1 << 31)

Float64 = npt.NDArray[np.float64]
Int64 = npt.NDArray[np.int64]
Keys = npt.NDArray[np.uint32]


@dataclass(frozen=True, eq=False)
class Histogram:
    """keys (bins,): occupied bins in the order of the numbers, without their lowest `shift` bits; counts (bins,)."""

    shift: int
    keys: Keys
    counts: Int64

    @classmethod
    def of(cls, values: npt.NDArray[np.floating[Any]]) -> Histogram:
        """values: finite, shape (rows,); counted as float32."""
        keys = _keys(values.astype(np.float32, copy=False))
        if len(keys) > MOST_BINS:  # Counting takes a third of the time of sorting: enough, where coarse bins are many.
            counts = np.bincount(keys >> np.uint32(COARSE_BITS))
            occupied = np.flatnonzero(counts)
            if len(occupied) > MOST_BINS:
                return _bounded(COARSE_BITS, occupied.astype(np.uint32), counts[occupied])
        return _bounded(0, np.sort(keys), np.ones(len(keys), np.int64))

    @classmethod
    def merge(cls, histograms: Iterable[Histogram]) -> Histogram:
        """The histogram of all numbers together."""
        parts = list(histograms)
        shift = max((part.shift for part in parts), default=0)
        keys = np.concatenate([np.empty(0, np.uint32), *(part.keys_at(shift) for part in parts)])
        order = np.argsort(keys, kind="stable")
        counts = np.concatenate([np.empty(0, np.int64), *(part.counts for part in parts)])
        return _bounded(shift, keys[order], counts[order])

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, Histogram)
            and self.shift == other.shift
            and np.array_equal(self.keys, other.keys)
            and np.array_equal(self.counts, other.counts)
        )

    @property
    def rows(self) -> int:
        return int(self.counts.sum())

    @property
    def lows(self) -> Float64:
        """The smallest number of each bin, rounded as bins round."""
        return _numbers(self.keys << np.uint32(self.shift))

    @property
    def highs(self) -> Float64:
        """The largest number of each bin; the smallest one where a bin holds a single number."""
        return _numbers((self.keys << np.uint32(self.shift)) + np.uint32((1 << self.shift) - 1))

    def mean_and_deviation(self) -> tuple[float, float]:
        """Mean and standard deviation, as if each number lay in the middle of its bin; 0 and 0 where there are none."""
        if not self.rows:
            return 0.0, 0.0
        middles = self.lows / 2 + self.highs / 2
        mean = float(np.average(middles, weights=self.counts))
        return mean, float(np.sqrt(np.average(np.square(middles - mean), weights=self.counts)))

    def keys_at(self, shift: int) -> Keys:
        """The keys with more bits dropped; neighbours may be equal then."""
        return self.keys >> np.uint32(shift - self.shift)

    def quantile(self, share: float) -> float:
        """The middle of the bin in which this share of the rows is reached. Raises ValueError when there are none."""
        if not self.rows:
            raise ValueError("no rows have no quantiles")
        position = min(int(np.searchsorted(np.cumsum(self.counts), share * self.rows)), len(self.keys) - 1)
        return float((self.lows[position] + self.highs[position]) / 2)

    def share_below(self, limits: Float64) -> Float64:
        """The share of the rows below each limit, with a bin's rows taken as evenly spread over it."""
        before = np.concatenate([[0], np.cumsum(self.counts)])
        lows, highs = self.lows, self.highs
        position = np.searchsorted(lows, limits, side="left")  # bins that begin below the limit
        last = np.maximum(position - 1, 0)
        widths = (highs - lows)[last]
        within = np.where(widths > 0, np.clip((limits - lows[last]) / np.where(widths > 0, widths, 1), 0, 1), 1.0)
        below = np.where(position > 0, before[last] + within * self.counts[last], 0.0)
        return below / max(self.rows, 1)

    def to_json(self) -> dict[str, Any]:
        steps = np.diff(self.keys, prepend=np.uint32(0))  # smaller numbers than the keys themselves
        return {"shift": self.shift, "steps": steps.tolist(), "counts": self.counts.tolist()}

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> Histogram:
        keys = np.cumsum(np.array(stored["steps"], np.uint32), dtype=np.uint32)
        return cls(stored["shift"], keys, np.array(stored["counts"], np.int64))


def aligned(one: Histogram, other: Histogram) -> tuple[Int64, Int64]:
    """The counts of both in the same bins, those that either has rows in, in the order of the numbers."""
    shift = max(one.shift, other.shift)
    keys = [side.keys_at(shift) for side in (one, other)]
    bins = np.union1d(*keys)
    counts = np.zeros((2, len(bins)), np.int64)
    for held, side, found in zip(counts, (one, other), keys, strict=True):
        np.add.at(held, np.searchsorted(bins, found), side.counts)
    return counts[0], counts[1]


def _keys(values: npt.NDArray[np.float32]) -> Keys:
    """The numbers in bins of ROUNDED_BITS; -0 is 0."""
    bits = values.view(np.uint32)
    ordered = np.where(bits & _SIGN, -bits, bits | _SIGN)  # unsigned: below _SIGN by the magnitude
    return (ordered + _HALF) >> np.uint32(ROUNDED_BITS)


def _numbers(keys: Keys) -> Float64:
    """The middle of each bin of ROUNDED_BITS."""
    ordered = keys << np.uint32(ROUNDED_BITS)
    bits = np.where(ordered & _SIGN, ordered & ~_SIGN, -ordered)
    values = bits.view(np.float32).astype(np.float64)
    limit = float(np.finfo(np.float32).max)
    return np.where(np.isnan(values), limit, np.clip(values, -limit, limit))


def _bounded(shift: int, keys: Keys, counts: Int64) -> Histogram:
    """keys: sorted, some perhaps equal. Drops as few further bits as leave at most MOST_BINS bins."""
    if not len(keys):
        return Histogram(shift, keys, counts)
    differing = keys[1:] ^ keys[:-1]  # neighbours stay apart while their highest differing bit is kept
    dropped = bisect_left(range(32), True, key=lambda bits: bool((differing >> np.uint32(bits) > 0).sum() < MOST_BINS))
    keys = keys >> np.uint32(dropped)
    starts = np.flatnonzero(np.diff(keys, prepend=keys[0] + 1))
    return Histogram(shift + dropped, keys[starts], np.add.reduceat(counts, starts))
