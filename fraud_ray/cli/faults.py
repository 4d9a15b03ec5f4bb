"""How commands end when they do not go well: one message on stderr and an exit code, without a stack trace."""

from __future__ import annotations

import os
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

from fraud_ray.errors import EXIT_FAULT, FraudRayError

EXIT_INTERRUPTED = 128 + signal.SIGINT
EXIT_TERMINATED = 128 + signal.SIGTERM

_AGAIN = "a run goes on from here with the same command"
_LONGEST_LINE = 500
_LATER_S = 0.05


class Commands(TyperGroup):
    """The group of all commands; ends the process as this module says."""

    def invoke(self, ctx: Any) -> Any:
        _outlive_the_shell()
        with _interrupted_by_sigterm() as terminated:
            try:
                return super().invoke(ctx)
            except (Exception, KeyboardInterrupt) as fault:
                if terminated.is_set():
                    raise _ended(Text(f"terminated; {_AGAIN}"), EXIT_TERMINATED) from fault
                if isinstance(fault, KeyboardInterrupt):
                    raise _ended(Text(f"interrupted; {_AGAIN}"), EXIT_INTERRUPTED) from fault
                if isinstance(fault, FraudRayError):
                    raise _failed(_message(fault), _own(fault).exit_code) from fault
                if isinstance(fault, typer.Exit | typer.Abort | typer.TyperException | BrokenPipeError):
                    raise
                raise _failed(f"{_message(fault)}\n{_trace(ctx)}", EXIT_FAULT) from fault


def _failed(message: str, exit_code: int) -> typer.Exit:
    return _ended(Text.assemble(("error: ", "bold red"), message), exit_code)


def _ended(message: Text, exit_code: int) -> typer.Exit:
    Console(stderr=True).print(message, soft_wrap=True)
    return typer.Exit(exit_code)


def _own(fault: FraudRayError) -> FraudRayError:
    """The fault as it was raised; from a Ray task it comes wrapped, with the task's trace in its text."""
    cause = getattr(fault, "cause", None)
    return cause if isinstance(cause, FraudRayError) else fault


def _message(fault: Exception) -> str:
    if isinstance(fault, FraudRayError):
        return str(_own(fault))
    lines = str(fault).strip().splitlines() or [""]
    return f"unexpected {type(fault).__name__}: {lines[-1].strip()[:_LONGEST_LINE]}"


def _trace(ctx: Any) -> str:
    """The trace itself, or where it was written; inside a Ray job, whose disk nobody sees, the trace too."""
    if ctx.params.get("debug") or ctx.obj:
        return traceback.format_exc()
    with tempfile.NamedTemporaryFile("w", prefix="fraud-ray-", suffix=".log", delete=False) as file:
        file.write(traceback.format_exc())
    return f"Its trace is in {file.name}; fraud-ray --debug … shows it."


def _outlive_the_shell() -> None:
    """Keeps Ray from ending this process without a word where the shell that started it has ended.

    That is so when a Ray job is stopped, whose shell gets the signal too. Ray tells a process by its parent, which is
    init then, that its node is dead; one message that does not arrive, as of a task that was under way while it
    disconnects, and it ends at once. The variable, read when Ray is imported, names a process to look at instead.
    """
    os.environ["RAY_RAYLET_PID"] = str(os.getpid())


@contextmanager
def _interrupted_by_sigterm() -> Iterator[threading.Event]:
    """Makes the first SIGTERM a KeyboardInterrupt, so that leases are released, and servers and Ray ended, on the way
    out, which later ones do not disturb; the event tells it from Ctrl-C.

    KeyboardInterrupt, because Ray's waiting calls lose every other exception that a signal handler raises. One that is
    raised while an object is being deleted is lost all the same (deleting a handle of a Ray actor takes milliseconds),
    so Python's hook for such exceptions has it raised again.
    """
    terminated = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield terminated
        return

    def interrupt(number: int, frame: object) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        terminated.set()
        raise KeyboardInterrupt

    def interrupt_again(lost: sys.UnraisableHookArgs) -> None:
        if not isinstance(lost.exc_value, KeyboardInterrupt):
            hook(lost)
            return
        number = signal.SIGINT
        if terminated.is_set():
            number = signal.SIGTERM
            signal.signal(number, interrupt)
        threading.Timer(_LATER_S, send, (number,)).start()  # not from here, where it would be lost again

    def send(number: signal.Signals) -> None:
        if sys.unraisablehook is interrupt_again:
            os.kill(os.getpid(), number)

    hook, before = sys.unraisablehook, signal.signal(signal.SIGTERM, interrupt)
    sys.unraisablehook = interrupt_again
    try:
        yield terminated
    finally:
        sys.unraisablehook = hook
        signal.signal(signal.SIGTERM, before)
