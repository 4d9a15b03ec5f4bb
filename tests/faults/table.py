"""A plugin of pytest that writes the table of faults in README.md: a line a marked test, by the run that just ended."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

_TABLE = Path(__file__).with_name("README.md")
_HEAD = "| row | fault | promise | test | result |\n| --- | --- | --- | --- | --- |\n"

_Line = tuple[str, str, str, str]
_results: defaultdict[_Line, Counter[str]] = defaultdict(Counter)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[pytest.TestReport]:
    report = yield
    name = item.originalname if isinstance(item, pytest.Function) else item.name
    test = f"{item.path.relative_to(_TABLE.parents[1]).with_suffix('')}::{name}"
    for mark in item.iter_markers("faults"):
        report.user_properties.append(("faults", [*mark.args, test]))  # a report travels from the process of its test
    return report


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.when == "call" or report.outcome != "passed":
        for name, value in report.user_properties:
            if name == "faults":
                row, fault, promise, test = value
                _results[row, fault, promise, test][report.outcome] += 1


def pytest_sessionfinish(session: pytest.Session) -> None:
    if not _results or hasattr(session.config, "workerinput"):  # of several processes the first has all results
        return
    kept = _TABLE.read_text(encoding="utf-8").partition(_HEAD)[0]
    told = [
        f"| {' | '.join([*line[:3], f'`{line[3]}`'])} | {', '.join(f'{n} {how}' for how, n in found.items())} |\n"
        for line, found in sorted(_results.items(), key=lambda entry: _place(entry[0]))
    ]
    _TABLE.write_text(kept + _HEAD + "".join(told), encoding="utf-8")


def _place(line: _Line) -> tuple[int, _Line]:
    """Rows by their number; those without one come last."""
    return int(line[0]) if line[0].isdigit() else 99, line
