"""Work on partitions through Ray Data: a few items a task, results as tasks finish, nothing printed."""

from __future__ import annotations

import logging
import math
import pickle
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any, TypeVar
from unittest.mock import patch

from fraud_ray.cluster import is_bare
from fraud_ray.errors import FraudRayError
from fraud_ray.memory import MIB, keep_freed_memory

Item = TypeVar("Item")
Result = TypeVar("Result")

# How work tells how far it is: done, total, and what it is at.
Update = Callable[[float, float, str], None]

# Enough that a slow task does not keep the other CPUs waiting, few enough that their starts cost little.
TASKS_PER_CPU = 8


def map_tasks(
    function: Callable[[Item], Result], items: Sequence[Item], weights: Sequence[int], least: int = 1
) -> Iterator[tuple[int, Result]]:
    """Applies a function to every item, and yields (position of the item, result) in the order in which tasks finish.

    weights: what each item costs, such as its rows; light neighbours share a task. least: weight that is worth a task's
    start. Function, items and results are pickled. Needs a connected Ray. A FraudRayError of the function is raised
    here, as it was.
    """
    import ray

    most = TASKS_PER_CPU * int(ray.cluster_resources().get("CPU", 1))
    tasks = _grouped(weights, min(most, math.ceil(sum(weights) / least)))
    if not tasks:
        return
    batches = [{"work": pickle.dumps([(position, items[position]) for position in task])} for task in tasks]
    with _one_operator(), _without_actors() if is_bare() else nullcontext():
        waiting = ray.data.from_items(batches, override_num_blocks=len(batches))
        finished = waiting.map(partial(_run, function=function))
        for row in finished.iter_rows():
            outcome = pickle.loads(row["outcome"])
            if isinstance(outcome, FraudRayError):
                raise outcome
            yield from outcome


def _run(batch: dict[str, bytes], function: Callable[[Any], Any]) -> dict[str, bytes]:
    keep_freed_memory(128 * MIB)
    try:
        outcome: Any = [(position, function(item)) for position, item in pickle.loads(batch["work"])]
    except FraudRayError as fault:
        outcome = fault
    return {"outcome": pickle.dumps(outcome)}


def _grouped(weights: Sequence[int], tasks: int) -> list[list[int]]:
    """Positions in groups of neighbours: at most `tasks` groups, all but the last of a fair share of the weight."""
    share = sum(weights) / tasks
    groups: list[list[int]] = []
    held = share
    for position, weight in enumerate(weights):
        if held >= share:
            groups.append([])
            held = 0
        groups[-1].append(position)
        held += weight
    return groups


@contextmanager
def _one_operator() -> Iterator[None]:
    """All CPUs for the one operator, no progress bars, and errors alone on the console; Ray Data's log file keeps
    everything."""
    from ray.data import DataContext

    context = DataContext.get_current().copy()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    # Each execution has one operator, from which a reservation for others would only keep CPUs: of two, one.
    context.op_resource_reservation_enabled = False
    consoles = [h for h in logging.getLogger("ray.data").handlers if isinstance(h, logging.StreamHandler)]
    levels = [console.level for console in consoles]
    for console in consoles:
        console.setLevel(logging.ERROR)
    try:
        with DataContext.current(context):
            yield
    finally:
        for console, level in zip(consoles, levels, strict=True):
            console.setLevel(level)


@contextmanager
def _without_actors() -> Iterator[None]:
    """Ray Data without two actors: one keeps statistics for the dashboard, the other asks for nodes.

    They take more than a second to start, and go on waking a hundred times a second, also while ranks compute. Ray Data
    has no setting that leaves them out.
    """
    import ray
    from ray.data._internal import stats
    from ray.data._internal.cluster_autoscaler import AutoscalingCoordinator, rate_based_cluster_autoscaler

    class WholeNode(AutoscalingCoordinator):
        def __init__(self, *_: Any, **__: Any) -> None: ...

        def request_resources(self, *_: Any, **__: Any) -> None: ...

        def cancel_request(self) -> None: ...

        def get_reserved_resources(self) -> dict[str, dict[str, float]]:
            return {"this node": ray.cluster_resources()}

    def untold(*_: Any, **__: Any) -> None: ...

    names = "register_dataset_to_stats_actor", "update_execution_metrics", "update_iteration_metrics"
    statistics: dict[str, Any] = dict.fromkeys(names, untold)
    with (
        patch.object(rate_based_cluster_autoscaler, "DefaultAutoscalingCoordinator", WholeNode),
        patch.multiple(stats._StatsManager, **statistics),
    ):
        yield
