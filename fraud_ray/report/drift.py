"""The picture of drift: the worst columns, the reference's distribution under today's."""

from __future__ import annotations

import io
import textwrap

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fraud_ray.data.drift import Bins, ColumnDrift, Drift

SHOWN_COLUMNS = 6
THEN, NOW, DRIFTED, TEXT = "#b9c4d0", "#1f5fa8", "#b3261e", "#333333"
PANEL = (4.6, 2.9)  # inches


def draw(drift: Drift, form: str) -> bytes:
    """The worst columns that have a distribution, as an SVG or PNG file. form: svg or png."""
    shown = [column for column in drift.columns if column.bins][:SHOWN_COLUMNS]
    across = min(len(shown), 3) or 1
    down = -(-len(shown) // across) or 1
    figure = Figure(figsize=(PANEL[0] * across, PANEL[1] * down + 0.9), layout="constrained")
    panels = figure.subplots(down, across, squeeze=False).ravel()
    for panel in panels[len(shown) :]:
        panel.remove()
    for panel, column in zip(panels, shown, strict=False):
        assert column.bins is not None, "chosen for having them"
        _draw_bins(panel, column.bins)
        _label(panel, column)
    if shown:
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=2, frameon=False, fontsize=9)
    figure.suptitle("\n".join(textwrap.wrap(_headline(drift), 52 * across)), x=0.01, ha="left", fontsize=11)
    file = io.BytesIO()
    figure.savefig(file, format=form, dpi=150, metadata={"Date": None} if form == "svg" else None)
    return file.getvalue()


def _headline(drift: Drift) -> str:
    names = ", ".join(column.name for column in drift.drifted)
    return f"{f'Drift in {names}' if names else 'No drift'}: {drift.rows[1]:,} rows against {drift.reference}"


def _draw_bins(panel: Axes, bins: Bins) -> None:
    if bins.labels:
        places = np.arange(len(bins.labels))
        panel.bar(places - 0.2, bins.reference, 0.4, color=THEN, label="reference")
        panel.bar(places + 0.2, bins.today, 0.4, color=NOW, label="today")
        panel.set_xticks(places, [textwrap.shorten(name, 16, placeholder="…") for name in bins.labels])
        panel.tick_params(axis="x", labelrotation=45 if len(bins.labels) > 3 else 0)
        if len(bins.labels) > 3:
            for text in panel.get_xticklabels():
                text.set_horizontalalignment("right")
                text.set_rotation_mode("anchor")
    else:
        panel.stairs(bins.reference, bins.edges, fill=True, color=THEN, label="reference")
        panel.stairs(bins.today, bins.edges, color=NOW, linewidth=1.6, label="today")
        if bins.log:
            panel.set_xscale("log")
    panel.set_ylim(bottom=0)


def _label(panel: Axes, column: ColumnDrift) -> None:
    figures = [f"{measure.name} {measure.value:.3f}" for measure in column.measures]
    colour = DRIFTED if column.has_drifted else TEXT
    mark = " (drifted)" if column.has_drifted else ""
    panel.set_title(f"{column.name}{mark}\n{', '.join(figures)}", fontsize=9, color=colour, loc="left")
    panel.yaxis.set_major_formatter(lambda share, _: f"{share:.3g}")
    panel.set_ylabel("share of rows", fontsize=8)
    panel.tick_params(labelsize=8)
    panel.spines[["top", "right"]].set_visible(False)
