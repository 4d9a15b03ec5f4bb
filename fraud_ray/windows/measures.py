"""What a window column holds, of the transactions in each window, or of the time alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from fraud_ray.settings import WindowsSettings
from fraud_ray.windows.definition import DAY, Measure
from fraud_ray.windows.timeline import LOW_BITS, Float64, Int64, Mask, Sorted, Timeline, Transactions

# A variance below this share of the mean square is rounding: there is no spread.
_NO_SPREAD = 1e-12
_HOUR = DAY // 24
_SATURDAY, _EPOCH = 5, 3  # days of the week from Monday, 0; 1970 began on a Thursday


def compute(
    rows: Transactions, asked: Mask, measures: Sequence[Measure], decimals: int
) -> dict[str, npt.NDArray[np.float32]]:
    """The measures of the rows asked for, by name, each of shape (asked,), in their order; NaN where there is none.

    In float32, as a model reads them, so that files hold what it is fitted on. The other rows are history alone. Raises
    DataError for values too large to be summed exactly.
    """
    found: dict[str, npt.NDArray[np.float32]] = {}
    for wait in dict.fromkeys(measure.wait for measure in measures):
        alike = [measure for measure in measures if measure.wait == wait]
        placed = rows.at_label_times(asked, wait) if wait else (rows, asked)
        timeline = Sorted(*placed, decimals, max(measure.delay + measure.length for measure in alike))
        found |= {one.name: timeline.in_given_order(measured(timeline, one)) for one in alike}
    return {measure.name: found[measure.name] for measure in measures}


def measured(timeline: Timeline, measure: Measure) -> Float64:
    """A measure of the rows asked for, shape (asked,), in their order in the timeline; NaN where there is none."""
    return _KINDS[measure.compute](timeline, measure)


def calendar(
    kinds: Mapping[str, str], times: pa.ChunkedArray, windows: WindowsSettings
) -> dict[str, npt.NDArray[np.generic]]:
    """Columns of the time alone by name, int8 or float32 (rows,).

    kinds: what each column holds; times: timestamp[us] in UTC.
    """
    if windows.timezone != "UTC":
        times = pc.local_timestamp(pc.cast(times, pa.timestamp("us", windows.timezone)))
    local = pc.cast(times, pa.int64()).to_numpy()
    since_midnight = local % DAY
    angle = since_midnight * (2 * np.pi / DAY)
    of_kind: dict[str, npt.NDArray[np.generic]] = {
        "weekend": ((local // DAY + _EPOCH) % 7 >= _SATURDAY).astype(np.int8),
        "night": (since_midnight < (windows.night_ends + 1) * _HOUR).astype(np.int8),
        "hour_sin": np.sin(angle).astype(np.float32),
        "hour_cos": np.cos(angle).astype(np.float32),
    }
    return {name: of_kind[kind] for name, kind in kinds.items()}


def _count(timeline: Timeline, measure: Measure) -> Float64:
    return timeline.total(measure, timeline.members(measure.among)).astype(float)


def _share(timeline: Timeline, measure: Measure) -> Float64:
    """0 where there are no transactions."""
    every = _count(timeline, replace(measure, among="all"))
    return _count(timeline, measure) / np.maximum(every, 1)


def _sum(timeline: Timeline, measure: Measure) -> Float64:
    return timeline.total(measure, timeline.sums(*_of(measure))) / timeline.unit


def _mean(timeline: Timeline, measure: Measure) -> Float64:
    return _ratio(_sum(timeline, measure), timeline.total(measure, timeline.present(*_of(measure))))


def _std(timeline: Timeline, measure: Measure) -> Float64:
    """With n - 1 in the denominator; none for fewer than two values."""
    count = timeline.total(measure, timeline.present(*_of(measure))).astype(float)
    total = timeline.total(measure, timeline.sums(*_of(measure))).astype(float)
    high, mixed, low = (timeline.total(measure, part) for part in timeline.squares(*_of(measure)))
    squares = high * 4.0**LOW_BITS + mixed * 2.0 ** (LOW_BITS + 1) + low
    spread = count * squares - total * total
    spread[spread <= _NO_SPREAD * count * squares] = 0
    return np.sqrt(_ratio(spread, np.where(count > 1, count * (count - 1), 0))) / timeline.unit


def _min(timeline: Timeline, measure: Measure) -> Float64:
    return -_max(timeline, measure, sign=-1)


def _max(timeline: Timeline, measure: Measure, sign: int = 1) -> Float64:
    low, high = timeline.window(measure)
    values = sign * timeline.values(*_of(measure))
    values = np.where(np.isnan(values), -np.inf, values)
    largest = _range_max(values, low, high)
    if measure.current:
        largest = np.maximum(largest, values[timeline.asked])
    return np.where(np.isneginf(largest), np.nan, largest)


def _range_max(values: Float64, low: Int64, high: Int64) -> Float64:
    """The maximum of values[low:high] for each range, -inf for an empty one: two overlapping powers of two cover it."""
    if len(low) == 1:  # as when one transaction is scored
        return np.array([values[low[0] : high[0]].max(initial=-np.inf)])
    largest = np.full(len(low), -np.inf)
    level = np.frexp(high - low)[1] - 1  # the exponent of the largest power of two in the range; -1 for an empty one
    maxima = values  # of the 2^exponent values from each position on
    for exponent in range(int(level.max(initial=-1)) + 1):
        of = np.flatnonzero(level == exponent)
        largest[of] = np.maximum(maxima[low[of]], maxima[high[of] - 2**exponent])
        maxima = np.maximum(maxima[: -(2**exponent)], maxima[2**exponent :])
    return largest


def _distinct(timeline: Timeline, measure: Measure) -> Float64:
    """A row stands for its value from the first window that holds it until one holds the value's next row, or it no
    more; the rows that stand in a window are its distinct values."""
    low, high = timeline.window(measure)
    codes = timeline.texts(*_of(measure))
    if len(low) == 1:  # as when one transaction is scored
        seen = codes[low[0] : high[0]]
        own = codes[timeline.asked] if measure.current else codes[:0]
        present = np.concatenate([seen, own])
        return np.array([np.count_nonzero(np.bincount(present[present >= 0]))], float)
    rows = np.arange(len(codes))
    value = timeline.entity.astype(np.int64) * (int(codes.max(initial=0)) + 2) + codes
    order = np.argsort(value, kind="stable")  # by entity, value and time
    same = value[order[1:]] == value[order[:-1]]
    following = np.full(len(codes), len(codes))
    following[order[:-1][same]] = order[1:][same]
    enters = np.append(np.searchsorted(high, rows, side="right"), len(low))
    leaves = np.minimum(np.searchsorted(low, rows, side="right"), enters[following])
    present = codes >= 0
    change = _at(enters[:-1][present], len(low)) - _at(leaves[present], len(low))
    distinct = np.cumsum(change)
    if measure.current:
        # A row's own value is new unless a row of an earlier instant, in the window, holds it.
        begins = np.append(True, ~same | (timeline.time[order[1:]] != timeline.time[order[:-1]]))[: len(codes)]
        earlier = np.maximum.accumulate(np.where(begins, rows, 0)) - 1
        is_same = (earlier >= 0) & (value[order[earlier]] == value[order])
        before = np.empty(len(codes), np.int64)
        before[order] = np.where(is_same, order[earlier], -1)
        distinct += present[timeline.asked] & (before[timeline.asked] < low)
    return distinct.astype(float)


def _at(positions: Int64, length: int) -> Int64:
    """How often each of the positions 0 to length - 1 occurs."""
    return np.bincount(positions, minlength=length + 1)[:length]


def _since_last(timeline: Timeline, measure: Measure) -> Float64:
    _, high = timeline.window(measure)
    return _days_since(timeline, measure, timeline.members(measure.among)[high] - 1)


def _since_first(timeline: Timeline, measure: Measure) -> Float64:
    low, _ = timeline.window(measure)
    return _days_since(timeline, measure, timeline.members(measure.among)[low])


def _streak(timeline: Timeline, measure: Measure) -> Float64:
    """Rows of one instant have no order: one that does not count ends the streak before all of them."""
    low, high = timeline.window(measure)
    instant, number = timeline.instant, timeline.members("all")
    others = timeline.is_among("all") & ~timeline.is_among(measure.among)
    ends = np.bincount(instant[others], minlength=len(instant))[instant] > 0
    # The latest row that ends a streak, before each position.
    broken = np.append(-1, np.maximum.accumulate(np.where(ends, np.arange(len(ends)), -1)))
    return (number[high] - number[np.maximum(broken[high] + 1, low)]).astype(float)


def _since_streak(timeline: Timeline, measure: Measure) -> Float64:
    _, high = timeline.window(measure)
    streak = _streak(timeline, measure)
    positions = np.append(np.flatnonzero(timeline.is_among("all")), 0)
    first = np.where(streak > 0, timeline.members("all")[high] - streak, -1).astype(np.int64)
    began = timeline.time[positions[first]]
    return np.where(streak > 0, (timeline.time[timeline.asked] - began) / DAY, np.nan)


def _days_since(timeline: Timeline, measure: Measure, number: Int64) -> Float64:
    """Days since a member, by its number among all of them; none where the window has no member."""
    positions = np.append(np.flatnonzero(timeline.is_among(measure.among)), 0)
    passed = (timeline.time[timeline.asked] - timeline.time[positions[number]]) / DAY
    return np.where(_count(timeline, measure) > 0, passed, np.nan)


def _ratio_to_mean(timeline: Timeline, measure: Measure) -> Float64:
    return _ratio(_own(timeline, measure), _mean(timeline, measure))


def _ratio_to_max(timeline: Timeline, measure: Measure) -> Float64:
    return _ratio(_own(timeline, measure), _max(timeline, measure))


def _deviations(timeline: Timeline, measure: Measure) -> Float64:
    return _ratio(_own(timeline, measure) - _mean(timeline, measure), _std(timeline, measure))


def _own(timeline: Timeline, measure: Measure) -> Float64:
    return timeline.values(_of(measure)[0])[timeline.asked]


def _of(measure: Measure) -> tuple[str, str]:
    """The column, and which rows of it count."""
    assert measure.of is not None, "settings require a column"
    return measure.of, measure.among


def _ratio(above: Float64, below: Float64 | Int64) -> Float64:
    """NaN where the denominator is 0."""
    return np.divide(above, below, out=np.full(len(above), np.nan), where=below != 0)


_KINDS: dict[str, Callable[[Timeline, Measure], Float64]] = {
    "count": _count,
    "share": _share,
    "sum": _sum,
    "mean": _mean,
    "min": _min,
    "max": _max,
    "std": _std,
    "distinct": _distinct,
    "since_last": _since_last,
    "since_first": _since_first,
    "streak": _streak,
    "since_streak": _since_streak,
    "ratio_to_mean": _ratio_to_mean,
    "ratio_to_max": _ratio_to_max,
    "deviations": _deviations,
}
