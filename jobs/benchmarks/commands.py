"""The command line from outside: how soon it answers, and the whole line on a laptop's configuration."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence

from benchmarks.harness import Row, Target, in_turn
from benchmarks.world import REPOSITORY, World

CLI = (sys.executable, "-m", "fraud_ray")


def answers(world: World) -> list[Row]:
    samples = in_turn(
        {
            "ours": lambda: _run([*CLI, "--help"]),
            "python": lambda: _run([sys.executable, "-c", "pass"]),
        },
        repeats=7,
    )
    return [
        Row(
            "command line, --help",
            "s",
            samples["ours"].median,
            samples["python"].median,
            "python -c pass",
            target=Target(">=", 1 / 20),
        )
    ]


def line(world: World) -> list[Row]:
    folder = world.scratch / "line"
    own = ["--set", f"data.path={folder}/data", "--set", f"storage.root={folder}/store"]
    command = [*CLI, "run", "-c", str(REPOSITORY / "configs/local.yaml"), *own]

    def run() -> float:
        seconds = _run(command)
        shutil.rmtree(folder)
        return seconds

    sample = in_turn({"ours": run}, repeats=1, warm=False)["ours"]
    return [
        Row(
            "command line, make run",
            "s",
            sample.median,
            memory=sample.memory,
            target=Target("<=", 130, "s"),
            note="configs/local.yaml, from simulating to registering, a Ray of its own",
        )
    ]


def _run(command: Sequence[str]) -> float:
    """Seconds of a command from the repository's root, on a Ray of its own. Raises CalledProcessError."""
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    environment["PYTHONPATH"] = str(REPOSITORY)
    began = time.perf_counter()
    subprocess.run(command, cwd=REPOSITORY, env=environment, check=True, capture_output=True)
    return time.perf_counter() - began
