"""`fraud-ray submit` and `fraud-ray jobs`: runs as jobs on KubeRay."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fraud_ray.cli.options import AsJson, Config, Overrides, settings_of
from fraud_ray.cli.options import Name as RunName
from fraud_ray.cli.tables import print_facts, print_json, print_line, print_next, print_settings, print_table

if TYPE_CHECKING:
    from fraud_ray.submission.commands import CommandJobs, Sent
    from fraud_ray.submission.kuberay import Attempt

app = typer.Typer(no_args_is_help=True, help="List, show, follow and stop submitted jobs.")

ConfigOfCluster = Annotated[
    Path, typer.Option("-c", "--config", metavar="FILE", help="Configuration whose cluster.overlay is meant.")
]
_WANTED = "A job's name, or a run's, or how that begins, whose newest job is meant; latest: the newest run's."
Name = Annotated[str, typer.Argument(metavar="NAME", help=_WANTED)]


def submit(
    config: Config,
    overrides: Overrides = None,
    name: RunName = None,
    retrain: Annotated[
        bool, typer.Option("--retrain", help="Submit `fraud-ray retrain` in place of `fraud-ray run`.")
    ] = False,
    render: Annotated[
        bool, typer.Option("--render", help="Print the manifests, for kubectl apply -f - or Git, and end.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Submit a run, or a retraining, as a RayJob with a cluster of its own.

    The same command again answers with the job that is under way or done; after a failure, or a stop, it makes the
    next attempt, which resumes. Invalid settings end it before anything is submitted.
    """
    from fraud_ray.submission import kuberay
    from fraud_ray.submission.order import order
    from fraud_ray.submission.render import fill, render_overlay, to_yaml

    template = render_overlay(settings_of(config, overrides).cluster.overlay)
    placed = order(config, overrides or [], name, template.line, retrain)
    documents = fill(template, placed, 1)
    if render:
        print(to_yaml(documents), end="", flush=True)
        return
    attempt, is_new = kuberay.submit(kuberay.KubeRayJobs(template), placed)
    if as_json:
        print_json({**_as_values(attempt), "new": is_new})
        return
    told = "submitted as job" if is_new else f"is {attempt.state} as job"
    print_line(f"run '{attempt.run}' {told} {attempt.name}")
    overlays = [override for override in overrides or () if override.startswith("cluster.overlay=")]
    options = ["-c", str(config), *(word for override in overlays for word in ("--set", override))]
    commands = (("what it prints", ["logs", "-f"]), ("its settings", ["show"]), ("end it", ["stop"]))
    print_next((purpose, ["jobs", *words, attempt.name, *options]) for purpose, words in commands)


@app.command(name="list")
def list_all(config: ConfigOfCluster, overrides: Overrides = None, as_json: AsJson = False) -> None:
    """List all jobs, oldest first; then commands that run in pods, as batch scoring with --to kuberay does."""
    jobs = _jobs(config, overrides)
    found, sent = jobs.attempts(), jobs.sent()
    if as_json:
        told = [{k: v for k, v in _as_values(attempt).items() if k != "settings"} for attempt in found]
        print_json([*told, *map(_as_values, sent)])
        return
    rows = [[attempt.name, attempt.run, attempt.state, _time(attempt)] for attempt in found]
    rows += [[one.name, one.line, one.state, _time(one)] for one in sent]
    print_table(["Job", "Run or command", "State", "Created (UTC)"], rows, empty="no jobs yet")


@app.command()
def show(name: Name, config: ConfigOfCluster, overrides: Overrides = None, as_json: AsJson = False) -> None:
    """Show a job: its state, and the settings that it was submitted with, every default filled in."""
    from fraud_ray.submission.commands import Sent

    _, found = _find(name, config, overrides)
    if as_json:
        print_json(_as_values(found))
        return
    if isinstance(found, Sent):
        print_facts({"job": found.name, "command": found.line, "state": found.state, "created": _time(found)})
        return
    facts = {"job": found.name, "run": found.run, "state": found.state, "created": _time(found)}
    print_facts({**facts, **({"message": found.message} if found.message else {})})
    print_settings(found.settings)


@app.command()
def logs(
    name: Name,
    config: ConfigOfCluster,
    overrides: Overrides = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the job ends.")] = False,
) -> None:
    """Print what a job's run has printed."""
    from fraud_ray.submission.commands import Sent

    jobs, found = _find(name, config, overrides)
    for piece in jobs.printed(found.name, follow) if isinstance(found, Sent) else jobs.logs(found, follow):
        sys.stdout.write(piece)
        sys.stdout.flush()


@app.command()
def stop(name: Name, config: ConfigOfCluster, overrides: Overrides = None) -> None:
    """Stop a job. Its run keeps what it concluded: submitted again under the same name, it goes on from there."""
    from fraud_ray.submission.commands import Sent

    jobs, found = _find(name, config, overrides)
    if isinstance(found, Sent):
        jobs.end(found.name)
        print_line(f"stopping {found.name}")
        return
    jobs.stop(found)
    print_line(f"stopping {found.name}; run '{found.run}' goes on from here when it is submitted again")


def _as_values(attempt: Attempt | Sent) -> dict[str, Any]:
    """An attempt, or a command, as JSON types."""
    return {**dataclasses.asdict(attempt), "created": attempt.created and attempt.created.isoformat()}


def _jobs(config: Path, overrides: list[str] | None) -> CommandJobs:
    from fraud_ray.submission.commands import CommandJobs
    from fraud_ray.submission.render import render_overlay

    return CommandJobs(render_overlay(settings_of(config, overrides).cluster.overlay))


def _find(name: str, config: Path, overrides: list[str] | None) -> tuple[CommandJobs, Attempt | Sent]:
    from fraud_ray.submission.kuberay import find

    jobs = _jobs(config, overrides)
    sent = (one for one in jobs.sent() if one.name == name)
    return jobs, next(sent, None) or find(jobs, name)


def _time(attempt: Attempt | Sent) -> str:
    return f"{attempt.created:%Y-%m-%d %H:%M:%S}" if attempt.created else "not yet"
