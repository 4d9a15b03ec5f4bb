"""Folds: which rows are fitted on, and which are held out, by time with a label delay, by entity, or stratified."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from datetime import date, datetime, time, timedelta
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from fraud_ray.data.clock import DAYS, Clock, Int64
from fraud_ray.data.contract import Census, ContractViolation, Summary, Violation, check
from fraud_ray.data.keys import BUCKETS, Keys, to_date
from fraud_ray.data.sides import Counts, EntityGroups, Side, StratifiedGroups, apportion
from fraud_ray.data.source import FOOTER_THREADS, Partition, Source, read_partition
from fraud_ray.data.spans import Timeline, Window, covers, labelled_until, shown
from fraud_ray.errors import DataError, SettingsError
from fraud_ray.progress import counted
from fraud_ray.settings import DataSettings, FoldSettings, Loaded

SIDES = ("fit", "holdout")
_PLACING = ("timestamp", "label", "label_time")


@dataclass(frozen=True)
class Fold:
    """One fold. span: what it is, in words.

    compromised: entities with a fraud since the fit began, and the first tick at whose beginning it was known; such an
    entity is left out of the holdout from then on.
    """

    name: str
    span: str
    fit: Side
    holdout: Side
    compromised: dict[str, int] = field(default_factory=dict)

    def side(self, name: str) -> Side:
        """By one of SIDES."""
        return self.fit if name == "fit" else self.holdout


@dataclass(frozen=True)
class UnusedDays:
    """Days that no fold has, of all whose labels are known, with the frauds on them, and the settings that would."""

    days: int
    of: int
    frauds: int
    remedy: str

    def __str__(self) -> str:
        return f"{self.days} of {counted(self.of, 'day')} unused: {self.remedy} would fit on them"


@dataclass(frozen=True, repr=False)
class Folds:
    """The folds of a run: hyperparameters, threshold and calibration come from `selection`, the figures from `final`.

    covers: what the data holds, in words; grouping: how rows are placed in groups where folds are not by time;
    unused: where they are, and could have more days; clock: that their ticks are of.
    """

    selection: tuple[Fold, ...]
    final: Fold
    covers: str
    grouping: EntityGroups | StratifiedGroups | None = None
    unused: UnusedDays | None = None
    clock: Clock = DAYS

    def __repr__(self) -> str:
        return "\n".join(
            [*(f"fold {f.name}: {f.span}" for f in self.all), *([str(self.unused)] if self.unused else [])]
        )

    @property
    def all(self) -> tuple[Fold, ...]:
        return (*self.selection, self.final)

    def candidates(self, partition: int, keys: Keys) -> Iterator[tuple[Fold, str, Int64]]:
        """Each fold and side that has rows in a partition, and the rows before the side's limit, in their order."""
        groups = self.grouping.of(partition, keys) if self.grouping else None
        for fold in self.all:
            for name in SIDES:
                side = fold.side(name)
                if side.counts[partition] == (0, 0):
                    continue
                inside = side.holds(keys, groups)
                if name == "holdout" and fold.compromised:
                    inside &= ~_is_compromised(fold, keys)
                yield fold, name, np.flatnonzero(inside)

    def recounted(self, holdouts: Mapping[int, Mapping[str, Counts]]) -> Folds:
        """The same folds, with the holdout rows that the removal leaves as counted by partition and fold name."""

        def recount(fold: Fold) -> Fold:
            if not fold.compromised:
                return fold
            counts = tuple(holdouts.get(i, {}).get(fold.name, (0, 0)) for i in range(len(fold.holdout.counts)))
            return replace(fold, holdout=replace(fold.holdout, counts=counts))

        return replace(self, selection=tuple(recount(f) for f in self.selection), final=recount(self.final))

    def require_both_classes(self) -> None:
        """Raises DataError for a side without rows or with one class only: its dates and counts, and the data's."""
        faults = []
        for fold in self.all:
            for name in SIDES:
                rows, frauds = fold.side(name).rows, fold.side(name).frauds
                if not 0 < frauds < rows:
                    faults.append(f"fold '{fold.name}' ({fold.span}): its {name} side has {shown(rows, frauds)}")
        if faults:
            raise DataError(
                "\n".join(faults) + "\nEach side needs frauds and legitimate rows. "
                f"The data covers {self.covers}. Change folds.* (days, shares, rows or limits), or bring more data."
            )


def plan_folds(census: Census, folds: FoldSettings) -> Folds:
    """The selection folds and the final fold, by what the census counted.

    Raises DataError for folds outside of the data, and for a side that is empty or of one class.
    """
    plan = {"time": _by_time, "entity": _by_entity, "stratified": _stratified}[folds.kind]
    planned = plan(census, folds)
    planned.require_both_classes()
    return planned


def _by_time(census: Census, folds: FoldSettings) -> Folds:
    timeline, clock = Timeline(census, folds), census.clock
    final = timeline.final()
    selection = timeline.selection(final)
    outside = [
        w
        for w in (*selection, final)
        if w.fit[0] < timeline.begin or w.fit[1] < w.fit[0] or not w.holdout[0] <= w.holdout[1] <= timeline.end
    ]
    if outside:
        lines = [f"fold '{w.name}' ({w.span(clock)}) lies outside of the data" for w in outside]
        remedy = _remedy(timeline, folds)
        raise DataError("\n".join([*lines, f"The data covers {covers(census)}. {remedy}, or bring more data."]))

    def fold(window: Window, holdout_known_by: int | None = None) -> Fold:
        known_by = window.holdout[0]
        return Fold(
            window.name,
            window.span(clock),
            Side(_of_ticks(census, *window.fit, known_by), *window.fit, known_by=known_by),
            Side(_of_ticks(census, *window.holdout, holdout_known_by), *window.holdout, known_by=holdout_known_by),
            _first_known(census, window, timeline.delay) if folds.remove_compromised else {},
        )

    # What is chosen on a selection holdout rests on labels that were known when the final holdout began.
    planned = _limited([fold(w, final.holdout[0]) for w in selection], fold(final), folds, covers(census))
    is_by_days = folds.fit is None and folds.holdout is None
    unused = _unused([*selection, final], timeline, census, folds) if is_by_days else None
    return replace(planned, unused=unused, clock=clock)


def _remedy(timeline: Timeline, folds: FoldSettings) -> str:
    """What to set where folds do not lie within the data."""
    if folds.holdout is not None or folds.fit is not None:
        lower = "folds.holdout" if folds.holdout is not None else "folds.holdout_days"
        to_all = "set folds.fit: all, or " if folds.fit is None else ""
        return f"Lower folds.delay_days, {lower} or the number of selection folds; {to_all}move folds.until"
    back = max((0, *folds.shifts))
    earliest, latest = timeline.begin + back, timeline.end - folds.days + 1
    if earliest <= latest and timeline.clock.unit is None:
        return f"Set folds.start between {to_date(earliest)} and {to_date(latest)}"
    return (
        f"These folds take {counted(folds.days + back, 'day')}: lower folds.fit_days, folds.delay_days, "
        "folds.holdout_days or folds.selection_shift_days, or hold out a share of the rows, as folds.holdout: 20%"
    )


def _unused(windows: Sequence[Window], timeline: Timeline, census: Census, folds: FoldSettings) -> UnusedDays | None:
    """The days of the data that lie in none of the windows; None where no longer fit would take them in.

    After a start that is given, the newest days are not counted whose labels may not be known.
    """
    begin, end = timeline.begin, timeline.end
    first, last = min(w.fit[0] for w in windows), max(w.holdout[1] for w in windows)
    newest = last if folds.start is None else max(last, end - timeline.delay)
    fit_days = folds.fit_days + first - begin + newest - last
    if fit_days == folds.fit_days:
        return None
    unused = set(range(begin, newest + 1))
    unused -= {day for w in windows for day in range(w.fit[0], w.holdout[1] + 1)}
    days, frauds_of = (census.times[name].to_pylist() for name in ("tick", "frauds"))
    frauds = sum(of_day for day, of_day in zip(days, frauds_of, strict=True) if day in unused)
    start = to_date(begin + max((0, *folds.shifts)))
    remedy = f"folds.fit_days {fit_days}" + ("" if folds.start is None else f" and folds.start {start}")
    return UnusedDays(len(unused), end - begin + 1, frauds, remedy)


def _by_entity(census: Census, folds: FoldSettings) -> Folds:
    ranks = np.random.default_rng(folds.seed).permutation(BUCKETS)
    held_out = round(folds.holdout_share * BUCKETS)
    each = round(folds.holdout_share * (BUCKETS - held_out))
    bounds = np.minimum(held_out + each * np.arange(folds.selection_folds + 1), BUCKETS)
    of_bucket = np.searchsorted(bounds, ranks, side="right")
    groups = folds.selection_folds + 2
    counts = []
    for summary in census.summaries:
        grouped = [(0, 0)] * groups
        for bucket, (rows, frauds) in summary.buckets.items():
            legitimate, fraudulent = grouped[of_bucket[bucket]]
            grouped[of_bucket[bucket]] = (legitimate + rows - frauds, fraudulent + frauds)
        counts.append(grouped)
    planned = _of_groups(counts, "the entities", census, folds)
    return replace(planned, grouping=EntityGroups(tuple(of_bucket.tolist())))


def _stratified(census: Census, folds: FoldSettings) -> Folds:
    left = np.array([(s.labelled - s.frauds, s.frauds) for s in census.summaries], np.int64)
    totals = left.sum(axis=0)
    held_out = [round(folds.holdout_share * int(n)) for n in totals]
    each = [round(folds.holdout_share * (int(n) - h)) for n, h in zip(totals, held_out, strict=True)]
    drawn = []
    for group in range(folds.selection_folds + 1):
        wanted = each if group else held_out
        rng = np.random.default_rng([folds.seed, group])
        share = np.stack(
            [apportion(min(n, int(left[:, c].sum())), left[:, c], rng) for c, n in enumerate(wanted)], axis=1
        )
        drawn.append(share)
        left = left - share
    by_group = np.stack([*drawn, left], axis=1)  # (partitions, groups, classes)
    counts = [[(legitimate, frauds) for legitimate, frauds in groups] for groups in by_group.tolist()]
    sizes = np.stack(drawn, axis=2)  # (partitions, classes, groups but the last)
    grouping = StratifiedGroups(tuple((tuple(c[0]), tuple(c[1])) for c in sizes.tolist()), folds.seed)
    return replace(_of_groups(counts, "the rows", census, folds), grouping=grouping)


def _of_groups(counts: Sequence[Sequence[Counts]], what: str, census: Census, folds: FoldSettings) -> Folds:
    """Folds of the groups 0 (final holdout), 1 ... (a selection holdout each) and the last (always fitted on).

    counts: by partition and group.
    """
    fitted = range(1, folds.selection_folds + 2)

    def fold(name: str, held_out: int, span: str) -> Fold:
        sides = [frozenset(fitted) - {held_out}, frozenset({held_out})]
        fit, holdout = (
            Side(tuple((sum(c[g][0] for g in groups), sum(c[g][1] for g in groups)) for c in counts), groups=groups)
            for groups in sides
        )
        return Fold(name, span, fit, holdout)

    share = f"{100 * folds.holdout_share:g} % of {what}"
    selection = [
        fold(f"selection-{i}", i, f"{share} of the final fold's fit side held out")
        for i in range(1, folds.selection_folds + 1)
    ]
    return _limited(selection, fold("final", 0, f"{share} held out"), folds, covers(census))


def _limited(selection: Sequence[Fold], final: Fold, folds: FoldSettings, covers: str) -> Folds:
    """The folds with their row limits; the draws of all sides are independent."""

    def limit(position: int, fold: Fold) -> Fold:
        if folds.limits_apply_to == "selection" and fold is final:
            return fold
        fit = replace(fold.fit, limit=folds.max_fit_rows, seed=(folds.seed, position, 0))
        holdout = replace(fold.holdout, limit=folds.max_holdout_rows, seed=(folds.seed, position, 1))
        return replace(fold, fit=fit, holdout=holdout)

    limited = [limit(position, fold) for position, fold in enumerate((final, *selection))]
    return Folds(tuple(limited[1:]), limited[0], covers)


def _is_compromised(fold: Fold, keys: Keys) -> npt.NDArray[np.bool_]:
    assert keys.entities is not None and keys.tick is not None, "settings require both for the removal"
    never = np.iinfo(np.int64).max
    found = pc.index_in(keys.entities.names, pa.array(fold.compromised, pa.string()))
    known = np.array([*fold.compromised.values(), never], np.int64)
    known_from = known[pc.fill_null(found, len(known) - 1).to_numpy()]
    return known_from[keys.entities.positions] <= keys.tick


def _of_ticks(census: Census, first: int, last: int, known_by: int | None = None) -> tuple[Counts, ...]:
    """(legitimate, frauds) of each partition in the ticks first to last; of those known by the beginning of a tick."""

    def inside(summary: Summary) -> Counts:
        tick, known, rows, frauds, _ = (column.to_numpy() for column in summary.times)
        is_inside = (tick >= first) & (tick <= last)
        if known_by is not None:
            is_inside &= known <= known_by
        count = int(frauds[is_inside].sum())
        return int(rows[is_inside].sum()) - count, count

    return tuple(map(inside, census.summaries))


def _first_known(census: Census, window: Window, delay: int) -> dict[str, int]:
    """Entities with a fraud since the fit began, and the first tick at whose beginning it was known."""
    found: dict[str, int] = {}
    for summary in census.summaries:
        for entity, tick, known in summary.frauds_of:
            if window.fit[0] <= tick <= window.holdout[1]:
                since = tick + delay + 1 if known is None else known
                if since <= window.holdout[1] and since < found.get(entity, since + 1):
                    found[entity] = since
    return found


def without_leaks(loaded: Loaded, oldest: int = 0, is_strict: bool = False) -> Loaded:
    """The settings, with a note where something is chosen on labels that were not known when a final holdout began.

    oldest: how many days the first of several final folds lies before the last. Raises SettingsError where a selection
    holdout does not end before the first final holdout begins, and, if that is_strict, in place of the note.
    """
    folds = loaded.settings.folds
    shifts = folds.selection_shift_days
    if folds.kind != "time" or shifts is None:
        return loaded  # by default they lie so
    apart, strict = oldest + folds.holdout_days, oldest + folds.strict_shift
    least = min(shifts)
    given = f"folds.selection_shift_days {list(shifts)}: the selection holdout {counted(least, 'day')} back"
    first = f"the first final holdout, {oldest} days back," if oldest else "the final holdout"
    mended = [shift + strict - least for shift in shifts]
    if least < apart:
        raise SettingsError(
            f"{given} does not end before {first} begins, so what is judged there would be chosen on its rows. Set "
            f"folds.selection_shift_days to {strict} or more, such as {mended}"
            + (f" ({apart} or more do not overlap)" if apart < strict else "")
            + (", or lower backtest.shift_days" if oldest else "")
        )
    if least >= strict:
        return loaded
    told = (
        f"{given} ends less than folds.delay_days, {folds.delay_days:g}, before {first} begins, when its labels were "
        f"not known yet; shifts of {strict} or more keep to what was"
    )
    if is_strict:
        raise SettingsError(f"{told}: set folds.selection_shift_days, such as {mended}, or leave it out")
    return replace(loaded, notes=(*loaded.notes, told))


def moved_back(folds: FoldSettings, newest: Folds, days: int, selects: bool) -> FoldSettings:
    """The settings of a final fold that lies so many days before the newest one, with its selection folds if it
    selects."""
    moved: dict[str, Any] = {} if selects else {"selection_shift_days": (), "selection_folds": 0}
    if selects and folds.selection_shift_days is not None:
        moved["selection_shift_days"] = tuple(shift - days for shift in folds.selection_shift_days)
    first, last, back = newest.final.fit.first, newest.final.holdout.last, timedelta(days=days)
    assert first is not None and last is not None, "folds by time have ticks"
    if folds.fit is None and folds.holdout is None:
        moved["start"] = to_date(first) - back
    else:
        moved["until"] = newest.clock.begin_of(last + 1) - back
    if isinstance(folds.holdout, datetime):
        moved["holdout"] = folds.holdout - back
    return folds.model_copy(update=moved)


def at_newest_window(loaded: Loaded, source: Source) -> Loaded:
    """The settings with the final fold's end as new as labels allow: `folds.delay_days` before the newest data, or,
    where label times are declared, on the newest day whose labels are known.

    Raises SettingsError for folds that no newest day ends, DataError for data without days or labels.
    """
    folds, data = loaded.settings.folds, loaded.settings.data
    for given, remedy in (
        (folds.kind != "time" and f"folds.kind is {folds.kind}", "set folds.kind to time"),
        (isinstance(folds.holdout, datetime) and f"folds.holdout is {folds.holdout}", "hold out a share, such as 20%"),
        (not data.is_dated and "the timestamp is counted since: start, so that no day is known", "bring dates"),
    ):
        if given:
            raise SettingsError(
                f"{given}, but a retraining looks at the newest window: {remedy}, or use `fraud-ray run`"
            )
    label_time = data.of_kind("label_time")
    if label_time is None and source.as_of is None:
        raise DataError(
            f"{source.root} has neither 'date=' folders nor timestamps in its footers' statistics, by which a "
            "retraining finds the newest window; write it with one of them, or set folds.start and use `fraud-ray run`"
        )
    if label_time is not None:
        newest = _newest_labelled(source, data)
        note = f"labels are known up to {newest}, by {label_time}"
    else:
        assert source.as_of is not None, "refused above"
        delay_days = math.ceil(folds.delay_days)
        newest = source.as_of - timedelta(days=delay_days)
        note = f"labels are mature up to {newest}, {counted(delay_days, 'day')} before the newest data"
    if folds.fit is None and folds.holdout is None:
        moved: dict[str, Any] = {"start": newest - timedelta(days=folds.days - 1)}
    else:
        moved = {"until": datetime.combine(newest + timedelta(days=1), time())}
    settings = loaded.settings.model_copy(update={"folds": folds.model_copy(update=moved)})
    return replace(loaded, settings=settings, notes=(*loaded.notes, note))


def _newest_labelled(source: Source, data: DataSettings) -> date:
    """The newest day whose labels are known, which takes a pass over the times and the labels, in this process.

    Raises ContractViolation for columns that break the contract, DataError where no day has its labels.
    """
    placing = {name: column for name, column in data.columns.items() if column.kind in _PLACING}
    narrow = data.model_copy(update={"columns": placing})

    def look(partition: Partition) -> tuple[list[Violation], Summary | None]:
        return check(read_partition(source.root, partition, narrow, list(placing)), narrow, partition.shown)

    with ThreadPoolExecutor(FOOTER_THREADS) as pool:
        looks = list(pool.map(look, source.partitions))
    violations = [violation for broken, _ in looks for violation in broken]
    if violations:
        raise ContractViolation(violations, len(source.partitions))
    census = Census(tuple(summary for _, summary in looks if summary is not None))
    return to_date(labelled_until(census))
