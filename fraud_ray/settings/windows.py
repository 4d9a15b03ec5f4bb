"""Columns that are computed from the past of each transaction's entities."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Literal, get_args
from zoneinfo import available_timezones

from pydantic import Field, NonNegativeFloat, PositiveFloat, field_validator, model_validator

from fraud_ray.settings.base import NO_EFFECT, Frozen

_Plain = Literal["count", "share", "sum", "mean", "min", "max", "std", "distinct"]
_Since = Literal["since_last", "since_first", "streak", "since_streak"]
_Compared = Literal["ratio_to_mean", "ratio_to_max", "deviations"]
_Calendar = Literal["weekend", "night", "hour_sin", "hour_cos"]

_OF_CALENDAR = set(get_args(_Calendar))
_OF_PAST = {*get_args(_Since), *get_args(_Compared)}
_WITHOUT_COLUMN = {*_OF_CALENDAR, *get_args(_Since), "count", "share"}


class WindowColumnSettings(Frozen):
    compute: Literal[_Plain, _Since, _Compared, _Calendar]
    """What the column holds, of the entity's transactions in the window: their `count`, and the `share` that is
    `among`; `sum`, `mean`, `min`, `max`, `std` and number of `distinct` values of a column; days `since_last` and
    `since_first` of them; the `streak` of latest ones that are all `among`, and the days `since_streak` began; the
    transaction's own value over their mean (`ratio_to_mean`) or maximum (`ratio_to_max`), and its distance from their
    mean in standard deviations (`deviations`). Of the time alone: `weekend`, `night`, and the hour on a circle
    (`hour_sin`, `hour_cos`)."""
    entity: str | None = None
    """Column whose equal values belong together: customer, card, terminal, merchant or device."""
    of: str | None = None
    """Column whose values are summed, compared, or counted distinct; or another window column, whose value of a
    transaction is that of the transaction's own time."""
    days: tuple[PositiveFloat, ...] = ()
    """Lengths of windows; each gives a column, with the length in place of `{days}` in the name."""
    among: Literal["all", "frauds", "legitimate"] = "all"
    """Which transactions count. By their label, which is known label_delay_days later; one that has no label by then is
    legitimate. Where a column of kind `label_time` is declared, a transaction counts here at the time when its label
    became known instead of at its own, and not before."""
    delay_days: NonNegativeFloat | None = None
    """The window ends that long before the transaction; by default 0, and label_delay_days where labels are read and no
    column of kind `label_time` says when they became known."""
    current: bool = True
    """Whether the transaction itself is in its window, where that has no delay and the column is not of the past alone
    (`since_…`, `streak`, `ratio_…`, `deviations`)."""

    @property
    def is_boolean(self) -> bool:
        return self.compute in {"weekend", "night"}

    @property
    def reads_labels(self) -> bool:
        return self.among != "all"

    @property
    def is_of_past(self) -> bool:
        """Whether it sets the transaction against the earlier ones."""
        return self.compute in _OF_PAST

    @property
    def looks_back(self) -> bool:
        """Whether it is of the entity's transactions, and not of the time alone."""
        return self.compute not in _OF_CALENDAR

    @model_validator(mode="after")
    def _complete(self) -> WindowColumnSettings:
        if self.looks_back and (self.entity is None or not self.days):
            raise ValueError(f"'{self.compute}' needs 'entity' and 'days'")
        beside = (self.entity, self.of, self.days, self.among, self.delay_days, self.current)
        if not self.looks_back and beside != (None, None, (), "all", None, True):
            raise ValueError(f"'{self.compute}' is of the timestamp alone; declare nothing beside it")
        if (self.of is None) != (self.compute in _WITHOUT_COLUMN):
            need = "takes no" if self.of else "needs"
            raise ValueError(f"'{self.compute}' {need} 'of', the column that it is computed of")
        if self.compute in {"share", "streak", "since_streak"} and self.among == "all":
            raise ValueError(f"'{self.compute}' of all transactions says nothing; give 'among'")
        return self


class WindowsSettings(Frozen):
    columns: dict[str, WindowColumnSettings]
    """Columns to compute, by name; `{days}` in a name stands for the length of the window."""
    label_delay_days: PositiveFloat = 7.0
    """Age from which on a transaction's label is known. Where a column of kind `label_time` is declared, the longest
    that a label may take: one that took longer is in no window, and transactions are kept for that long."""
    decimals: Annotated[int, Field(ge=0, le=9)] = 4
    """Decimal places to which values are rounded before they are summed, so that sums are exact."""
    timezone: str = "UTC"
    """Zone of the calendar, such as Europe/Brussels."""
    night_ends: Annotated[int, Field(ge=0, le=23)] = 6
    """Last hour of the night, which begins at midnight."""
    buckets: Annotated[int, Field(gt=0, le=1000)] | None = Field(default=None, json_schema_extra=NO_EFFECT)
    """Groups that the entities are divided into, each held in memory by one task; by default by the number of rows."""

    @field_validator("timezone")
    @classmethod
    def _known(cls, name: str) -> str:
        if name not in available_timezones():
            raise ValueError(f"'{name}' is no time zone; name one such as UTC or Europe/Brussels")
        return name

    @model_validator(mode="after")
    def _distinct(self) -> WindowsSettings:
        for pattern, column in self.columns.items():
            if ("{days}" in pattern) != column.looks_back and len(column.days) != 1:
                raise ValueError(f"columns.{pattern}: the name holds '{{days}}' if, and only if, there are lengths")
        of: dict[str, str | None] = {}
        for name, column, _ in self.expanded():
            if name in of:
                raise ValueError(f"columns: two of them are called '{name}'")
            of[name] = column.of
        for name in of:
            chain = [name]
            while (following := of.get(chain[-1])) is not None:
                if following in chain:
                    raise ValueError(f"columns.{name} is computed of itself: {' of '.join([*chain, following])}")
                chain.append(following)
        return self

    def round_of(self, column: WindowColumnSettings) -> int:
        """0 where it is computed of the data, else one more than the window column that it is computed of."""
        named = {name: other for name, other, _ in self.expanded()}
        return 0 if column.of not in named else 1 + self.round_of(named[column.of])

    def delay_of(self, column: WindowColumnSettings, has_label_time: bool = False) -> float:
        """How long before a transaction its window ends, in days; has_label_time: whether the data declares one."""
        if column.delay_days is not None:
            return column.delay_days
        return self.label_delay_days if column.reads_labels and not has_label_time else 0.0

    def expanded(self) -> Iterator[tuple[str, WindowColumnSettings, float]]:
        """Each column's name, what it holds, and the length of its window in days (0 where it has none)."""
        for pattern, column in self.columns.items():
            for days in column.days or (0.0,):
                yield pattern.replace("{days}", f"{days:g}"), column, days
