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
    fitted anew on each final fold, with [bold]backtest.seeds[/] seeds, and its holdout is looked at once. The reference
    models ([bold]backtest.references[/]) get the same folds, columns and seeds, and as many trials, eight at least.

    Prints mean and standard deviation over the folds, and by how much the network's average precision differs, with a
    paired bootstrap interval over entities and seeds: a lead is one that lies above 0. Nothing is registered. The same
    command again answers at once, or goes on where it stood.
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
    """Means, by how much the network differs, average precision by fold, and how reliable the network's alerts are."""
    _print_figures(result, "final fold")
    if result.later:
        _print_figures(result.later, "later fold")
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
    print_notes((*result.notes, *(result.later.notes if result.later else ())))


def _print_figures(result: Backtest, kind: str) -> None:
    """A table of means over folds of this kind, and one of average precision by fold."""
    shown = {model.in_words: model for model in result.models}
    names, days = result.shown, result.days
    titles, judged = [metric_name(name) for name in names], metric_name(_JUDGED)
    rows = []
    for model_name, model in shown.items():
        means = (model.metrics.get(name) for name in names)
        cells = ("" if mean is None else f"{mean[0]:.4f} ± {mean[1]:.4f}" for mean in means)
        rows.append([model_name, *cells, _difference(result.differences.get(model.choice.name, {}).get(_JUDGED))])
    title = f"Mean ± standard deviation over {counted(len(result.folds), kind)}"
    print_table(["Model", *titles, f"{judged}: the network less it"], rows, right=titles, title=title)
    rows = [[name, *_figures(model.by_fold(_JUDGED))] for name, model in shown.items()]
    print_table(["Model", *days], rows, right=days, title=f"{judged} by first day of the holdout")


def _difference(found: Difference | None) -> str:
    if found is None:
        return ""
    return f"{found.value:+.4f} ± {found.error:.4f} ({found.low:+.4f} … {found.high:+.4f}): {found.verdict}"


def _figures(values: Iterable[float | None]) -> list[str]:
    return ["" if value is None else f"{value:.4f}" for value in values]
