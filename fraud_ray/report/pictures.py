"""The report's pictures of a model's decisions, each with a title and a caption that says what is seen."""

from __future__ import annotations

from dataclasses import dataclass

from markupsafe import Markup

from fraud_ray.decision.curves import Curves, Points, share_interval
from fraud_ray.decision.evaluate import Evaluation, SliceEvaluation
from fraud_ray.report.plot import CHARACTER, WIDTH, Axis, Plot, number, percent

MOST_SLICES = 25


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
    known = [curves.model, *([curves.best_possible] if curves.best_possible else [])]
    most = max([raised, *(alerts / per for ranking in known for alerts in ranking.alerts["alerts"])])
    title = f"Alerts {unit} against frauds caught"
    plot = Plot(title, Axis(f"alerts {unit}", 0, most), Axis("frauds caught (recall)", 0, 1, percent))

    for kind, points in _by_kind(curves, "alerts"):
        xs = [0.0, *(alerts / per for alerts in points["alerts"])]
        plot.line(xs, [0.0, *(frauds / evaluation.frauds for frauds in points["frauds"])], kind)
    plot.segment((raised, 0), (raised, caught), "rule")
    plot.dot(raised, caught)
    plot.label(
        [f"threshold {evaluation.threshold:.4f}", f"{rate(raised)} alerts, {caught:.1%} caught"], (raised, caught)
    )
    plot.key(_key(curves), (most, 0))
    precision = evaluation.metrics.get("precision")
    caption = "No alert is raised at the threshold."
    if precision is not None:
        caption = (
            f"At the threshold {rate(raised)} alerts {unit} catch {caught:.1%} of the frauds; "
            f"{1 - precision:.1%} of the alerts are false."
        )
    return Picture(title, caption, plot.svg())


def precision_recall(curves: Curves, evaluation: Evaluation) -> Picture:
    plot = Plot("Precision and recall", Axis("recall", 0, 1, percent), Axis("precision", 0, 1, percent))
    for kind, points in _by_kind(curves, "precision_recall"):
        plot.line(points["recall"], points["precision"], kind)
    metrics = evaluation.metrics
    if "precision" in metrics and "recall" in metrics:
        here = metrics["recall"], metrics["precision"]
        plot.dot(*here)
        lines = [f"threshold {evaluation.threshold:.4f}", f"precision {here[1]:.1%}", f"recall {here[0]:.1%}"]
        plot.label(lines, here)
    plot.key(_key(curves), (0, 0))
    base_rate = evaluation.frauds / evaluation.rows
    limit = f"; best possible {evaluation.best_possible['average_precision']:.4f}" if evaluation.best_possible else ""
    caption = f"Average precision {_with_interval(evaluation, 'average_precision')}{limit}. Chance is {base_rate:.2%}."
    return Picture("Precision and recall", caption, plot.svg())


def roc(curves: Curves, evaluation: Evaluation) -> Picture:
    plot = Plot(
        "ROC curve",
        Axis("legitimate rows alerted (false positive rate)", 0, 1, percent),
        Axis("frauds caught (recall)", 0, 1, percent),
    )
    plot.segment((0, 0), (1, 1), "chance")
    for kind, points in _by_kind(curves, "roc"):
        plot.line(points["false_positive_rate"], points["recall"], kind)
    confusion = evaluation.confusion
    here = confusion.fp / (confusion.fp + confusion.tn), confusion.tp / (confusion.tp + confusion.fn)
    plot.dot(*here)
    plot.label([f"threshold {evaluation.threshold:.4f}", f"recall {here[1]:.1%}", f"{here[0]:.2%} of legitimate"], here)
    plot.key([*_key(curves), ("chance", "chance")], (1, 0))
    return Picture("ROC curve", f"Area {_with_interval(evaluation, 'auc_roc')}.", plot.svg())


def calibration(curves: Curves, evaluation: Evaluation, confidence: float) -> Picture:
    points = curves.calibration
    plot = Plot(
        "Calibration",
        Axis("probability given (mean of a step)", 0, 1, percent),
        Axis("fraud rate found; above: rows of the step", 0, 1.08, percent),
    )
    plot.segment((0, 0), (1, 1), "chance")
    columns = (points[name] for name in ("probability", "fraud_rate", "low", "high", "rows"))
    ends = 0.0  # of the last count; one that would meet it is left out
    for probability, fraud_rate, low, high, rows in zip(*columns, strict=True):
        plot.segment((probability, low), (probability, high), "whisker")
        plot.dot(probability, fraud_rate)
        count = _compact(rows)
        middle, _ = plot.at(probability, 0)
        half = CHARACTER * len(count) / 2
        if middle - half > ends:
            plot.text_units(middle, plot.top + 8, count, anchor="middle")
            ends = middle + half
    plot.key([("chance", "perfect")], (1, 0))
    error = evaluation.metrics["calibration_error"]
    caption = f"Expected calibration error {error:.4f}. Bars are {confidence:.0%} intervals (Wilson)."
    return Picture("Calibration", caption, plot.svg())


def scores(curves: Curves, evaluation: Evaluation) -> Picture:
    points = curves.histogram
    edges = [*points["low"], points["high"][-1]]
    highest = max(*points["legitimate"], *points["fraud"], 10)
    plot = Plot(
        "Score distribution",
        Axis("probability", 0, 1, percent),
        Axis("rows a step, logarithmic", 0.8, 1.3 * highest, number, log=True),
    )
    plot.steps(edges, points["legitimate"], "area")
    plot.steps(edges, points["fraud"], "line")
    plot.segment((evaluation.threshold, 0.8), (evaluation.threshold, 1.3 * highest), "rule")
    plot.label([f"threshold {evaluation.threshold:.4f}"], (evaluation.threshold, highest))
    legitimate = evaluation.rows - evaluation.frauds
    plot.key([("line", f"{evaluation.frauds:,} frauds"), ("area", f"{legitimate:,} legitimate")], (1, highest))
    caption = f"Holdout rows by probability, in {len(points['low'])} steps; alerts lie right of the threshold."
    return Picture("Score distribution", caption, plot.svg())


def slices(column: str, parts: list[SliceEvaluation], evaluation: Evaluation, confidence: float) -> Picture:
    """Recall by the values of a column: those with most frauds, most of them first."""
    shown = sorted((part for part in parts if part.frauds), key=lambda part: -part.frauds)[:MOST_SLICES]
    names = [_cut(slice_name(part), 16) for part in shown]
    left = 12 + CHARACTER * max(map(len, names), default=0)
    plot = Plot(
        f"Recall by {column}",
        Axis("frauds caught (recall)", 0, 1, percent, most_ticks=4),
        Axis("", len(shown), 0, most_ticks=0),
        height=60 + 24 * len(shown),
        left=left,
        right=66,
    )
    overall = evaluation.metrics.get("recall", 0.0)
    plot.segment((overall, 0), (overall, len(shown)), "rule")
    for row, (part, name) in enumerate(zip(shown, names, strict=True)):
        recall = part.metrics["recall"]
        low, high = recall_interval(part, confidence)
        plot.segment((low, row + 0.5), (high, row + 0.5), "whisker")
        plot.dot(recall, row + 0.5)
        _, y = plot.at(0, row + 0.5)
        plot.text_units(left - 8, y + 4, name, "name", "end")
        plot.text_units(WIDTH, y + 4, f"{round(recall * part.frauds):,} of {part.frauds:,}", anchor="end")
    rest = sum(part.frauds > 0 for part in parts) - len(shown)
    caption = (
        f"Share of frauds caught at the threshold, with {confidence:.0%} intervals (Wilson); dotted: all rows, "
        f"{overall:.1%}." + (f" The {rest:,} values with fewest frauds are in the table only." if rest else "")
    )
    return Picture(f"Recall by {column}", caption, plot.svg())


def recall_interval(part: SliceEvaluation, confidence: float) -> tuple[float, float]:
    """Interval of the recall of a slice, which has frauds."""
    return share_interval(round(part.metrics["recall"] * part.frauds), part.frauds, confidence)


def slice_name(part: SliceEvaluation) -> str:
    return part.value or "(missing)"


def alert_unit(curves: Curves, evaluation: Evaluation) -> tuple[float, str]:
    """By what alerts are divided, and the unit that gives: days where they are known, else thousands of rows."""
    return (curves.days, "a day") if curves.days else (evaluation.rows / 1_000, "per 1,000 rows")


def rate(value: float) -> str:
    """Alerts a day, with a digit after the point where that says something."""
    return f"{value:,.0f}" if value >= 100 or value == round(value) else f"{value:.1f}"


def _by_kind(curves: Curves, name: str) -> list[tuple[str, Points]]:
    """Kind of line and points of a curve: the best possible where it is known, and over it the model's."""
    best = [("reference", getattr(curves.best_possible, name))] if curves.best_possible else []
    return [*best, ("line", getattr(curves.model, name))]


def _key(curves: Curves) -> list[tuple[str, str]]:
    return [("line", "model"), *([("reference", "best possible")] if curves.best_possible else [])]


def _with_interval(evaluation: Evaluation, name: str) -> str:
    interval = evaluation.intervals.get(name)
    return f"{evaluation.metrics[name]:.4f}" + (f" ({interval[0]:.4f} to {interval[1]:.4f})" if interval else "")


def _compact(count: float) -> str:
    for size, unit in ((1e6, "M"), (1e3, "k")):
        if count >= size:
            return f"{count / size:.1f}{unit}" if count < 10 * size else f"{count / size:.0f}{unit}"
    return f"{count:.0f}"


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"
