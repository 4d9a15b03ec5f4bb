"""`fraud-ray runs`: what runs there are, one of them, and two of them side by side."""

from __future__ import annotations

import dataclasses
import json
from typing import Annotated, Any

import typer

from fraud_ray.cli.options import AsJson, ConfigOrDefaults, Overrides, storage_of

app = typer.Typer(no_args_is_help=True, help="List, show and compare runs.")

Name = Annotated[str, typer.Argument(metavar="NAME", help="A run's name, as `runs list` shows it.")]


@app.command(name="list")
def list_all(config: ConfigOrDefaults = None, overrides: Overrides = None, as_json: AsJson = False) -> None:
    """List all runs, oldest first."""
    from fraud_ray.cli.tables import print_runs
    from fraud_ray.runs import list_runs

    storage = storage_of(config, overrides)
    found = list_runs(storage)
    if as_json:
        _print_json([{"name": r.name, "state": r.state, "created": r.created, "folder": r.folder} for r in found])
    else:
        print_runs(found, storage.path("runs"))


@app.command()
def show(name: Name, config: ConfigOrDefaults = None, overrides: Overrides = None, as_json: AsJson = False) -> None:
    """Show a run: who started it, with which code and settings, how far it got, and its figures."""
    from fraud_ray.cli.tables import print_run
    from fraud_ray.runs import read_run

    found = read_run(storage_of(config, overrides), name)
    if as_json:
        _print_json(dataclasses.asdict(found))
    else:
        print_run(found)


@app.command()
def compare(
    first: Annotated[str, typer.Argument(metavar="A", help="A run's name.")],
    second: Annotated[str, typer.Argument(metavar="B", help="Another one's.")],
    config: ConfigOrDefaults = None,
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Compare two runs: the settings that differ, and their metrics side by side."""
    from fraud_ray.cli.tables import print_comparison
    from fraud_ray.runs import differences, read_run

    storage = storage_of(config, overrides)
    one, other = read_run(storage, first), read_run(storage, second)
    changed = differences(one.identity, other.identity)
    if as_json:
        _print_json({"settings": changed, "metrics": {run.name: run.metrics for run in (one, other)}})
    else:
        print_comparison(one, other, changed)


def _print_json(value: Any) -> None:
    typer.echo(json.dumps(value, indent=1))
