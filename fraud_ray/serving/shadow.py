"""A challenger whose windows are others than the champion's: it scores what was answered from a past of its own.

Each transaction joins that past, so it is complete on the day on which the challenger becomes champion. One whose
windows are the champion's, or that reads none, is left to the journal's thread.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import replace

from fraud_ray.errors import FraudRayError
from fraud_ray.serving.journal import Answered, Journal, have_same_windows
from fraud_ray.serving.requests import Batch, Form, RequestFault
from fraud_ray.serving.served import Scored, Served

_MOST_BATCHES = 1_000  # that wait for the challenger
_LAST_S = 5.0  # that it has when serving ends


class Shadow:
    """Lets the challenger score batches one after the other, once they are answered, and has them written."""

    def __init__(self, journal: Journal, scored: Callable[[Served, Batch], Awaitable[Scored]], ahead_s: float) -> None:
        """scored: what a version says of a batch; ahead_s: how far times may lie ahead, in seconds."""
        self._journal, self._scored, self._ahead_s = journal, scored, ahead_s
        self._queue: asyncio.Queue[Answered] = asyncio.Queue(_MOST_BATCHES)
        self._task = asyncio.create_task(self._run())
        self._pair: tuple[Served | None, Served | None, bool] = None, None, True

    def put(self, answered: Answered) -> None:
        """Has a batch written, without what the challenger says where too many wait for that."""
        served, shadow = answered.served, answered.shadow
        if self._pair[0] is not served or self._pair[1] is not shadow:
            self._pair = served, shadow, shadow is None or have_same_windows(served, shadow)
        if self._pair[2]:
            self._journal.put(answered)
        elif self._queue.full():
            self._journal.put(replace(answered, shadow=None))
        else:
            self._queue.put_nowait(answered)

    async def stop(self) -> None:
        """Has all written that waits, of the last of it without what the challenger says if it takes too long."""
        with suppress(TimeoutError):
            await asyncio.wait_for(self._queue.join(), _LAST_S)
        self._task.cancel()
        with suppress(asyncio.CancelledError):
            await self._task
        while not self._queue.empty():
            self._journal.put(replace(self._queue.get_nowait(), shadow=None))

    async def _run(self) -> None:
        while True:
            answered, said = await self._queue.get(), None
            shadow = answered.shadow
            assert shadow is not None, "others are not in the queue"
            try:
                said = await self._said(shadow, answered)
            except (RequestFault, FraudRayError) as fault:
                self._journal.tell(f"the challenger, version {shadow.version}, does not score in the shadow: {fault}")
            finally:
                self._journal.put(replace(answered, shadow=shadow if said else None, shadowed=said))
                self._queue.task_done()

    async def _said(self, shadow: Served, answered: Answered) -> Scored:
        """A transaction at a time, so that requests are answered in between."""
        form, sent, scores = Form.of(shadow, self._ahead_s), answered.sent, []
        if isinstance(sent, Mapping):
            columns = sent
            sent = [{name: values[row] for name, values in columns.items()} for row in range(len(answered))]
        for transaction in sent:
            scores.append(await self._scored(shadow, form.read([transaction], time.time())))
            await asyncio.sleep(0)
        return Scored(
            probability=[value for one in scores for value in one.probability],
            decision=[value for one in scores for value in one.decision],
            version=[value for one in scores for value in one.version],
            computed=[value for one in scores for value in one.computed],
            degraded=[value for one in scores for value in one.degraded],
        )
