"""What a backtest hands on: models with their logits, and then their figures on every final fold."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from fraud_ray.decision.bootstrap import Difference
from fraud_ray.decision.curves import Points
from fraud_ray.decision.evaluate import Evaluation
from fraud_ray.progress import counted
from fraud_ray.values import Value

NETWORK = "network"
# The metrics that picture and tables show, by what their names begin with.
SHOWN = ("auc_roc", "average_precision", "card_precision", "f1_score", "brier_skill")
Logits = tuple[npt.NDArray[np.float32], ...]


@dataclass(frozen=True)
class Choice(Value):
    """What was chosen for a model: the best of its trials, and its mean AP over the selection holdouts.

    seconds: of the search and of all fits.
    """

    name: str
    hyperparameters: dict[str, Any]
    trials: int
    average_precision: float
    seconds: float

    def __str__(self) -> str:
        by_default = "the settings as given" if self.name == NETWORK else "as its library proposes"
        best = ", ".join(f"{name} {value}" for name, value in self.hyperparameters.items()) or by_default
        told = f"{counted(self.trials, 'trial')} in {self.seconds:.0f} s; best: {best}"
        return f"{told}, selection AP {self.average_precision:.4f}"


@dataclass(frozen=True)
class Candidate:
    """A model before it is judged: logits float32 (rows,) of each selection holdout, then of each final one."""

    choice: Choice
    selection: Logits
    final: Logits


@dataclass(frozen=True)
class Contender(Value):
    """A model's figures: an evaluation a final fold, and how reliable the probabilities of all its alerts are."""

    choice: Choice
    evaluations: tuple[Evaluation, ...]
    alerts: Points

    @property
    def in_words(self) -> str:
        return self.choice.name.replace("_", " ")

    @property
    def metrics(self) -> dict[str, tuple[float, float]]:
        """Mean and standard deviation (of a sample) over the folds, of every metric that all of them have."""
        first, *others = (one.metrics for one in self.evaluations)
        shared = {
            name: [first[name], *(of[name] for of in others)] for name in first if all(name in of for of in others)
        }
        ddof = 1 if others else 0
        return {name: (float(np.mean(values)), float(np.std(values, ddof=ddof))) for name, values in shared.items()}

    def to_json(self) -> dict[str, Any]:
        means = {name: {"mean": mean, "deviation": deviation} for name, (mean, deviation) in self.metrics.items()}
        return {**super().to_json(), "metrics": means}


@dataclass(frozen=True)
class Backtest(Value):
    """What a backtest came to.

    selection, folds: the span of each selection and final fold, the final ones newest first. models: the network, then
    the references. differences: by how much the network's mean exceeds a reference's, by reference and metric. notes:
    what a reader should know: references and files of the data that were left out. timings: seconds a stage.
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
        return {model.in_words: [one.metrics.get(metric) for one in model.evaluations] for model in self.models}

    def to_json(self) -> dict[str, Any]:
        return {**super().to_json(), "models": [model.to_json() for model in self.models]}
