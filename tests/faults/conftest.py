"""Writes the table of faults: a line a test, by the marks of this folder's tests, from the run that has just ended."""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

TABLE = "FRAUD_RAY_FAULTS_TABLE"  # the file to write the table into, after the line that it begins with
_HEAD = "| row | fault | promise | test | result |\n| --- | --- | --- | --- | --- |\n"

_Line = tuple[str, str, str, str]
_results: pytest.StashKey[dict[_Line, Counter[str]]] = pytest.StashKey()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    report = yield
    mark = item.get_closest_marker("faults")
    if mark and (report.when == "call" or report.outcome != "passed"):
        row, fault, promise = mark.args
        test = f"{Path(item.path).stem}::{item.originalname if isinstance(item, pytest.Function) else item.name}"
        lines = item.config.stash.setdefault(_results, defaultdict(Counter))
        lines[row, fault, promise, test][report.outcome] += 1
    return report


def pytest_sessionfinish(session: pytest.Session) -> None:
    file, lines = os.environ.get(TABLE), session.config.stash.get(_results, {})
    if not file or not lines:
        return
    kept = Path(file).read_text(encoding="utf-8").partition(_HEAD)[0]
    told = [
        f"| {' | '.join([*line[:3], f'`{line[3]}`'])} | {', '.join(f'{n} {how}' for how, n in found.items())} |\n"
        for line, found in sorted(lines.items(), key=lambda entry: _place(entry[0]))
    ]
    Path(file).write_text(kept + _HEAD + "".join(told), encoding="utf-8")


def _place(line: _Line) -> tuple[int, _Line]:
    """Rows by their number; those without one come last."""
    return int(line[0]) if line[0].isdigit() else 99, line
