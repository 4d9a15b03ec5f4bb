"""The rival of a run: a model of another kind, chosen on its selection folds, on its final holdout."""

from __future__ import annotations

from typing import Any

import ray

from fraud_ray.cluster import answer
from fraud_ray.data.prepare import Prepared
from fraud_ray.data.rows import load, raw_table
from fraud_ray.decision.bootstrap import Predictions
from fraud_ray.decision.calibration import calibrate
from fraud_ray.decision.rival import Rival, against
from fraud_ray.model.bundle import GRAPH
from fraud_ray.model.scorer import GraphScorer
from fraud_ray.progress import Update
from fraud_ray.settings import DecisionSettings, Settings
from fraud_ray.storage import Storage
from fraud_ray.training.candidates import split_by_package
from fraud_ray.training.references import TRIALS, Candidate, fit_reference


def meet_rival(
    prepared: Prepared, settings: Settings, storage: Storage, bundle: str, folder: str, update: Update
) -> Rival | str:
    """`decision.rival` beside the network whose bundle lies below a key; a note where its package is missing.

    folder: key at which each fit is kept. Calibration and threshold are chosen as the network's are.
    """
    name = settings.decision.rival
    assert name is not None, "asked for only where one is named"
    _, absent = split_by_package([name])
    if absent:
        return absent[0]
    seeds = [settings.train.seed]
    fitted = fit_reference(name, prepared.selection, [prepared.final], TRIALS, seeds, storage, folder, update)
    found: Rival = answer(_judge.remote(fitted, prepared, settings.decision, storage, bundle))
    return found


def read_rival(kept: Any) -> Rival | str:
    """What `meet_rival` gave, as a run has kept it."""
    return kept if isinstance(kept, str) else Rival.from_json(kept)


@ray.remote(num_cpus=1)
def _judge(fitted: Candidate, prepared: Prepared, decision: DecisionSettings, storage: Storage, bundle: str) -> Rival:
    holdouts = [load(storage, fold.holdout, with_roles=True) for fold in prepared.selection]
    calibration, threshold = calibrate(holdouts, fitted.selection, decision)
    graph = storage.get(f"{bundle}/{GRAPH}")
    assert graph is not None, "the evaluation wrote it"
    scorer, rows = GraphScorer(graph), load(storage, prepared.final.holdout, with_roles=True)
    return against(
        Predictions(scorer.score(raw_table(storage, prepared.final.holdout)), scorer.threshold),
        Predictions(calibration.apply(fitted.final[0][0]), threshold),
        rows.label,
        rows.roles.get("entity"),
        decision,
        name=fitted.choice.in_words,
        trials=fitted.choice.trials,
        seconds=fitted.choice.seconds,
    )
