"""The thread that writes a run to MLflow: what could not be written is not taken for written."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest

from fraud_ray.errors import ServerError
from fraud_ray.registry.writer import Writer


class Away:
    """A run in a store that has gone."""

    def log_text(self, text: str, name: str) -> None:
        raise ServerError(f"{name} cannot be written")


@pytest.fixture
def writer() -> Iterator[Writer]:
    run: Future[Any] = Future()
    run.set_result(Away())
    with ThreadPoolExecutor(max_workers=1) as thread:
        yield Writer(thread, lambda: None, run)


def test_a_stage_whose_findings_could_not_be_told_does_not_conclude(writer: Writer) -> None:
    writer.tell("log_text", "", "trial")
    with pytest.raises(ServerError, match="trial cannot be written"):
        writer.settled("found")


def test_an_answer_is_not_given_after_something_was_lost(writer: Writer) -> None:
    writer.tell("log_text", "", "page")
    with pytest.raises(ServerError, match="page cannot be written"):
        writer.ask(lambda run: "recorded")


def test_what_was_told_in_time_settles(writer: Writer) -> None:
    assert writer.settled("found") == "found"
    assert writer.ask(lambda run: type(run).__name__) == "Away"
