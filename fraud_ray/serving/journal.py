"""What was answered, and what a challenger in the shadow says of it, written beside the requests.

A reply never waits for it: a batch that was answered is put into a queue, and dropped and counted where that is full. A
thread of its own lets the challenger score what is in the queue, by the same graph as batch scoring, and writes all of
it in the form of `fraud-ray score`. What a killed process loses is what it answered in the last few seconds.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
import traceback
import uuid
from collections import defaultdict, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import chain
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from fraud_ray.data.kinds import TIMES, Reading, from_text, harmonised
from fraud_ray.errors import FraudRayError
from fraud_ray.model.encoder import NO_TIME
from fraud_ray.serving.hours import close_hour, close_left, hour_of, put_piece
from fraud_ray.serving.served import Scored, Served

SHADOW = ("shadow_probability", "shadow_decision", "shadow_version")
MOST_ROWS = 200_000  # that wait to be written
_TICK_S, _FLUSH_S = 0.25, 5.0
_LABELS = ("label", "label_time", "true_probability")
_NUMBERS = ("numeric", "amount", "boolean")

# Transactions, or their columns, as they came.
Sent = Sequence[Mapping[str, Any]] | Mapping[str, Sequence[Any]]

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Answered:
    """A batch that was answered.

    served, shadow: the version that answered, and the challenger, if any, that shall score it too. sent: the
    transactions as they came. columns: those that were read, by name, each (rows,), as values of their kinds; ids: of
    the transactions. said: what was answered; shadowed: what the challenger said, where it has scored it already.
    """

    served: Served
    shadow: Served | None
    sent: Sent
    columns: Mapping[str, Sequence[Any]]
    ids: Sequence[str | None]
    said: Scored
    shadowed: Scored | None = None

    def __len__(self) -> int:
        return len(self.ids)

    def sent_of(self, name: str) -> Sequence[Any]:
        """A column as it came; None where it did not."""
        if isinstance(self.sent, Mapping):
            return self.sent.get(name, [None] * len(self))
        return [transaction.get(name) for transaction in self.sent]

    def holds(self, name: str) -> bool:
        """Whether the column came with each transaction."""
        return name in self.sent if isinstance(self.sent, Mapping) else all(name in one for one in self.sent)


class Journal:
    """Writes what was answered below `target`, a folder or URI.

    written, dropped: rows since it was started. fault: why it cannot write now; None where it can.
    """

    def __init__(self, target: str, flush_s: float = _FLUSH_S, most_rows: int = MOST_ROWS) -> None:
        """flush_s: seconds of which a killed process loses what was answered; most_rows: that wait to be written."""
        self.written = self._refused = self._failed = 0
        self.fault: str | None = None
        self._target, self._flush_s, self._most_rows = target, flush_s, most_rows
        self._queue: deque[Answered] = deque()
        self._put = self._taken = 0  # rows; one is counted by those who put, the other by the thread
        self._tables: list[pa.Table] = []
        self._process, self._pieces, self._hour = uuid.uuid4().hex[:8], 0, ""
        self._told: set[str] = set()
        self._pair: tuple[Served | None, Served | None, bool] = None, None, False
        self._ends = threading.Event()
        self._thread = threading.Thread(target=self._run, name="journal", daemon=True)

    @property
    def dropped(self) -> int:
        return self._refused + self._failed

    def put(self, answered: Answered) -> None:
        """Has a batch written, or dropped where too many wait; takes microseconds."""
        if self._put - self._taken + len(answered) > self._most_rows:
            self._refused += len(answered)
            return
        self._put += len(answered)
        self._queue.append(answered)

    def start(self) -> None:
        self._thread.start()

    async def stop(self) -> None:
        """Writes what waits."""
        self._ends.set()
        await asyncio.to_thread(self._thread.join)

    # In the thread.

    def _run(self) -> None:
        flushed = time.monotonic()
        ended = False
        while not ended:
            ended = self._ends.wait(_TICK_S)
            try:
                self._take()
                if ended or time.monotonic() - flushed >= self._flush_s:
                    flushed = time.monotonic()
                    self._flush(datetime.now(UTC))
                    if ended:
                        close_hour(self._target, self._hour, self._process)
                    self.fault = None
            except FraudRayError as fault:
                self.fault = str(fault)
                self.tell(f"what is answered waits to be written: {fault}")
            except Exception as fault:  # whatever it is, what comes after is written; the log gets no value
                at = traceback.extract_tb(fault.__traceback__)[-1]
                self.tell(f"unexpected {type(fault).__name__} at {at.filename}:{at.lineno}; answers are not written")

    def _take(self) -> None:
        """Makes tables of what is in the queue, with what the challenger says."""
        groups: dict[tuple[int, int, bool], tuple[Served, Served | None, list[Answered]]] = {}
        for _ in range(len(self._queue)):
            batch = self._queue.popleft()
            shadow = batch.shadow if self._can_shadow(batch) else None
            form = id(batch.served), id(shadow), batch.shadowed is None
            groups.setdefault(form, (batch.served, shadow, []))[2].append(batch)
        failed = None
        for served, shadow, batches in groups.values():
            try:
                self._tables.append(table_of(batches, served, shadow))
            except Exception as fault:  # told by `_run`, once the other groups have their tables
                rows, failed = sum(map(len, batches)), fault
                self._taken += rows
                self._failed += rows
        if failed:
            raise failed

    def _can_shadow(self, batch: Answered) -> bool:
        """Whether there is a challenger that can score what the champion has answered; else says why, once."""
        served, shadow = batch.served, batch.shadow
        if shadow is None or batch.shadowed is not None:
            return shadow is not None
        if self._pair[0] is not served or self._pair[1] is not shadow:
            self._pair = served, shadow, have_same_windows(served, shadow)
        if not self._pair[2]:
            why = "its windows are others than the champion's"
        else:
            computed = served.definition.names if served.definition else ()
            raw = [column.name for column in shadow.scorer.columns if column.name not in computed]
            absent = [name for name in raw if not (name in batch.columns or batch.holds(name))]
            why = f"it reads {', '.join(absent)}, which the transactions do not hold" if absent else ""
        if why:
            self.tell(f"the challenger, version {shadow.version}, does not score in the shadow: {why}")
        return not why

    def _flush(self, now: datetime) -> None:
        """Writes a piece of each form of table. Those that cannot be written stay."""
        if hour_of(now) != self._hour:
            self._hour, over = hour_of(now), self._hour
            if over:
                close_hour(self._target, over, self._process)
            close_left(self._target, now)
        forms: dict[pa.Schema, list[pa.Table]] = defaultdict(list)
        for table in self._tables:
            forms[table.schema].append(table)
        for tables in forms.values():
            whole = pa.concat_tables(tables)
            self._pieces += 1
            put_piece(self._target, self._hour, self._process, self._pieces, whole)
            written = {id(table) for table in tables}
            self._tables = [table for table in self._tables if id(table) not in written]
            self.written += whole.num_rows
            self._taken += whole.num_rows

    def tell(self, message: str) -> None:
        """Logs a message, once, by any thread."""
        if message not in self._told:
            self._told.add(message)
            _log.warning("%s", message)


def table_of(batches: Sequence[Answered], served: Served, shadow: Served | None) -> pa.Table:
    """Batches that a version answered as one table in the form of scoring, with what the challenger says of them."""
    columns = columns_of(batches, served, shadow)
    told = _told(served, [batch.said for batch in batches])
    made = dict(zip(("probability", "decision", "model_version"), told, strict=True))
    made |= dict(zip(SHADOW, _shadow(batches, shadow, columns), strict=True))
    written = _written(columns, batches, _readings(served, shadow))
    return pa.table({**{name: column for name, column in written.items() if name not in made}, **made})


def have_same_windows(served: Served, shadow: Served) -> bool:
    """Whether the window columns of one are those of the other, or it reads none."""
    ours, theirs = served.definition, shadow.definition
    return theirs is None or (ours is not None and ours.fingerprint() == theirs.fingerprint())


def columns_of(batches: Sequence[Answered], served: Served, shadow: Served | None) -> dict[str, pa.ChunkedArray]:
    """The columns of transactions, raw and of windows, as a model reads them: numbers and booleans as float64, texts,
    entities and ids as strings, times as timestamps; null where there is none, or what is no value of the kind."""
    columns = {}
    for name, reading in _readings(served, shadow).items():
        if reading.kind == "id":
            columns[name] = _plain([id for batch in batches for id in batch.ids], reading)
        elif all(name in batch.columns for batch in batches):
            columns[name] = _plain([value for batch in batches for value in batch.columns[name]], reading)
        else:
            columns[name] = _parsed([value for batch in batches for value in batch.sent_of(name)], reading)
    for name in served.definition.names if served.definition else ():
        values = [computed.get(name, np.nan) for batch in batches for computed in batch.said.computed]
        columns[name] = pa.chunked_array([pa.array(values, pa.float64(), from_pandas=True)])
    return columns


def _written(
    columns: Mapping[str, pa.ChunkedArray], batches: Sequence[Answered], readings: Mapping[str, Reading]
) -> dict[str, pa.ChunkedArray]:
    """The columns as they are written: booleans as such, or as the texts that came, where a text means true."""
    written = dict(columns)
    for name, reading in readings.items():
        if reading.kind == "boolean" and reading.one is None:
            written[name] = pc.cast(columns[name], pa.bool_())
        elif reading.kind == "boolean":
            texts = [_text(value) for batch in batches for value in batch.sent_of(name)]
            written[name] = pa.chunked_array([pa.array(texts, pa.string())])
    return written


def _readings(served: Served, shadow: Served | None) -> dict[str, Reading]:
    """How each raw column is read, of those that are declared or that a graph reads."""
    computed = {name for one in (served, shadow) if one and one.definition for name in one.definition.names}
    declared = {n: Reading.declared(c) for n, c in served.data.columns.items() if c.kind not in _LABELS}
    read = {c.name: Reading.of_model(c) for one in (shadow, served) if one for c in one.scorer.columns}
    return {name: reading for name, reading in {**declared, **read}.items() if name not in computed}


def _told(served: Served, said: Sequence[Scored]) -> list[pa.Array]:
    """Probability, decision and version, as scoring writes them."""
    return [
        pa.array([value for one in said for value in one.probability], pa.float32()),
        pa.array([value for one in said for value in one.decision], pa.bool_()),
        pa.array([_named(served, version) for one in said for version in one.version], pa.string()),
    ]


def _shadow(
    batches: Sequence[Answered], shadow: Served | None, columns: Mapping[str, pa.ChunkedArray]
) -> list[pa.Array]:
    """Likewise what the challenger says; null where there is none."""
    rows = sum(map(len, batches))
    if shadow is None:
        return [pa.nulls(rows, of) for of in (pa.float32(), pa.bool_(), pa.string())]
    said = [batch.shadowed for batch in batches if batch.shadowed is not None]
    if said:
        return _told(shadow, said)
    found: npt.NDArray[np.float32] = shadow.scorer.score(pa.table(columns))
    decided = pa.array(found >= shadow.scorer.threshold)
    return [pa.array(found), decided, pa.repeat(_named(shadow, shadow.version), rows)]


def _named(served: Served, version: str) -> str:
    """A version as scoring names it."""
    return f"{served.name}/{version}" if served.registered else f"sha256:{version}"


def _plain(values: list[Any], reading: Reading) -> pa.ChunkedArray:
    """Values of a kind as a column."""
    if reading.kind in _NUMBERS:
        array = pa.array(values, pa.float64(), from_pandas=True)
    elif reading.kind == "timestamp":
        array = pa.array([None if value == NO_TIME else value for value in values], pa.int64()).cast(TIMES)
    else:
        array = pa.array([value or None for value in values], pa.string())
    return pa.chunked_array([array])


def _parsed(values: list[Any], reading: Reading) -> pa.ChunkedArray:
    """Values that came as JSON, of a column that the champion does not read; null where one is none of the kind."""
    try:
        column = pa.chunked_array([pa.array(values)])
        if pa.types.is_string(column.type):
            column = from_text(column, reading)
        found = harmonised(column, reading)
        wanted = {"timestamp": TIMES}.get(reading.kind, pa.float64() if reading.kind in _NUMBERS else pa.string())
        return pc.cast(found, wanted)
    except (pa.ArrowException, TypeError, OverflowError):
        if len(values) == 1:
            return _plain([NO_TIME if reading.kind == "timestamp" else None], reading)
        return pa.chunked_array(list(chain.from_iterable(_parsed([value], reading).chunks for value in values)))


def _text(value: Any) -> str | None:
    if value is None:
        return None
    return str(value).lower() if isinstance(value, bool) else str(value)
