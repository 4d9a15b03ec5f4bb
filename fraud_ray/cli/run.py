"""`fraud-ray run`: the whole pipeline."""

from __future__ import annotations

import contextlib
import json
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from fraud_ray.cli.options import AsJson, Config, Overrides

if TYPE_CHECKING:
    from fraud_ray.run import Outcome

Stage = Literal["simulate", "validate", "prepare", "search", "refit", "evaluate", "gate", "register"]


def run(
    config: Config,
    overrides: Overrides = None,
    name: Annotated[
        str | None,
        typer.Option("--name", help="The run's name; may hold the data's date, as in 'fraud-{as_of:%Y-%m}'."),
    ] = None,
    until: Annotated[
        Stage | None,
        typer.Option("--until", metavar="STAGE", help=f"Stop after a stage: {', '.join(Stage.__args__)}."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Train, gate and register a model: simulate (if there is no data), validate, prepare, search, refit, evaluate,
    gate, register.

    The same command again answers at once with the outcome of a concluded run, and goes on with an interrupted one.
    Ends with exit code 3 if the gate rejects the model.
    """
    from fraud_ray.cli.display import Display
    from fraud_ray.cli.tables import print_outcome
    from fraud_ray.cluster import refuse_temporary_folders
    from fraud_ray.settings import load_settings

    named = [f"run.name={json.dumps(name)}"] if name is not None else []
    loaded = load_settings(config, [*(overrides or ()), *named])
    refuse_temporary_folders(loaded.settings)

    from fraud_ray import pipeline

    with contextlib.redirect_stdout(sys.stderr):  # stdout is for the outcome alone
        outcome = pipeline.run(loaded, Display(), until)
    if as_json:
        typer.echo(json.dumps(outcome.to_json(), indent=1))
    else:
        print_outcome(outcome)
        _print_next(outcome, _options(config, overrides), named=name)
    raise typer.Exit(outcome.exit_code)


def _print_next(outcome: Outcome, options: str, named: str | None) -> None:
    if outcome.status.startswith("stopped"):
        name = f" --name {shlex.quote(named)}" if named else ""
        shown = {f"fraud-ray run {options}{name}": "go on from here"}
    else:
        shown = {
            f"fraud-ray runs show {shlex.quote(outcome.name)} {options}": "its settings and figures again",
            f"fraud-ray ui {options}": "MLflow: every trial, and the registered model",
            f"fraud-ray ui --tensorboard {options}": "the trials' curves",
        }
    width = max(map(len, shown))
    typer.echo("\nNext:")
    for command, purpose in shown.items():
        typer.echo(f"  {command:<{width}}  # {purpose}")


def _options(config: Path, overrides: list[str] | None) -> str:
    return shlex.join(["-c", str(config), *(word for override in overrides or () for word in ("--set", override))])
