"""`fraud-ray score`: a model on every partition of a folder."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fraud_ray.cli.options import AsJson, Overrides, load, sections_of, settings_of
from fraud_ray.cli.tables import print_json, print_line, print_notes, print_table
from fraud_ray.errors import SettingsError
from fraud_ray.progress import counted

if TYPE_CHECKING:
    from fraud_ray.scoring.partitions import ScoringResult


def score(
    context: typer.Context,
    model: Annotated[
        str,
        typer.Option(
            metavar="URI", help="models:/NAME@champion, models:/NAME/VERSION, or a bundle's folder or graph on disk."
        ),
    ],
    source: Annotated[str, typer.Option("--input", metavar="DIR", help="Folder or URI of the partitions.")],
    target: Annotated[
        str, typer.Option("--output", metavar="DIR", help="Folder or URI to write the scored partitions to.")
    ],
    labels: Annotated[
        str | None,
        typer.Option(
            metavar="DIR",
            help="Folder or URI of labels, by id and with their times where those are declared, of earlier "
            "transactions; for a model of window columns.",
        ),
    ] = None,
    state: Annotated[
        str | None,
        typer.Option(
            metavar="KEY", help="Window state to go on from; by default the newest that follows the model's own."
        ),
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(
            "-c",
            "--config",
            metavar="FILE",
            help="Configuration, for its registry, storage, cluster, data.csv and data.fingerprint; by default local.",
        ),
    ] = None,
    overrides: Overrides = None,
    registry: Annotated[
        str | None, typer.Option("--registry", metavar="URI", help="MLflow's registry, in place of registry.uri.")
    ] = None,
    reasons: Annotated[
        bool,
        typer.Option("--reasons", help="Also write which columns weigh most in each alert, and in which direction."),
    ] = False,
    unverified: Annotated[
        bool,
        typer.Option("--unverified", help="Take the model as it is, also where it is not what was registered."),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Score every row of partitions: the same ones, as parquet, with probability, decision and model version added.

    Each partition appears whole or not at all. The same command again keeps those that the same model has made from
    the same input, and does what is left. Ends with exit code 4, and nothing scored, if a column that the model reads
    is missing or of a wrong type.

    A model of window columns is given raw partitions, in the order of time. It scores those that its window state has
    not counted, and those without output, and names the state after them, from which the same command goes on the
    next day.

    With [bold]--reasons[/] alerts also have reason_1 to reason_3, the columns that weigh most, and effect_1 to
    effect_3, what each adds to the log-odds of fraud (below 0: it speaks against fraud), compared with a typical
    transaction: integrated gradients of the network, summed over a column's encodings.
    """
    from fraud_ray.cli.display import Display, stdout_for_the_result
    from fraud_ray.scoring.partitions import open_model, score_partitions
    from fraud_ray.scoring.raw import score_raw
    from fraud_ray.settings import StorageSettings, locate_registry
    from fraud_ray.storage import Storage

    if context.obj:  # in a job
        _refuse_relative(context, config, overrides, target)
    storage, where, cluster = sections_of(config, overrides)
    where = where if registry is None else where.model_copy(update={"uri": registry})
    where = locate_registry(where, StorageSettings(), "the default settings")
    data = settings_of(config, overrides).data if config else None
    how = (data.csv, data.fingerprint) if data else ()
    display = Display()
    with stdout_for_the_result(), display.stage("score") as stage:
        kept = Storage.at(storage.root)
        opened = open_model(model, where, reasons, kept, verified=not unverified)
        if opened.windows or labels or state:
            scored = score_raw(opened, source, target, kept, labels, state, cluster, stage.update, display, *how)
        else:
            scored = score_partitions(opened, source, target, cluster, stage.update, display, *how)
        scored = replace(scored, notes=(*([f"{opened.version}: {opened.note}"] if opened.note else ()), *scored.notes))
        stage.say(f"{counted(scored.partitions - scored.kept, 'partition')} scored, {scored.kept:,} kept")
    if as_json:
        print_json(scored.to_json())
    else:
        _print(scored)


def _refuse_relative(context: typer.Context, config: Path | None, overrides: list[str] | None, target: str) -> None:
    """Raises SettingsError for places that end with a job's working folder."""
    from fraud_ray.data.source import absolute

    if config is not None:
        load(context, config, overrides)
    if absolute(target) != target.rstrip("/"):
        raise SettingsError(
            f"the output {target} is relative to this Ray job's folder, which ends with it; name a "
            "folder on a shared volume, or a URI\nBy hand, outside of a job: fraud-ray score"
        )


def _print(scored: ScoringResult) -> None:
    """What was scored, by which model, and where it lies."""
    cells = {
        "Rows": f"{scored.rows:,}",
        "Alerts": f"{scored.alerts:,}",
        "Rate": f"{scored.alert_rate:.3%}",
        "Threshold": f"{scored.threshold:.4f}",
        "Rows/s": f"{scored.rows_per_second:,.0f}",
        "Model": scored.model,
    }
    print_table([*cells], [[*cells.values()]], right={"Rows", "Alerts", "Rate", "Rows/s"})
    kept = f", {scored.kept:,} of them kept from before" if scored.kept else ""
    print_line(f"{counted(scored.partitions, 'partition')}{kept}, at {scored.output}")
    if scored.state:
        before = f"counted before: {counted(scored.counted, 'partition')}; " if scored.counted else ""
        print_line(f"{before}window state {scored.state}")
    if scored.foreign:
        print_line(f"beside them: {counted(scored.foreign, 'file')} that the input does not have", "yellow")
    print_notes(scored.notes)
