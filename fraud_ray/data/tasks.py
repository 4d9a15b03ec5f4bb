"""Work on partitions, through Ray Data or in a process without Ray: results as they come, and nothing printed."""

from __future__ import annotations

import logging
import math
import traceback
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import accumulate, pairwise
from typing import Any, Generic, TypeVar

from fraud_ray.cluster import is_connected
from fraud_ray.data.source import Partition
from fraud_ray.errors import FraudRayError, TaskFault, innermost

Item = TypeVar("Item")
Result = TypeVar("Result")

Summary = TypeVar("Summary")

# Enough that a slow task does not keep the other CPUs waiting, few enough that their starts cost little.
TASKS_PER_CPU = 8
MERGE_AT = 8  # each may count 1,000,000 categories


def map_tasks(
    function: Callable[[Item], Result], items: Sequence[Item], weights: Sequence[int], least: int = 1
) -> Iterator[tuple[int, Result]]:
    """Applies a function to every item, and yields (position of the item, result) in the order in which tasks finish.

    Neighbours share a task of the connected Ray; without one, this process takes item after item. weights: what each
    item costs, such as its rows; least: weight that is worth a task's start. Function, items and results are pickled
    for Ray. A FraudRayError of the function is raised here, as it was; every other fault as a TaskFault that names the
    partition.
    """
    for found in _on_ray(function, items, weights, least) if is_connected() else _here(function, items):
        if isinstance(found, FraudRayError | TaskFault):
            raise found
        yield from enumerate(found.values, found.first)


def _here(function: Callable[[Any], Any], items: Sequence[Any]) -> Iterator[_Found]:
    for position, item in enumerate(items):
        yield _apply({"work": _Neighbours(position, [item])}, function)["found"]


def _on_ray(
    function: Callable[[Any], Any], items: Sequence[Any], weights: Sequence[int], least: int
) -> Iterator[_Found]:
    import ray.data

    if not items:
        return
    most = TASKS_PER_CPU * max(int(ray.cluster_resources().get("CPU", 0)), 1)
    tasks = min(most, len(items), max(math.ceil(sum(weights) / least), 1))
    rows = [{"work": _Neighbours(first, items[first:end])} for first, end in pairwise(_cuts(weights, tasks))]
    with _quietly_on_all_cpus():
        mapped = ray.data.from_items(rows, override_num_blocks=len(rows)).map(partial(_apply, function=function))
        for row in mapped.iter_rows():
            yield row["found"]


class Merged(Generic[Summary]):
    """What tasks find, merged as soon as MERGE_AT are held: what thousands of partitions give would fill the memory."""

    def __init__(self, merge: Callable[[Sequence[Summary]], Summary]) -> None:
        self.merge, self.held = merge, list[Summary]()

    def add(self, found: Summary) -> None:
        self.held.append(found)
        if len(self.held) == MERGE_AT:
            self.held = [self.merge(self.held)]

    def result(self) -> Summary:
        """Raises ValueError where nothing was found."""
        return self.merge(self.held)


@dataclass(frozen=True)
class _Neighbours:
    """The items of a task, or their results, in one row: a row an item would cost a millisecond each.

    A Python object, as Ray Data would turn lists, tuples and numbers into Arrow's. first: position of the first item.
    """

    first: int
    values: Sequence[Any]


_Found = _Neighbours | FraudRayError | TaskFault


def _cuts(weights: Sequence[int], tasks: int) -> list[int]:
    """Where tasks of about equal weight begin and end; fewer where one item weighs more than its share."""
    ends = list(accumulate(max(weight, 1) for weight in weights))
    return sorted({0, *(bisect_left(ends, ends[-1] * task // tasks) + 1 for task in range(1, tasks + 1))})


def _apply(row: dict[str, _Neighbours], function: Callable[[Any], Any]) -> dict[str, Any]:
    """The results of a task; or its fault, a value, as Ray Data would print a trace."""
    work, results = row["work"], list[Any]()
    for item in work.values:
        try:
            results.append(function(item))
        except FraudRayError as fault:
            return {"found": fault}
        except Exception as fault:
            cause = innermost(fault)
            told = f"{type(cause).__name__}: {cause}"
            return {"found": TaskFault(_shown(item), told, traceback.format_exc())}
    return {"found": _Neighbours(work.first, results)}


def _shown(item: Any) -> str | None:
    """The name of the partition that an item is, or holds."""
    held = item if isinstance(item, tuple) else (item,)
    return next((part.shown for part in held if isinstance(part, Partition)), None)


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
