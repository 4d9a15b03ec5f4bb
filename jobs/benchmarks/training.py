"""One rank's step on one thread: ours and the example's own loop; and ours on rows that are streamed."""

from __future__ import annotations

import itertools
import os
import shutil
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pandas as pd
import ray
import torch
from torch import nn
from torch.nn import functional as F

from benchmarks.harness import GIB, Row, Target, in_turn, peak_memory, proportional_bytes
from benchmarks.world import MILLION, World, one_hot
from fraud_ray.data.rows import PreparedFold, Rows, RowSet
from fraud_ray.model.bundle import network_logits
from fraud_ray.model.network import FraudNetwork
from fraud_ray.settings import TrainSettings
from fraud_ray.storage import Storage
from fraud_ray.training.build import network_shape
from fraud_ray.training.trainer import Fitted, Place, place, read_checkpoint, train_rank

SEEDS = 5
FASTER = {256: 1.3, 8_192: 1.5}  # batch size, and how many times as fast as the example's loop


def stage(world: World) -> list[Row]:
    fold = world.prepared(MILLION)
    fit_rows, holdout = world.loaded(MILLION)
    frame = ray.put(pd.DataFrame({"is_fraud": fit_rows.label}).join(pd.DataFrame(one_hot(fold, fit_rows))))
    return [_step(world, fold, fit_rows, holdout, frame, batch_size) for batch_size in FASTER]


def _step(world: World, fold: PreparedFold, fit_rows: Rows, holdout: Rows, placed: Any, batch_size: int) -> Row:
    held_out = torch.from_numpy(one_hot(fold, holdout)), torch.from_numpy(holdout.label).float()
    own, peers = OneThread(), OneThread()
    losses: dict[str, list[float]] = {"ours": [], "example": []}

    def ours() -> float:
        settings = TrainSettings(optimizer="adam", batch_size=batch_size, seed=len(losses["ours"]))
        fitted = own.run(train_alone, settings, 1, place(fold, settings, world.storage, False), world.storage)
        network = FraudNetwork(network_shape(fit_rows.features.shape[1], fold.encoder.code_sizes, settings))
        network.load_state_dict(fitted.weights)
        logits = torch.from_numpy(network_logits(network.eval(), holdout.features, holdout.codes))
        losses["ours"].append(float(F.binary_cross_entropy_with_logits(logits, held_out[1])))
        speed: float = fitted.curve[-1]["rows_per_second"]
        return speed

    def example() -> float:
        network, speed = peers.run(examples_epoch, placed, batch_size, len(losses["example"]))
        with torch.no_grad():
            losses["example"].append(float(F.binary_cross_entropy(network.eval()(held_out[0]).squeeze(1), held_out[1])))
        return speed

    samples = in_turn({"ours": ours, "example": example}, repeats=SEEDS, warm=False)
    noise = 2 * (sum(statistics.variance(values) for values in losses.values()) / SEEDS) ** 0.5
    means = {name: statistics.mean(values) for name, values in losses.items()}
    return Row.between(
        f"train step, batch {batch_size:,}",
        "rows/s",
        samples["ours"],
        samples["example"],
        "the example's loop",
        Target(">=", FASTER[batch_size]),
        limit=peers.run(products_per_second, batch_size, held_out[0].shape[1]),
        limit_name="its matrix products",
        holds=means["ours"] <= means["example"] + noise,
        note=f"one thread; holdout loss after an epoch {means['ours']:.5f} against {means['example']:.5f}, "
        f"noise of {SEEDS} seeds {noise:.5f}",
    )


def train_alone(settings: TrainSettings, epochs: int, placed: dict[str, Any], storage: Storage) -> Fitted:
    """Fits as a trial of one rank does, in this process."""
    checkpoints: list[bytes | None] = []
    alone = Place(0, 1, torch.device("cpu"))
    train_rank(settings, epochs, [placed], storage, lambda _, content: checkpoints.append(content), None, alone)
    assert checkpoints[-1], "rank 0 gives one an epoch"
    state = read_checkpoint(checkpoints[-1])
    return Fitted(state["folds"][0]["network"], tuple(state["curve"]))


class OneThread:
    """A process of its own, in which each side's work runs on one thread, as in a rank with one CPU."""

    def __init__(self) -> None:
        self._actor: Any = ray.remote(num_cpus=0)(_Process).remote()

    def run(self, work: Callable[..., Any], *arguments: Any) -> Any:
        return ray.get(self._actor.run.remote(work, *arguments))


class _Process:
    def run(self, work: Callable[..., Any], *arguments: Any) -> Any:
        torch.set_num_threads(1)
        return work(*arguments)


def examples_epoch(
    frame: pd.DataFrame,
    batch_size: int,
    seed: int,
    device: torch.device = torch.device("cpu"),  # noqa: B008
) -> tuple[nn.Module, float]:
    """An epoch as the Kubeflow example trains it: its network, loop and loss; the network and its rows/s.

    frame: the label `is_fraud`, then the features, which come encoded here: unscaled, as in the example, they do not
    train at all.
    """
    columns = [name for name in frame.columns if name != "is_fraud"]
    inputs = torch.FloatTensor(frame[columns].values).to(device)
    labels = torch.FloatTensor(frame["is_fraud"].values).to(device)
    torch.manual_seed(seed)
    network = examples_network(len(columns)).to(device)
    optimizer = torch.optim.Adam(network.parameters(), lr=0.001)
    criterion = nn.BCELoss()
    began = time.perf_counter()
    total_loss = 0.0
    for start in range(0, len(inputs), batch_size):
        optimizer.zero_grad()
        outputs = network(inputs[start : start + batch_size]).squeeze()
        loss = criterion(outputs, labels[start : start + batch_size])
        loss.backward()
        optimizer.step()
        total_loss += loss.item()
    return network, len(inputs) / (time.perf_counter() - began)


def examples_network(inputs: int) -> nn.Module:
    return nn.Sequential(
        *(nn.Linear(inputs, 128), nn.ReLU(), nn.Dropout(0.3)),
        *(nn.Linear(128, 64), nn.ReLU(), nn.Dropout(0.3), nn.Linear(64, 1), nn.Sigmoid()),
    )


def products_per_second(
    batch_size: int,
    inputs: int,
    backward: bool = True,
    device: torch.device = torch.device("cpu"),  # noqa: B008
) -> float:
    """Rows/s of nothing but a step's matrix products: forward, then gradients of weights and of what is hidden."""
    widths = (inputs, 128, 64, 1)
    hidden = [torch.randn(batch_size, width, device=device) for width in widths]
    weights = [torch.randn(a, b, device=device) for a, b in itertools.pairwise(widths)]

    def step() -> None:
        for layer, weight in enumerate(weights):
            torch.mm(hidden[layer], weight, out=hidden[layer + 1])
        for layer in reversed(range(len(weights)) if backward else ()):
            torch.mm(hidden[layer].T, hidden[layer + 1])
            if layer:
                torch.mm(hidden[layer + 1], weights[layer].T)

    steps = max(20, 2 * MILLION // batch_size)
    for _ in range(20):
        step()
    _wait(device)
    began = time.perf_counter()
    for _ in range(steps):
        step()
    _wait(device)
    return steps * batch_size / (time.perf_counter() - began)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def streamed(world: World) -> list[Row]:
    """The same rank on rows in memory, and on more rows than its memory budget of 1 GiB."""
    fold = world.prepared(10 * MILLION)
    larger = replace(fold, fit=_copies(world, fold.fit, GIB))
    found: dict[str, Any] = {}
    for name, held in {"ours": larger, "resident": fold}.items():
        settings = TrainSettings(
            batch_size=8_192, memory_budget=GIB, residency="auto" if name == "ours" else "resident"
        )
        placed = place(held, settings, world.storage, False)
        found[name] = OneThread().run(_measured, settings, placed, world.storage)
    (speed, grown), (resident, _) = found["ours"], found["resident"]
    shutil.rmtree(world.storage.path("streamed"))
    return [
        Row(
            "train, streamed",
            "rows/s",
            speed,
            resident,
            "the same rows resident",
            memory=grown,
            target=Target(">=", 0.6),
            holds=grown <= GIB,
            note=f"an epoch of {larger.fit.rows:,} rows, {larger.fit.size / GIB:.2f} GiB, against one of "
            f"{fold.fit.rows:,}; memory is what the rank grows by, which may be 1 GiB",
        )
    ]


def _copies(world: World, rows: RowSet, size: int) -> RowSet:
    """The parts with as many copies of them as exceed a size in bytes, each in files of its own."""
    parts = list(rows.parts)
    for copy in range(1, size // rows.size + 1):
        for part in rows.parts:
            key = f"streamed/copies-{copy}/{part.key.rpartition('/')[2]}"
            target = world.scratch / "store" / key
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(world.storage.path(part.key), target)
            parts.append(replace(part, key=key))
    return RowSet(tuple(parts))


def _measured(settings: TrainSettings, placed: dict[str, Any], storage: Storage) -> tuple[float, int]:
    """Trains for an epoch in this process; its rows/s, and by how many bytes it grew."""
    before = proportional_bytes(os.getpid())
    with peak_memory() as peak:
        fitted = train_alone(settings, 1, placed, storage)
    return fitted.curve[-1]["rows_per_second"], peak.bytes - before
