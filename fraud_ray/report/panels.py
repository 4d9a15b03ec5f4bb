"""Pictures that are files of their own: the columns that drifted most, and a backtest by fold."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from fraud_ray.data.drift import Bins, ColumnDrift, Drift
from fraud_ray.report.canvas import ACCENT, INK, file_of_panels, shortened

SHOWN_COLUMNS = 6
THEN, DRIFTED = "#b9c4d0", "#b3261e"
OTHERS = ("#b3661e", "#6b8e4e", "#8a5a9e", "#7a7a7a", "#2f8f8a")


def draw_drift(drift: Drift, form: str) -> bytes:
    """The worst columns that have a distribution: the reference's under today's. form: svg or png."""
    shown = [column for column in drift.columns if column.bins][:SHOWN_COLUMNS]
    names = ", ".join(column.name for column in drift.drifted)
    verdict = f"Drift in {names}" if names else "No drift"
    headline = f"{verdict}: {drift.rows[1]:,} rows against {drift.reference}"
    panels: list[Callable[[Axes], None]] = [partial(_draw_column, column) for column in shown]
    return file_of_panels(panels, lambda across: textwrap.fill(headline, 52 * across), form)


def draw_by_fold(
    title: str, folds: Sequence[str], metrics: Mapping[str, Mapping[str, Sequence[float | None]]], form: str
) -> bytes:
    """A plot a metric, with a line a model over the folds, the first model's stronger. form: svg or png.

    folds: newest first, which stand on the right. metrics: by metric and model, both in words, a value a fold; None
    where it is undefined.
    """

    def draw(metric: str, plot: Axes) -> None:
        colours = (ACCENT, *OTHERS)
        for position, (model, values) in enumerate(metrics[metric].items()):
            width = 1.2 if position else 2.2
            plot.plot(
                folds,
                np.array(values, float),
                "o-",
                markersize=4,
                linewidth=width,
                color=colours[position],
                label=model,
            )
        plot.set_title(metric, color=INK)
        plot.invert_xaxis()

    panels: list[Callable[[Axes], None]] = [partial(draw, metric) for metric in metrics]
    return file_of_panels(panels, lambda _: title, form)


def _draw_column(column: ColumnDrift, plot: Axes) -> None:
    assert column.bins is not None, "chosen for having them"
    _draw_bins(plot, column.bins)
    figures = ", ".join(f"{measure.name} {measure.value:.3f}" for measure in column.measures)
    mark, colour = (" (drifted)", DRIFTED) if column.has_drifted else ("", INK)
    plot.set_title(f"{column.name}{mark}\n{figures}", fontsize=9, color=colour)
    plot.yaxis.set_major_formatter(lambda share, _: f"{share:.3g}")
    plot.set_ylabel("share of rows")


def _draw_bins(plot: Axes, bins: Bins) -> None:
    if bins.labels:
        places = np.arange(len(bins.labels))
        plot.bar(places - 0.2, bins.reference, 0.4, color=THEN, label="reference")
        plot.bar(places + 0.2, bins.today, 0.4, color=ACCENT, label="today")
        slanted: dict[str, Any] = {"rotation": 45, "ha": "right", "rotation_mode": "anchor"}
        plot.set_xticks(places, map(shortened, bins.labels), **(slanted if len(places) > 3 else {}))
    else:
        plot.stairs(bins.reference, bins.edges, fill=True, color=THEN, label="reference")
        plot.stairs(bins.today, bins.edges, color=ACCENT, linewidth=1.6, label="today")
        if bins.log:
            plot.set_xscale("log")
    plot.set_ylim(bottom=0)
