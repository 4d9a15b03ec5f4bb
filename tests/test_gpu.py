"""Training on a GPU: run with -m gpu where there is one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fraud_ray.data.rows import Rows
from fraud_ray.model.network import FraudNetwork
from fraud_ray.settings import TrainSettings
from fraud_ray.storage import Storage
from fraud_ray.training import capture
from fraud_ray.training.build import build_fold, network_shape
from fraud_ray.training.feed import Feed, ResidentFeed, Slot, StreamedFeed
from fraud_ray.training.loop import FoldFit, fit
from fraud_ray.training.trainer import load_fitted, refit
from tests.prepared import made_fold, made_rows, stored
from tests.test_loop import FIT, HOLDOUT, NETWORKS, SHAPE, silent

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]

CUDA = torch.device("cuda")


@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_a_network_learns_on_the_device_as_well_as_on_a_cpu(precision: str) -> None:
    settings = TrainSettings(batch_size=128, learning_rate=3e-3, patience_epochs=None, precision=precision)
    scores = {}
    for device in (CUDA, torch.device("cpu")):
        torch.manual_seed(settings.seed)
        fold = build_fold(SHAPE, ResidentFeed(FIT, Slot(batch_size=128), device), HOLDOUT, settings, device)
        scores[device.type] = fit([fold], 10, None, silent).average_precision
    assert scores["cuda"] == pytest.approx(scores["cpu"], abs=0.05)


def opened(settings: TrainSettings, rows: Rows, sizes: tuple[int, ...]) -> FoldFit:
    torch.manual_seed(settings.seed)
    slot = Slot(batch_size=settings.batch_size, negative_share=settings.negative_share, seed=settings.seed)
    shape = network_shape(rows.features.shape[1], sizes, settings)
    return build_fold(shape, ResidentFeed(rows, slot, CUDA), None, settings, CUDA)


def with_codes(rows: Rows, size: int) -> Rows:
    codes = np.random.default_rng(5).integers(size, size=(len(rows), 2), dtype=np.int32)
    return Rows(rows.features, codes, rows.label)


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("others", [{}, {"precision": "bf16", "schedule": "cosine", "negative_share": 0.5}])
def test_a_captured_step_trains_like_one_that_is_not(
    network: str, others: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = with_codes(FIT, 7)
    settings = TrainSettings(batch_size=64, hidden_sizes=(32, 16), **NETWORKS[network], **others)

    def losses(eager_steps: int) -> list[float]:
        monkeypatch.setattr(capture, "EAGER_STEPS", eager_steps)
        told: list[float] = []
        fit([opened(settings, rows, (7, 7))], 3, None, lambda epoch, *_: told.append(epoch.loss))
        return told

    captured = losses(3)
    assert captured == pytest.approx(losses(1_000_000), rel=1e-3)
    assert captured[-1] < captured[0]


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("size", [7, 1_000])
def test_a_network_computes_on_the_device_what_it_does_on_a_cpu(network: str, size: int) -> None:
    rows = with_codes(HOLDOUT, size)
    shape = network_shape(4, (size, size), TrainSettings(hidden_sizes=(32, 16), dropout=0.0, **NETWORKS[network]))
    torch.manual_seed(1)
    here = FraudNetwork(shape)
    for weight in here.parameters():
        torch.nn.init.normal_(weight, std=0.3)
    there = FraudNetwork(shape).to(CUDA)
    there.load_state_dict(here.state_dict())
    features, codes = torch.from_numpy(rows.features), torch.from_numpy(rows.codes)
    logits, same = here(features, codes), there(features.to(CUDA), codes.to(CUDA))
    torch.testing.assert_close(same.cpu(), logits, rtol=1e-3, atol=1e-3)
    logits.mean().backward()
    same.mean().backward()
    for one, other in zip(here.parameters(), there.parameters(), strict=True):
        torch.testing.assert_close(other.grad.cpu(), one.grad, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("schedule", ["constant", "cosine"])
def test_a_resumed_fit_ends_where_an_uninterrupted_one_does(schedule: str) -> None:
    settings = TrainSettings(batch_size=64, epochs=4, negative_share=0.5, schedule=schedule)
    whole, resumed = opened(settings, FIT, ()), opened(settings, FIT, ())
    states: list[dict[str, Any]] = []
    fit([whole], 4, None, silent)
    fit([opened(settings, FIT, ())], 2, None, lambda epoch, best, state: states.append(state()))
    fit([resumed], 4, None, silent, states[-1])
    for name, weight in whole.network.state_dict().items():
        torch.testing.assert_close(resumed.network.state_dict()[name], weight, rtol=1e-3, atol=1e-4)


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


def test_rows_are_read_ahead_while_a_step_is_captured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(capture, "EAGER_STEPS", 3)
    storage, settings = Storage.at(str(tmp_path)), TrainSettings(batch_size=32, epochs=3)
    feed = StreamedFeed(storage, stored(storage, "rows", FIT, parts=20), Slot(batch_size=32), 200, CUDA)
    losses: list[float] = []
    fit([build_fold(SHAPE, feed, None, settings, CUDA)], 3, None, lambda epoch, *_: losses.append(epoch.loss))
    assert losses[-1] < losses[0]
