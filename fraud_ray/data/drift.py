"""Today's data against a reference profile: how far apart each column is, and whether that is too far.

The verdict is by effect size alone. p-values stand beside it: with millions of rows they call every difference
significant, and so decide nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import stats

from fraud_ray.errors import DriftError
from fraud_ray.model.histogram import Histogram, aligned
from fraud_ray.model.profile import CategoryProfile, ColumnProfile, NumericProfile, Profile
from fraud_ray.settings import DriftSettings
from fraud_ray.values import Value

SCORE, FRAUD_RATE = "model score", "fraud rate"

NUMBER_BINS = 10  # of the stability index: the reference's deciles
# Of the stability index and chi-square: as many of the most frequent values, the others pooled. Sampling noise alone
# gives thousands of rare values a large index.
CATEGORY_BINS = 20
SMALLEST_SHARE = 1e-4  # in place of an empty bin's 0, of which the index would be infinite
SHOWN_BINS, SHOWN_CATEGORIES, SHOWN_NEW = 40, 12, 5
SHOWN_SHARE = 0.99  # of the rows; a picture leaves out the tails
LOG_FROM_RATIO = 100.0  # a picture's axis is logarithmic where its ends are this far apart

Int64 = npt.NDArray[np.int64]
Float64 = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Measure:
    """One effect size, and the bound that the settings give it. unchanged: its value where nothing differs."""

    name: str
    value: float
    bound: float
    unchanged: float = 0.0

    @property
    def is_exceeded(self) -> bool:
        return self.value > self.bound

    @property
    def severity(self) -> float:
        """In units of the bound: 0 for no difference, above 1 when the bound is exceeded."""
        return (self.value - self.unchanged) / (self.bound - self.unchanged)


@dataclass(frozen=True)
class Bins:
    """What a picture shows: shares of the rows, of both sides in the same bins.

    edges: of numbers, one more than bins; labels: of categories, one a bin; log: whether the edges are evenly spaced
    on a logarithmic axis.
    """

    reference: tuple[float, ...]
    today: tuple[float, ...]
    edges: tuple[float, ...] = ()
    labels: tuple[str, ...] = ()
    log: bool = False


@dataclass(frozen=True)
class ColumnDrift:
    """One column, the model's score, or the fraud rate.

    measures: its effect sizes. test: KS or chi-square, with its statistic's p_value; None where a side has no value.
    missing: shares of missing values, then and now. new: the most frequent new categories, with their shares of today.
    means: then and now, of numbers.
    """

    name: str
    kind: str
    measures: tuple[Measure, ...]
    test: str | None = None
    p_value: float | None = None
    missing: tuple[float, float] | None = None
    means: tuple[float, float] | None = None
    new: dict[str, float] = field(default_factory=dict)
    bins: Bins | None = None

    @property
    def exceeded(self) -> tuple[Measure, ...]:
        return tuple(measure for measure in self.measures if measure.is_exceeded)

    @property
    def severity(self) -> float:
        """That of the worst measure; above 1 the column has drifted."""
        return max(measure.severity for measure in self.measures)

    @property
    def has_drifted(self) -> bool:
        return bool(self.exceeded)


@dataclass(frozen=True)
class Drift(Value):
    """All columns, the worst first. reference: what today's rows are compared with, in words.

    rows: of the reference and of today. not_compared: columns of one side that the other lacks, and why.
    """

    reference: str
    rows: tuple[int, int]
    columns: tuple[ColumnDrift, ...]
    not_compared: dict[str, str] = field(default_factory=dict)

    @property
    def drifted(self) -> tuple[ColumnDrift, ...]:
        return tuple(column for column in self.columns if column.has_drifted)

    @property
    def verdict(self) -> str:
        """One line: what has drifted and by how much, or that nothing has."""
        against = f"{self.rows[1]:,} rows against {self.reference}"
        if not self.drifted:
            return f"{against}: no drift"
        faults = (
            f"{column.name} ({', '.join(f'{m.name} {m.value:.3g} > {m.bound:g}' for m in column.exceeded)})"
            for column in self.drifted
        )
        return f"{against}: drift in {', '.join(faults)}"

    def heed(self, action: str, picture: str) -> list[str]:
        """Warnings for who trains on this data; raises DriftError where `drift.action`, the action, is `fail`."""
        if self.drifted and action == "fail":
            raise DriftError(
                f"{self.verdict}. Look at {picture}; to train on this data all the same, run again with "
                "--set drift.action=warn"
            )
        return [f"warning: {self.verdict}"] if self.drifted else []

    def to_json(self) -> dict[str, Any]:
        return {**super().to_json(), "drifted": [column.name for column in self.drifted], "verdict": self.verdict}


def compare(
    reference: Profile,
    today: Profile,
    settings: DriftSettings,
    described: str,
    not_compared: Mapping[str, str] | None = None,
) -> Drift:
    """How far today is from the reference, in the columns that both profiles hold.

    described: the reference in words. not_compared: columns that could not be profiled, and why.
    """
    columns = [
        _compare_column(name, then, today.columns[name], settings)
        for name, then in reference.columns.items()
        if name in today.columns
    ]
    if reference.scores is not None and today.scores is not None and today.scores.rows:
        columns.append(_of_numbers(SCORE, "score", reference.scores, today.scores, settings))
    rates = reference.fraud_rate, today.fraud_rate
    if rates[0] is not None and rates[1] is not None:
        columns.append(_of_rates(rates[0], rates[1], reference, today, settings))
    ranked = sorted(columns, key=lambda column: (-column.severity, column.name))
    return Drift(described, (reference.rows, today.rows), tuple(ranked), dict(not_compared or {}))


def ks_distance(then: Int64, now: Int64) -> tuple[float, float]:
    """The Kolmogorov-Smirnov statistic of counts (bins,) in the same ordered bins, and its p-value.

    The statistic is over the bins' ends, so at most the true one; and so the p-value is at least the true one.
    """
    distance = float(np.abs(np.cumsum(then) / then.sum() - np.cumsum(now) / now.sum()).max())
    effective = then.sum() * (now.sum() / (then.sum() + now.sum()))
    return distance, float(stats.kstwo.sf(distance, max(round(effective), 1)))


def stability_index(then: Int64, now: Int64) -> float:
    """The population stability index of counts (bins,): sum of (q - p) * ln(q / p) over the bins' shares."""
    p, q = (np.maximum(counts / counts.sum(), SMALLEST_SHARE) for counts in (then, now))
    return float(((q - p) * np.log(q / p)).sum())


def chi_square_p(then: Int64, now: Int64) -> float:
    """The p-value of the chi-square test that both counts (bins,) are of one distribution."""
    table = np.stack([then, now])
    table = table[:, table.sum(axis=0) > 0]
    return float(stats.chi2_contingency(table, correction=False).pvalue) if table.shape[1] > 1 else 1.0


def _compare_column(name: str, then: ColumnProfile, now: ColumnProfile, settings: DriftSettings) -> ColumnDrift:
    missing = _missing_share(then), _missing_share(now)
    change = Measure("missing change", abs(missing[1] - missing[0]), settings.max_missing_change)
    if not then.present or not now.present:
        return ColumnDrift(name, then.kind, (change,), missing=missing)
    if isinstance(then, NumericProfile) and isinstance(now, NumericProfile):
        found = _of_numbers(name, then.kind, then.histogram, now.histogram, settings)
        means = then.histogram.mean_and_deviation()[0], now.histogram.mean_and_deviation()[0]
        return replace(found, measures=(*found.measures, change), missing=missing, means=means)
    assert isinstance(then, CategoryProfile) and isinstance(now, CategoryProfile), "of the same kind"
    found = _of_categories(name, then, now, settings)
    return replace(found, measures=(*found.measures, change), missing=missing)


def _of_numbers(name: str, kind: str, then: Histogram, now: Histogram, settings: DriftSettings) -> ColumnDrift:
    counts = aligned(then, now)
    distance, p_value = ks_distance(*counts)
    index = stability_index(*_in_deciles(*counts))
    measures = Measure("KS", distance, settings.max_ks), Measure("PSI", index, settings.max_psi)
    return ColumnDrift(name, kind, measures, "KS", p_value, bins=_bins_of_numbers(then, now))


def _of_categories(name: str, then: CategoryProfile, now: CategoryProfile, settings: DriftSettings) -> ColumnDrift:
    counts = _pooled(then, now, list(then.counts)[:CATEGORY_BINS])
    unknown = {value: rows for value, rows in now.counts.items() if value not in then.counts}
    # Where the reference does not name all of its values, some of the unknown ones may be among the others.
    new = max(0.0, (sum(unknown.values()) + now.other) / now.present - then.other / then.present)
    measures = (
        Measure("PSI", stability_index(*counts), settings.max_psi),
        *((Measure("new categories", new, settings.max_new_category_share),) if then.kind == "categorical" else ()),
    )
    return ColumnDrift(
        name,
        then.kind,
        measures,
        "chi-square",
        chi_square_p(*counts),
        new={value: rows / now.present for value, rows in list(unknown.items())[:SHOWN_NEW]} if new else {},
        bins=_bins_of_categories(then, now),
    )


def _of_rates(then: float, now: float, reference: Profile, today: Profile, settings: DriftSettings) -> ColumnDrift:
    smaller, larger = sorted((then, now))
    # A side without frauds counts as having one, so that there is a ratio.
    least = 1 / (reference.labelled if smaller == then else today.labelled)
    ratio = max(larger, least) / max(smaller, least)
    counts = [np.array([p.labelled - p.frauds, p.frauds], np.int64) for p in (reference, today)]
    return ColumnDrift(
        FRAUD_RATE,
        "label",
        (Measure("ratio", ratio, settings.max_label_rate_ratio, unchanged=1.0),),
        "chi-square",
        chi_square_p(*counts),
        means=(then, now),
    )


def _missing_share(column: ColumnProfile) -> float:
    return column.missing / max(column.missing + column.present, 1)


def _in_deciles(then: Int64, now: Int64) -> tuple[Int64, Int64]:
    """Counts in bins that hold about a tenth of the reference each; fewer where a single number holds more."""
    reached = np.cumsum(then) / then.sum()
    inner = np.searchsorted(reached, np.arange(1, NUMBER_BINS) / NUMBER_BINS - 1e-12) + 1  # a decile's first bin
    starts = np.unique(np.concatenate([[0], inner[inner < len(then)]]))
    return np.add.reduceat(then, starts), np.add.reduceat(now, starts)


def _pooled(then: CategoryProfile, now: CategoryProfile, values: Sequence[str]) -> tuple[Int64, Int64]:
    """Counts of these values, and of all others together."""

    def of(side: CategoryProfile) -> Int64:
        named = [side.counts.get(value, 0) for value in values]
        return np.array([*named, side.present - sum(named)], np.int64)

    return of(then), of(now)


def _bins_of_numbers(then: Histogram, now: Histogram) -> Bins:
    tail = (1 - SHOWN_SHARE) / 2
    low = min(side.quantile(tail) for side in (then, now))
    high = max(side.quantile(1 - tail) for side in (then, now))
    log = low > 0 and high / low > LOG_FROM_RATIO
    if low == high:
        low, high = low - 0.5, high + 0.5
    edges = (np.geomspace if log else np.linspace)(low, high, SHOWN_BINS + 1)
    upto = edges.copy()
    upto[-1] = np.nextafter(high, np.inf)  # the last bin holds its upper end
    shares = [np.diff(side.share_below(upto)) for side in (then, now)]
    return Bins(tuple(shares[0].tolist()), tuple(shares[1].tolist()), edges=tuple(edges.tolist()), log=log)


def _bins_of_categories(then: CategoryProfile, now: CategoryProfile) -> Bins:
    """The values whose share is largest on either side, and all others."""
    shares = {
        value: (then.counts.get(value, 0) / then.present, now.counts.get(value, 0) / now.present)
        for value in {**then.counts, **now.counts}
    }
    shown = sorted(shares, key=lambda value: (-max(shares[value]), value))[:SHOWN_CATEGORIES]
    labels, pairs = list(shown), [shares[value] for value in shown]
    rest = 1 - sum(pair[0] for pair in pairs), 1 - sum(pair[1] for pair in pairs)
    if len(shares) > len(shown) or then.other or now.other:
        labels, pairs = [*labels, "others"], [*pairs, rest]
    return Bins(tuple(p for p, _ in pairs), tuple(q for _, q in pairs), labels=tuple(labels))
