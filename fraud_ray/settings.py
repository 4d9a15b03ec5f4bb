"""Typed, frozen settings: YAML and overrides in, one validated value out; the only reader of configuration files."""

from __future__ import annotations

import difflib
import hashlib
import json
import re
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import date, timedelta
from pathlib import Path
from typing import Annotated, Any, Literal
from zoneinfo import available_timezones

import yaml
from annotated_types import Ge, Gt, Le, Lt
from pydantic import (
    BaseModel,
    BeforeValidator,
    ByteSize,
    ConfigDict,
    Discriminator,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    SerializerFunctionWrapHandler,
    Tag,
    TypeAdapter,
    ValidationError,
    field_validator,
    model_serializer,
    model_validator,
)

from fraud_ray.errors import SettingsError
from fraud_ray.provenance import without_passwords

Share = Annotated[float, Field(gt=0, lt=1)]
Probability = Annotated[float, Field(ge=0, le=1)]
Encoding = Literal["standard", "signed_log", "piecewise_linear"]
Reference = Literal["logistic_regression", "random_forest", "xgboost", "lightgbm"]

# A setting marked so may change between two starts of the same run: it cannot change the result.
NO_EFFECT: dict[str, Any] = {"affects_result": False}

# Settings of `train` that say where and how safely it runs, so that a search over them finds nothing.
_UNSEARCHABLE = {"workers", "use_gpu", "resources_per_worker", "residency", "memory_budget", "max_failures"}


def _alternatives(branch_of: Callable[[Any], str | None], wanted: str) -> Discriminator:
    """Lets one branch of a union judge a value, so that a bad value is one fault; None: `wanted` is the fault's text.

    Branch tags begin with '<', which keeps them out of dotted keys.
    """
    return Discriminator(branch_of, custom_error_type="alternatives", custom_error_message=f"should be {wanted}")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


class Frozen(BaseModel):
    """Base of all settings: immutable, unknown keys refused, each field described by the text below it."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False, validate_default=True
    )


class ColumnSettings(Frozen):
    kind: Literal[
        "numeric", "categorical", "boolean", "amount", "label", "timestamp", "entity", "id", "true_probability"
    ]
    """What the column holds. `amount` is a number in currency units; `entity` is the card or customer;
    `true_probability` is a simulator's own fraud probability, never a feature."""
    feature: bool | None = None
    """Whether the model reads it; by default numeric, categorical, boolean and amount columns are read."""
    min: float | None = None
    """Smallest value that the contract allows."""
    max: float | None = None
    """Largest value that the contract allows."""
    nulls: bool = False
    """Whether missing values (and NaN) are allowed."""
    values: tuple[str, ...] | None = None
    """The only values that the contract allows, for a categorical column; by default any."""
    encodings: tuple[Encoding, ...] | None = None
    """How a number enters the network; by default `prepare.numeric_encodings`. Empty: only through ratios."""

    @property
    def is_feature(self) -> bool:
        could_be = self.kind in {"numeric", "categorical", "boolean", "amount"}
        return could_be if self.feature is None else self.feature

    @model_validator(mode="after")
    def _consistent(self) -> ColumnSettings:
        if self.feature and self.kind in {"label", "true_probability", "timestamp", "entity", "id"}:
            raise ValueError(f"a column of kind '{self.kind}' cannot be a feature; declare it without 'feature: true'")
        if self.min is not None and self.max is not None and self.min > self.max:
            raise ValueError(f"min {self.min} is above max {self.max}")
        if self.values is not None and self.kind != "categorical":
            raise ValueError(f"'values' is for categorical columns, this one is '{self.kind}'")
        if self.nulls and self.kind == "label":
            raise ValueError("a label cannot be missing; leave rows without one out of the data")
        return self


class DataSettings(Frozen):
    path: str
    """Folder (or URI) of the parquet partitions, hive-partitioned or flat."""
    columns: dict[str, ColumnSettings]
    """The declared columns by name; all others are ignored."""

    @model_validator(mode="after")
    def _roles(self) -> DataSettings:
        for kind in ("label", "timestamp", "entity", "id", "amount", "true_probability"):
            named = [name for name, column in self.columns.items() if column.kind == kind]
            if len(named) > 1:
                raise ValueError(f"columns {', '.join(named)} are all of kind '{kind}'; declare one")
        if not self.of_kind("label"):
            raise ValueError("no column has kind 'label'; declare the one that says whether a row is fraud")
        if not self.features:
            raise ValueError("no column is a feature; declare at least one numeric, categorical or boolean column")
        return self

    def of_kind(self, kind: str) -> str | None:
        """The name of the column of this kind, or None where none is declared."""
        return next((name for name, column in self.columns.items() if column.kind == kind), None)

    @property
    def features(self) -> tuple[str, ...]:
        return tuple(name for name, column in self.columns.items() if column.is_feature)

    @property
    def label(self) -> str:
        name = self.of_kind("label")
        assert name is not None, "validated above"
        return name


class SimulateSettings(Frozen):
    rows: PositiveInt = 200_000
    """Transactions to write."""
    days: PositiveInt = 60
    """Days that they spread over."""
    start: date = date(2024, 1, 1)
    """First day."""
    seed: NonNegativeInt = 7
    """Seed of the world; the same seed gives the same rows whatever the parallelism."""


class FoldSettings(Frozen):
    kind: Literal["time", "entity", "stratified"] = "time"
    """`time`: fit, label delay, holdout; `entity`: a share of cards held out; `stratified`: a share of rows,
    fraud rate kept."""
    start: date | None = None
    """time: first fit day of the final fold; by default the latest that leaves room for delay and holdout."""
    fit_days: PositiveInt = 30
    """time: days fitted on."""
    delay_days: NonNegativeInt = 7
    """time: days between fit and holdout, in which labels are not known yet."""
    holdout_days: PositiveInt = 7
    """time: days held out."""
    selection_shift_days: tuple[PositiveInt, ...] = (7,)
    """time: one selection fold an entry, that many days before the final fold."""
    holdout_share: Share = 0.2
    """entity, stratified: share held out."""
    selection_folds: PositiveInt = 1
    """entity, stratified: selection folds cut from the final fold's fit rows."""
    seed: NonNegativeInt = 42
    """entity, stratified and row limits: seed of the draw."""
    remove_compromised: bool = False
    """Leave out of each holdout day the entities whose fraud was known by then (needs entity and timestamp)."""
    max_fit_rows: PositiveInt | None = None
    """Limit on the fit rows of a fold, drawn at random; none by default."""
    max_holdout_rows: PositiveInt | None = None
    """Limit on the holdout rows of a fold, drawn at random; none by default."""
    limits_apply_to: Literal["all", "selection"] = "all"
    """Whether the row limits hold for all folds or for the search's alone."""

    @model_validator(mode="after")
    def _selection_fits(self) -> FoldSettings:
        if self.kind != "time" and self.selection_folds * self.holdout_share > 1:
            raise ValueError(
                f"{self.selection_folds} selection folds that each hold out {self.holdout_share:g} of the final fold's "
                "fit rows take more than all of them; lower selection_folds or holdout_share"
            )
        return self


_OF_CALENDAR = {"weekend", "night", "hour_sin", "hour_cos"}
_OF_PAST = {"since_last", "since_first", "streak", "since_streak", "ratio_to_mean", "ratio_to_max", "deviations"}
_WITHOUT_COLUMN = _OF_CALENDAR | {"count", "share", "since_last", "since_first", "streak", "since_streak"}


class WindowColumnSettings(Frozen):
    compute: Literal[
        "count",
        "share",
        "sum",
        "mean",
        "min",
        "max",
        "std",
        "distinct",
        "since_last",
        "since_first",
        "streak",
        "since_streak",
        "ratio_to_mean",
        "ratio_to_max",
        "deviations",
        "weekend",
        "night",
        "hour_sin",
        "hour_cos",
    ]
    """What the column holds, of the entity's transactions in the window: their `count`, and the `share` that is
    `among`; `sum`, `mean`, `min`, `max`, `std` and number of `distinct` values of a column; days `since_last` and
    `since_first` of them; the `streak` of latest ones that are all `among`, and the days `since_streak` began; the
    transaction's own value over their mean (`ratio_to_mean`) or maximum (`ratio_to_max`), and its distance from their
    mean in standard deviations (`deviations`). Of the time alone: `weekend`, `night`, and the hour on a circle
    (`hour_sin`, `hour_cos`)."""
    entity: str | None = None
    """Column whose equal values belong together: customer, card, terminal, merchant or device."""
    of: str | None = None
    """Column whose values are summed, compared, or counted distinct."""
    days: tuple[PositiveFloat, ...] = ()
    """Lengths of windows; each gives a column, with the length in place of `{days}` in the name."""
    among: Literal["all", "frauds", "legitimate"] = "all"
    """Which transactions count. By their label, which is known label_delay_days later; one that has no label by then is
    legitimate."""
    delay_days: NonNegativeFloat | None = None
    """The window ends that long before the transaction; by default 0, and label_delay_days where labels are read."""
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
    """Age from which on a transaction's label is known."""
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
            if column.reads_labels and self.delay_of(column) < self.label_delay_days:
                raise ValueError(
                    f"columns.{pattern}: delay_days {column.delay_days:g} is below label_delay_days "
                    f"{self.label_delay_days:g}; such labels are not known yet"
                )
        names = [name for name, _, _ in self.expanded()]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice:
            raise ValueError(f"columns: two of them are called '{twice}'")
        return self

    def delay_of(self, column: WindowColumnSettings) -> float:
        """How long before a transaction its window ends, in days."""
        if column.delay_days is not None:
            return column.delay_days
        return self.label_delay_days if column.reads_labels else 0.0

    def expanded(self) -> Iterator[tuple[str, WindowColumnSettings, float]]:
        """Each column's name, what it holds, and the length of its window in days (0 where it has none)."""
        for pattern, column in self.columns.items():
            for days in column.days or (0.0,):
                yield pattern.replace("{days}", f"{days:g}"), column, days


class PrepareSettings(Frozen):
    numeric_encodings: Annotated[tuple[Encoding, ...], Field(min_length=1)] = ("standard", "signed_log")
    """How numeric columns enter the network: standardised on fit rows, plain and after a signed logarithm; in pieces
    with edges at quantiles of the fit rows and of their frauds."""
    piecewise_bins: PositiveInt = 8
    """piecewise_linear: parts of equal size that the edges divide all fit rows into, and the frauds likewise."""
    ratios: dict[str, tuple[str, str]] = {}
    """Further numbers by name: [numerator, denominator], two columns that the model reads. Encoded like a column."""
    min_category_rows: PositiveInt = 20
    """Categories with fewer fit rows share the rare bucket."""
    max_categories: PositiveInt = 1_000
    """Most categories of a column with a code of their own; the others share the rare bucket."""


def _memory_in_bytes(resources: Any) -> Any:
    if isinstance(resources, dict) and isinstance(resources.get("memory"), str):
        return {**resources, "memory": int(TypeAdapter(ByteSize).validate_python(resources["memory"]))}
    return resources


Resources = Annotated[dict[Literal["CPU", "GPU", "memory"], PositiveFloat], BeforeValidator(_memory_in_bytes)]


def _branch_of_weight(value: Any) -> str | None:
    return "<number>" if _is_number(value) else "<balanced>" if value == "balanced" else None


PositiveWeight = Annotated[
    Annotated[PositiveFloat, Tag("<number>")] | Annotated[Literal["balanced"], Tag("<balanced>")],
    _alternatives(_branch_of_weight, "a number above 0 or 'balanced'"),
]


class TrainSettings(Frozen):
    network: Literal["mlp", "residual"] = "mlp"
    """mlp: one layer after the other; residual: blocks that each add their output to their input."""
    hidden_sizes: tuple[PositiveInt, ...] = (128, 64)
    """Units of the hidden layers; residual: units throughout, then the hidden units of each block."""
    activation: Literal["relu", "silu"] = "relu"
    """What follows a hidden layer."""
    layer_norm: bool = False
    """Whether hidden units are normalised, before each activation or at the start of each block."""
    embedding_size: PositiveInt | None = None
    """Size of a learned embedding for each categorical column; null: one-hot."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.3
    """Share of hidden units dropped in training."""
    members: PositiveInt = 1
    """Networks trained side by side, whose mean probability counts."""
    member_weights: Literal["own", "shared"] = "own"
    """Whether members have weights of their own, or share them but for scales of inputs and outputs (TabM)."""
    loss: Literal["bce", "focal"] = "bce"
    """Loss on logits."""
    focal_gamma: NonNegativeFloat = 2.0
    """focal: how strongly easy rows are played down."""
    positive_weight: PositiveWeight = 1.0
    """Weight of a fraud in the loss; `balanced` is legitimate rows over frauds."""
    negative_share: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Share of the legitimate rows drawn afresh each epoch, weighted back."""
    optimizer: Literal["adam", "adamw"] = "adamw"
    """Optimiser."""
    learning_rate: PositiveFloat = 1e-3
    """Peak learning rate."""
    weight_decay: NonNegativeFloat = 0.01
    """adamw: decoupled weight decay."""
    schedule: Literal["constant", "cosine"] = "constant"
    """Learning rate over the steps: constant, or a cosine to zero over `epochs`."""
    warmup_share: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of all steps in which the learning rate rises linearly to its peak."""
    epochs: PositiveInt = 50
    """Most passes over the fit rows."""
    patience_epochs: PositiveInt | None = 5
    """Epochs without a better selection AP before a trial stops; null: never."""
    batch_size: PositiveInt = 256
    """Rows a step, over all ranks."""
    workers: PositiveInt = 1
    """Ranks of DistributedDataParallel."""
    use_gpu: bool = False
    """Whether each rank trains on a GPU."""
    resources_per_worker: Resources = Field(default={"CPU": 1}, json_schema_extra=NO_EFFECT)
    """What Ray reserves for a rank: CPU and GPU in devices (fractions allowed), memory in bytes or as 32GiB."""
    precision: Literal["float32", "bf16"] = "float32"
    """bf16: autocast on a GPU."""
    residency: Literal["auto", "resident", "streamed"] = "auto"
    """Whether prepared rows lie in the object store or are streamed from storage; auto: by `memory_budget`."""
    memory_budget: ByteSize = Field(default=ByteSize(4 * 2**30), json_schema_extra=NO_EFFECT)
    """Most bytes of prepared rows held resident; beyond it they are streamed."""
    seed: NonNegativeInt = 42
    """Seed of weights, order and dropout."""
    max_failures: NonNegativeInt = Field(default=3, json_schema_extra=NO_EFFECT)
    """How often training is recovered from its checkpoint after a worker died."""


def _as_tuple(value: Any) -> Any:
    return tuple(tuple(v) if isinstance(v, list) else v for v in value) if isinstance(value, list | tuple) else value


def _as_alternatives(value: Any) -> Any:
    return tuple(value) if isinstance(value, list | tuple) else (value,)


Conditions = dict[str, Annotated[tuple[Any, ...], BeforeValidator(_as_alternatives)]]


class Range(Frozen):
    low: float
    """Smallest value."""
    high: float
    """Largest value."""
    log: bool = False
    """Draw evenly on a logarithmic scale."""
    when: Conditions = {}
    """Searched only where these hyperparameters have this value, or one of these."""

    @model_validator(mode="after")
    def _ordered(self) -> Range:
        if not self.low < self.high:
            raise ValueError(f"low {self.low} is not below high {self.high}")
        if self.log and self.low <= 0:
            raise ValueError(f"a logarithmic range starts above 0, not at {self.low}")
        return self


class Listed(Frozen):
    values: Annotated[tuple[Any, ...], BeforeValidator(_as_tuple), Field(min_length=1)]
    """The values to choose from."""
    when: Conditions = {}
    """Searched only where these hyperparameters have this value, or one of these."""

    @property
    def plain(self) -> list[Any]:
        """The values as JSON gives them back, so that a point and its stored form have the same identity."""
        values: list[Any] = json.loads(json.dumps(self.values))
        return values

    @model_serializer(mode="wrap")
    def _short(self, dump: SerializerFunctionWrapHandler) -> Any:
        return dump(self) if self.when else self.plain


def _branch_of_options(value: Any) -> str | None:
    if isinstance(value, Listed | list | tuple) or (isinstance(value, dict) and "values" in value):
        return "<list>"
    return "<range>" if isinstance(value, dict | Range) else None


def _listed(value: Any) -> Any:
    return {"values": value} if isinstance(value, list | tuple) else value


Options = Annotated[
    Annotated[Range, Tag("<range>")] | Annotated[Listed, BeforeValidator(_listed), Tag("<list>")],
    _alternatives(_branch_of_options, "a list of values or {low: …, high: …, log: true or false}"),
]


# What `search.space: default` stands for.
DEFAULT_SPACE: Mapping[str, Any] = types.MappingProxyType(
    {
        "network": ["mlp", "residual"],
        "hidden_sizes": [[128, 64], [64, 128, 128], [128, 128, 128]],
        "activation": ["relu", "silu"],
        "layer_norm": [False, True],
        "members": [1, 4],
        "member_weights": {"values": ["own", "shared"], "when": {"members": 4}},
        "dropout": {"low": 0.0, "high": 0.4},
        "learning_rate": {"low": 0.001, "high": 0.005, "log": True},
        "weight_decay": {"low": 0.001, "high": 0.3, "log": True, "when": {"optimizer": "adamw"}},
        "schedule": ["constant", "cosine"],
    }
)


def _spelled_out(space: Any) -> Any:
    return dict(DEFAULT_SPACE) if space == "default" else space


class SearchSettings(Frozen):
    space: Annotated[dict[str, Options], BeforeValidator(_spelled_out)] = {}
    """Hyperparameters of `train` to search: a list of values, or {low, high, log}; {values, when: {NAME: VALUE}} and
    {low, high, log, when} only where an earlier one has a value. `default`: a space that did well on the handbook's
    folds, for random and tpe. Empty: one trial."""
    algorithm: Literal["grid", "random", "tpe"] = "grid"
    """grid: every combination of the lists; random; tpe: Optuna's estimator."""
    trials: PositiveInt = 16
    """random, tpe: trials to run."""
    scheduler: Literal["none", "asha", "median"] = "none"
    """How weak trials are stopped early."""
    grace_epochs: PositiveInt = 5
    """asha, median: epochs before a trial can be stopped by the scheduler."""
    concurrency: PositiveInt | None = Field(default=None, json_schema_extra=NO_EFFECT)
    """Most trials at once; by default as many as the resources hold."""
    time_budget_s: PositiveFloat | None = None
    """Seconds after which no further trial starts and running ones end."""
    resources_per_trial: Resources | None = Field(default=None, json_schema_extra=NO_EFFECT)
    """What one rank of a trial reserves, where it differs from `train.resources_per_worker` (GPU: 0.25 packs four
    trials on one)."""
    seed: NonNegativeInt = 42
    """Seed of the draws."""


class RecallAtPrecision(Frozen):
    recall_at_precision: Share
    """Highest recall among thresholds whose precision is at least this."""


class AlertsPerDay(Frozen):
    alerts_per_day: PositiveFloat
    """As many alerts a day as the team can look at (needs a timestamp)."""


def _branch_of_threshold(value: Any) -> str | None:
    if isinstance(value, RecallAtPrecision) or (isinstance(value, dict) and "recall_at_precision" in value):
        return "<recall>"
    if isinstance(value, AlertsPerDay) or (isinstance(value, dict) and "alerts_per_day" in value):
        return "<alerts>"
    return "<probability>" if _is_number(value) else "<rule>" if value in ("max_f1", "min_cost") else None


ThresholdRule = Annotated[
    Annotated[Literal["max_f1", "min_cost"], Tag("<rule>")]
    | Annotated[Probability, Tag("<probability>")]
    | Annotated[RecallAtPrecision, Tag("<recall>")]
    | Annotated[AlertsPerDay, Tag("<alerts>")],
    _alternatives(
        _branch_of_threshold, "max_f1, min_cost, a probability, {recall_at_precision: …} or {alerts_per_day: …}"
    ),
]


class DecisionSettings(Frozen):
    calibration: Literal["none", "platt", "isotonic"] = "platt"
    """How scores become probabilities; fitted on the selection holdouts."""
    threshold: ThresholdRule = "max_f1"
    """`max_f1`, `min_cost`, a fixed probability, `{recall_at_precision: 0.9}` or `{alerts_per_day: 100}`; chosen on the
    selection holdouts. `min_cost`: a missed fraud costs its amount, an alert `cost_per_alert`."""
    cost_per_alert: PositiveFloat | None = None
    """What it costs to look into an alert, in the currency of the amount; null: not known, and no money saved is
    reported."""
    precision_at: tuple[PositiveInt, ...] = (100, 1_000)
    """k of precision at k."""
    card_precision_at: PositiveInt = 100
    """k of Card Precision: cards that are looked at each day."""
    bootstrap_repeats: NonNegativeInt = 200
    """Resamples behind each interval; 0: none."""
    confidence: Share = 0.95
    """Level of the intervals."""
    importance_rows: NonNegativeInt = 20_000
    """Rows of a selection holdout on which each column's importance is measured, all frauds among them; 0: none."""
    slices: tuple[str, ...] = ()
    """Categorical columns whose values are evaluated one by one."""
    seed: NonNegativeInt = 42
    """Seed of the bootstrap."""


class SliceGate(Frozen):
    metric: Literal["f1_score", "recall", "precision", "average_precision", "auc_roc"] = "recall"
    """What is bounded."""
    min: Probability
    """Smallest value allowed in any slice."""
    min_frauds: PositiveInt = 20
    """Slices with fewer frauds are not judged."""


class GateSettings(Frozen):
    min_f1: Probability | None = 0.85
    """Smallest F1 at the threshold; null: not checked."""
    min_average_precision: Probability | None = None
    """Smallest average precision."""
    min_auc: Probability | None = None
    """Smallest ROC AUC."""
    max_calibration_error: Probability | None = None
    """Largest expected calibration error (ten bins of equal count)."""
    slices: SliceGate | None = None
    """Bound for each value of each column in decision.slices."""
    beats_champion: bool = False
    """Whether the champion, scored on the same holdout, must not be better in average precision."""


class BacktestSettings(Frozen):
    shift_days: Annotated[tuple[NonNegativeInt, ...], Field(min_length=1)] = (0, 7, 14, 21)
    """One final fold an entry, that many days before the final fold of a run."""
    references: tuple[Reference, ...] = typing.get_args(Reference)
    """Models fitted beside the network on the same folds and columns, with as many trials; those whose package is not
    installed are left out (extra `compare`)."""


class DriftSettings(Frozen):
    action: Literal["ignore", "warn", "fail"] = Field(default="ignore", json_schema_extra=NO_EFFECT)
    """What `run` does when the data has drifted from what the champion was fitted on: `ignore` measures and reports
    it, `warn` also puts a warning into the plan, `fail` stops before training, with exit code 5."""
    days: PositiveInt | None = None
    """Today's data is that of the newest days, this many of them; null: everything at data.path."""
    max_ks: PositiveFloat = 0.1
    """Largest Kolmogorov-Smirnov statistic of a number or the model's score: the largest distance between the two
    cumulative distributions."""
    max_psi: PositiveFloat = 0.2
    """Largest population stability index: of a number or the score over the reference's deciles, of a category over
    its most frequent values."""
    max_missing_change: PositiveFloat = 0.05
    """Largest change of a column's share of missing values, up or down."""
    max_new_category_share: PositiveFloat = 0.01
    """Largest share of rows whose category the reference does not have."""
    max_label_rate_ratio: Annotated[float, Field(gt=1)] = 2.0
    """Largest ratio of the two fraud rates, either way; rows whose label is not known yet do not count, but frauds that
    are still labelled as legitimate do."""


class RetrainSettings(Frozen):
    metric: Literal["f1_score", "average_precision", "auc_roc"] | None = None
    """What champion and challenger are compared by; by default the first of them that the gate bounds, else F1."""
    margin: NonNegativeFloat = 0.005
    """How much better than the champion a challenger has to be to take its place."""
    repeats: PositiveInt = 1_000
    """Resamples of the paired bootstrap; its interval, at decision.confidence, has to lie above 0."""


class RegistrySettings(Frozen):
    uri: str | None = None
    """MLflow's tracking and registry URI; by default sqlite below storage.root."""
    experiment: str = "fraud-detection-experiments"
    """MLflow experiment."""
    run_name: str = "fraud-detection-training"
    """Name of the parent run in MLflow."""
    model_name: str = "fraud-detection-production"
    """Registered model."""


class StorageSettings(Frozen):
    root: str = Field(default=".fraud_ray", json_schema_extra=NO_EFFECT)
    """Folder or URI of runs and prepared data; on a cluster shared by all nodes."""


class CacheSettings(Frozen):
    max_staleness: timedelta | None = timedelta(days=7)
    """Age from which prepared data is computed anew, as an ISO 8601 duration such as P7D or PT12H; PT0S: always;
    null: never."""


class ClusterSettings(Frozen):
    address: str | None = None
    """Ray's address; by default RAY_ADDRESS, else a Ray is started here."""
    cpus: PositiveInt | None = None
    """CPUs of a Ray started here; by default all."""
    dashboard: bool = False
    """Whether a Ray started here serves its dashboard."""
    autoscaling: bool = False
    """Whether nodes may still come, so that a shortage is waited for."""
    wait_s: PositiveFloat = 900
    """autoscaling: seconds to wait for resources."""
    overlay: str | None = None
    """Folder below cluster/overlays whose RayJob `fraud-ray submit --to kuberay` fills in."""
    image: str | None = None
    """Image of a submitted run's pods; by default the overlay's."""


class RunSettings(Frozen):
    name: str | None = None
    """The run's identity; may hold a date ({as_of:%Y-%m}); by default <config>-<as_of>-<hash>."""

    @field_validator("name")
    @classmethod
    def _formats(cls, name: str | None) -> str | None:
        if name is None:
            return name
        try:
            shown = name.format(as_of=date(2024, 1, 1))
        except (KeyError, IndexError, ValueError) as fault:
            raise ValueError(f"'{name}' does not format; the only field is {{as_of}}, as in {{as_of:%Y-%m}}") from fault
        if not shown or not all(c.isalnum() or c in "-_." for c in shown) or not shown[0].isalnum():
            raise ValueError(
                f"'{shown}' must begin with a letter or digit and hold letters, digits, '-', '_', '.' only"
            )
        return name


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
        return {**raw, "data": {**raw["data"], "columns": declared}}

    @property
    def raw_data(self) -> DataSettings:
        """The data as it lies, without the columns that windows add."""
        computed = {name for name, _, _ in self.windows.expanded()} if self.windows else set()
        columns = {name: column for name, column in self.data.columns.items() if name not in computed}
        return self.data.model_copy(update={"columns": columns})

    @model_validator(mode="after")
    def _windows_are_of_declared_columns(self) -> Settings:
        if self.windows is None:
            return self
        raw = self.raw_data.columns
        for pattern, column in self.windows.columns.items():
            for name in filter(None, (column.entity, column.of)):
                if name not in raw:
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
            if self.folds.max_holdout_rows:
                raise ValueError(
                    "decision.threshold.alerts_per_day counts whole days, of which folds.max_holdout_rows leaves a "
                    "sample: unset one of them"
                )
        if self.gate.slices and not self.decision.slices:
            raise ValueError("gate.slices judges the slices of decision.slices, which names none: name a column there")
        for name, columns in self.prepare.ratios.items():
            if name in self.data.columns:
                raise ValueError(f"prepare.ratios.{name} has the name of a column; give it another")
            for column in columns:
                if column not in self.data.features or self.data.columns[column].kind == "categorical":
                    raise ValueError(f"prepare.ratios.{name} names '{column}', which is no number that the model reads")
        for name in self.decision.slices:
            if name not in self.data.columns or self.data.columns[name].kind != "categorical":
                raise ValueError(f"decision.slices names '{name}', which is no categorical column of data.columns")
        for name, options in self.search.space.items():
            self._searchable(name, options)
        return self

    def _searchable(self, name: str, options: Any) -> None:
        key = f"search.space.{name}"
        if name not in TrainSettings.model_fields:
            raise ValueError(f"{key}: train has no such setting{_nearest(name, TrainSettings.model_fields)}")
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
                raise ValueError(f"{key}.when: train has no '{other}'{_nearest(other, TrainSettings.model_fields)}")
            if other in names and names.index(other) >= names.index(name):
                raise ValueError(f"{key}.when: '{other}' has to stand before '{name}' in search.space")
        tried = {name: (options.low, options.high) if isinstance(options, Range) else options.values, **options.when}
        for setting, values in tried.items():
            for value in values:
                try:
                    self.train_with({setting: value})
                except ValidationError as fault:
                    raise ValueError(f"{key}: {value!r} {_wording(fault.errors()[0])}") from None

    def train_with(self, hyperparameters: dict[str, Any]) -> TrainSettings:
        """The train settings with a trial's hyperparameters in their place, validated."""
        return TrainSettings.model_validate({**self.train.model_dump(), **hyperparameters})

    def identity(self) -> dict[str, Any]:
        """Dotted keys and values of every setting that can change a run's result; passwords in URIs starred out."""
        return dict(dotted(_starred(_result_relevant(self))))

    def resolved(self) -> dict[str, Any]:
        """All settings with every default filled in, as JSON types."""
        return self.model_dump(mode="json")

    def recorded(self) -> dict[str, Any]:
        """As `resolved`, with the passwords in URIs starred out: what is kept, and shown to others."""
        return _starred(self.resolved())


def settings_hash(settings: Settings) -> str:
    """SHA-256 over the settings that can change the result, in hexadecimal."""
    return hashlib.sha256(json.dumps(settings.identity(), sort_keys=True, default=str).encode()).hexdigest()


@dataclass(frozen=True)
class Loaded:
    """Settings as read, the name of the configuration they came from, and remarks for the plan line.

    beside: what else tells one run from another, by dotted key.
    """

    settings: Settings
    config: str
    notes: tuple[str, ...] = ()
    beside: dict[str, Any] | None = None


def load_settings(path: str | Path, overrides: typing.Sequence[str] = ()) -> Loaded:
    """Reads a YAML file and applies `a.b.c=VALUE` overrides (values are YAML).

    A hyperparameter overridden under `train` leaves `search.space`, and a note says so.
    Raises SettingsError that lists every fault by its dotted key.
    """
    path = Path(path)
    if not path.is_file():
        near = sorted(str(p) for p in Path("configs").glob("*.yaml"))
        raise SettingsError(f"no configuration file at {path}" + (f"; there are {', '.join(near)}" if near else ""))
    try:
        raw = _read_yaml(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as fault:
        raise SettingsError(f"{path} cannot be read: {fault}") from None
    except yaml.YAMLError as fault:
        raise SettingsError(f"{path} is not valid YAML: {fault}") from None
    if not isinstance(raw, dict):
        raise SettingsError(f"{path} holds no settings; it should be a mapping with at least 'data'")
    notes = _override(raw, overrides)
    return Loaded(parse_settings(raw, str(path)), path.stem, notes)


class _Loader(yaml.SafeLoader):
    """PyYAML reads YAML 1.1, where 1e-4 is text; here it is a number, as in YAML 1.2."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)


def _read_yaml(text: str) -> Any:
    return yaml.load(text, _Loader)


def parse_settings(raw: dict[str, Any], where: str) -> Settings:
    """Validates a mapping; raises SettingsError with one line a fault, each with its dotted key."""
    try:
        settings = Settings.model_validate(raw)
    except ValidationError as fault:
        lines = dict.fromkeys(_explain(error) for error in fault.errors())
        raise SettingsError("\n".join(f"{where}: {line}" for line in lines)) from None
    return settings.model_copy(update={"registry": locate_registry(settings.registry, settings.storage, where)})


def locate_registry(registry: RegistrySettings, storage: StorageSettings, where: str) -> RegistrySettings:
    """The registry with its URI, by default sqlite below the storage's root. Raises SettingsError for a bucket."""
    if registry.uri is not None:
        return registry
    root = storage.root
    if "://" in root:
        raise SettingsError(
            f"{where}: storage.root is {root}, where no sqlite can lie; name a tracking server with registry.uri"
        )
    uri = f"sqlite:///{Path(root).expanduser().absolute()}/mlflow.db"
    return registry.model_copy(update={"uri": uri})


def _override(raw: dict[str, Any], overrides: typing.Sequence[str]) -> tuple[str, ...]:
    keys = []
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals or not key:
            raise SettingsError(f"--set {override}: write it as --set section.key=VALUE")
        try:
            value = _read_yaml(text)
        except yaml.YAMLError:
            raise SettingsError(f"--set {key}: '{text}' is not a YAML value; quote it") from None
        _spell_out_space(raw)
        _put(raw, key.split("."), value)
        keys.append(key)
    notes = []
    _spell_out_space(raw)
    space = (raw.get("search") or {}).get("space") or {}
    for key in keys:
        section, _, name = key.partition(".")
        if section == "train" and name in space and f"search.space.{name}" not in keys:
            del space[name]
            notes.append(f"{name} is set, so it leaves search.space")
    return tuple(notes)


def _spell_out_space(raw: dict[str, Any]) -> None:
    """Lets overrides change and remove what `search.space: default` stands for."""
    if isinstance(raw.get("search"), dict) and "space" in raw["search"]:
        raw["search"]["space"] = _spelled_out(raw["search"]["space"])


def _put(raw: dict[str, Any], path: list[str], value: Any) -> None:
    *parents, last = path
    for depth, key in enumerate(parents):
        raw.setdefault(key, {})
        if raw[key] is None:
            raw[key] = {}
        raw = raw[key]
        if not isinstance(raw, dict):
            raise SettingsError(
                f"--set {'.'.join(path)}: {'.'.join(path[: depth + 1])} is a value, it has no keys below it"
            )
    raw[last] = value


def _explain(error: Any) -> str:
    """One line on a fault: its dotted key, what is wrong, what was given."""
    location = [str(part) for part in error["loc"] if not str(part).startswith("<") and part != "[key]"]
    key = ".".join(location)
    if error["type"] == "extra_forbidden":
        siblings = _fields_at(location[:-1])
        return f"{key} is no setting{_nearest(location[-1], siblings) or '; there are ' + ', '.join(siblings)}"
    if error["type"] == "missing":
        return f"{key} is missing"
    if error["type"] == "value_error":  # raised by the validators above: a whole sentence
        return f"{key}: {_wording(error)}" if key else _wording(error)
    shown = "" if isinstance(error["input"], BaseModel) else f" (given: {error['input']!r})"
    wording = _wording(error)
    return f"{key}{' ' if wording.startswith('should') else ': '}{wording}{shown}"


def _wording(error: Any) -> str:
    """A fault in words for people who know YAML, not Python."""
    if error["type"] in {"model_type", "dict_type"}:
        return "should be a mapping"
    if error["type"] == "tuple_type":
        return "should be a list"
    return re.sub("^(Value error, |(Value|Input|Tuple) (?=should))| after validation", "", error["msg"])


def _nearest(name: str, known: typing.Iterable[str]) -> str:
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f"; did you mean '{near[0]}'?" if near else ""


def _fields_at(location: list[str]) -> list[str]:
    model: Any = Settings
    for part in location:
        if isinstance(model, type) and issubclass(model, BaseModel) and part in model.model_fields:
            model = _nested(model.model_fields[part].annotation)
    return list(model.model_fields) if isinstance(model, type) and issubclass(model, BaseModel) else []


def _nested(annotation: Any) -> Any:
    """The settings model inside an annotation such as `dict[str, Model]` or `Model | None`, else the annotation."""
    for argument in typing.get_args(annotation):
        found = _nested(argument)
        if isinstance(found, type) and issubclass(found, BaseModel):
            return found
    return annotation


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


def _starred(tree: Any) -> Any:
    """Nested values, in whose texts the user and password of each URI are starred out."""
    if isinstance(tree, dict):
        return {key: _starred(value) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return [_starred(value) for value in tree]
    return without_passwords(tree) if isinstance(tree, str) else tree


def dotted(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The dotted keys and the values of nested mappings; an empty one is a value."""
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            yield from dotted(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


@dataclass(frozen=True)
class Entry:
    """One line of the settings reference."""

    key: str
    type: str
    default: str
    meaning: str


def reference(model: type[BaseModel] = Settings, prefix: str = "") -> Iterator[Entry]:
    """Every setting with its type, default and meaning, in the order of the file."""
    for name, field in model.model_fields.items():
        key = f"{prefix}{name}"
        nested = _nested(field.annotation)
        inner = nested if isinstance(nested, type) and issubclass(nested, BaseModel) else None
        if inner is None or field.description:
            default = "required" if field.is_required() else _shown(field.get_default())
            meaning = " ".join((field.description or "").split())
            yield Entry(key, _type_name(field.annotation, field.metadata), default, meaning)
        if inner is not None and typing.get_origin(field.annotation) is dict and name == "columns":
            yield from reference(inner, f"{key}.<name>.")
        elif inner is not None and inner in _types_of(field.annotation):
            yield from reference(inner, f"{key}.")


def _types_of(annotation: Any) -> tuple[Any, ...]:
    """What a value may be, where that is a model or null."""
    arguments = typing.get_args(annotation)
    return arguments if type(None) in arguments else (annotation,)


def _shown(value: Any) -> str:
    if isinstance(value, ByteSize):
        return value.human_readable()
    if isinstance(value, str):
        return value
    if isinstance(value, timedelta):
        return TypeAdapter(timedelta).dump_python(value, mode="json")
    return json.dumps(value, default=str)


_TYPE_NAMES = {
    type(None): "null",
    ByteSize: "size",
    str: "text",
    bool: "boolean",
    int: "integer",
    float: "number",
    date: "date",
    timedelta: "duration",
}
_BOUNDS = {Gt: (">", "gt"), Ge: (">=", "ge"), Lt: ("<", "lt"), Le: ("<=", "le")}


def _type_name(annotation: Any, constraints: typing.Sequence[Any] = ()) -> str:
    """A type in words, with its bounds: `number > 0`, `list of integer > 0`, `time, entity or stratified`."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Annotated:
        return _type_name(arguments[0], arguments[1:])
    if origin is Literal:
        return _in_words([str(value) for value in arguments])
    if origin in (typing.Union, types.UnionType):
        return _in_words(list(dict.fromkeys(_type_name(branch) for branch in arguments)))
    if origin is tuple:
        return f"list of {_type_name(arguments[0])}"
    if origin is dict or (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
        return "mapping"
    given = [bound for constraint in constraints for bound in (constraint, *getattr(constraint, "metadata", ()))]
    bounds = [f"{_BOUNDS[type(b)][0]} {getattr(b, _BOUNDS[type(b)][1]):g}" for b in given if type(b) in _BOUNDS]
    return " ".join([_TYPE_NAMES.get(annotation, "any"), " and ".join(bounds)]).strip()


def _in_words(names: list[str]) -> str:
    return " or ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)
