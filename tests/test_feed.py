"""Minibatches: every row once an epoch, the same steps on every rank, negatives drawn afresh."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fraud_ray.storage import Storage
from fraud_ray.training.feed import Batch, Feed, ResidentFeed, Slot, StreamedFeed
from tests.prepared import made_rows, stored

ROWS = made_rows(3_000)


@pytest.fixture(scope="module")
def streamable(tmp_path_factory: pytest.TempPathFactory) -> tuple[Storage, object]:
    storage = Storage.at(str(tmp_path_factory.mktemp("feed")))
    return storage, stored(storage, "rows", ROWS, parts=7)


def epoch_of_all_ranks(feeds: list[Feed], number: int = 1) -> list[list[Batch]]:
    return [list(feed.epoch(number)) for feed in feeds]


def seen(batches: list[list[Batch]]) -> np.ndarray:
    return np.sort(np.concatenate([b.features[:, 0].numpy() for rank in batches for b in rank]))


@pytest.mark.parametrize("kind", ["resident", "streamed"])
@given(ranks=st.integers(1, 5), batch_size=st.integers(1, 700), window=st.integers(1, 4_000))
@settings(max_examples=25, deadline=None)
def test_every_rank_has_the_same_steps_and_every_row_comes_once(
    streamable: tuple[Storage, object], kind: str, ranks: int, batch_size: int, window: int
) -> None:
    storage, parts = streamable
    slots = [Slot(rank, ranks, batch_size) for rank in range(ranks)]
    feeds: list[Feed] = [
        ResidentFeed(ROWS, slot) if kind == "resident" else StreamedFeed(storage, parts, slot, window)  # type: ignore[arg-type]
        for slot in slots
    ]
    batches = epoch_of_all_ranks(feeds)
    assert {len(rank) for rank in batches} == {-(-len(ROWS) // batch_size)}
    assert np.array_equal(seen(batches), np.sort(ROWS.features[:, 0]))


@given(ranks=st.integers(2, 4), batch_size=st.integers(2, 500), share=st.sampled_from([1.0, 0.25]))
@settings(max_examples=20, deadline=None)
def test_ranks_share_the_global_batches_of_a_single_rank(ranks: int, batch_size: int, share: float) -> None:
    alone = list(ResidentFeed(ROWS, Slot(0, 1, batch_size, share)).epoch(3))
    shared = epoch_of_all_ranks([ResidentFeed(ROWS, Slot(r, ranks, batch_size, share)) for r in range(ranks)], 3)
    for step, batch in enumerate(alone):
        together = torch.cat([rank[step].features[:, 0] for rank in shared])
        assert sorted(together.tolist()) == sorted(batch.features[:, 0].tolist())
        assert {rank[step].global_rows for rank in shared} == {len(batch.labels)}


def test_epochs_come_in_different_orders_and_the_same_epoch_in_the_same(streamable: tuple[Storage, object]) -> None:
    storage, parts = streamable
    feeds: list[Feed] = [
        ResidentFeed(ROWS, Slot(batch_size=100)),
        StreamedFeed(storage, parts, Slot(batch_size=100), window_rows=1_000),  # type: ignore[arg-type]
    ]
    for feed in feeds:
        first, again, second = (torch.cat([b.features for b in feed.epoch(number)]) for number in (1, 1, 2))
        assert torch.equal(first, again)
        assert not torch.equal(first, second)


@pytest.mark.parametrize("kind", ["resident", "streamed"])
def test_a_share_of_negatives_is_drawn_afresh_and_weighted_back(streamable: tuple[Storage, object], kind: str) -> None:
    storage, parts = streamable
    slot = Slot(batch_size=64, negative_share=0.25)
    feed: Feed = ResidentFeed(ROWS, slot) if kind == "resident" else StreamedFeed(storage, parts, slot, 500)  # type: ignore[arg-type]
    frauds = int(ROWS.label.sum())
    drawn = []
    for number in (1, 2):
        batches = list(feed.epoch(number))
        labels = torch.cat([b.labels for b in batches])
        weights = torch.cat([b.weights for b in batches if b.weights is not None])
        assert int(labels.sum()) == frauds
        assert len(labels) - frauds == pytest.approx(0.25 * (len(ROWS) - frauds), abs=8)
        ratio = weights[labels == 0].sum() / weights[labels == 1].sum()
        assert float(ratio) == pytest.approx((len(ROWS) - frauds) / frauds, rel=1e-4)
        assert float(weights.mean()) == pytest.approx(1, rel=1e-4)
        drawn.append({float(x) for b in batches for x in b.features[b.labels == 0][:, 0]})
    assert 0.15 < len(drawn[0] & drawn[1]) / len(drawn[0]) < 0.35


def test_a_fault_while_reading_ahead_reaches_the_reader(streamable: tuple[Storage, object], tmp_path: Path) -> None:
    _, parts = streamable
    feed = StreamedFeed(Storage.at(str(tmp_path)), parts, Slot(), 1_000)  # type: ignore[arg-type]
    with pytest.raises(FileNotFoundError):
        list(feed.epoch(1))
