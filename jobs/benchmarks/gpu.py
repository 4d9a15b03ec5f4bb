"""The training rows on a GPU: bf16, resident and streamed, against the example's loop on the same device."""

from __future__ import annotations

import pandas as pd
import torch

from benchmarks.harness import Row, Target, in_turn
from benchmarks.training import examples_epoch, products_per_second
from benchmarks.world import MILLION, World, one_hot, open_fit
from fraud_ray.settings import TrainSettings
from fraud_ray.training.feed import Slot, StreamedFeed
from fraud_ray.training.loop import FoldFit, fit

BATCH = 8_192
FASTER = 2.0  # than the example's loop, as on a CPU


def stage(world: World) -> list[Row]:
    """No rows where there is no GPU."""
    if not torch.cuda.is_available():
        return []
    device = torch.device("cuda")
    fold = world.prepared(10 * MILLION)
    fit_rows, _ = world.loaded(10 * MILLION)
    frame = pd.DataFrame({"is_fraud": fit_rows.label}).join(pd.DataFrame(one_hot(fold, fit_rows)))
    settings = TrainSettings(batch_size=BATCH, precision="bf16", use_gpu=True)

    def epoch(fitted: FoldFit) -> float:
        speed: list[float] = []
        fit([fitted], settings, lambda told, *_: speed.append(told.rows_per_second), 1)
        return speed[0]

    def streamed() -> FoldFit:
        fitted = open_fit(fold, fit_rows, settings, device=device)
        slot = Slot(batch_size=BATCH, seed=settings.seed)
        fitted.feed = StreamedFeed(world.storage, fold.fit, slot, MILLION, device)
        return fitted

    samples = in_turn(
        {
            "resident": lambda: epoch(open_fit(fold, fit_rows, settings, device=device)),
            "streamed": lambda: epoch(streamed()),
            "example": lambda: examples_epoch(frame, BATCH, 0, device)[1],
        },
        repeats=3,
    )
    limit = products_per_second(BATCH, fit_rows.features.shape[1] + sum(fold.encoder.code_sizes), device=device)

    def row(stage: str, ours: str, peer: str, name: str, bound: float) -> Row:
        return Row.between(
            stage,
            "rows/s",
            samples[ours],
            samples[peer],
            name,
            Target(">=", bound),
            limit=limit,
            limit_name="its matrix products in float32",
            note=f"{torch.cuda.get_device_name()}, bf16, batch {BATCH:,}",
        )

    return [
        row("train step on a GPU", "resident", "example", "the example's loop on it", FASTER),
        row("train, streamed to a GPU", "streamed", "resident", "the same rows resident", 0.6),
    ]
