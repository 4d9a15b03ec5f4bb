"""Ranks that exchange through shared memory, or by messages where there is no such memory."""

from __future__ import annotations

import json
import os
import platform
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import distributed, multiprocessing, nn

from fraud_ray.settings import TrainSettings
from fraud_ray.training import exchange
from fraud_ray.training.feed import ResidentFeed, Slot
from fraud_ray.training.loop import FoldFit, fit
from fraud_ray.training.trainer import network_shape
from tests.prepared import coded, made_rows
from tests.test_loop import NETWORKS

RANKS = 3
SETTINGS = {name: TrainSettings(hidden_sizes=(32, 16), batch_size=96, **given) for name, given in NETWORKS.items()}
SHARES = sys.platform == "linux" and platform.machine() == "x86_64"


FIT, HOLDOUT = coded(made_rows(600, seed=1)), coded(made_rows(500, seed=2))


def left_behind() -> list[Path]:
    return list(exchange.SHARED.glob("fraud-ray-exchange-*"))


def opened(rank: int, settings: TrainSettings) -> FoldFit:
    torch.manual_seed(rank)  # all go on with the weights of rank 0
    feed = ResidentFeed(FIT, Slot(rank, RANKS, settings.batch_size))
    return FoldFit(network_shape(4, (3, 3), settings), feed, HOLDOUT, settings, torch.device("cpu"))


def fitted(fold: FoldFit) -> dict[str, Any]:
    losses: list[float] = []
    best = fit([fold], fold.settings, lambda epoch, *_: losses.append(epoch.loss), 2)
    weights = [float(weight.detach().abs().sum()) for weight in fold.network.parameters()]
    with torch.no_grad():
        alone = fold.network.eval()(torch.from_numpy(HOLDOUT.features), torch.from_numpy(HOLDOUT.codes))
    assert np.allclose(fold.score_holdout(), alone, atol=1e-5), "every row is scored, in its place"
    return {"losses": losses, "weights": weights, "average_precision": best.average_precision}


def one_rank(rank: int, folder: Path) -> None:
    """Fits by messages and by shared memory, and what a rank says that waits for another."""
    store = distributed.FileStore(str(folder / "store"), RANKS)
    distributed.init_process_group("gloo", store=store, rank=rank, world_size=RANKS)
    place, exchange.SHARED = exchange.SHARED, folder / "none"
    told: dict[str, Any] = {"sent": {}, "shared": {}, "sent by": [], "shared by": []}
    for name, settings in SETTINGS.items():
        fold = opened(rank, settings)
        told["sent by"].append(type(fold.exchange).__name__)
        told["sent"][name] = fitted(fold)
    exchange.SHARED, exchange.LIMIT_SECONDS = place, 2.0
    folds = {name: opened(rank, settings) for name, settings in SETTINGS.items()}
    told["shared by"] = [type(fold.exchange).__name__ for fold in folds.values()]
    late = exchange.open_exchange(nn.Linear(5, 1), Slot(rank, RANKS), torch.device("cpu"))
    if SHARES:
        distributed.destroy_process_group()
    told["shared"] = {name: fitted(fold) for name, fold in folds.items()}
    if SHARES and rank != 1:
        try:
            late.sum(torch.zeros(()))
        except TimeoutError as fault:
            told["late"] = str(fault)
    (folder / f"{rank}.json").write_text(json.dumps(told))


def test_ranks_that_share_memory_train_like_ranks_that_send_gradients(tmp_path: Path) -> None:
    before = left_behind()
    multiprocessing.spawn(one_rank, (tmp_path,), nprocs=RANKS)
    told = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(RANKS)]
    for rank in told:
        assert set(rank["sent by"]) == {"Sent"}
        assert set(rank["shared by"]) == {"Shared" if SHARES else "Sent"}
        assert rank["shared"] == told[0]["shared"], "all ranks have the same network and the same scores"
        for name, shared in rank["shared"].items():
            for figures, sent in rank["sent"][name].items():
                assert shared[figures] == pytest.approx(sent, rel=1e-5), (name, figures)
    if SHARES:
        assert told[0]["late"] == "rank 0 waited 2 s for rank 1"
    assert left_behind() == before


@pytest.mark.skipif(not SHARES, reason="needs Linux on x86-64")
def test_memory_that_may_not_be_written_is_left_to_gloo(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exchange, "SHARED", Path("/proc"))  # where not even root may make a file
    assert exchange._reserve(1) is None


@pytest.mark.skipif(not SHARES, reason="needs Linux on x86-64")
def test_memory_that_is_full_is_left_to_gloo() -> None:
    before = left_behind()
    free = os.statvfs(exchange.SHARED)
    assert exchange._reserve(2 * free.f_frsize * free.f_blocks) is None
    assert left_behind() == before
