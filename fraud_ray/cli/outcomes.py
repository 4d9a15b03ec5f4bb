"""What commands print about a run's outcome: figures, the gate's checks, what was registered."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from rich.text import Text

from fraud_ray.cli.tables import number, print_line, print_table
from fraud_ray.decision.names import AT_THRESHOLD, beside_published, in_order, metric_name, rate
from fraud_ray.progress import counted

if TYPE_CHECKING:
    from fraud_ray.runs import Outcome


def print_outcome(outcome: Outcome) -> None:
    """A run's figures, its gate's checks, what was registered, and where it lies."""
    if outcome.evaluation:
        _print_metrics(outcome.evaluation)
    if outcome.rival:
        print_line(outcome.rival)
    if outcome.gate:
        print_gate(outcome.gate["checks"])
    if outcome.rejection:
        _print_thresholds(outcome.rejection)
    if outcome.comparison:
        print_line(outcome.comparison["message"])
    for remark in outcome.plan:
        print_line(f"plan: {remark}")
    if outcome.hyperparameters:
        print_line(
            "hyperparameters: " + ", ".join(f"{name} {value}" for name, value in outcome.hyperparameters.items())
        )
    print_line(_verdict(outcome))
    for advice in outcome.rejection["advice"] if outcome.rejection else ():
        print_line(f"- {advice}")
    if outcome.status == "stopped after simulate":  # before there is a run
        print_line(f"data at {outcome.folder}")
        return
    took, earlier = (timedelta(seconds=round(spent)) for spent in (outcome.seconds, outcome.earlier_seconds))
    print_line(
        f"run {outcome.name}, {took}{f' and {earlier} in earlier starts' if earlier else ''}, at {outcome.folder}"
    )
    if outcome.report:
        print_line(f"report at {outcome.report}")


def print_gate(checks: Iterable[Mapping[str, Any]]) -> None:
    """The gate's checks, a line each."""
    checks = list(checks)
    has_notes = any(check["note"] for check in checks)
    rows = []
    for check in checks:
        bound = "" if check["bound"] is None else f"{check['comparison']} {number(check['bound'])}"
        passed = Text("passed", "green") if check["passed"] else Text("failed", "bold red")
        note = [check["note"]] if has_notes else []
        rows.append([check["name"], number(check["value"]), bound, passed, *note])
    print_table(["Gate check", "Value", "Bound", "Result", *(["Note"] if has_notes else [])], rows, right={"Value"})


def version_in_words(version: Mapping[str, Any]) -> str:
    alias = f", {version['alias']}" if version.get("alias") else ""
    return f"{version['name']} version {version['version']}{alias}"


def code_in_words(origin: Mapping[str, Any]) -> str:
    """The code and the packages that something was made with."""
    git = origin["git"]
    code = f"commit {git['commit'][:12]}{', with changes' if git['dirty'] else ''}" if git else "no git checkout"
    return f"{code}; " + ", ".join(f"{name} {version}" for name, version in origin["versions"].items())


def _print_metrics(evaluation: Mapping[str, Any]) -> None:
    best, intervals = evaluation.get("best_possible") or {}, evaluation.get("intervals") or {}
    rows = []
    for name in in_order(evaluation["metrics"]):
        at = f" at threshold {evaluation['threshold']:.4f}" if name in AT_THRESHOLD else ""
        interval = f"{intervals[name][0]:.4f} … {intervals[name][1]:.4f}" if name in intervals else ""
        limit = [number(best.get(name))] if best else []
        rows.append([metric_name(name) + at, number(evaluation["metrics"][name]), interval, *limit])
    print_table(
        ["Metric", "Value", "Interval", *(["Best possible"] if best else [])],
        rows,
        right={"Value", "Best possible"},
        title=f"{counted(evaluation['rows'], 'holdout row')}, {counted(evaluation['frauds'], 'fraud')}",
    )
    names, lines = beside_published(evaluation["metrics"], evaluation.get("published") or ())
    if lines:
        titles = [metric_name(name) for name in names]
        rows = [[whose, *map(number, values), source] for whose, values, source in lines]
        print_table(["Beside others", *titles, "Source"], rows, right=titles)


def _print_thresholds(rejection: Mapping[str, Any]) -> None:
    figures = ("threshold", "precision", "recall", "f1")
    rows = [
        [*(f"{one[name]:.4f}" for name in figures), rate(one["alerts"]), one["note"]] for one in rejection["thresholds"]
    ]
    columns = ["Threshold", "Precision", "Recall", "F1", f"Alerts {rejection['alerts']}", ""]
    print_table(columns, rows, right=columns, title="What thresholds do on the final holdout")


def _verdict(outcome: Outcome) -> Text:
    if outcome.status == "registered" and outcome.version:
        return Text.assemble(("registered ", "bold green"), version_in_words(outcome.version))
    if outcome.status == "rejected":
        return Text.assemble(("rejected", "bold red"), " by the gate; nothing was registered")
    return Text(outcome.status, "bold")
