"""The picture of a backtest: each metric by final fold, a line a model."""

from __future__ import annotations

import io
import re

from matplotlib.figure import Figure

from fraud_ray.backtest.result import Backtest, Contender

SHOWN = ("auc_roc", "average_precision", "card_precision", "f1_score", "brier_skill")
TITLES = {
    "auc_roc": "ROC AUC",
    "average_precision": "average precision",
    "f1_score": "F1",
    "brier_skill": "Brier skill",
}
FIRST, OTHERS = "#1f5fa8", ("#b3661e", "#6b8e4e", "#8a5a9e", "#7a7a7a")
PANEL = (4.4, 2.8)  # inches


def draw(result: Backtest, form: str) -> bytes:
    """An SVG or PNG file; the oldest fold is on the left. form: svg or png."""
    names = shown_metrics(result.models[0])
    across = min(len(names), 3)
    down = -(-len(names) // across)
    figure = Figure(figsize=(PANEL[0] * across, PANEL[1] * down + 0.9), layout="constrained")
    panels = figure.subplots(down, across, squeeze=False).ravel()
    days = [holdout_begins(span) for span in reversed(result.folds)]
    for panel, name in zip(panels, names, strict=False):
        for model, colour in zip(result.models, (FIRST, *OTHERS), strict=False):
            values = [one.metrics.get(name) for one in reversed(model.evaluations)]
            first = model is result.models[0]
            label = model.choice.name.replace("_", " ")
            panel.plot(
                days, values, marker="o", markersize=4, linewidth=2.2 if first else 1.2, color=colour, label=label
            )
        panel.set_title(metric_title(name), fontsize=10, loc="left")
        panel.tick_params(labelsize=8)
        panel.spines[["top", "right"]].set_visible(False)
    for panel in panels[len(names) :]:
        panel.remove()
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False, fontsize=9)
    figure.suptitle(f"{result.name}: by first day of the holdout", x=0.01, ha="left", fontsize=11)
    file = io.BytesIO()
    figure.savefig(file, format=form, dpi=150, metadata={"Date": None} if form == "svg" else None)
    return file.getvalue()


def shown_metrics(model: Contender) -> list[str]:
    """The metrics that picture and tables show, of those that the model has."""
    return [name for prefix in SHOWN for name in model.metrics if name.startswith(prefix)]


def metric_title(name: str) -> str:
    return TITLES.get(name, name.replace("_", " "))


def holdout_begins(span: str) -> str:
    """The first day of a fold's holdout, from its span."""
    found = re.search(r"holdout (\S+)", span)
    return found[1] if found else span
