"""Columns to what a network reads: float32 features and category codes. Fitted by merging; stored as JSON.

A numeric column x enters in one or more of three ways. Two are standardised on the fit rows and limited to +/- 50:
plain, and as sign(x) * log(1 + |x|); the third is in pieces (piecewise.py). A missing value (null, NaN or infinite)
becomes the mean, that is 0, and in pieces the median; a column that had one in the fit rows gets an indicator feature.
A ratio of two columns is a number like any other, missing where one of them is or where it divides by 0.
A boolean column is a number, 0 or 1, encoded plain.
A categorical value becomes a code: 0 never seen in the fit rows, 1 rare, 2 missing (null or the empty string), and
3 upwards for the categories, the most frequent first.
A timestamp enters as two such values, its hour of day and its weekday in UTC, which are columns beside it (`derived`).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import TypeAdapter

from fraud_ray.model.piecewise import PiecewiseEncoding, Spread

FORMAT = 3
READABLE = (1, 2, 3)  # the first had neither ratios nor pieces, the second no timestamps
STANDARDISED = ("standard", "signed_log")
LIMIT = 50.0
UNSEEN, RARE, MISSING, FIRST_CATEGORY = 0, 1, 2, 3

Float32 = npt.NDArray[np.float32]
Int64 = npt.NDArray[np.int64]

# Times are microseconds since 1970 in UTC.
HOUR, DAY = 3_600_000_000, 86_400_000_000
NO_TIME = np.iinfo(np.int64).min  # in place of a missing one, as in numpy
EPOCH_WEEKDAY = 3  # 1970 began on a Thursday
WEEKDAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
CALENDAR = {"hour": tuple(f"{hour:02}" for hour in range(24)), "weekday": WEEKDAYS}
"""What is derived of a timestamp, in order, and the values of each."""


@dataclass(frozen=True)
class FeatureColumn:
    """A column that the model reads: `kind` is numeric, boolean, categorical or timestamp; `encodings` are of numbers.

    true: of a boolean column that comes as text, the value that means true. unit: of times that come as numbers, what
    they count since 1970.
    """

    name: str
    kind: str
    encodings: tuple[str, ...] = ()
    true: str | None = None
    unit: str | None = None

    @property
    def is_number(self) -> bool:
        return self.kind in {"numeric", "boolean"}

    @property
    def derived(self) -> tuple[FeatureColumn, ...]:
        """The columns that it is encoded as: hour and weekday of a timestamp, else itself."""
        if self.kind != "timestamp":
            return (self,)
        return tuple(FeatureColumn(f"{self.name}:{part}", "categorical") for part in CALENDAR)


@dataclass(frozen=True)
class Ratio:
    """A number that is one number or boolean of the columns over another; `encodings` as of a numeric column."""

    name: str
    numerator: str
    denominator: str
    encodings: tuple[str, ...]


@dataclass(frozen=True)
class Moments:
    """Blocks of (rows, mean, sum of squared deviations from it); merging joins the blocks, in any order."""

    blocks: tuple[tuple[int, float, float], ...] = ()

    @classmethod
    def of(cls, values: npt.NDArray[np.floating[Any]]) -> Moments:
        if not len(values):
            return cls()
        mean = float(values.mean(dtype=np.float64))
        return cls(((len(values), mean, float(np.square(values - mean, dtype=np.float64).sum())),))

    @classmethod
    def merge(cls, moments: Iterable[Moments]) -> Moments:
        return cls(tuple(block for part in moments for block in part.blocks))

    def mean_and_deviation(self) -> tuple[float, float]:
        """Mean and standard deviation over all blocks (1 where there is no spread), the same for any order.

        `math.fsum` is correctly rounded, hence independent of the order of its terms.
        Source: Chan, Golub, LeVeque, "Updating Formulae and a Pairwise Algorithm for Computing Sample Variances".
        """
        count = sum(rows for rows, _, _ in self.blocks)
        if not count:
            return 0.0, 1.0
        mean = math.fsum(rows * block for rows, block, _ in self.blocks) / count
        squares = math.fsum(
            term for rows, block, within in self.blocks for term in (within, rows * (block - mean) ** 2)
        )
        deviation = math.sqrt(squares / count)
        return mean, deviation if deviation > 1e-12 * max(abs(mean), 1e-300) else 1.0


@dataclass(frozen=True)
class Statistics:
    """What fitting needs of some rows; `merge` of any grouping, in any order, fits the same encoder."""

    rows: int
    moments: dict[str, dict[str, Moments]]
    missing: dict[str, int]
    spreads: dict[str, Spread]
    categories: dict[str, Counter[str]]

    @classmethod
    def of(
        cls,
        table: pa.Table,
        columns: Sequence[FeatureColumn],
        ratios: Sequence[Ratio] = (),
        label: npt.NDArray[np.integer[Any]] | None = None,
    ) -> Statistics:
        """Statistics of the rows of one table, one pass over its columns.

        label: 0 or 1, (rows,); where it is given, pieces have edges at quantiles of the frauds too.
        """
        frauds = np.zeros(table.num_rows, bool) if label is None else label == 1
        values = _numbers(table, columns, ratios)
        table, encoded = with_derived(table, columns), derived(columns)
        categories = {c.name: count_categories(table[c.name]) for c in encoded if c.kind == "categorical"}
        found = cls(table.num_rows, {}, {}, {}, categories)
        for column in _numeric(columns, ratios):
            finite = np.isfinite(values[column.name])
            present = values[column.name][finite]
            found.missing[column.name] = len(finite) - len(present)
            ways = [way for way in STANDARDISED if way in column.encodings]
            found.moments[column.name] = {way: Moments.of(_transformed(present, way)) for way in ways}
            if "piecewise_linear" in column.encodings:
                found.spreads[column.name] = Spread.of(present, frauds[finite])
        return found

    @classmethod
    def merge(cls, statistics: Iterable[Statistics]) -> Statistics:
        """The statistics of all rows together; all are of the same columns. Raises ValueError for none."""
        parts = list(statistics)
        if not parts:
            raise ValueError("there are no statistics to merge")
        first = parts[0]
        return cls(
            sum(part.rows for part in parts),
            {
                name: {way: Moments.merge(part.moments[name][way] for part in parts) for way in ways}
                for name, ways in first.moments.items()
            },
            {name: sum(part.missing[name] for part in parts) for name in first.missing},
            {name: Spread.merge(part.spreads[name] for part in parts) for name in first.spreads},
            {name: merged_counts(part.categories[name] for part in parts) for name in first.categories},
        )


@dataclass(frozen=True)
class NumericEncoding:
    """One column's way into the features: `way` is standard or signed_log."""

    column: str
    way: str
    mean: float
    deviation: float


@dataclass(frozen=True)
class CategoryCodes:
    """One column's codes: `names` have codes of their own, from FIRST_CATEGORY; `rare` ones share RARE."""

    column: str
    names: tuple[str, ...]
    rare: tuple[str, ...]

    @property
    def size(self) -> int:
        return FIRST_CATEGORY + len(self.names)

    def table(self) -> dict[str, int]:
        """Code by value, for all values but unseen ones."""
        named = {name: FIRST_CATEGORY + i for i, name in enumerate(self.names)}
        return {**named, **dict.fromkeys(self.rare, RARE), "": MISSING}


@dataclass(frozen=True)
class Encoder:
    """A fitted encoding of `columns`, which it reads, and of their `ratios`.

    Features come in the order numeric, piecewise, then indicators; codes in the order of `categorical`.
    """

    columns: tuple[FeatureColumn, ...]
    numeric: tuple[NumericEncoding, ...]
    indicators: tuple[str, ...]
    categorical: tuple[CategoryCodes, ...]
    ratios: tuple[Ratio, ...] = ()
    piecewise: tuple[PiecewiseEncoding, ...] = ()

    @classmethod
    def fit(
        cls,
        columns: Sequence[FeatureColumn],
        statistics: Statistics,
        min_category_rows: int = 20,
        max_categories: int = 1_000,
        ratios: Sequence[Ratio] = (),
        bins: int = 8,
    ) -> Encoder:
        """An encoder of these columns and ratios from the statistics of the fit rows.

        bins: parts that the edges of pieces divide all rows into, and the frauds likewise.
        Raises ValueError when there are no rows.
        """
        if not statistics.rows:
            raise ValueError("an encoder cannot be fitted on no rows")
        encoded = _numeric(columns, ratios)
        numeric = [
            NumericEncoding(c.name, way, *statistics.moments[c.name][way].mean_and_deviation())
            for way in STANDARDISED
            for c in encoded
            if way in c.encodings
        ]
        pieces = (PiecewiseEncoding.fit(name, spread, bins) for name, spread in statistics.spreads.items())
        piecewise = tuple(piece for piece in pieces if piece is not None)
        indicators = tuple(name for name, rows in statistics.missing.items() if rows)
        categorical = []
        for column, counts in statistics.categories.items():
            ranked = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
            names = [name for name, rows in ranked if rows >= min_category_rows][:max_categories]
            rare = sorted(name for name, _ in ranked[len(names) :])
            categorical.append(CategoryCodes(column, tuple(names), tuple(rare)))
        return cls(tuple(columns), tuple(numeric), indicators, tuple(categorical), tuple(ratios), piecewise)

    @property
    def feature_names(self) -> tuple[str, ...]:
        """A name for each column of the feature matrix."""
        suffix = {"standard": "", "signed_log": ":log"}
        encoded = tuple(f"{n.column}{suffix[n.way]}" for n in self.numeric)
        pieces = tuple(name for part in self.piecewise for name in part.names)
        return encoded + pieces + tuple(f"{name}:missing" for name in self.indicators)

    @property
    def feature_columns(self) -> tuple[str, ...]:
        """The column or ratio that each column of the feature matrix comes from."""
        pieces = tuple(part.column for part in self.piecewise for _ in part.names)
        return (*(n.column for n in self.numeric), *pieces, *self.indicators)

    @property
    def code_sizes(self) -> tuple[int, ...]:
        """The number of codes of each categorical column."""
        return tuple(c.size for c in self.categorical)

    def apply(self, table: pa.Table) -> tuple[Float32, npt.NDArray[np.int32]]:
        """Features float32 (rows, F) and codes int32 (rows, C) of a table that holds the encoder's columns."""
        features = np.empty((table.num_rows, len(self.feature_names)), np.float32)
        raw = _numbers(table, self.columns, self.ratios)
        finite = {name: np.isfinite(values) for name, values in raw.items()}
        for i, part in enumerate(self.numeric):
            centred = _transformed(raw[part.column], part.way) - np.float32(part.mean)
            np.clip(centred * np.float32(1 / part.deviation), -LIMIT, LIMIT, out=features[:, i])
            features[~finite[part.column], i] = 0
        start = len(self.numeric)
        for pieces in self.piecewise:
            stop = start + len(pieces.names)
            pieces.apply(raw[pieces.column], ~finite[pieces.column], features[:, start:stop])
            start = stop
        for i, name in enumerate(self.indicators, start=start):
            features[:, i] = ~finite[name]
        table = with_derived(table, self.columns)
        codes = np.empty((table.num_rows, len(self.categorical)), np.int32)
        for i, codebook in enumerate(self.categorical):
            values, positions = categories(table[codebook.column])
            code = codebook.table()
            codes[:, i] = np.array([code.get(value, UNSEEN) for value in values], np.int32)[positions]
        return features, codes

    def typical_rows(self) -> pa.Table:
        """Two made-up rows of the encoder's columns: means and frequent categories, then everything missing.

        An example for those who will send rows, which shows nobody's transaction.
        """
        means = {part.column: part.mean for part in self.numeric if part.way == "standard"}
        books = {book.column: book for book in self.categorical}
        columns: dict[str, pa.Array] = {}
        for column in self.columns:
            if column.kind == "timestamp":
                hour, weekday = (
                    values.index(next(iter(books[part.name].names), values[0]))
                    for part, values in zip(column.derived, CALENDAR.values(), strict=True)
                )
                time = (weekday - EPOCH_WEEKDAY) % len(WEEKDAYS) * DAY + hour * HOUR
                columns[column.name] = pa.array([time, None], pa.timestamp("us"))
            elif column.kind == "categorical":
                columns[column.name] = pa.array([next(iter(books[column.name].names), ""), None], pa.string())
            elif column.kind == "boolean":
                columns[column.name] = pa.array([column.true or means[column.name] >= 0.5, None])
            else:
                columns[column.name] = pa.array([float(f"{means.get(column.name, 0.0):.3g}"), None], pa.float64())
        return pa.table(columns)

    def to_json(self) -> dict[str, Any]:
        return {"format": FORMAT, **asdict(self)}

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> Encoder:
        """Raises ValueError for a format that this version does not read."""
        if stored["format"] not in READABLE:
            readable = " and ".join(map(str, READABLE))
            raise ValueError(f"this encoder has format {stored['format']}, this version reads {readable}")
        return TypeAdapter(cls).validate_python(stored)


def numbers(column: pa.ChunkedArray, true: str | None = None) -> Float32:
    """A numeric or boolean column as float32 (rows,), with NaN for null. true: the text that means 1, where text is."""
    if true is not None and pa.types.is_string(column.type):
        column = pc.equal(column, true)
    if pa.types.is_boolean(column.type):
        column = pc.cast(column, pa.int8())
    if column.null_count:
        column = pc.fill_null(pc.cast(column, pa.float64()), math.nan)
    return column.to_numpy().astype(np.float32, copy=False)


def times(column: pa.ChunkedArray) -> Int64:
    """A column of timestamps as microseconds since 1970 in UTC, (rows,), with NO_TIME for null.

    Raises ArrowInvalid for a time beyond those that microseconds hold.
    """
    options = pc.CastOptions(pa.timestamp("us"), allow_time_truncate=True)
    microseconds = pc.cast(pc.cast(column, options=options), pa.int64())
    return pc.fill_null(microseconds, NO_TIME).to_numpy()


def derived(columns: Iterable[FeatureColumn]) -> tuple[FeatureColumn, ...]:
    """What columns are encoded as, in their order."""
    return tuple(part for column in columns for part in column.derived)


def with_derived(table: pa.Table, columns: Sequence[FeatureColumn]) -> pa.Table:
    """The table, with what is derived of its timestamps beside them where it is not there yet."""
    for column in (column for column in columns if column.kind == "timestamp"):
        parts = [part.name for part in column.derived]
        if set(parts) <= set(table.column_names):
            continue
        at = times(table[column.name])
        missing, found = at == NO_TIME, (at % DAY // HOUR, (at // DAY + EPOCH_WEEKDAY) % len(WEEKDAYS))
        for name, positions, values in zip(parts, found, CALENDAR.values(), strict=True):
            indices = pa.array(positions.astype(np.int32), mask=missing)
            table = table.append_column(name, pa.DictionaryArray.from_arrays(indices, pa.array(values)))
    return table


def strings(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """A categorical column as strings, whatever its type."""
    if pa.types.is_dictionary(column.type):
        column = pc.cast(column, column.type.value_type)
    return column if pa.types.is_string(column.type) else pc.cast(column, pa.string())


def categories(column: pa.ChunkedArray) -> tuple[list[str], npt.NDArray[np.int32]]:
    """The values of a categorical column, then "" for missing, and the position (rows,) of each row's."""
    encoded = column if pa.types.is_dictionary(column.type) else strings(column).dictionary_encode()
    joined = encoded.combine_chunks()
    if isinstance(joined, pa.ChunkedArray):
        joined = joined.combine_chunks()
    values = [value or "" for value in strings(joined.dictionary).to_pylist()]
    return [*values, ""], pc.fill_null(joined.indices, len(values)).to_numpy()


def count_categories(column: pa.ChunkedArray) -> Counter[str]:
    """Rows by value of a categorical column, without those that are missing."""
    values, positions = categories(column)
    counted: Counter[str] = Counter()
    for value, rows in zip(values, np.bincount(positions, minlength=len(values)).tolist(), strict=True):
        if value and rows:
            counted[value] += rows
    return counted


def merged_counts(parts: Iterable[Mapping[str, int]]) -> Counter[str]:
    """The sums of rows by value."""
    counted: Counter[str] = Counter()
    for part in parts:
        counted.update(part)
    return counted


def _numeric(columns: Sequence[FeatureColumn], ratios: Sequence[Ratio]) -> tuple[FeatureColumn | Ratio, ...]:
    return (*(column for column in columns if column.is_number), *ratios)


def _numbers(table: pa.Table, columns: Sequence[FeatureColumn], ratios: Sequence[Ratio]) -> dict[str, Float32]:
    """Numbers, booleans and ratios by name, each float32 (rows,); one that is not finite is missing."""
    raw = {c.name: numbers(table[c.name], c.true) for c in columns if c.is_number}
    for ratio in ratios:
        below = raw[ratio.denominator]
        with np.errstate(all="ignore"):
            # Over 0 where the denominator is missing, so that nothing finite comes out.
            raw[ratio.name] = np.divide(
                raw[ratio.numerator], np.where(np.isfinite(below), below, np.float32(0)), dtype=np.float32
            )
    return raw


def _transformed(values: Float32, way: str) -> Float32:
    # In float32 throughout and with log(1 + x), as the graph computes it.
    if way == "signed_log":
        return np.sign(values) * np.log(np.float32(1) + np.abs(values))
    return values
