"""`fraud-ray models`: the versions of the registered model, their history, and which one is champion."""

from __future__ import annotations

import dataclasses
import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fraud_ray.cli.options import AsJson, ConfigOrDefaults, Overrides, registry_of

if TYPE_CHECKING:
    from fraud_ray.registry.history import VersionHistory
    from fraud_ray.registry.promotion import Move

app = typer.Typer(no_args_is_help=True, help="List, show, promote and roll back versions of the registered model.")


@app.command(name="list")
def list_all(config: ConfigOrDefaults = None, overrides: Overrides = None, as_json: AsJson = False) -> None:
    """List all versions, the newest first."""
    from fraud_ray.cli.records import print_versions
    from fraud_ray.registry.history import history

    storage, tracking = registry_of(config, overrides)
    histories = history(tracking, storage)
    if as_json:
        _print_json([_summary(one) for one in histories])
    else:
        print_versions(histories, tracking.registry.model_name)


@app.command()
def show(
    version: Annotated[str, typer.Argument(metavar="VERSION|@ALIAS", help="A number, or an alias such as @champion.")],
    config: ConfigOrDefaults = None,
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Show a version: its data, code, settings and checks, who made it, and who let it go live and when."""
    from fraud_ray.cli.records import print_version
    from fraud_ray.registry.history import find_version, history
    from fraud_ray.registry.versions import tags_of_version

    storage, tracking = registry_of(config, overrides)
    found = find_version(history(tracking, storage), version)
    tags = tags_of_version(tracking, found.version.version)
    if as_json:
        origin = found.origin.facts if found.origin else None
        moves = [record.facts for record in found.moves]
        _print_json({**_summary(found), "tags": tags, "origin": origin, "moves": moves})
    else:
        print_version(found, tags)


@app.command()
def promote(
    version: Annotated[
        int | None, typer.Argument(metavar="[VERSION]", help="Its number; by default the challenger's.")
    ] = None,
    config: ConfigOrDefaults = None,
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Make a version the champion, by default the challenger; `rollback` takes it back."""
    from fraud_ray.registry import promotion as lifecycle

    storage, tracking = registry_of(config, overrides)
    _print_move(lifecycle.promote(tracking, storage, version), as_json)


@app.command()
def rollback(config: ConfigOrDefaults = None, overrides: Overrides = None, as_json: AsJson = False) -> None:
    """Make the version champion again that was it before; repeated, the one before that."""
    from fraud_ray.registry import promotion as lifecycle

    storage, tracking = registry_of(config, overrides)
    _print_move(lifecycle.rollback(tracking, storage), as_json)


def _print_move(move: Move, as_json: bool) -> None:
    if as_json:
        _print_json(dataclasses.asdict(move))
        return
    champion = f"{move.model} version {move.version}"
    if move.record is None:
        typer.echo(f"{champion} is champion already")
        return
    instead = f", instead of version {move.replaced}" if move.replaced else ""
    cut_short = "; an earlier command had begun this and was cut short" if move.completed else ""
    typer.echo(f"{champion} is champion now{instead} (audit record {move.record}{cut_short})")


def _summary(one: VersionHistory) -> dict[str, Any]:
    return {**dataclasses.asdict(one.version), "uri": one.version.uri, "aliases": one.aliases}


def _print_json(value: Any) -> None:
    typer.echo(json.dumps(value, indent=1))
