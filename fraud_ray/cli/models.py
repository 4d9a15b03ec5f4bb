"""`fraud-ray models`: the versions of the registered model, their history, and which one is or should be champion."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fraud_ray.cli.audit import print_records
from fraud_ray.cli.elsewhere import Elsewhere, Working
from fraud_ray.cli.options import AsJson, Config, ConfigOrDefaults, Overrides, registry_of, settings_of
from fraud_ray.cli.outcomes import code_in_words, print_gate
from fraud_ray.cli.tables import (
    moment,
    print_facts,
    print_json,
    print_line,
    print_next,
    print_notes,
    print_settings,
    print_table,
)
from fraud_ray.decision.names import metric_name
from fraud_ray.progress import counted

if TYPE_CHECKING:
    from fraud_ray.registry.audit import Record
    from fraud_ray.registry.history import VersionHistory
    from fraud_ray.registry.promotion import Move
    from fraud_ray.serving.judging import Judged

Reason = Annotated[str, typer.Option("--reason", metavar="TEXT", help="Why, for the audit record.")]

app = typer.Typer(no_args_is_help=True, help="List, show, compare, promote and roll back registered versions.")


@app.command(name="list", cls=Elsewhere)
def list_all(config: ConfigOrDefaults = None, overrides: Overrides = None, as_json: AsJson = False) -> None:
    """List all versions, the newest first."""
    from fraud_ray.registry.history import history

    storage, tracking = registry_of(config, overrides)
    histories = history(tracking, storage)
    if as_json:
        print_json([_summary(one) for one in histories])
    else:
        _print_versions(histories, tracking.registry.model_name)


@app.command(cls=Elsewhere)
def show(
    version: Annotated[str, typer.Argument(metavar="VERSION|@ALIAS", help="A number, or an alias such as @champion.")],
    config: ConfigOrDefaults = None,
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Show a version: its data, code, settings and checks, who made it, and who let it go live and when."""
    from fraud_ray.registry.history import find_version, history
    from fraud_ray.registry.versions import tags_of_version

    storage, tracking = registry_of(config, overrides)
    found = find_version(history(tracking, storage), version)
    tags = tags_of_version(tracking, found.version.version)
    if as_json:
        origin = found.origin and {**found.origin.facts, "sha256": found.origin.sha256}
        moves = [record.facts for record in found.moves]
        print_json({**_summary(found), "tags": tags, "origin": origin, "moves": moves})
    else:
        _print_version(found, tags)


@app.command(cls=Elsewhere)
def promote(
    version: Annotated[
        int | None, typer.Argument(metavar="[VERSION]", help="Its number; by default the challenger's.")
    ] = None,
    reason: Reason = "",
    config: ConfigOrDefaults = None,
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Make a version the champion, by default the challenger; `rollback` takes it back."""
    from fraud_ray.registry import promotion

    storage, tracking = registry_of(config, overrides)
    _print_move(promotion.promote(tracking, storage, version, reason), as_json)


@app.command(cls=Elsewhere)
def rollback(
    reason: Reason = "", config: ConfigOrDefaults = None, overrides: Overrides = None, as_json: AsJson = False
) -> None:
    """Make the version champion again that was it before; repeated, the one before that."""
    from fraud_ray.registry import promotion

    storage, tracking = registry_of(config, overrides)
    _print_move(promotion.rollback(tracking, storage, reason), as_json)


@app.command(cls=Elsewhere)
def export(
    output: Annotated[str, typer.Option("--output", metavar="DIR", help="Folder or URI to write it below.")],
    version: Annotated[
        str, typer.Argument(metavar="[VERSION|@ALIAS]", help="A number, or an alias; by default the champion.")
    ] = "@champion",
    config: ConfigOrDefaults = None,
    overrides: Overrides = None,
) -> None:
    """Write a version's portable graph where model servers look: DIR/NAME/VERSION/model.onnx, and its vocabulary.

    OpenVINO's model server and Triton answer with the highest version that they find there, so other versions of the
    model below DIR go. Refused, as by [bold]score[/], where it is not what was registered.
    """
    import tempfile
    from pathlib import Path

    from fraud_ray.registry import exported
    from fraud_ray.registry.opened import open_uri
    from fraud_ray.storage import Storage

    storage, tracking = registry_of(config, overrides)
    name = tracking.registry.model_name
    uri = f"models:/{name}{version}" if version.startswith("@") else f"models:/{name}/{version}"
    with tempfile.TemporaryDirectory() as scratch:
        opened = open_uri(uri, tracking.registry, storage, Path(scratch))
        print_line(f"{name} version {opened.named.rpartition('/')[2]} at {exported.export(opened, Storage.at(output))}")
        print_notes([opened.note] if opened.note else [])


@app.command(cls=Working)
def compare(
    config: Config,
    labels: Annotated[
        str | None,
        typer.Option(
            metavar="DIR", help="Folder or URI of labels, by id; by default they stand in a column beside the answers."
        ),
    ] = None,
    served: Annotated[
        str | None, typer.Option(metavar="DIR", help="Folder or URI of what was answered; by default serving.output.")
    ] = None,
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Judge champion and challenger on served transactions whose labels have come.

    Serving writes what both say where serving.shadow is challenger. They are compared as retraining compares them: by
    retrain.metric, with a paired bootstrap that draws entities whole. Each id counts once.
    """
    from fraud_ray.registry.tracking import connect_existing
    from fraud_ray.serving.judging import judge
    from fraud_ray.storage import Storage

    settings = settings_of(config, overrides)
    storage = Storage.at(settings.storage.root)
    place = served or settings.serving.output or storage.path("served")
    judged = judge(settings, connect_existing(settings.registry), storage, place, labels)
    if as_json:
        print_json({**judged.to_json(), "few_frauds": judged.has_few_frauds, "is_better": judged.is_better})
    else:
        _print_judged(judged)
        if judged.is_better:
            named = [str(judged.challenger), "-c", str(config)]
            where = [o for o in overrides or () if o.startswith(("storage.", "registry."))]
            options = [word for override in where for word in ("--set", override)]
            print_next([("the challenger becomes champion", ["models", "promote", *named, *options])])


def _print_judged(judged: Judged) -> None:
    from fraud_ray.serving.judging import FEW_FRAUDS

    found = judged.comparison
    rows = f"{judged.served:,} scored by both; labels have come for {judged.labelled:,} of them"
    facts = {"transactions": f"{rows}, {counted(judged.frauds, 'fraud')}"}
    if found:
        name = metric_name(found.metric)
        interval = f"{found.confidence:.0%} interval {found.low:+.4f} to {found.high:+.4f}"
        facts |= {
            "champion": f"version {judged.champion}: {name} {found.champion:.4f}",
            "challenger": f"version {judged.challenger}: {name} {found.challenger:.4f}",
            "difference": f"{found.difference:+.4f} ({interval}); asked for: {found.margin:g} and an interval above 0",
        }
    print_facts(facts)
    if not judged.labelled:
        print_line("no label has come yet; --labels DIR says where they lie", "bold yellow")
    elif judged.has_few_frauds:
        print_line(f"too few frauds to judge by, {FEW_FRAUDS} at least: wait for more labels", "bold yellow")
    elif judged.is_better:
        print_line(f"the challenger, version {judged.challenger}, is better", "bold green")
    else:
        print_line(f"the champion, version {judged.champion}, stays", "bold")


def _print_move(move: Move, as_json: bool) -> None:
    if as_json:
        print_json(dataclasses.asdict(move))
        return
    champion = f"{move.model} version {move.version}"
    if move.record is None:
        print_line(f"{champion} is champion already")
        return
    instead = f", instead of version {move.replaced}" if move.replaced else ""
    cut_short = "; an earlier command had begun this and was cut short" if move.completed else ""
    print_line(f"{champion} is champion now{instead} (audit record {move.record}{cut_short})")


def _summary(one: VersionHistory) -> dict[str, Any]:
    origin = one.origin.facts if one.origin else {}
    made = {"made": origin.get("time"), "by": origin.get("user"), "metrics": origin.get("metrics", {})}
    return {**one.version.to_json(), "aliases": one.aliases, **made}


def _print_versions(histories: Sequence[VersionHistory], model: str) -> None:
    rows = []
    for one in histories:
        origin = one.origin.facts if one.origin else {}
        metrics = origin.get("metrics", {})
        figures = (f"{metrics[name]:.4f}" if name in metrics else "" for name in ("average_precision", "f1_score"))
        made, aliases = moment(origin.get("time", "")), ", ".join(one.aliases)
        rows.append([str(one.version.version), aliases, one.version.run or "", made, origin.get("user", ""), *figures])
    columns = ["Version", "Aliases", "Run", "Made (UTC)", "By", "AP", "F1"]
    print_table(columns, rows, right={"Version", "AP", "F1"}, title=model, empty=f"no version of {model} yet")


def _print_version(one: VersionHistory, tags: Mapping[str, str]) -> None:
    """One version as an examiner asks: data, code, settings, checks, who made it, and who let it go live.

    tags: the registry's own of the version, which are all that is known where the audit record does not know its run.
    """
    aliases = f", {', '.join(one.aliases)}" if one.aliases else ""
    named = {"version": f"{one.version.name} version {one.version.version}{aliases}", "run": str(one.version.run)}
    if one.origin is None:
        unknown = "the audit record in this storage does not know its run; the registry's tags say:"
        print_facts({**named, "origin": unknown, **tags})
    else:
        print_facts({**named, **_origin(one.origin)})
        print_settings(one.origin.facts["settings"])
        print_gate(one.origin.facts["checks"])
    if one.moves:
        print_records(one.moves)


def _origin(record: Record) -> dict[str, str]:
    facts = record.facts
    started, data = facts["started"], facts["data"]
    rows = f"{counted(data['rows'], 'row')} in {counted(data['partitions'], 'partition')}"
    shown = {
        "made": f"{started['created']} by {started['user']} on {started['host']}",
        "command": started["command"],
        "code": code_in_words(started),
        "data": f"{data['path']}, {rows}; {data['fold']}",
        "data hash": data["fingerprint"],
        "seeds": ", ".join(f"{key} {seed}" for key, seed in facts["seeds"].items()),
        "bundle": ", ".join(f"{name} {value}" for name, value in facts["bundle"].items()),
        "figures": ", ".join(f"{key} {value:.4f}" for key, value in facts["metrics"].items()),
        "settings hash": facts["settings_hash"],
        "audit record": f"{record.number}, {record.sha256}",
    }
    concluded = f"{facts['time']} by {facts['user']} on {facts['host']}; {code_in_words(facts)}"
    is_other = any(facts[key] != started[key] for key in ("user", "host", "git", "versions"))
    return {**shown, **({"concluded": concluded} if is_other else {})}
