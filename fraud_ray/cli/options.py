"""Options that several commands share."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fraud_ray.errors import SettingsError

if TYPE_CHECKING:
    from fraud_ray.registry.tracking import Tracking
    from fraud_ray.settings import ClusterSettings, Loaded, RegistrySettings, Settings, StorageSettings
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
Name = Annotated[
    str | None,
    typer.Option("--name", help="The run's name; may hold the data's date, as in 'fraud-{as_of:%Y-%m}'."),
]
RUN_WANTED = "A run's name, or how it begins; latest: the newest."
NoCache = Annotated[
    bool, typer.Option("--no-cache", help="Prepare the data anew; the same as --set cache.max_staleness=PT0S.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, and nothing else, on stdout.")]


def load(
    context: typer.Context,
    config: Path,
    overrides: list[str] | None,
    name: str | None = None,
    no_cache: bool = False,
) -> Loaded:
    """A configuration with what the options say.

    Raises SettingsError where a job would lose what it stores, and where that would lie in the data.
    """
    from fraud_ray.cluster import refuse_relative_folders
    from fraud_ray.data.output import refuse_to_keep_in
    from fraud_ray.settings import load_settings

    named = [f"run.name={json.dumps(name)}"] if name is not None else []
    fresh = ["cache.max_staleness=PT0S"] if no_cache else []
    loaded = load_settings(config, [*(overrides or ()), *named, *fresh])
    if context.obj:  # in a job
        try:
            refuse_relative_folders(loaded.settings)
        except SettingsError as fault:
            raise SettingsError(f"{fault}\nBy hand, outside of a job: fraud-ray {context.info_name}") from fault
    settings = loaded.settings
    refuse_to_keep_in("data", settings.data.path, settings.storage.root, settings.registry.uri)
    return loaded


def settings_of(config: Path, overrides: list[str] | None) -> Settings:
    """A configuration's settings."""
    from fraud_ray.settings import load_settings

    return load_settings(config, overrides or ()).settings


def storage_of(config: Path | None, overrides: list[str] | None) -> Storage:
    """Where the runs lie that a command is about; raises SettingsError where there is none yet."""
    from fraud_ray.storage import Storage

    return Storage.at(sections_of(config, overrides)[0].root).required()


def registry_of(config: Path | None, overrides: list[str] | None) -> tuple[Storage, Tracking]:
    """Where the runs lie, and the registry, that a command is about; raises SettingsError where there is none yet."""
    from fraud_ray.registry.tracking import connect_existing
    from fraud_ray.settings import locate_registry
    from fraud_ray.storage import Storage

    storage, registry, _ = sections_of(config, overrides)
    located = locate_registry(registry, storage, "the default settings")
    return Storage.at(storage.root), connect_existing(located)


def sections_of(
    config: Path | None, overrides: list[str] | None
) -> tuple[StorageSettings, RegistrySettings, ClusterSettings]:
    """What a configuration says of the places a command is about; without one, the defaults."""
    from fraud_ray.settings import ClusterSettings, RegistrySettings, StorageSettings

    if config is None:
        if overrides:
            raise typer.BadParameter("goes with -c FILE", param_hint="--set")
        return StorageSettings(), RegistrySettings(), ClusterSettings()
    settings = settings_of(config, overrides)
    return settings.storage, settings.registry, settings.cluster
