"""`fraud-ray drift`: whether today's data still looks like what the champion was fitted on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fraud_ray.cli.options import AsJson, Config, Overrides
from fraud_ray.errors import EXIT_DONE, EXIT_DRIFTED, SettingsError

if TYPE_CHECKING:
    from fraud_ray.model.profile import Baseline
    from fraud_ray.settings import Settings


def drift(
    ctx: typer.Context,
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
    from fraud_ray.cli.display import Display, stdout_for_the_result
    from fraud_ray.settings import load_settings

    if out is not None and out.suffix not in {".svg", ".png"}:
        raise typer.BadParameter("ends with neither .svg nor .png", param_hint="--out")
    settings = load_settings(config, overrides or ()).settings

    from fraud_ray.cluster import join_or_start, refuse_relative_folders

    if ctx.obj:
        refuse_relative_folders(settings)

    from fraud_ray.data.baseline import measure_drift
    from fraud_ray.data.source import open_source
    from fraud_ray.report.panels import draw_drift
    from fraud_ray.storage import Storage

    source = open_source(settings.data)
    with stdout_for_the_result(), join_or_start(settings.cluster), Display().stage("drift") as stage:
        measured = measure_drift(_baseline(against, settings), source, settings, stage.update)
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
        typer.echo(json.dumps({**measured.to_json(), "picture": picture}, indent=1))
    else:
        from fraud_ray.cli.tables import print_drift

        print_drift(measured, picture)
    raise typer.Exit(EXIT_DRIFTED if measured.drifted else EXIT_DONE)


def _baseline(against: str, settings: Settings) -> Baseline:
    if against != "champion":
        from fraud_ray.data.baseline import baseline_at

        return baseline_at(against, settings, lambda done, total, text: None)
    from fraud_ray.registry.champion import open_champion
    from fraud_ray.registry.tracking import connect

    known = open_champion(connect(settings.registry))
    found = known.baseline if known else None
    if found is None:
        raise SettingsError(
            f"{settings.registry.model_name} has no champion with a profile at {settings.registry.uri}: register one "
            "with fraud-ray run, or compare with other partitions: --against PATH"
        )
    return found
