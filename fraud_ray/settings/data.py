"""What the data is: columns, folds, simulation, and how columns are prepared."""

from __future__ import annotations

import math
import re
from datetime import date, datetime
from fractions import Fraction
from typing import Annotated, Any, Literal

from pydantic import (
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveInt,
    Tag,
    model_validator,
)

from fraud_ray.settings.base import NO_EFFECT, Frozen, Share, alternatives

Encoding = Literal["standard", "signed_log", "piecewise_linear"]

INNER = "fraud_ray/"
"""What names of our own, inside a model's graph and in files, begin with; no column's does."""
_WRITTEN = re.compile(r"probability|decision|model_version|(reason|effect)_\d+")


def name_fault(name: str) -> str | None:
    """What is wrong with the name of a column, without the name itself; None where all is well."""
    if not name:
        return "is empty"
    if name != name.strip():
        return "begins or ends with a blank"
    if not name.isprintable():
        return "holds a character that is not printed"
    if name.startswith(INNER):
        return f"begins with '{INNER}', as the names inside a model do"
    return None


def is_written(name: str) -> bool:
    """Whether scoring writes a column of this name beside those that it reads."""
    return _WRITTEN.fullmatch(name) is not None


class ColumnSettings(Frozen):
    kind: Literal[
        "numeric",
        "categorical",
        "boolean",
        "amount",
        "label",
        "label_time",
        "timestamp",
        "entity",
        "id",
        "true_probability",
    ]
    """What the column holds. `amount` is a number in currency units; `entity` is the card or customer; `label_time` is
    when a label became known, also that of a legitimate row, and null where it is not known yet (a date counts from its
    end on): folds, windows and retrainings go by it instead of by a delay. `true_probability` is a simulator's own
    fraud probability, never a feature."""
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
    positive: str | None = None
    """label: the value, as text, that means fraud, such as Y; the other one means none. By default 1 or true."""
    true: str | None = None
    """boolean: the value, as text, that means true; the other one means false. By default 1 or true."""
    unit: Literal["s", "ms", "us", "ns"] | None = None
    """timestamp, label_time: the unit of times that are numbers, counted from 1970 in UTC; by default dates and
    timestamps."""
    since: Literal["1970", "start"] = "1970"
    """timestamp: what times that are numbers are counted from: 1970 in UTC, or the `start` of the data, whenever that
    was, as the seconds of a few days: then nothing goes by dates, weekdays or the hour of the day."""
    encodings: tuple[Encoding, ...] | None = None
    """How a number enters the network; by default `prepare.numeric_encodings`. Empty: only through ratios."""

    @property
    def is_feature(self) -> bool:
        could_be = self.kind in {"numeric", "categorical", "boolean", "amount"}
        return could_be if self.feature is None else self.feature

    @model_validator(mode="after")
    def _consistent(self) -> ColumnSettings:
        if self.feature and self.kind in {"label", "label_time", "true_probability", "timestamp", "entity", "id"}:
            raise ValueError(f"a column of kind '{self.kind}' cannot be a feature; declare it without 'feature: true'")
        if self.min is not None and self.max is not None and self.min > self.max:
            raise ValueError(f"min {self.min} is above max {self.max}")
        if self.values is not None and self.kind != "categorical":
            raise ValueError(f"'values' is for categorical columns, this one is '{self.kind}'")
        for key, *kinds in (("positive", "label"), ("true", "boolean"), ("unit", "timestamp", "label_time")):
            if getattr(self, key) is not None and self.kind not in kinds:
                raise ValueError(f"'{key}' is for columns of kind '{kinds[0]}', this one is '{self.kind}'")
        if self.since == "start" and not (self.kind == "timestamp" and self.unit):
            raise ValueError("'since: start' is for a timestamp with a unit, whose numbers are counted from there")
        if self.nulls and self.kind == "label":
            raise ValueError("labels that are not known yet may be missing as it is; declare it without 'nulls'")
        return self


class CsvSettings(Frozen):
    """How CSV partitions are written."""

    delimiter: Annotated[str, Field(pattern=r'^[^"\r\n]$')] = ","
    """What stands between the values of CSV in UTF-8, whose first line holds the names; in .tsv files it is a tab."""
    decimal_point: Literal[".", ","] = "."
    """What stands before a number's decimals; numbers hold no other point, comma or space."""


class DataSettings(Frozen):
    path: str
    """Folder (or URI) of the partitions, parquet or CSV (.csv, .tsv, also .gz), hive-partitioned or flat."""
    csv: CsvSettings = CsvSettings()
    columns: dict[str, ColumnSettings]
    """The declared columns by name; all others are ignored."""
    expected_rows: PositiveInt | None = Field(default=None, json_schema_extra=NO_EFFECT)
    """Rows that the data holds, repeats left out, where that is known as of a public data set: any other number breaks
    the contract. null: not checked."""
    repeats: Literal["refuse", "last"] = "refuse"
    """Rows of the same id (kind `id`), over all partitions: `refuse`: they break the contract; `last`: the last one by
    timestamp, then path, counts, and the others are left out."""
    fingerprint: Literal["footer", "content"] = Field(default="footer", json_schema_extra=NO_EFFECT)
    """What tells that a file has changed, beside its name: `footer`: its size, time of change and footer (of CSV its
    bytes); `content`: all bytes, read once more, so that a change in place that keeps size and time is noticed too."""

    @model_validator(mode="after")
    def _roles(self) -> DataSettings:
        for kind in ("label", "label_time", "timestamp", "entity", "id", "amount", "true_probability"):
            named = [name for name, column in self.columns.items() if column.kind == kind]
            if len(named) > 1:
                raise ValueError(f"columns {', '.join(named)} are all of kind '{kind}'; declare one")
        if not self.of_kind("label"):
            raise ValueError("no column has kind 'label'; declare the one that says whether a row is fraud")
        if self.of_kind("label_time") and not self.of_kind("timestamp"):
            raise ValueError("a column of kind 'label_time' needs one of kind 'timestamp' beside it")
        if not self.features:
            raise ValueError("no column is a feature; declare at least one numeric, categorical or boolean column")
        if self.repeats == "last" and not self.of_kind("id"):
            raise ValueError("repeats is 'last', which needs a column of kind 'id'; declare one")
        return self

    def of_kind(self, kind: str) -> str | None:
        """The name of the column of this kind, or None where none is declared."""
        return next((name for name, column in self.columns.items() if column.kind == kind), None)

    @property
    def features(self) -> tuple[str, ...]:
        return tuple(name for name, column in self.columns.items() if column.is_feature)

    @property
    def is_dated(self) -> bool:
        """Whether a calendar is known of the timestamps, if there are any."""
        return all(column.since == "1970" for column in self.columns.values())

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


def _branch_of_amount(value: Any) -> str | None:
    if isinstance(value, str):
        forms = {"<share>": r"\d+(\.\d+)?%", "<all>": "all", "<time>": r"\d{4}-\d\d-\d\d.*"}
        return next((branch for branch, form in forms.items() if re.fullmatch(form, value)), None)
    if isinstance(value, int):
        return "<rows>"
    return "<time>" if isinstance(value, date) else None


_ShareOfRows = Annotated[str, Field(pattern=r"^\d+(\.\d+)?%$"), Tag("<share>")]
_Rows = Annotated[PositiveInt, Tag("<rows>")]
_Fit = Annotated[
    _ShareOfRows | _Rows | Annotated[Literal["all"], Tag("<all>")],
    alternatives(_branch_of_amount, "all, a share of the rows such as 60%, or a number of rows"),
]
_Holdout = Annotated[
    _ShareOfRows | _Rows | Annotated[datetime, Tag("<time>")],
    alternatives(_branch_of_amount, "a share of the rows such as 20%, a number of rows, or a time"),
]


class FoldSettings(Frozen):
    """By time, a fold is fitted on a window, waits for labels, and holds out what comes next; in days, or where
    `holdout` is given to the second."""

    kind: Literal["time", "entity", "stratified"] = "time"
    """`time`: fit, label delay, holdout; `entity`: a share of cards held out; `stratified`: a share of rows,
    fraud rate kept."""
    start: date | None = None
    """time: first fit day of the final fold; by default the latest that leaves room for delay and holdout, on days
    whose labels are known (of 99 % of the rows). No fold takes in a row whose label is not known yet."""
    until: datetime | None = None
    """time: when folds have to end, in UTC; by default with the newest rows whose labels are known."""
    fit_days: PositiveInt = 30
    """time: days fitted on."""
    fit: _Fit | None = None
    """time: what is fitted on in place of `fit_days`. `all`: everything before, so that a later fold has more; `60%` or
    `100_000`: the newest rows before, that share of all or that many, as far as there are any, so that the window
    slides. By default `all` where `holdout` is given and `fit_days` is not."""
    delay_days: NonNegativeInt | NonNegativeFloat = 7
    """time: days between fit and holdout, in which labels are not known yet; 0.25: six hours, which folds in days round
    up. On as many days, up to the newest, labels may be missing, whatever the kind. With a column of kind `label_time`
    labels may be missing where it is null, the fit rows are those whose label was known when the holdout began, and
    the delay may be 0."""
    holdout_days: PositiveInt = 7
    """time: days held out."""
    holdout: _Holdout | None = None
    """time: what is held out in place of `holdout_days`, and folds then go by the second. `20%` or `50_000`: the newest
    rows, that share of all or that many, and those of the same second as the first of them; `2018-09-01 18:00`: all
    rows from then on, in UTC. Each selection fold holds out as many rows."""
    selection_shift_days: tuple[PositiveInt, ...] | None = None
    """time: one selection fold an entry, that many days before the final fold. A holdout that ends later than the final
    fold's last fit day has labels that were not known when the final holdout began; one that reaches into the final
    holdout is refused. By default `selection_folds`, each delay and holdout before the next: [14] for one."""
    holdout_share: Share = 0.2
    """entity, stratified: share held out."""
    selection_folds: PositiveInt = 1
    """Selection folds. time: each ends where the next one's fit ends, unless `selection_shift_days` says where; entity,
    stratified: cut from the final fold's fit rows."""
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

    @property
    def days(self) -> int:
        """time: days from the first that a fold is fitted on to the last that it holds out."""
        return self.fit_days + self.strict_shift

    @property
    def strict_shift(self) -> int:
        """time: days by which a fold lies before another, so that its holdout ends where the other's fit ends."""
        return math.ceil(self.delay_days) + self.holdout_days

    @property
    def shifts(self) -> tuple[int, ...]:
        """time, in days: how many days before the final fold each selection fold lies."""
        if self.selection_shift_days is not None:
            return self.selection_shift_days
        return tuple(self.strict_shift * (i + 1) for i in range(self.selection_folds))

    @model_validator(mode="before")
    @classmethod
    def _fit_on_all(cls, raw: Any) -> Any:
        """What is held out to the second is fitted on all that lies before, unless the fit is given."""
        is_by_rows = isinstance(raw, dict) and raw.get("holdout") is not None
        return {"fit": "all", **raw} if is_by_rows and not {"fit", "fit_days"} & raw.keys() else raw

    @model_validator(mode="after")
    def _consistent(self) -> FoldSettings:
        if self.kind != "time":
            if self.selection_folds * self.holdout_share > 1:
                raise ValueError(
                    f"{self.selection_folds} selection folds that each hold out {self.holdout_share:g} of the final "
                    "fold's fit rows take more than all of them; lower selection_folds or holdout_share"
                )
            given = [name for name in ("until", "fit", "holdout") if getattr(self, name) is not None]
            if given:
                raise ValueError(f"{' and '.join(given)} go with folds.kind: time; a share is holdout_share here")
        if self.selection_shift_days == ():
            raise ValueError(
                "selection_shift_days is [], but hyperparameters, epochs, calibration and threshold are chosen on "
                f"selection folds; give at least one shift, such as [{self.strict_shift}], or leave it out"
            )
        if self.start is not None and not (self.fit is None and self.holdout is None):
            raise ValueError(
                "start is the first of fit_days, which fit and holdout replace; say with until where to end"
            )
        if self.holdout is not None and self.selection_shift_days is not None:
            raise ValueError(
                "selection_shift_days counts days, and holdout does not; say with selection_folds how many there are"
            )
        share, folds = share_of(self.holdout), self.selection_folds + 1
        if share is not None and not 0 < folds * share < 1:
            raise ValueError(f"holdout {self.holdout} in {folds} folds leaves nothing to fit on; lower it")
        return self


def share_of(amount: Any) -> Fraction | None:
    """The share that `20%` stands for, to the row; None for what is none."""
    return Fraction(amount[:-1]) / 100 if isinstance(amount, str) and amount.endswith("%") else None


class PrepareSettings(Frozen):
    numeric_encodings: Annotated[tuple[Encoding, ...], Field(min_length=1)] = ("standard", "signed_log")
    """How numeric columns enter the network: standardised on fit rows, plain and after a signed logarithm; in pieces
    with edges at quantiles of the fit rows and of their frauds."""
    piecewise_bins: PositiveInt = 8
    """piecewise_linear: parts of equal size that the edges divide all fit rows into, and the frauds likewise."""
    ratios: dict[str, tuple[str, str]] = Field(default={})
    """Further numbers by name: [numerator, denominator], two columns that the model reads. Encoded like a column."""
    calendar: bool = False
    """Whether the model reads the clock: hour of day and weekday, in UTC, of the column of kind timestamp."""
    min_category_rows: PositiveInt = 20
    """Categories with fewer fit rows share the rare bucket."""
    max_categories: PositiveInt = 1_000
    """Most categories of a column with a code of their own; the others share the rare bucket."""
