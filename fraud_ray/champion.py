"""The champion on the challenger's holdout: the rows that both must be judged on."""

from __future__ import annotations

import tempfile
from pathlib import Path

from fraud_ray.decision.metrics import Evaluation, evaluate
from fraud_ray.errors import FraudRayError
from fraud_ray.model.bundle import open_graph
from fraud_ray.registry.tracking import Tracking
from fraud_ray.registry.versions import champion, download
from fraud_ray.rows import PreparedFold, load, raw_table
from fraud_ray.settings import DecisionSettings
from fraud_ray.storage import Storage


def evaluate_champion(
    tracking: Tracking, storage: Storage, final: PreparedFold, decision: DecisionSettings
) -> Evaluation | None:
    """The champion's figures on the final holdout, at its own threshold; None where there is no champion.

    Raises FraudRayError where the champion reads a column that this run does not declare.
    """
    version = champion(tracking)
    if version is None:
        return None
    with tempfile.TemporaryDirectory() as scratch:
        scorer = open_graph(download(tracking, version, Path(scratch)))
    raw = raw_table(storage, final.holdout)
    absent = [column.name for column in scorer.columns if column.name not in raw.column_names]
    if absent:
        raise FraudRayError(
            f"the champion, version {version.version} of {version.name}, reads {', '.join(absent)}, which data.columns "
            "does not declare as a feature: declare it, or set gate.beats_champion to false"
        )
    rows = load(storage, final.holdout, with_roles=True)
    return evaluate(scorer.score(raw), rows, scorer.threshold, decision.model_copy(update={"bootstrap_repeats": 0}))
