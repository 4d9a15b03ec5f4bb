"""From trained weights to a stored bundle with a calibration, a threshold and its figures on the final holdout."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import ray
import torch

from fraud_ray.cluster import answer
from fraud_ray.data.prepare import Prepared
from fraud_ray.data.rows import PreparedFold, load, raw_table
from fraud_ray.decision.calibration import calibrate
from fraud_ray.decision.curves import Curves, RankingCurves
from fraud_ray.decision.cuts import days_of
from fraud_ray.decision.evaluate import Evaluation, evaluate
from fraud_ray.decision.importance import permutation_importance
from fraud_ray.errors import FraudRayError
from fraud_ray.model.bundle import Bundle, network_logits
from fraud_ray.model.calibration import Calibration
from fraud_ray.model.encoder import derived, with_derived
from fraud_ray.settings import DecisionSettings, Settings, TrainSettings
from fraud_ray.storage import Storage
from fraud_ray.training.build import network_shape
from fraud_ray.training.loop import Float32
from fraud_ray.training.search import SearchOutcome, selection_logits
from fraud_ray.training.trainer import Fitted

# In a run's folder, beside its stages' values; the latter where the champion was compared.
CURVES, CHAMPION_CURVES = "curves.json", "champion-curves.json"


def evaluate_on_worker(
    prepared: Prepared,
    found: SearchOutcome,
    fitted: Fitted,
    settings: Settings,
    storage: Storage,
    key: Callable[[str], str],
    origin: dict[str, Any],
) -> Evaluation:
    """`assemble` as a Ray task. key: of a file in the run's folder, which gets the bundle's folder and the curves."""
    logits = selection_logits(found, storage)
    train = settings.train_with(found.best.hyperparameters)
    origin = {
        **origin,
        "fold": prepared.final.span,
        "seed": train.seed,
        "epochs": found.best.best_epoch,
        "selection_average_precision": found.best.average_precision,
    }
    task = ray.remote(num_cpus=1)(assemble).remote(  # on a worker: the head of a cluster takes no work
        storage,
        key("bundle"),
        prepared.selection,
        logits,
        prepared.final,
        fitted.weights,
        train,
        settings.decision,
        origin,
        settings.folds.holdout is None,
    )
    evaluation, curves = answer(task)
    storage.put_json(key(CURVES), curves.to_json())
    told: Evaluation = evaluation
    return told


def read_curves(storage: Storage, key: Callable[[str], str]) -> Curves:
    """What `evaluate_on_worker` left; raises FraudRayError where it is gone."""
    curves = storage.get_json(key(CURVES))
    if curves is None:
        raise FraudRayError(
            f"{storage.path(key(CURVES))} is gone, which the evaluation wrote; delete "
            f"{storage.path(key('stages/evaluate.json'))} and run again"
        )
    champion = storage.get_json(key(CHAMPION_CURVES))
    return replace(Curves.from_json(curves), champion=champion and RankingCurves.from_json(champion))


def assemble(
    storage: Storage,
    folder: str,
    selection: Sequence[PreparedFold],
    selection_logits: Sequence[Float32],
    final: PreparedFold,
    weights: dict[str, torch.Tensor],
    train: TrainSettings,
    decision: DecisionSettings,
    origin: dict[str, Any],
    has_whole_days: bool = True,
) -> tuple[Evaluation, Curves]:
    """Calibrates and sets the threshold on the selection holdouts, looks at the final holdout once, writes the bundle.

    folder: key below the storage root at which the bundle's files are put. selection_logits: one array a selection
    fold, of the winner at its best epoch. origin: where the model comes from, kept in the bundle. has_whole_days:
    whether the final holdout does, if it has days, so that alerts can be counted by the day.
    """
    holdouts = [load(storage, fold.holdout, with_roles=True) for fold in selection]
    bundle = bundle_of(final, weights, train, *calibrate(holdouts, selection_logits, decision))
    rows, threshold = load(storage, final.holdout, with_roles=True), bundle.threshold
    probabilities = bundle.calibration.apply(network_logits(bundle.network(), rows.features, rows.codes))
    evaluation = evaluate(probabilities, rows, threshold, decision)
    evaluation = replace(evaluation, importance=_importance(storage, bundle, selection[0], decision))
    truth, days = rows.roles.get("true_probability"), (has_whole_days and days_of(rows)) or None
    amounts = rows.roles.get("amount")
    curves = Curves.of(probabilities, rows.label, threshold, truth, days, decision.confidence, amounts)
    if final.profile is not None:
        bundle = replace(bundle, profile=final.profile.with_scores(probabilities))
    with tempfile.TemporaryDirectory() as scratch:
        bundle.with_results(evaluation.metrics, origin).save(Path(scratch))
        for file in sorted(Path(scratch).iterdir()):
            storage.put(f"{folder}/{file.name}", file.read_bytes())
    return evaluation, curves


def _importance(
    storage: Storage, bundle: Bundle, selection: PreparedFold, decision: DecisionSettings
) -> dict[str, float]:
    """How much the model relies on each column, on a selection holdout, so that test rows are not looked at again."""
    if not decision.importance_rows:
        return {}
    network = bundle.network()

    def score(table: pa.Table) -> Float32:
        return network_logits(network, *bundle.encoder.apply(table))

    columns = [column.name for column in derived(bundle.encoder.columns)]
    labels = load(storage, selection.holdout).label
    table = with_derived(raw_table(storage, selection.holdout), bundle.encoder.columns)
    return permutation_importance(score, table, labels, columns, decision.importance_rows, decision.seed)


def bundle_of(
    fold: PreparedFold,
    weights: dict[str, torch.Tensor],
    train: TrainSettings,
    calibration: Calibration,
    threshold: float,
) -> Bundle:
    """The model that was trained on a fold with these settings."""
    shape = network_shape(len(fold.encoder.feature_names), fold.encoder.code_sizes, train)
    return Bundle(fold.encoder, shape, weights, calibration, threshold, train.model_dump(mode="json"))
