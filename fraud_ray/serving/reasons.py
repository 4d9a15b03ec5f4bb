"""Why alerts score as they do. Reasons need torch, which the serving process never imports: a child process has it."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import signal
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from fraud_ray.model.encoder import NO_TIME
from fraud_ray.serving.requests import Batch, RequestFault, UnavailableError
from fraud_ray.serving.served import Served

if TYPE_CHECKING:
    from fraud_ray.model.reasons import Explainer

COUNT = 3  # columns named for an alert, as batch scoring does
Reason = tuple[str, float]


class Reasons:
    """The child process, started by the first request for reasons."""

    def __init__(self) -> None:
        self._pool: ProcessPoolExecutor | None = None

    async def of(
        self, served: Served, batch: Batch, computed: Sequence[Mapping[str, float]], alerts: Sequence[bool]
    ) -> list[list[Reason]]:
        """The columns that weigh most in each alert, and what each adds to the log-odds of fraud; none of the others.

        computed: the window columns of each transaction. Raises RequestFault where the version has nothing that reasons
        are computed from, UnavailableError where the child process was lost.
        """
        rows = [row for row, is_alert in enumerate(alerts) if is_alert]
        if not rows:
            return [[] for _ in alerts]
        names = [column.name for column in served.scorer.columns]
        sent = {name: [batch.columns[name][row] for row in rows] for name in names if name in batch.columns}
        read = {name: sent.get(name) or [computed[row][name] for row in rows] for name in names}
        if self._pool is None:
            self._pool = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), begin)
        try:
            found = await asyncio.get_running_loop().run_in_executor(self._pool, explain, served.folder, read)
        except BrokenProcessPool:
            self.close()
            raise UnavailableError("the process that finds reasons has ended; it is started again") from None
        if found is None:
            raise RequestFault("reasons", "cannot be told of this version, whose folder lacks its weights or encoder")
        told = iter(found)
        return [next(told) if is_alert else [] for is_alert in alerts]

    def close(self) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)
        self._pool = None


def explain(folder: Path, columns: Mapping[str, list[Any]]) -> list[list[Reason]] | None:
    """In the child process: the reasons of rows, which come by column as `requests.Batch` holds them.

    None where the folder holds no whole bundle.
    """
    explainer = _explainer(folder)
    if explainer is None:
        return None
    arrays = {}
    for column in explainer.encoder.columns:
        values = columns[column.name]
        if column.kind == "timestamp":
            arrays[column.name] = pa.array([None if at == NO_TIME else at for at in values], pa.timestamp("us"))
        else:
            arrays[column.name] = pa.array(values, pa.string() if column.kind == "categorical" else pa.float64())
    names, effects = explainer.reasons(pa.table(arrays), COUNT)
    return [list(zip(*both, strict=True)) for both in zip(names.tolist(), effects.tolist(), strict=True)]


@lru_cache(maxsize=2)
def _explainer(folder: Path) -> Explainer | None:
    from fraud_ray.model.bundle import Bundle
    from fraud_ray.model.reasons import Explainer

    try:
        return Explainer.of(Bundle.load(folder))
    except (OSError, ValueError, KeyError):
        return None


def begin() -> None:
    """In the child process: the server ends it, not the Ctrl-C that reaches both; a server that was killed does too."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_the_parent, daemon=True).start()


def _end_with_the_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None, "it was started by one"
    parent.join()
    os.kill(os.getpid(), signal.SIGKILL)
