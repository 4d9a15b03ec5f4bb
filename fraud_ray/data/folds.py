"""Folds: which rows are fitted on, and which are held out, by time with a label delay, by entity, or stratified."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from datetime import date, timedelta

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from fraud_ray.data.contract import MOST_LATE, Census, ContractViolation, Summary, Violation, check
from fraud_ray.data.keys import BUCKETS, Int64, Keys, to_day
from fraud_ray.data.sides import Counts, EntityGroups, Side, StratifiedGroups, apportion
from fraud_ray.data.source import FOOTER_THREADS, Partition, Source, read_partition
from fraud_ray.errors import DataError, SettingsError
from fraud_ray.progress import counted
from fraud_ray.settings import DataSettings, FoldSettings, Loaded

SIDES = ("fit", "holdout")
_PLACING = ("timestamp", "label", "label_time")


@dataclass(frozen=True)
class Fold:
    """One fold. span: what it is, in words.

    compromised: entities with a fraud since the first fit day, and the first day at whose beginning it was known; such
    an entity is left out of the holdout from that day on.
    """

    name: str
    span: str
    fit: Side
    holdout: Side
    compromised: dict[str, date] = field(default_factory=dict)

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
    unused: where they are, and could have more days.
    """

    selection: tuple[Fold, ...]
    final: Fold
    covers: str
    grouping: EntityGroups | StratifiedGroups | None = None
    unused: UnusedDays | None = None

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
                    faults.append(f"fold '{fold.name}' ({fold.span}): its {name} side has {_shown(rows, frauds)}")
        if faults:
            raise DataError(
                "\n".join(faults) + "\nEach side needs frauds and legitimate rows. "
                f"The data covers {self.covers}. Change folds.* (days, start, shares or limits), or bring more data."
            )


def plan_folds(census: Census, folds: FoldSettings) -> Folds:
    """The selection folds and the final fold, by what the census counted.

    Raises DataError for folds outside of the data, and for a side that is empty or of one class.
    """
    plan = {"time": _by_time, "entity": _by_entity, "stratified": _stratified}[folds.kind]
    planned = plan(census, folds)
    planned.require_both_classes()
    return planned


@dataclass(frozen=True)
class _Window:
    """The days of one fold by time; all included."""

    name: str
    fit: tuple[date, date]
    holdout: tuple[date, date]

    @classmethod
    def at(cls, name: str, start: date, folds: FoldSettings) -> _Window:
        held_out = start + timedelta(days=folds.fit_days + folds.delay_days)
        return cls(
            name,
            (start, start + timedelta(days=folds.fit_days - 1)),
            (held_out, held_out + timedelta(days=folds.holdout_days - 1)),
        )

    @property
    def span(self) -> str:
        return f"fit {self.fit[0]} to {self.fit[1]}, holdout {self.holdout[0]} to {self.holdout[1]}"


def _by_time(census: Census, folds: FoldSettings) -> Folds:
    if census.first is None or census.last is None:
        raise DataError("folds.kind: time needs timestamps, and the data holds none but missing ones")
    begin, end = census.first.date(), _labelled_until(census)
    start = folds.start or end - timedelta(days=folds.days - 1)
    shifts = folds.selection_shift_days
    final = _Window.at("final", start, folds)
    selection = [
        _Window.at(f"selection-{i}", start - timedelta(days=shift), folds) for i, shift in enumerate(shifts, 1)
    ]
    outside = [w for w in (*selection, final) if w.fit[0] < begin or w.holdout[1] > end]
    if outside:
        earliest, latest = begin + timedelta(days=max((0, *shifts))), end - timedelta(days=folds.days - 1)
        remedy = (
            f"Set folds.start between {earliest} and {latest}"
            if earliest <= latest
            else f"These folds take {counted(folds.days + max((0, *shifts)), 'day')}: lower folds.fit_days, "
            "folds.delay_days, folds.holdout_days or folds.selection_shift_days"
        )
        lines = [f"fold '{w.name}' ({w.span}) lies outside of the data" for w in outside]
        raise DataError("\n".join([*lines, f"The data covers {_covers(census)}. {remedy}, or bring more data."]))

    def fold(window: _Window) -> Fold:
        known_by = window.holdout[0]
        return Fold(
            window.name,
            window.span,
            Side(_of_days(census, *window.fit, known_by), *window.fit, known_by=known_by),
            Side(_of_days(census, *window.holdout), *window.holdout),
            _first_known(census, window, folds.delay_days) if folds.remove_compromised else {},
        )

    planned = _limited([fold(w) for w in selection], fold(final), folds, _covers(census))
    return replace(planned, unused=_unused([*selection, final], begin, end, census, folds))


def _unused(
    windows: Sequence[_Window], begin: date, end: date, census: Census, folds: FoldSettings
) -> UnusedDays | None:
    """The days from begin to end that lie in none of the windows; None where no longer fit would take them in.

    After a start that is given, the newest days are not counted whose labels may not be known.
    """
    first, last = min(w.fit[0] for w in windows), max(w.holdout[1] for w in windows)
    newest = last if folds.start is None else max(last, end - timedelta(days=folds.delay_days))
    fit_days = folds.fit_days + (first - begin).days + (newest - last).days
    if fit_days == folds.fit_days:
        return None
    unused = set(range(to_day(begin), to_day(newest) + 1))
    unused -= {day for w in windows for day in range(to_day(w.fit[0]), to_day(w.holdout[1]) + 1)}
    frauds = sum(f for s in census.summaries for day, (_, f) in s.days.items() if to_day(day) in unused)
    start = begin + timedelta(days=max((0, *folds.selection_shift_days)))
    remedy = f"folds.fit_days {fit_days}" + ("" if folds.start is None else f" and folds.start {start}")
    return UnusedDays(len(unused), (end - begin).days + 1, frauds, remedy)


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
    return _limited(selection, fold("final", 0, f"{share} held out"), folds, _covers(census))


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
    assert keys.entities is not None and keys.day is not None, "settings require both for the removal"
    never = np.iinfo(np.int64).max
    found = pc.index_in(keys.entities.names, pa.array(fold.compromised, pa.string()))
    known = np.array([*(to_day(day) for day in fold.compromised.values()), never], np.int64)
    known_from = known[pc.fill_null(found, len(known) - 1).to_numpy()]
    return known_from[keys.entities.positions] <= keys.day


def _of_days(census: Census, first: date, last: date, known_by: date | None = None) -> tuple[Counts, ...]:
    """(legitimate, frauds) of each partition in the days first to last; of those known by the beginning of a day."""

    def inside(summary: Summary) -> list[tuple[int, int]]:
        if known_by is None or not summary.known:
            return [both for day, both in summary.days.items() if first <= day <= last]
        return [both for (day, known), both in summary.known.items() if first <= day <= last and known <= known_by]

    of_partitions = map(inside, census.summaries)
    return tuple((sum(r - f for r, f in days), sum(f for _, f in days)) for days in of_partitions)


def _first_known(census: Census, window: _Window, delay_days: int) -> dict[str, date]:
    """Entities with a fraud since the first fit day, and the first day at whose beginning it was known."""
    found: dict[str, date] = {}
    for summary in census.summaries:
        for entity, day, known in summary.fraud_days:
            if window.fit[0] <= day <= window.holdout[1]:
                known = known or day + timedelta(days=delay_days + 1)
                if known <= window.holdout[1] and known < found.get(entity, date.max):
                    found[entity] = known
    return found


def _labelled_until(census: Census) -> date:
    """Raises DataError where no day has its labels."""
    if census.labelled_until is None:
        raise DataError(
            f"no day has its labels yet: of each, more than {MOST_LATE:.0%} are missing, or have no label time. The "
            f"data covers {_covers(census)}. Bring older data, and the label times of legitimate rows, too"
        )
    return census.labelled_until


def _covers(census: Census) -> str:
    held = "; ".join([_shown(census.rows, census.frauds), *census.notes])
    if census.first is None or census.last is None:
        return held
    first, last = census.first.date(), census.last.date()
    return f"{first} to {last} ({counted((last - first).days + 1, 'day')}, {held})"


def _shown(rows: int, frauds: int) -> str:
    return f"{counted(rows, 'row')} and {counted(frauds, 'fraud')}"


def at_newest_window(loaded: Loaded, source: Source) -> Loaded:
    """The settings with the final fold's last day as new as labels allow: `folds.delay_days` before the newest data,
    or, where label times are declared, the newest day whose labels are known.

    Raises SettingsError for folds that are not by time, DataError for data without days or labels.
    """
    folds = loaded.settings.folds
    if folds.kind != "time":
        raise SettingsError(
            f"folds.kind is {folds.kind}, but a retraining looks at the newest window: set folds.kind to time, or use "
            "`fraud-ray run`"
        )
    label_time = loaded.settings.data.of_kind("label_time")
    if label_time is None and source.as_of is None:
        raise DataError(
            f"{source.root} has neither 'date=' folders nor timestamps in its footers' statistics, by which a "
            "retraining finds the newest window; write it with one of them, or set folds.start and use `fraud-ray run`"
        )
    if label_time is not None:
        newest = _newest_labelled(source, loaded.settings.data)
        note = f"labels are known up to {newest}, by {label_time}"
    else:
        assert source.as_of is not None, "refused above"
        newest = source.as_of - timedelta(days=folds.delay_days)
        note = f"labels are mature up to {newest}, {counted(folds.delay_days, 'day')} before the newest data"
    start = newest - timedelta(days=folds.days - 1)
    settings = loaded.settings.model_copy(update={"folds": folds.model_copy(update={"start": start})})
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
    return _labelled_until(census)
