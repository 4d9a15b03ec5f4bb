"""Ranks that train together, by torch.distributed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import distributed, multiprocessing

from fraud_ray.settings import TrainSettings
from fraud_ray.training.build import build_fold, network_shape
from fraud_ray.training.feed import ResidentFeed, Slot
from fraud_ray.training.loop import fit
from tests.prepared import coded, made_rows
from tests.test_loop import NETWORKS

RANKS = 3
SETTINGS = {
    name: TrainSettings(hidden_sizes=(32, 16), batch_size=96, dropout=0.0, **given) for name, given in NETWORKS.items()
}
FIT, HOLDOUT = coded(made_rows(600, seed=1)), coded(made_rows(500, seed=2))


def fitted(settings: TrainSettings, rank: int = 0, ranks: int = 1) -> dict[str, Any]:
    torch.manual_seed(rank)  # all go on with the weights of rank 0
    feed = ResidentFeed(FIT, Slot(rank, ranks, settings.batch_size))
    fold = build_fold(network_shape(4, (3, 3), settings), feed, HOLDOUT, settings, torch.device("cpu"))
    losses: list[float] = []
    best = fit([fold], 2, None, lambda epoch, *_: losses.append(epoch.loss))
    weights = [float(weight.detach().abs().sum()) for weight in fold.network.parameters()]
    with torch.no_grad():
        alone = fold.network.eval()(torch.from_numpy(HOLDOUT.features), torch.from_numpy(HOLDOUT.codes))
    assert np.allclose(fold.score_holdout(), alone, atol=1e-5), "every row is scored, in its place"
    return {"losses": losses, "weights": weights, "average_precision": best.average_precision}


def one_rank(rank: int, folder: Path) -> None:
    store = distributed.FileStore(str(folder / "store"), RANKS)
    distributed.init_process_group("gloo", store=store, rank=rank, world_size=RANKS)
    told = {name: fitted(settings, rank, RANKS) for name, settings in SETTINGS.items()}
    distributed.destroy_process_group()
    (folder / f"{rank}.json").write_text(json.dumps(told))


def test_ranks_train_the_network_of_one_rank(tmp_path: Path) -> None:
    multiprocessing.spawn(one_rank, (tmp_path,), nprocs=RANKS)
    told = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(RANKS)]
    assert told[0] == told[1] == told[2], "all ranks have the same network and the same scores"
    for name, together in told[0].items():
        for figures, alone in fitted(SETTINGS[name]).items():
            assert together[figures] == pytest.approx(alone, rel=1e-3), (name, figures)
