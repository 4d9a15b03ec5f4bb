"""Time until a model is good enough: ours, and scikit-learn's estimators on the same encoded rows."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.metrics import average_precision_score
from sklearn.neural_network import MLPClassifier

from benchmarks.harness import Row, in_turn, one_thread
from benchmarks.world import MILLION, World, one_hot, open_fit
from fraud_ray.settings import TrainSettings
from fraud_ray.training.loop import Epoch, fit

GOOD_ENOUGH = 0.9  # share of the best possible average precision
ROUNDS, EPOCHS = 20, 15  # trees a round, and after how many rounds or epochs a side gives up


class _Reached(Exception):  # noqa: N818 - no error
    """The average precision asked for."""


def stage(world: World) -> list[Row]:
    fold = world.prepared(MILLION // 2)
    fit_rows, holdout = world.loaded(MILLION // 2)
    wanted = GOOD_ENOUGH * average_precision_score(holdout.label, holdout.roles["true_probability"])
    x, x_holdout = one_hot(fold, fit_rows), one_hot(fold, holdout)

    def ours() -> float:
        settings = TrainSettings(
            learning_rate=0.004, batch_size=1_024, dropout=0.1, epochs=EPOCHS, patience_epochs=None
        )

        def judge(epoch: Epoch, *_: Any) -> None:
            if (epoch.average_precision or 0.0) >= wanted:
                raise _Reached

        began = time.perf_counter()
        try:
            with one_thread():
                fit([open_fit(fold, fit_rows, settings, holdout)], EPOCHS, None, judge)
        except _Reached:
            return time.perf_counter() - began
        return math.inf

    def until(step: Callable[[int], Any]) -> float:
        began = time.perf_counter()
        for number in range(1, EPOCHS + 1):
            model = step(number)
            if average_precision_score(holdout.label, model.predict_proba(x_holdout)[:, 1]) >= wanted:
                return time.perf_counter() - began
        return math.inf

    def trees() -> float:
        model = HistGradientBoostingClassifier(warm_start=True, early_stopping=False, random_state=0)
        return until(lambda number: model.set_params(max_iter=ROUNDS * number).fit(x, fit_rows.label))

    def perceptron() -> float:
        model = MLPClassifier((128, 64), batch_size=1_024, learning_rate_init=0.004, random_state=0)
        return until(lambda _: model.partial_fit(x, fit_rows.label, classes=[0, 1]))

    sides = {"ours": ours, "HistGradientBoosting": trees, "MLPClassifier": perceptron}
    samples = in_turn(sides, repeats=2, warm=False)
    return [
        Row.between(
            f"train until AP {wanted:.2f}",
            "s",
            samples["ours"],
            samples[peer],
            f"scikit-learn's {peer}",
            note=f"{len(fit_rows):,} rows; {GOOD_ENOUGH:.0%} of the best possible AP; ours on one thread",
        )
        for peer in ("HistGradientBoosting", "MLPClassifier")
    ]
