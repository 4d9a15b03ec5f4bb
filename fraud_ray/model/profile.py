"""What the rows that a model was fitted on looked like, column by column, in a bounded size: the profile.

Profiles of parts merge to the profile of the whole, in any order. They hold counts and no row.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from fraud_ray.model.encoder import FeatureColumn, count_categories, merged_counts, numbers, with_derived
from fraud_ray.model.histogram import Histogram

FORMAT = 1
# Values of a category that are counted one by one; where a column has more, the rarest are counted together, and a
# merge in another order may count other ones together.
MOST_CATEGORIES = 10_000


@dataclass(frozen=True)
class NumericProfile:
    """missing: rows with null, NaN or an infinite value; histogram: of all others."""

    missing: int
    histogram: Histogram
    kind: str = "numeric"

    @classmethod
    def of(cls, column: pa.ChunkedArray) -> NumericProfile:
        values = numbers(column)
        present = values[np.isfinite(values)]
        return cls(len(values) - len(present), Histogram.of(present))

    @classmethod
    def merge(cls, parts: Sequence[NumericProfile]) -> NumericProfile:
        return cls(sum(part.missing for part in parts), Histogram.merge(part.histogram for part in parts))

    @property
    def present(self) -> int:
        return self.histogram.rows

    def to_json(self) -> dict[str, Any]:
        mean, deviation = self.histogram.mean_and_deviation()  # for readers: they follow from the histogram
        return {
            "kind": self.kind,
            "missing": self.missing,
            "mean": mean,
            "deviation": deviation,
            "histogram": self.histogram.to_json(),
        }

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> NumericProfile:
        return cls(stored["missing"], Histogram.from_json(stored["histogram"]))


@dataclass(frozen=True)
class CategoryProfile:
    """counts: rows by value, the most frequent first; other: rows of values that are not counted one by one;
    missing: rows with null or the empty string. kind: categorical, or boolean, whose values are true and false.
    """

    missing: int
    counts: dict[str, int]
    other: int
    kind: str = "categorical"

    @classmethod
    def of(cls, column: pa.ChunkedArray, kind: str) -> CategoryProfile:
        if kind == "boolean":
            values = numbers(column)
            counted = Counter({"true": int((values == 1).sum()), "false": int((values == 0).sum())})
        else:
            counted = count_categories(column)
        return cls._bounded(len(column) - counted.total(), counted, 0, kind)

    @classmethod
    def merge(cls, parts: Sequence[CategoryProfile]) -> CategoryProfile:
        counts = merged_counts(part.counts for part in parts)
        missing, other = sum(part.missing for part in parts), sum(part.other for part in parts)
        return cls._bounded(missing, counts, other, parts[0].kind)

    @classmethod
    def _bounded(cls, missing: int, counts: Mapping[str, int], other: int, kind: str) -> CategoryProfile:
        kept = dict(sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:MOST_CATEGORIES])
        return cls(missing, kept, other + sum(counts.values()) - sum(kept.values()), kind)

    @property
    def present(self) -> int:
        return sum(self.counts.values()) + self.other

    def to_json(self) -> dict[str, Any]:
        return {"kind": self.kind, "missing": self.missing, "counts": self.counts, "other": self.other}

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> CategoryProfile:
        return cls(**stored)


ColumnProfile = NumericProfile | CategoryProfile


@dataclass(frozen=True)
class Profile:
    """Some rows: how many, how many of them have a label, how many are fraud, and each feature column.

    scores: a model's probabilities, where one scored rows: in a bundle, its own on the final holdout.
    """

    rows: int
    labelled: int
    frauds: int
    columns: dict[str, ColumnProfile]
    scores: Histogram | None = None

    @classmethod
    def of(
        cls,
        table: pa.Table,
        columns: Sequence[FeatureColumn],
        label: pa.ChunkedArray | None,
        scores: npt.NDArray[np.floating[Any]] | None = None,
    ) -> Profile:
        """The profile of a table's rows; label: 0, 1 or null, where rows have one; scores: float (rows,)."""
        profiles: dict[str, ColumnProfile] = {}
        table = with_derived(table, columns)
        for name, kind in ((column.name, column.kind) for column in profiled(columns)):
            numeric = kind == "numeric"
            profiles[name] = NumericProfile.of(table[name]) if numeric else CategoryProfile.of(table[name], kind)
        labelled = 0 if label is None else len(label) - label.null_count
        frauds = int(pc.sum(label).as_py()) if labelled else 0
        return cls(table.num_rows, labelled, frauds, profiles, None if scores is None else Histogram.of(scores))

    @classmethod
    def merge(cls, profiles: Iterable[Profile]) -> Profile:
        """The profile of all rows together; all profiles are of the same columns. Raises ValueError for none."""
        parts = list(profiles)
        if not parts:
            raise ValueError("there is no profile to merge")
        columns = {name: _merged([part.columns[name] for part in parts]) for name in parts[0].columns}
        scored = [part.scores for part in parts if part.scores is not None]
        return cls(
            sum(part.rows for part in parts),
            sum(part.labelled for part in parts),
            sum(part.frauds for part in parts),
            columns,
            Histogram.merge(scored) if scored else None,
        )

    def with_scores(self, scores: npt.NDArray[np.floating[Any]]) -> Profile:
        """The same profile with a model's probabilities, float (n,)."""
        return replace(self, scores=Histogram.of(scores))

    @property
    def fraud_rate(self) -> float | None:
        """Frauds over the rows that have a label; None where none has."""
        return self.frauds / self.labelled if self.labelled else None

    def to_json(self) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "rows": self.rows,
            "labelled": self.labelled,
            "frauds": self.frauds,
            "columns": {name: column.to_json() for name, column in self.columns.items()},
            "scores": None if self.scores is None else self.scores.to_json(),
        }

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> Profile:
        """Raises ValueError for another format than this version writes."""
        if stored["format"] != FORMAT:
            raise ValueError(f"this profile has format {stored['format']}, this version reads {FORMAT}")

        def column(held: Mapping[str, Any]) -> ColumnProfile:
            return (NumericProfile if held["kind"] == "numeric" else CategoryProfile).from_json(held)

        scores = stored["scores"]
        return cls(
            stored["rows"],
            stored["labelled"],
            stored["frauds"],
            {name: column(held) for name, held in stored["columns"].items()},
            None if scores is None else Histogram.from_json(scores),
        )


@dataclass(frozen=True)
class Baseline:
    """A profile that others are compared with; `described` in words.

    graph: of the model that it comes from, so that scores are compared too.
    """

    described: str
    profile: Profile
    graph: bytes | None = None


def profiled(columns: Iterable[FeatureColumn]) -> tuple[FeatureColumn, ...]:
    """The columns of a profile: of a timestamp the hour, and no weekday, which only says what days the rows are of."""
    return tuple(column.derived[0] for column in columns)


def _merged(parts: Sequence[ColumnProfile]) -> ColumnProfile:
    numeric = [part for part in parts if isinstance(part, NumericProfile)]
    categories = [part for part in parts if isinstance(part, CategoryProfile)]
    return NumericProfile.merge(numeric) if numeric else CategoryProfile.merge(categories)
