"""Both streams of a command in a pod, of which Kubernetes keeps one log: lines of standard output begin with MARK."""

from __future__ import annotations

import io
import os
from typing import TextIO

MARK = "\x1e"  # ASCII's record separator
IN_POD = "FRAUD_RAY_IN_POD"  # set for such a command, to the name of its Job


class Marked(io.TextIOBase):
    """Standard output, each line of which it marks."""

    def __init__(self, stream: TextIO) -> None:
        self.stream, self.begins = stream, True

    def write(self, text: str) -> int:
        *whole, rest = text.split("\n")
        for line in whole:
            self.stream.write(f"{MARK if self.begins else ''}{line}\n")
            self.begins = True
        if rest:
            self.stream.write(f"{MARK if self.begins else ''}{rest}")
            self.begins = False
        return len(text)

    def flush(self) -> None:
        self.stream.flush()


def is_in_pod() -> bool:
    """Whether this process is such a command."""
    return IN_POD in os.environ
