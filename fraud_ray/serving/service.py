"""What answers, by whatever protocol it is asked: batches scored by the version that answers now, and counted."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fraud_ray.serving.history import History, Score
from fraud_ray.serving.journal import Answered, Sent
from fraud_ray.serving.metrics import Metrics
from fraud_ray.serving.requests import Batch, Form, RequestFault, UnavailableError, read_labels
from fraud_ray.serving.served import Scored, Served
from fraud_ray.settings import ServingSettings
from fraud_ray.windows.definition import Definition


@dataclass
class Service:
    """Scores batches by the version that answers now.

    current: that version; None while there is none. history_of: the past of entities for windows; None while it is not
    there. histories: all that are kept, which learn of labels. waiting: the version that shall answer, and why it does
    not yet; None where it does. answered: told of each batch that was answered; shadow: the challenger that shall score
    it too, None where none shall.
    """

    current: Callable[[], Served | None]
    settings: ServingSettings
    history_of: Callable[[Definition], History | None] = lambda definition: None
    histories: Callable[[], Sequence[History]] = tuple
    waiting: Callable[[], tuple[str, str] | None] = lambda: None
    answered: Callable[[Answered], None] | None = None
    shadow: Callable[[], Served | None] = lambda: None
    metrics: Metrics = field(default_factory=Metrics)
    _form: tuple[Served, Form] | None = None

    def served(self) -> tuple[Served, Form]:
        """The version that answers, and what its transactions must hold. Raises UnavailableError."""
        served = self.current()
        if served is None:
            waiting = self.waiting()
            why = ": version {}, {}".format(*waiting) if waiting else ""
            raise UnavailableError(f"no version is ready to answer yet{why}")
        if self._form is None or self._form[0] is not served:
            self._form = served, Form.of(served, self.settings.ahead_s)
        return self._form

    def limit(self, rows: int, what: str = "transactions") -> None:
        """Raises RequestFault for more of them than a request may have."""
        most = self.settings.max_transactions
        if rows > most:
            raise RequestFault(what, f"are {rows:,}, and a request may hold {most:,} (serving.max_transactions)", 413)

    async def score(self, served: Served, batch: Batch, sent: Sent) -> Scored:
        """What is answered of a batch; sent: as it came. Raises RequestFault and UnavailableError."""
        scored = await self.scored(served, batch)
        self.metrics.count_decisions(scored.decision)
        if self.answered is not None:
            self.answered(Answered(served, self.shadow(), sent, batch.columns, batch.ids, scored))
        return scored

    async def scored(self, served: Served, batch: Batch) -> Scored:
        """What a version says of a batch. Raises RequestFault and UnavailableError."""
        if served.definition is None:
            with self.metrics.timed("graph"):
                found = served.scorer.run(batch.inputs(served.scorer.columns), len(batch))
            rows = len(batch)
            decision = (found >= served.scorer.threshold).tolist()
            return Scored(found.tolist(), decision, [served.version] * rows, [], [False] * rows)
        history = self.history_of(served.definition)
        if history is None:
            raise UnavailableError("the past that its windows look back on is not loaded yet")
        answers = await history.answer(batch, score_by_row(served, batch))
        return Scored(
            [answer.probability for answer in answers],
            [answer.decision for answer in answers],
            [answer.version for answer in answers],
            [history.named(answer) for answer in answers],
            [answer.degraded for answer in answers],
        )

    async def label(self, served: Served, sent: Sequence[Mapping[str, Any]]) -> list[Any]:
        """Tells labels, and returns the ids that are unknown here. Raises RequestFault and UnavailableError."""
        if served.definition is None:
            raise RequestFault(
                None, f"version {served.version} computes no windows, so it learns nothing of labels", 409
            )
        labels = read_labels(served.data, sent, time.time(), self.settings.ahead_s)
        known = [await history.label(labels) for history in self.histories()]
        return [id for at, (id, *_) in enumerate(labels) if not any(of_one[at] for of_one in known)]


def score_by_row(served: Served, batch: Batch) -> Score:
    """Scores one transaction of a batch with its window columns."""
    scorer = served.scorer
    assert served.definition is not None, "windows are computed"
    computed = [column for column in scorer.columns if column.name in served.definition.names]
    sent = batch.inputs([column for column in scorer.columns if column not in computed])

    def score(row: int, columns: Mapping[str, float]) -> tuple[float, bool, str]:
        windows = {column.name: np.full((1, 1), columns[column.name], np.float32) for column in computed}
        [probability] = scorer.run({**{name: values[row : row + 1] for name, values in sent.items()}, **windows}, 1)
        return float(probability), bool(probability >= scorer.threshold), served.version

    return score
