"""`fraud-ray audit`: the record of every run and every move in the registry, and whether it is whole."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer
from rich.text import Text

from fraud_ray.cli.elsewhere import Elsewhere
from fraud_ray.cli.options import AsJson, ConfigOrDefaults, Overrides, registry_of, storage_of
from fraud_ray.cli.tables import as_yaml, moment, print_json, print_line, print_table
from fraud_ray.errors import EXIT_FAULT

if TYPE_CHECKING:
    from fraud_ray.registry.audit import Record

app = typer.Typer(no_args_is_help=True, help="Show the audit record, and verify that nobody changed it.")


@app.command(cls=Elsewhere)
def show(
    number: Annotated[int | None, typer.Argument(metavar="[N]", help="A record's number; by default all.")] = None,
    config: ConfigOrDefaults = None,
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """List all records: who did what, when, with which command; or show one whole."""
    from fraud_ray.registry.audit import read, read_all

    storage = storage_of(config, overrides)
    if number is not None:
        record = read(storage, number)
        if as_json:
            print_json(dataclasses.asdict(record))
        else:
            print_line(as_yaml({"sha256": record.sha256, **record.facts}))
        return
    found = read_all(storage)
    if as_json:
        print_json([dataclasses.asdict(record) for record in found])
    else:
        print_records(found, f"no audit records yet at {storage.path('audit')}")


@app.command(cls=Elsewhere)
def verify(config: ConfigOrDefaults = None, overrides: Overrides = None, as_json: AsJson = False) -> None:
    """Look for records that were edited, removed or cut off at the end, moves past the record, and runs made twice.

    Ends with exit code 1 if there are any.
    """
    from fraud_ray.registry import anchors
    from fraud_ray.registry.audit import KEY, newest, signed, signing_key

    storage, tracking = registry_of(config, overrides)
    faults = anchors.verify(tracking, storage.required())
    if as_json:
        print_json([dataclasses.asdict(fault) for fault in faults])
    elif faults:
        for fault in faults:
            of = f"record {fault.number} " if fault.number else ""
            print_line(Text.assemble(of, (fault.what, "bold red"), f": {fault.reason}"))
    else:
        last = newest(storage)
        print_line(f"records 1 to {last.number} are as they were written" if last else "there are no records yet")
    if (number := signed(storage)) and not as_json:
        checked = "signed" if signing_key() else f"signed, which only the key tells (set {KEY})"
        print_line(f"{number} of them {checked}")
    raise typer.Exit(EXIT_FAULT if faults else 0)


def print_records(records: Sequence[Record], empty: str = "") -> None:
    """Audit records, a line each; empty: what is said where there are none."""
    rows = (
        [str(r.number), moment(r.facts.get("time", "")), _in_words(r), f"{r.facts['user']} on {r.facts['host']}"]
        for r in records
    )
    print_table(["Record", "Time (UTC)", "What", "By"], rows, right={"Record"}, empty=empty)


def _in_words(record: Record) -> str:
    """A record in a sentence."""
    replaced = record.facts.get("replaced")
    instead = f" instead of version {replaced}" if replaced else ""
    version = f"{record.model} version {record.version}"
    if record.event == "run":
        outcome = version if record.model else record.facts["reason"]
        return f"run {record.facts['run']} {record.facts['status']}: {outcome}"
    if record.event == "register":
        held = [alias for alias, holder in record.facts["aliases"].items() if holder == record.version]
        return f"{version} registered" + (f" as {', '.join(held)}" if held else "")
    reason = f": {record.facts['reason']}" if record.facts.get("reason") else ""
    return f"{version} {'promoted' if record.event == 'promote' else 'restored'} to champion{instead}{reason}"
