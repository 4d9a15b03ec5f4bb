"""The model card: what a registered version says of itself, in a page of Markdown made from the report's values."""

from __future__ import annotations

from fraud_ray.progress import counted
from fraud_ray.redaction import without_passwords
from fraud_ray.report.page import ReportValues
from fraud_ray.report.pictures import recall_interval, slice_name

MOST_CHARACTERS = 5_000  # what MLflow's database keeps of a version's description
FEWEST_FRAUDS, MOST_SLICES, MOST_CHECKS = 20, 3, 8


def model_card(values: ReportValues) -> str:
    """Purpose, data, figures, checks and limits of the model, at most MOST_CHARACTERS long."""
    run, evaluation = values.run, values.evaluation
    sections = [
        f"# {values.settings.registry.model_name}: run {run.name}",
        f"Gives a card transaction its probability of fraud (calibration: {values.settings.decision.calibration}); "
        f"from {evaluation.threshold:.4f} up it is an alert. Reads {values.reads}.",
        f"**Trained** on {without_passwords(values.data)} (fingerprint `{run.record['fingerprint']}`), "
        f"{values.final.span}: "
        f"{counted(values.final.fit.rows, 'fit row')} with {counted(values.final.fit.frauds, 'fraud')}; "
        f"started {run.created[:16].replace('T', ' ')} UTC by {run.record['user']}, code: {values.code}.",
        f"**Result.** {values.summary}",
        _figures(values),
        _gate(values),
        _weakest(values),
        f"**Report:** {without_passwords(run.folder)}/report.html",
    ]
    card = "\n\n".join(section for section in sections if section) + "\n"
    return card if len(card) <= MOST_CHARACTERS else card[: MOST_CHARACTERS - 2] + "…\n"


def _figures(values: ReportValues) -> str:
    """A table of the figures, with the columns that there is something to say in."""
    evaluation, interval = values.evaluation, f"{values.settings.decision.confidence:.0%} interval"
    shown = [("On the final holdout", True), ("Value", True)]
    shown += [(interval, bool(evaluation.intervals)), ("Best possible", bool(evaluation.best_possible))]
    rows = [
        (label, f"{value:.4f}", f"{span[0]:.4f} … {span[1]:.4f}" if span else "", "" if best is None else f"{best:.4f}")
        for label, value, span, best in values.metrics
    ]
    table = [[name for name, _ in shown], ["---"] * len(shown), *rows]
    return "\n".join(
        f"| {' | '.join(cell for cell, (_, is_shown) in zip(row, shown, strict=True) if is_shown)} |" for row in table
    )


def _gate(values: ReportValues) -> str:
    checks = values.decision.checks
    told = [check.message for check in checks[:MOST_CHECKS]] or ["no check is set"]
    left = len(checks) - MOST_CHECKS
    more = [f"{counted(left, 'more check is', 'more checks are')} in the report"] if left > 0 else []
    return f"**Gate.** {'; '.join([*told, *more])}."


def _weakest(values: ReportValues) -> str:
    """The slices with the lowest recall among those with enough frauds to say so."""
    confidence = values.settings.decision.confidence
    told = []
    for column, parts in values.slices.items():
        judged = sorted((p for p in parts if p.frauds >= FEWEST_FRAUDS), key=lambda part: part.metrics["recall"])
        for part in judged[:MOST_SLICES]:
            low, high = recall_interval(part, confidence)
            told.append(
                f"- {column} {slice_name(part)}: {part.metrics['recall']:.4f} ({low:.4f} … {high:.4f}), "
                f"{counted(part.frauds, 'fraud')} in {counted(part.rows, 'row')}"
            )
    return (
        "\n".join([f"**Lowest recall** among slices with {FEWEST_FRAUDS} frauds or more:", "", *told]) if told else ""
    )
