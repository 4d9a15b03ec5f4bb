"""`fraud-ray settings`: what a configuration comes to, and the reference of all settings."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Annotated

import typer

from fraud_ray.cli.options import AsJson, Overrides
from fraud_ray.cli.tables import as_yaml, print_json
from fraud_ray.redaction import redacted


def show(
    config: Annotated[
        Path | None, typer.Option("-c", "--config", metavar="FILE", help="Configuration, such as configs/local.yaml.")
    ] = None,
    overrides: Overrides = None,
    as_json: AsJson = False,
    schema: Annotated[
        bool, typer.Option("--schema", help="Print the reference of all settings as a Markdown table.")
    ] = False,
) -> None:
    """Print a configuration with every default filled in, or the reference of all settings."""
    from fraud_ray.settings import load_settings, reference

    if schema:
        if as_json:
            print_json([dataclasses.asdict(entry) for entry in reference()])
        else:
            sys.stdout.write(reference_table())
        return
    if config is None:
        raise typer.BadParameter("is needed, unless --schema is given", param_hint="-c")
    loaded = load_settings(config, overrides or ())
    resolved = loaded.settings.resolved()
    for note in loaded.notes:
        print(redacted(note), file=sys.stderr)
    if as_json:
        print_json(resolved)
    else:
        print(as_yaml(resolved), flush=True)


def reference_table() -> str:
    """Every setting with its type, default and meaning, as a Markdown table."""
    from fraud_ray.settings import reference

    lines = ["| Setting | Type | Default | Meaning |", "| --- | --- | --- | --- |"]
    for entry in reference():
        default = entry.default if entry.default == "required" else f"`{entry.default}`"
        cells = (f"`{entry.key}`", entry.type, default, entry.meaning)
        lines.append("| " + " | ".join(cell.replace("|", r"\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"
