"""Data that are right, and at the ends of what there is: few frauds, many categories, files in one piece."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fraud_ray.data.rows import Rows
from fraud_ray.data.tasks import Merged
from fraud_ray.decision.calibration import calibrate
from fraud_ray.decision.evaluate import evaluate
from fraud_ray.model.encoder import FIRST_CATEGORY, MISSING, RARE, UNSEEN, Encoder, FeatureColumn, Statistics
from fraud_ray.model.scorer import GraphScorer
from fraud_ray.scoring.partitions import Model, open_model, score_partitions
from fraud_ray.settings import DecisionSettings, RegistrySettings
from tests.cards import card_table, days
from tests.handmade import example, write_bundle
from tests.test_folds import plan


@pytest.mark.faults("14", "1,000,000 categories", "the rare ones share a code, and few partitions are held at a time")
@pytest.mark.quick
def test_a_million_categories_make_no_large_network():
    columns = (FeatureColumn("c", "categorical"),)
    values = pa.array(np.arange(1_000_000)).cast(pa.string())
    merged = Merged(Statistics.merge)
    for start in range(0, 1_000_000, 50_000):
        part = pa.table({"c": pa.concat_arrays([values.slice(start, 50_000), pa.array(["often"] * 2)])})
        merged.add(Statistics.of(part, columns))
        assert len(merged.held) <= 8
    encoder = Encoder.fit(columns, merged.result())
    assert encoder.code_sizes == (FIRST_CATEGORY + 1,)
    _, codes = encoder.apply(pa.table({"c": ["often", "7", "new", None]}))
    assert codes[:, 0].tolist() == [FIRST_CATEGORY, RARE, UNSEEN, MISSING]


@pytest.mark.faults("15", "one fraud in 10,000 rows", "both classes on every side; figures and threshold are numbers")
@pytest.mark.quick
def test_one_fraud_in_ten_thousand_rows_is_enough():
    tables = [card_table(day, 10_000, fraud_share=0) for day in days(12)]  # one fraud each
    _, folds = plan(tables, fit_days=5, delay_days=2, holdout_days=2, selection_shift_days=[2])
    assert [(side.rows, side.frauds) for side in (folds.final.fit, folds.final.holdout)] == [(50_000, 5), (20_000, 2)]
    rng = np.random.default_rng(0)
    label = np.zeros(100_000, np.int8)
    label[:10] = 1
    logits = rng.normal(-9, 1, 100_000) + 6 * label
    settings = DecisionSettings(bootstrap_repeats=20)
    rows = Rows(np.empty((len(label), 0), np.float32), np.empty((len(label), 0), np.int32), label)
    calibration, threshold = calibrate([rows], [logits], settings)
    found = evaluate(calibration.apply(logits), rows, threshold, settings)
    assert np.isfinite([threshold, *found.metrics.values(), *np.ravel(list(found.intervals.values()))]).all()
    assert found.metrics["average_precision"] > 0.5


@pytest.mark.faults("16", "a file that is one huge row group", "read in pieces of a megabyte a column")
@pytest.mark.quick
def test_a_row_group_of_a_whole_file_is_not_held_to_be_scored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    rows = pa.Table.from_pandas(example(), preserve_index=False)
    whole = rows.take(pa.array(np.arange(2_000_000) % len(rows)))
    (tmp_path / "in").mkdir()
    file, count = tmp_path / "in/a.parquet", len(whole)
    pq.write_table(whole, file, row_group_size=count, compression="none", use_dictionary=False)
    model = Model("cards/3", open_model(str(write_bundle(tmp_path / "bundle")), RegistrySettings()).graph)
    held = []

    def score(scorer: GraphScorer, table: pa.Table) -> np.ndarray:
        held.append(pa.total_allocated_bytes())
        return np.zeros(table.num_rows, np.float32)

    monkeypatch.setattr(GraphScorer, "score", score)
    del rows, whole
    before = pa.total_allocated_bytes()
    monkeypatch.setattr("fraud_ray.scoring.partitions.join_unless_few", lambda *given: nullcontext())
    monkeypatch.setattr("fraud_ray.data.tasks.is_connected", bool)  # in this process, whatever other tests have started
    assert score_partitions(model, str(tmp_path / "in"), str(tmp_path / "out")).rows == count
    assert max(held) - before < file.stat().st_size / 2
