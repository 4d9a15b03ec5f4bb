"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from fraud_ray.storage import Storage

Config = Annotated[
    Path, typer.Option("-c", "--config", metavar="FILE", help="Configuration, such as configs/local.yaml.")
]
ConfigOrDefaults = Annotated[
    Path | None,
    typer.Option("-c", "--config", metavar="FILE", help="Configuration; without one, the default storage.root."),
]
Overrides = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="A.B=VALUE", help="Replace one setting; the value is YAML. Repeatable: --set train.epochs=100."
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, and nothing else, on stdout.")]


def storage_of(config: Path | None, overrides: list[str] | None) -> Storage:
    """Where the runs lie that a command is about."""
    from fraud_ray.settings import StorageSettings, load_settings
    from fraud_ray.storage import Storage

    if config is None:
        if overrides:
            raise typer.BadParameter("goes with -c FILE", param_hint="--set")
        return Storage.at(StorageSettings().root)
    return Storage.at(load_settings(config, overrides or ()).settings.storage.root)
