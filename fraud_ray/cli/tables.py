"""How commands print, on stdout: tables, lines, facts, settings, JSON, and what to type next; never a password."""

from __future__ import annotations

import json
import shlex
import shutil
import sys
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console
from rich.table import Table
from rich.text import Text

from fraud_ray.redaction import redacted, starred, without_passwords

YAML_STYLE: dict[str, Any] = {"sort_keys": False, "default_flow_style": None, "width": 110, "allow_unicode": True}
_WIDTH_OF_A_PIPE = 160


def print_json(value: Any) -> None:
    """The whole answer of a command that was asked for JSON."""
    print(json.dumps(starred(value), indent=1), flush=True)


def print_line(text: str | Text, style: str = "") -> None:
    """A line, which the terminal may wrap, but nothing else changes."""
    _console().print(_shown(text), style=style, soft_wrap=True, highlight=False, markup=False)


def print_notes(notes: Iterable[str]) -> None:
    """What was left out, of the data or of what was asked for: a line a note."""
    for note in notes:
        print_line(note, "yellow")


def print_table(
    columns: Sequence[str],
    rows: Iterable[Sequence[str | Text]],
    right: Collection[str] = (),
    title: str | None = None,
    empty: str | None = None,
) -> None:
    """A table of text as it is, which rich would otherwise read as markup.

    right: the columns that are aligned right; empty: what is said instead where there are no rows.
    """
    told = None if title is None else Text(title, "bold")
    table = Table(title=told, title_justify="left", header_style="bold")
    for column in columns:
        table.add_column(Text(column), justify="right" if column in right else "left", overflow="fold")
    for row in rows:
        table.add_row(*map(_shown, row))
    if empty is not None and not table.rows:
        print_line(empty)
    else:
        _console().print(table)


def print_facts(facts: Mapping[str, str]) -> None:
    """A line a fact, its name before it."""
    width = max(map(len, facts), default=0)
    for name, value in facts.items():
        print_line(Text.assemble((f"{name:<{width}} ", "dim"), value))


def print_settings(settings: Mapping[str, Any], title: str = "settings") -> None:
    """Settings as YAML, indented, below a title."""
    print_line(title, "dim")
    for line in as_yaml(settings).splitlines():
        print_line(f"  {line}")


def as_yaml(values: Mapping[str, Any]) -> str:
    """Values as YAML, as they are printed."""
    return yaml.safe_dump(starred(values, without_passwords), **YAML_STYLE).rstrip()


def print_next(commands: Iterable[tuple[str, list[str]]]) -> None:
    """Commands worth typing now, each with its purpose, as they have to be typed here."""
    print("\nNext:")
    for purpose, words in commands:
        print(f"  {command_line(words)}  # {purpose}")


def command_line(words: Iterable[str]) -> str:
    """A command of this program, as it has to be typed here."""
    return shlex.join([_program(), *map(without_passwords, words)])


def number(value: float | None) -> str:
    """A figure; empty for one that is not known."""
    if value is None:
        return ""
    return f"{value:,.0f}" if abs(value) >= 1_000 else f"{value:.4f}"  # amounts of money are large


def moment(iso: str) -> str:
    """A time in ISO 8601 to the second, without its zone."""
    return iso[:19].replace("T", " ")


def _program() -> str:
    """`fraud-ray` where the PATH leads to that of this Python, else its path; a relative one from a folder above it."""
    script = Path(sys.executable).with_name("fraud-ray")
    on_path = shutil.which("fraud-ray")
    if not script.exists() or (on_path and script.samefile(on_path)):
        return "fraud-ray"
    return str(script.relative_to(Path.cwd()) if script.is_relative_to(Path.cwd()) else script)


def _shown(text: str | Text) -> Text:
    plain = str(text)
    shown = redacted(plain)
    return text if isinstance(text, Text) and shown == plain else Text(shown)


def _console() -> Console:
    console = Console()
    return console if console.is_terminal else Console(width=_WIDTH_OF_A_PIPE)
