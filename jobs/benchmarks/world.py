"""What the stages work on: simulated cards as partitions, the folds prepared from them, and a model of them.

All of it lies in a scratch folder, is made once, and is made when a stage first asks for it.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray
import torch

from fraud_ray.data.contract import validate
from fraud_ray.data.folds import Folds, plan_folds
from fraud_ray.data.prepare import prepare
from fraud_ray.data.rows import PreparedFold, Rows, load
from fraud_ray.data.source import Source, open_source
from fraud_ray.data.world import generate
from fraud_ray.decision.calibration import fit_calibration
from fraud_ray.model.bundle import Bundle, network_logits
from fraud_ray.settings import PrepareSettings, Settings, SimulateSettings, TrainSettings, load_settings
from fraud_ray.storage import Storage
from fraud_ray.training.build import build_fold, network_shape
from fraud_ray.training.feed import ResidentFeed, Slot
from fraud_ray.training.loop import FoldFit, fit

REPOSITORY = Path(__file__).parents[2]
ROWS_A_FILE = 156_250  # 10,000,000 rows in 64 files
MILLION = 1_000_000


def silent(*_: Any) -> None:
    return None


class World:
    """The scratch folder and what is made in it. full: whether the long versions of stages are asked for."""

    def __init__(self, scratch: Path, full: bool) -> None:
        self.scratch, self.full = scratch, full
        self.storage = Storage.at(str(scratch / "store"))
        self._kept: dict[int, PreparedFold] = {}

    def settings(self, rows: int, **train: Any) -> Settings:
        """The columns of configs/local.yaml, prepared as by default, on so many rows; a fifth held out at random."""
        loaded = load_settings(
            REPOSITORY / "configs/local.yaml",
            [f"data.path={self.cards(rows)}", f"storage.root={self.storage.root}", "folds={kind: stratified}"],
        ).settings
        return loaded.model_copy(update={"train": TrainSettings(**train), "prepare": PrepareSettings()})

    def cards(self, rows: int) -> Path:
        """A folder of partitions of ROWS_A_FILE rows."""
        folder = self.scratch / f"cards-{rows}"
        if not folder.exists():
            folder.mkdir(parents=True)
            files = max(1, rows // ROWS_A_FILE)
            write = ray.remote(num_cpus=1)(_write_cards)
            ray.get(
                [write.remote(folder / f"part-{number:05d}.parquet", rows // files, number) for number in range(files)]
            )
        return folder

    def plan(self, settings: Settings) -> tuple[Source, Folds]:
        """The partitions and the final fold alone: each row is prepared once."""
        source = open_source(settings.data)
        folds = plan_folds(validate(source, settings.data, silent), settings.folds)
        return source, replace(folds, selection=())

    def prepared(self, rows: int) -> PreparedFold:
        """A fold prepared from so many rows: four fifths to fit, a fifth held out."""
        if rows not in self._kept:
            settings = self.settings(rows)
            self._kept[rows] = prepare(*self.plan(settings), settings, self.storage, silent).final
        return self._kept[rows]

    def loaded(self, rows: int) -> tuple[Rows, Rows]:
        """Fit and holdout rows in memory."""
        fold = self.prepared(rows)
        return load(self.storage, fold.fit), load(self.storage, fold.holdout, with_roles=True)

    @cached_property
    def bundle(self) -> Path:
        """A model of a million rows, trained for an epoch: what it predicts matters less than what it computes."""
        fold = self.prepared(MILLION)
        fit_rows, holdout = self.loaded(MILLION)
        settings = TrainSettings(batch_size=1_024)
        fitted = open_fit(fold, fit_rows, settings)
        fit([fitted], 1, None, silent)
        logits = network_logits(fitted.network.eval(), holdout.features, holdout.codes)
        shape = network_shape(len(fold.encoder.feature_names), fold.encoder.code_sizes, settings)
        calibration = fit_calibration(logits, holdout.label, "platt")
        folder = self.scratch / "bundle"
        Bundle(fold.encoder, shape, fitted.network.state_dict(), calibration, 0.5, {}).save(folder)
        return folder


def open_fit(
    fold: PreparedFold,
    rows: Rows,
    settings: TrainSettings,
    holdout: Rows | None = None,
    device: torch.device = torch.device("cpu"),  # noqa: B008 - a value
) -> FoldFit:
    """The network of one fold on rows in memory, on one rank."""
    torch.manual_seed(settings.seed)
    shape = network_shape(len(fold.encoder.feature_names), fold.encoder.code_sizes, settings)
    feed = ResidentFeed(rows, Slot(batch_size=settings.batch_size, seed=settings.seed), device)
    return build_fold(shape, feed, holdout, settings, device)


def one_hot(fold: PreparedFold, rows: Rows) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Features and categories as one float32 matrix, which peers train on."""
    parts = [rows.features]
    for column, size in enumerate(fold.encoder.code_sizes):
        parts.append(np.eye(size, dtype=np.float32)[rows.codes[:, column]])
    return np.concatenate(parts, axis=1)


def _write_cards(path: Path, rows: int, seed: int) -> None:
    table = generate(SimulateSettings(rows=rows, seed=seed), 0)
    ids = pa.array(np.arange(rows, dtype=np.int64) + seed * rows)  # each world begins with the same
    table = table.set_column(table.column_names.index("transaction_id"), "transaction_id", ids)
    pq.write_table(table, path, use_dictionary=["merchant_category"], compression="zstd")
