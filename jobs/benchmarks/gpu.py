"""The training and search rows on a GPU, against the same peers on the same device."""

from __future__ import annotations

import statistics

import pandas as pd
import torch

from benchmarks import searching
from benchmarks.harness import Row, Sample, Target, in_turn
from benchmarks.training import examples_epoch, products_per_second
from benchmarks.world import MILLION, World, one_hot, open_fit
from fraud_ray.settings import TrainSettings
from fraud_ray.training.feed import StreamedFeed
from fraud_ray.training.loop import FoldFit, fit

EPOCHS = 4  # the first one, in which libraries load and the step is captured, is not counted
ROWS = {256: MILLION, 8_192: 10 * MILLION}  # by batch size
FASTER = {256: 8.0, 8_192: 5.0}  # batch size, and how many times as fast as the example's loop


def stage(world: World) -> list[Row]:
    """No rows where there is no GPU."""
    if not torch.cuda.is_available():
        return []
    return [*_steps(world, 256), *_steps(world, 8_192), *searching.on_gpu(world)]


def _steps(world: World, batch_size: int) -> list[Row]:
    """Rows resident against the example's loop; and, where they are many, streamed against resident."""
    device = torch.device("cuda")
    fold = world.prepared(ROWS[batch_size])
    fit_rows, _ = world.loaded(ROWS[batch_size])
    frame = pd.DataFrame({"is_fraud": fit_rows.label}).join(pd.DataFrame(one_hot(fold, fit_rows)))

    def resident(precision: str = "float32") -> FoldFit:
        return open_fit(fold, fit_rows, _settings(batch_size, precision), device=device)

    def streamed() -> FoldFit:
        fitted = resident()
        fitted.feed = StreamedFeed(world.storage, fold.fit, fitted.feed.slot, MILLION, device)
        return fitted

    sides = {
        "ours": lambda: _speed(resident()),
        "bf16": lambda: _speed(resident("bf16")),
        "example": lambda: examples_epoch(frame, batch_size, 0, device)[1],
    }
    is_large = ROWS[batch_size] > MILLION
    samples = in_turn({**sides, "streamed": lambda: _speed(streamed())} if is_large else sides, repeats=3)
    limit = products_per_second(batch_size, fit_rows.features.shape[1] + sum(fold.encoder.code_sizes), device=device)
    name = torch.cuda.get_device_name()

    def row(stage: str, ours: Sample, peer: Sample, peer_name: str, bound: float) -> Row:
        return Row.between(
            stage,
            "rows/s",
            ours,
            peer,
            peer_name,
            Target(">=", bound),
            limit=limit,
            limit_name="its matrix products",
            note=f"{name}, {len(fit_rows):,} rows, float32; bf16: {samples['bf16'].median / 1e6:.3g} M rows/s",
        )

    rows = [
        row(
            f"train on a GPU, batch {batch_size:,}",
            samples["ours"],
            samples["example"],
            "the example's loop on it",
            FASTER[batch_size],
        )
    ]
    if is_large:
        rows.append(
            row("train on a GPU, streamed", samples["streamed"], samples["ours"], "the same rows resident", 0.6)
        )
    return rows


def _settings(batch_size: int, precision: str) -> TrainSettings:
    return TrainSettings(batch_size=batch_size, precision=precision, use_gpu=True)


def _speed(fitted: FoldFit) -> float:
    """Rows/s of the median epoch."""
    told: list[float] = []
    fit([fitted], EPOCHS, None, lambda epoch, *_: told.append(epoch.rows_per_second))
    return statistics.median(told[1:])
