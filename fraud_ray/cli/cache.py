"""`fraud-ray cache`: the prepared data and window states that are kept, and what of them can go."""

from __future__ import annotations

from datetime import timedelta
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fraud_ray.cli.display import Display
from fraud_ray.cli.elsewhere import Elsewhere
from fraud_ray.cli.options import AsJson, ConfigOrDefaults, Overrides, storage_of
from fraud_ray.cli.tables import print_json, print_line, print_table
from fraud_ray.progress import counted

if TYPE_CHECKING:
    from fraud_ray.data.cache import Entry
    from fraud_ray.windows.kept import Kept

app = typer.Typer(no_args_is_help=True, help="List and prune the prepared data that runs share, and window states.")


@app.command(name="list", cls=Elsewhere)
def list_all(config: ConfigOrDefaults = None, overrides: Overrides = None, as_json: AsJson = False) -> None:
    """List what is kept, oldest first."""
    from fraud_ray.data.cache import in_words, list_entries
    from fraud_ray.windows.kept import list_kept

    storage = storage_of(config, overrides)
    found: list[Entry | Kept] = [*list_entries(storage), *list_kept(storage)]
    entries = sorted(found, key=lambda entry: entry.made)
    if as_json:
        print_json([_summary(entry) for entry in entries])
        return
    print_table(
        ["Kind", "Entry", "Made (UTC)", "Age", "Parts", "Size"],
        (
            [e.kind, e.key[:12], f"{e.made:%Y-%m-%d %H:%M:%S}", in_words(e.age), f"{len(e.parts):,}", _size(e.size)]
            for e in entries
        ),
        right={"Parts", "Size"},
        empty=f"nothing is kept at {storage.root}",
    )


@app.command(cls=Elsewhere)
def prune(
    days: Annotated[
        float, typer.Option("--older-than", min=0, metavar="DAYS", help="Age from which an entry goes; 0: all go.")
    ] = 7,
    config: ConfigOrDefaults = None,
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Remove old entries, and what broken-off and replaced ones left.

    Nothing goes that a run at work may read. Of windows, the states from which scoring may go on stay: the latest, and
    those of the models of runs that the gate did not reject; the partitions beside them, which are large, go. What a
    scoring at work computes is as young as the scoring, and needs an age above 0.
    """
    from fraud_ray.data import cache
    from fraud_ray.runs import runs_at_work
    from fraud_ray.windows import kept

    storage, age = storage_of(config, overrides), timedelta(days=days)
    at_work = lru_cache(partial(runs_at_work, say=Display().note))  # those on other machines are watched once
    pruned, of_windows = cache.prune(storage, age, at_work), kept.prune(storage, age, at_work)
    entries: list[Entry | Kept] = [*pruned.entries, *of_windows.entries]
    files = pruned.files + of_windows.files
    kept_for = sorted({*pruned.kept_for, *of_windows.kept_for})
    if as_json:
        print_json({"removed": [_summary(entry) for entry in entries], "files": files, "kept_for": kept_for})
        return
    freed = _size(sum(entry.size for entry in entries))
    print_line(f"removed {counted(len(entries), 'entry', 'entries')} with {freed}, {counted(files, 'file')} in all")
    if kept_for:
        print_line(f"left alone what these runs, now at work, may read: {', '.join(kept_for)}")


def _summary(entry: Entry | Kept) -> dict[str, Any]:
    made = entry.made.isoformat(timespec="seconds")
    return {"kind": entry.kind, "key": entry.key, "made": made, "parts": len(entry.parts), "bytes": entry.size}


def _size(count: int) -> str:
    from pydantic import ByteSize

    return ByteSize(count).human_readable()
