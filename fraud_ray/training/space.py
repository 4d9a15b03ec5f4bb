"""Which points of a search space are tried: all of a grid, random draws, or what Optuna's estimator suggests.

A point holds the hyperparameters whose conditions hold in it; all others keep their values of `train`. Draws and
suggestions come after the values of `train` itself, so that no search ends below them.
"""

from __future__ import annotations

import hashlib
import json
import typing
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from ray.tune.search import Searcher

from fraud_ray.settings import Listed, Options, Settings, TrainSettings

Hyperparameters = dict[str, Any]


def trial_id(hyperparameters: Hyperparameters) -> str:
    """Eight hexadecimal digits that name a trial by its hyperparameters."""
    return hashlib.sha256(json.dumps(hyperparameters, sort_keys=True).encode()).hexdigest()[:8]


def in_words(hyperparameters: Hyperparameters) -> str:
    """A point as a line of text shows it."""
    return ", ".join(f"{name} {value}" for name, value in hyperparameters.items()) or "settings as given"


def enumerate_space(settings: Settings) -> list[Hyperparameters]:
    """The distinct points of a grid, or `search.trials`: the settings' own and random draws; one empty point for an
    empty space."""
    search = settings.search
    if search.algorithm == "grid" or not search.space:
        return _grid(settings)
    generator = np.random.default_rng(search.seed)
    given = as_given(settings)
    points: dict[str, Hyperparameters] = {trial_id(given): given}
    # A small space of lists may hold fewer distinct points than trials asked for.
    for _ in range(100 * search.trials):
        if len(points) == search.trials:
            break
        point = compose(settings, lambda name, options: _draw(name, options, generator))
        points.setdefault(trial_id(point), point)
    return list(points.values())


def compose(settings: Settings, choose: Callable[[str, Options], Any]) -> Hyperparameters:
    """A point: in the order of the space, `choose` gives each hyperparameter whose condition holds its value."""
    point: Hyperparameters = {}
    for name, options in settings.search.space.items():
        if _applies(options, point, settings.train):
            point[name] = choose(name, options)
    return point


def as_given(settings: Settings) -> Hyperparameters:
    """The values that `train` itself has of what is searched, as JSON gives them back."""
    own = settings.train.model_dump(mode="json")
    return compose(settings, lambda name, _: own[name])


class EstimatorSearcher(Searcher):
    """Tune's view of Optuna's tree-structured Parzen estimator, which knows the trials given from the start."""

    def __init__(self, settings: Settings, metric: str, known: Sequence[tuple[Hyperparameters, float]]) -> None:
        import optuna

        super().__init__(metric=metric, mode="max")
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self.settings = settings
        told = [trial for point, score in known for trial in self._trials(point, score)]
        sampler = optuna.samplers.TPESampler(seed=settings.search.seed + len(told))
        self.study = optuna.create_study(direction="maximize", sampler=sampler)
        self.study.add_trials(told)
        given = as_given(settings)
        self.first: Hyperparameters | None = None if any(point == given for point, _ in known) else given
        self.asked: dict[str, Any] = {}

    def suggest(self, trial_id: str) -> dict[str, Any]:
        if self.first is not None:
            self.asked[trial_id], self.first = self.first, None
            return {"point": self.asked[trial_id]}
        asked = self.asked[trial_id] = self.study.ask()

        def choose(name: str, options: Options) -> Any:
            if isinstance(options, Listed):
                return options.plain[asked.suggest_categorical(name, _positions(options))]
            if _is_integer(name):
                return asked.suggest_int(name, int(options.low), int(options.high), log=options.log)
            return asked.suggest_float(name, options.low, options.high, log=options.log)

        return {"point": compose(self.settings, choose)}

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        from optuna.trial import TrialState

        score = (result or {}).get(self.metric)
        failed, asked = error or score is None, self.asked.pop(trial_id)
        if isinstance(asked, dict):
            self.study.add_trials([] if failed else self._trials(asked, score))
        else:
            self.study.tell(asked, None if failed else score, TrialState.FAIL if failed else None)

    def _trials(self, point: Hyperparameters, score: Any) -> list[Any]:
        """A point as Optuna is told of it; none where the settings' own values lie outside of the space."""
        import optuna

        space = self.settings.search.space
        if any(_lies_outside(value, space[name]) for name, value in point.items()):
            return []
        params = {name: _as_parameter(value, space[name]) for name, value in point.items()}
        distributions = {name: _distribution(name, space[name]) for name in point}
        return [optuna.trial.create_trial(params=params, distributions=distributions, value=score)]

    def save(self, checkpoint_path: str) -> None:
        """Keeps nothing: a search goes on from its ledger."""

    def restore(self, checkpoint_path: str) -> None:
        """Reads nothing, likewise."""


def _grid(settings: Settings) -> list[Hyperparameters]:
    points: list[Hyperparameters] = [{}]
    for name, options in settings.search.space.items():
        assert isinstance(options, Listed), "validated with the settings"
        points = [
            {**point, **chosen}
            for point in points
            for chosen in ([{name: v} for v in options.plain] if _applies(options, point, settings.train) else [{}])
        ]
    return points


def _applies(options: Options, point: Hyperparameters, train: TrainSettings) -> bool:
    """Whether the condition of a hyperparameter holds in a point, and in `train` for what is not in it."""
    return all(point.get(name, getattr(train, name)) in wanted for name, wanted in options.when.items())


def _draw(name: str, options: Options, generator: np.random.Generator) -> Any:
    if isinstance(options, Listed):
        return options.plain[int(generator.integers(len(options.values)))]
    if options.log:
        value = float(np.exp(generator.uniform(np.log(options.low), np.log(options.high))))
    else:
        value = float(generator.uniform(options.low, options.high))
    return round(value) if _is_integer(name) else value


def _distribution(name: str, options: Options) -> Any:
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if isinstance(options, Listed):
        return CategoricalDistribution(_positions(options))
    if _is_integer(name):
        return IntDistribution(int(options.low), int(options.high), log=options.log)
    return FloatDistribution(options.low, options.high, log=options.log)


def _positions(options: Listed) -> list[int]:
    """What Optuna chooses from: its categories cannot be lists."""
    return list(range(len(options.values)))


def _lies_outside(value: Any, options: Options) -> bool:
    if isinstance(options, Listed):
        return value not in options.plain
    return value is None or not options.low <= value <= options.high


def _as_parameter(value: Any, options: Options) -> Any:
    return options.plain.index(value) if isinstance(options, Listed) else value


def _is_integer(name: str) -> bool:
    annotation = TrainSettings.model_fields[name].annotation
    return int in (annotation, *(getattr(kind, "__origin__", kind) for kind in typing.get_args(annotation)))
