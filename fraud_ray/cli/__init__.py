"""The command line, `fraud-ray`: commands parse, call and print, and import what is heavy only when they need it.

Exit codes: 0 done, 1 fault, 2 usage or settings, 3 gate rejected, 4 contract violated, 5 drifted,
130 and 143 interrupted.
"""

from __future__ import annotations

import importlib.metadata
import io
import sys
from collections.abc import Sequence
from contextlib import nullcontext, redirect_stdout
from typing import Annotated, NoReturn

import typer

from fraud_ray.cli import (
    audit,
    backtest,
    cache,
    data,
    drift,
    init,
    jobs,
    models,
    reproduce,
    run,
    runs,
    score,
    serve,
    serve_check,
    settings,
    ui,
)
from fraud_ray.cli.elsewhere import Working
from fraud_ray.cli.faults import Commands
from fraud_ray.cli.joblog import kept
from fraud_ray.submission.streams import Marked, is_in_pod

app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Exit codes: 0 done, 1 fault, 2 usage or settings, 3 gate rejected, 4 data or contract, 5 drifted, "
    "130 and 143 interrupted.",
)


def _tell_version(wanted: bool) -> None:
    if wanted:
        print(f"fraud-ray {importlib.metadata.version('fraud_ray')}")
        raise typer.Exit


@app.callback()
def _fraud_ray(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version, and end.", callback=_tell_version, is_eager=True)
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the trace of an unexpected fault.")] = False,
) -> None:
    """Trains, gates and registers a card-fraud model on Ray, from partitioned parquet.

    Start with [bold]fraud-ray run -c configs/local.yaml[/]: it simulates data, if there is none, and goes through every
    stage. Each command has its own --help.
    """


app.command()(init.init)
app.command()(run.run)
app.command()(run.retrain)
app.command(cls=Working)(backtest.backtest)
app.command()(data.simulate)
app.command(cls=Working)(data.validate)
app.command(cls=Working)(drift.drift)
app.command(cls=Working)(score.score)
app.command()(serve.serve)
app.command(name="serve-check")(serve_check.serve_check)
app.command(name="settings")(settings.show)
app.add_typer(runs.app, name="runs")
app.command(cls=Working)(reproduce.reproduce)
app.add_typer(models.app, name="models")
app.add_typer(audit.app, name="audit")
app.add_typer(cache.app, name="cache")
app.command()(ui.ui)
app.command()(jobs.submit)
app.add_typer(jobs.app, name="jobs")


def main(arguments: Sequence[str] | None = None, in_job: bool = False) -> NoReturn:
    """Runs a command and ends the process with its exit code; arguments: by default the process's own.

    in_job: it is a Ray job, whose working folder and disk end with it; relative places to store in are refused. So they
    are in a pod of `--to kuberay`.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a terminal that cannot encode a user's text gets a question mark
            stream.reconfigure(errors="replace")
    in_pod = is_in_pod()
    marked = redirect_stdout(Marked(sys.stdout)) if in_pod else nullcontext()
    with kept() if in_job else nullcontext(in_pod) as place, marked:
        app(args=arguments, prog_name="fraud-ray", obj=place)
    raise SystemExit(0)
