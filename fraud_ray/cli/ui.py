"""`fraud-ray ui`: the pages on what was tracked."""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

from fraud_ray.cli.options import Config, Overrides, settings_of


def ui(
    config: Config,
    overrides: Overrides = None,
    tensorboard: Annotated[
        bool, typer.Option("--tensorboard", help="TensorBoard on the trials' curves instead of MLflow's pages.")
    ] = False,
    port: Annotated[int | None, typer.Option(help="Port on 127.0.0.1; by default 5000, or TensorBoard's 6006.")] = None,
) -> None:
    """Serve MLflow's pages on the store of a configuration, until interrupted."""
    settings = settings_of(config, overrides)
    if tensorboard:
        from fraud_ray.storage import Storage

        runs = Storage.at(settings.storage.root).path("runs")
        command = [sys.executable, "-m", "tensorboard.main", "--logdir", runs, "--port", str(port or 6006)]
    else:
        from fraud_ray.registry.server import ui_command

        command = ui_command(settings.registry, port or 5000)
    print(f"http://127.0.0.1:{command[command.index('--port') + 1]} — Ctrl-C ends it", file=sys.stderr)
    os.execv(command[0], command)
