"""The stages by name, in the order of the table."""

from __future__ import annotations

from collections.abc import Callable

from benchmarks import commands, preparing, quality, ranks, scoring, searching, training
from benchmarks.harness import Row
from benchmarks.world import World


def _on_a_gpu(world: World) -> list[Row]:
    import torch

    if not torch.cuda.is_available():
        return []
    from benchmarks import gpu

    return gpu.stage(world)


STAGES: dict[str, Callable[[World], list[Row]]] = {
    "prepare": preparing.stage,
    "train step": training.stage,
    "train, DDP": ranks.stage,
    "train, streamed": training.streamed,
    "train on a GPU": _on_a_gpu,
    "train until": quality.stage,
    "search": searching.stage,
    "score, in memory": scoring.in_memory,
    "score, parquet": scoring.partitions,
    "score, one row": scoring.one_row,
    "command line, help": commands.answers,
    "command line, run": commands.line,
    "scaling, rows": preparing.scaling,
    "scaling, trials": searching.scaling,
    "scaling, ranks": ranks.scaling,
}
