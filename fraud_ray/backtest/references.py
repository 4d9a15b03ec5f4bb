"""Reference models of other kinds, given the folds, the columns and the number of trials that the network had.

They read the arrays that the network reads. Each is tried first as its library proposes, then at points drawn from a
small space, until it had as many trials as the network; the one with the highest mean AP over the selection holdouts is
fitted on every final fold. A fit is a Ray task on one CPU.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import ray
from scipy.special import logit
from sklearn.metrics import average_precision_score
from sklearn.model_selection import ParameterGrid, ParameterSampler

from fraud_ray.backtest.result import Candidate, Choice
from fraud_ray.data.rows import PreparedFold, Rows, load
from fraud_ray.progress import Update
from fraud_ray.settings import ReferenceName
from fraud_ray.storage import Storage
from fraud_ray.training.loop import Float32

Space = dict[str, tuple[Any, ...]]

# Beyond these a probability, which a forest gives as 0 or 1, has no logit.
_PROBABILITIES = (1e-7, 1 - 1e-7)


def fit_reference(
    name: ReferenceName,
    selection: Sequence[PreparedFold],
    final: Sequence[PreparedFold],
    trials: int,
    seed: int,
    storage: Storage,
    update: Update,
) -> Candidate:
    """Chooses a reference model's hyperparameters on the selection folds, and fits it on every final fold."""
    began = time.monotonic()
    space, _ = _KINDS[name]
    points = _points(space, trials, seed)
    total, done = len(points) * len(selection) + len(final), 0

    def holdout_logits(wanted: Sequence[tuple[dict[str, Any], PreparedFold]]) -> list[Float32]:
        nonlocal done
        tasks = [_fit_and_score.remote(name, point, seed, storage, fold) for point, fold in wanted]
        found = []
        for task in tasks:
            found.append(ray.get(task))
            done += 1
            update(done, total, f"{done} of {total} fits")
        return found

    labels = [load(storage, fold.holdout).label for fold in selection]
    scored = holdout_logits([(point, fold) for point in points for fold in selection])
    by_point = [tuple(scored[i : i + len(selection)]) for i in range(0, len(scored), len(selection))]
    precisions = [
        float(np.mean([average_precision_score(label, of) for label, of in zip(labels, each, strict=True)]))
        for each in by_point
    ]
    best = int(np.argmax(precisions))
    last = holdout_logits([(points[best], fold) for fold in final])
    choice = Choice(name, points[best], len(points), precisions[best], round(time.monotonic() - began, 3))
    return Candidate(choice, by_point[best], tuple(last))


def _points(space: Space, trials: int, seed: int) -> list[dict[str, Any]]:
    """The library's own proposal, then distinct points of the space, as many as it holds."""
    drawn = min(trials - 1, len(ParameterGrid(space)))
    return [{}, *ParameterSampler(space, drawn, random_state=seed)]


@ray.remote(num_cpus=1)
def _fit_and_score(
    name: ReferenceName, point: Mapping[str, Any], seed: int, storage: Storage, fold: PreparedFold
) -> Float32:
    fit, holdout = load(storage, fold.fit), load(storage, fold.holdout)
    x = _matrix(fit)
    _, make = _KINDS[name]
    model = make(point, seed, list(range(fit.features.shape[1], x.shape[1])))
    model.fit(x, fit.label)
    fraud = model.predict_proba(_matrix(holdout))[:, 1].astype(np.float64)
    return logit(np.clip(fraud, *_PROBABILITIES)).astype(np.float32)


def _matrix(rows: Rows) -> Float32:
    """Features and, as numbers, codes: the most frequent categories have the lowest."""
    return np.hstack([rows.features, rows.codes.astype(np.float32)]) if rows.codes.shape[1] else rows.features


def _logistic_regression(point: Mapping[str, Any], seed: int, codes: list[int]) -> Any:
    from sklearn.compose import make_column_transformer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import OneHotEncoder

    one_hot = make_column_transformer((OneHotEncoder(handle_unknown="ignore"), codes), remainder="passthrough")
    model = LogisticRegression(max_iter=1_000, **point)
    return make_pipeline(one_hot, model) if codes else model


def _random_forest(point: Mapping[str, Any], seed: int, codes: list[int]) -> Any:
    from sklearn.ensemble import RandomForestClassifier

    return RandomForestClassifier(n_estimators=100, n_jobs=1, random_state=seed, **point)


def _xgboost(point: Mapping[str, Any], seed: int, codes: list[int]) -> Any:
    from xgboost import XGBClassifier

    return XGBClassifier(n_jobs=1, random_state=seed, **point)


def _lightgbm(point: Mapping[str, Any], seed: int, codes: list[int]) -> Any:
    from lightgbm import LGBMClassifier

    return LGBMClassifier(n_jobs=1, random_state=seed, verbose=-1, **point)


# An estimator from a point of the space, a seed, and the positions of the columns that are codes.
_Make = Callable[[Mapping[str, Any], int, list[int]], Any]
_KINDS: dict[ReferenceName, tuple[Space, _Make]] = {
    "logistic_regression": ({"C": (0.001, 0.01, 0.1, 1.0, 10.0, 100.0)}, _logistic_regression),
    "random_forest": (
        {"max_depth": (10, 20, None), "min_samples_leaf": (1, 3, 10), "max_features": ("sqrt", 0.5)},
        _random_forest,
    ),
    "xgboost": (
        {
            "n_estimators": (50, 100, 200),
            "max_depth": (3, 4, 6),
            "learning_rate": (0.05, 0.1, 0.3),
            "min_child_weight": (1, 5),
            "subsample": (0.8, 1.0),
            "colsample_bytree": (0.5, 1.0),
        },
        _xgboost,
    ),
    "lightgbm": (
        {
            "n_estimators": (50, 100, 200),
            "num_leaves": (7, 15, 31),
            "learning_rate": (0.03, 0.05, 0.1),
            "min_child_samples": (20, 100),
            "reg_lambda": (0.0, 1.0, 10.0),
            "colsample_bytree": (0.5, 1.0),
        },
        _lightgbm,
    ),
}
