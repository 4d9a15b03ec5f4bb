"""A plugin of pytest that writes the table of faults in README.md: a line a marked test, by the run that just ended."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

_TABLE = Path(__file__).with_name("README.md")
_HEAD = "| row | fault | promise | test | result |\n| --- | --- | --- | --- | --- |\n"

_Line = tuple[str, str, str, str]
_results: pytest.StashKey[dict[_Line, Counter[str]]] = pytest.StashKey()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    report = yield
    name = item.originalname if isinstance(item, pytest.Function) else item.name
    test = f"{item.path.relative_to(_TABLE.parents[1]).with_suffix('')}::{name}"
    for mark in item.iter_markers("faults") if report.when == "call" or report.outcome != "passed" else ():
        row, fault, promise = mark.args
        lines = item.config.stash.setdefault(_results, defaultdict(Counter))
        lines[row, fault, promise, test][report.outcome] += 1
    return report


def pytest_sessionfinish(session: pytest.Session) -> None:
    lines = session.config.stash.get(_results, {})
    if not lines:
        return
    kept = _TABLE.read_text(encoding="utf-8").partition(_HEAD)[0]
    told = [
        f"| {' | '.join([*line[:3], f'`{line[3]}`'])} | {', '.join(f'{n} {how}' for how, n in found.items())} |\n"
        for line, found in sorted(lines.items(), key=lambda entry: _place(entry[0]))
    ]
    _TABLE.write_text(kept + _HEAD + "".join(told), encoding="utf-8")


def _place(line: _Line) -> tuple[int, _Line]:
    """Rows by their number; those without one come last."""
    return int(line[0]) if line[0].isdigit() else 99, line
