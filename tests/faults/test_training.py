"""Training that leaves the numbers."""

from __future__ import annotations

from pathlib import Path

import pytest

from fraud_ray.errors import FraudRayError
from fraud_ray.storage import Storage
from fraud_ray.training.search import search
from tests.prepared import made_fold
from tests.test_search import made_settings, quiet, searched

HUGE = 1e30


@pytest.mark.faults("17", "the loss becomes NaN", "failed with the reason; the search goes on; all failing is exit 1")
@pytest.mark.quick
def test_a_trial_whose_loss_is_no_number_has_failed(ray_session: None, tmp_path: Path):
    storage = Storage.at(str(tmp_path))
    folds = [made_fold(storage, "selection", 1_000, 400)]
    outcome, told = searched(folds, made_settings({"learning_rate": [HUGE, 0.01]}), storage, "runs/some")
    good, bad = outcome.trials
    assert (good.status, good.hyperparameters) == ("finished", {"learning_rate": 0.01})
    assert (bad.status, bad.average_precision, bad.hyperparameters) == ("failed", None, {"learning_rate": HUGE})
    assert bad.fault is not None
    assert "training diverged: the loss is nan in epoch 1; lower train.learning_rate" in bad.fault
    assert {trial.status for trial in told} == {"finished", "failed"}
    with pytest.raises(FraudRayError, match=r"the first fault: training diverged: the loss is nan .*") as found:
        search(folds, made_settings({"learning_rate": [HUGE]}), storage, "runs/none", told.append, quiet)
    assert found.value.exit_code == 1
