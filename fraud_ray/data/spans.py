"""Where folds by time lie: from which tick to which they are fitted, and hold out."""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import datetime, time

import numpy as np

from fraud_ray.data.clock import Clock
from fraud_ray.data.contract import MOST_LATE, Census
from fraud_ray.errors import DataError
from fraud_ray.progress import counted
from fraud_ray.settings import FoldSettings
from fraud_ray.settings.data import share_of


@dataclass(frozen=True)
class Window:
    """The ticks of one fold by time; all included."""

    name: str
    fit: tuple[int, int]
    holdout: tuple[int, int]

    def span(self, clock: Clock) -> str:
        fit, holdout = (" to ".join(map(clock.shown, side)) for side in (self.fit, self.holdout))
        return f"fit {fit}, holdout {holdout}"


class Timeline:
    """The labelled rows in the order of time, from the tick `begin` to `end`."""

    def __init__(self, census: Census, folds: FoldSettings) -> None:
        if census.first is None:
            raise DataError("folds.kind: time needs timestamps, and the data holds none but missing ones")
        self.folds, self.clock = folds, census.clock
        times = census.times
        self.begin, self.end = times["tick"][0].as_py(), labelled_until(census)
        if folds.until is not None:
            self.end = min(self.end, self.clock.of_time(folds.until) - 1)
        self.ticks, rows = times["tick"].to_numpy(), times["rows"].to_numpy()
        self.rows = np.concatenate([[0], np.cumsum(rows)])
        self.delay = self.clock.ticks(folds.delay_days)

    def before(self, tick: int) -> int:
        """How many labelled rows come before a tick."""
        return int(self.rows[np.searchsorted(self.ticks, tick)])

    def of_newest(self, amount: str | int, until: int) -> int:
        """The tick from which on the newest rows are that many, or that share of all up to the end; until: included."""
        share, there = share_of(amount), self.before(until + 1)
        wanted = amount if share is None else math.ceil(share * self.before(self.end + 1))
        # The tick in which the row lies before which `there - wanted` rows come.
        return int(self.ticks[max(0, np.searchsorted(self.rows, max(there - int(wanted), 0), "right") - 1)])

    def window(self, name: str, held_out: tuple[int, int]) -> Window:
        """The fold that holds those ticks out, the first and the last included."""
        fit, until = self.folds.fit, held_out[0] - self.delay - 1
        if fit is None:
            begin = until - self.clock.ticks(self.folds.fit_days) + 1
        else:
            begin = self.begin if fit == "all" or until < self.begin else self.of_newest(fit, until)
        return Window(name, (begin, until), held_out)

    def final(self) -> Window:
        folds, end = self.folds, self.end
        if folds.start is not None:
            begin = self.clock.of_time(datetime.combine(folds.start, time())) + folds.fit_days + self.delay
            end = begin + folds.holdout_days - 1
        elif folds.holdout is None:
            begin = end - folds.holdout_days + 1
        elif isinstance(folds.holdout, datetime):
            begin = self.clock.of_time(folds.holdout)
        else:
            begin = self.of_newest(folds.holdout, end)
        return self.window("final", (begin, end))

    def selection(self, final: Window) -> list[Window]:
        """In the order of their names."""
        folds, found = self.folds, [final]
        if folds.holdout is None:
            for i, shift in enumerate(folds.shifts, 1):
                found.append(self.window(f"selection-{i}", (final.holdout[0] - shift, final.holdout[1] - shift)))
            return found[1:]
        rows = self.before(final.holdout[1] + 1) - self.before(final.holdout[0])
        amount = rows if isinstance(folds.holdout, datetime) else folds.holdout
        for i in range(1, folds.selection_folds + 1):
            until = found[-1].fit[1]
            begin = self.of_newest(amount, until) if until >= self.begin else until
            found.append(self.window(f"selection-{i}", (begin, until)))
        return found[1:]


def labelled_until(census: Census) -> int:
    """The newest tick whose labels are known. Raises DataError where there is none."""
    until = census.labelled_until
    if until is None:
        raise DataError(
            f"no day has its labels yet: of each, more than {MOST_LATE:.0%} are missing, or have no label time. The "
            f"data covers {covers(census)}. Bring older data, and the label times of legitimate rows, too"
        )
    return until


def covers(census: Census) -> str:
    held = "; ".join([shown(census.rows, census.frauds), *census.notes])
    if census.first is None or census.last is None:
        return held
    first, last = census.first.date(), census.last.date()
    ticks = (census.clock.shown(census.clock.of_time(moment)) for moment in (census.first, census.last))
    return f"{' to '.join(ticks)} ({counted((last - first).days + 1, 'day')}, {held})"


def shown(rows: int, frauds: int) -> str:
    return f"{counted(rows, 'row')} and {counted(frauds, 'fraud')}"
