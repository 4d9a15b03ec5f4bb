"""The champion as values: its version, its graph and its profile, from one download of its bundle."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from fraud_ray.data.rows import PreparedFold, load, raw_table
from fraud_ray.decision.comparison import Comparison, Predictions, compare
from fraud_ray.decision.curves import ranking_curves
from fraud_ray.decision.evaluate import Evaluation, evaluate
from fraud_ray.errors import FraudRayError
from fraud_ray.model.bundle import GRAPH, load_profile
from fraud_ray.model.profile import Baseline, Profile
from fraud_ray.model.scorer import GraphScorer
from fraud_ray.registry.opened import open_version
from fraud_ray.registry.tracking import Tracking
from fraud_ray.registry.versions import RegisteredVersion, champion
from fraud_ray.settings import Settings
from fraud_ray.storage import Storage


@dataclass(frozen=True)
class Champion:
    """profile: of the rows that it was fitted on; None where its bundle holds none. note: as `Opened` has it."""

    version: RegisteredVersion
    graph: bytes
    profile: Profile | None
    note: str = ""

    @property
    def baseline(self) -> Baseline | None:
        """What today's data is compared with; None where its bundle holds no profile."""
        described = f"the champion, {self.version.name} version {self.version.version}"
        described += f" ({self.note})" if self.note else ""
        return None if self.profile is None else Baseline(described, self.profile, self.graph)

    def score(self, raw: pa.Table) -> tuple[npt.NDArray[np.float32], float]:
        """Its probabilities (rows,) of rows with the columns that a run declares as features, and its threshold.

        Raises FraudRayError where it reads a column that is not among them.
        """
        scorer = GraphScorer(self.graph)
        absent = [column.name for column in scorer.columns if column.name not in raw.column_names]
        if absent:
            raise FraudRayError(
                f"the champion, version {self.version.version} of {self.version.name}, reads {', '.join(absent)}, "
                "which data.columns does not declare as a feature, so the two do not compare: declare it, or promote "
                "the new version by hand (gate.beats_champion: false; run instead of retrain)"
            )
        return scorer.score(raw), scorer.threshold


def open_champion(tracking: Tracking, storage: Storage) -> Champion | None:
    """The version that holds the alias champion; None while there is none. Raises as `open_version` does."""
    version = champion(tracking)
    if version is None:
        return None
    with tempfile.TemporaryDirectory() as scratch:
        opened = open_version(tracking, version, storage, Path(scratch))
        return Champion(version, opened.graph, load_profile(opened.folder), opened.note)


def _keep_curves(
    storage: Storage, key: str, probabilities: npt.NDArray[np.float32], labels: npt.NDArray[np.int8]
) -> None:
    """Puts there what a report draws of the champion; both (rows,)."""
    storage.put_json(key, ranking_curves(probabilities, labels, 4 * int(labels.sum())).to_json())


def evaluate_champion(
    tracking: Tracking, storage: Storage, final: PreparedFold, curves: str, settings: Settings
) -> Evaluation | None:
    """The champion's figures on the final holdout, at its own threshold, where there is one and the gate asks.

    curves: key at which its curves are put.
    """
    known = open_champion(tracking, storage) if settings.gate.beats_champion else None
    if known is None:
        return None
    probabilities, threshold = known.score(raw_table(storage, final.holdout))
    rows = load(storage, final.holdout, with_roles=True)
    _keep_curves(storage, curves, probabilities, rows.label)
    quick = settings.decision.model_copy(update={"bootstrap_repeats": 0})
    return evaluate(probabilities, rows, threshold, quick)


def compare_with_champion(
    tracking: Tracking, storage: Storage, final: PreparedFold, bundle: str, curves: str, settings: Settings
) -> Comparison | None:
    """The model in a stored bundle against the champion, on the final holdout; None where there is no champion.

    curves: key at which the champion's are put.
    """
    known, graph = open_champion(tracking, storage), storage.get(f"{bundle}/{GRAPH}")
    if known is None or graph is None:
        return None
    scorer, raw, rows = GraphScorer(graph), raw_table(storage, final.holdout), load(storage, final.holdout, True)
    challenger, stays = Predictions(scorer.score(raw), scorer.threshold), Predictions(*known.score(raw))
    _keep_curves(storage, curves, stays.probabilities, rows.label)
    return compare(challenger, stays, known.version.version, rows.label, rows.roles.get("entity"), settings)
