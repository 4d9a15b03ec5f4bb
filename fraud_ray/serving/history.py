"""Each transaction's window columns from the past of its entities, which it then joins.

The columns are those that batch scoring computes of the same transactions in the order of time, to the bit: the
measures are the same functions over the same transactions, and only where they are kept differs.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from time import perf_counter

import numpy as np
import pyarrow as pa

from fraud_ray.errors import DataError
from fraud_ray.serving.requests import Batch, RequestFault
from fraud_ray.serving.stores import Answer, Key, Layout, Record, Store, StoreAwayError, Told
from fraud_ray.windows.definition import Definition, Group
from fraud_ray.windows.measures import calendar
from fraud_ray.windows.past import Past, Row, missing, texts_of, values_of

_ROWS_IN_TURN = 8  # of a request, after which another has its turn
_MOST_AWAY = 100_000  # transactions that were answered while the store was away, which join when it is back

Score = Callable[[int, Mapping[str, float]], tuple[float, bool, str]]
Observe = Callable[[str, float], None]


class History:
    """The past of all entities, as one definition of windows sees it, in a store."""

    def __init__(
        self, layout: Layout, store: Store, degraded: bool = False, observe: Observe = lambda *_: None
    ) -> None:
        """degraded: whether to answer as if there were no past while the store is away. observe: told the name and the
        seconds of each part of the work, `store`, `windows` and `graph`."""
        self.definition: Definition = layout.definition
        self.store = store
        self._layout, self._degraded, self._observe = layout, degraded, observe
        self._away: deque[tuple[str | None, Record, list[Row]]] = deque(maxlen=_MOST_AWAY)

    async def answer(self, batch: Batch, score: Score) -> list[Answer]:
        """Of each transaction, in the order given; they are taken in the order of time, each seeing those before it.

        score: of a transaction's position and its window columns by name (NaN: none) gives probability, decision and
        model version. Raises RequestFault for values too large to be summed exactly, StoreAwayError, NotPrimedError.
        """
        of_time = self._of_time(batch.times)
        answers: dict[int, Answer] = {}
        for at in sorted(range(len(batch)), key=batch.times.__getitem__):
            answers[at] = await self._answer(batch, at, {name: values[at] for name, values in of_time.items()}, score)
            if len(answers) % _ROWS_IN_TURN == 0:  # a store in memory never waits, and others do
                await asyncio.sleep(0)
        return [answers[at] for at in range(len(batch))]

    async def label(self, labels: Sequence[Told]) -> list[bool]:
        """Tells labels; for each whether there is a transaction of its id.

        They count by the delay rule of the windows. Raises StoreAwayError.
        """
        return await self.store.label(labels)

    def named(self, answer: Answer) -> dict[str, float]:
        """An answer's window columns by name; NaN where there is none."""
        values = np.frombuffer(answer.columns, np.float32).tolist()
        return dict(zip(self.definition.names, values, strict=True)) if values else {}

    async def _answer(self, batch: Batch, at: int, of_time: Mapping[str, float], score: Score) -> Answer:
        id, keys = batch.ids[at], self._keys(batch, at)
        began = perf_counter()
        degraded = False
        try:
            await self._catch_up()
            record, pasts = await self.store.read(id, keys)
        except StoreAwayError:
            if not self._degraded:
                raise
            degraded, record, pasts = True, None, [self._layout.past(key) for key in keys]
        self._observe("store", perf_counter() - began)
        if record is not None and record.answer is not None:
            return record.answer
        began = perf_counter()
        try:
            columns, rows = self._columns(batch, at, dict(zip(keys, pasts, strict=True)), of_time)
        except DataError as fault:
            raise RequestFault(f"transactions[{at}]", str(fault)) from None
        self._observe("windows", perf_counter() - began)
        began = perf_counter()
        packed = np.array([columns[name] for name in self.definition.names], np.float32).tobytes()
        answer = Answer(*score(at, columns), packed, degraded)
        self._observe("graph", perf_counter() - began)
        if record is not None:  # it came with a window state, and is counted
            return answer
        fresh = Record(batch.times[at], tuple(keys), answer)
        if degraded:
            self._away.append((id, fresh, rows))
            return answer
        began = perf_counter()
        try:
            there = await self.store.join(id, fresh, rows)
        except StoreAwayError:
            if not self._degraded:
                raise
            self._away.append((id, fresh, rows))
            return answer
        self._observe("store", perf_counter() - began)
        return answer if there is None or there.answer is None else there.answer

    async def _catch_up(self) -> None:
        """Lets those join that were answered while the store was away."""
        while self._away:
            waiting = self._away.popleft()  # no other request takes it too
            try:
                await self.store.join(*waiting)
            except StoreAwayError:
                self._away.appendleft(waiting)
                raise

    def _keys(self, batch: Batch, at: int) -> list[Key]:
        """The pasts that a transaction looks at and joins."""
        entities = [batch.columns[group.entity][at] for group in self.definition.groups]
        return [(number, entity) for number, entity in enumerate(entities) if entity]

    def _columns(
        self, batch: Batch, at: int, pasts: Mapping[Key, Past], of_time: Mapping[str, float]
    ) -> tuple[dict[str, float], list[Row]]:
        """A transaction's window columns by name, and a row for each of the pasts."""
        columns, rows = dict(of_time), []
        for number, group in enumerate(self.definition.groups):
            entity = batch.columns[group.entity][at]
            past = pasts.get((number, entity)) if entity else None
            if past is None:
                columns |= missing(group)
                continue
            rows.append(self._row(batch, at, group, columns))
            columns |= past.ask(rows[-1])
        return columns, rows

    def _row(self, batch: Batch, at: int, group: Group, columns: Mapping[str, float]) -> Row:
        values = tuple(columns[name] if group.round else batch.columns[name][at] for name in values_of(group))
        texts = tuple(batch.columns[name][at] or "" for name in texts_of(group))
        return Row(batch.times[at], batch.ids[at], values, texts)

    def _of_time(self, times: Sequence[int]) -> dict[str, list[float]]:
        """The columns of the time alone."""
        if not self.definition.calendar:
            return {}
        stamps = pa.chunked_array([pa.array(times, pa.timestamp("us"))])
        found = calendar(self.definition.calendar, stamps, self.definition.windows)
        return {name: [float(value) for value in values] for name, values in found.items()}
