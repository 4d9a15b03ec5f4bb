"""`fraud-ray backtest`: the network and reference models on several final folds."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated

import typer

from fraud_ray.cli.options import AsJson, Config, Overrides

if TYPE_CHECKING:
    from fraud_ray.backtest.result import Backtest


def backtest(
    ctx: typer.Context,
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
    from fraud_ray.cli.backtests import print_backtest
    from fraud_ray.cli.display import Display, stdout_for_the_result
    from fraud_ray.cluster import refuse_relative_folders
    from fraud_ray.settings import load_settings

    named = [f"run.name={json.dumps(name)}"] if name is not None else []
    loaded = load_settings(config, [*(overrides or ()), *named])
    if ctx.obj:
        refuse_relative_folders(loaded.settings)

    from fraud_ray.backtest import story

    with stdout_for_the_result():
        result: Backtest = story.backtest(loaded, Display())
    if as_json:
        typer.echo(json.dumps(result.to_json(), indent=1))
    else:
        print_backtest(result)
