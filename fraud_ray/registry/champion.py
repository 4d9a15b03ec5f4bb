"""The champion on the challenger's holdout: the rows that both must be judged on."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pyarrow as pa

from fraud_ray.data.rows import PreparedFold, load, raw_table
from fraud_ray.decision.comparison import Comparison, Predictions, compare
from fraud_ray.decision.evaluate import Evaluation, evaluate
from fraud_ray.errors import FraudRayError
from fraud_ray.model.bundle import open_graph
from fraud_ray.registry.tracking import Tracking
from fraud_ray.registry.versions import RegisteredVersion, champion, download
from fraud_ray.settings import DecisionSettings, Settings
from fraud_ray.storage import Storage


def score_champion(tracking: Tracking, version: RegisteredVersion, raw: pa.Table) -> Predictions:
    """What the champion, this version, says of rows with the columns that a run declares as features.

    Raises FraudRayError where it reads a column that is not among them.
    """
    with tempfile.TemporaryDirectory() as scratch:
        scorer = open_graph(download(tracking, version, Path(scratch)))
    absent = [column.name for column in scorer.columns if column.name not in raw.column_names]
    if absent:
        raise FraudRayError(
            f"the champion, version {version.version} of {version.name}, reads {', '.join(absent)}, which data.columns "
            "does not declare as a feature, so the two do not compare: declare it, or promote the new version by hand "
            "(gate.beats_champion: false; run instead of retrain)"
        )
    return Predictions(scorer.score(raw), scorer.threshold)


def evaluate_champion(
    tracking: Tracking, storage: Storage, final: PreparedFold, decision: DecisionSettings
) -> Evaluation | None:
    """The champion's figures on the final holdout, at its own threshold; None where there is no champion."""
    version = champion(tracking)
    if version is None:
        return None
    scored = score_champion(tracking, version, raw_table(storage, final.holdout))
    rows = load(storage, final.holdout, with_roles=True)
    quick = decision.model_copy(update={"bootstrap_repeats": 0})
    return evaluate(scored.probabilities, rows, scored.threshold, quick)


def compare_with_champion(
    tracking: Tracking, storage: Storage, final: PreparedFold, bundle: Path, settings: Settings
) -> Comparison | None:
    """The model in a bundle's folder against the champion, on the final holdout; None where there is no champion."""
    version = champion(tracking)
    if version is None:
        return None
    scorer, raw = open_graph(bundle), raw_table(storage, final.holdout)
    challenger, scored = Predictions(scorer.score(raw), scorer.threshold), score_champion(tracking, version, raw)
    rows = load(storage, final.holdout, with_roles=True)
    return compare(challenger, scored, version.version, rows.label, rows.roles.get("entity"), settings)
