"""From trained weights to a bundle with a calibration, a threshold and its figures on the final holdout."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from fraud_ray.data.rows import PreparedFold, Rows, load, raw_table
from fraud_ray.decision.calibration import Costs, choose_threshold, fit_calibration
from fraud_ray.decision.curves import Curves
from fraud_ray.decision.evaluate import Evaluation, evaluate
from fraud_ray.decision.importance import permutation_importance
from fraud_ray.model.bundle import Bundle
from fraud_ray.model.calibration import Calibration
from fraud_ray.model.graph import load_exporter
from fraud_ray.model.network import FraudNetwork
from fraud_ray.settings import DecisionSettings, TrainSettings
from fraud_ray.storage import Storage
from fraud_ray.training.build import network_shape


def get_ready() -> None:
    """Loads here what `assemble` needs, which takes longer than `assemble` itself."""
    load_exporter()


def assemble(
    storage: Storage,
    folder: str,
    selection: Sequence[PreparedFold],
    selection_logits: Sequence[np.ndarray[Any, np.dtype[np.float32]]],
    final: PreparedFold,
    weights: dict[str, torch.Tensor],
    train: TrainSettings,
    decision: DecisionSettings,
    origin: dict[str, Any],
) -> tuple[Evaluation, Curves]:
    """Calibrates and sets the threshold on the selection holdouts, looks at the final holdout once, writes the bundle.

    folder: key below the storage root at which the bundle's files are put. selection_logits: one array a selection
    fold, of the winner at its best epoch. origin: where the model comes from, kept in the bundle.
    """
    calibration, threshold = calibrate(storage, selection, selection_logits, decision)
    bundle = bundle_of(final, weights, train, calibration, threshold)
    rows = load(storage, final.holdout, with_roles=True)
    probabilities = calibration.apply(network_logits(bundle.network(), rows))
    evaluation = evaluate(probabilities, rows, threshold, decision)
    evaluation = replace(evaluation, importance=_importance(storage, bundle, selection[0], decision))
    truth, days = rows.roles.get("true_probability"), _days(rows) or None
    curves = Curves.of(probabilities, rows.label, threshold, truth, days, decision.confidence)
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

    def score(table: pa.Table) -> np.ndarray[Any, np.dtype[np.float32]]:
        features, codes = bundle.encoder.apply(table)
        return network_logits(network, Rows(features, codes, np.zeros(len(features), np.int8)))

    columns = [column.name for column in bundle.encoder.columns]
    labels = load(storage, selection.holdout).label
    table = raw_table(storage, selection.holdout)
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


def calibrate(
    storage: Storage,
    selection: Sequence[PreparedFold],
    logits: Sequence[np.ndarray[Any, np.dtype[np.float32]]],
    decision: DecisionSettings,
) -> tuple[Calibration, float]:
    """The calibration and the threshold that the pooled selection holdouts give."""
    holdouts = [load(storage, fold.holdout, with_roles=True) for fold in selection]
    labels = np.concatenate([rows.label for rows in holdouts])
    scores = np.concatenate(list(logits))
    calibration = fit_calibration(scores, labels, decision.calibration)
    days = sum(_days(rows) for rows in holdouts) or None
    costs = None
    if decision.cost_per_alert is not None and all("amount" in rows.roles for rows in holdouts):
        costs = Costs(np.concatenate([rows.roles["amount"] for rows in holdouts]), decision.cost_per_alert)
    return calibration, choose_threshold(calibration.apply(scores), labels, decision.threshold, days, costs)


def network_logits(network: FraudNetwork, rows: Rows, batch_rows: int = 8_192) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Logits float32 (rows,) of encoded rows."""
    scored = [np.empty(0, np.float32)]
    with torch.no_grad():
        for start in range(0, len(rows), batch_rows):
            cut = slice(start, start + batch_rows)
            scored.append(network(torch.tensor(rows.features[cut]), torch.tensor(rows.codes[cut])).numpy())
    return np.concatenate(scored)


def fetch_bundle(storage: Storage, folder: str, into: Path) -> Path:
    """Copies a stored bundle into a local folder, which it returns."""
    for key in storage.keys(folder):
        content = storage.get(key)
        if content is not None:
            (into / Path(key).name).write_bytes(content)
    return into


def _days(rows: Rows) -> int:
    timestamp = rows.roles.get("timestamp")
    return 0 if timestamp is None else len(np.unique(timestamp.astype("datetime64[D]")))
