"""A training step as a CUDA graph: all of its kernels are launched as one.

Of a small network a GPU computes a kernel in less time than Python takes to launch it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import torch

from fraud_ray.training.feed import Batch

# Steps of a kind before it is captured: libraries load in the first ones, and a rare kind is not worth a capture.
EAGER_STEPS = 20

Step = Callable[[Batch], None]
Kind = tuple[int, float]  # a rank's rows, and those of all ranks


class CapturedStep:
    """Calls a step, which trains on a batch; once it was called often, replays what it launched.

    Source: PyTorch's notes on CUDA semantics, "CUDA Graphs", whole-network capture. The step is always the same one,
    and is not kept: who owns both is freed at once. What it reads and changes must stay in its place, but for
    gradients, which it makes anew. Random draws follow torch's seed as without a graph.
    """

    def __init__(self) -> None:
        self._seen: Counter[Kind] = Counter()
        self._graphs: dict[Kind, tuple[torch.cuda.CUDAGraph, Batch]] = {}
        self._stream = torch.cuda.Stream()
        self._memory = torch.cuda.graph_pool_handle()

    def __call__(self, step: Step, batch: Batch) -> None:
        kind = len(batch.labels), batch.global_rows
        if kind in self._graphs:
            graph, held = self._graphs[kind]
            for tensor, given in zip(held.tensors, batch.tensors, strict=True):
                tensor.copy_(given)
        elif self._seen[kind] < EAGER_STEPS:
            self._seen[kind] += 1
            self._run(step, batch)
            return
        else:
            graph, _ = self._graphs[kind] = self._capture(step, batch)
        graph.replay()

    def _run(self, step: Step, batch: Batch) -> None:
        # On the stream that captures: what backward keeps of the stream it ran on must not be of another.
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            step(batch)
        torch.cuda.current_stream().wait_stream(self._stream)

    def _capture(self, step: Step, batch: Batch) -> tuple[torch.cuda.CUDAGraph, Batch]:
        """The graph of a step, which capturing does not run, and the batch that it reads."""
        held = batch.clone()
        graph = torch.cuda.CUDAGraph()
        # Another thread may read ahead meanwhile, and allocate.
        with torch.cuda.graph(graph, pool=self._memory, stream=self._stream, capture_error_mode="thread_local"):
            step(held)
        return graph, held
