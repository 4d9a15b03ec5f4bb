"""Progress on stderr: a live bar a stage on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Column
from rich.text import Text

from fraud_ray.redaction import redacted

_LINE_EVERY_S = 60.0
_SURE_AFTER_S = 3.0  # before that, how long the rest takes is a guess


@contextmanager
def stdout_for_the_result() -> Iterator[None]:
    """Sends to stderr what Ray, MLflow and others print meanwhile, so that stdout has the result alone."""
    with redirect_stdout(sys.stderr):
        yield


class Display:
    """Shows stages as they run; fits progress.Progress."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(stderr=True)

    def stage(self, name: str) -> _Line:
        return _BarLine(name, self.console) if self.console.is_terminal else _Line(name, self.console)

    def note(self, text: str) -> None:
        self.console.print(Text.assemble(("·", "dim"), f" {redacted(text)}"), soft_wrap=True)


class _Line:
    """A stage where nothing can be drawn over: its line when it ends, and one a minute before that."""

    def __init__(self, name: str, console: Console) -> None:
        self.name, self.console = name, console
        self.text = ""
        self.first: tuple[float, float] | None = None  # time and what was done at the first update

    def __enter__(self) -> _Line:
        self.began = self.told = time.monotonic()
        return self

    def __exit__(self, *fault: object) -> None:
        if fault[1] is None:
            self._print("✓", "green", self.text)
        elif isinstance(fault[1], Exception):
            self._print("✗", "red", "failed")
        else:
            self._print("…", "yellow", "interrupted")

    def update(self, done: float, total: float, text: str = "") -> None:
        left = self._left(done, total)
        if time.monotonic() - self.told > _LINE_EVERY_S:
            self.told = time.monotonic()
            self._print("·", "dim", f"{done / total:.0%} {left}{text}" if total else text)

    def say(self, text: str) -> None:
        self.text = text

    def _left(self, done: float, total: float) -> str:
        """How long the rest takes at the speed since the first update: before it an earlier start may have worked."""
        now = time.monotonic()
        self.first = began, before = self.first or (now, done)
        if not before < done < total or now - began < _SURE_AFTER_S:
            return ""
        seconds = (now - began) / (done - before) * (total - done)
        return f"about {seconds / 60:.0f} min left, " if seconds > 90 else f"about {seconds:.0f} s left, "

    def _print(self, mark: str, style: str, text: str) -> None:
        seconds = f"{time.monotonic() - self.began:7.1f} s"
        line = Text.assemble((mark, style), f" {self.name:<9}", (seconds, "dim"), f"  {redacted(text)}".rstrip())
        self.console.print(line, soft_wrap=True)


class _BarLine(_Line):
    """A stage on a terminal: a bar that gives way to the stage's line."""

    def __init__(self, name: str, console: Console) -> None:
        super().__init__(name, console)
        self.bar = Progress(
            TextColumn("  {task.description:<9}", markup=False, table_column=Column(min_width=11)),
            BarColumn(bar_width=24),
            TimeElapsedColumn(table_column=Column(min_width=7)),
            TextColumn("{task.fields[text]}", markup=False, table_column=Column(no_wrap=True, overflow="ellipsis")),
            console=console,
            transient=True,
        )
        self.task: TaskID = self.bar.add_task(name, total=None, text="")

    def __enter__(self) -> _BarLine:
        super().__enter__()
        self.bar.start()
        return self

    def __exit__(self, *fault: object) -> None:
        self.bar.stop()
        super().__exit__(*fault)

    def update(self, done: float, total: float, text: str = "") -> None:
        self.bar.update(
            self.task, completed=done, total=total or None, text=f"{self._left(done, total)}{redacted(text)}"
        )
