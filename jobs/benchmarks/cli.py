"""The benchmark's command line, and the order of its stages."""

from __future__ import annotations

import json
import os
import pkgutil
import shutil
import signal
import tempfile
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

# Names of the stages in the table's order, and the functions that measure them.
ON_ONE_RAY = {
    "prepare": "preparing:stage",
    "train step": "training:stage",
    "train, DDP": "ranks:stage",
    "train, streamed": "training:streamed",
    "train on a GPU": "gpu:stage",
    "train until": "quality:stage",
    "search": "searching:stage",
    "score, in memory": "scoring:in_memory",
    "score, parquet": "scoring:partitions",
    "score, one row": "scoring:one_row",
    "serve, one transaction": "serving:in_process",
    "serve, HTTP": "serving:over_http",
    "serve, no windows": "serving:as_fast_as_it_goes",
    "scaling, rows": "preparing:scaling",
    "scaling, trials": "searching:scaling",
    "scaling, ranks": "ranks:scaling",
}
AFTER_IT = {
    "command line, help": "commands:answers",
    "command line, run": "commands:line",
}
STAGES = ON_ONE_RAY | AFTER_IT


def main() -> None:
    typer.run(benchmark)


def benchmark(
    only: Annotated[
        list[str] | None, typer.Option(metavar="STAGE", help="Measure the stages that begin with this; repeatable.")
    ] = None,
    full: Annotated[bool, typer.Option("--full", help="Also 100 M rows and 512 trials.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON: {rows: [...], machine: {...}}.")] = False,
    picture: Annotated[Path | None, typer.Option(metavar="FILE", help="Draw the ratios into an SVG file.")] = None,
    scratch: Annotated[Path | None, typer.Option(help="Folder for data, which is removed; by default in /tmp.")] = None,
) -> None:
    """Measures every stage beside its peers, in turn, on this machine.

    Exit code 1 if a row misses its target, 130 if interrupted: then the rows measured so far are told.
    """
    chosen = [name for name in STAGES if not only or name.startswith(tuple(only))]
    unknown = [prefix for prefix in only or () if not any(name.startswith(prefix) for name in STAGES)]
    if unknown:
        raise typer.BadParameter(f"there is no stage '{unknown[0]}'; there are: {'; '.join(STAGES)}")
    from benchmarks.harness import Row, machine
    from benchmarks.table import draw, table
    from benchmarks.world import World
    from fraud_ray.cli.display import Display, stdout_for_the_result
    from fraud_ray.cluster import join_or_start
    from fraud_ray.progress import Quiet
    from fraud_ray.settings import ClusterSettings

    # Read by Ray when it starts: its workers would yield to this process, in which some peers run.
    os.environ.setdefault("RAY_worker_niceness", "0")
    progress = Display() if os.isatty(2) else Quiet()
    on = machine()
    rows: list[Row] = []

    def measure(stages: dict[str, str]) -> None:
        for name in [name for name in stages if name in chosen]:
            with progress.stage(name) as stage:
                found = pkgutil.resolve_name(f"benchmarks.{stages[name]}")(world)
                stage.say("; ".join(f"{row.ratio:.3g} x" for row in found if row.ratio is not None))
            rows.extend(found)

    # Ended from outside, it tells what it has measured and clears away its data, as upon Ctrl-C.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    is_whole = False
    folder = Path(tempfile.mkdtemp(prefix="fraud-ray-benchmark-", dir=scratch))
    world = World(folder, full)
    try:
        with stdout_for_the_result():
            with join_or_start(ClusterSettings(cpus=on["cores"])):
                measure(ON_ONE_RAY)
            measure(AFTER_IT)
        is_whole = True
    except KeyboardInterrupt:
        typer.echo("interrupted; these rows are measured:", err=True)
    finally:
        shutil.rmtree(folder)
    if picture:
        draw(rows, picture)
    if as_json:
        typer.echo(json.dumps({"rows": [row.to_json() for row in rows], "machine": on}, indent=1))
    else:
        console = Console(width=None if os.isatty(1) else 1_000)  # in a file, a Markdown table has a line a row
        console.print(table(rows))
    if not is_whole:
        raise typer.Exit(130)
    raise typer.Exit(1 if any(row.met is False for row in rows) else 0)
