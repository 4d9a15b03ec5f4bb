"""Training on a GPU: run with -m gpu where there is one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from fraud_ray.settings import TrainSettings
from fraud_ray.storage import Storage
from fraud_ray.training.feed import Feed, ResidentFeed, Slot, StreamedFeed
from fraud_ray.training.loop import FoldFit, fit
from fraud_ray.training.trainer import load_fitted, refit
from tests.prepared import made_fold, made_rows, stored
from tests.test_loop import FIT, HOLDOUT, SHAPE, silent

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]

CUDA = torch.device("cuda")


@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_a_network_learns_on_the_device_as_well_as_on_a_cpu(precision: str) -> None:
    settings = TrainSettings(batch_size=128, learning_rate=3e-3, patience_epochs=None, precision=precision)
    scores = {}
    for device in (CUDA, torch.device("cpu")):
        torch.manual_seed(settings.seed)
        fold = FoldFit(SHAPE, ResidentFeed(FIT, Slot(batch_size=128), device), HOLDOUT, settings, device)
        scores[device.type] = fit([fold], settings, silent, 10).average_precision
    assert scores["cuda"] == pytest.approx(scores["cpu"], abs=0.05)


@pytest.mark.parametrize("kind", ["resident", "streamed"])
def test_every_row_reaches_the_device_once_an_epoch(kind: str, tmp_path: Path) -> None:
    rows, storage = made_rows(3_000), Storage.at(str(tmp_path))
    feed: Feed = ResidentFeed(rows, Slot(), CUDA)
    if kind == "streamed":
        feed = StreamedFeed(storage, stored(storage, "rows", rows, parts=7), Slot(), 1_000, CUDA)
    batches = list(feed.epoch(1))
    assert {batch.features.device.type for batch in batches} == {"cuda"}
    seen = torch.cat([batch.features[:, 0] for batch in batches]).cpu().numpy()
    assert np.array_equal(np.sort(seen), np.sort(rows.features[:, 0]))


def test_each_rank_trains_on_a_gpu_of_its_own(tmp_path: Path) -> None:
    import ray

    ranks = min(2, torch.cuda.device_count())
    storage = Storage.at(str(tmp_path))
    settings = TrainSettings(workers=ranks, use_gpu=True, precision="bf16", batch_size=256, epochs=2)
    ray.init(address="local", num_cpus=4, include_dashboard=False, log_to_driver=False)
    try:
        refit(made_fold(storage, "fold", 3_000, 500), settings, 2, storage, "refit", silent)
    finally:
        ray.shutdown()
    assert len(load_fitted(storage, "refit").curve) == 2
