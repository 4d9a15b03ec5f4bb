"""The report's pictures of training: learning curves, and the search as parallel coordinates."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from fraud_ray.progress import counted
from fraud_ray.report.pictures import Picture
from fraud_ray.report.plot import CHARACTER, WIDTH, Axis, Plot, number
from fraud_ray.settings import Options, Range, SearchSettings

if TYPE_CHECKING:
    from fraud_ray.training.search import SearchOutcome

FEWEST_TRIALS = 4  # for importances
MOST_PLAIN_LINES = 30
ROW_HEIGHT = 64


def losses(found: SearchOutcome, refit_curve: Sequence[Mapping[str, Any]]) -> Picture:
    curves = {"best trial": found.best.curve, "refit": refit_curve}
    drawn = {name: [(e["epoch"], e["loss"]) for e in curve if e["loss"] > 0] for name, curve in curves.items()}
    everything = [point for points in drawn.values() for point in points]
    low, high = (choose(loss for _, loss in everything) for choose in (min, max))
    plot = Plot(
        "Loss by epoch",
        _epochs(max(epoch for epoch, _ in everything)),
        Axis("mean loss, logarithmic", low / 1.1, high * 1.1, log=True),
    )
    for kind, (name, points) in zip(("reference", "line"), drawn.items(), strict=True):
        plot.line([epoch for epoch, _ in points], [loss for _, loss in points], kind)
        plot.dot(*points[-1], "dot" if name == "refit" else "dot muted", 3)
    for kind, (name, points) in zip(("note muted", "note accent"), drawn.items(), strict=True):
        plot.label([f"{name} {points[-1][1]:.4f}"], points[-1], kind)
    caption = f"The refit takes the {counted(len(refit_curve), 'epoch')} that were best on the selection holdouts."
    return Picture("Loss by epoch", caption, plot.svg())


def selection_scores(found: SearchOutcome) -> Picture:
    """Average precision on the selection holdouts, of all trials by epoch."""
    curves = {t.id: [(e["epoch"], e["average_precision"]) for e in t.curve] for t in found.trials if t.curve}
    best = curves[found.best.id]
    low, high = (choose(score for _, score in best) for choose in (min, max))
    margin = max(0.05 * (high - low), 0.005)
    last = max(epoch for points in curves.values() for epoch, _ in points)
    plot = Plot(
        "Selection AP by epoch",
        _epochs(last),
        Axis("average precision", max(0, low - margin), min(1, high + margin)),
    )
    for id_, points in curves.items():
        if id_ != found.best.id:
            plot.line([epoch for epoch, _ in points], [score for _, score in points], _other(len(curves)))
    plot.line([epoch for epoch, _ in best], [score for _, score in best])
    top = found.best.best_epoch, found.best.average_precision or 0.0
    plot.dot(*top)
    plot.label([f"{top[1]:.4f} at epoch {top[0]:,}"], top, "note accent")
    others = len(curves) - 1
    if others:
        plot.key([("line", "best trial"), ("other", counted(others, "other"))], (last, low))
    return Picture("Selection AP by epoch", "Mean over the selection holdouts; early epochs may lie below.", plot.svg())


def parallel_coordinates(found: SearchOutcome, search: SearchSettings, weights: Mapping[str, float]) -> Picture:
    """One line a trial, from hyperparameter to hyperparameter down to its score; the best is marked.

    A line passes by a hyperparameter whose condition did not hold.

    weights: importances by name; the most important stands next to the score.
    """
    judged = [trial for trial in found.trials if trial.average_precision is not None]
    names = sorted(search.space, key=lambda name: weights.get(name, 0.0))
    plot = Plot(
        "Search by parallel coordinates",
        Axis("", 0, 1, most_ticks=0),
        Axis("", len(names) + 1, 0, most_ticks=0),
        height=ROW_HEIGHT * (len(names) + 1) + 8,
        left=30 + CHARACTER * max(len("importance 100%"), *map(len, names)),
    )
    at_score = [trial.average_precision or 0.0 for trial in judged]
    low, high = min(at_score), max(at_score)
    score_axis = Axis("", low, high if high > low else low + 1e-3, lambda value: f"{value:.4f}")
    middle = 0.5
    lines = []
    for rank, trial in enumerate(judged):
        spread = rank / max(len(judged) - 1, 1) - 0.5
        rows = [row for row, name in enumerate(names) if name in trial.hyperparameters]
        xs = [_position(trial.hyperparameters[names[row]], search.space[names[row]], spread) for row in rows]
        lines.append([*zip(xs, rows, strict=True), (score_axis.share(trial.average_precision or 0.0), len(names))])
    # From worst to best, so that the best lies on top.
    for rank, line in reversed(list(enumerate(lines))):
        shade = "line" if rank == 0 else f"{_other(len(lines))} tone-{4 * rank // len(lines)}"
        plot.line([x for x, _ in line], [row + middle for _, row in line], shade)
    for row, name in enumerate(names):
        weight = f"importance {weights[name]:.0%}" if name in weights else ""
        _draw_row(plot, row + middle, name, weight, _ticks(search.space[name]))
    _draw_row(
        plot, len(names) + middle, "selection AP", "", [(x, score_axis.shown(v)) for x, v in ((0, low), (1, high))]
    )
    for x, row in lines[0]:
        plot.dot(x, row + middle, radius=4)
    meaning = " Importance: share of what a random forest explains of the score." if weights else ""
    caption = f"A line a trial ({len(judged):,} with a score), the best in colour.{meaning}"
    return Picture("Search", caption, plot.svg())


def importances(found: SearchOutcome, search: SearchSettings) -> dict[str, float]:
    """How much each hyperparameter says about the selection AP; the shares add up to 1.

    The mean decrease of variance over the splits of a random forest. Empty for fewer than FEWEST_TRIALS trials, for
    trials that all score the same, and where fewer than two hyperparameters vary. One that is absent from a trial,
    as its condition does not hold, is missing to the forest.
    Source: Breiman, "Random Forests" (2001).
    """
    from sklearn.ensemble import RandomForestRegressor

    judged = [trial for trial in found.trials if trial.average_precision is not None]
    points = {
        name: [_position(t.hyperparameters[name], options) if name in t.hyperparameters else math.nan for t in judged]
        for name, options in search.space.items()
    }
    varied = [name for name, values in points.items() if len({str(value) for value in values}) > 1]
    scores = [trial.average_precision for trial in judged]
    if len(judged) < FEWEST_TRIALS or len(varied) < 2 or len(set(scores)) == 1:
        return {}
    # Leaves grow with the trials, so that chance differences are not split on.
    forest = RandomForestRegressor(200, min_samples_leaf=max(1, len(judged) // 25), random_state=search.seed)
    forest.fit(np.array([points[name] for name in varied]).T, scores)
    return dict(zip(varied, forest.feature_importances_.tolist(), strict=True))


def _other(lines: int) -> str:
    """The kind of a line beside the best: fainter among many."""
    return "other" if lines <= MOST_PLAIN_LINES else "other many"


def _position(value: Any, options: Options, spread: float = 0.0) -> float:
    """Where a value stands between 0 and 1.

    spread: -0.5 to 0.5; sets lines through the same listed value side by side, in a band that lies within as well.
    """
    if isinstance(options, Range):
        return Axis("", options.low, options.high, log=options.log).share(value)
    values = options.plain
    band = min(0.12, 0.3 / len(values))
    share = 0.5 if len(values) == 1 else values.index(value) / (len(values) - 1)
    return band / 2 + share * (1 - band) + spread * band


def _ticks(options: Options) -> list[tuple[float, str]]:
    if isinstance(options, Range):
        return [(0.0, number(options.low)), (1.0, number(options.high))]
    values = options.plain
    shown = [", ".join(map(str, v)) if isinstance(v, list) else number(v) if _is_number(v) else str(v) for v in values]
    ticks = [(_position(value, options), text) for value, text in zip(values, shown, strict=True)]
    fits = CHARACTER * max(map(len, shown)) < 0.6 * WIDTH / max(len(shown) - 1, 1)
    return ticks if fits else [ticks[0], ticks[-1]]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _draw_row(plot: Plot, row: float, name: str, remark: str, ticks: list[tuple[float, str]]) -> None:
    plot.segment((0, row), (1, row), "axis")
    _, y = plot.at(0, row)
    plot.text_units(0, y + (-3 if remark else 4), name, "name")
    if remark:
        plot.text_units(0, y + 12, remark)
    for x, text in ticks:
        middle, _ = plot.at(x, row)
        half = CHARACTER * len(text) / 2
        plot.text_units(min(max(middle, plot.left - 22 + half), WIDTH - half), y + 17, text, "tick over", "middle")


def _epochs(last: int) -> Axis:
    first = min(1, last - 1)
    return Axis("epoch", first, last, most_ticks=min(6, last - first))
