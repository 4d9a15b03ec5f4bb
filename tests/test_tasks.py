"""Work on partitions through Ray Data: every item once, its result as it was, and a fault as it was raised."""

from __future__ import annotations

from typing import Any

import pytest

from fraud_ray.data import tasks
from fraud_ray.data.contract import ContractViolation, Violation
from fraud_ray.data.source import Partition
from fraud_ray.data.tasks import Merged, map_tasks
from fraud_ray.errors import TaskFault


def described(item: Any) -> tuple[Any, list[Any], dict[str, Any]]:
    return item, [item, (1, None)], {"of": item}


def refused(item: int) -> int:
    if item == 3:
        raise ContractViolation([Violation("part-3.parquet", "amount", "is missing.", 7, 0)], 5)
    return item


@pytest.fixture(params=["on Ray", "here"])
def mapped(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both ways of mapping: with a Ray, and as in a process that has none."""
    request.getfixturevalue("ray_session")
    if request.param == "here":
        monkeypatch.setattr(tasks, "is_connected", lambda: False)


@pytest.mark.parametrize("weights", [[1] * 40, [0] * 40, [1_000] + [1] * 39])
def test_every_item_is_mapped_once_and_its_result_keeps_its_types(mapped: None, weights: list[int]) -> None:
    items = [*range(30), *map(str, range(10))]
    found = dict(map_tasks(described, items, weights, least=10))
    assert [found[position] for position in range(40)] == [described(item) for item in items]


def test_of_nothing_nothing_is_mapped(mapped: None) -> None:
    assert list(map_tasks(described, [], [])) == []


def test_a_fault_of_a_task_is_raised_as_it_was_and_nothing_is_printed(
    mapped: None, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ContractViolation) as raised:
        list(map_tasks(refused, range(5), [1] * 5))
    assert [violation.count for violation in raised.value.violations] == [7]
    assert raised.value.__cause__ is None
    assert capfd.readouterr() == ("", "")


def torn(item: tuple[int, Partition]) -> None:
    try:
        int("x")
    except ValueError as fault:
        raise RuntimeError("of a library") from fault


def test_a_fault_that_is_not_ours_is_told_by_its_innermost_cause_and_its_partition(
    mapped: None, capfd: pytest.CaptureFixture[str]
) -> None:
    placed = (0, Partition("/data/day=1/a.parquet", "day=1/a.parquet", 5, "", None))
    with pytest.raises(TaskFault) as raised:
        list(map_tasks(torn, [placed], [1]))
    assert str(raised.value) == "day=1/a.parquet: ValueError: invalid literal for int() with base 10: 'x'"
    assert "RuntimeError: of a library" in raised.value.trace
    assert capfd.readouterr() == ("", "")


def test_what_tasks_find_is_merged_before_it_is_much() -> None:
    merged = Merged(sum)
    for found in range(1_000):
        merged.add(found)
        assert len(merged.held) < 8
    assert merged.result() == sum(range(1_000))
