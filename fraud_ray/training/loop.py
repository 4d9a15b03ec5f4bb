"""One training run as one rank sees it: plain torch, reports through a callback.

A run fits one network a fold, epoch by epoch in step, since a trial is judged by the mean over its selection folds.
Several ranks average their gradients at each step by DistributedDataParallel. A rank's loss is scaled such that this
average is the mean over the global batch, however its rows fall to the ranks.
"""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from sklearn.metrics import average_precision_score
from torch import Tensor, distributed, nn
from torch.optim.lr_scheduler import LRScheduler

from fraud_ray.data.rows import Rows
from fraud_ray.errors import DivergedError
from fraud_ray.model.network import FraudNetwork
from fraud_ray.training.capture import CapturedStep
from fraud_ray.training.feed import Batch, Feed, Slot, on_device

Float32 = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Epoch:
    """What one epoch came to: mean over folds of loss and holdout AP (None without a holdout).

    is_last: whether training ends with it, by its number or by patience.
    """

    number: int
    loss: float
    average_precision: float | None
    rows_per_second: float
    steps: int
    is_last: bool


@dataclass
class Best:
    """The best epoch so far, with each fold's holdout logits of then."""

    epoch: int = 0
    average_precision: float = -math.inf
    logits: list[Float32] = field(default_factory=list)


@dataclass(frozen=True)
class Holdout:
    """Rows that are scored after each epoch, each rank a share of them.

    labels: of all rows; features, codes: of this rank's share, on its device; width: the most rows that a rank scores.
    """

    labels: npt.NDArray[np.int8]
    features: Tensor
    codes: Tensor
    width: int

    @classmethod
    def of(cls, rows: Rows, slot: Slot, device: torch.device) -> Holdout:
        width = -(-len(rows) // slot.ranks)
        mine = slice(slot.rank * width, (slot.rank + 1) * width)
        features, codes, _ = on_device(Rows(rows.features[mine], rows.codes[mine], rows.label), device)
        return cls(rows.label, features, codes, width)

    def average_precision(self, logits: Float32) -> float:
        """Of all rows' logits; 0 where one is no number."""
        return float(average_precision_score(self.labels, logits)) if np.isfinite(logits).all() else 0.0


@dataclass(eq=False)
class FoldFit:
    """The network of one fold, what trains it (`build.build_fold` makes both), and where it stands.

    module: the network as the forward pass of a training step has to call it. loss: as `build.build_loss` says.
    in_bf16: whether the forward pass is under autocast.
    """

    network: FraudNetwork
    module: nn.Module
    optimizer: torch.optim.Optimizer
    scheduler: LRScheduler | None
    loss: Callable[..., Tensor]
    feed: Feed
    holdout: Holdout | None
    device: torch.device
    in_bf16: bool

    def __post_init__(self) -> None:
        self.ranks = self.feed.slot.ranks
        self.summed_loss = torch.zeros((), device=self.device)
        self._captured = CapturedStep() if self.device.type == "cuda" and self.ranks == 1 else None

    def run_epoch(self, number: int) -> float:
        """One pass over the fit rows; returns the mean loss over the rows of all ranks."""
        self.network.train()
        self.summed_loss.zero_()
        rows = 0.0
        for batch in self.feed.epoch(number):
            if self._captured:
                self._captured(self._train_on, batch)
            else:
                self._train_on(batch)
            if self.scheduler:
                self.scheduler.step()
            rows += batch.global_rows
        if self.ranks > 1:
            distributed.all_reduce(self.summed_loss)
        return self.summed_loss.item() / rows / self.network.members

    def _train_on(self, batch: Batch) -> None:
        self.optimizer.zero_grad()
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.in_bf16):
            logits = self.module(batch.features, batch.codes).float()
        # Summed over the members too: they are fitted side by side.
        labels = batch.labels.unsqueeze(1).expand_as(logits)
        loss = self.loss(logits, labels, weight=None if batch.weights is None else batch.weights.unsqueeze(1))
        (loss * (self.ranks / batch.global_rows)).backward()
        self.optimizer.step()
        self.summed_loss += loss.detach()

    def score_holdout(self) -> Float32:
        """Logits of all holdout rows, in order; each rank scores its share and all gather."""
        holdout = self.holdout
        assert holdout is not None, "only folds with a holdout are scored"
        logits = self._logits(holdout.features, holdout.codes)
        if self.ranks > 1:
            mine = torch.zeros(holdout.width, device=self.device)
            mine[: len(logits)] = logits
            parts = [torch.empty_like(mine) for _ in range(self.ranks)]
            distributed.all_gather(parts, mine)
            logits = torch.cat(parts)[: len(holdout.labels)]
        return logits.cpu().numpy()

    def _logits(self, features: Tensor, codes: Tensor) -> Tensor:
        self.network.eval()
        scored = [torch.zeros(0, device=self.device)]
        with torch.no_grad():
            for start in range(0, len(features), 8_192):
                cut = slice(start, start + 8_192)
                scored.append(self.network(features[cut], codes[cut]))
        return torch.cat(scored)

    def state(self) -> dict[str, Any]:
        """Tensors and numbers from which training goes on as if it had not stopped."""
        return {
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": None if self.scheduler is None else self.scheduler.state_dict(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Goes on from a `state`, whose tensors lie on this fit's device."""
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.scheduler:
            self.scheduler.load_state_dict(state["scheduler"])


def fit(
    folds: Sequence[FoldFit],
    epochs: int,
    patience_epochs: int | None,
    report: Callable[[Epoch, Best, Callable[[], dict[str, Any]]], None],
    resumed: dict[str, Any] | None = None,
) -> Best:
    """Trains all folds for `epochs`, or until `patience_epochs` bring no better mean AP.

    Without patience the last epoch counts: where the learning rate falls to 0, an epoch in the middle that did better
    on the selection holdouts is luck, and a refit that ended there would be of another kind.

    report: told each epoch, the best so far, and a function that gives the state to resume from; it may raise to stop.
    resumed: such a state. Returns the best epoch; without holdouts that is the last one. Raises DivergedError.
    """
    best, first = Best(), 1
    if resumed is not None:
        best, first = _restore(folds, resumed)
    judged = all(fold.holdout is not None for fold in folds)

    def ends_with(number: int) -> bool:
        impatient = judged and patience_epochs is not None and number - best.epoch >= patience_epochs
        return number == epochs or impatient

    if resumed is not None and ends_with(first - 1):
        return best
    for number in range(first, epochs + 1):
        # Dropout draws anew each epoch, so that a resumed epoch is the same as an uninterrupted one.
        path = folds[0].feed.slot.seed, number, folds[0].feed.slot.rank
        torch.manual_seed(int(np.random.SeedSequence(path).generate_state(1)[0]))
        started = time.perf_counter()
        losses = [fold.run_epoch(number) for fold in folds]
        seconds = time.perf_counter() - started
        _refuse_no_numbers(number, "the loss is", losses)
        score = None
        if judged:
            logits = [fold.score_holdout() for fold in folds]
            _refuse_no_numbers(number, "a score of the holdout is", np.concatenate(logits))
            score = float(
                np.mean([f.holdout.average_precision(z) for f, z in zip(folds, logits, strict=True) if f.holdout])
            )
            if score > best.average_precision or patience_epochs is None:
                best = Best(number, score, logits)
        else:
            best = Best(number)
        epoch = Epoch(
            number,
            float(np.mean(losses)),
            score,
            sum(fold.feed.rows for fold in folds) / seconds,
            sum(fold.feed.steps for fold in folds),
            ends_with(number),
        )
        report(epoch, best, functools.partial(_state, folds, number, best))
        if epoch.is_last:
            break
    return best


def _refuse_no_numbers(epoch: int, what: str, values: Sequence[float] | Float32) -> None:
    found = np.asarray(values)
    if not np.isfinite(found).all():
        raise DivergedError(epoch, f"{what} {found[~np.isfinite(found)][0]}")


def _state(folds: Sequence[FoldFit], number: int, best: Best) -> dict[str, Any]:
    return {
        "epoch": number,
        "best_epoch": best.epoch,
        "best_average_precision": best.average_precision,
        "best_logits": [torch.from_numpy(z) for z in best.logits],
        "folds": [fold.state() for fold in folds],
    }


def _restore(folds: Sequence[FoldFit], state: dict[str, Any]) -> tuple[Best, int]:
    for fold, stored in zip(folds, state["folds"], strict=True):
        fold.restore(stored)
    logits = [z.cpu().numpy() for z in state["best_logits"]]
    return Best(state["best_epoch"], state["best_average_precision"], logits), state["epoch"] + 1
