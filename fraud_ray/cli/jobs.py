"""`fraud-ray jobs`: what was submitted, on KubeRay or on a Ray that is up."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from fraud_ray.cli.options import AsJson, Overrides

if TYPE_CHECKING:
    from fraud_ray.submission.jobs import Attempt, Jobs
    from fraud_ray.submission.render import Template

app = typer.Typer(no_args_is_help=True, help="List, show, follow and stop submitted jobs.")

Where = Literal["kuberay", "ray"]
To = Annotated[
    Where,
    typer.Option("--to", help="kuberay: on a cluster of its own; ray: on one that is up."),
]
Address = Annotated[
    str,
    typer.Option("--address", envvar="RAY_API_SERVER_ADDRESS", help="ray: where its dashboard is."),
]
TokenFile = Annotated[
    Path | None,
    typer.Option(
        "--token-file",
        metavar="FILE",
        envvar="RAY_AUTH_TOKEN_PATH",
        help="ray: file with its token; by default the token in RAY_AUTH_TOKEN.",
    ),
]
ConfigOfCluster = Annotated[
    Path | None,
    typer.Option("-c", "--config", metavar="FILE", help="kuberay: configuration whose cluster.overlay is meant."),
]
Name = Annotated[str, typer.Argument(metavar="NAME", help="A job's name, or a run's, whose newest job is meant.")]

DASHBOARD = "http://127.0.0.1:8265"


@app.command(name="list")
def list_all(
    config: ConfigOfCluster = None,
    overrides: Overrides = None,
    to: To = "kuberay",
    address: Address = DASHBOARD,
    token_file: TokenFile = None,
    as_json: AsJson = False,
) -> None:
    """List all jobs, oldest first."""
    found = connect(to, config, overrides, address, token_file).attempts()
    if as_json:
        typer.echo(json.dumps([{k: v for k, v in as_values(a).items() if k != "settings"} for a in found], indent=1))
    else:
        _print_all(found)


@app.command()
def show(
    name: Name,
    config: ConfigOfCluster = None,
    overrides: Overrides = None,
    to: To = "kuberay",
    address: Address = DASHBOARD,
    token_file: TokenFile = None,
    as_json: AsJson = False,
) -> None:
    """Show a job: its state, and the settings that it was submitted with, every default filled in."""
    from fraud_ray.submission.jobs import find

    found = find(connect(to, config, overrides, address, token_file), name)
    if as_json:
        typer.echo(json.dumps(as_values(found), indent=1))
    else:
        _print_one(found)


@app.command()
def logs(
    name: Name,
    config: ConfigOfCluster = None,
    overrides: Overrides = None,
    to: To = "kuberay",
    address: Address = DASHBOARD,
    token_file: TokenFile = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the job ends.")] = False,
) -> None:
    """Print what a job's run has printed."""
    from fraud_ray.submission.jobs import find

    jobs = connect(to, config, overrides, address, token_file)
    for piece in jobs.logs(find(jobs, name), follow):
        sys.stdout.write(piece)
        sys.stdout.flush()


@app.command()
def stop(
    name: Name,
    config: ConfigOfCluster = None,
    overrides: Overrides = None,
    to: To = "kuberay",
    address: Address = DASHBOARD,
    token_file: TokenFile = None,
) -> None:
    """Stop a job. Its run keeps what it concluded: submitted again under the same name, it goes on from there."""
    from fraud_ray.submission.jobs import find

    jobs = connect(to, config, overrides, address, token_file)
    found = find(jobs, name)
    jobs.stop(found)
    typer.echo(f"stopping {found.name}; run '{found.run}' goes on from here when it is submitted again")


def connect(to: Where, config: Path | None, overrides: list[str] | None, address: str, token_file: Path | None) -> Jobs:
    """The jobs of the place that the options name."""
    if to == "ray":
        return of_ray(address, token_file)
    if config is None:
        raise typer.BadParameter("is needed with --to kuberay, for the namespace of its overlay", param_hint="-c")
    from fraud_ray.settings import load_settings
    from fraud_ray.submission.render import render_overlay

    return of_kuberay(render_overlay(load_settings(config, overrides or ()).settings.cluster.overlay))


def of_kuberay(template: Template) -> Jobs:
    from fraud_ray.submission.kuberay import KubeRayJobs

    return KubeRayJobs(template)


def of_ray(address: str, token_file: Path | None) -> Jobs:
    from fraud_ray.submission.ray_jobs import RayJobs, read_token

    return RayJobs(address, read_token(token_file))


def as_values(attempt: Attempt) -> dict[str, Any]:
    """An attempt as JSON types."""
    return {**dataclasses.asdict(attempt), "created": attempt.created and attempt.created.isoformat()}


def _print_all(attempts: list[Attempt]) -> None:
    from fraud_ray.cli.tables import new_console, new_table

    console = new_console()
    if not attempts:
        console.print("no jobs yet")
        return
    table = new_table("Job", "Run", "State", "Created (UTC)")
    for attempt in attempts:
        table.add_row(attempt.name, attempt.run, attempt.state, _time(attempt))
    console.print(table)


def _print_one(attempt: Attempt) -> None:
    from fraud_ray.cli.tables import new_console, print_facts, print_settings

    console = new_console()
    facts = {"job": attempt.name, "run": attempt.run, "state": attempt.state, "created": _time(attempt)}
    print_facts(console, {**facts, **({"message": attempt.message} if attempt.message else {})})
    print_settings(console, attempt.settings)


def _time(attempt: Attempt) -> str:
    return f"{attempt.created:%Y-%m-%d %H:%M:%S}" if attempt.created else "not yet"
