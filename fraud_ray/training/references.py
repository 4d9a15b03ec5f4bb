"""Models of other kinds, given the folds and the columns that the network has, and at least TRIALS trials.

They read the arrays that the network reads. Each begins with a point that people use where frauds are few, then tries
points drawn from a small space; the one with the highest mean AP over the selection holdouts is fitted on every final
fold. Boosted trees grow MOST_TREES, and are cut where that mean is highest, as the network's epochs are. A fit is a Ray
task on one CPU, and what it came to is kept: the same again fits what is not there.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd
import ray
from scipy.special import logit
from sklearn.metrics import average_precision_score
from sklearn.model_selection import ParameterGrid, ParameterSampler

from fraud_ray.cluster import answer
from fraud_ray.data.rows import PreparedFold, Rows, load
from fraud_ray.progress import Update
from fraud_ray.settings import ReferenceName
from fraud_ray.storage import Storage
from fraud_ray.training.candidates import Choice
from fraud_ray.training.loop import Float32
from fraud_ray.training.space import trial_id
from fraud_ray.training.trainer import LOGITS, load_logits, save_logits

Point = dict[str, Any]
Logits = tuple[Float32, ...]

TRIALS = 8
MOST_TREES, STEP = 400, 10  # boosted trees are cut after some multiple of STEP
_TREES = "trees"  # in the point of boosted trees: how many

# Beyond these a probability, which a forest gives as 0 or 1, has no logit.
_PROBABILITIES = (1e-7, 1 - 1e-7)


@dataclass(frozen=True)
class Candidate:
    """A model before it is judged: logits float32 (rows,) of each selection holdout, and by seed of each final one."""

    choice: Choice
    selection: Logits
    final: tuple[Logits, ...]

    def on(self, folds: slice) -> Candidate:
        """The same on some of the final folds."""
        return replace(self, final=tuple(of_seed[folds] for of_seed in self.final))


def fit_reference(
    name: ReferenceName,
    selection: Sequence[PreparedFold],
    final: Sequence[PreparedFold],
    trials: int,
    seeds: Sequence[int],
    storage: Storage,
    folder: str,
    update: Update,
) -> Candidate:
    """Chooses hyperparameters on the selection folds with the first seed, and fits every final fold with each seed.

    folder: key below the storage root where each fit is kept. A model that no seed changes is fitted with one.
    """
    began, kind = time.monotonic(), _KINDS[name]
    points = _points(kind, trials, seeds[0])
    seeds = seeds if kind.is_random else seeds[:1]
    total, done = len(points) * len(selection) + len(selection) + len(seeds) * len(final), 0

    def each(tasks: Sequence[Any]) -> Iterator[Any]:
        nonlocal done
        for task in tasks:
            yield answer(task)
            done += 1
            update(done, total, f"{done} of {total} fits")

    def logits(point: Point, wanted: Sequence[tuple[int, PreparedFold]]) -> Logits:
        prefix = f"{folder}/{trial_id(point)}"
        return tuple(
            each(
                [
                    _logits.remote(name, point, seed, storage, f"{prefix}-{fold.name}-{at}-seed-{seed}", fold)
                    for at, (seed, fold) in enumerate(wanted)
                ]
            )
        )

    asked = [
        _curve.remote(name, point, seeds[0], storage, f"{folder}/{trial_id(point)}-{at}.json", fold)
        for point in points
        for at, fold in enumerate(selection)
    ]
    curves = np.array(list(each(asked))).reshape(len(points), len(selection), -1).mean(axis=1)
    best, trees = np.unravel_index(int(np.argmax(curves)), curves.shape)
    point = points[best] | ({} if kind.margins is None else {_TREES: STEP * (int(trees) + 1)})
    selected, *finals = (
        logits(point, [(seed, fold) for fold in folds])
        for seed, folds in [(seeds[0], selection), *((seed, final) for seed in seeds)]
    )
    choice = Choice(name, point, len(points), float(curves.max()), round(time.monotonic() - began, 3))
    return Candidate(choice, selected, tuple(finals))


def _points(kind: _Kind, trials: int, seed: int) -> list[Point]:
    """The point that people use, then distinct others of the space, as many as it holds."""
    drawn = ParameterSampler(kind.space, min(trials, len(ParameterGrid(kind.space))), random_state=seed)
    return [kind.first, *(point for point in drawn if point != kind.first)][:trials]


@ray.remote(num_cpus=1)
def _curve(name: ReferenceName, point: Point, seed: int, storage: Storage, key: str, fold: PreparedFold) -> list[float]:
    """AP on the fold's holdout: one, or of boosted trees one after each STEP of them; kept at `key`."""
    kept = storage.get_json(key)
    if kept is None:
        label = load(storage, fold.holdout).label
        kept = [float(average_precision_score(label, scores)) for scores in _scores(name, point, seed, storage, fold)]
        storage.put_json(key, kept)
    return kept


@ray.remote(num_cpus=1)
def _logits(name: ReferenceName, point: Point, seed: int, storage: Storage, key: str, fold: PreparedFold) -> Float32:
    """The holdout's logits (rows,); kept at `key`."""
    if not storage.exists(f"{key}/{LOGITS}"):
        *_, last = _scores(name, point, seed, storage, fold)
        save_logits(storage, key, [last.astype(np.float32)])
    return load_logits(storage, key)[0]


def _scores(
    name: ReferenceName, point: Point, seed: int, storage: Storage, fold: PreparedFold
) -> Iterator[np.ndarray[Any, Any]]:
    """Logits of the holdout (rows,) by a model that is fitted on the fold: as of boosted trees ever more are counted.

    Where the point says how many trees, of all of them at once.
    """
    fit, holdout, kind = load(storage, fold.fit), load(storage, fold.holdout), _KINDS[name]
    x, x_holdout = _matrix(fit), _matrix(holdout)
    codes = list(range(fit.features.shape[1], x.shape[1]))
    if kind.is_framed:
        x, x_holdout = (pd.DataFrame(of).astype(dict.fromkeys(codes, np.int32)) for of in (x, x_holdout))
    trees = point.get(_TREES)
    chosen = {key: value for key, value in point.items() if key != _TREES}
    model = kind.make(chosen, seed, codes, trees or MOST_TREES, float(fit.label.mean()))
    model.fit(x, fit.label)
    if kind.margins is None:
        fraud = model.predict_proba(x_holdout)[:, 1].astype(np.float64)
        yield logit(np.clip(fraud, *_PROBABILITIES))
        return
    margins = np.zeros(len(holdout))
    for first, last in [(0, trees)] if trees else pairwise(range(0, MOST_TREES + 1, STEP)):
        # What stands before the first tree may come with each piece; it moves no row past another.
        margins = margins + kind.margins(model, x_holdout, first, last)
        yield margins


def _matrix(rows: Rows) -> Any:
    """Features and, as numbers, codes: the most frequent categories have the lowest."""
    return np.hstack([rows.features, rows.codes.astype(np.float32)]) if rows.codes.shape[1] else rows.features


@dataclass(frozen=True)
class _Kind:
    """A kind of model.

    make: an estimator from a point, a seed, the positions of the columns that are codes, the number of trees and the
    fraud rate. first: the point to begin with; space: others. margins: of boosted trees, what those from one number to
    another add to the logits. is_random: whether the seed changes the model; is_framed: whether it takes categories,
    from a frame whose columns of codes are whole numbers.
    """

    make: Callable[[Mapping[str, Any], int, list[int], int, float], Any]
    first: Point
    space: dict[str, tuple[Any, ...]]
    margins: Callable[[Any, Any, int, int], Any] | None = None
    is_random: bool = True
    is_framed: bool = False


def _logistic_regression(point: Mapping[str, Any], seed: int, codes: list[int], trees: int, rate: float) -> Any:
    from sklearn.compose import make_column_transformer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import OneHotEncoder

    one_hot = make_column_transformer((OneHotEncoder(handle_unknown="ignore"), codes), remainder="passthrough")
    model = LogisticRegression(max_iter=1_000, **point)
    return make_pipeline(one_hot, model) if codes else model


def _random_forest(point: Mapping[str, Any], seed: int, codes: list[int], trees: int, rate: float) -> Any:
    from sklearn.ensemble import RandomForestClassifier

    return RandomForestClassifier(n_estimators=100, n_jobs=1, random_state=seed, **point)


def _xgboost(point: Mapping[str, Any], seed: int, codes: list[int], trees: int, rate: float) -> Any:
    from xgboost import XGBClassifier

    fixed: Point = {"n_jobs": 1, "tree_method": "hist", "base_score": rate}
    return XGBClassifier(n_estimators=trees, random_state=seed, **fixed, **point)


def _lightgbm(point: Mapping[str, Any], seed: int, codes: list[int], trees: int, rate: float) -> Any:
    from lightgbm import LGBMClassifier

    fixed: Point = {"n_jobs": 1, "subsample_freq": 1, "verbose": -1}
    return LGBMClassifier(n_estimators=trees, random_state=seed, **fixed, **point)


def _catboost(point: Mapping[str, Any], seed: int, codes: list[int], trees: int, rate: float) -> Any:
    from catboost import CatBoostClassifier

    # Left to CatBoost, steps a leaf depend on how many trees there are, so that fewer of them would be others.
    fixed: Point = {"boost_from_average": True, "leaf_estimation_iterations": 5, "cat_features": codes}
    quiet: Point = {"thread_count": 1, "allow_writing_files": False, "verbose": False}
    return CatBoostClassifier(iterations=trees, random_seed=seed, **fixed, **quiet, **point)


_KINDS: dict[ReferenceName, _Kind] = {
    "logistic_regression": _Kind(
        _logistic_regression,
        {"C": 1.0, "class_weight": None},
        {"C": (0.001, 0.01, 0.1, 1.0, 10.0, 100.0), "class_weight": (None, "balanced")},
        is_random=False,
    ),
    "random_forest": _Kind(
        _random_forest,
        {"max_depth": None, "min_samples_leaf": 3, "max_features": "sqrt"},
        {"max_depth": (10, 20, None), "min_samples_leaf": (1, 3, 10), "max_features": ("sqrt", 0.5)},
    ),
    "xgboost": _Kind(
        _xgboost,
        {"max_depth": 5, "learning_rate": 0.05, "min_child_weight": 1, "subsample": 0.8, "colsample_bytree": 0.8},
        {
            "max_depth": (4, 5, 6),
            "learning_rate": (0.03, 0.05, 0.1),
            "min_child_weight": (1, 5),
            "subsample": (0.8, 1.0),
            "colsample_bytree": (0.5, 0.8),
        },
        lambda model, x, first, last: model.predict(x, output_margin=True, iteration_range=(first, last)),
    ),
    "lightgbm": _Kind(
        _lightgbm,
        {"num_leaves": 15, "learning_rate": 0.05, "min_child_samples": 50, "reg_lambda": 1.0, "subsample": 0.8},
        {
            "num_leaves": (7, 15, 31),
            "learning_rate": (0.03, 0.05, 0.1),
            "min_child_samples": (20, 50, 100),
            "reg_lambda": (0.0, 1.0, 10.0),
            "subsample": (0.8, 1.0),
            "colsample_bytree": (0.5, 1.0),
        },
        lambda model, x, first, last: model.predict(
            x, raw_score=True, start_iteration=first, num_iteration=last - first
        ),
    ),
    "catboost": _Kind(
        _catboost,
        {"depth": 6, "learning_rate": 0.1, "l2_leaf_reg": 3.0},
        {
            "depth": (4, 6, 8),
            "learning_rate": (0.05, 0.1, 0.2),
            "l2_leaf_reg": (1.0, 3.0, 10.0),
            "random_strength": (0.0, 1.0),
        },
        lambda model, x, first, last: model.predict(
            x, prediction_type="RawFormulaVal", ntree_start=first, ntree_end=last
        ),
        is_framed=True,
    ),
}
