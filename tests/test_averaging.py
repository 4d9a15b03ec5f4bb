"""Gradients averaged in shared memory, or sent by DistributedDataParallel where there is no such memory."""

from __future__ import annotations

import json
import os
import platform
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import distributed, multiprocessing, nn

from fraud_ray.settings import TrainSettings
from fraud_ray.training import averaging
from fraud_ray.training.feed import ResidentFeed, Slot
from fraud_ray.training.loop import FoldFit, fit
from tests.test_loop import FIT, SHAPE

RANKS = 3
SHARES = sys.platform == "linux" and platform.machine() == "x86_64"


def left_behind() -> list[Path]:
    return list(averaging.SHARED.glob("fraud-ray-gradients-*"))


def one_rank(rank: int, folder: Path) -> None:
    """A fit with shared memory and one with DistributedDataParallel, and what a rank says that waits for another."""
    store = distributed.FileStore(str(folder / "store"), RANKS)
    distributed.init_process_group("gloo", store=store, rank=rank, world_size=RANKS)
    told: dict[str, Any] = {}
    place = averaging.SHARED
    for name, averaging.SHARED in (("shared", place), ("sent", folder / "none")):
        torch.manual_seed(rank)
        settings = TrainSettings(batch_size=96)
        feed = ResidentFeed(FIT, Slot(rank, RANKS, settings.batch_size))
        fold = FoldFit(SHAPE, feed, None, settings, torch.device("cpu"))
        losses: list[float] = []
        fit([fold], settings, lambda epoch, *_, told=losses: told.append(epoch.loss), 3)
        told[name] = [*losses, *(float(weight.detach().abs().sum()) for weight in fold.network.parameters())]
        told[f"{name} by"] = type(fold.wrapped).__name__
    averaging.SHARED, averaging.LIMIT_SECONDS = place, 2.0
    layer = nn.Linear(5, 1)
    shared = averaging.share_gradients(list(layer.parameters()))
    layer(torch.ones(1, 5)).sum().backward()
    if rank != 1 and shared:
        try:
            shared.average()
        except TimeoutError as fault:
            told["late"] = str(fault)
    distributed.barrier()
    (folder / f"{rank}.json").write_text(json.dumps(told))


def test_ranks_that_share_memory_train_like_ranks_that_send_gradients(tmp_path: Path) -> None:
    before = left_behind()
    multiprocessing.spawn(one_rank, (tmp_path,), nprocs=RANKS)
    told = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(RANKS)]
    for rank in told:
        assert rank["sent by"] == "DistributedDataParallel"
        assert rank["shared by"] == ("FraudNetwork" if SHARES else "DistributedDataParallel")
        assert rank["shared"] == told[0]["shared"], "all ranks have the same network"
        assert rank["shared"] == pytest.approx(rank["sent"], rel=1e-5)
    if SHARES:
        assert told[0]["late"] == "rank 0 waited 2 s for the gradients of rank 1"
    assert left_behind() == before


@pytest.mark.skipif(not SHARES, reason="needs Linux on x86-64")
def test_memory_that_may_not_be_written_is_left_to_gloo(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(averaging, "SHARED", Path("/proc"))  # where not even root may make a file
    assert averaging._reserve(1) is None


@pytest.mark.skipif(not SHARES, reason="needs Linux on x86-64")
def test_memory_that_is_full_is_left_to_gloo() -> None:
    before = left_behind()
    free = os.statvfs(averaging.SHARED)
    assert averaging._reserve(2 * free.f_frsize * free.f_blocks) is None
    assert left_behind() == before
