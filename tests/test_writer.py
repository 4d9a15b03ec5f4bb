"""The thread that writes a run to MLflow: what could not be written is not taken for written."""

from __future__ import annotations

import http.server
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest

from fraud_ray.errors import ServerError
from fraud_ray.registry import writer as writing_module
from fraud_ray.registry.server import answers
from fraud_ray.registry.writer import Writer, watched


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


def test_a_silence_of_the_server_is_told_once_and_so_is_its_end(
    writer: Writer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writing_module, "ASK_EVERY_S", 0.01)
    heard: list[str] = []
    over = threading.Event()
    is_there = iter([True, False, False])
    monkeypatch.setattr(writing_module, "answers", lambda uri: next(is_there, True))
    with watched(writer, "http://mlflow:5000", heard.append):
        time.sleep(0.05)
        assert heard == [], "nothing waits for it"
        writer.ask(lambda run: over.wait(0.3))
        deadline = time.monotonic() + 5
        while len(heard) < 2 and time.monotonic() < deadline:
            time.sleep(0.01)
    silent = "MLflow at http://mlflow:5000 does not answer: the run waits for it, some minutes at most"
    assert heard == [silent, "MLflow answers again, after 0 s"]


def test_a_server_answers_or_not() -> None:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), http.server.SimpleHTTPRequestHandler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        uri = f"http://127.0.0.1:{server.server_address[1]}"
        assert answers(uri), "a page that is not found is an answer"
        server.shutdown()
    assert not answers(uri)
