"""The champion on the challenger's holdout: the rows that both must be judged on."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

from fraud_ray.decision.comparison import Comparison, Scored, compare
from fraud_ray.decision.metrics import Evaluation, evaluate
from fraud_ray.errors import FraudRayError
from fraud_ray.model.bundle import open_graph
from fraud_ray.registry.tracking import Tracking
from fraud_ray.registry.versions import RegisteredVersion, champion, download
from fraud_ray.rows import PreparedFold, load, raw_table
from fraud_ray.settings import DecisionSettings, Settings
from fraud_ray.storage import Storage


@dataclass(frozen=True)
class ScoredChampion:
    """The champion's version, and what it says of a fold's holdout rows."""

    version: RegisteredVersion
    scored: Scored


def score_champion(tracking: Tracking, storage: Storage, final: PreparedFold) -> ScoredChampion | None:
    """The champion on the final holdout; None where there is no champion.

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
            "does not declare as a feature, so the two do not compare: declare it, or promote the new version by hand "
            "(gate.beats_champion: false; run instead of retrain)"
        )
    return ScoredChampion(version, Scored(scorer.score(raw), scorer.threshold))


def evaluate_champion(
    tracking: Tracking, storage: Storage, final: PreparedFold, decision: DecisionSettings
) -> Evaluation | None:
    """The champion's figures on the final holdout, at its own threshold; None where there is no champion."""
    found = score_champion(tracking, storage, final)
    if found is None:
        return None
    rows = load(storage, final.holdout, with_roles=True)
    quick = decision.model_copy(update={"bootstrap_repeats": 0})
    return evaluate(found.scored.probabilities, rows, found.scored.threshold, quick)


def compare_with_champion(
    tracking: Tracking, storage: Storage, final: PreparedFold, bundle: Path, settings: Settings
) -> Comparison | None:
    """The model in a bundle's folder against the champion, on the final holdout; None where there is no champion."""
    found = score_champion(tracking, storage, final)
    if found is None:
        return None
    scorer, rows = open_graph(bundle), load(storage, final.holdout, with_roles=True)
    challenger = Scored(scorer.score(raw_table(storage, final.holdout)), scorer.threshold)
    return compare(challenger, found.scored, found.version.version, rows.label, rows.roles.get("entity"), settings)
