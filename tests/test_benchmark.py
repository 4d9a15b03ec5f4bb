"""The benchmark's harness, on a stage that costs little; its figures are not tested."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.long

BENCHMARK = Path(__file__).parents[1] / "jobs/benchmark.py"


def measured(*options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, str(BENCHMARK), *options], capture_output=True, text=True)


def test_a_stage_is_measured_beside_its_peer_and_nothing_is_left(tmp_path: Path) -> None:
    picture = tmp_path / "ratios.svg"
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    done = measured("--only", "command line, help", "--json", "--picture", str(picture), "--scratch", str(scratch))
    assert done.returncode in (0, 1), done.stderr
    told = json.loads(done.stdout)
    (row,) = told["rows"]
    assert row["stage"] == "command line, --help"
    assert row["ratio"] == row["peer"] / row["ours"]
    assert row["met"] == (row["ratio"] >= 1 / 20)
    assert done.returncode == (0 if row["met"] else 1)
    assert told["machine"]["cores"] > 0
    assert "python -c pass" in picture.read_text()
    assert list(scratch.iterdir()) == []


def test_a_stage_that_is_not_there_is_named_with_those_that_are() -> None:
    done = measured("--only", "score, one rwo")
    assert done.returncode == 2
    assert "score, one row" in " ".join(done.stderr.replace("│", "").split())  # as drawn in a box
