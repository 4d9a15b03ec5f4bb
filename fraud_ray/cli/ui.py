"""`fraud-ray ui`: the pages on what was tracked."""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

from fraud_ray.cli.elsewhere import To
from fraud_ray.cli.options import Config, Overrides, settings_of

_MLFLOW, _TENSORBOARD = 5000, 6006


def ui(
    config: Config,
    overrides: Overrides = None,
    tensorboard: Annotated[
        bool, typer.Option("--tensorboard", help="TensorBoard on the trials' curves instead of MLflow's pages.")
    ] = False,
    port: Annotated[int | None, typer.Option(help="Port on 127.0.0.1; by default 5000, or TensorBoard's 6006.")] = None,
    to: To = None,
) -> None:
    """Serve MLflow's pages on the store of a configuration, until interrupted.

    With [bold]--to kuberay[/] they are those of the cluster's server, which Kubernetes forwards to this machine.
    """
    settings = settings_of(config, overrides)
    port = port or (_TENSORBOARD if tensorboard else _MLFLOW)
    host, who = "127.0.0.1", ""
    if to:
        from fraud_ray.submission.forward import forward_command

        command, who = forward_command(settings, port, tensorboard)
        host = "localhost"  # which MLflow's server lets in by that name
    elif tensorboard:
        from fraud_ray.storage import Storage

        runs = Storage.at(settings.storage.root).required().path("runs")
        command = [sys.executable, "-m", "tensorboard.main", "--logdir", runs, "--port", str(port)]
    else:
        from fraud_ray.registry.server import ui_command

        command = ui_command(settings.registry, port)
    print(f"http://{host}:{port} — {who}Ctrl-C ends it", file=sys.stderr)
    os.execv(command[0], command)
