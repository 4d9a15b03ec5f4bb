"""Scoring: ours, MLflow's pyfunc of the same model at its best batch size, and what the machine allows."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import ray

from benchmarks.harness import Row, Sample, Target, Unit, in_turn, one_thread
from benchmarks.training import products_per_second
from benchmarks.world import MILLION, World
from fraud_ray.model.bundle import Bundle, network_logits, open_graph
from fraud_ray.model.encoder import FeatureColumn
from fraud_ray.model.scorer import graph_inputs
from fraud_ray.registry.versions import write_model
from fraud_ray.scoring.partitions import open_model, score_partitions
from fraud_ray.settings import RegistrySettings

BATCHES = (1_024, 8_192, 65_536, 524_288)  # of which pyfunc gets its best
PEERS_ROWS, PEERS_FILES = 524_288, 8
CALLS = 3_000


def in_memory(world: World) -> list[Row]:
    """Raw columns to probability on one thread."""
    bundle = Bundle.load(world.bundle)
    scorer, network = open_graph(world.bundle), bundle.network()
    table = _raw(world.cards(2 * MILLION), scorer.columns)
    features, codes = bundle.encoder.apply(table)
    few = table.slice(0, PEERS_ROWS).to_pandas()
    model = _pyfunc(world)
    batch_size = _best_batch(model, few)

    with one_thread():
        samples = in_turn(
            {
                "ours": _rate(lambda: scorer.score(table), len(features)),
                "torch": _rate(lambda: network_logits(network, features, codes), len(features)),
                "pyfunc": _rate(lambda: _predict(model, few, batch_size), len(few)),
            },
            repeats=3,
        )
        inputs = features.shape[1] + sum(bundle.encoder.code_sizes)
        products = products_per_second(8_192, inputs, backward=False)

    row = partial(_row, "score, in memory", "rows/s", samples, limit=products, limit_name="its matrix products")
    note = f"one thread; peer: {len(few):,} rows, its best batch of {batch_size:,}"
    return [
        row("torch", "torch's bare forward on encoded rows", 0.8, note="2 M rows, one thread"),
        row("pyfunc", "mlflow.pyfunc", 3, note=note),
    ]


def partitions(world: World) -> list[Row]:
    """Parquet to parquet, all columns kept, on all CPUs."""
    cards, out = world.cards(10 * MILLION), world.scratch / "scored"
    model = open_model(str(world.bundle), RegistrySettings())
    files = sorted(cards.glob("*.parquet"))
    served = _pyfunc(world)
    few = _raw(files[0], open_graph(world.bundle).columns).to_pandas()
    batch_size = _best_batch(served, few)
    path = str(world.scratch / "pyfunc")

    def ours() -> float:
        seconds = score_partitions(model, str(cards), str(out)).seconds
        shutil.rmtree(out)
        return seconds

    def copy() -> float:
        return _on_files(_copy_file, files, out)

    def pyfunc() -> float:
        return _on_files(_score_file, files[:PEERS_FILES], out, path, batch_size) * len(files) / PEERS_FILES

    samples = in_turn({"ours": ours, "copy": copy, "pyfunc": pyfunc}, repeats=3)

    limit = samples["copy"].median
    row = partial(_row, "score, parquet to parquet", "s", samples, limit=limit, limit_name="read and write")
    whole = f"10 M rows, {len(files)} files, all CPUs"
    scaled = f"peer: {PEERS_FILES} files, scaled, its best batch of {batch_size:,}"
    return [
        row("copy", "reading and writing the partitions", 0.5, note=whole),
        row("pyfunc", "mlflow.pyfunc", 3, note=scaled),
    ]


def one_row(world: World) -> list[Row]:
    """The latency of the graph in a process."""
    scorer = open_graph(world.bundle)
    table = _raw(world.cards(2 * MILLION), scorer.columns).slice(0, 1)
    inputs = graph_inputs(table, scorer.columns)
    model, frame = _pyfunc(world), table.to_pandas()
    ours = _latencies(lambda: scorer.session.run(["probability"], inputs), CALLS)
    peer = _latencies(lambda: model.predict(frame), CALLS // 10)

    def row(name: str, percentile: float, bound: float) -> Row:
        times = float(np.percentile(ours, percentile)), float(np.percentile(peer, percentile))
        target = Target("<=", bound, "ms")
        return Row(f"score, one row, {name}", "ms", *times, "mlflow.pyfunc", target=target, note=f"{CALLS:,} calls")

    return [row("median", 50, 0.1), row("99th percentile", 99, 1)]


def _rate(work: Callable[[], Any], rows: int) -> Callable[[], float]:
    def measured() -> float:
        began = time.perf_counter()
        work()
        return rows / (time.perf_counter() - began)

    return measured


def _row(stage: str, unit: Unit, samples: Mapping[str, Sample], peer: str, name: str, bound: float, **more: Any) -> Row:
    return Row.between(stage, unit, samples["ours"], samples[peer], name, Target(">=", bound), **more)


def _raw(cards: Path, columns: Sequence[FeatureColumn]) -> pa.Table:
    return pq.read_table(cards, columns=[column.name for column in columns]).combine_chunks()


def pyfunc_folder(world: World) -> Path:
    """The bundle as MLflow keeps it."""
    folder = world.scratch / "pyfunc"
    if not folder.exists():
        example = Bundle.load(world.bundle).encoder.typical_rows().to_pandas()
        write_model(world.bundle, example, str(folder))
    return folder


def _pyfunc(world: World) -> Any:
    """The bundle as MLflow serves it, on one thread as our own scorer."""
    return _load_pyfunc(str(pyfunc_folder(world)))


@lru_cache(maxsize=1)
def _load_pyfunc(folder: str) -> Any:
    os.environ["FRAUD_RAY_SCORER_THREADS"] = "1"
    return mlflow.pyfunc.load_model(folder)


def _predict(model: Any, frame: pd.DataFrame, batch_rows: int) -> pd.DataFrame:
    return pd.concat([model.predict(frame[start : start + batch_rows]) for start in range(0, len(frame), batch_rows)])


def _best_batch(model: Any, frame: pd.DataFrame) -> int:
    seconds = {}
    for batch_rows in BATCHES:
        began = time.perf_counter()
        _predict(model, frame, batch_rows)
        seconds[batch_rows] = time.perf_counter() - began
    return min(seconds, key=lambda batch_rows: seconds[batch_rows])


def _on_files(work: Callable[..., None], files: Sequence[Path], out: Path, *arguments: Any) -> float:
    """Seconds for a task a file, each of which writes a file of the same name below `out`."""
    out.mkdir()
    began = time.perf_counter()
    task = ray.remote(num_cpus=1)(work)
    ray.get([task.remote(file, out / file.name, *arguments) for file in files])
    seconds = time.perf_counter() - began
    shutil.rmtree(out)
    return seconds


def _copy_file(file: Path, target: Path) -> None:
    table = pq.read_table(file, use_threads=False)
    pq.write_table(table, target, use_dictionary=["merchant_category"], compression="zstd")


def _score_file(file: Path, target: Path, model: str, batch_rows: int) -> None:
    frame, served = pd.read_parquet(file), _load_pyfunc(model)
    inputs = frame[served.metadata.get_input_schema().input_names()]
    scored = pd.concat([frame, _predict(served, inputs, batch_rows)], axis=1)
    scored.to_parquet(target, compression="zstd")


def _latencies(call: Callable[[], Any], count: int) -> list[float]:
    """Milliseconds of each of so many calls, after a tenth of them to warm up."""
    for _ in range(count // 10):
        call()
    times = []
    for _ in range(count):
        began = time.perf_counter()
        call()
        times.append(1_000 * (time.perf_counter() - began))
    return times
