"""configs/local.yaml made small: enough rows to learn something, few enough to be quick."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from fraud_ray.runs import Outcome

REPOSITORY = Path(__file__).parents[1]

Start = Callable[..., Outcome]

_SMALL = (
    *("simulate=null", "folds.fit_days=12", "folds.delay_days=2", "folds.holdout_days=4"),
    *("train.epochs=2", "train.batch_size=512", "search.space={}"),
    *("gate.min_f1=0.05", "decision.bootstrap_repeats=20"),
)


def local(simulated: Path, store: Path, overrides: Sequence[str] = ()) -> tuple[Path, list[str]]:
    """The configuration, and what to set in it, for these folders and further overrides."""
    own = (f"data.path={simulated}", f"storage.root={store}")
    return REPOSITORY / "configs/local.yaml", [*own, *_SMALL, *overrides]
