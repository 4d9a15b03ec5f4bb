"""A plot as inline SVG: two axes, marks, and labels that look for a free place themselves.

Colours and fonts are the page's: marks carry CSS classes only, so that one picture serves light and dark. Pictures are
400 units wide, which a page shows at about 400 pixels, so that text keeps its size.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt
from markupsafe import Markup

WIDTH = 400
LINE_HEIGHT, CHARACTER = 15.0, 7.6  # units; a character is as wide as a digit of DejaVu Sans, the widest common font

Point = tuple[float, float]
Float64 = npt.NDArray[np.float64]


def percent(value: float) -> str:
    return f"{100 * value:.0f}%"


def number(value: float) -> str:
    """With as many digits as it needs: 12,000 or 0.002."""
    return f"{value:,.0f}" if abs(value) >= 1_000 else f"{value:.4g}"


@dataclass(frozen=True)
class Axis:
    """A scale from `low` to `high` (which may be the smaller one), its label and how its ticks are written.

    label: with the unit. most_ticks: 0 for none.
    """

    label: str
    low: float
    high: float
    shown: Callable[[float], str] = number
    log: bool = False
    most_ticks: int = 6

    def share(self, value: float) -> float:
        """Where a value lies between low (0) and high (1)."""
        if self.log:
            return math.log(value / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)

    @property
    def ticks(self) -> list[float]:
        """Round values within the axis."""
        if not self.most_ticks:
            return []
        return (_log_ticks if self.log else _linear_ticks)(self.low, self.high, self.most_ticks)


def _linear_ticks(low: float, high: float, most: int) -> list[float]:
    least = (high - low) / most
    power = 10.0 ** math.floor(math.log10(least))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= least * (1 - 1e-9))
    return [float(f"{k * step:.12g}") for k in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def _log_ticks(low: float, high: float, most: int) -> list[float]:
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)

    def within(factors: Iterable[int], every: int = 1) -> list[float]:
        values = (float(f"{factor}e{decade}") for decade in decades if decade % every == 0 for factor in factors)
        return [value for value in values if low * (1 - 1e-9) <= value <= high * (1 + 1e-9)]

    finest_first = (within((1, 2, 5)), within((1, 3)), *(within((1,), every) for every in range(1, len(decades) + 1)))
    found = next(ticks for ticks in finest_first if len(ticks) <= most)
    return found if len(found) > 1 else _linear_ticks(low, high, most)


class Plot:
    """A picture that grows by marks. Coordinates are the axes' unless a name says `units`."""

    def __init__(
        self,
        title: str,
        x: Axis,
        y: Axis,
        height: float = 290,
        left: float | None = None,
        right: float = 20,
    ) -> None:
        """title: what a screen reader says. left, right: units beside the plot; left is by default what ticks need."""
        self.title, self.x, self.y, self.height = title, x, y, height
        widest = max((len(y.shown(tick)) for tick in y.ticks), default=0)
        self.left = left if left is not None else 12 + CHARACTER * widest
        self.right = WIDTH - right
        self.top = 30.0 if y.label else 8.0
        self.bottom = height - (44.0 if x.label else 24.0 if x.ticks else 6.0)
        self._marks: list[Markup] = []
        self._taken = np.zeros((math.ceil(height), WIDTH), bool)
        self._draw_axes()

    def at(self, x: float, y: float) -> Point:
        """A point in units."""
        return (
            self.left + self.x.share(x) * (self.right - self.left),
            self.bottom - self.y.share(y) * (self.bottom - self.top),
        )

    def line(self, xs: Sequence[float], ys: Sequence[float], kind: str = "line") -> None:
        """A line through points; what of it leaves the plot is cut off."""
        # One more unit at each side, for the width of the line.
        box = self.left - 1, self.top - 1, self.right - self.left + 2, self.bottom - self.top + 2
        self._add(
            '<svg x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}" viewBox="{:.1f} {:.1f} {:.1f} {:.1f}">',
            *(*box, *box),
        )
        self._path([self.at(x, y) for x, y in zip(xs, ys, strict=True)], kind)
        self._add("</svg>")

    def steps(self, edges: Sequence[float], values: Sequence[float], kind: str) -> None:
        """A histogram's outline, filled if the kind is; values below the y axis lie on it."""
        ys = np.repeat(np.maximum(values, self.y.low), 2).tolist()
        self.line(np.repeat(edges, 2).tolist(), [self.y.low, *ys, self.y.low], kind)

    def segment(self, start: Point, end: Point, kind: str) -> None:
        """A straight line such as an interval, a reference or a threshold."""
        self._path([self.at(*start), self.at(*end)], kind)

    def dot(self, x: float, y: float, kind: str = "dot", radius: float = 4) -> None:
        px, py = self.at(x, y)
        self._take(px - radius, py - radius, 2 * radius, 2 * radius)
        self._add('<circle class="{}" cx="{:.1f}" cy="{:.1f}" r="{}"/>', kind, px, py, radius)

    def text_units(self, x: float, y: float, text: str, kind: str = "tick", anchor: str = "start") -> None:
        """A text whose baseline begins, has its middle or ends at a point."""
        self._add('<text class="{}" x="{:.1f}" y="{:.1f}" text-anchor="{}">{}</text>', kind, x, y, anchor, text)

    def label(self, lines: Sequence[str], near: Point, kind: str = "note") -> None:
        """Text lines at the free place nearest to a point: to be called after everything is drawn."""
        x, y = self._take_free_place(CHARACTER * max(map(len, lines)), LINE_HEIGHT * len(lines), near)
        for row, line in enumerate(lines):
            self.text_units(x, y + LINE_HEIGHT * row + 11.5, line, kind)

    def key(self, entries: Sequence[tuple[str, str]], near: Point) -> None:
        """What kinds of line mean, as (kind, text), at the free place nearest to a point; likewise called last."""
        sample = 26.0
        width = sample + CHARACTER * max(len(text) for _, text in entries)
        x, y = self._take_free_place(width, LINE_HEIGHT * len(entries), near)
        for row, (kind, text) in enumerate(entries):
            middle = y + LINE_HEIGHT * row + 7.5
            self._path([(x, middle), (x + sample - 7, middle)], kind)
            self.text_units(x + sample, middle + 4, text, f"note of-{kind}")

    def svg(self) -> Markup:
        return Markup('<svg viewBox="0 0 {} {:.0f}" role="img" aria-label="{}">{}</svg>').format(
            WIDTH, self.height, self.title, Markup("").join(self._marks)
        )

    def _add(self, template: str, *values: object) -> None:
        self._marks.append(Markup(template).format(*values))

    def _path(self, points: Sequence[Point], kind: str) -> None:
        for (x0, y0), (x, y) in pairwise(points):
            steps = math.ceil(max(abs(x - x0), abs(y - y0), 1))
            self._mark(np.linspace(x0, x, steps + 1), np.linspace(y0, y, steps + 1))
        self._add('<path class="{}" d="M{}"/>', kind, " ".join(f"{x:.1f},{y:.1f}" for x, y in points))

    def _draw_axes(self) -> None:
        for tick in self.y.ticks:
            _, py = self.at(self.x.low, tick)
            self._add('<path class="grid" d="M{:.1f},{:.1f}H{:.1f}"/>', self.left, py, self.right)
            self.text_units(self.left - 6, py + 4, self.y.shown(tick), anchor="end")
        for tick in self.x.ticks:
            px, _ = self.at(tick, self.y.low)
            self._add('<path class="axis" d="M{:.1f},{:.1f}v4"/>', px, self.bottom)
            self.text_units(px, self.bottom + 17, self.x.shown(tick), anchor="middle")
        if self.x.ticks:
            self._add('<path class="axis" d="M{:.1f},{:.1f}H{:.1f}"/>', self.left, self.bottom, self.right)
        if self.y.label:
            self.text_units(0, 13, self.y.label, "title")
        if self.x.label:
            self.text_units(self.right, self.height - 6, self.x.label, "title", "end")

    def _mark(self, xs: Float64, ys: Float64) -> None:
        """Notes that something is drawn at points in units; those outside of the picture do not count."""
        columns, rows = xs.astype(int), ys.astype(int)
        inside = (columns >= 0) & (columns < WIDTH) & (rows >= 0) & (rows < len(self._taken))
        self._taken[rows[inside], columns[inside]] = True

    def _take(self, x: float, y: float, width: float, height: float) -> None:
        self._taken[max(0, int(y)) : math.ceil(y + height), max(0, int(x)) : math.ceil(x + width)] = True

    def _take_free_place(self, width: float, height: float, near: Point) -> Point:
        """Top left corner, in units, of the box within the plot that meets least of what is drawn, then is nearest."""
        xs = np.arange(self.left + 4, max(self.right - width, self.left + 5), 3).astype(int)
        ys = np.arange(self.top, max(self.bottom - height - 2, self.top + 1), 3).astype(int)
        # Sums over every box at once, from sums over every box that begins in the corner of the picture.
        sums = np.pad(self._taken.cumsum(axis=0).cumsum(axis=1), ((1, 0), (1, 0)))
        left, right = np.maximum(xs - 4, 0), np.minimum(xs + int(width) + 4, WIDTH)
        upper, lower = np.maximum(ys - 2, 0)[:, None], np.minimum(ys + int(height) + 2, len(self._taken))[:, None]
        met = sums[lower, right] - sums[upper, right] - sums[lower, left] + sums[upper, left]
        px, py = self.at(*near)
        across, down = np.abs(px - xs - width / 2) - width / 2, np.abs(py - ys - height / 2) - height / 2
        distance = np.hypot(np.maximum(0, across)[None, :], np.maximum(0, down)[:, None])
        row, column = divmod(int(np.lexsort((distance.ravel(), met.ravel()))[0]), len(xs))
        self._take(xs[column], ys[row], width, height)
        return float(xs[column]), float(ys[row])
