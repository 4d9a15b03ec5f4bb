"""`fraud-ray drift`: whether today's data still looks like what the champion was fitted on."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.text import Text

from fraud_ray.cli.options import AsJson, Config, Overrides, load
from fraud_ray.cli.tables import number, print_json, print_line, print_notes, print_table
from fraud_ray.errors import EXIT_DONE, EXIT_DRIFTED, SettingsError

if TYPE_CHECKING:
    from fraud_ray.data.drift import ColumnDrift, Drift, Measure
    from fraud_ray.data.source import Source
    from fraud_ray.model.profile import Baseline
    from fraud_ray.settings import Settings


def drift(
    context: typer.Context,
    config: Config,
    overrides: Overrides = None,
    against: Annotated[
        str,
        typer.Option(
            metavar="champion|PATH", help="The registered champion, a bundle's folder, or other partitions (or a URI)."
        ),
    ] = "champion",
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Where to draw the worst columns, .svg or .png; by default below storage.root."
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Compare the data at data.path with what the champion was fitted on: every column, the fraud rate, the scores.

    Bounds are settings (drift.max_ks and others); drift.days picks the newest days.
    Ends with exit code 5 if anything has drifted.
    """
    from fraud_ray.cluster import join_unless_few, refuse_relative

    if out is not None and out.suffix not in {".svg", ".png"}:
        raise typer.BadParameter("ends with neither .svg nor .png", param_hint="--out")
    settings = load(context, config, overrides).settings
    if out is not None:
        if context.obj:
            refuse_relative("--out", str(out))
        from fraud_ray.data.output import refuse_to_write_into

        refuse_to_write_into("data", settings.data.path, str(out))
        if against != "champion":
            refuse_to_write_into("reference", against, str(out))

    from fraud_ray.cli.display import Display, stdout_for_the_result
    from fraud_ray.data.baseline import measure_drift
    from fraud_ray.data.repeats import without_repeats
    from fraud_ray.data.source import open_source
    from fraud_ray.model.profile import Baseline
    from fraud_ray.report.panels import draw_drift
    from fraud_ray.storage import Storage

    source, display = open_source(settings.data), Display()
    with stdout_for_the_result():
        reference = _reference(against, settings)
    rows = source.rows + (0 if isinstance(reference, Baseline) else reference.rows)
    with stdout_for_the_result(), join_unless_few(settings.cluster, rows, display), display.stage("drift") as stage:
        if settings.data.repeats == "last":
            source = without_repeats(source, settings.data, stage.update)
        measured = measure_drift(reference, source, settings, stage.update)
        stage.say(measured.verdict)
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_bytes(draw_drift(measured, out.suffix.removeprefix(".")))
        picture = str(out)
    else:
        storage, key = Storage.at(settings.storage.root), f"drift/{source.as_of or 'undated'}.svg"
        storage.put(key, draw_drift(measured, "svg"))
        picture = storage.path(key)
    if as_json:
        print_json({**measured.to_json(), "picture": picture, "notes": source.notes})
    else:
        _print(measured, picture)
        print_notes(source.notes)
    raise typer.Exit(EXIT_DRIFTED if measured.drifted else EXIT_DONE)


def _reference(against: str, settings: Settings) -> Baseline | Source:
    """What the data is compared with: the profile of the champion or in a bundle's folder, or other partitions."""
    from fraud_ray.data.source import open_source
    from fraud_ray.model.bundle import PROFILE, load_profile
    from fraud_ray.model.profile import Baseline
    from fraud_ray.registry.opened import open_folder
    from fraud_ray.storage import Storage

    if against != "champion":
        may_be_bundle = "://" in against or Path(against).expanduser().is_dir()
        if not may_be_bundle or not Storage.at(against).exists(PROFILE):
            return open_source(settings.data.model_copy(update={"path": against}))
        with tempfile.TemporaryDirectory() as scratch:
            opened = open_folder(against, Path(scratch))
            profile = load_profile(opened.folder)
        assert profile is not None, "it is there"
        return Baseline(f"the bundle at {against} ({opened.note})", profile, opened.graph)
    from fraud_ray.registry.champion import open_champion
    from fraud_ray.registry.tracking import connect_existing

    known = open_champion(connect_existing(settings.registry), Storage.at(settings.storage.root))
    found = known.baseline if known else None
    if found is None:
        raise SettingsError(
            f"{settings.registry.model_name} has no champion with a profile at {settings.registry.uri}: register one "
            "with fraud-ray run, or compare with other partitions: --against PATH"
        )
    return found


def _print(drift: Drift, picture: str) -> None:
    """All columns, the worst first, with what the reference has, and where the picture lies."""
    bounds = {measure.name: measure.bound for column in drift.columns for measure in column.measures}
    effects = ["\n".join([*name.split(), f"≤ {bound:g}"]) for name, bound in bounds.items()]
    rows: list[list[str | Text]] = []
    for column in drift.columns:
        found = {measure.name: measure for measure in column.measures}
        rows.append(
            [
                Text(column.name, "bold red" if column.has_drifted else ""),
                *(_effect(found.get(name)) for name in bounds),
                _p_value(column),
                "" if column.means is None else f"{column.means[0]:.4g} → {column.means[1]:.4g}",
                "" if column.missing is None else f"{column.missing[0]:.2%} → {column.missing[1]:.2%}",
            ]
        )
    title = f"{drift.rows[1]:,} rows against {drift.reference} ({drift.rows[0]:,} rows)"
    print_table(["Column", *effects, "p-value", "Mean or rate", "Missing"], rows, right=effects, title=title)
    for column in drift.columns:
        if column.new:
            shown = ", ".join(f"{value} {share:.2%}" for value, share in column.new.items())
            print_line(f"{column.name}: new categories {shown}")
    for name, reason in drift.not_compared.items():
        print_line(f"{name} was not compared: {reason}")
    print_line(f"the worst columns as a picture: {picture}")
    names = ", ".join(column.name for column in drift.drifted)
    print_line(Text(f"drifted: {names}", "bold red") if names else Text("no drift", "bold green"))


def _p_value(column: ColumnDrift) -> str:
    if column.p_value is None:
        return ""
    return f"{column.test} {column.p_value:.2g}" if column.p_value else f"{column.test} < 1e-300"


def _effect(measure: Measure | None) -> Text:
    return Text("") if measure is None else Text(number(measure.value), "bold red" if measure.is_exceeded else "")
