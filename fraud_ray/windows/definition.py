"""What window columns are: declared in settings, carried by a model, the same wherever they are computed."""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from fraud_ray.errors import DamagedError
from fraud_ray.settings import DataSettings, Settings, WindowsSettings

FORMAT = 1
DAY = 86_400_000_000  # in microseconds, the unit of all times here


@dataclass(frozen=True)
class Measure:
    """One column that looks back on an entity's transactions.

    compute, of, among: as in settings. The window of a transaction at time t covers (t - delay - length, t - delay];
    length, delay and wait in microseconds. current: whether the transaction itself is in its window. wait: 0, or the
    longest that a label may take, where transactions count at the time when their label became known.
    """

    name: str
    compute: str
    of: str | None
    among: str
    length: int
    delay: int
    current: bool
    wait: int = 0


@dataclass(frozen=True)
class Group:
    """The columns of an entity that are computed together. round: 0 for those of the data's own columns, and for those
    of another window column one more than that column's."""

    round: int
    entity: str
    measures: tuple[Measure, ...]

    @property
    def window_columns(self) -> tuple[str, ...]:
        """Those of earlier rounds that its own are computed of."""
        return tuple(dict.fromkeys(m.of for m in self.measures if m.of)) if self.round else ()

    @property
    def horizon(self) -> int:
        """The age, in microseconds, beyond which an entity's transactions are in nobody's window."""
        return max(measure.length + measure.delay + measure.wait for measure in self.measures)


@dataclass(frozen=True)
class Definition:
    """The declared data, of which windows are computed, and the declared windows."""

    data: DataSettings
    windows: WindowsSettings

    @classmethod
    def of(cls, settings: Settings) -> Definition | None:
        """None where no windows are declared."""
        return None if settings.windows is None else cls(settings.data, settings.windows)

    @cached_property
    def groups(self) -> tuple[Group, ...]:
        """The columns that look back, in the order in which they can be computed."""
        has_label_time = self.label_time is not None
        longest = round(self.windows.label_delay_days * DAY)
        measures: dict[tuple[int, str], list[Measure]] = defaultdict(list)
        for name, column, days in self.windows.expanded():
            if column.entity is not None:
                delay = round(self.windows.delay_of(column, has_label_time) * DAY)
                wait = longest if has_label_time and column.reads_labels else 0
                current = column.current and not column.is_of_past and not delay and not wait
                length = round(days * DAY)
                measure = Measure(name, column.compute, column.of, column.among, length, delay, current, wait)
                measures[self.windows.round_of(column), column.entity].append(measure)
        groups = (Group(round, entity, tuple(held)) for (round, entity), held in measures.items())
        return tuple(sorted(groups, key=lambda group: group.round))

    @property
    def rounds(self) -> int:
        """How often all is scattered and gathered; once where windows are of the data's own columns, or of the time."""
        return 1 + max((group.round for group in self.groups), default=0)

    @property
    def entities(self) -> tuple[str, ...]:
        """The columns whose equal values belong together."""
        return tuple(dict.fromkeys(group.entity for group in self.groups))

    @property
    def calendar(self) -> dict[str, str]:
        """The columns of the time alone: name, and what they hold."""
        return {name: column.compute for name, column, _ in self.windows.expanded() if not column.looks_back}

    @property
    def names(self) -> tuple[str, ...]:
        """All columns, in the order of the settings."""
        return tuple(name for name, _, _ in self.windows.expanded())

    @property
    def timestamp(self) -> str:
        name = self.data.of_kind("timestamp")
        assert name is not None, "settings require one"
        return name

    @property
    def label_time(self) -> str | None:
        """The column that says when a label became known."""
        return self.data.of_kind("label_time")

    @property
    def labels(self) -> tuple[str, ...]:
        """The columns that come with the labels, which may come later."""
        return (self.data.label, *([] if self.label_time is None else [self.label_time]))

    @property
    def values(self) -> tuple[str, ...]:
        """Columns of the data that are summed or compared, as numbers."""
        return tuple(dict.fromkeys(m.of for m in self._of_data if m.of and m.compute != "distinct"))

    @property
    def texts(self) -> tuple[str, ...]:
        """Columns of the data whose distinct values are counted."""
        return tuple(dict.fromkeys(m.of for m in self._of_data if m.of and m.compute == "distinct"))

    @property
    def _of_data(self) -> tuple[Measure, ...]:
        return tuple(measure for group in self.groups if not group.round for measure in group.measures)

    @property
    def reads(self) -> tuple[str, ...]:
        """All columns of the data that are needed; id and label among them so that labels may come later, by id."""
        names = [self.timestamp, *self.entities, *self.values, *self.texts, *self.labels, self.data.of_kind("id")]
        return tuple(dict.fromkeys(name for name in names if name is not None))

    def fingerprint(self) -> str:
        """SHA-256, in hexadecimal, over all that can change a value."""
        return self._fingerprint

    @cached_property
    def _fingerprint(self) -> str:  # a third of a millisecond, and asked for with each request
        relevant = {
            "windows": self.windows.model_dump(mode="json", exclude={"buckets"}),
            "columns": {name: self.data.columns[name].kind for name in self.reads},
            **({"repeats": self.data.repeats} if self.data.repeats != "refuse" else {}),
        }
        return hashlib.sha256(json.dumps([FORMAT, relevant], sort_keys=True).encode()).hexdigest()

    def to_json(self) -> dict[str, Any]:
        data, windows = self.data.model_dump(mode="json"), self.windows.model_dump(mode="json")
        return {"format": FORMAT, "data": data, "windows": windows}

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> Definition:
        """Raises DamagedError for another format than this version writes."""
        if stored.get("format") != FORMAT:
            raise DamagedError(
                f"the model's windows have format {stored.get('format')!r}, and this version of fraud_ray reads "
                f"{FORMAT}; use the model with the version that wrote it, or train it again with this one"
            )
        return cls(DataSettings.model_validate(stored["data"]), WindowsSettings.model_validate(stored["windows"]))
