"""`fraud-ray submit`: a run as a job elsewhere."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from fraud_ray.cli.jobs import DASHBOARD, Address, To, TokenFile, as_values, of_kuberay, of_ray
from fraud_ray.cli.options import AsJson, Config, Name, Overrides


def submit(
    config: Config,
    overrides: Overrides = None,
    name: Name = None,
    retrain: Annotated[
        bool, typer.Option("--retrain", help="Submit `fraud-ray retrain` in place of `fraud-ray run`.")
    ] = False,
    to: To = "kuberay",
    render: Annotated[
        bool, typer.Option("--render", help="kuberay: print the manifests, for kubectl apply -f - or Git, and end.")
    ] = False,
    address: Address = DASHBOARD,
    token_file: TokenFile = None,
    as_json: AsJson = False,
) -> None:
    """Submit a run, or a retraining, as a RayJob with a cluster of its own or to a Ray that is up.

    The same command again answers with the job that is under way or done; after a failure, or a stop, it makes the
    next attempt, which resumes. Invalid settings end it before anything is submitted.
    """
    from fraud_ray.cli.tables import print_next
    from fraud_ray.settings import load_settings
    from fraud_ray.submission import jobs
    from fraud_ray.submission.order import order

    if to == "kuberay":
        from fraud_ray.submission.render import fill, render_overlay, to_yaml

        template = render_overlay(load_settings(config, overrides or ()).settings.cluster.overlay)
        placed = order(config, overrides or [], name, template.line, retrain)
        documents = fill(template, placed, 1)
        if render:
            typer.echo(to_yaml(documents), nl=False)
            return
        where = of_kuberay(template)
    elif render:
        raise typer.BadParameter("goes with --to kuberay", param_hint="--render")
    else:
        placed = order(config, overrides or [], name, retrain=retrain)
        where = of_ray(address, token_file)
    attempt, is_new = jobs.submit(where, placed)
    if as_json:
        typer.echo(json.dumps({**as_values(attempt), "new": is_new}, indent=1))
        return
    told = "submitted as job" if is_new else f"is {attempt.state} as job"
    typer.echo(f"run '{attempt.run}' {told} {attempt.name}")
    options = ["--to", "ray"] if to == "ray" else ["-c", str(config), *_overlay(overrides or [])]
    commands = (("what it prints", ["logs", "-f"]), ("its settings", ["show"]), ("end it", ["stop"]))
    print_next((purpose, ["jobs", *words, attempt.name, *options]) for purpose, words in commands)


def _overlay(overrides: list[str]) -> list[str]:
    return [word for override in overrides if override.startswith("cluster.overlay=") for word in ("--set", override)]
