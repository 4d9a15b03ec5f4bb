"""Gradients averaged in shared memory: the mean over the ranks, or Gloo's where there is no such memory."""

from __future__ import annotations

import copy
import json
import os
import platform
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import distributed, multiprocessing, nn
from torch.nn.parallel import DistributedDataParallel

from fraud_ray.training import averaging

RANKS = 3
SHARES = sys.platform == "linux" and platform.machine() == "x86_64"


def left_behind() -> list[Path]:
    return list(averaging.SHARED.glob("fraud-ray-gradients-*"))


def one_rank(rank: int, folder: Path) -> None:
    """Gradients of a few steps with shared memory and with Gloo, and what a rank says that waits for another."""
    store = distributed.FileStore(str(folder / "store"), RANKS)
    distributed.init_process_group("gloo", store=store, rank=rank, world_size=RANKS)
    told: dict[str, Any] = {}
    torch.manual_seed(rank)
    network = nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 1))
    wrapped = DistributedDataParallel(copy.deepcopy(network))
    shared = averaging.share_gradients(list(network.parameters()))
    told["used"] = shared is not None
    for name, module in (("shared", network), ("gloo", wrapped)):
        told[name] = []
        for step in range(5):
            module.zero_grad()
            torch.manual_seed(100 * step + rank)
            module(torch.randn(16, 5)).square().mean().backward()
            if name == "shared" and shared:
                shared.average()
            told[name].append([float(p.grad.sum()) for p in module.parameters() if p.grad is not None])
    place, averaging.SHARED = averaging.SHARED, folder / "none"
    told["used without such memory"] = averaging.share_gradients(list(network.parameters())) is not None
    averaging.SHARED, averaging.LIMIT_SECONDS = place, 2.0
    late = averaging.share_gradients(list(network.parameters()))
    if rank != 1 and late:
        try:
            late.average()
        except TimeoutError as fault:
            told["late"] = str(fault)
    distributed.barrier()
    (folder / f"{rank}.json").write_text(json.dumps(told))


def test_ranks_average_in_shared_memory_what_gloo_averages(tmp_path: Path) -> None:
    before = left_behind()
    multiprocessing.spawn(one_rank, (tmp_path,), nprocs=RANKS)
    told = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(RANKS)]
    assert [rank["used"] for rank in told] == [SHARES] * RANKS
    assert [rank["used without such memory"] for rank in told] == [False] * RANKS
    for rank in told if SHARES else ():
        assert rank["shared"] == told[0]["shared"], "all ranks go on from the same gradients"
        for shared, gloo in zip(rank["shared"], rank["gloo"], strict=True):
            assert shared == pytest.approx(gloo, rel=1e-5, abs=1e-7)
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
