"""An object store that holds a twentieth of the data."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from tests.rays import BIN, head

ROWS, COLUMNS, FILES = 100_000, 100, 25


@pytest.mark.faults("9", "an object store of 100 MB, and 2 GB of data", "prepared, trained on and registered")
def test_data_of_twenty_times_the_object_store_is_trained_on(tmp_path: Path, store: Path) -> None:
    assert ROWS * COLUMNS * FILES * 8 == 2e9
    rng = np.random.default_rng(0)
    numbers = {f"n{i}": rng.integers(0, 200, ROWS).astype(np.float64) for i in range(COLUMNS)}  # small as files
    label = rng.random(ROWS) < np.where(numbers["n0"] > 180, 0.5, 0.01)
    first, *others = (tmp_path / "data" / f"part-{i}.parquet" for i in range(FILES))
    first.parent.mkdir()
    pq.write_table(pa.table({**numbers, "label": label.astype(np.int8)}), first)
    for file in others:
        shutil.copy(first, file)
    settings = {
        "data": {
            "path": str(first.parent),
            "columns": {**{name: {"kind": "numeric"} for name in numbers}, "label": {"kind": "label"}},
        },
        "folds": {"kind": "stratified", "max_holdout_rows": 20_000},
        "train": {
            "epochs": 1,
            "batch_size": 4096,
            "negative_share": 0.02,
            "hidden_sizes": [16],
            "residency": "resident",
        },
        "gate": {"min_f1": None},
        "decision": {"bootstrap_repeats": 20},
        "storage": {"root": str(store)},
        "run": {"name": "large"},
    }
    (tmp_path / "large.yaml").write_text(yaml.safe_dump(settings))
    with head(tmp_path, {}, options=["--object-store-memory=100000000"]) as up:
        done = subprocess.run(
            [BIN / "fraud-ray", "run", "-c", tmp_path / "large.yaml", "--json"],
            env=up.environment,
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=600,
        )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["status"] == "registered"
