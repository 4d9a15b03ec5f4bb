"""`fraud-ray audit`: the record of every run and every move in the registry, and whether it is whole."""

from __future__ import annotations

import dataclasses
import json
from typing import Annotated

import typer

from fraud_ray.cli.options import AsJson, ConfigOrDefaults, Overrides, registry_of, storage_of
from fraud_ray.errors import EXIT_FAULT

app = typer.Typer(no_args_is_help=True, help="Show the audit record, and verify that nobody changed it.")


@app.command()
def show(
    number: Annotated[int | None, typer.Argument(metavar="[N]", help="A record's number; by default all.")] = None,
    config: ConfigOrDefaults = None,
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """List all records: who did what, when, with which command; or show one whole."""
    from fraud_ray.cli.records import print_record, print_records
    from fraud_ray.registry.audit import read, read_all

    storage = storage_of(config, overrides)
    found = read_all(storage) if number is None else read(storage, number)
    if as_json:
        shown = [dataclasses.asdict(r) for r in found] if isinstance(found, list) else dataclasses.asdict(found)
        typer.echo(json.dumps(shown, indent=1))
    elif isinstance(found, list):
        print_records(found, storage.path("audit"))
    else:
        print_record(found)


@app.command()
def verify(config: ConfigOrDefaults = None, overrides: Overrides = None, as_json: AsJson = False) -> None:
    """Look for records that were edited, removed or cut off at the end, and for moves past the record.

    Ends with exit code 1 if there are any.
    """
    from fraud_ray.cli.records import print_faults
    from fraud_ray.registry import anchors
    from fraud_ray.registry.audit import newest

    storage, tracking = registry_of(config, overrides)
    faults = anchors.verify(tracking, storage)
    if as_json:
        typer.echo(json.dumps([dataclasses.asdict(fault) for fault in faults], indent=1))
    elif faults:
        print_faults(faults)
    else:
        last = newest(storage)
        typer.echo(f"records 1 to {last.number} are as they were written" if last else "there are no records yet")
    raise typer.Exit(EXIT_FAULT if faults else 0)
