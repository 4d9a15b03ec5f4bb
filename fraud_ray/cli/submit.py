"""`fraud-ray submit`: a run as a job on KubeRay."""

from __future__ import annotations

from typing import Annotated

import typer

from fraud_ray.cli.jobs import as_values
from fraud_ray.cli.options import AsJson, Config, Name, Overrides, settings_of
from fraud_ray.cli.tables import print_json, print_next


def submit(
    config: Config,
    overrides: Overrides = None,
    name: Name = None,
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
        typer.echo(to_yaml(documents), nl=False)
        return
    attempt, is_new = kuberay.submit(kuberay.KubeRayJobs(template), placed)
    if as_json:
        print_json({**as_values(attempt), "new": is_new})
        return
    told = "submitted as job" if is_new else f"is {attempt.state} as job"
    typer.echo(f"run '{attempt.run}' {told} {attempt.name}")
    overlays = [override for override in overrides or () if override.startswith("cluster.overlay=")]
    options = ["-c", str(config), *(word for override in overlays for word in ("--set", override))]
    commands = (("what it prints", ["logs", "-f"]), ("its settings", ["show"]), ("end it", ["stop"]))
    print_next((purpose, ["jobs", *words, attempt.name, *options]) for purpose, words in commands)
