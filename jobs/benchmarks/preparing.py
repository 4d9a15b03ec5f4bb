"""Preparing: ours on partitions, pandas with all rows in memory, and Ray's stock preprocessors."""

from __future__ import annotations

import itertools
import logging
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.feather as feather
import ray

from benchmarks.harness import GIB, Row, Side, Target, in_turn
from benchmarks.world import MILLION, ROWS_A_FILE, World, silent
from fraud_ray.data.prepare import prepare
from fraud_ray.storage import Storage

NUMBERS = ["transaction_amount", "time_since_last_transaction", "location_deviation"]
COLUMNS = [*NUMBERS, "device_fingerprint_match", "merchant_category"]
LABEL = "is_fraud"
PARTS = 64


def stage(world: World) -> list[Row]:
    rows = 10 * MILLION
    cards = world.cards(rows)
    sides: dict[str, Side] = {
        "ours": _ours(world, rows),
        "pandas": lambda: _pandas(cards, world.scratch / "pandas"),
    }
    ours, held = in_turn(sides, repeats=3).values()
    stock = in_turn({"stock": lambda: _stock(cards, world.scratch / "stock")}, repeats=1, warm=False)["stock"]
    scan = in_turn({"scan": lambda: _scan(cards)}, repeats=3)["scan"].median
    work = f"{rows / MILLION:.0f} M rows, {rows // ROWS_A_FILE} files"
    limit: dict[str, Any] = {"limit": scan, "limit_name": "Arrow scan"}
    return [
        Row.between(
            "prepare", "s", ours, stock, "Ray's preprocessors", Target(">=", 5), note=f"{work}; peer once", **limit
        ),
        Row.between("prepare", "s", ours, held, "pandas in memory", Target(">=", 0.6), note=work, **limit),
    ]


def scaling(world: World) -> list[Row]:
    """How time and memory grow with the rows: the peer is the time of a tenth of the rows, times ten."""
    sizes = [MILLION, 10 * MILLION, *([100 * MILLION] if world.full else [])]
    found = {}
    for rows in sizes:
        repeats = 1 if rows > 10 * MILLION else 3
        found[rows] = in_turn({"ours": _ours(world, rows)}, repeats, warm=rows == MILLION)["ours"]
    made = []
    for fewer, more in itertools.pairwise(sizes):
        target = Target(">=", 1 / 1.3) if more > 10 * MILLION else None
        sample, tenth = found[more], found[fewer]
        made.append(
            Row(
                f"scaling, rows {more / MILLION:.0f} M",
                "s",
                sample.median,
                tenth.median * more / fewer,
                f"{fewer / MILLION:.0f} M rows, times {more // fewer}",
                memory=sample.memory,
                peer_memory=tenth.memory,
                target=target,
                holds=more <= 10 * MILLION or sample.memory < 6 * GIB,
                note="memory below 6 GiB asked for as well" if target else "",
            )
        )
    return made


def _ours(world: World, rows: int) -> Side:
    """The pipeline's stage, each time into an empty storage."""
    settings = world.settings(rows)
    source, folds = world.plan(settings)
    storage = Storage.at(str(world.scratch / "prepare"))

    def run() -> float:
        began = time.perf_counter()
        prepare(source, folds, settings, storage, silent)
        seconds = time.perf_counter() - began
        shutil.rmtree(storage.root)
        return seconds

    return run


def _pandas(cards: Path, out: Path) -> float:
    """The same features from a data frame that holds all rows, written as Arrow files."""
    out.mkdir()
    began = time.perf_counter()
    frame = pd.read_parquet(cards, columns=[*COLUMNS, LABEL])
    features = {}
    for name in NUMBERS:
        values = frame[name].to_numpy(np.float32)
        missing = np.isnan(values)
        for way, encoded in (("", values), (":log", np.sign(values) * np.log1p(np.abs(values)))):
            standardised = (encoded - np.nanmean(encoded)) / np.nanstd(encoded)
            features[name + way] = np.where(missing, 0, np.clip(standardised, -50, 50)).astype(np.float32)
        if missing.any():
            features[f"{name}:missing"] = missing.astype(np.float32)
    match = frame["device_fingerprint_match"].to_numpy(np.float32)
    features["device_fingerprint_match"] = (match - match.mean()) / match.std()
    codes = frame["merchant_category"].astype("category").cat.codes.to_numpy(np.int32)
    encoded = pa.table({**features, "codes": codes, LABEL: frame[LABEL].to_numpy(np.int8)})
    size = -(-len(frame) // PARTS)
    for part in range(PARTS):
        feather.write_feather(encoded.slice(part * size, size), str(out / f"part-{part}.arrow"), "uncompressed")
    seconds = time.perf_counter() - began
    shutil.rmtree(out)
    return seconds


def _stock(cards: Path, out: Path) -> float:
    """Ray Data with the preprocessors that it has: fit, transform, write."""
    from ray.data.preprocessors import Chain, OneHotEncoder, StandardScaler

    ray.data.DataContext.get_current().enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    began = time.perf_counter()
    rows = ray.data.read_parquet(str(cards), columns=[*COLUMNS, LABEL])
    chain = Chain(StandardScaler(NUMBERS), OneHotEncoder(["merchant_category"]))
    chain.fit(rows)
    chain.transform(rows).write_parquet(str(out))
    seconds = time.perf_counter() - began
    shutil.rmtree(out)
    return seconds


def _scan(cards: Path) -> None:
    for _ in ds.dataset(cards).to_batches(columns=[*COLUMNS, LABEL]):
        pass
