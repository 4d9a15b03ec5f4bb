"""`fraud-ray submit` and `fraud-ray jobs`: runs as jobs on KubeRay."""

from __future__ import annotations

import dataclasses
import sys
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fraud_ray.cli.options import AsJson, Config, Overrides, settings_of
from fraud_ray.cli.options import Name as RunName
from fraud_ray.cli.tables import (
    command_line,
    print_facts,
    print_json,
    print_line,
    print_next,
    print_notes,
    print_settings,
    print_table,
)
from fraud_ray.errors import ServerError, SettingsError

if TYPE_CHECKING:
    from fraud_ray.submission.commands import CommandJobs, Sent
    from fraud_ray.submission.kuberay import Attempt

app = typer.Typer(no_args_is_help=True, help="List, show, follow and stop submitted jobs.")

ConfigOfCluster = Annotated[
    Path, typer.Option("-c", "--config", metavar="FILE", help="Configuration whose cluster.overlay is meant.")
]
_WANTED = "A job's name, or a run's, or how that begins, whose newest job is meant; latest: the newest run's."
Name = Annotated[str, typer.Argument(metavar="NAME", help=_WANTED)]
Context = Annotated[
    str | None, typer.Option("--context", metavar="NAME", help="The kubeconfig's context; without it, the current one.")
]


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
    context: Context = None,
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
    jobs = kuberay.KubeRayJobs(template, context)
    attempt, is_new, unseen = kuberay.submit(jobs, placed)
    if as_json:
        print_json({**_as_values(attempt), "new": is_new})
        return
    told = "submitted as job" if is_new else f"is {attempt.state} as job"
    print_line(f"run '{attempt.run}' {told} {attempt.name} ({jobs.place})")
    if unseen:
        print_notes([f"whether these are there could not be looked for (no right to read them): {', '.join(unseen)}"])
    commands = [("what it prints", ["logs", "-f"]), ("what it does, and its settings", ["show"])]
    commands += [] if attempt.has_ended else [("end it", ["stop"])]
    options = _options(config, overrides, context)
    print_next((purpose, ["jobs", *words, attempt.name, *options]) for purpose, words in commands)


@app.command(name="list")
def list_all(
    config: ConfigOfCluster, overrides: Overrides = None, context: Context = None, as_json: AsJson = False
) -> None:
    """List all jobs, oldest first: what each is doing, and why not; then commands that run in pods (--to kuberay)."""
    jobs = _jobs(config, overrides, context)
    found, sent = jobs.attempts(with_reasons=True), jobs.sent()
    if as_json:
        told = [{k: v for k, v in _as_values(attempt).items() if k != "settings"} for attempt in found]
        print_json([*told, *map(_as_values, sent)])
        return
    rows = [[a.name, a.run, a.says, _tries(a), _time(a), _took(a)] for a in found]
    rows += [[one.name, one.line, one.state, "", _time(one), _took(one)] for one in sent]
    columns = ["Job", "Run or command", "State", "Attempt", "Created (UTC)", "Took"]
    print_table(columns, rows, {"Took"}, title=jobs.place, empty=f"no jobs yet ({jobs.place})")
    _tell_of_the_unread(jobs)


@app.command()
def show(
    name: Name, config: ConfigOfCluster, overrides: Overrides = None, context: Context = None, as_json: AsJson = False
) -> None:
    """Show a job: what it is doing, and the settings that it was submitted with, every default filled in."""
    from fraud_ray.submission.commands import Sent

    jobs, found = _find(name, config, overrides, context)
    if as_json:
        print_json(_as_values(found))
        return
    if isinstance(found, Sent):
        print_facts({"job": found.name, "command": found.line, "state": found.state, "created": _time(found)})
        return
    facts = {"job": found.name, "run": found.run, "state": found.says, "attempt": _tries(found)}
    facts |= {"created": _time(found), "took": _took(found), "cluster": jobs.place}
    print_facts({**facts, **({"message": found.message} if found.message else {})})
    _tell_of_the_unread(jobs)
    print_settings(found.settings)


@app.command()
def logs(
    name: Name,
    config: ConfigOfCluster,
    overrides: Overrides = None,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Wait for the job, saying why it waits, and go on until it ends.")
    ] = False,
    attempt: Annotated[
        int | None,
        typer.Option("--attempt", metavar="N", help="Of the run's N-th start, from its storage, also without pods."),
    ] = None,
    context: Context = None,
) -> None:
    """Print what a job's run has printed."""
    from fraud_ray.cli.display import Display
    from fraud_ray.submission import kuberay
    from fraud_ray.submission.commands import Sent

    jobs, found = _find(name, config, overrides, context)
    options = _options(config, overrides, context)
    if isinstance(found, Sent):
        pieces = jobs.printed(found.name, follow)
    elif attempt is not None:
        pieces = iter([_kept_log(found, attempt, options)])
    elif follow:
        pieces = kuberay.follow(jobs, found.name, Display().note)
    else:
        pod, pieces = jobs.log(found)
        if not pod:
            raise ServerError(f"job {found.name}: {found.says}\n{_without_log(found, options)}")
    for piece in pieces:
        sys.stdout.write(piece)
        sys.stdout.flush()


@app.command()
def stop(name: Name, config: ConfigOfCluster, overrides: Overrides = None, context: Context = None) -> None:
    """Stop a job. Its run keeps what it concluded: submitted again under the same name, it goes on from there."""
    from fraud_ray.submission.commands import Sent
    from fraud_ray.submission.needs import token_command

    jobs, found = _find(name, config, overrides, context)
    if isinstance(found, Sent):
        jobs.end(found.name)
        print_line(f"stopping {found.name}")
        return
    if found.has_ended:
        print_line(f"nothing to stop: job {found.name} is over ({found.says}); its record stays")
        return
    secret = jobs.lacks_token(found)
    if secret:
        raise ServerError(
            f"job {found.name} cannot be stopped: the secret {secret} is missing, without which KubeRay stops nothing "
            f"and the job would hang. Make it first:\n  {token_command(jobs.namespace, secret)}"
        )
    print_line(f"stopping {found.name} ({jobs.place})")
    if not jobs.stop(found):
        raise ServerError(
            f"KubeRay has not ended {found.name} within a minute, and may still: look with jobs show. It waits for "
            "ever where its operator is away or the secret of authOptions is missing"
        )
    print_line(f"stopped {found.name}; run '{found.run}' goes on from here when it is submitted again")


def _without_log(found: Attempt, options: list[str]) -> str:
    """What to do where no pod has a job's log."""
    if found.has_ended:
        return f"Its pods are gone; its run's storage keeps the log: {_reading(found, 1, options)}"
    return f"It has printed nothing yet; {command_line(['jobs', 'logs', '-f', found.name, *options])} waits for it"


def _kept_log(found: Attempt, number: int, options: list[str]) -> str:
    """A log from the storage of a job's run, where this machine sees it."""
    from fraud_ray.cluster import local_path
    from fraud_ray.runs import read_log
    from fraud_ray.storage import Storage

    root = found.settings["storage"]["root"]
    folder = local_path(root)
    if folder and not folder.is_dir():
        raise SettingsError(
            f"this machine does not see {root}, where run '{found.run}' keeps its logs. In the cluster: "
            f"{command_line(['runs', 'logs', found.run, '--attempt', str(number), *options, '--to', 'kuberay'])}"
        )
    return read_log(Storage.at(root), found.run, number)


def _reading(found: Attempt, number: int, options: list[str]) -> str:
    return command_line(["jobs", "logs", found.name, "--attempt", str(number), *options])


def _as_values(attempt: Attempt | Sent) -> dict[str, Any]:
    """An attempt, or a command, as JSON types."""
    values = {field.name: getattr(attempt, field.name) for field in dataclasses.fields(attempt) if field.name != "job"}
    return {**values, "created": attempt.created and attempt.created.isoformat()}


def _jobs(config: Path, overrides: list[str] | None, context: str | None) -> CommandJobs:
    from fraud_ray.submission import render
    from fraud_ray.submission.commands import CommandJobs

    return CommandJobs(render.render_overlay(settings_of(config, overrides).cluster.overlay), context)


def _find(
    name: str, config: Path, overrides: list[str] | None, context: str | None
) -> tuple[CommandJobs, Attempt | Sent]:
    from fraud_ray.submission.kuberay import find

    jobs = _jobs(config, overrides, context)
    sent = (one for one in jobs.sent() if one.name == name)
    return jobs, next(sent, None) or find(jobs, name, with_reasons=True)


def _options(config: Path, overrides: list[str] | None, context: str | None) -> list[str]:
    """The options that say which cluster is meant."""
    overlays = [override for override in overrides or () if override.startswith("cluster.overlay=")]
    where = [word for override in overlays for word in ("--set", override)]
    return ["-c", str(config), *where, *(["--context", context] if context else [])]


def _tell_of_the_unread(jobs: CommandJobs) -> None:
    if jobs.unread:
        print_notes([f"reasons may lack: {', '.join(jobs.unread)} cannot be read (Role fraud-submitter, get and list)"])


def _tries(attempt: Attempt) -> str:
    return f"{attempt.tries} of {attempt.most_tries}"


def _took(attempt: Attempt | Sent) -> str:
    return "" if attempt.seconds is None else str(timedelta(seconds=round(attempt.seconds)))


def _time(attempt: Attempt | Sent) -> str:
    return f"{attempt.created:%Y-%m-%d %H:%M:%S}" if attempt.created else "not yet"
