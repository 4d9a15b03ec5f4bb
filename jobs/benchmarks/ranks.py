"""Ranks that share each batch against one rank, and against as many ranks that do not talk to each other."""

from __future__ import annotations

import shutil
import statistics

import ray

from benchmarks.harness import Row, Side, Target, in_turn
from benchmarks.training import train_alone
from benchmarks.world import MILLION, World, silent
from fraud_ray.data.rows import PreparedFold
from fraud_ray.settings import TrainSettings
from fraud_ray.training.trainer import Fitted, place, refit

EPOCHS = 7  # in the first seconds Ray still starts and ends processes, which disturbs two ranks more than one
REPEATS = 5  # of short fits, as the speed of a shared machine drifts within a minute
FASTER = {4_096: 1.3, 8_192: 1.3}  # rows a rank and step, and how many times as fast two ranks are as one


def stage(world: World) -> list[Row]:
    return [_row(world, 2, rows_a_rank, REPEATS, Target(">=", faster)) for rows_a_rank, faster in FASTER.items()]


def scaling(world: World) -> list[Row]:
    """Four ranks where there may be two cores: what the communication of more ranks costs is in the limit."""
    return [_row(world, 4, 4_096, 1, None)]


def _row(world: World, ranks: int, rows_a_rank: int, repeats: int, target: Target | None) -> Row:
    fold = world.prepared(MILLION)
    sides = {
        "one": _together(world, fold, 1, rows_a_rank),
        "ranks": _together(world, fold, ranks, rows_a_rank),
        "apart": _apart(world, fold, ranks, rows_a_rank),
    }
    found = in_turn(sides, repeats=repeats, warm=False)
    return Row.between(
        f"train, DDP, {ranks} ranks of {rows_a_rank:,}",
        "rows/s",
        found["ranks"],
        found["one"],
        "one rank",
        target,
        limit=found["apart"].median,
        limit_name=f"{ranks} ranks that do not communicate",
        note=f"one thread a rank, median epoch of {EPOCHS}",
    )


def _settings(ranks: int, batch_size: int) -> TrainSettings:
    return TrainSettings(
        batch_size=batch_size, workers=ranks, epochs=EPOCHS, resources_per_worker={"CPU": _cpus(ranks)}
    )


def _cpus(ranks: int) -> float:
    """What a rank reserves: a core, or its part of one where there are more ranks than cores. It has one thread."""
    return min(1.0, ray.cluster_resources()["CPU"] / ranks)


def _together(world: World, fold: PreparedFold, ranks: int, rows_a_rank: int) -> Side:
    """The refit, as the pipeline calls it."""
    settings = _settings(ranks, ranks * rows_a_rank)

    def run() -> float:
        fitted = refit(fold, settings, EPOCHS, world.storage, "ranks", silent)
        shutil.rmtree(world.storage.path("ranks"))
        return _median_speed(fitted)

    return run


def _apart(world: World, fold: PreparedFold, count: int, rows_a_rank: int) -> Side:
    """So many fits of one rank at the same time; their rows/s in all."""
    settings = _settings(1, rows_a_rank)

    def run() -> float:
        placed = place(fold, settings, world.storage, with_holdout=False)
        train = ray.remote(num_cpus=_cpus(count))(train_alone)
        fitted = ray.get([train.remote(settings, EPOCHS, placed, world.storage) for _ in range(count)])
        return sum(map(_median_speed, fitted))

    return run


def _median_speed(fitted: Fitted) -> float:
    """Of all epochs but the first, in which memory is touched and libraries are loaded."""
    return statistics.median(epoch["rows_per_second"] for epoch in fitted.curve[1:])
