"""The report's pictures of training: learning curves, and the search as parallel coordinates."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from matplotlib.axes import Axes
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

from fraud_ray.decision.importance import forest_importance
from fraud_ray.progress import counted
from fraud_ray.report.canvas import ACCENT, INK, MUTED, TEXT, inline, number
from fraud_ray.report.pictures import Picture
from fraud_ray.settings import Options, Range, SearchSettings

if TYPE_CHECKING:
    from fraud_ray.training.search import SearchOutcome

FEWEST_TRIALS = 20  # with fewer, the table of trials says it better
MOST_PLAIN_LINES = 30
ROW_HEIGHT = 64  # points
MOST_CHARACTERS = 40  # of a row's ticks


def losses(found: SearchOutcome, refit_curve: Sequence[Mapping[str, Any]]) -> Picture:
    """Mean loss by epoch, of the best trial and of the refit."""

    def draw(plot: Axes) -> None:
        plot.set_yscale("log")
        for name, curve, colour in (("best trial", found.best.curve, MUTED), ("refit", refit_curve, ACCENT)):
            points = [(row["epoch"], row["loss"]) for row in curve if row["loss"] > 0]
            plot.plot(*zip(*points, strict=True), color=colour, linewidth=1.8, label=f"{name} {points[-1][1]:.4f}")
            plot.plot(*points[-1], "o", color=colour)
        plot.set_title("mean loss, logarithmic")
        plot.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        plot.yaxis.set_major_formatter(number)
        plot.yaxis.set_minor_locator(NullLocator())
        _epochs(plot)
        plot.legend()

    caption = f"The refit takes the {counted(len(refit_curve), 'epoch')} that were best on the selection holdouts."
    return Picture("Loss by epoch", caption, inline(draw))


def selection_scores(found: SearchOutcome) -> Picture:
    """Average precision on the selection holdouts, of all trials by epoch."""
    curves = {t.id: [(e["epoch"], e["average_precision"]) for e in t.curve] for t in found.trials if t.curve}
    best = curves.pop(found.best.id)
    top = found.best.best_epoch, found.best.average_precision or 0.0

    def draw(plot: Axes) -> None:
        for position, points in enumerate(curves.values()):
            label = "" if position else counted(len(curves), "other")
            plot.plot(*zip(*points, strict=True), color=MUTED, linewidth=1, alpha=_faint(len(curves)), label=label)
        plot.plot(*zip(*best, strict=True), color=ACCENT, linewidth=2, label="best trial")
        low, high = (choose(score for _, score in best) for choose in (min, max))
        margin = max(0.05 * (high - low), 0.005)
        plot.set(title="average precision", ylim=(max(0, low - margin), min(1, high + margin)))
        plot.yaxis.set_major_formatter(number)
        _epochs(plot)
        plot.plot(*top, "o", color=ACCENT, clip_on=False, label=f"{top[1]:.4f} at epoch {top[0]:,}")
        plot.legend(reverse=True)

    return Picture(
        "Selection AP by epoch", "Mean over the selection holdouts; early epochs may lie below.", inline(draw)
    )


def parallel_coordinates(found: SearchOutcome, search: SearchSettings) -> Picture:
    """One line a trial, from hyperparameter to hyperparameter down to its score; the best is marked.

    The most important hyperparameter stands next to the score. A line passes by one whose condition did not hold.
    """
    judged = [trial for trial in found.trials if trial.average_precision is not None]
    weights = importances(found, search)
    names = sorted(search.space, key=lambda name: weights.get(name, 0.0))
    scores = [trial.average_precision or 0.0 for trial in judged]
    low, high = min(scores), max(scores)

    def line(rank: int) -> tuple[list[float], list[int]]:
        chosen, spread = judged[rank].hyperparameters, rank / max(len(judged) - 1, 1) - 0.5
        rows = [row for row, name in enumerate(names) if name in chosen]
        xs = [position(chosen[names[row]], search.space[names[row]], spread) for row in rows]
        return [*xs, (scores[rank] - low) / (high - low or 1.0)], [*rows, len(names)]

    def draw(plot: Axes) -> None:
        plot.set(xlim=(-0.02, 1.02), ylim=(len(names) + 0.5, -0.3))
        plot.spines[:].set_visible(False)
        plot.set_xticks([])
        for rank in reversed(range(1, len(judged))):  # from worst to best, so that the best lies on top
            alpha = _faint(len(judged)) * (1.6, 1.0, 0.6, 0.4)[4 * rank // len(judged)]
            plot.plot(*line(rank), color=MUTED, linewidth=1, alpha=alpha)
        plot.plot(*line(0), "o-", color=ACCENT, linewidth=2)
        shares = [f"\nimportance {weights[name]:.0%}" if name in weights else "" for name in names]
        labels = [name + share for name, share in zip(names, shares, strict=True)]
        plot.set_yticks(range(len(names) + 1), [*labels, "selection AP"], color=INK)
        plot.grid(color=MUTED, linewidth=0.8, alpha=0.5)
        ends = [(0.0, f"{low:.4f}"), (1.0, f"{high:.4f}")]
        for row, ticks in enumerate([*(_ticks(search.space[name]) for name in names), ends]):
            for x, text in ticks:
                side = "left" if x < 0.05 else "right" if x > 0.95 else "center"
                place: dict[str, Any] = {
                    "textcoords": "offset points",
                    "ha": side,
                    "va": "top",
                    "color": MUTED,
                    "fontsize": TEXT - 1,
                }
                plot.annotate(text, (x, row), (0, -6), **place)

    meaning = " Importance: share of what a random forest explains of the score." if weights else ""
    caption = f"A line a trial ({len(judged):,} with a score), the best in colour.{meaning}"
    return Picture("Search", caption, inline(draw, ROW_HEIGHT * (len(names) + 1) + 8))


def importances(found: SearchOutcome, search: SearchSettings) -> dict[str, float]:
    """How much each hyperparameter says about the selection AP; empty where that cannot be said."""
    judged = [trial for trial in found.trials if trial.average_precision is not None]
    points = {
        name: [position(t.hyperparameters[name], options) if name in t.hyperparameters else math.nan for t in judged]
        for name, options in search.space.items()
    }
    return forest_importance(points, [trial.average_precision or 0.0 for trial in judged], search.seed)


def position(value: Any, options: Options, spread: float = 0.0) -> float:
    """Where a value stands between 0 and 1.

    spread: -0.5 to 0.5; sets lines through the same listed value side by side, in a band that lies within as well.
    """
    if isinstance(options, Range):
        low, high, at = (math.log(x) if options.log else x for x in (options.low, options.high, value))
        return (at - low) / (high - low)
    values = options.plain
    band = min(0.12, 0.3 / len(values))
    share = 0.5 if len(values) == 1 else values.index(value) / (len(values) - 1)
    return band / 2 + share * (1 - band) + spread * band


def _ticks(options: Options) -> list[tuple[float, str]]:
    if isinstance(options, Range):
        return [(0.0, number(options.low)), (1.0, number(options.high))]
    ticks = [(position(value, options), _shown(value)) for value in options.plain]
    return ticks if sum(len(text) + 2 for _, text in ticks) <= MOST_CHARACTERS else [ticks[0], ticks[-1]]


def _shown(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return number(value) if isinstance(value, int | float) and not isinstance(value, bool) else str(value)


def _faint(lines: int) -> float:
    """How opaque a line beside the best is: less so among many."""
    return 0.4 if lines <= MOST_PLAIN_LINES else 0.15


def _epochs(plot: Axes) -> None:
    plot.set_xlabel("epoch")
    plot.xaxis.set_major_locator(MaxNLocator(6, integer=True))
