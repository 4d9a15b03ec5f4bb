"""A number as pieces: one feature between each two neighbouring edges, which rises from 0 to 1 as the number passes.

Edges lie at quantiles, of all fit rows and of the frauds among them, so that there are pieces where the rows are, and
where the frauds are. Source: Gorishniy, Rubachev, Babenko, "On Embeddings for Numerical Features in Tabular Deep
Learning" (2022), section 3.2.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fraud_ray.model.histogram import Histogram

Float32 = npt.NDArray[np.float32]

# Edges nearer to each other, in proportion to their size, are one: float32 could not tell where between them a number
# lies.
NEAREST = 1e-6
SMALLEST_WIDTH = 1e-30


@dataclass(frozen=True)
class Spread:
    """The numbers of a column, of all rows and of the frauds."""

    everyone: Histogram
    frauds: Histogram

    @classmethod
    def of(cls, values: Float32, frauds: npt.NDArray[np.bool_]) -> Spread:
        """values: finite, (rows,); frauds: which of them are of frauds, (rows,)."""
        return cls(Histogram.of(values), Histogram.of(values[frauds]))

    @classmethod
    def merge(cls, spreads: Iterable[Spread]) -> Spread:
        parts = list(spreads)
        return cls(Histogram.merge(p.everyone for p in parts), Histogram.merge(p.frauds for p in parts))


@dataclass(frozen=True)
class PiecewiseEncoding:
    """One column's pieces: float32 edges, ascending, one more than pieces; a missing number counts as the median."""

    column: str
    edges: tuple[float, ...]
    median: float

    @classmethod
    def fit(cls, column: str, spread: Spread, bins: int) -> PiecewiseEncoding | None:
        """Edges that part all rows, and the frauds, into `bins` parts of equal size.

        None where there are no numbers, or all are one.
        """
        shares = np.linspace(0, 1, bins + 1)
        counted = [held for held in (spread.everyone, spread.frauds) if held.rows]
        edges: list[float] = []
        for edge in sorted({float(np.float32(held.quantile(share))) for held in counted for share in shares}):
            if not edges or edge - edges[-1] > max(NEAREST * max(abs(edge), abs(edges[-1])), SMALLEST_WIDTH):
                edges.append(edge)
        if len(edges) < 2:
            return None
        return cls(column, tuple(edges), float(np.float32(spread.everyone.quantile(0.5))))

    @property
    def names(self) -> tuple[str, ...]:
        """A name for each piece."""
        return tuple(f"{self.column}:piece{i}" for i in range(1, len(self.edges)))

    @property
    def lows(self) -> Float32:
        """Where each piece begins, (pieces,)."""
        return np.array(self.edges[:-1], np.float32)

    @property
    def inverse_widths(self) -> Float32:
        """One over each piece's width, (pieces,)."""
        return np.float32(1) / np.diff(np.array(self.edges, np.float32))

    def apply(self, values: Float32, missing: npt.NDArray[np.bool_], out: Float32) -> None:
        """Writes the pieces of values (rows,) into out (rows, pieces), in float32 throughout as the graph does."""
        filled = np.where(missing, np.float32(self.median), values)
        with np.errstate(over="ignore"):
            for piece, (low, inverse) in enumerate(zip(self.lows, self.inverse_widths, strict=True)):
                np.clip((filled - low) * inverse, 0, 1, out=out[:, piece])
