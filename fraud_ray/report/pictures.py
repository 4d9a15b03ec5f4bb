"""The report's pictures of a model's decisions, each with a title and a caption that says what is seen."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator, NullLocator, PercentFormatter

from fraud_ray.decision.curves import Curves, Points, share_interval
from fraud_ray.decision.evaluate import Evaluation, SliceEvaluation
from fraud_ray.decision.names import rate
from fraud_ray.report.canvas import ACCENT, INK, MUTED, inline, number, shortened

MOST_SLICES = 25
MOST_COLUMNS = 25


@dataclass(frozen=True)
class Picture:
    """A picture with what stands above it."""

    title: str
    caption: str
    svg: Markup


def alerts(curves: Curves, evaluation: Evaluation) -> Picture:
    """The frauds caught by the alerts that a team is given."""
    per, unit = alert_unit(curves, evaluation)
    confusion = evaluation.confusion
    raised, caught = (confusion.tp + confusion.fp) / per, confusion.tp / max(evaluation.frauds, 1)

    def draw(plot: Axes) -> None:
        for points, style in _models(curves, "alerts"):
            xs, ys = np.array([0, *points["alerts"]]) / per, np.array([0, *points["frauds"]]) / evaluation.frauds
            plot.plot(xs, ys, **style)
        plot.set(xlabel=f"alerts {unit}", title="frauds caught (recall)", ylim=(0, 1.02))
        plot.set_xlim(0, max(raised, curves.model.alerts["alerts"][-1] / per))
        plot.xaxis.set_major_formatter(number)
        plot.yaxis.set_major_formatter(PercentFormatter(1, 0))
        plot.plot([raised, raised], [0, caught], ":", color=INK, linewidth=1)
        _mark(plot, evaluation, raised, caught, f"{rate(raised)} alerts, {caught:.1%} caught")

    precision = evaluation.metrics.get("precision")
    caption = "No alert is raised at the threshold."
    if precision is not None:
        caption = (
            f"At the threshold {rate(raised)} alerts {unit} catch {caught:.1%} of the frauds; "
            f"{1 - precision:.1%} of the alerts are false."
        )
    return Picture(f"Alerts {unit} against frauds caught", caption, inline(draw))


def precision_recall(curves: Curves, evaluation: Evaluation) -> Picture:
    metrics = evaluation.metrics

    def draw(plot: Axes) -> None:
        for points, style in _models(curves, "precision_recall"):
            plot.plot(points["recall"], points["precision"], **style)
        _shares(plot, "recall", "precision")
        if "precision" in metrics and "recall" in metrics:
            recall, precision = metrics["recall"], metrics["precision"]
            _mark(plot, evaluation, recall, precision, f"precision {precision:.1%}\nrecall {recall:.1%}")
        else:
            plot.legend(reverse=True)

    base_rate = evaluation.frauds / evaluation.rows
    limit = f"; best possible {evaluation.best_possible['average_precision']:.4f}" if evaluation.best_possible else ""
    caption = f"Average precision {_with_interval(evaluation, 'average_precision')}{limit}. Chance is {base_rate:.2%}."
    return Picture("Precision and recall", caption, inline(draw))


def roc(curves: Curves, evaluation: Evaluation) -> Picture:
    confusion = evaluation.confusion
    alarms, recall = confusion.fp / (confusion.fp + confusion.tn), confusion.tp / (confusion.tp + confusion.fn)

    def draw(plot: Axes) -> None:
        plot.plot([0, 1], [0, 1], color=MUTED, linewidth=0.8, label="chance")
        for points, style in _models(curves, "roc"):
            plot.plot(points["false_positive_rate"], points["recall"], **style)
        _shares(plot, "legitimate rows alerted (false positive rate)", "frauds caught (recall)")
        _mark(plot, evaluation, alarms, recall, f"recall {recall:.1%}\n{alarms:.2%} of legitimate")

    return Picture("ROC curve", f"Area {_with_interval(evaluation, 'auc_roc')}.", inline(draw))


def calibration(curves: Curves, evaluation: Evaluation, confidence: float) -> Picture:
    points = curves.calibration
    probability, found, low, high = (np.array(points[name]) for name in ("probability", "fraud_rate", "low", "high"))

    def draw(plot: Axes) -> None:
        plot.plot([0, 1], [0, 1], color=MUTED, linewidth=0.8, label="perfect")
        plot.vlines(probability, low, high, color=ACCENT, alpha=0.55)
        plot.plot(probability, found, "o", color=ACCENT, clip_on=False)
        _shares(plot, "probability given (mean of a step)", "fraud rate found; above: rows of the step")
        plot.set_title(plot.get_title("left"), pad=22)
        ends = -1.0  # of the last count; one that would meet it is left out
        for at, rows in zip(probability, points["rows"], strict=True):
            count = _compact(rows)
            half = 0.004 + 0.011 * len(count)
            if at - half > ends:
                plot.annotate(count, (at, 1), (0, 4), textcoords="offset points", ha="center", color=MUTED)
                ends = at + half
        plot.legend(loc="lower right")

    error = evaluation.metrics["calibration_error"]
    caption = f"Expected calibration error {error:.4f}. Bars are {confidence:.0%} intervals (Wilson)."
    return Picture("Calibration", caption, inline(draw))


def scores(curves: Curves, evaluation: Evaluation) -> Picture:
    points = curves.histogram
    edges = [*points["low"], points["high"][-1]]
    highest, lowest = max(*points["legitimate"], *points["fraud"], 10), 0.8

    def draw(plot: Axes) -> None:
        legitimate, frauds = (np.maximum(points[name], lowest) for name in ("legitimate", "fraud"))
        plot.set_yscale("log")
        rows = f"{evaluation.rows - evaluation.frauds:,} legitimate"
        plot.stairs(legitimate, edges, baseline=lowest, fill=True, color=MUTED, alpha=0.35, label=rows)
        plot.stairs(frauds, edges, color=ACCENT, linewidth=1.8, label=f"{evaluation.frauds:,} frauds")
        plot.set(xlabel="probability", title="rows a step, logarithmic", xlim=(0, 1), ylim=(lowest, 2 * highest))
        plot.xaxis.set_major_formatter(PercentFormatter(1, 0))
        plot.yaxis.set_major_formatter(number)
        plot.yaxis.set_minor_locator(NullLocator())
        plot.axvline(evaluation.threshold, linestyle=":", color=INK, linewidth=1, label=_threshold(evaluation))
        plot.legend(reverse=True)

    caption = f"Holdout rows by probability, in {len(points['low'])} steps; alerts lie right of the threshold."
    return Picture("Score distribution", caption, inline(draw))


def slices(column: str, parts: list[SliceEvaluation], evaluation: Evaluation, confidence: float) -> Picture:
    """Recall by the values of a column: those with most frauds, most of them first."""
    shown = sorted((part for part in parts if part.frauds), key=lambda part: -part.frauds)[:MOST_SLICES]
    overall = evaluation.metrics.get("recall", 0.0)

    def draw(plot: Axes) -> None:
        places = np.arange(len(shown))
        recall = [part.metrics["recall"] for part in shown]
        low, high = np.array([recall_interval(part, confidence) for part in shown]).T
        plot.axvline(overall, linestyle=":", color=INK, linewidth=1)
        plot.hlines(places, low, high, color=ACCENT, alpha=0.55)
        plot.plot(recall, places, "o", color=ACCENT)
        plot.set(xlabel="frauds caught (recall)", xlim=(-0.02, 1.02), ylim=(len(shown) - 0.4, -0.6))
        plot.xaxis.set_major_formatter(PercentFormatter(1, 0))
        plot.set_yticks(places, [shortened(slice_name(part)) for part in shown], color=INK)
        plot.grid(visible=False)
        for place, part in enumerate(shown):
            text = f"{round(recall[place] * part.frauds):,} of {part.frauds:,}"
            plot.annotate(text, (1, place), (60, 0), textcoords="offset points", ha="right", va="center", color=MUTED)

    rest = sum(part.frauds > 0 for part in parts) - len(shown)
    caption = (
        f"Share of frauds caught at the threshold, with {confidence:.0%} intervals (Wilson); dotted: all rows, "
        f"{overall:.1%}." + (f" The {rest:,} values with fewest frauds are in the table only." if rest else "")
    )
    return Picture(f"Recall by {column}", caption, inline(draw, height=60 + 24 * len(shown)))


def importance(losses: Mapping[str, float]) -> Picture:
    """What average precision loses by each column that is shuffled; those that lose most, the largest loss first."""
    shown = dict(list(losses.items())[:MOST_COLUMNS])

    def draw(plot: Axes) -> None:
        plot.barh(range(len(shown)), list(shown.values()), height=0.6, color=ACCENT)
        for place, loss in enumerate(shown.values()):
            edge = plot.get_yaxis_transform()  # the right one of the plot, in the height of the bar
            plot.text(1.02, place, f"{loss:.4f}", transform=edge, va="center", color=MUTED)
        plot.set(xlabel="loss of average precision", ylim=(len(shown) - 0.4, -0.6))
        plot.set_yticks(range(len(shown)), [shortened(name, 28) for name in shown], color=INK)
        plot.xaxis.set_major_formatter(number)
        plot.xaxis.set_major_locator(MaxNLocator(4))
        plot.grid(visible=False)

    rest = len(losses) - len(shown)
    caption = (
        "Average precision lost on a selection holdout when the values of a column are shuffled among its rows. "
        "Columns that say the same share what they say."
        + (f" The {rest:,} columns that lose least are in the table only." if rest else "")
    )
    return Picture("Loss without a column", caption, inline(draw, height=50 + 24 * len(shown)))


def recall_interval(part: SliceEvaluation, confidence: float) -> tuple[float, float]:
    """Interval of the recall of a slice, which has frauds."""
    return share_interval(round(part.metrics["recall"] * part.frauds), part.frauds, confidence)


def slice_name(part: SliceEvaluation) -> str:
    return part.value or "(missing)"


def alert_unit(curves: Curves, evaluation: Evaluation) -> tuple[float, str]:
    """By what alerts are divided, and the unit that gives: days where they are known, else thousands of rows."""
    return (curves.days, "a day") if curves.days else (evaluation.rows / 1_000, "per 1,000 rows")


def _models(curves: Curves, name: str) -> list[tuple[Points, dict[str, Any]]]:
    """A curve's points and how to draw them: of what is known of the amount alone, the best possible and the champion,
    and over them the model's."""
    model = {"color": ACCENT, "linewidth": 2, "label": "model"}
    best = {"color": MUTED, "linewidth": 1.2, "linestyle": "--", "label": "best possible"}
    amount = {"color": MUTED, "linewidth": 1.2, "linestyle": ":", "label": "amount alone"}
    champion = {"color": INK, "linewidth": 1, "label": "champion"}
    beneath = ((curves.amount_alone, amount), (curves.best_possible, best), (curves.champion, champion))
    return [(getattr(of, name), style) for of, style in (*beneath, (curves.model, model)) if of is not None]


def _shares(plot: Axes, across: str, up: str) -> None:
    """Both axes from 0 to 100 %."""
    plot.set(xlabel=across, title=up, xlim=(-0.01, 1.01), ylim=(-0.01, 1.02))
    for axis in (plot.xaxis, plot.yaxis):
        axis.set_major_formatter(PercentFormatter(1, 0))


def _mark(plot: Axes, evaluation: Evaluation, x: float, y: float, gives: str) -> None:
    """The point of the threshold, and beside what the lines are, where there is room, what it gives."""
    plot.plot(x, y, "o", color=ACCENT, clip_on=False, label=f"{_threshold(evaluation)}\n{gives}")
    plot.legend(reverse=True)


def _threshold(evaluation: Evaluation) -> str:
    return f"threshold {evaluation.threshold:.4f}"


def _with_interval(evaluation: Evaluation, name: str) -> str:
    interval = evaluation.intervals.get(name)
    return f"{evaluation.metrics[name]:.4f}" + (f" ({interval[0]:.4f} to {interval[1]:.4f})" if interval else "")


def _compact(count: float) -> str:
    for size, unit in ((1e6, "M"), (1e3, "k")):
        if count >= size:
            return f"{count / size:.1f}{unit}" if count < 10 * size else f"{count / size:.0f}{unit}"
    return f"{count:.0f}"
