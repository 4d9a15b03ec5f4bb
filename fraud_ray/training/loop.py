"""One training run as one rank sees it: plain torch, reports through a callback.

A run fits one network a fold, epoch by epoch in step, since a trial is judged by the mean over its selection folds.
Several ranks average their gradients at each step (see `exchange`). A rank's loss is scaled such that this average is
the mean over the global batch, however its rows fall to the ranks.
"""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from sklearn.metrics import average_precision_score
from torch import Tensor
from torch.nn import functional as F

from fraud_ray.data.rows import Rows
from fraud_ray.model.network import FraudNetwork, NetworkShape
from fraud_ray.settings import TrainSettings
from fraud_ray.training.capture import CapturedStep
from fraud_ray.training.exchange import open_exchange
from fraud_ray.training.feed import Batch, Feed, on_device
from fraud_ray.training.optimizer import FusedAdam

Float32 = npt.NDArray[np.float32]

# Rows whose activations stay in a CPU's cache from the forward to the backward pass.
CACHED_ROWS = 4_096


@dataclass(frozen=True)
class Epoch:
    """What one epoch came to: mean over folds of loss and holdout AP (None without a holdout)."""

    number: int
    loss: float
    average_precision: float | None
    rows_per_second: float
    steps: int


@dataclass
class Best:
    """The best epoch so far, with each fold's holdout logits of then."""

    epoch: int = 0
    average_precision: float = -math.inf
    logits: list[Float32] = field(default_factory=list)


class FoldFit:
    """The network of one fold, its optimiser, and where it stands.

    holdout: rows to score after each epoch; every rank scores its share of them.
    """

    def __init__(
        self,
        shape: NetworkShape,
        feed: Feed,
        holdout: Rows | None,
        settings: TrainSettings,
        device: torch.device,
    ) -> None:
        self.feed, self.holdout, self.settings, self.device = feed, holdout, settings, device
        self.slot = feed.slot
        self._mine = None if holdout is None else self._share_of(holdout)
        self.network = FraudNetwork(shape).to(device)
        self.exchange = open_exchange(self.network, self.slot, device, 0 if holdout is None else self._width(holdout))
        decay = {"adam": 0.0, "adamw": settings.weight_decay}[settings.optimizer]
        self.optimizer = FusedAdam(self.network.parameters(), decay)
        weight = settings.positive_weight
        positive = (feed.rows - feed.frauds) / feed.frauds if weight == "balanced" else float(weight)
        self.positive_weight = torch.tensor(positive, device=device)
        self.summed_loss = torch.zeros((), device=device)
        alone_on_gpu = device.type == "cuda" and self.slot.ranks == 1
        self._captured = CapturedStep() if alone_on_gpu else None

    def run_epoch(self, number: int) -> float:
        """One pass over the fit rows; returns the mean loss over the rows of all ranks."""
        self.network.train()
        self.summed_loss.zero_()
        rows = 0.0
        for step, batch in enumerate(self.feed.epoch(number), start=(number - 1) * self.feed.steps):
            if self._captured:
                self._captured(self._train_on, batch, self._learning_rate(step))
            else:
                self._train_on(batch, self._learning_rate(step))
            rows += batch.global_rows
        self.exchange.sum(self.summed_loss)
        return self.summed_loss.item() / rows / self.network.members

    def _train_on(self, batch: Batch, learning_rate: float | Tensor) -> None:
        self.optimizer.zero_grad()
        # DistributedDataParallel averages after each backward pass, so there it is one.
        in_pieces = self.device.type == "cpu" and self.exchange.module is self.network
        for piece in batch.pieces(CACHED_ROWS) if in_pieces else [batch]:
            with self._autocast():
                summed = self._loss(piece)
            (summed * (self.slot.ranks / batch.global_rows)).backward()
            self.summed_loss += summed.detach()
        self.exchange.average()
        self.optimizer.step(learning_rate)

    def score_holdout(self) -> Float32:
        """Logits of all holdout rows, in order; each rank scores a share and all gather."""
        assert self.holdout is not None and self._mine is not None, "only folds with a holdout are scored"
        scored = torch.zeros(self._width(self.holdout), device=self.device)
        logits = self._logits(*self._mine)
        scored[: len(logits)] = logits
        return self.exchange.gather(scored)[: len(self.holdout)].cpu().numpy()

    def _share_of(self, holdout: Rows) -> tuple[Tensor, Tensor]:
        """Features and codes of the holdout rows that this rank scores, on its device."""
        width = self._width(holdout)
        mine = slice(self.slot.rank * width, (self.slot.rank + 1) * width)
        features, codes, _ = on_device(Rows(holdout.features[mine], holdout.codes[mine], holdout.label), self.device)
        return features, codes

    def _width(self, holdout: Rows) -> int:
        """The most holdout rows that a rank scores."""
        return -(-len(holdout) // self.slot.ranks)

    def _learning_rate(self, step: int) -> float:
        total = self.feed.steps * self.settings.epochs
        return self.settings.learning_rate * rate_factor(
            step, total, self.settings.schedule, self.settings.warmup_share
        )

    def _logits(self, features: Tensor, codes: Tensor) -> Tensor:
        self.network.eval()
        scored = [torch.zeros(0, device=self.device)]
        with torch.no_grad():
            for start in range(0, len(features), 8_192):
                cut = slice(start, start + 8_192)
                scored.append(self.network(features[cut], codes[cut]))
        return torch.cat(scored)

    def _loss(self, batch: Batch) -> Tensor:
        """Sum of the rows' losses, each summed over the members: they are fitted side by side."""
        logits = self.exchange.module(batch.features, batch.codes).float()
        labels = batch.labels.unsqueeze(1).expand_as(logits)
        weights = None if batch.weights is None else batch.weights.unsqueeze(1)
        if self.settings.loss == "bce":
            return F.binary_cross_entropy_with_logits(
                logits, labels, weight=weights, pos_weight=self.positive_weight, reduction="sum"
            )
        losses = focal_loss(logits, labels, self.settings.focal_gamma)
        losses = losses * torch.where(labels > 0, self.positive_weight, 1.0)
        return (losses if weights is None else losses * weights).sum()

    def _autocast(self) -> AbstractContextManager[Any]:
        if self.settings.precision == "bf16" and self.device.type == "cuda":
            return torch.autocast("cuda", torch.bfloat16)
        return nullcontext()

    def state(self) -> dict[str, Any]:
        """Tensors and numbers from which training goes on as if it had not stopped."""
        return {"network": self.network.state_dict(), "optimizer": self.optimizer.state_dict()}

    def restore(self, state: dict[str, Any]) -> None:
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])


def fit(
    folds: Sequence[FoldFit],
    settings: TrainSettings,
    report: Callable[[Epoch, Best, Callable[[], dict[str, Any]]], None],
    epochs: int,
    resumed: dict[str, Any] | None = None,
) -> Best:
    """Trains all folds for `epochs`, or until `settings.patience_epochs` bring no better mean AP.

    Without patience the last epoch counts: where the learning rate falls to 0, an epoch in the middle that did better
    on the selection holdouts is luck, and a refit that ended there would be of another kind.

    report: told each epoch, the best so far, and a function that gives the state to resume from; it may raise to stop.
    resumed: such a state. Returns the best epoch; without holdouts that is the last one.
    """
    best, first = Best(), 1
    if resumed is not None:
        best, first = _restore(folds, resumed)
    judged = all(fold.holdout is not None for fold in folds)
    for number in range(first, epochs + 1):
        if judged and settings.patience_epochs and number - 1 - best.epoch >= settings.patience_epochs:
            break
        # Dropout draws anew each epoch, so that a resumed epoch is the same as an uninterrupted one.
        path = settings.seed, number, folds[0].slot.rank
        torch.manual_seed(int(np.random.SeedSequence(path).generate_state(1)[0]))
        started = time.perf_counter()
        losses = [fold.run_epoch(number) for fold in folds]
        seconds = time.perf_counter() - started
        score = None
        if judged:
            logits = [fold.score_holdout() for fold in folds]
            scores = [_average_precision(fold, z) for fold, z in zip(folds, logits, strict=True)]
            score = float(np.mean(scores))
            if score > best.average_precision or settings.patience_epochs is None:
                best = Best(number, score, logits)
        else:
            best = Best(number)
        epoch = Epoch(
            number,
            float(np.mean(losses)),
            score,
            sum(fold.feed.rows for fold in folds) / seconds,
            sum(fold.feed.steps for fold in folds),
        )
        report(epoch, best, functools.partial(_state, folds, number, best))
    return best


def rate_factor(step: int, total: int, schedule: str, warmup_share: float) -> float:
    """Share of the peak learning rate at a step: a linear rise, then constant or a cosine to zero."""
    warmup = int(total * warmup_share)
    if step < warmup:
        return (step + 1) / warmup
    if schedule == "constant":
        return 1.0
    done = (step - warmup) / max(1, total - warmup)
    return 0.5 * (1 + math.cos(math.pi * min(1.0, done)))


def focal_loss(logits: Tensor, labels: Tensor, gamma: float) -> Tensor:
    """Loss a row (rows,), (1 - p)^gamma times the cross entropy, p the probability given to the row's own class.

    Source: Lin et al., "Focal Loss for Dense Object Detection" (2017), equation 4.
    """
    cross_entropy = F.binary_cross_entropy_with_logits(logits, labels, reduction="none")
    return (1 - torch.exp(-cross_entropy)) ** gamma * cross_entropy


def _average_precision(fold: FoldFit, logits: Float32) -> float:
    assert fold.holdout is not None, "only folds with a holdout are scored"
    if not np.isfinite(logits).all():
        return 0.0
    return float(average_precision_score(fold.holdout.label, logits))


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
    best = Best(state["best_epoch"], state["best_average_precision"], [z.numpy() for z in state["best_logits"]])
    return best, state["epoch"] + 1
