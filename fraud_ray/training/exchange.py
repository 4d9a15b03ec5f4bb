"""What the ranks of a fit tell each other: gradients at each step, losses and holdout scores after an epoch.

Ranks on the CPUs of one node write into memory that they share, all others use torch.distributed. Gloo hands each
message to a thread, which sleeps until the kernel wakes it. For gradients of some tens of kilobytes that takes longer
than all else that a rank waits for, and between messages the thread still wakes a hundred times a second; here a rank
waits by looking. DistributedDataParallel adds half a millisecond to a step of its own.
"""

from __future__ import annotations

import os
import platform
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

from fraud_ray.training.feed import Slot

SHARED = Path("/dev/shm")
COUNTER_BYTES = 64  # a cache line for each rank's counter, so that no rank's writing slows another's looking
LOOKS = 2_000  # about two milliseconds, longer than a rank is usually late; then a rank sleeps between two looks
LIMIT_SECONDS = 1_800.0  # as Gloo's


class Exchange(Protocol):
    """One rank's side. All ranks make the same calls in the same order.

    module: the network as the forward pass has to call it.
    """

    module: nn.Module

    def average(self) -> None:
        """Replaces each parameter's gradient by its mean over the ranks, if the backward pass has not done so."""

    def sum(self, value: Tensor) -> None:
        """Replaces a float32 tensor without dimensions by its sum over the ranks."""

    def gather(self, part: Tensor) -> Tensor:
        """The parts of all ranks, float32 (rows,) each, one after the other: (ranks * rows,)."""


def open_exchange(network: nn.Module, slot: Slot, device: torch.device, gathered: int = 0) -> Exchange:
    """How this rank and the others tell each other what they have to; all go on with rank 0's values of the parameters.

    gathered: the most rows of a part that is gathered. Called by all ranks of the default process group.
    """
    if slot.ranks == 1:
        return Alone(network)
    if device.type == "cpu":
        size = max(gathered, sum(parameter.numel() for parameter in network.parameters()))
        memory = _share_memory(slot, size)
        if memory:
            return Shared(network, memory)
    return Sent(network)


class Alone:
    """One rank, with nobody to tell."""

    def __init__(self, network: nn.Module) -> None:
        self.module = network

    def average(self) -> None: ...

    def sum(self, value: Tensor) -> None: ...

    def gather(self, part: Tensor) -> Tensor:
        return part


class Sent:
    """Messages through torch.distributed; DistributedDataParallel averages in the backward pass."""

    def __init__(self, network: nn.Module) -> None:
        # No buffer changes in training, so none is sent around before each step.
        self.module: nn.Module = DistributedDataParallel(
            network, gradient_as_bucket_view=True, forward_sync_buffers=False
        )

    def average(self) -> None: ...

    def sum(self, value: Tensor) -> None:
        distributed.all_reduce(value)

    def gather(self, part: Tensor) -> Tensor:
        parts = [torch.empty_like(part) for _ in range(distributed.get_world_size())]
        distributed.all_gather(parts, part)
        return torch.cat(parts)


class Shared:
    """Memory that all ranks see; once it is opened the process group is needed no more."""

    def __init__(self, network: nn.Module, memory: SharedMemory) -> None:
        self.module = network
        self.memory = memory
        self.parameters = list(network.parameters())
        self.means = torch.empty(sum(parameter.numel() for parameter in self.parameters))
        self.mean_of = self._by_parameter(self.means)
        self.gradients_of = [self._by_parameter(place[: len(self.means)]) for place in memory.own]
        for parameter, value in zip(self.parameters, self.gradients_of[memory.turn], strict=True):
            value.copy_(parameter.data)
        for parameter, value in zip(self.parameters, self._by_parameter(self._filled(len(self.means))[0]), strict=True):
            parameter.data.copy_(value)

    def average(self) -> None:
        gradients = [parameter.grad for parameter in self.parameters if parameter.grad is not None]
        torch._foreach_copy_(self.gradients_of[self.memory.turn], gradients)
        torch.mean(self._filled(len(self.means)), 0, out=self.means)
        for parameter, mean in zip(self.parameters, self.mean_of, strict=True):
            parameter.grad = mean

    def sum(self, value: Tensor) -> None:
        self.memory.own[self.memory.turn][0] = value
        value.copy_(self._filled(1).sum())

    def gather(self, part: Tensor) -> Tensor:
        self.memory.own[self.memory.turn][: len(part)] = part
        return torch.cat(list(self._filled(len(part))))

    def _filled(self, numbers: int) -> Tensor:
        return self.memory.exchange()[:, :numbers]

    def _by_parameter(self, flat: Tensor) -> list[Tensor]:
        parts = flat.split([parameter.numel() for parameter in self.parameters])
        return [part.view_as(parameter) for part, parameter in zip(parts, self.parameters, strict=True)]


class SharedMemory:
    """A place for each rank's numbers, and a counter of how often a rank has filled its own.

    There are two places a rank, used in turn: none fills one again before all have counted on, thus read the other.
    `own` are this rank's two places, float32 (size,); `turn` says which one to fill next.
    """

    def __init__(self, path: str, slot: Slot, size: int) -> None:
        self.rank = slot.rank
        # No array: numpy takes 50 microseconds to compare two numbers where the step has driven it out of the cache.
        width = COUNTER_BYTES // 8
        self.counters = np.memmap(path, np.int64, "r+", 0, slot.ranks * width).data[::width]
        places = np.memmap(path, np.float32, "r+", slot.ranks * COUNTER_BYTES, (2, slot.ranks, size))
        self.places = torch.from_numpy(np.asarray(places))
        self.own = [place[self.rank] for place in self.places]
        self.count = 0
        self.turn = 0

    def exchange(self) -> Tensor:
        """What all ranks have filled in, (ranks, size), as soon as all have: to be read before the next exchange."""
        filled = self.places[self.turn]
        self.count += 1
        self.turn = self.count % 2
        self.counters[self.rank] = self.count
        self._await_all()
        return filled

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
                raise TimeoutError(f"rank {self.rank} waited {LIMIT_SECONDS:,g} s for rank {late}")


def _share_memory(slot: Slot, size: int) -> SharedMemory | None:
    """Memory for so many numbers a rank; None where not all ranks see the same."""
    path = [_reserve(slot.ranks * (COUNTER_BYTES + 2 * 4 * size)) if slot.rank == 0 else None]
    distributed.broadcast_object_list(path, src=0)
    seen = torch.tensor(int(path[0] is not None and Path(path[0]).exists()))
    distributed.all_reduce(seen, distributed.ReduceOp.MIN)
    memory = None
    if seen:
        memory = SharedMemory(str(path[0]), slot, size)
        memory.exchange()  # then all have it open
    if path[0] is not None and slot.rank == 0:
        Path(path[0]).unlink()  # the memory lives as long as a rank has it open, so that none stays after a crash
    return memory


def _reserve(size: int) -> str | None:
    """A new file of zeros in shared memory; None where that is missing, full, or not ours to write.

    None as well where a processor may show another one a counter before the numbers that were written first.
    """
    if not SHARED.is_dir() or platform.machine() != "x86_64":
        return None
    with suppress(OSError):
        handle, path = tempfile.mkstemp(prefix="fraud-ray-exchange-", dir=SHARED)
        try:
            os.posix_fallocate(handle, 0, size)
            return path
        except OSError:
            Path(path).unlink()
        finally:
            os.close(handle)
    return None
