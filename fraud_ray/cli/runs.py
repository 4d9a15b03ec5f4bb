"""`fraud-ray runs`: what runs there are, one of them, and two of them side by side."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text

from fraud_ray.cli.display import Display
from fraud_ray.cli.elsewhere import Bringing, Elsewhere
from fraud_ray.cli.options import (
    RUN_WANTED,
    AsJson,
    ConfigOrDefaults,
    Overrides,
    registry_of,
    sections_of,
    storage_of,
)
from fraud_ray.cli.outcomes import code_in_words, print_outcome, version_in_words
from fraud_ray.cli.tables import moment, number, print_facts, print_json, print_line, print_settings, print_table
from fraud_ray.decision.names import in_order, metric_name
from fraud_ray.progress import counted

if TYPE_CHECKING:
    from fraud_ray.runs import RunRecord

app = typer.Typer(no_args_is_help=True, help="List, show and compare runs.")

Name = Annotated[str, typer.Argument(metavar="NAME", help=RUN_WANTED)]
_COLOURS = {"registered": "green", "rejected": "red", "damaged": "red", "running": "cyan"}


@app.command(name="list", cls=Elsewhere)
def list_all(config: ConfigOrDefaults = None, overrides: Overrides = None, as_json: AsJson = False) -> None:
    """List all runs, oldest first."""
    from fraud_ray.runs import list_runs

    storage = storage_of(config, overrides)
    found = list_runs(storage, Display().note)
    if as_json:
        print_json([_summary(run) for run in found])
        return
    figures = {"auc_roc": "ROC AUC", "average_precision": "AP", "f1_score": "F1"}
    print_table(
        ["Run", "State", "Created (UTC)", *figures.values(), "Version"],
        (
            [
                run.name,
                Text(run.state, _COLOURS.get(run.state, "yellow")),
                moment(run.created),
                *(number(run.metrics.get(name)) for name in figures),
                version_in_words(run.outcome.version) if run.outcome and run.outcome.version else "",
            ]
            for run in found
        ),
        right=figures.values(),
        empty=f"no runs yet at {storage.path('runs')}",
    )


@app.command(cls=Elsewhere)
def logs(
    name: Name,
    config: ConfigOrDefaults = None,
    overrides: Overrides = None,
    attempt: Annotated[
        int | None, typer.Option("--attempt", metavar="N", help="Which start of the run; without it, the newest.")
    ] = None,
) -> None:
    """Print what a run as a job has printed: its storage keeps it, start by start, when its pods are gone."""
    from fraud_ray.runs import find_runs, logs_of, read_log

    storage = storage_of(config, overrides)
    # A start that failed before its run began has a log, and left no run.
    run = name if logs_of(storage, name) else find_runs(storage, name, say=Display().note)[0].name
    print(read_log(storage, run, attempt), end="", flush=True)


@app.command(cls=Elsewhere)
def show(name: Name, config: ConfigOrDefaults = None, overrides: Overrides = None, as_json: AsJson = False) -> None:
    """Show a run: who started it, with which code and settings, how far it got, and its figures."""
    from fraud_ray.runs import find_runs

    [found] = find_runs(storage_of(config, overrides), name, say=Display().note)
    if as_json:
        print_json({**dataclasses.asdict(found), "changed": found.changed})
    else:
        _print_run(found)


@app.command(cls=Bringing)
def report(
    name: Name,
    output: Annotated[
        str, typer.Option("-o", "--output", metavar="FILE", help="Where to write it; -: print it.", show_default=False)
    ],
    config: ConfigOrDefaults = None,
    overrides: Overrides = None,
) -> None:
    """Write a run's page, as its storage has it; where that is not at hand, as MLflow has it."""
    from fraud_ray.runs import read_report
    from fraud_ray.storage import Storage

    storage = Storage.at(sections_of(config, overrides)[0].root)
    page = read_report(storage, name) if storage.is_there else registry_of(config, overrides)[1].report_of(name)
    if output == "-":
        sys.stdout.write(page)
    else:
        Path(output).write_text(page, encoding="utf-8")
        print_line(f"the report is in {output}")


@app.command(cls=Elsewhere)
def compare(
    first: Annotated[str, typer.Argument(metavar="A", help=RUN_WANTED)],
    second: Annotated[str, typer.Argument(metavar="B", help="Another one's.")],
    config: ConfigOrDefaults = None,
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Compare two runs: the settings that differ, and their metrics side by side, with intervals."""
    from fraud_ray.runs import differences, find_runs

    runs = one, other = find_runs(storage_of(config, overrides), first, second, say=Display().note)
    changed = differences(one.identity, other.identity)
    warning = _holdouts_differ(one, other, changed)
    if as_json:
        figures = {key: {run.name: run.evaluation.get(key) or {} for run in runs} for key in ("metrics", "intervals")}
        print_json({"settings": changed, **figures, "warning": warning})
    else:
        _print_comparison(one, other, changed)
        if warning:
            print_line(warning, "yellow")


def _print_run(run: RunRecord) -> None:
    record = run.record
    print_facts(
        {
            "run": run.name,
            "state": f"{run.state}{f', held by {run.holder}' if run.holder else ''}",
            "started": f"{run.created} by {record['user']} on {record['host']}",
            "command": record["command"],
            "code": code_in_words(record),
            "data": record["fingerprint"],
            "stages": ", ".join(run.stages) or "none concluded",
            "folder": run.folder,
        }
    )
    print_settings(run.changed, "settings, where they differ from the defaults (--json has all)")
    if run.outcome:
        print_outcome(run.outcome)


def _print_comparison(one: RunRecord, other: RunRecord, changed: Mapping[str, tuple[str, str]]) -> None:
    same = "the settings and the data are the same"
    print_table(["Setting", one.name, other.name], ([key, *pair] for key, pair in changed.items()), empty=same)
    rows = []
    for name in in_order({**one.metrics, **other.metrics}):
        old, new = one.metrics.get(name), other.metrics.get(name)
        difference = "" if old is None or new is None else f"{new - old:+.4f}"
        rows.append([metric_name(name), *(_figure(run, name) for run in (one, other)), difference])
    columns = ["Metric", one.name, other.name, "Difference"]
    print_table(columns, rows, right=columns[1:], empty="neither run has figures yet")


def _figure(run: RunRecord, metric: str) -> str:
    """A metric with its interval."""
    low, high = (run.evaluation.get("intervals") or {}).get(metric, (None, None))
    shown = number(run.metrics.get(metric))
    return shown if low is None else f"{shown} ({number(low)} … {number(high)})"


def _holdouts_differ(one: RunRecord, other: RunRecord, changed: Mapping[str, tuple[str, str]]) -> str | None:
    """A warning where two runs' figures are, or may be, of different rows."""
    if not (one.evaluation and other.evaluation):
        return None
    of = (one.evaluation, other.evaluation)
    held = [f"{counted(e['rows'], 'row')} with {counted(e['frauds'], 'fraud')}" for e in of]
    if held[0] != held[1]:
        return f"the holdouts differ, so the figures cannot be compared: {held[0]}, and {held[1]}"
    from fraud_ray.runs import FINGERPRINT

    causes = [key for key in changed if key == FINGERPRINT or key.startswith("folds.")]
    return f"the holdouts may differ, as these do: {', '.join(causes)}" if causes else None


def _summary(run: RunRecord) -> dict[str, Any]:
    version = run.outcome.version if run.outcome else None
    told = {"name": run.name, "state": run.state, "created": run.created, "folder": run.folder}
    return {**told, "metrics": run.metrics, "version": version}
