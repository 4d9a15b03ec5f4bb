"""What commands print about versions, audit records and reproductions, on stdout."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import yaml
from rich.table import Table
from rich.text import Text

from fraud_ray.cli.settings import YAML_STYLE
from fraud_ray.cli.tables import code_line, gate_table, new_console, new_table, print_facts, print_settings
from fraud_ray.progress import counted
from fraud_ray.registry.audit import Fault, Record

if TYPE_CHECKING:
    from fraud_ray.registry.history import VersionHistory
    from fraud_ray.reproduce import Reproduction


def print_versions(histories: Sequence[VersionHistory], model: str) -> None:
    """All versions, a line each."""
    console = new_console()
    if not histories:
        console.print(f"no version of {model} yet", soft_wrap=True, highlight=False)
        return
    right = {"Version", "AP", "F1"}
    table = new_table("Version", "Aliases", "Run", "Made (UTC)", "By", "AP", "F1", right=right, title=model)
    for one in histories:
        origin = one.origin.facts if one.origin else {}
        metrics = origin.get("metrics", {})
        table.add_row(
            str(one.version.version),
            ", ".join(one.aliases),
            one.version.run or "",
            _time(origin),
            origin.get("user", ""),
            *(f"{metrics[name]:.4f}" if name in metrics else "" for name in ("average_precision", "f1_score")),
        )
    console.print(table)


def print_version(one: VersionHistory, tags: Mapping[str, str]) -> None:
    """One version as an examiner asks: data, code, settings, checks, who made it, and who let it go live.

    tags: the registry's own of the version, which are all that is known where the audit record does not know its run.
    """
    console = new_console()
    aliases = f", {', '.join(one.aliases)}" if one.aliases else ""
    named = {"version": f"{one.version.name} version {one.version.version}{aliases}", "run": str(one.version.run)}
    if one.origin is None:
        unknown = "the audit record in this storage does not know its run; the registry's tags say:"
        print_facts(console, {**named, "origin": unknown, **tags})
    else:
        print_facts(console, {**named, **_origin(one.origin)})
        print_settings(console, one.origin.facts["settings"])
        console.print(gate_table({"checks": one.origin.facts["checks"]}))
    if one.moves:
        console.print(_records_table(one.moves))


def print_records(records: Sequence[Record], where: str) -> None:
    """All audit records, a line each."""
    console = new_console()
    if records:
        console.print(_records_table(records))
    else:
        console.print(f"no audit records yet at {where}", soft_wrap=True, highlight=False)


def print_record(record: Record) -> None:
    """One audit record whole."""
    shown = yaml.safe_dump({"sha256": record.sha256, **record.facts}, **YAML_STYLE).rstrip()
    new_console().print(shown, highlight=False, markup=False, soft_wrap=True)


def print_faults(faults: Iterable[Fault]) -> None:
    """A line a fault."""
    for fault in faults:
        line = Text.assemble(f"record {fault.number} ", (fault.what, "bold red"), f": {fault.reason}")
        new_console().print(line, soft_wrap=True)


def print_reproduction(reproduction: Reproduction) -> None:
    """What changed since the run, the weights and metrics that differ, and the verdict."""
    console = new_console()
    if reproduction.changed:
        table = new_table("Changed since", "Then", "Now")
        for key, (then, now) in reproduction.changed.items():
            table.add_row(key, then, now)
        console.print(table)
    differing = [tensor for tensor in reproduction.weights if not tensor.is_same]
    if differing:
        columns = ("Elements", "Differing", "Largest difference")
        table = new_table("Weights that differ", *columns, right=columns)
        for tensor in differing:
            shown = (
                ("all", "other shape")
                if tensor.differing is None
                else (f"{tensor.differing:,}", f"{tensor.largest:.3g}")
            )
            table.add_row(tensor.name, f"{tensor.elements:,}", *shown)
        console.print(table)
    moved = {key: pair for key, pair in reproduction.metrics.items() if pair[0] != pair[1]}
    if moved:
        columns = ("Then", "Now", "Difference")
        table = new_table("Metric", *columns, right=columns)
        for key, (before, after) in moved.items():
            table.add_row(key, f"{before:.6f}", f"{after:.6f}", f"{after - before:+.2g}")
        console.print(table)
    console.print(_verdict(reproduction, len(differing), len(moved)), soft_wrap=True)


def _verdict(reproduction: Reproduction, differing: int, moved: int) -> Text:
    of_metrics = f"{moved} of {len(reproduction.metrics)} metrics differ" if moved else "all metrics are equal"
    if reproduction.is_exact:
        elements = sum(tensor.elements for tensor in reproduction.weights)
        text = f": all {elements:,} weights are the same to the bit; {of_metrics}"
        return Text.assemble(("reproduced", "bold green"), f" {reproduction.run}{text}")
    text = f": {differing} of {len(reproduction.weights)} tensors differ; {of_metrics}"
    return Text.assemble(("not reproduced", "bold red"), f" {reproduction.run}{text}")


def _origin(record: Record) -> dict[str, str]:
    facts = record.facts
    started, data = facts["started"], facts["data"]
    rows = f"{counted(data['rows'], 'row')} in {counted(data['partitions'], 'partition')}"
    shown = {
        "made": f"{started['created']} by {started['user']} on {started['host']}",
        "command": started["command"],
        "code": code_line(started),
        "data": f"{data['path']}, {rows}; {data['fold']}",
        "data hash": data["fingerprint"],
        "seeds": ", ".join(f"{key} {seed}" for key, seed in facts["seeds"].items()),
        "bundle": ", ".join(f"{name} {value}" for name, value in facts["bundle"].items()),
        "figures": ", ".join(f"{key} {value:.4f}" for key, value in facts["metrics"].items()),
        "settings hash": facts["settings_hash"],
        "audit record": f"{record.number}, {record.sha256}",
    }
    concluded = f"{facts['time']} by {facts['user']} on {facts['host']}; {code_line(facts)}"
    is_other = any(facts[key] != started[key] for key in ("user", "host", "git", "versions"))
    return {**shown, **({"concluded": concluded} if is_other else {})}


def _records_table(records: Sequence[Record]) -> Table:
    table = new_table("Record", "Time (UTC)", "What", "By", right={"Record"})
    for record in records:
        by = f"{record.facts['user']} on {record.facts['host']}"
        table.add_row(str(record.number), _time(record.facts), _told(record), by)
    return table


def _told(record: Record) -> str:
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
    return f"{version} {'promoted' if record.event == 'promote' else 'restored'} to champion{instead}"


def _time(facts: dict[str, Any]) -> str:
    return str(facts.get("time", ""))[:19].replace("T", " ")
