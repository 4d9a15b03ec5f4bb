"""Which models are fitted beside the network, and what was chosen for each; light to import."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fraud_ray.progress import counted
from fraud_ray.settings import ReferenceName
from fraud_ray.values import Value

# References whose packages, of the same names, come with the extra `compare`.
_EXTRA = ("xgboost", "lightgbm", "catboost")


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

    @property
    def in_words(self) -> str:
        return self.name.replace("_", " ")

    def __str__(self) -> str:
        best = ", ".join(f"{name} {value}" for name, value in self.hyperparameters.items()) or "the settings as given"
        told = f"{counted(self.trials, 'trial')} in {self.seconds:.0f} s; best: {best}"
        return f"{told}, selection AP {self.average_precision:.4f}"


def split_by_package(names: Sequence[ReferenceName]) -> tuple[tuple[ReferenceName, ...], tuple[str, ...]]:
    """Those references that can be fitted here, and a note on each of the others."""
    there = tuple(name for name in names if name not in _EXTRA or importlib.util.find_spec(name))
    absent = (name for name in names if name not in there)
    return there, tuple(f"{name} is left out: it needs the extra 'compare'" for name in absent)
