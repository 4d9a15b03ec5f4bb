"""What commands print about runs, on stdout."""

from __future__ import annotations

import shlex
import shutil
import sys
from collections.abc import Iterable, Mapping
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from rich.console import Console
from rich.table import Table
from rich.text import Text

from fraud_ray.cli.settings import YAML_STYLE
from fraud_ray.decision.names import AT_THRESHOLD, in_order, metric_name
from fraud_ray.progress import counted
from fraud_ray.runs import Outcome, RunRecord

if TYPE_CHECKING:
    from fraud_ray.data.drift import ColumnDrift, Drift, Measure
    from fraud_ray.scoring import ScoringResult

_WIDTH_OF_A_PIPE = 160


def print_outcome(outcome: Outcome) -> None:
    """A run's figures, its gate's checks, what was registered, and where it lies."""
    console = new_console()
    if outcome.evaluation:
        console.print(_metrics_table(outcome.evaluation))
    if outcome.gate:
        console.print(gate_table(outcome.gate))
    if outcome.comparison:
        console.print(outcome.comparison["message"], soft_wrap=True, highlight=False, markup=False)
    for remark in outcome.plan:
        console.print(f"plan: {remark}", soft_wrap=True, highlight=False, markup=False)
    if outcome.hyperparameters:
        chosen = ", ".join(f"{name} {value}" for name, value in outcome.hyperparameters.items())
        console.print(f"hyperparameters: {chosen}", soft_wrap=True, highlight=False, markup=False)
    console.print(_verdict(outcome), soft_wrap=True)
    if outcome.status == "stopped after simulate":  # before there is a run
        console.print(f"data at {outcome.folder}", soft_wrap=True, highlight=False, markup=False)
        return
    took = timedelta(seconds=round(sum(outcome.timings.values())))
    console.print(f"run {outcome.name}, {took}, at {outcome.folder}", soft_wrap=True, highlight=False, markup=False)
    if outcome.report:
        console.print(f"report at {outcome.report}", soft_wrap=True, highlight=False, markup=False)


def print_next(commands: Iterable[tuple[str, list[str]]]) -> None:
    """Commands worth typing now, each with its purpose, as they have to be typed here."""
    print("\nNext:")
    for purpose, words in commands:
        print(f"  {shlex.join([_program(), *words])}  # {purpose}")


def _program() -> str:
    """`fraud-ray` where the PATH leads to that of this Python, else its path; a relative one from a folder above it."""
    script = Path(sys.executable).with_name("fraud-ray")
    on_path = shutil.which("fraud-ray")
    if not script.exists() or (on_path and script.samefile(on_path)):
        return "fraud-ray"
    return str(script.relative_to(Path.cwd()) if script.is_relative_to(Path.cwd()) else script)


def print_runs(runs: list[RunRecord], where: str) -> None:
    """All runs, a line each."""
    console = new_console()
    if not runs:
        console.print(f"no runs yet at {where}", soft_wrap=True, highlight=False)
        return
    table = new_table("Run", "State", "Created (UTC)", "ROC AUC", "AP", "F1", "Version", right={"ROC AUC", "AP", "F1"})
    for run in runs:
        figures = (_number(run.metrics.get(name)) for name in ("auc_roc", "average_precision", "f1_score"))
        version = run.outcome.version if run.outcome else None
        table.add_row(
            run.name,
            _state(run.state),
            run.created[:19].replace("T", " "),
            *figures,
            _version(version) if version else "",
        )
    console.print(table)


def print_run(run: RunRecord) -> None:
    """One run: its origin, settings, concluded stages and outcome."""
    console, record = new_console(), run.record
    facts = {
        "run": run.name,
        "state": f"{run.state}{f', held by {run.holder}' if run.holder else ''}",
        "started": f"{run.created} by {record['user']} on {record['host']}",
        "command": record["command"],
        "code": code_line(record),
        "data": record["fingerprint"],
        "stages": ", ".join(run.stages) or "none concluded",
        "folder": run.folder,
    }
    print_facts(console, facts)
    print_settings(console, record["settings"])
    if run.outcome:
        print_outcome(run.outcome)


def print_drift(drift: Drift, picture: str) -> None:
    """All columns, the worst first, with what the reference has, and where the picture lies."""
    console = new_console()
    bounds = {measure.name: measure.bound for column in drift.columns for measure in column.measures}
    effects = ["\n".join([*name.split(), f"≤ {bound:g}"]) for name, bound in bounds.items()]
    title = f"{drift.rows[1]:,} rows against {drift.reference} ({drift.rows[0]:,} rows)"
    table = new_table("Column", *effects, "p-value", "Mean or rate", "Missing", right=effects, title=title)
    for column in drift.columns:
        found = {measure.name: measure for measure in column.measures}
        table.add_row(
            Text(column.name, "bold red" if column.has_drifted else ""),
            *(_effect(found.get(name)) for name in bounds),
            _p_value(column),
            "" if column.means is None else f"{column.means[0]:.4g} → {column.means[1]:.4g}",
            "" if column.missing is None else f"{column.missing[0]:.2%} → {column.missing[1]:.2%}",
        )
    console.print(table)
    for column in drift.columns:
        if column.new:
            shown = ", ".join(f"{value} {share:.2%}" for value, share in column.new.items())
            console.print(f"{column.name}: new categories {shown}", soft_wrap=True, highlight=False, markup=False)
    for name, reason in drift.not_compared.items():
        console.print(f"{name} was not compared: {reason}", soft_wrap=True, highlight=False, markup=False)
    console.print(f"the worst columns as a picture: {picture}", soft_wrap=True, highlight=False, markup=False)
    names = ", ".join(column.name for column in drift.drifted)
    console.print(Text(f"drifted: {names}", "bold red") if names else Text("no drift", "bold green"), soft_wrap=True)


def print_facts(console: Console, facts: Mapping[str, str]) -> None:
    """A line a fact, its name before it."""
    width = max(map(len, facts), default=0)
    for name, value in facts.items():
        console.print(Text.assemble((f"{name:<{width}} ", "dim"), value), soft_wrap=True)


def print_settings(console: Console, settings: Mapping[str, Any]) -> None:
    """Settings as YAML, indented."""
    console.print("settings", style="dim")
    lines = yaml.safe_dump(dict(settings), **YAML_STYLE).splitlines()
    console.print("".join(f"  {line}\n" for line in lines), highlight=False, markup=False, end="")


def code_line(origin: Mapping[str, Any]) -> str:
    """The code and the packages that something was made with."""
    git = origin["git"]
    code = f"commit {git['commit'][:12]}{', with changes' if git['dirty'] else ''}" if git else "no git checkout"
    return f"{code}; " + ", ".join(f"{name} {version}" for name, version in origin["versions"].items())


def print_comparison(one: RunRecord, other: RunRecord, changed: Mapping[str, tuple[str, str]]) -> None:
    """Settings that differ, then metrics side by side."""
    console = new_console()
    if changed:
        table = new_table("Setting", one.name, other.name)
        for key, (left, right) in changed.items():
            table.add_row(key, left, right)
        console.print(table)
    else:
        console.print("the settings and the data are the same")
    names = in_order([*one.metrics, *(name for name in other.metrics if name not in one.metrics)])
    if not names:
        console.print("neither run has figures yet")
        return
    table = new_table("Metric", one.name, other.name, "Difference", right={one.name, other.name, "Difference"})
    for name in names:
        old, new = one.metrics.get(name), other.metrics.get(name)
        difference = "" if old is None or new is None else f"{new - old:+.4f}"
        table.add_row(metric_name(name), _number(old), _number(new), difference)
    console.print(table)


def print_scored(scored: ScoringResult) -> None:
    """What was scored, by which model, and where it lies."""
    console = new_console()
    table = new_table(
        "Rows", "Alerts", "Rate", "Threshold", "Rows/s", "Model", right=("Rows", "Alerts", "Rate", "Rows/s")
    )
    table.add_row(
        f"{scored.rows:,}",
        f"{scored.alerts:,}",
        f"{scored.alert_rate:.3%}",
        f"{scored.threshold:.4f}",
        f"{scored.rows_per_second:,.0f}",
        scored.model,
    )
    console.print(table)
    kept = f", {scored.kept:,} of them kept from before" if scored.kept else ""
    there = f"{counted(scored.partitions, 'partition')}{kept}, at {scored.output}"
    console.print(there, soft_wrap=True, highlight=False)
    if scored.state:
        before = f"counted before: {counted(scored.counted, 'partition')}; " if scored.counted else ""
        console.print(f"{before}window state {scored.state}", soft_wrap=True, highlight=False)
    if scored.foreign:
        foreign = counted(scored.foreign, "parquet file")
        console.print(f"beside them: {foreign} that the input does not have", style="yellow")


def _metrics_table(evaluation: Mapping[str, Any]) -> Table:
    title = f"{counted(evaluation['rows'], 'holdout row')}, {counted(evaluation['frauds'], 'fraud')}"
    best = evaluation.get("best_possible") or {}
    columns = ["Metric", "Value", "Interval", *(["Best possible"] if best else [])]
    table = new_table(*columns, right={"Value", "Best possible"}, title=title)
    metrics, intervals = evaluation["metrics"], evaluation.get("intervals") or {}
    for name in in_order(metrics):
        at = f" at threshold {evaluation['threshold']:.4f}" if name in AT_THRESHOLD else ""
        interval = f"{intervals[name][0]:.4f} … {intervals[name][1]:.4f}" if name in intervals else ""
        limit = [_number(best.get(name))] if best else []
        table.add_row(metric_name(name) + at, _number(metrics[name]), interval, *limit)
    return table


def _p_value(column: ColumnDrift) -> str:
    if column.p_value is None:
        return ""
    return f"{column.test} {column.p_value:.2g}" if column.p_value else f"{column.test} < 1e-300"


def _effect(measure: Measure | None) -> Text:
    if measure is None:
        return Text("")
    return Text(_number(measure.value), "bold red" if measure.is_exceeded else "")


def gate_table(gate: Mapping[str, Any]) -> Table:
    has_notes = any(check["note"] for check in gate["checks"])
    table = new_table("Gate check", "Value", "Bound", "Result", *(["Note"] if has_notes else []), right={"Value"})
    for check in gate["checks"]:
        bound = "" if check["bound"] is None else f"{check['comparison']} {_number(check['bound'])}"
        passed = Text("passed", "green") if check["passed"] else Text("failed", "bold red")
        note = [check["note"]] if has_notes else []
        table.add_row(check["name"], _number(check["value"]), bound, passed, *note)
    return table


def _verdict(outcome: Outcome) -> Text:
    if outcome.status == "registered" and outcome.version:
        return Text.assemble(("registered ", "bold green"), _version(outcome.version))
    if outcome.status == "rejected":
        return Text.assemble(("rejected", "bold red"), " by the gate; nothing was registered")
    return Text(outcome.status, "bold")


def _version(version: Mapping[str, Any]) -> str:
    alias = f", {version['alias']}" if version.get("alias") else ""
    return f"{version['name']} version {version['version']}{alias}"


def _state(state: str) -> Text:
    colours = {"registered": "green", "rejected": "red", "running": "cyan"}
    return Text(state, colours.get(state, "yellow"))


def _number(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:,.0f}" if abs(value) >= 1_000 else f"{value:.4f}"  # amounts of money are large


def new_table(*columns: str, right: Iterable[str] = (), title: str | None = None) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", header_style="bold")
    for column in columns:
        table.add_column(column, justify="right" if column in right else "left", overflow="fold")
    return table


def new_console() -> Console:
    console = Console()
    return console if console.is_terminal else Console(width=_WIDTH_OF_A_PIPE)
