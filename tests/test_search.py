"""The search: what it tries, what it keeps, and that it neither hangs nor repeats itself."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score

from fraud_ray.data.rows import PreparedFold, load
from fraud_ray.errors import FraudRayError
from fraud_ray.model.bundle import network_logits
from fraud_ray.model.network import FraudNetwork
from fraud_ray.settings import Settings, TrainSettings, parse_settings
from fraud_ray.storage import Storage
from fraud_ray.training.build import network_shape
from fraud_ray.training.search import SearchOutcome, Trial, concurrency, search, selection_logits
from fraud_ray.training.space import EstimatorSearcher, as_given, enumerate_space
from fraud_ray.training.trainer import Fitted, load_fitted, refit
from tests.line import REPOSITORY
from tests.prepared import FEATURES, made_fold

RATES = {"low": 0.0005, "high": 0.02, "log": True}


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Storage:
    return Storage.at(str(tmp_path_factory.mktemp("search")))


@pytest.fixture(scope="module")
def folds(storage: Storage) -> list[PreparedFold]:
    return [made_fold(storage, f"selection-{n}", 3_000, 1_000, seed=n) for n in (1, 2)]


def made_settings(space: dict[str, Any], train: dict[str, Any] | None = None, **searched: Any) -> Settings:
    columns = {**{name: {"kind": "numeric"} for name in FEATURES}, "fraud": {"kind": "label"}}
    return parse_settings(
        {
            "data": {"path": "none", "columns": columns},
            "folds": {"kind": "stratified"},
            "train": {"epochs": 3, "batch_size": 256, "hidden_sizes": [16], **(train or {})},
            "search": {"space": space, **searched},
        },
        "test",
    )


def quiet(*_: Any) -> None:
    return None


def descendants(pid: int) -> list[int]:
    """Processes below this one; others on the machine may run a Ray of their own."""
    threads = Path(f"/proc/{pid}/task").glob("*/children")
    children = [int(child) for thread in threads for child in thread.read_text().split()]
    return [*children, *(below for child in children for below in descendants(child))]


def searched(
    folds: list[PreparedFold], settings: Settings, storage: Storage, folder: str
) -> tuple[SearchOutcome, list[Trial]]:
    told: list[Trial] = []
    return search(folds, settings, storage, folder, told.append, quiet), told


def test_a_grid_is_every_combination_and_an_empty_space_one_trial() -> None:
    space = {"learning_rate": [0.001, 0.0005, 0.0001], "hidden_sizes": [[16], [32, 16]]}
    points = enumerate_space(made_settings(space))
    assert len(points) == 6
    assert {"learning_rate": 0.0005, "hidden_sizes": [32, 16]} in points
    assert enumerate_space(made_settings({})) == [{}]


def test_random_draws_keep_to_their_ranges_are_distinct_and_the_same_for_the_same_seed() -> None:
    space = {"learning_rate": RATES, "batch_size": {"low": 64, "high": 512}, "dropout": [0.0, 0.1]}
    settings = made_settings(space, algorithm="random", trials=50)
    points = enumerate_space(settings)
    assert points == enumerate_space(settings)
    assert len({str(point) for point in points}) == 50
    given = points.pop(0)
    assert (given["learning_rate"], given["batch_size"], given["dropout"]) == (0.001, 256, 0.3), (
        "train's own come first"
    )
    for point in points:
        assert 0.0005 <= point["learning_rate"] <= 0.02
        assert point["batch_size"] == int(point["batch_size"])
        TrainSettings(**point)
    assert sum(point["learning_rate"] < 0.00316 for point in points) in range(12, 39)


def test_a_small_space_has_no_more_random_trials_than_points() -> None:
    assert len(enumerate_space(made_settings({"dropout": [0.0, 0.1]}, algorithm="random", trials=9))) == 3


CONDITIONAL = {
    "optimizer": ["adam", "adamw"],
    "weight_decay": {"low": 0.005, "high": 0.4, "log": True, "when": {"optimizer": "adamw"}},
    "members": [1, 4],
    "member_weights": {"values": ["own", "shared"], "when": {"members": [4]}},
}


def test_a_condition_keeps_a_hyperparameter_out_of_the_points_in_which_it_does_not_hold() -> None:
    listed = CONDITIONAL | {"weight_decay": {"values": [0.1, 0.2, 0.3], "when": {"optimizer": "adamw"}}}
    grid = enumerate_space(made_settings(listed))
    assert len(grid) == (1 + 3) * (1 + 2)
    drawn = enumerate_space(made_settings(CONDITIONAL, algorithm="random", trials=60))
    assert len(drawn) > 20
    for point in (*grid, *drawn):
        assert ("weight_decay" in point) == (point["optimizer"] == "adamw")
        assert ("member_weights" in point) == (point["members"] == 4)
        TrainSettings(**point)


def test_a_condition_on_what_is_not_searched_asks_the_train_settings() -> None:
    space = {"weight_decay": {"values": [0.1, 0.2], "when": {"optimizer": "adamw"}}}
    assert enumerate_space(made_settings(space, train={"optimizer": "adam"})) == [{}]
    assert enumerate_space(made_settings(space)) == [{"weight_decay": 0.1}, {"weight_decay": 0.2}]


def test_the_estimator_keeps_to_conditions_learns_from_known_trials_and_survives_faults() -> None:
    space = {"learning_rate": RATES} | CONDITIONAL

    def score(point: dict[str, Any]) -> float:
        return float(np.log10(point["learning_rate"]) + (point["optimizer"] == "adamw"))

    drawn = enumerate_space(made_settings(space, algorithm="random", trials=31))[1:]
    known = [(point, score(point)) for point in drawn]
    estimator = EstimatorSearcher(made_settings(space, algorithm="tpe"), "score", known)
    given = {"learning_rate": 0.001, "optimizer": "adamw", "weight_decay": 0.01, "members": 1}
    assert estimator.suggest("as given") == {"point": given}
    estimator.on_trial_complete("as given", {"score": -2.0})
    suggested = []
    for number in range(12):
        point = estimator.suggest(str(number))["point"]
        assert ("weight_decay" in point) == (point["optimizer"] == "adamw")
        TrainSettings(**point)
        suggested.append(score(point))
        estimator.on_trial_complete(str(number), {"score": suggested[-1]}, error=number == 3)
    assert np.median(suggested) > np.quantile([score for _, score in known], 0.9)


def test_a_range_of_an_integer_that_may_be_null_gives_integers() -> None:
    space = {"embedding_size": {"low": 2, "high": 64, "log": True}}
    points = enumerate_space(made_settings(space, algorithm="random", trials=10))[1:]
    assert all(type(point["embedding_size"]) is int for point in points)


def test_concurrency_never_exceeds_what_the_ranks_of_all_trials_need() -> None:
    two_ranks = made_settings({}, train={"workers": 2})
    assert concurrency(two_ranks, {"CPU": 5.0}) == 2
    assert concurrency(made_settings({}), {"CPU": 5.0}) == 5
    assert concurrency(made_settings({}, concurrency=3), {"CPU": 64.0}) == 3
    quarter = made_settings({}, train={"use_gpu": True}, resources_per_trial={"CPU": 1, "GPU": 0.25})
    assert concurrency(quarter, {"CPU": 64.0, "GPU": 2.0}) == 8


def test_the_best_trial_wins_by_its_mean_over_the_folds_and_its_logits_are_kept(
    ray_session: None, folds: list[PreparedFold], storage: Storage
) -> None:
    settings = made_settings({"learning_rate": [0.00001, 0.01]}, train={"epochs": 6})
    outcome, told = searched(folds, settings, storage, "runs/grid")
    assert outcome.best.hyperparameters == {"learning_rate": 0.01}
    assert outcome.trials[0] == outcome.best
    assert outcome.best.average_precision == max(e["average_precision"] for e in outcome.best.curve)
    assert [len(z) for z in selection_logits(outcome, storage)] == [1_000, 1_000]
    assert {t.id for t in told} == {t.id for t in outcome.trials}
    assert SearchOutcome.from_json(outcome.to_json(), storage) == outcome
    assert list(Path(storage.root).glob("runs/grid/tune/*/events*")), "TensorBoard has nothing to show"

    again, told_again = searched(folds, settings, storage, "runs/grid")
    assert (again.best, again.reused, len(told_again)) == (outcome.best, 2, 2)


def test_optuna_with_early_stopping_fills_its_trials_and_goes_on_with_what_it_knows(
    ray_session: None, folds: list[PreparedFold], storage: Storage
) -> None:
    space = {"learning_rate": RATES, "hidden_sizes": [[16], [32]], "batch_size": {"low": 64, "high": 512}}
    chosen = {"algorithm": "tpe", "grace_epochs": 1}
    first, _ = searched(folds, made_settings(space, **chosen, trials=3), storage, "runs/tpe")
    assert len(first.trials) == 3
    more, told = searched(folds, made_settings(space, **chosen, trials=5), storage, "runs/tpe")
    assert (more.reused, len(more.trials)) == (3, 5)
    assert {t.id for t in first.trials} < {t.id for t in more.trials} == {t.id for t in told}
    assert sum(t.hyperparameters == as_given(made_settings(space, **chosen)) for t in more.trials) == 1, "once"
    assert all(t.hyperparameters["hidden_sizes"] in ([16], [32]) for t in more.trials)


@pytest.mark.long
def test_trials_of_several_workers_end_although_they_take_every_cpu(
    ray_session: None, folds: list[PreparedFold], storage: Storage
) -> None:
    settings = made_settings({"learning_rate": [0.01]}, train={"workers": 2})
    outcome, _ = searched(folds[:1], settings, storage, "runs/workers")
    assert [t.status for t in outcome.trials] == ["finished"]
    assert len(outcome.best.curve) == 3


@pytest.mark.long
def test_a_search_that_runs_out_of_time_keeps_what_it_has(
    ray_session: None, folds: list[PreparedFold], storage: Storage
) -> None:
    settings = made_settings(
        {"learning_rate": [0.001, 0.01]},
        train={"epochs": 100_000, "patience_epochs": None},
        time_budget_s=45,
        concurrency=1,
    )
    outcome, _ = searched(folds, settings, storage, "runs/late")
    assert all(t.status == "stopped" for t in outcome.trials)
    assert outcome.best.average_precision is not None
    assert "1 trial, 1 more never ran (search.time_budget_s); best" in repr(outcome)


def test_a_search_in_which_every_trial_fails_says_why(
    ray_session: None, folds: list[PreparedFold], storage: Storage
) -> None:
    gone = [PreparedFold(f.name, f.span, f.encoder, f.fit, f.holdout) for f in folds]
    settings = made_settings({}, train={"residency": "streamed", "max_failures": 0})
    empty = Storage.at(f"{storage.root}/elsewhere")
    for fold in gone:
        for part in fold.holdout.parts:
            empty.put(part.key, storage.get(part.key) or b"")
    with pytest.raises(FraudRayError, match=r"no trial came to a result; the first fault: .*part-[01]"):
        searched(gone, settings, empty, "runs/faulty")


def test_two_workers_give_the_model_of_one_with_the_same_steps(
    ray_session: None, folds: list[PreparedFold], storage: Storage
) -> None:
    rows = load(storage, folds[0].holdout)
    scores, steps = [], []
    for workers in (1, 2):
        train = {"workers": workers, "epochs": 12, "batch_size": 128, "learning_rate": 0.01, "dropout": 0.0}
        settings = made_settings({}, train=train).train
        fitted = refit(folds[0], settings, 12, storage, f"runs/{workers}-workers", quiet)
        network = FraudNetwork(network_shape(len(FEATURES), (), settings))
        network.load_state_dict(fitted.weights)
        scores.append(average_precision_score(rows.label, network_logits(network.eval(), rows.features, rows.codes)))
        steps.append([row["steps"] for row in fitted.curve])
    assert steps[0] == steps[1] == [24] * 12
    assert min(scores) > 3 * rows.label.mean()
    assert scores[0] == pytest.approx(scores[1], abs=0.01)


def killed_at(told: Path, process: Callable[[], int], signal_number: int = signal.SIGKILL) -> threading.Thread:
    """A thread that ends a process once this file tells of an epoch."""

    def kill() -> None:
        while not told.exists():
            time.sleep(0.02)
        os.kill(process(), signal_number)

    killer = threading.Thread(target=kill, daemon=True)
    killer.start()
    return killer


def a_rank() -> int:
    """A process of Ray Train's that trains, of this process's Ray."""
    name = b"RayTrainWorker"
    return next(pid for pid in descendants(os.getpid()) if name in Path(f"/proc/{pid}/cmdline").read_bytes())


def same(one: Fitted, other: Fitted) -> bool:
    return all(torch.equal(one.weights[name], other.weights[name]) for name in other.weights)


@pytest.mark.faults("1", "SIGKILL of a rank in the refit", "the same weights as undisturbed")
@pytest.mark.long
def test_training_goes_on_after_a_worker_was_killed(
    ray_session: None, folds: list[PreparedFold], storage: Storage
) -> None:
    settings = made_settings({}, train={"epochs": 40, "batch_size": 128, "workers": 2}).train
    killer = killed_at(Path(storage.path("runs/killed/progress.json")), a_rank)
    fitted = refit(folds[0], settings, 40, storage, "runs/killed", quiet)
    killer.join(1)
    assert not killer.is_alive()
    assert [row["epoch"] for row in fitted.curve] == list(range(1, 41))
    assert same(fitted, refit(folds[0], settings, 40, storage, "runs/whole", quiet))


REFIT = """
import sys, time
from fraud_ray.cluster import join_or_start
from fraud_ray.settings import ClusterSettings, TrainSettings
from fraud_ray.storage import Storage
from fraud_ray.training.trainer import refit
from tests.line import REPOSITORY
from tests.prepared import made_fold

storage, epochs = Storage.at(sys.argv[1]), int(sys.argv[2])
with join_or_start(ClusterSettings(cpus=1)):
    import ray
    try:
        refit(made_fold(storage, "fold", 3_000, 500), TrainSettings(batch_size=16), epochs, storage, "refit", print)
        print("fitted")
    except KeyboardInterrupt:
        print("interrupted")
    while ray.available_resources().get("CPU") != 1:
        time.sleep(0.1)
    print("nothing is reserved")
"""


def refitting(folder: Path, epochs: int) -> subprocess.Popen[str]:
    """A process with a Ray of its own that fits so many epochs."""
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    command = [sys.executable, "-c", REFIT, str(folder), str(epochs)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(command, env=environment, cwd=REPOSITORY, text=True, **pipes)


@pytest.mark.faults("4", "SIGKILL of the driver in the refit", "no epoch is trained again, the same weights")
@pytest.mark.long
def test_a_fit_goes_on_after_its_driver_was_killed_and_ends_as_one_that_was_not(
    ray_session: None, folds: list[PreparedFold], tmp_path: Path
) -> None:
    with refitting(tmp_path, 40) as driver:
        killed_at(tmp_path / "refit/progress.json", lambda: driver.pid).join(100)
        driver.communicate(timeout=20)
        assert driver.returncode == -signal.SIGKILL
    storage = Storage.at(str(tmp_path))
    kept = load_fitted(storage, "refit").curve
    assert 1 <= len(kept) < 40
    with refitting(tmp_path, 40) as driver:
        told, fault = driver.communicate(timeout=120)
    assert driver.returncode == 0, fault
    assert "fitted" in told
    fitted = load_fitted(storage, "refit")
    assert [row["epoch"] for row in fitted.curve] == list(range(1, 41))
    assert fitted.curve[: len(kept)] == kept, "no epoch was trained again"
    whole = refit(made_fold(storage, "fold", 3_000, 500), TrainSettings(batch_size=16), 40, storage, "whole", quiet)
    assert same(fitted, whole)


@pytest.mark.faults("23", "SIGINT in the refit", "ended within seconds, nothing reserved")
@pytest.mark.long
def test_an_interrupt_ends_a_fit_at_once_and_leaves_nothing_reserved(tmp_path: Path) -> None:
    with refitting(tmp_path, 100_000) as driver:
        killed_at(tmp_path / "refit/progress.json", lambda: driver.pid, signal.SIGINT).join(100)
        try:
            told, fault = driver.communicate(timeout=30)
        finally:
            driver.kill()
    # Before, between or after these lines Ray may tell of the worker that ended.
    assert {"interrupted", "nothing is reserved"} <= set(told.splitlines()), (told, fault)
    assert driver.returncode == 0
    assert not fault


@pytest.mark.long
def test_a_finished_fit_is_not_trained_again(ray_session: None, folds: list[PreparedFold], storage: Storage) -> None:
    settings = made_settings({}).train
    first = refit(folds[0], settings, 2, storage, "runs/finished", quiet)
    again = refit(folds[0], settings, 2, storage, "runs/finished", quiet)
    assert again.curve == first.curve
