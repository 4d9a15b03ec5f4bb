"""How a stage is measured: sides in turn, several times each, with the peak memory of all processes; rows of figures.

A ratio always says how many times as fast as its peer ours is, from the medians of both.
"""

from __future__ import annotations

import math
import os
import statistics
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

Side = Callable[[], float | None]
Unit = Literal["s", "ms", "rows/s", "requests/s", "trials/min", "GiB"]

SAMPLE_EVERY_S = 0.5
SAMPLING_SHARE = 0.01  # of the time: adding up a process's pages stops it, and all ranks wait for one
GIB = 2**30


@dataclass(frozen=True)
class Target:
    """What a row has to reach: of its ratio ('x'), or of our own figure in the row's unit."""

    sense: Literal[">=", "<="]
    bound: float
    unit: Unit | Literal["x"] = "x"

    def is_met_by(self, row: Row) -> bool:
        value = row.ratio if self.unit == "x" else row.ours
        assert value is not None, "a target of the ratio goes with a peer"
        return value >= self.bound if self.sense == ">=" else value <= self.bound

    def __str__(self) -> str:
        return f"{self.sense} {self.bound:.3g} {self.unit}"


@dataclass
class Sample:
    """The figures of one side: seconds, or what it measured itself; and its peak memory in bytes."""

    values: list[float] = field(default_factory=list)
    memory: int = 0

    @property
    def median(self) -> float:
        return statistics.median(self.values)


@dataclass(frozen=True)
class Row:
    """One line of the table.

    ours, peer, limit: in `unit`; limit is what the machine allows, where that can be measured. memory, peer_memory:
    peak bytes of all processes. note: what the figures leave out, such as how a peer was scaled.
    """

    stage: str
    unit: Unit
    ours: float
    peer: float | None = None
    peer_name: str = ""
    limit: float | None = None
    limit_name: str = ""
    memory: int | None = None
    peer_memory: int | None = None
    target: Target | None = None
    holds: bool = True  # what else the target asks for, such as an equal loss
    note: str = ""

    @classmethod
    def between(
        cls,
        stage: str,
        unit: Unit,
        ours: Sample,
        peer: Sample,
        peer_name: str,
        target: Target | None = None,
        **more: Any,
    ) -> Row:
        """A row of two samples."""
        figures = {"memory": ours.memory, "peer_memory": peer.memory, "target": target, **more}
        return cls(stage, unit, ours.median, peer.median, peer_name, **figures)

    @property
    def ratio(self) -> float | None:
        if self.peer is None:
            return None
        return self.ours / self.peer if self.unit in {"rows/s", "requests/s", "trials/min"} else self.peer / self.ours

    @property
    def met(self) -> bool | None:
        """None where nothing is asked for."""
        return None if self.target is None else self.holds and self.target.is_met_by(self)

    def to_json(self) -> dict[str, Any]:
        target = None if self.target is None else str(self.target)
        told = {**asdict(self), "ratio": self.ratio, "target": target, "met": self.met}
        # A side that never gets there takes for ever, of which JSON knows nothing.
        return {name: None if value == math.inf else value for name, value in told.items()}


def in_turn(sides: Mapping[str, Side], repeats: int, warm: bool = True) -> dict[str, Sample]:
    """Runs the sides alternately, the order turned around each time.

    A side that returns a number has measured itself, such as in rows per second; any other is timed.
    warm: run each once before, unmeasured.
    """
    samples = {name: Sample() for name in sides}
    if warm:
        for side in sides.values():
            side()
    for repeat in range(repeats):
        for name in list(sides) if repeat % 2 == 0 else reversed(list(sides)):
            with peak_memory() as peak:
                began = time.perf_counter()
                measured = sides[name]()
                seconds = time.perf_counter() - began
            samples[name].values.append(seconds if measured is None else measured)
            samples[name].memory = max(samples[name].memory, peak.bytes)
    return samples


class Peak:
    """The most memory that this process and all below it held while sampled."""

    def __init__(self) -> None:
        self.bytes = 0
        self.ended = threading.Event()

    def sample(self) -> None:
        while True:
            began = time.perf_counter()
            self.bytes = max(self.bytes, sum(map(proportional_bytes, processes(os.getpid()))))
            if self.ended.wait(max(SAMPLE_EVERY_S, (time.perf_counter() - began) / SAMPLING_SHARE)):
                return


@contextmanager
def peak_memory() -> Iterator[Peak]:
    peak = Peak()
    sampler = threading.Thread(target=peak.sample, daemon=True)
    sampler.start()
    try:
        yield peak
    finally:
        peak.ended.set()
        sampler.join()


def processes(root: int) -> Iterator[int]:
    """A process and all below it."""
    yield root
    for children in Path(f"/proc/{root}/task").glob("*/children"):
        try:
            below = children.read_text().split()
        except OSError:  # it has ended meanwhile
            continue
        for child in below:
            yield from processes(int(child))


def proportional_bytes(process: int) -> int:
    """Resident memory in which pages that n processes share count for 1/n: sums count each page once."""
    try:
        lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:")), 0)


@contextmanager
def one_thread() -> Iterator[None]:
    """torch on one thread, as a rank with one CPU has it."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    from importlib.metadata import version

    import torch

    model = [
        line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line
    ]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "cpu": model[0] if model else "unknown",
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(memory / GIB, 1),
        "load_before": os.getloadavg()[0],
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        **{name: version(name) for name in ("ray", "torch", "pyarrow", "pandas", "onnxruntime", "mlflow")},
    }
