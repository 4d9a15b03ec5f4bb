"""How commands end when they do not go well: one message on stderr and an exit code, without a stack trace."""

from __future__ import annotations

import signal
import sys
import tempfile
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import typer
from rich.console import Console
from rich.text import Text
from typer.core import TyperGroup

from fraud_ray.errors import EXIT_FAULT, FraudRayError, TaskFault, as_raised, innermost
from fraud_ray.redaction import redacted

_SIGNALS = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated"}
_AGAIN = "a run goes on from here with the same command"
_LONGEST_LINE = 500
_REPEAT_S = 0.5


class Commands(TyperGroup):
    """The group of all commands; ends the process as this module says."""

    def invoke(self, ctx: Any) -> Any:
        with _interruptible() as came:
            try:
                return super().invoke(ctx)
            except (Exception, KeyboardInterrupt, SystemExit) as fault:
                number = came[0] if came else _signal_of(fault)
                if number is not None:
                    again = "" if ctx.invoked_subcommand == "serve" else f"; {_AGAIN}"
                    raise _ended(Text(f"{_SIGNALS[number]}{again}"), 128 + number) from fault
                own = as_raised(fault)
                if isinstance(own, FraudRayError):
                    raise _failed(str(own), own.exit_code) from fault
                if isinstance(fault, SystemExit | typer.Exit | typer.Abort | typer.TyperException | BrokenPipeError):
                    raise
                raise _failed(f"{_message(own)}\n{_trace(ctx, own)}", EXIT_FAULT) from fault


def _failed(message: str, exit_code: int) -> typer.Exit:
    return _ended(Text.assemble(("error: ", "bold red"), redacted(message)), exit_code)


def _ended(message: Text, exit_code: int) -> typer.Exit:
    Console(stderr=True).print(message, soft_wrap=True)
    return typer.Exit(exit_code)


def _message(fault: BaseException) -> str:
    """The innermost cause, by its first line: what follows is often advice on what the user did not call."""
    cause = innermost(fault)
    told = str(cause) if isinstance(cause, TaskFault) else f"{type(cause).__name__}: {str(cause).strip()}"
    return f"unexpected {' '.join(told.splitlines()[:1])[:_LONGEST_LINE]}"


def _trace(ctx: Any, own: BaseException) -> str:
    """The trace itself, or where it was written; of a job, whose disk nobody sees, the trace too."""
    trace = redacted(traceback.format_exc() + (own.trace if isinstance(own, TaskFault) else ""))
    if ctx.params.get("debug") or ctx.obj:  # True: in a job
        return trace
    with tempfile.NamedTemporaryFile("w", prefix="fraud-ray-", suffix=".log", delete=False, encoding="utf-8") as file:
        file.write(trace)
    return f"Its trace is in {file.name}; fraud-ray --debug … shows it."


def _signal_of(fault: BaseException) -> signal.Signals | None:
    """The signal that ended a command past our handler: ray.init puts one of its own in its place for a while."""
    if isinstance(fault, KeyboardInterrupt):
        return signal.SIGINT
    return signal.SIGTERM if isinstance(fault, SystemExit) and fault.code == signal.SIGTERM else None


@contextmanager
def _interruptible() -> Iterator[list[signal.Signals]]:
    """Makes Ctrl-C and SIGTERM a KeyboardInterrupt, so that leases are released, and servers and Ray ended, on the way
    out; yields the signals that have come.

    KeyboardInterrupt, because Ray's waiting calls lose every other exception that a signal handler raises. One that is
    raised while an object is being deleted, or that a library swallows, is lost all the same, so an alarm raises it
    again until the main thread handles one. While it does, neither the alarm nor a second Ctrl-C disturbs it.
    """
    came: list[signal.Signals] = []
    if threading.current_thread() is not threading.main_thread():
        yield came
        return

    def interrupt(number: int, frame: object) -> None:
        if number in _SIGNALS:
            came.append(signal.Signals(number))
            signal.setitimer(signal.ITIMER_REAL, _REPEAT_S, _REPEAT_S)
        if not _is_on_the_way_out():
            raise KeyboardInterrupt

    before = {number: signal.signal(number, interrupt) for number in (*_SIGNALS, signal.SIGALRM)}
    try:
        yield came
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in before.items():
            signal.signal(number, handler)


def _is_on_the_way_out() -> bool:
    """Whether the main thread, which runs signal handlers, is handling a KeyboardInterrupt, or what became of one."""
    fault = sys.exception()
    while fault is not None and not isinstance(fault, KeyboardInterrupt):
        fault = fault.__context__
    return fault is not None
