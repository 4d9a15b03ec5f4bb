"""How pictures are drawn: matplotlib's figures in the page's colours, written as files or to stand in a page.

A picture for the page holds text as text and four colours, which the page's stylesheet maps to those of light or dark.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import matplotlib
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure

# The stylesheet knows these by their value.
ACCENT, INK, MUTED, LINE = "#0b5cad", "#1c2126", "#5c6570", "#e2e4e6"
WIDTH, TEXT = 400, 11.5  # points; a page shows a picture about as many pixels wide, so that text keeps its size

_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "fraud_ray",  # else ids are drawn anew each time
    "font.size": TEXT,
    "text.color": INK,
    "axes.labelcolor": MUTED,
    "axes.edgecolor": MUTED,
    "axes.titlesize": TEXT,
    "axes.titlelocation": "left",
    "axes.titlecolor": MUTED,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.facecolor": "none",
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "grid.color": LINE,
    "xaxis.labellocation": "right",
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "ytick.major.size": 0,
    "xtick.minor.size": 0,
    "ytick.minor.size": 0,
    "lines.solid_capstyle": "round",
    "lines.markersize": 6,
    "legend.frameon": False,
    "legend.labelcolor": INK,
    "legend.borderpad": 0.2,
    "legend.handlelength": 1.7,
}

_PANELS: dict[Any, Any] = {
    "font.size": 9,
    "axes.titlesize": 10,
    "xaxis.labellocation": "center",
    "figure.constrained_layout.hspace": 0.08,
    "figure.constrained_layout.wspace": 0.05,
}


def inline(draw: Callable[[Axes], None], height: float = 290) -> Markup:
    """A picture of one plot as SVG for a page. height: in points."""
    with matplotlib.rc_context(_STYLE):
        figure = Figure((WIDTH / 72, height / 72), facecolor="none", layout="constrained")
        draw(figure.add_subplot())
        file = io.StringIO()
        figure.savefig(file, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    drawn = file.getvalue()
    return Markup(drawn[drawn.index("<svg") :])


def file_of_panels(
    panels: list[Callable[[Axes], None]], title: Callable[[int], str], form: str, height: float = 205
) -> bytes:
    """Plots beside and below each other as an SVG or PNG file, with one legend: that of the first.

    title: for so many plots beside each other. form: svg or png. height: of a plot, in points.
    """
    across = min(len(panels), 3) or 1
    down = -(-len(panels) // across) or 1
    with matplotlib.rc_context({**_STYLE, **_PANELS}):
        figure = Figure((4.5 * across, height / 72 * down + 0.9), facecolor="white", layout="constrained")
        axes = figure.subplots(down, across, squeeze=False).ravel()
        for draw, one in zip(panels, axes, strict=False):
            draw(one)
        for one in axes[len(panels) :]:
            one.remove()
        if panels:
            handles, labels = axes[0].get_legend_handles_labels()
            figure.legend(handles, labels, loc="outside lower center", ncols=len(labels))
        figure.suptitle(title(across), x=0.01, ha="left", fontsize=11)
        file = io.BytesIO()
        figure.savefig(file, format=form, dpi=150, metadata={"Date": None} if form == "svg" else None)
    return file.getvalue()


def number(value: float, _: object = None) -> str:
    """With as many digits as it needs: 12,000 or 0.002."""
    return f"{value:,.0f}" if abs(value) >= 1_000 else f"{value:.4g}"


def shortened(text: str, most: int = 16) -> str:
    """A label with at most so many characters."""
    return text if len(text) <= most else text[: most - 1] + "…"
