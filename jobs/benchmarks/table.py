"""The rows for people: a Markdown table, and a picture of the ratios against their targets."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from matplotlib import rc_context
from matplotlib.figure import Figure
from rich import box
from rich.table import Table

from benchmarks.harness import GIB, Row

MET, MISSED, PLAIN, TEXT = "#1f5fa8", "#b3261e", "#8a949e", "#333333"


def table(rows: Sequence[Row]) -> Table:
    shown = Table(box=box.MARKDOWN)
    for heading in ("stage", "ours", "peer", "ratio", "target", "met", "the machine's limit", "peak memory"):
        shown.add_column(heading, overflow="fold")
    for row in rows:
        peer = "" if row.peer is None else f"{_figure(row.peer, row.unit)}: {row.peer_name}"
        limit = "" if row.limit is None else f"{_figure(row.limit, row.unit)}: {row.limit_name}"
        shown.add_row(
            f"{row.stage}" + (f" ({row.note})" if row.note else ""),
            _figure(row.ours, row.unit),
            peer,
            "" if row.ratio is None else f"{row.ratio:.3g} x",
            "" if row.target is None else str(row.target),
            {None: "", True: "yes", False: "NO"}[row.met],
            limit,
            " against ".join(f"{m / GIB:.1f} GiB" for m in (row.memory, row.peer_memory) if m is not None),
        )
    return shown


def draw(rows: Sequence[Row], file: Path) -> None:
    """Ratios on a logarithmic scale as an SVG file: a dot is a row, the upright stroke on its line the target."""
    compared = [row for row in rows if row.ratio is not None and math.isfinite(row.ratio)]
    figure = Figure(figsize=(8.5, 0.8 + 0.3 * len(compared)), layout="constrained")
    axes = figure.subplots()
    for place, row in enumerate(compared):
        assert row.ratio is not None, "chosen for having one"
        colour = {None: PLAIN, True: MET, False: MISSED}[row.met]
        axes.plot([1, row.ratio], [place, place], color=colour, linewidth=1.5, alpha=0.5)
        axes.plot(row.ratio, place, "o", color=colour)
        if row.target is not None and row.target.unit == "x":
            axes.plot(row.target.bound, place, "|", color=TEXT, markersize=13, markeredgewidth=1.6)
        axes.text(1.02, place, f"{row.ratio:.3g} x", transform=axes.get_yaxis_transform(), va="center", fontsize=8)
    axes.axvline(1, color=PLAIN, linewidth=0.8)
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(lambda ratio, _: f"{ratio:g}")
    axes.set_yticks(range(len(compared)), [f"{row.stage} / {row.peer_name}" for row in compared], fontsize=8)
    axes.invert_yaxis()
    axes.set_xlabel("times as fast as the peer; upright strokes are targets: blue met, red not")
    axes.spines[["top", "right", "left"]].set_visible(False)
    with rc_context({"svg.fonttype": "none"}):  # letters as letters: a tenth of the size
        figure.savefig(file, format="svg", metadata={"Date": None})


def _figure(value: float, unit: str) -> str:
    if math.isinf(value):
        return "never"
    if unit == "requests/s":
        return f"{value:,.0f} requests/s"
    if unit == "rows/s":
        return f"{value / 1_000:,.0f} k rows/s"
    return f"{value:.3g} {unit}"
