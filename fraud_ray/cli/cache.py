"""`fraud-ray cache`: the prepared data that is kept, and what of it can go."""

from __future__ import annotations

import json
from datetime import timedelta
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fraud_ray.cli.options import AsJson, ConfigOrDefaults, Overrides, storage_of

if TYPE_CHECKING:
    from fraud_ray.data.cache import Entry

app = typer.Typer(no_args_is_help=True, help="List and prune the prepared data that runs share.")


@app.command(name="list")
def list_all(config: ConfigOrDefaults = None, overrides: Overrides = None, as_json: AsJson = False) -> None:
    """List what is kept, oldest first."""
    from fraud_ray.cli.tables import new_console, new_table
    from fraud_ray.data.cache import ROOT, in_words, list_entries

    storage = storage_of(config, overrides)
    entries = list_entries(storage)
    if as_json:
        typer.echo(json.dumps([_summary(entry) for entry in entries], indent=1))
        return
    console = new_console()
    if not entries:
        console.print(f"nothing is kept at {storage.path(ROOT)}", soft_wrap=True, highlight=False)
        return
    table = new_table("Entry", "Made (UTC)", "Age", "Folds", "Parts", "Size", right={"Folds", "Parts", "Size"})
    for entry in entries:
        made = f"{entry.made:%Y-%m-%d %H:%M:%S}"
        folds = str(len(entry.value["folds"]))
        table.add_row(entry.key[:12], made, in_words(entry.age), folds, f"{len(entry.parts):,}", _size(entry.size))
    console.print(table)


@app.command()
def prune(
    days: Annotated[
        float, typer.Option("--older-than", min=0, metavar="DAYS", help="Age from which an entry goes; 0: all go.")
    ] = 7,
    config: ConfigOrDefaults = None,
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Remove old entries, and what broken-off and replaced ones left; nothing that a run at work may read."""
    from fraud_ray.data import cache

    pruned = cache.prune(storage_of(config, overrides), timedelta(days=days))
    if as_json:
        removed = [_summary(entry) for entry in pruned.entries]
        typer.echo(json.dumps({"removed": removed, "files": pruned.files, "kept_for": pruned.kept_for}, indent=1))
        return
    freed = _size(sum(entry.size for entry in pruned.entries))
    typer.echo(f"removed {len(pruned.entries):,} entries with {freed}, {pruned.files:,} files in all")
    if pruned.kept_for:
        typer.echo(f"left alone what these runs, now at work, may read: {', '.join(pruned.kept_for)}")


def _summary(entry: Entry) -> dict[str, Any]:
    made = entry.made.isoformat(timespec="seconds")
    return {"key": entry.key, "made": made, "parts": len(entry.parts), "bytes": entry.size}


def _size(count: int) -> str:
    from pydantic import ByteSize

    return ByteSize(count).human_readable()
