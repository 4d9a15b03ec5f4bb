"""Trials: ours share processes that stay, the peer starts a TorchTrainer a trial."""

from __future__ import annotations

import os
import shutil
import time
from typing import Any

import numpy as np
import ray
from ray import tune
from ray.tune.integration.ray_train import TuneReportCallback

from benchmarks.harness import Row, Target, in_turn, proportional_bytes
from benchmarks.world import World, silent
from fraud_ray.settings import SearchSettings, Settings, TrainSettings
from fraud_ray.storage import Storage
from fraud_ray.training.search import concurrency, search
from fraud_ray.training.trainer import place, train_on_workers

TRIALS, EPOCHS, ROWS = 16, 10, 87_500  # four fifths of the rows are fitted on
PEERS_TRIALS = 4


def stage(world: World) -> list[Row]:
    return _rows(world, "search", _settings(world, ROWS, TRIALS, EPOCHS), Target(">=", 8), Target("<=", 10, "s"))


def on_gpu(world: World) -> list[Row]:
    """The same trials, four of them at once on one GPU."""
    share = {"CPU": 1, "GPU": 0.25}
    settings = _settings(world, ROWS, TRIALS, EPOCHS, use_gpu=True, resources_per_worker=share)
    return _rows(world, "search on a GPU", settings)


def _rows(
    world: World, name: str, settings: Settings, faster: Target | None = None, soon: Target | None = None
) -> list[Row]:
    until_first: list[float] = []

    def ours() -> float:
        seconds, first = _search(world, settings, ROWS)
        until_first.append(first)
        return 60 * TRIALS / seconds

    samples = in_turn({"ours": ours, "peer": lambda: _trainers(world, settings)}, repeats=1, warm=False)
    return [
        Row.between(
            f"{name}, {TRIALS} trials of {EPOCHS} epochs",
            "trials/min",
            samples["ours"],
            samples["peer"],
            "a TorchTrainer a trial",
            faster,
            note=f"{ROWS * 4 // 5:,} rows, batch {settings.train.batch_size}; peer: our loop, {PEERS_TRIALS} trials",
        ),
        Row(
            f"{name}, first epoch told",
            "s",
            max(until_first),
            target=soon,
            note="since the call, on a warm Ray",
        ),
    ]


def scaling(world: World) -> list[Row]:
    """What a trial costs the driver, in time and memory, as trials become more."""
    counts = [8, 64, *([512] if world.full else [])]
    rows = 4_000
    seconds, grown = {}, {}
    for count in counts:
        before = proportional_bytes(os.getpid())
        seconds[count] = _search(world, _settings(world, rows, count, 1), rows)[0] / count
        grown[count] = proportional_bytes(os.getpid()) - before
    return [
        Row(
            f"scaling, {count} trials",
            "s",
            seconds[count],
            seconds[counts[0]],
            f"{counts[0]} trials",
            note=f"a trial, of an epoch of {rows * 4 // 5:,} rows; the driver grows by "
            f"{max(0, grown[count]) / count / 2**20:.2f} MiB a trial",
        )
        for count in counts[1:]
    ]


def _settings(world: World, rows: int, trials: int, epochs: int, **train: Any) -> Settings:
    rates = tuple(float(rate) for rate in np.geomspace(0.0005, 0.005, trials))
    settings = world.settings(rows, epochs=epochs, batch_size=1_024, patience_epochs=None, **train)
    return settings.model_copy(update={"search": SearchSettings(space={"learning_rate": rates})})


def _search(world: World, settings: Settings, rows: int) -> tuple[float, float]:
    """Seconds that a search takes, and that pass until its first epoch is told of."""
    fold = world.prepared(rows)
    told: list[float] = []
    began = time.perf_counter()
    search([fold], settings, world.storage, "search", silent, lambda *_: told.append(time.perf_counter()))
    seconds = time.perf_counter() - began
    shutil.rmtree(world.storage.path("search"))
    return seconds, told[1] - began  # the first call is made before anything runs


def _trainers(world: World, settings: Settings) -> float:
    """Trials a minute where each is a TorchTrainer of one worker, as many at once as of ours."""
    train = settings.train
    folds = [place(world.prepared(ROWS), train, world.storage, with_holdout=True)]
    given = {"settings": train, "folds": folds, "storage": world.storage}
    tuner = tune.Tuner(
        # Its own process reserves nothing that its worker waits for: one byte, for Tune refuses an empty request.
        tune.with_resources(tune.with_parameters(_train_on_a_worker, **given), {"cpu": 0.0, "memory": 1.0}),
        param_space={"trial": tune.grid_search(list(range(PEERS_TRIALS)))},
        tune_config=tune.TuneConfig(max_concurrent_trials=concurrency(settings, ray.cluster_resources())),
        run_config=tune.RunConfig(storage_path=world.storage.path("trainers/tune"), verbose=0),
    )
    began = time.perf_counter()
    results = tuner.fit()
    seconds = time.perf_counter() - began
    assert not results.errors, results.errors
    shutil.rmtree(world.storage.path("trainers"))
    return 60 * PEERS_TRIALS / seconds


def _train_on_a_worker(config: dict[str, Any], settings: TrainSettings, folds: list[Any], storage: Storage) -> None:
    folder, resources = f"trainers/{config['trial']}", settings.resources_per_worker
    train_on_workers(settings, settings.epochs, folds, storage, folder, resources, TuneReportCallback())
