"""Gradients of the ranks of one node, averaged in memory that they share.

Gloo hands each message to a thread, which sleeps until the kernel wakes it. For gradients of some tens of kilobytes
that takes longer than all else that a rank waits for; here a rank waits by looking. DistributedDataParallel adds half a
millisecond to a step of its own.
"""

from __future__ import annotations

import os
import platform
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, distributed, nn

SHARED = Path("/dev/shm")
COUNTER_BYTES = 64  # a cache line for each rank's counter, so that no rank's writing slows another's looking
LOOKS = 2_000  # about two milliseconds, longer than a rank is usually late; then a rank sleeps between two looks
LIMIT_SECONDS = 1_800.0  # as Gloo's


def share_gradients(parameters: Sequence[nn.Parameter]) -> SharedGradients | None:
    """What averages the gradients of these parameters over the ranks; None where not all ranks see the same memory.

    Called by all ranks of the default process group, which go on with rank 0's values of the parameters.
    """
    size = sum(parameter.numel() for parameter in parameters)
    path = [_reserve(_bytes(size)) if distributed.get_rank() == 0 else None]
    distributed.broadcast_object_list(path, src=0)
    seen = torch.tensor(int(path[0] is not None and Path(path[0]).exists()))
    distributed.all_reduce(seen, distributed.ReduceOp.MIN)
    shared = None
    if seen:
        shared = SharedGradients(parameters, str(path[0]))
        for parameter in parameters:
            distributed.broadcast(parameter.data, src=0)
        distributed.barrier()
    if path[0] is not None and distributed.get_rank() == 0:
        Path(path[0]).unlink()  # the memory lives as long as a rank has it open, so that none stays after a crash
    return shared


class SharedGradients:
    """A place for each rank's gradients, and a counter of how often a rank has filled its own.

    There are two places a rank, used in turn: none fills one again before all have counted on, thus read the other.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], path: str) -> None:
        self.parameters = parameters
        self.rank, ranks = distributed.get_rank(), distributed.get_world_size()
        self.means = torch.empty(sum(parameter.numel() for parameter in parameters))
        # No array: numpy takes 50 microseconds to compare two numbers where the step has driven it out of the cache.
        width = COUNTER_BYTES // 8
        self.counters = np.memmap(path, np.int64, "r+", 0, ranks * width).data[::width]
        places = np.memmap(path, np.float32, "r+", ranks * COUNTER_BYTES, (2, ranks, len(self.means)))
        self.places = torch.from_numpy(np.asarray(places))
        self.own = [self._by_parameter(place[self.rank]) for place in self.places]
        self.mean_of = self._by_parameter(self.means)
        self.count = 0

    def average(self) -> None:
        """Replaces each parameter's gradient, float32, by its mean over the ranks. Called by all ranks."""
        self.count += 1
        turn = self.count % 2
        gradients = [parameter.grad for parameter in self.parameters if parameter.grad is not None]
        torch._foreach_copy_(self.own[turn], gradients)
        self.counters[self.rank] = self.count
        self._await_all()
        torch.mean(self.places[turn], 0, out=self.means)
        for parameter, mean in zip(self.parameters, self.mean_of, strict=True):
            parameter.grad = mean

    def _by_parameter(self, flat: Tensor) -> list[Tensor]:
        parts = flat.split([parameter.numel() for parameter in self.parameters])
        return [part.view_as(parameter) for part, parameter in zip(parts, self.parameters, strict=True)]

    def _await_all(self) -> None:
        looks, ends = 0, time.monotonic() + LIMIT_SECONDS
        while min(self.counters) < self.count:
            looks += 1
            if looks < LOOKS:
                os.sched_yield()
            elif time.monotonic() < ends:
                time.sleep(1e-4)
            else:
                late = ", ".join(str(rank) for rank, count in enumerate(self.counters) if count < self.count)
                raise TimeoutError(f"rank {self.rank} waited {LIMIT_SECONDS:,g} s for the gradients of rank {late}")


def _bytes(size: int) -> int:
    return distributed.get_world_size() * (COUNTER_BYTES + 2 * 4 * size)


def _reserve(size: int) -> str | None:
    """A new file of zeros in shared memory; None where that is missing, full, or not ours to write.

    None as well where a processor may show another one a counter before the gradients that were written first.
    """
    if not SHARED.is_dir() or platform.machine() != "x86_64":
        return None
    with suppress(OSError):
        handle, path = tempfile.mkstemp(prefix="fraud-ray-gradients-", dir=SHARED)
        try:
            os.posix_fallocate(handle, 0, size)
            return path
        except OSError:
            Path(path).unlink()
        finally:
            os.close(handle)
    return None
