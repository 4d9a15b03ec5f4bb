"""What `fraud-ray backtest` prints, on stdout."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich.table import Table

from fraud_ray.backtest.result import Backtest, Contender
from fraud_ray.cli.tables import new_console, new_table
from fraud_ray.decision.bootstrap import Difference
from fraud_ray.decision.names import metric_name
from fraud_ray.progress import counted

_JUDGED = "average_precision"


def print_backtest(result: Backtest) -> None:
    """Means over the folds, the network's lead, average precision by fold, and how reliable its alerts are."""
    console = new_console()
    console.print(_means_table(result))
    console.print(_folds_table(result))
    console.print(_alerts_table(result.models[0]))
    for line in (
        *(f"{model.choice.name}: {model.choice}" for model in result.models),
        *result.notes,
        f"selection: {'; '.join(result.selection)}",
        f"by fold as a picture: {result.picture}",
        f"backtest {result.name} at {result.folder}",
    ):
        console.print(line, soft_wrap=True, highlight=False, markup=False)


def _means_table(result: Backtest) -> Table:
    names = result.shown
    titles = [metric_name(name) for name in names]
    lead = f"{metric_name(_JUDGED)}: lead of the network"
    title = f"Mean ± standard deviation over {counted(len(result.folds), 'final fold')}"
    table = new_table("Model", *titles, lead, right=titles, title=title)
    for model in result.models:
        means = model.metrics
        cells = (f"{means[name][0]:.4f} ± {means[name][1]:.4f}" if name in means else "" for name in names)
        table.add_row(model.in_words, *cells, _lead(result.differences.get(model.choice.name, {}).get(_JUDGED)))
    return table


def _lead(difference: Difference | None) -> str:
    if difference is None:
        return ""
    return f"{difference.value:+.4f} ± {difference.error:.4f} ({difference.low:+.4f} … {difference.high:+.4f})"


def _folds_table(result: Backtest) -> Table:
    table = new_table(
        "Model", *result.days, right=result.days, title=f"{metric_name(_JUDGED)} by first day of the holdout"
    )
    for model, values in result.by_fold(_JUDGED).items():
        table.add_row(model, *_row(values))
    return table


def _alerts_table(model: Contender) -> Table:
    points = model.alerts
    columns = ("Alerts", "Mean probability", "Fraud rate", "99% interval")
    table = new_table(*columns, right=columns, title=f"Alerts of the {model.choice.name} by score, all folds")
    bins: Sequence[tuple[float, ...]] = list(
        zip(*(points[name] for name in ("rows", "probability", "fraud_rate", "low", "high")), strict=True)
    )
    for rows, probability, fraud_rate, low, high in bins:
        table.add_row(f"{rows:,.0f}", *_row((probability, fraud_rate)), f"{low:.4f} … {high:.4f}")
    return table


def _row(values: Iterable[float | None]) -> list[str]:
    return ["" if value is None else f"{value:.4f}" for value in values]
