"""`fraud-ray reproduce`: a run's model fitted again, and compared."""

from __future__ import annotations

import dataclasses
import json
from typing import Annotated

import typer

from fraud_ray.cli.options import AsJson, ConfigOrDefaults, Overrides, storage_of
from fraud_ray.errors import EXIT_FAULT


def reproduce(
    name: Annotated[str, typer.Argument(metavar="RUN", help="A concluded run's name, as `runs list` shows it.")],
    config: ConfigOrDefaults = None,
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Fit a run's winner again, from the data and the settings that the run recorded, and compare the weights.

    Of the configuration only storage.root and cluster count. Ends with exit code 0 if all weights are the same to the
    bit, else with 1.
    """
    from fraud_ray.cli.display import Display, stdout_for_the_result
    from fraud_ray.settings import load_settings

    storage = storage_of(config, overrides)
    cluster = load_settings(config, overrides or ()).settings.cluster if config else None

    from fraud_ray import reproduce
    from fraud_ray.cli.records import print_reproduction

    with stdout_for_the_result():
        reproduction = reproduce.reproduce(storage, name, Display(), cluster)
    if as_json:
        typer.echo(json.dumps({**dataclasses.asdict(reproduction), "is_exact": reproduction.is_exact}, indent=1))
    else:
        print_reproduction(reproduction)
    raise typer.Exit(0 if reproduction.is_exact else EXIT_FAULT)
