"""What a backtest hands on: each model's figures on every final fold, and by how much they differ."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import numpy as np

from fraud_ray.decision.bootstrap import Difference
from fraud_ray.decision.curves import Points
from fraud_ray.decision.evaluate import Evaluation
from fraud_ray.progress import counted
from fraud_ray.training.candidates import Choice
from fraud_ray.values import Value

NETWORK = "network"
# The metrics that picture and tables show, by what their names begin with.
SHOWN = ("auc_roc", "average_precision", "card_precision", "f1_score", "brier_skill")


@dataclass(frozen=True)
class Contender(Value):
    """A model's figures: an evaluation a final fold, and how reliable the probabilities of all its alerts are.

    Both are of the first seed. further: by each other seed, the metrics on every final fold.
    """

    choice: Choice
    evaluations: tuple[Evaluation, ...]
    alerts: Points
    further: tuple[tuple[dict[str, float], ...], ...] = ()

    @property
    def in_words(self) -> str:
        return self.choice.in_words

    @property
    def metrics(self) -> dict[str, tuple[float, float]]:
        """Mean and standard deviation (of a sample) over the folds, of every metric that all of them have."""
        ddof = 1 if len(self.evaluations) > 1 else 0
        by_fold = {name: self.by_fold(name) for name in self.evaluations[0].metrics}
        shared = {name: [v for v in values if v is not None] for name, values in by_fold.items() if None not in values}
        return {name: (float(np.mean(values)), float(np.std(values, ddof=ddof))) for name, values in shared.items()}

    def by_fold(self, metric: str) -> list[float | None]:
        """The mean over the seeds, a value a final fold; None where it is undefined."""
        seeds = [tuple(one.metrics for one in self.evaluations), *self.further]
        found = ([of.get(metric) for of in fold] for fold in zip(*seeds, strict=True))
        return [None if None in of else float(np.mean([v for v in of if v is not None])) for of in found]

    def to_json(self) -> dict[str, Any]:
        means = {name: {"mean": mean, "deviation": deviation} for name, (mean, deviation) in self.metrics.items()}
        return {**super().to_json(), "metrics": means}


@dataclass(frozen=True)
class Backtest(Value):
    """What a backtest came to.

    selection, folds: the span of each selection and final fold, the final ones newest first. models: the network, then
    the references. differences: by how much the network's mean exceeds a reference's, by reference and metric. notes:
    what a reader should know: references and files of the data that were left out. timings: seconds a stage. later: the
    same of the folds of `backtest.later_days`.
    """

    name: str
    folder: str
    selection: tuple[str, ...]
    folds: tuple[str, ...]
    models: tuple[Contender, ...]
    differences: dict[str, dict[str, Difference]]
    notes: tuple[str, ...]
    picture: str
    timings: dict[str, float]
    later: Backtest | None = None

    @property
    def shown(self) -> list[str]:
        """The metrics that picture and tables show, of those that the network has."""
        return [name for prefix in SHOWN for name in self.models[0].metrics if name.startswith(prefix)]

    @property
    def in_words(self) -> str:
        """The network's figures, as the stage's line has them."""
        means = self.models[0].metrics
        told = (f"{name} {means[name][0]:.4f}" for name in ("auc_roc", "average_precision") if name in means)
        return f"the {NETWORK} on {counted(len(self.folds), 'fold')}: {', '.join(told)}"

    @property
    def days(self) -> list[str]:
        """The first day, or second, of each final fold's holdout."""
        found = ((span, re.search(r"holdout (.+?) to ", span)) for span in self.folds)
        return [day[1] if day else span for span, day in found]

    def by_fold(self, metric: str) -> dict[str, list[float | None]]:
        """A metric by model, in words: a value a final fold, None where it is undefined."""
        return {model.in_words: model.by_fold(metric) for model in self.models}

    def to_json(self) -> dict[str, Any]:
        later = self.later and self.later.to_json()
        return {**super().to_json(), "models": [model.to_json() for model in self.models], "later": later}
