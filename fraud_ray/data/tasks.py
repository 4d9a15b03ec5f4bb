"""Work on partitions through Ray Data: neighbours share a task, results as tasks finish, nothing printed."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from fraud_ray.errors import FraudRayError

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

    weights: what each item costs, such as its rows; least: weight that is worth a task's start. Function, items and
    results are pickled. Needs a connected Ray. A FraudRayError of the function is raised here, as it was.
    """
    import ray.data

    most = TASKS_PER_CPU * int(ray.cluster_resources().get("CPU", 1))
    tasks = min(most, len(items), math.ceil(sum(weights) / least))
    if not tasks:
        return
    rows = [{"item": _Held(position, item)} for position, item in enumerate(items)]
    with _quietly_on_all_cpus():
        mapped = ray.data.from_items(rows, override_num_blocks=tasks).map(partial(_apply, function=function))
        for row in mapped.iter_rows():
            result: _Held = row["result"]
            if isinstance(result.value, FraudRayError):
                raise result.value
            yield result.position, result.value


@dataclass(frozen=True)
class _Held:
    """A Python object in a row: Ray Data would turn lists, tuples and numbers into Arrow's, and back into others."""

    position: int
    value: Any


def _apply(row: dict[str, _Held], function: Callable[[Any], Any]) -> dict[str, _Held]:
    item = row["item"]
    try:
        return {"result": _Held(item.position, function(item.value))}
    except FraudRayError as fault:  # a value, as Ray Data would print a trace
        return {"result": _Held(item.position, fault)}


@contextmanager
def _quietly_on_all_cpus() -> Iterator[None]:
    """All CPUs for the one operator, Python objects in rows, no progress bars, and nothing but errors logged."""
    from ray.data import DataContext

    context = DataContext.get_current().copy()
    context.enable_progress_bars = False
    context.enable_fallback_to_arrow_object_ext_type = True
    # Each execution has one operator, from which a reservation for others would only keep CPUs: of two, one.
    context.op_resource_reservation_enabled = False
    logger = logging.getLogger("ray.data")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with DataContext.current(context):
            yield
    finally:
        logger.setLevel(level)
