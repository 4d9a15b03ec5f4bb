"""Transactions as callers send them, each value read as batch scoring reads it in a partition.

A value is what JSON or a tensor makes of it: text, a number, true or false, null. It becomes what `kinds.typed` makes
of a column that holds it alone, or a fault that names the field. Plain Python throughout: one transaction takes some
tens of microseconds, and a table of Arrow would take more.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from functools import partial
from typing import Any

import numpy as np

from fraud_ray.data.contract import NO_TIMES
from fraud_ray.data.kinds import A_SECOND, NUMERIC, TIME_KINDS, Reading
from fraud_ray.errors import FraudRayError
from fraud_ray.model.encoder import NO_TIME, FeatureColumn
from fraud_ray.model.scorer import Inputs, text_input
from fraud_ray.serving.served import Served
from fraud_ray.settings import ColumnSettings, DataSettings

One = Callable[[Any], Any]

_A_TIME = "2024-03-01T10:00:00Z"
MOST_EXACT = 2**53  # whole numbers up to here are float64
_WHOLE_NUMBERS = range(-(2**63), 2**64)  # of 64 bits
_EPOCH, _MICROSECOND = datetime(1970, 1, 1, tzinfo=UTC), timedelta(microseconds=1)
_YEARS = range(
    (datetime.min.replace(tzinfo=UTC) - _EPOCH) // _MICROSECOND,
    (datetime.max.replace(tzinfo=UTC) - _EPOCH) // _MICROSECOND + 1,
)
_HOUR, _SIXTY = r"(?:[01]\d|2[0-3])", r"[0-5]\d"
_ISO = re.compile(
    rf"\s*(\d{{4}}-\d\d-\d\d)"
    rf"(?:[ T]({_HOUR}(?::{_SIXTY}(?::{_SIXTY}(?:\.\d+)?)?)?)(Z| ?UTC|[+-]{_HOUR}(?::?{_SIXTY})?)?)?\s*",
    re.ASCII,
)
_KINDS = {str: "text", bool: "true or false", int: "a number", float: "a number", list: "a list", dict: "an object"}


class RequestFault(Exception):  # noqa: N818 - no error of ours
    """A mistake of a caller's. field: where, such as transactions[3].amount; None where the whole request is meant.

    The message repeats nothing of what was sent: it may be logged.
    """

    def __init__(self, field: str | None, message: str, status: int = 422) -> None:
        super().__init__(f"{field} {message}" if field else message)
        self.field, self.status = field, status


class UnavailableError(FraudRayError):
    """What cannot be answered now, but may be soon."""


class _UnfitError(Exception):
    """What is wrong with one value, as the rest of a sentence."""


@dataclass(frozen=True)
class Batch:
    """Transactions of one request by column, plain values (rows,).

    Numbers and booleans are floats, NaN where missing; categories text or None; entities and ids text (a whole number
    becomes its digits) or None, also for the empty text; times microseconds since 1970 in UTC or NO_TIME.
    ids: of the transactions; None where none is declared or sent. sent: the ids as they came. times: of the column of
    kind timestamp; empty where none is read.
    """

    columns: dict[str, list[Any]]
    ids: list[str | None]
    sent: list[Any]
    times: list[int]

    def __len__(self) -> int:
        return len(self.sent)

    def inputs(self, columns: Sequence[FeatureColumn]) -> Inputs:
        """The graph's inputs, each of shape (rows, 1), as `scorer.graph_inputs` makes them of a table."""
        inputs: Inputs = {}
        with np.errstate(over="ignore"):  # beyond float32 is infinite, as in a table
            for column in columns:
                values = self.columns[column.name]
                if column.kind == "categorical":
                    inputs[column.name] = text_input([value or "" for value in values]).reshape(-1, 1)
                else:
                    kind = np.int64 if column.kind == "timestamp" else np.float32
                    inputs[column.name] = np.array(values, kind).reshape(-1, 1)
        return inputs


@dataclass(frozen=True)
class Field:
    """A column of a transaction.

    as_is: types of values that are read as they are; one: reads any other; schema: in JSON Schema, with an example.
    breach: what of a value that was read breaks the contract, where windows are computed of it; None: nothing does.
    """

    kind: str
    as_is: frozenset[type]
    one: One
    schema: dict[str, Any]
    breach: Callable[[Any], str | None] | None

    @classmethod
    def declared(cls, column: ColumnSettings) -> Field:
        """As a column is declared, whatever the contract says of its values."""
        return cls.of(Reading.declared(column))

    @classmethod
    def of(cls, reading: Reading, declared: ColumnSettings | None = None) -> Field:
        """declared: the column as the contract has it, where windows are computed of it."""
        kind, unit, true = reading.kind, reading.unit, reading.one
        as_is: frozenset[type] = frozenset()
        one: One
        example: Any
        if kind in NUMERIC:
            as_is, one, types, example = frozenset({float}), _number, ["number"], 12.5
        elif kind == "categorical":
            as_is, one, types, example = frozenset({str}), _category, ["string", "integer"], "some"
        elif kind in TIME_KINDS:
            one = partial(_time, unit=unit)
            types, example = (["integer"], 1_709_287_200 * A_SECOND[unit]) if unit else (["string"], _A_TIME)
        elif kind in {"entity", "id"}:
            one, types, example = _name, ["string", "integer"], "c7"
        elif true is not None:
            one, types, example = partial(_is_one, one=true), ["string", "integer", "boolean"], true
        else:
            one, types, example = _boolean, ["boolean"], True
        schema: dict[str, Any] = {"type": types, "examples": [example]} | (
            {"format": "date-time"} if example is _A_TIME else {}
        )
        if declared is None:
            return cls(kind, as_is, one, _nullable(schema), None)
        bounds = {"minimum": declared.min, "maximum": declared.max, "enum": declared.values}
        schema.update((key, bound) for key, bound in bounds.items() if bound is not None)
        if allowed := declared.values or [bound for bound in (declared.min, declared.max) if bound is not None]:
            schema["examples"] = [allowed[0]]
        return cls(kind, as_is, one, _nullable(schema) if declared.nulls else schema, _breach_of(declared))

    def read(self, name: str, values: list[Any], among: str = "transactions") -> list[Any]:
        """Values (rows,) as sent, as read. among: what the rows are. Raises RequestFault."""
        read = values
        if not self.as_is.issuperset(map(type, values)):
            read = []
            for row, value in enumerate(values):
                try:
                    read.append(self.one(value))
                except _UnfitError as unfit:
                    raise RequestFault(f"{among}[{row}].{name}", str(unfit)) from None
        for row, value in enumerate(read) if self.breach else ():
            broken = self.breach(value) if self.breach else None
            if broken:
                raise RequestFault(f"{among}[{row}].{name}", broken)
        return read


@dataclass(frozen=True)
class Form:
    """What a transaction must hold for one version: by column, how it is read. Others are passed over.

    identifier: the column of the ids, which may be left out where no windows are computed; timestamp: the column whose
    values may not lie ahead of the clock by more than ahead_s seconds; both None where there is none.
    """

    fields: dict[str, Field]
    identifier: str | None
    timestamp: str | None
    ahead_s: float

    @classmethod
    def of(cls, served: Served, ahead_s: float) -> Form:
        definition = served.definition
        computed = definition.names if definition else ()
        readings = {c.name: Reading.of_model(c) for c in served.scorer.columns if c.name not in computed}
        looked_at = [name for name in definition.reads if name not in definition.labels] if definition else []
        declared = {name: served.data.columns[name] for name in looked_at}
        readings |= {name: Reading.declared(column) for name, column in declared.items() if name not in readings}
        fields = {name: Field.of(reading, declared.get(name)) for name, reading in readings.items()}
        timestamp = served.data.of_kind("timestamp")
        timestamps = [timestamp, *(name for name, field in fields.items() if field.kind == "timestamp")]
        return cls(
            fields, served.data.of_kind("id"), next((name for name in timestamps if name in fields), None), ahead_s
        )

    def example(self) -> dict[str, Any]:
        """A transaction that is taken, and nobody's."""
        shown = {name: field.schema["examples"][0] for name, field in self.fields.items()}
        return shown if self.identifier is None else {self.identifier: "t1", **shown}

    def read(self, transactions: Sequence[Mapping[str, Any]], now: float) -> Batch:
        """Transactions by column. now: seconds since 1970. Raises RequestFault."""
        columns: dict[str, list[Any]] = {}
        for name, field in self.fields.items():
            try:
                values = [transaction[name] for transaction in transactions]
            except KeyError:
                row = next(row for row, transaction in enumerate(transactions) if name not in transaction)
                raise RequestFault(f"transactions[{row}].{name}", "is absent; null is a missing value") from None
            columns[name] = field.read(name, values)
        return self._completed(columns, [transaction.get(self.identifier or "") for transaction in transactions], now)

    def read_columns(self, columns: Mapping[str, list[Any]], rows: int, now: float) -> Batch:
        """Transactions that come by column, each of `rows` values. Raises RequestFault."""
        read = {name: field.read(name, columns[name]) for name, field in self.fields.items()}
        return self._completed(read, columns.get(self.identifier or "", [None] * rows), now)

    def _completed(self, columns: dict[str, list[Any]], sent: list[Any], now: float) -> Batch:
        """The batch of columns that were read; sent: the ids as they came."""
        if self.timestamp is not None:
            _refuse_ahead("transactions", self.timestamp, columns[self.timestamp], now + self.ahead_s)
        ids: list[str | None] = [None] * len(sent)
        if self.identifier is not None:
            ids = columns.get(self.identifier) or Field.of(Reading("id")).read(self.identifier, sent)
        return Batch(columns, ids, sent, columns[self.timestamp] if self.timestamp else [])


def read_labels(
    data: DataSettings, sent: Sequence[Mapping[str, Any]], now: float, ahead_s: float
) -> list[tuple[str, int, int]]:
    """(id, label, since when it is known in microseconds since 1970) of labels as they are sent.

    Each holds the columns of the id and the label and, where one is declared, that of the label's time; without one it
    is known from now on. now: seconds since 1970, beyond which no label's time lies by more than ahead_s. Raises
    RequestFault.
    """
    identifier, label_time = data.of_kind("id"), data.of_kind("label_time")
    if identifier is None:
        raise RequestFault(None, "labels are told by id, and the data declares no column of kind 'id'", 409)
    named = [identifier, data.label, *([label_time] if label_time else [])]
    read: dict[str, list[Any]] = {}
    for name in named:
        read[name] = Field.declared(data.columns[name]).read(name, [told.get(name) for told in sent], "labels")
        for row, value in enumerate(read[name]):
            if value is None or value == NO_TIME or value != value:
                raise RequestFault(f"labels[{row}].{name}", "is missing")
    known = read[label_time] if label_time else [round(now * 1e6)] * len(sent)
    for row, label in enumerate(read[data.label]):
        if label not in {0.0, 1.0}:
            raise RequestFault(f"labels[{row}].{data.label}", "is neither 0 nor 1")
    if label_time:
        _refuse_ahead("labels", label_time, known, now + ahead_s)
    return [(id, int(label), since) for id, label, since in zip(read[identifier], read[data.label], known, strict=True)]


def _refuse_ahead(among: str, name: str, times: Sequence[int], latest: float) -> None:
    """latest: seconds since 1970."""
    for row, at in enumerate(times):
        if at > latest * 1e6:
            raise RequestFault(f"{among}[{row}].{name}", "lies ahead of the clock here by more than serving.ahead_s")


def _nullable(schema: dict[str, Any]) -> dict[str, Any]:
    wider = {"type": [*schema["type"], "null"]} | ({"enum": [*schema["enum"], None]} if "enum" in schema else {})
    return {**schema, **wider}


def _number(value: Any) -> float:
    found = type(value)
    if found is float:
        return value
    if value is None:
        return math.nan
    if found is int:
        if abs(value) > MOST_EXACT:
            raise _UnfitError("is a whole number beyond 2^53: a float64 holds no more digits")
        return float(value)
    raise _unfit(value, "a number")


def _boolean(value: Any) -> float:
    if value is True or value is False:
        return float(value)
    if isinstance(value, str | list | dict):
        raise _unfit(value, "true or false")
    return _number(value)


def _is_one(value: Any, one: str) -> float:
    """Whether a value, as text, is the one that means 1."""
    if value is None or value != value:
        return math.nan
    if isinstance(value, bool):
        value = "true" if value else "false"
    if isinstance(value, int | float):
        value = _digits(value)
    if not isinstance(value, str):
        raise _unfit(value, "text")
    return float(value == one)


def _category(value: Any) -> str | None:
    found = type(value)
    if found is str:
        return value
    if value is None or value != value:
        return None
    if found is int or (found is float and value.is_integer() and abs(value) < MOST_EXACT):
        return _digits(value)
    raise _unfit(value, "text or a whole number")


def _name(value: Any) -> str | None:
    found = type(value)
    if found is str:
        return value or None
    if value is None:
        return None
    if found is int:
        return _digits(value)
    raise _unfit(value, "text or a whole number")


def _time(value: Any, unit: str | None) -> int:
    """Texts as those of CSV partitions; numbers where they have a unit."""
    found = type(value)
    if value is None or (unit and value != value):
        return NO_TIME
    if found is str:
        written = _ISO.fullmatch(value)
        if not written:
            raise _UnfitError("is no time; write times as 2024-03-07T10:15:00Z, in UTC or with their zone")
        day, clock, zone = written.groups()
        zone = zone if zone and zone[0] in "+-" else "+00"
        try:
            moment = datetime.fromisoformat(f"{day}T{clock or '00'}").replace(tzinfo=UTC)
        except ValueError as fault:
            raise _UnfitError(f"is no time: {fault}") from None
        away = datetime.fromisoformat(f"2000-01-01T00{zone}").utcoffset()
        microseconds = (moment - _EPOCH - (away or timedelta())) // _MICROSECOND
    elif unit is not None and found is int:
        scaled = value * A_SECOND["us"]
        microseconds = scaled // A_SECOND[unit] if value >= 0 else -(-scaled // A_SECOND[unit])
        microseconds = microseconds if value < 2**63 else _YEARS.stop
    elif unit is not None and found is float:
        scaled = value * (A_SECOND["us"] / A_SECOND[unit])
        microseconds = round(scaled) if math.isfinite(scaled) else _YEARS.stop
    else:
        raise _unfit(value, "a time, such as 2024-03-07T10:15:00Z," if unit is None else "a time, or a number")
    if microseconds not in _YEARS:
        raise _UnfitError("lies outside the years 1 to 9999")
    return microseconds


def _digits(value: int | float) -> str:
    """A number as text, as Arrow writes it."""
    if isinstance(value, int):
        if value not in _WHOLE_NUMBERS:
            raise _UnfitError("is a whole number of more than 64 bits; send it as text")
        return str(value)
    if math.isinf(value):
        return str(value)
    shortest = Decimal(repr(value)).normalize()
    if -6 <= shortest.adjusted() < 10:
        return f"{shortest:f}"
    sign, digits, _ = shortest.as_tuple()
    first, rest = str(digits[0]), "".join(map(str, digits[1:]))
    return f"{'-' * sign}{first}{'.' if rest else ''}{rest}e{shortest.adjusted():+}"


def _unfit(value: Any, expected: str) -> _UnfitError:
    return _UnfitError(f"is {_KINDS.get(type(value), 'of an unknown type')}, where {expected} or null belongs")


def _breach_of(column: ColumnSettings) -> Callable[[Any], str | None]:
    """What of a value breaks the contract: the rules of `contract.check_columns`."""
    kind, low, high = column.kind, column.min, column.max

    def breach(value: Any) -> str | None:
        if value is None or value != value or (value == NO_TIME and kind in TIME_KINDS):
            return None if column.nulls else "is missing, which the contract does not allow"
        if kind == "categorical":
            return (
                "is none of the values that the contract names"
                if column.values and value not in column.values
                else None
            )
        if kind in TIME_KINDS:
            placeholder = next((text for text, first, after in NO_TIMES if first <= value < after), None)
            return f"is {placeholder}, in place of no time; null is a missing value" if placeholder else None
        if kind == "boolean":
            return None if value in {0.0, 1.0} else "is neither 0 nor 1"
        if kind in NUMERIC:
            if math.isinf(value):
                return "is infinite"
            if low is not None and value < low:
                return f"is below {low:g}, the least that the contract allows"
            if high is not None and value > high:
                return f"is above {high:g}, the most that the contract allows"
        return None

    return breach
