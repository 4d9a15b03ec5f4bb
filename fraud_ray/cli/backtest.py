"""`fraud-ray backtest`: the network and reference models on several final folds."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated

import typer

from fraud_ray.cli.options import AsJson, Config, Overrides, load
from fraud_ray.cli.tables import print_json, print_line, print_notes, print_table
from fraud_ray.decision.names import metric_name
from fraud_ray.progress import counted

if TYPE_CHECKING:
    from fraud_ray.backtest.result import Backtest
    from fraud_ray.decision.bootstrap import Difference

_JUDGED = "average_precision"


def backtest(
    context: typer.Context,
    config: Config,
    overrides: Overrides = None,
    name: Annotated[
        str | None, typer.Option("--name", help="The backtest's name, to which '-backtest' is added.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Train and judge on several final folds, with reference models beside the network.

    One final fold an entry of [bold]backtest.shift_days[/], each so many days before the fold that `run` holds out.
    Hyperparameters, epochs, calibration and threshold are chosen once, on the selection folds of
    [bold]folds.selection_shift_days[/], which must end before the first final holdout begins; then every model is
    fitted anew on each final fold, and its holdout is looked at once. The reference models
    ([bold]backtest.references[/]) get the same folds, columns and number of trials.

    Prints mean and standard deviation over the folds, and the network's lead in average precision with its paired
    bootstrap interval. Nothing is registered. The same command again answers at once, or goes on where it stood.
    """
    loaded = load(context, config, overrides, name)

    from fraud_ray.backtest import story
    from fraud_ray.cli.display import Display, stdout_for_the_result

    with stdout_for_the_result():
        result: Backtest = story.backtest(loaded, Display())
    if as_json:
        print_json(result.to_json())
    else:
        print_backtest(result)


def print_backtest(result: Backtest) -> None:
    """Means over the folds, the network's lead, average precision by fold, and how reliable its alerts are."""
    shown = {model.in_words: model for model in result.models}
    names, days = result.shown, result.days
    titles, judged = [metric_name(name) for name in names], metric_name(_JUDGED)
    rows = []
    for model_name, model in shown.items():
        means = (model.metrics.get(name) for name in names)
        cells = ("" if mean is None else f"{mean[0]:.4f} ± {mean[1]:.4f}" for mean in means)
        rows.append([model_name, *cells, _lead(result.differences.get(model.choice.name, {}).get(_JUDGED))])
    title = f"Mean ± standard deviation over {counted(len(result.folds), 'final fold')}"
    print_table(["Model", *titles, f"{judged}: lead of the network"], rows, right=titles, title=title)
    rows = [[name, *_figures(one.metrics.get(_JUDGED) for one in m.evaluations)] for name, m in shown.items()]
    print_table(["Model", *days], rows, right=days, title=f"{judged} by first day of the holdout")
    network = result.models[0]
    bins = zip(*(network.alerts[name] for name in ("rows", "probability", "fraud_rate", "low", "high")), strict=True)
    rows = [[f"{count:,.0f}", *_figures(rates), f"{low:.4f} … {high:.4f}"] for count, *rates, low, high in bins]
    columns = ["Alerts", "Mean probability", "Fraud rate", "99% interval"]
    print_table(columns, rows, right=columns, title=f"Alerts of the {network.choice.name} by score, all folds")
    for line in (
        *(f"{model.choice.name}: {model.choice}" for model in result.models),
        f"selection: {'; '.join(result.selection)}",
        f"by fold as a picture: {result.picture}",
        f"backtest {result.name} at {result.folder}",
    ):
        print_line(line)
    print_notes(result.notes)


def _lead(difference: Difference | None) -> str:
    if difference is None:
        return ""
    return f"{difference.value:+.4f} ± {difference.error:.4f} ({difference.low:+.4f} … {difference.high:+.4f})"


def _figures(values: Iterable[float | None]) -> list[str]:
    return ["" if value is None else f"{value:.4f}" for value in values]
