"""All settings in one value, and what of them makes a run the same."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Any

from pydantic import (
    BaseModel,
    Field,
    ValidationError,
    model_validator,
)

from fraud_ray.redaction import starred, without_passwords
from fraud_ray.settings.base import NO_EFFECT, Frozen, fault_in_words, suggestion
from fraud_ray.settings.data import (
    DataSettings,
    FoldSettings,
    PrepareSettings,
    SimulateSettings,
    is_written,
    name_fault,
)
from fraud_ray.settings.decision import (
    AlertsPerDay,
    BacktestSettings,
    DecisionSettings,
    DriftSettings,
    GateSettings,
    RetrainSettings,
)
from fraud_ray.settings.places import CacheSettings, ClusterSettings, RegistrySettings, RunSettings, StorageSettings
from fraud_ray.settings.serving import ServingSettings
from fraud_ray.settings.training import Range, SearchSettings, TrainSettings
from fraud_ray.settings.windows import WindowsSettings

# Settings of `train` that say where and how safely it runs, so that a search over them finds nothing.
_UNSEARCHABLE = {"workers", "use_gpu", "resources_per_worker", "residency", "memory_budget", "max_failures"}


_MANY_STEPS = 200_000  # of 256 rows, in 50 epochs: a million rows


class Settings(Frozen):
    data: DataSettings
    simulate: SimulateSettings | None = None
    """Simulated data to write where data.path holds nothing; null: missing data is an error."""
    folds: FoldSettings = FoldSettings()
    windows: WindowsSettings | None = None
    """Columns computed from the past of each transaction's entities; null: the data is taken as it is."""
    prepare: PrepareSettings = PrepareSettings()
    train: TrainSettings = TrainSettings()
    search: SearchSettings = SearchSettings()
    decision: DecisionSettings = DecisionSettings()
    gate: GateSettings = GateSettings()
    backtest: BacktestSettings = Field(default=BacktestSettings(), json_schema_extra=NO_EFFECT)
    drift: DriftSettings = DriftSettings()
    retrain: RetrainSettings = RetrainSettings()
    registry: RegistrySettings = RegistrySettings()
    storage: StorageSettings = Field(default=StorageSettings(), json_schema_extra=NO_EFFECT)
    cache: CacheSettings = Field(default=CacheSettings(), json_schema_extra=NO_EFFECT)
    cluster: ClusterSettings = Field(default=ClusterSettings(), json_schema_extra=NO_EFFECT)
    serving: ServingSettings = Field(default=ServingSettings(), json_schema_extra=NO_EFFECT)
    run: RunSettings = Field(default=RunSettings(), json_schema_extra=NO_EFFECT)

    @model_validator(mode="before")
    @classmethod
    def _with_window_columns(cls, raw: Any) -> Any:
        """Declares the columns that `windows` computes, as features, where `data.columns` does not."""
        try:
            windows = WindowsSettings.model_validate(raw["windows"])
            declared = dict(raw["data"]["columns"])
        except (ValidationError, KeyError, TypeError, ValueError):
            return raw  # none, or a fault that the fields' own validation names
        for name, column, _ in windows.expanded():
            declared.setdefault(name, {"kind": "boolean"} if column.is_boolean else {"kind": "numeric", "nulls": True})
        return {**raw, "windows": windows, "data": {**raw["data"], "columns": declared}}

    @property
    def raw_data(self) -> DataSettings:
        """The data as it lies, without the columns that windows add."""
        computed = {name for name, _, _ in self.windows.expanded()} if self.windows else set()
        columns = {name: column for name, column in self.data.columns.items() if name not in computed}
        return self.data.model_copy(update={"columns": columns})

    def rank_resources(self, for_search: bool) -> dict[str, float]:
        """What Ray reserves for a rank of a trial or of the refit; a whole GPU where no share of one is given."""
        reserved = (for_search and self.search.resources_per_trial) or self.train.resources_per_worker
        return {**({"GPU": 1.0} if self.train.use_gpu else {}), **{str(k): float(v) for k, v in reserved.items()}}

    @model_validator(mode="after")
    def _names_are_free(self) -> Settings:
        windows = [name for name, _, _ in self.windows.expanded()] if self.windows else []
        # What is scored holds neither: a file may have them under any name.
        unscored = {self.data.of_kind("label"), self.data.of_kind("true_probability")}
        named = {"windows.columns": windows, "prepare.ratios": self.prepare.ratios, "data.columns": self.data.columns}
        for key, names in named.items():
            for name in names:
                taken = is_written(name) and name not in unscored
                fault = "is that of a column which scoring writes" if taken else name_fault(name)
                if fault:
                    raise ValueError(f"{key}: the name {name!r} {fault}; give the column another")
        return self

    @model_validator(mode="after")
    def _windows_are_of_declared_columns(self) -> Settings:
        if self.windows is None:
            return self
        raw = self.raw_data.columns
        numbers = {name for name, column, _ in self.windows.expanded() if column.looks_back}
        for pattern, column in self.windows.columns.items():
            for name in filter(None, (column.entity, column.of)):
                if name not in raw and not (name == column.of and name in numbers and column.compute != "distinct"):
                    raise ValueError(
                        f"windows.columns.{pattern} names '{name}', which is no column of the data; declare it under "
                        "data.columns (with feature: false where the model shall not read it)"
                    )
            of = self.data.columns[column.of].kind if column.of else None
            if of is not None and column.compute != "distinct" and of not in {"numeric", "amount", "boolean"}:
                raise ValueError(f"windows.columns.{pattern}: '{column.of}' is of kind '{of}', which is no number")
        timestamp = self.data.of_kind("timestamp")
        if timestamp is None or self.data.columns[timestamp].nulls:
            raise ValueError("windows needs a column of kind 'timestamp' without nulls under data.columns")
        reading = {name: column for name, column in self.windows.columns.items() if column.reads_labels}
        if self.data.of_kind("label_time"):
            if reading and "label_delay_days" not in self.windows.model_fields_set:
                raise ValueError(
                    "windows.label_delay_days: with a column of kind 'label_time', give the most days that a label may "
                    "take and still count in windows"
                )
            return self
        for pattern, column in reading.items():
            if self.windows.delay_of(column) < self.windows.label_delay_days:
                raise ValueError(
                    f"windows.columns.{pattern}: delay_days {column.delay_days:g} is below label_delay_days "
                    f"{self.windows.label_delay_days:g}; such labels are not known yet"
                )
        if self.folds.kind == "time" and self.windows.label_delay_days < self.folds.delay_days:
            raise ValueError(
                f"windows.label_delay_days {self.windows.label_delay_days:g} is below folds.delay_days "
                f"{self.folds.delay_days}; labels cannot be known to windows before they are to a fit"
            )
        return self

    @model_validator(mode="after")
    def _coherent(self) -> Settings:
        def needs(kind: str, key: str) -> None:
            if not self.data.of_kind(kind):
                raise ValueError(f"{key} needs a column of kind '{kind}'; declare one under data.columns")

        if self.folds.kind == "time":
            needs("timestamp", "folds.kind: time")
        if self.folds.kind == "entity":
            needs("entity", "folds.kind: entity")
        if self.folds.remove_compromised:
            needs("entity", "folds.remove_compromised")
            needs("timestamp", "folds.remove_compromised")
            if self.folds.kind != "time":
                raise ValueError("folds.remove_compromised goes with folds.kind: time")
        if self.decision.threshold == "min_cost":
            needs("amount", "decision.threshold: min_cost")
            if self.decision.cost_per_alert is None:
                raise ValueError("decision.threshold: min_cost needs decision.cost_per_alert, what an alert costs")
        if isinstance(self.decision.threshold, AlertsPerDay):
            needs("timestamp", "decision.threshold.alerts_per_day")
            for key in ("max_holdout_rows", "holdout"):
                if getattr(self.folds, key):
                    raise ValueError(
                        f"decision.threshold.alerts_per_day counts whole days, of which folds.{key} leaves a part: "
                        "unset one of them"
                    )
        for key, for_search in (("train.resources_per_worker", False), ("search.resources_per_trial", True)):
            share = self.rank_resources(for_search).get("GPU", 1.0)
            if self.train.use_gpu and self.train.workers > 1 and share < 1:
                raise ValueError(
                    f"{key} gives a rank {share:g} of a GPU, but ranks that exchange gradients (train.workers: "
                    f"{self.train.workers}) need one each: set GPU: 1, or train.workers: 1"
                )
        if not self.data.is_dated:
            hours = any(not column.looks_back for column in (self.windows.columns if self.windows else {}).values())
            told = {
                "prepare.calendar": self.prepare.calendar,
                "folds.start": self.folds.start,
                "folds.until": self.folds.until,
                "folds.holdout, as a time,": isinstance(self.folds.holdout, datetime),
                "windows of weekend, night or hour": hours,
            }
            for key in (key for key, is_set in told.items() if is_set):
                raise ValueError(f"{key} goes by a calendar, but the timestamp is counted since: start; unset one")
        if self.prepare.calendar:
            needs("timestamp", "prepare.calendar")
            timestamp = self.data.of_kind("timestamp")
            for name in (f"{timestamp}:hour", f"{timestamp}:weekday"):
                if name in self.data.columns or name in self.prepare.ratios:
                    raise ValueError(
                        f"prepare.calendar makes a column '{name}'; give the one that is there another name"
                    )
        if self.gate.slices and not self.decision.slices:
            raise ValueError("gate.slices judges the slices of decision.slices, which names none: name a column there")
        for name, columns in self.prepare.ratios.items():
            if name in self.data.columns:
                raise ValueError(f"prepare.ratios.{name} has the name of a column; give it another")
            for column in columns:
                if column not in self.data.features or self.data.columns[column].kind == "categorical":
                    raise ValueError(f"prepare.ratios.{name} names '{column}', which is no number that the model reads")
        numbers, edges = {"numeric", "amount"}, self.decision.slice_edges
        for name in self.decision.slices:
            kind = self.data.columns[name].kind if name in self.data.columns else None
            if kind in numbers and name not in edges:
                raise ValueError(f"decision.slices names '{name}', a number: say where its ranges begin in slice_edges")
            if kind not in {"categorical", *numbers}:
                raise ValueError(f"decision.slices names '{name}', which is no categorical column of data.columns")
        for name, of_column in edges.items():
            if name not in self.decision.slices or self.data.columns[name].kind not in numbers:
                raise ValueError(f"decision.slice_edges.{name} is of no number in decision.slices; name it there")
            if list(of_column) != sorted(set(of_column)):
                raise ValueError(f"decision.slice_edges.{name}: {list(of_column)} should rise")
        for name, options in self.search.space.items():
            self._searchable(name, options)
        return self

    def _searchable(self, name: str, options: Any) -> None:
        key = f"search.space.{name}"
        if name not in TrainSettings.model_fields:
            raise ValueError(f"{key}: train has no such setting{suggestion(name, TrainSettings.model_fields)}")
        if name in _UNSEARCHABLE:
            raise ValueError(f"{key} changes where training runs, not what it finds; set train.{name} instead")
        if isinstance(options, Range) and self.search.algorithm == "grid":
            raise ValueError(
                f"{key} is a range, which a grid cannot enumerate; "
                "list its values, or set search.algorithm to random or tpe"
            )
        names = list(self.search.space)
        for other in options.when:
            if other not in TrainSettings.model_fields:
                raise ValueError(f"{key}.when: train has no '{other}'{suggestion(other, TrainSettings.model_fields)}")
            if other in names and names.index(other) >= names.index(name):
                raise ValueError(f"{key}.when: '{other}' has to stand before '{name}' in search.space")
        tried = {name: (options.low, options.high) if isinstance(options, Range) else options.values, **options.when}
        for setting, values in tried.items():
            for value in values:
                try:
                    self.train_with({setting: value})
                except ValidationError as fault:
                    raise ValueError(f"{key}: {value!r} {fault_in_words(fault.errors()[0])}") from None

    def train_with(self, hyperparameters: dict[str, Any]) -> TrainSettings:
        """The train settings with a trial's hyperparameters in their place, validated."""
        return TrainSettings.model_validate({**self.train.model_dump(), **hyperparameters})

    def remark_on_steps(self, rows: int) -> str | None:
        """What to set where the defaults of `train`, made for little data, take far more steps over so many fit rows
        than a network needs; None where they do not, or others are set or searched."""
        small, larger = TrainSettings(), {"batch_size": 1_024, "epochs": 12}  # as configs/cluster.yaml has them

        def steps(batch_size: int, epochs: int) -> int:
            return math.ceil(rows / batch_size) * epochs

        taken = steps(self.train.batch_size, self.train.epochs)
        is_default = all(
            getattr(self.train, name) == getattr(small, name) and name not in self.search.space for name in larger
        )
        if taken < _MANY_STEPS or not is_default:
            return None
        better = " ".join(f"--set train.{name}={value}" for name, value in larger.items())
        return (
            f"train.batch_size and train.epochs are at their defaults, {taken:,} steps over {rows:,} fit rows; "
            f"{steps(**larger):,} are enough for that many: {better}"
        )

    def identity(self) -> dict[str, Any]:
        """Dotted keys and values of every setting that can change a run's result; passwords in URIs starred out."""
        return dict(dotted(starred(_result_relevant(self), without_passwords)))

    def resolved(self) -> dict[str, Any]:
        """All settings with every default filled in, as JSON types."""
        return self.model_dump(mode="json")

    def recorded(self) -> dict[str, Any]:
        """As `resolved`, with the passwords in URIs starred out: what is kept, and shown to others."""
        return starred(self.resolved(), without_passwords)

    def changed(self) -> dict[str, Any]:
        """Those of `recorded` that differ from the defaults."""
        return starred(self.model_dump(mode="json", exclude_defaults=True), without_passwords)


def settings_hash(settings: Settings) -> str:
    """SHA-256 over the settings that can change the result, in hexadecimal."""
    return hashlib.sha256(json.dumps(settings.identity(), sort_keys=True, default=str).encode()).hexdigest()


def _result_relevant(model: BaseModel) -> dict[str, Any]:
    kept = {}
    for name, field in type(model).model_fields.items():
        if field.json_schema_extra == NO_EFFECT:
            continue
        value = getattr(model, name)
        kept[name] = (
            _result_relevant(value)
            if isinstance(value, BaseModel)
            else model.model_dump(mode="json", include={name})[name]
        )
    return kept


def dotted(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The dotted keys and the values of nested mappings; an empty one is a value."""
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            yield from dotted(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
