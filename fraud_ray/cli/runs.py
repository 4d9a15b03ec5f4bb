"""`fraud-ray runs`: what runs there are, one of them, and two of them side by side."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated

import typer
from rich.text import Text

from fraud_ray.cli.options import AsJson, ConfigOrDefaults, Overrides, storage_of
from fraud_ray.cli.outcomes import code_in_words, print_outcome, version_in_words
from fraud_ray.cli.tables import moment, number, print_facts, print_json, print_settings, print_table
from fraud_ray.decision.names import in_order, metric_name

if TYPE_CHECKING:
    from fraud_ray.runs import RunRecord

app = typer.Typer(no_args_is_help=True, help="List, show and compare runs.")

Name = Annotated[str, typer.Argument(metavar="NAME", help="A run's name, as `runs list` shows it.")]
_COLOURS = {"registered": "green", "rejected": "red", "running": "cyan"}


@app.command(name="list")
def list_all(config: ConfigOrDefaults = None, overrides: Overrides = None, as_json: AsJson = False) -> None:
    """List all runs, oldest first."""
    from fraud_ray.runs import list_runs

    storage = storage_of(config, overrides)
    found = list_runs(storage)
    if as_json:
        print_json([{"name": r.name, "state": r.state, "created": r.created, "folder": r.folder} for r in found])
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


@app.command()
def show(name: Name, config: ConfigOrDefaults = None, overrides: Overrides = None, as_json: AsJson = False) -> None:
    """Show a run: who started it, with which code and settings, how far it got, and its figures."""
    from fraud_ray.runs import read_run

    found = read_run(storage_of(config, overrides), name)
    if as_json:
        print_json(dataclasses.asdict(found))
    else:
        _print_run(found)


@app.command()
def compare(
    first: Annotated[str, typer.Argument(metavar="A", help="A run's name.")],
    second: Annotated[str, typer.Argument(metavar="B", help="Another one's.")],
    config: ConfigOrDefaults = None,
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Compare two runs: the settings that differ, and their metrics side by side."""
    from fraud_ray.runs import differences, read_run

    storage = storage_of(config, overrides)
    one, other = read_run(storage, first), read_run(storage, second)
    changed = differences(one.identity, other.identity)
    if as_json:
        print_json({"settings": changed, "metrics": {run.name: run.metrics for run in (one, other)}})
    else:
        _print_comparison(one, other, changed)


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
    print_settings(record["settings"])
    if run.outcome:
        print_outcome(run.outcome)


def _print_comparison(one: RunRecord, other: RunRecord, changed: Mapping[str, tuple[str, str]]) -> None:
    same = "the settings and the data are the same"
    print_table(["Setting", one.name, other.name], ([key, *pair] for key, pair in changed.items()), empty=same)
    rows = []
    for name in in_order({**one.metrics, **other.metrics}):
        old, new = one.metrics.get(name), other.metrics.get(name)
        difference = "" if old is None or new is None else f"{new - old:+.4f}"
        rows.append([metric_name(name), number(old), number(new), difference])
    columns = ["Metric", one.name, other.name, "Difference"]
    print_table(columns, rows, right=columns[1:], empty="neither run has figures yet")
