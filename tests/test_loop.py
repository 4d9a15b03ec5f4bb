"""The training loop: reproducible, resumable, and sound in its arithmetic."""

from __future__ import annotations

import gc
import io
import itertools
import weakref
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from fraud_ray.model.dropout import Dropped
from fraud_ray.model.network import FraudNetwork, NetworkShape
from fraud_ray.settings import TrainSettings
from fraud_ray.training.build import build_fold, network_shape, rate_factor
from fraud_ray.training.feed import ResidentFeed, Slot
from fraud_ray.training.loop import Best, Epoch, FoldFit, fit
from tests.prepared import coded, made_rows

FIT, HOLDOUT = made_rows(4_000, seed=1), made_rows(2_000, seed=2)
SHAPE = NetworkShape(4, (), (32, 16), 0.3)
NETWORKS: dict[str, dict[str, Any]] = {
    "mlp": {},
    "residual": {"network": "residual", "layer_norm": True, "activation": "silu"},
    "embeddings": {"embedding_size": 3},
    "members": {"members": 3, "layer_norm": True, "activation": "silu"},
    "sharing members": {"members": 3, "member_weights": "shared"},
    "residual sharing members": {"network": "residual", "members": 3, "member_weights": "shared", "embedding_size": 2},
}


def opened(settings: TrainSettings, with_holdout: bool = True, **shape: Any) -> FoldFit:
    torch.manual_seed(settings.seed)
    slot = Slot(batch_size=settings.batch_size, negative_share=settings.negative_share, seed=settings.seed)
    return build_fold(
        replace(SHAPE, **shape),
        ResidentFeed(FIT, slot),
        HOLDOUT if with_holdout else None,
        settings,
        torch.device("cpu"),
    )


def silent(*_: Any) -> None:
    return None


def trained(settings: TrainSettings, epochs: int = 4) -> tuple[FoldFit, Best]:
    fold = opened(settings)
    return fold, fit([fold], epochs, settings.patience_epochs, silent)


def same_weights(one: FoldFit, other: FoldFit) -> bool:
    pairs = zip(one.network.state_dict().values(), other.network.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


def test_the_same_settings_give_the_same_weights_and_another_seed_others() -> None:
    settings = TrainSettings(batch_size=128)
    first, _ = trained(settings)
    again, _ = trained(settings)
    other, _ = trained(settings.model_copy(update={"seed": 43}))
    assert same_weights(first, again)
    assert not same_weights(first, other)


@pytest.mark.parametrize("schedule", ["constant", "cosine"])
def test_a_resumed_run_ends_with_the_weights_of_an_uninterrupted_one(schedule: str) -> None:
    settings = TrainSettings(batch_size=128, epochs=5, schedule=schedule, negative_share=0.5)
    whole, whole_best = trained(settings, epochs=5)
    kept: dict[int, bytes] = {}

    def keep(epoch: Epoch, best: Best, state: Any) -> None:
        buffer = io.BytesIO()
        torch.save(state(), buffer)
        kept[epoch.number] = buffer.getvalue()

    fit([opened(settings)], 2, settings.patience_epochs, keep)
    resumed = opened(settings)
    state = torch.load(io.BytesIO(kept[2]), weights_only=True)
    best = fit([resumed], 5, settings.patience_epochs, silent, state)
    assert same_weights(whole, resumed)
    assert (best.epoch, best.average_precision) == (whole_best.epoch, whole_best.average_precision)


def test_a_fold_is_freed_as_soon_as_it_is_done() -> None:
    fold, _ = trained(TrainSettings(batch_size=128), epochs=1)
    gone = weakref.ref(fold)
    gc.disable()  # which comes late: until then the rows would stay in memory beside the next trial's
    try:
        del fold
        assert gone() is None
    finally:
        gc.enable()


def test_training_stops_when_patience_runs_out_and_the_best_epoch_is_kept() -> None:
    settings = TrainSettings(batch_size=64, learning_rate=0.05, epochs=60, patience_epochs=3)
    scores: list[float] = []
    fold = opened(settings)
    best = fit([fold], 60, 3, lambda epoch, *_: scores.append(epoch.average_precision))
    assert len(scores) < 60
    assert len(scores) == best.epoch + 3
    assert best.average_precision == max(scores)


def test_without_patience_the_last_epoch_counts() -> None:
    settings = TrainSettings(batch_size=64, learning_rate=0.05, patience_epochs=None)
    scores: list[float] = []
    best = fit([opened(settings)], 20, None, lambda epoch, *_: scores.append(epoch.average_precision))
    assert (best.epoch, best.average_precision) == (20, scores[-1])
    assert scores[-1] < max(scores), "at this rate an earlier one is better"


def test_a_network_learns_what_no_linear_model_can() -> None:
    _, best = trained(TrainSettings(batch_size=128, learning_rate=3e-3, patience_epochs=None), epochs=15)
    assert best.average_precision > 0.5 > 3 * HOLDOUT.label.mean()


@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_the_loss_falls_with_class_weights(precision: str) -> None:
    settings = TrainSettings(
        precision=precision, positive_weight="balanced", batch_size=128, learning_rate=3e-3, optimizer="adam"
    )
    losses: list[float] = []
    fit([opened(settings)], 5, None, lambda epoch, *_: losses.append(epoch.loss))
    assert losses[-1] < losses[0]


def test_a_step_is_one_of_torch_on_the_weighted_mean_of_the_batch() -> None:
    settings = TrainSettings(batch_size=len(FIT), positive_weight=3.0, learning_rate=0.01, weight_decay=0.1)
    fold, same = opened(settings, dropout=0.0), opened(settings, dropout=0.0)
    losses: list[float] = []
    fit([fold], 1, None, lambda epoch, *_: losses.append(epoch.loss))
    features, labels = torch.from_numpy(FIT.features), torch.from_numpy(FIT.label).float()
    logits = same.network.train()(features, torch.from_numpy(FIT.codes)).squeeze(1)
    optimizer = torch.optim.AdamW(same.network.parameters(), 0.01, weight_decay=0.1)
    loss = (F.softplus(-logits) * 3 * labels + F.softplus(logits) * (1 - labels)).mean()
    loss.backward()
    optimizer.step()
    assert losses == [pytest.approx(float(loss), rel=1e-4)]
    for one, other in zip(fold.network.parameters(), same.network.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5)


def test_learning_rate_warms_up_to_its_peak_and_falls_to_zero() -> None:
    factors = [rate_factor(step, 100, "cosine", 0.1) for step in range(101)]
    assert factors[0] == pytest.approx(0.1)
    assert max(factors) == factors[10] == pytest.approx(1.0)
    assert factors[100] == pytest.approx(0.0, abs=1e-9)
    assert all(a >= b for a, b in itertools.pairwise(factors[10:]))
    assert rate_factor(99, 100, "constant", 0.0) == 1.0


def test_dropout_keeps_the_mean_drops_its_share_and_passes_gradients_of_kept_units_only() -> None:
    torch.manual_seed(0)
    layer = Dropped("relu", 0.3)
    hidden = torch.full((1_000, 500), 2.0, requires_grad=True)
    out = layer(hidden)
    assert float((out == 0).float().mean()) == pytest.approx(0.3, abs=0.005)
    assert float(out.mean()) == pytest.approx(2.0, rel=0.005)
    out.sum().backward()
    assert hidden.grad is not None
    assert torch.equal(hidden.grad != 0, out != 0)
    assert torch.allclose(hidden.grad[out != 0], out[out != 0] / 2)
    assert torch.equal(layer.eval()(torch.tensor([-1.0, 3.0])), torch.tensor([0.0, 3.0]))


def test_dropout_after_silu_keeps_the_mean_and_drops_its_share() -> None:
    torch.manual_seed(0)
    layer = Dropped("silu", 0.3)
    hidden = torch.full((1_000, 500), 2.0)
    out = layer(hidden)
    assert float((out == 0).float().mean()) == pytest.approx(0.3, abs=0.005)
    assert float(out.mean()) == pytest.approx(float(F.silu(torch.tensor(2.0))), rel=0.005)
    assert torch.equal(layer.eval()(hidden), F.silu(hidden))


def test_negative_units_pass_neither_value_nor_gradient() -> None:
    hidden = torch.full((4, 1_001), -1.0, requires_grad=True)
    out = Dropped("relu", 0.5)(hidden)
    out.sum().backward()
    assert hidden.grad is not None
    assert not out.any()
    assert not hidden.grad.any()


def test_members_differ_and_the_network_gives_their_mean_probability() -> None:
    torch.manual_seed(0)
    network = FraudNetwork(NetworkShape(4, (3,), (16, 8), 0.0, members=5))
    features, codes = torch.randn(50, 4), torch.randint(0, 3, (50, 1), dtype=torch.int32)
    own = torch.sigmoid(network.train()(features, codes))
    assert own.shape == (50, 5)
    assert float(own.std(dim=1).min()) > 0
    assert torch.allclose(torch.sigmoid(network.eval()(features, codes)), own.mean(dim=1), atol=1e-6)


def test_members_that_share_weights_differ_by_their_scales_and_have_far_fewer() -> None:
    torch.manual_seed(0)
    shape = NetworkShape(40, (3,), (64, 64), 0.0, members=8)
    own, shared = FraudNetwork(shape), FraudNetwork(replace(shape, member_weights="shared"))
    logits = shared(torch.randn(50, 40), torch.randint(0, 3, (50, 1), dtype=torch.int32))
    assert logits.shape == (50, 8)
    assert float(logits.std(dim=1).min()) > 0
    weights_of = [sum(p.numel() for p in network.parameters()) for network in (own, shared)]
    assert weights_of[1] < weights_of[0] / 3


@pytest.mark.parametrize("named", NETWORKS)
def test_every_network_learns(named: str) -> None:
    settings = TrainSettings(hidden_sizes=(32, 16), batch_size=128, learning_rate=5e-3, **NETWORKS[named])
    feed = ResidentFeed(coded(FIT), Slot(batch_size=settings.batch_size, seed=settings.seed))
    torch.manual_seed(settings.seed)
    fold = build_fold(network_shape(4, (3, 3), settings), feed, None, settings, torch.device("cpu"))
    losses: list[float] = []
    fit([fold], 4, None, lambda epoch, *_: losses.append(epoch.loss))
    assert losses[-1] < 0.9 * losses[0]


def test_members_are_fitted_side_by_side_and_beat_one_alone() -> None:
    settings = TrainSettings(batch_size=128, learning_rate=3e-3, patience_epochs=None, seed=5)
    _, alone = trained(settings, epochs=8)
    together = opened(settings.model_copy(update={"members": 6}), members=6)
    best = fit([together], 8, None, silent)
    assert best.average_precision > alone.average_precision


@pytest.mark.parametrize("embedding_size", [None, 4])
def test_a_category_never_seen_adds_nothing_to_the_logit(embedding_size: int | None) -> None:
    torch.manual_seed(0)
    network = FraudNetwork(NetworkShape(4, (5, 3), (8,), 0.0, embedding_size=embedding_size))
    features = torch.randn(6, 4)
    seen, unseen = torch.ones(6, 2, dtype=torch.int32), torch.zeros(6, 2, dtype=torch.int32)
    before = network.eval()(features, unseen).detach()
    table = network.categories or network.embeddings
    assert table is not None
    with torch.no_grad():
        table.weight[[1, 6]] = torch.randn_like(table.weight[[1, 6]])  # the rows of what was seen
    assert torch.equal(network(features, unseen), before)
    assert not torch.allclose(network(features, seen), before)
