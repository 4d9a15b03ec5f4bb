"""`fraud-ray reproduce`: a run's model fitted again, and compared."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Annotated

import typer
from rich.text import Text

from fraud_ray.cli.options import RUN_WANTED, AsJson, ConfigOrDefaults, Overrides, sections_of, storage_of
from fraud_ray.cli.tables import print_json, print_line, print_notes, print_table
from fraud_ray.errors import EXIT_FAULT

if TYPE_CHECKING:
    from fraud_ray.reproduce import Reproduction


def reproduce(
    name: Annotated[str, typer.Argument(metavar="RUN", help=RUN_WANTED)],
    config: ConfigOrDefaults = None,
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Fit a run's winner again, from the data and the settings that the run recorded, and compare the weights.

    Of the configuration only storage.root and cluster count. Ends with exit code 0 if all weights are the same to the
    bit, else with 1.
    """
    storage = storage_of(config, overrides)
    cluster = sections_of(config, overrides)[2] if config else None

    from fraud_ray import reproduce
    from fraud_ray.cli.display import Display, stdout_for_the_result

    with stdout_for_the_result():
        reproduction = reproduce.reproduce(storage, name, Display(), cluster)
    if as_json:
        print_json({**dataclasses.asdict(reproduction), "is_exact": reproduction.is_exact})
    else:
        _print(reproduction)
    raise typer.Exit(0 if reproduction.is_exact else EXIT_FAULT)


def _print(reproduction: Reproduction) -> None:
    """What changed since the run, the weights and metrics that differ, and the verdict."""
    if reproduction.changed:
        rows = ([key, *pair] for key, pair in reproduction.changed.items())
        print_table(["Changed since", "Then", "Now"], rows)
    differing = [tensor for tensor in reproduction.weights if not tensor.is_same]
    if differing:
        columns, weights = ["Weights that differ", "Elements", "Differing", "Largest difference"], []
        for tensor in differing:
            is_reshaped = tensor.differing is None
            shown = ["all", "other shape"] if is_reshaped else [f"{tensor.differing:,}", f"{tensor.largest:.3g}"]
            weights.append([tensor.name, f"{tensor.elements:,}", *shown])
        print_table(columns, weights, right=columns[1:])
    moved = {key: pair for key, pair in reproduction.metrics.items() if pair[0] != pair[1]}
    if moved:
        columns = ["Metric", "Then", "Now", "Difference"]
        figures = ([key, f"{old:.6f}", f"{new:.6f}", f"{new - old:+.2g}"] for key, (old, new) in moved.items())
        print_table(columns, figures, right=columns[1:])
    print_line(_verdict(reproduction, len(differing), len(moved)))
    print_notes(reproduction.notes)


def _verdict(reproduction: Reproduction, differing: int, moved: int) -> Text:
    of_metrics = f"{moved} of {len(reproduction.metrics)} metrics differ" if moved else "all metrics are equal"
    if reproduction.is_exact:
        elements = sum(tensor.elements for tensor in reproduction.weights)
        text = f": all {elements:,} weights are the same to the bit; {of_metrics}"
        return Text.assemble(("reproduced", "bold green"), f" {reproduction.run}{text}")
    text = f": {differing} of {len(reproduction.weights)} tensors differ; {of_metrics}"
    return Text.assemble(("not reproduced", "bold red"), f" {reproduction.run}{text}")
