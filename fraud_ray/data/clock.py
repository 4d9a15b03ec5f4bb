"""How folds count time: in days, or in seconds where a share of the rows is held out; by a calendar, or without one."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import numpy as np
import numpy.typing as npt

from fraud_ray.data.kinds import A_SECOND
from fraud_ray.settings import DataSettings, FoldSettings

Int64 = npt.NDArray[np.int64]

_SECOND = 1_000_000
_DAY = 86_400 * _SECOND


@dataclass(frozen=True)
class Clock:
    """Time in ticks since 1970, or since whatever moment the data counts from. A row lies in the tick that its time is
    in; what becomes known within a tick is known when the next one begins.

    tick: its length in microseconds; unit: of the data's numbers, in which times are shown that no calendar is known
    of, else None.
    """

    tick: int = _DAY
    unit: str | None = None

    @classmethod
    def of(cls, data: DataSettings, folds: FoldSettings) -> Clock:
        timestamp = data.of_kind("timestamp")
        unit = None if timestamp is None or data.is_dated else data.columns[timestamp].unit
        return cls(_DAY if folds.holdout is None else _SECOND, unit)

    def at(self, microseconds: Int64) -> Int64:
        """The tick in which each time lies."""
        return microseconds // self.tick

    def since(self, microseconds: Int64) -> Int64:
        """The first tick that does not begin before each time."""
        return -(-microseconds // self.tick)

    def of_time(self, moment: datetime) -> int:
        """The tick in which a moment (UTC, where it has no zone) lies."""
        in_utc = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
        return round((in_utc - datetime(1970, 1, 1, tzinfo=UTC)).total_seconds() * _SECOND) // self.tick

    def begin_of(self, tick: int) -> datetime:
        """When a tick begins, in UTC, without a zone."""
        return datetime(1970, 1, 1) + timedelta(microseconds=tick * self.tick)

    def ticks(self, days: float) -> int:
        """As many as begin within so many days."""
        return -(-round(days * _DAY) // self.tick)

    def shown(self, tick: int) -> str:
        """A tick by its beginning: 2024-03-07, 2024-03-07 18:30:00, `day 3`, or `66600 s`."""
        if self.unit is None:
            moment = self.begin_of(tick)
            return str(moment.date() if self.tick == _DAY else moment)
        return f"day {tick}" if self.tick == _DAY else f"{tick * A_SECOND[self.unit]} {self.unit}"


DAYS = Clock()
