"""`fraud-ray init`: a first configuration for one's own data."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import typer

from fraud_ray.cli.tables import print_line, print_next, print_notes, print_table
from fraud_ray.errors import SettingsError


def init(
    path: Annotated[str, typer.Argument(metavar="PATH", help="Folder, file or URI of the data: parquet or CSV.")],
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Configuration to write; by default named after the data, here.")
    ] = None,
    label: Annotated[
        str | None, typer.Option(metavar="COLUMN", help="The column that says whether a row is fraud, if not guessed.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Write over a file that is there.")] = False,
) -> None:
    """Write a commented configuration for data of one's own: kinds of columns, folds of all days, bounds of the gate.

    Looks at every row, without starting Ray: what it writes of missing values, bounds and values holds for all of them.
    Each line has the reason beside it. `fraud-ray run -c FILE` takes the file as it is.
    """
    from fraud_ray.cli.display import Display
    from fraud_ray.data.output import refuse_to_write_into
    from fraud_ray.data.source import absolute
    from fraud_ray.intake.draft import draft

    root = absolute(path)
    name = _name_of(root)
    file = (out or Path(f"{name}.yaml")).expanduser().absolute()
    if file.exists() and not force:
        raise SettingsError(f"{file} is there already; name another with --out, or write over it with --force")
    refuse_to_write_into("data", root, str(file), written="the file")
    if not file.parent.is_dir():
        raise SettingsError(f"{file.parent} is no folder; make it, or name another with --out")
    with Display().stage("init") as stage:
        drafted = draft(path, name, str(file.parent / ".fraud_ray"), label, stage.update)
        stage.say(drafted.told)
    file.write_text(drafted.text, encoding="utf-8")
    rows = [(guess.name, guess.kind or "left out", guess.why) for guess in drafted.guesses]
    print_table(("column", "kind", "why"), rows)
    print_notes(drafted.notes)
    print_line(f"wrote {file}")
    print_next([("the whole pipeline", ["run", "-c", str(out or file.name)])])


def _name_of(root: str) -> str:
    """A name after the data, as MLflow and files take it."""
    last = re.sub(
        r"(\.(parquet|parq|pq|csv|gz|tsv|txt))+$", "", root.rstrip("/").rpartition("/")[2], flags=re.IGNORECASE
    )
    return re.sub(r"[^\w.-]+", "-", last).strip("-.") or "data"
