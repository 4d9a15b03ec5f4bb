"""`fraud-ray simulate` and `fraud-ray validate`: data to train on, and whether it can be trained on."""

from __future__ import annotations

import dataclasses
from datetime import datetime
from typing import Annotated

import typer

from fraud_ray.cli.options import AsJson, Config, Overrides, settings_of
from fraud_ray.cli.tables import print_json, print_line, print_notes
from fraud_ray.errors import DataError
from fraud_ray.progress import counted


def simulate(
    out: Annotated[
        str, typer.Option(metavar="DIR", help="Folder or URI to write to; on a cluster, one that all nodes see.")
    ],
    rows: Annotated[int, typer.Option(min=1, help="Transactions to write.")] = 200_000,
    days: Annotated[int, typer.Option(min=1, help="Days that they spread over.")] = 60,
    start: Annotated[datetime, typer.Option(formats=["%Y-%m-%d"], help="First day.")] = datetime(2024, 1, 1),
    seed: Annotated[int, typer.Option(min=0, help="The same seed gives the same rows.")] = 7,
    as_json: AsJson = False,
) -> None:
    """Write a synthetic world of cards, merchants, devices and fraud as parquet, a folder a day.

    Prints the best scores that any model can reach on it: its labels are drawn from a known probability.
    """
    from fraud_ray.cli.display import Display, stdout_for_the_result
    from fraud_ray.cluster import join_unless_few
    from fraud_ray.data import simulate
    from fraud_ray.settings import ClusterSettings, SimulateSettings

    settings, display = SimulateSettings(rows=rows, days=days, start=start.date(), seed=seed), Display()
    to_write = 0 if simulate.simulated_before(settings, out) else rows
    with (
        stdout_for_the_result(),
        join_unless_few(ClusterSettings(), to_write, display),
        display.stage("simulate") as stage,
    ):
        written = simulate.simulate(settings, out, stage.update)
        shown = f"{counted(written.rows, 'row')}, {counted(written.frauds, 'fraud')}"
        stage.say(f"{shown} in {counted(written.files, 'file')}")
    if as_json:
        print_json({"path": out, **dataclasses.asdict(written)})
        return
    print_line(
        f"{out}: {shown}; best possible average precision "
        f"{written.best_average_precision:.4f}, best possible F1 {written.best_f1:.4f}"
    )


def validate(
    config: Config,
    overrides: Overrides = None,
    show_all: Annotated[
        bool, typer.Option("--all", help="List what each partition breaks, not one for each cause.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Check every partition against the declared columns, and list everything that breaks the contract.

    Ends with exit code 4 if anything does.
    """
    from fraud_ray.cli.display import Display, stdout_for_the_result
    from fraud_ray.cluster import join_unless_few
    from fraud_ray.data import contract
    from fraud_ray.data.repeats import without_repeats
    from fraud_ray.data.source import open_source

    settings = settings_of(config, overrides)
    source, display = open_source(settings.data), Display()
    try:
        with (
            stdout_for_the_result(),
            join_unless_few(settings.cluster, source.rows, display),
            display.stage("validate") as stage,
        ):
            if settings.data.repeats == "last":
                source = without_repeats(source, settings.raw_data, stage.update)
            census = contract.validate(source, settings.raw_data, stage.update, settings.folds)
            stage.say(str(census))
    except contract.ContractViolation as fault:
        if as_json:
            print_json({"violations": [dataclasses.asdict(violation) for violation in fault.violations]})
        raise DataError("\n".join(map(str, fault.violations))) if show_all else fault from None
    if as_json:
        found = {"partitions": len(source.partitions), "rows": census.rows, "frauds": census.frauds}
        until = census.labelled_until
        known = None if until is None else census.clock.shown(until)
        late = {"span": census.span, "late_labels": census.late, "labelled_until": known}
        print_json({**found, **late, "fingerprint": source.fingerprint, "notes": source.notes})
        return
    shown = f"{counted(census.rows, 'row')}, {counted(census.frauds, 'fraud')} ({census.fraud_rate:.3%})"
    print_line(shown + (", " if census.span else "") + " to ".join(census.span))
    print_notes((*census.notes, *source.notes))
