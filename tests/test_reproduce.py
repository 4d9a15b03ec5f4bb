"""A concluded run's model fitted again: the same to the bit, or with what differs."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner, Result

from fraud_ray import reproduce
from fraud_ray.cli import app
from fraud_ray.reproduce import compare
from fraud_ray.storage import Storage
from fraud_ray.training.trainer import Fitted, load_fitted
from tests.line import local


def hashes(folder: Path) -> dict[str, str]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def fraud_ray_reproduce(name: str, simulated: Path, store: Path, *options: str) -> Result:
    path, overrides = local(simulated, store)
    settings = [word for override in overrides for word in ("--set", override)]
    return CliRunner().invoke(app, ["reproduce", name, "-c", str(path), *settings, *options])


def test_a_run_is_reproduced_to_the_bit_and_left_untouched(march: Path, simulated: Path) -> None:
    before = hashes(march)
    beside = simulated / "notes.txt"
    beside.write_text("no data")
    done = fraud_ray_reproduce("march", simulated, march)
    beside.unlink()
    assert done.exit_code == 0, done.output
    assert "weights are the same to the bit; all metrics are equal" in done.stdout
    assert "left out: 1 file that is no parquet (notes.txt)" in done.stdout
    assert hashes(march) == before
    assert not list((march / "runs/march").glob("reproduce-*"))


def test_what_differs_is_named_and_ends_with_1(
    march: Path, simulated: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = shutil.copytree(march, tmp_path / "store")
    record = store / "runs/march/run.json"
    told = json.loads(record.read_text())
    record.write_text(json.dumps({**told, "fingerprint": "f" * 64, "versions": {**told["versions"], "torch": "1.0"}}))
    (store / "runs/march/bundle/model.onnx").write_bytes(b"another graph")

    def fitted_otherwise(*arguments: Any) -> Fitted:
        fitted = load_fitted(Storage.at(str(march)), "runs/march/refit")
        weights = {name: tensor.clone() for name, tensor in fitted.weights.items()}
        weights["first.bias"][3] += 8.0  # enough to wake the unit for every row
        return dataclasses.replace(fitted, weights=weights)

    monkeypatch.setattr(reproduce, "refit", fitted_otherwise)
    done = fraud_ray_reproduce("march", simulated, store, "--json")
    assert done.exit_code == 1
    found = json.loads(done.stdout)
    assert found["is_exact"] is False
    assert {"data fingerprint", "package torch", "bundle/model.onnx"} <= set(found["changed"])
    assert found["changed"]["package torch"] == ['"1.0"', f'"{torch.__version__}"']
    tensors = {tensor["name"]: tensor for tensor in found["weights"]}
    assert (tensors["first.bias"]["differing"], tensors["first.bias"]["largest"]) == (1, pytest.approx(8.0))
    assert all(tensor["differing"] == 0 for name, tensor in tensors.items() if name != "first.bias")
    then, now = found["metrics"]["brier"]
    assert then == json.loads((store / "runs/march/bundle/bundle.json").read_text())["metrics"]["brier"] != now
    shown = " ".join(fraud_ray_reproduce("march", simulated, store).stdout.split())
    assert f"not reproduced march: 1 of {len(tensors)} tensors differ" in shown


def test_tensors_are_the_same_only_to_the_bit() -> None:
    one = torch.tensor([0.0, float("nan"), 1.5])
    assert compare("w", one, one.clone()).is_same
    assert not compare("w", one, one * torch.tensor([-1.0, 1.0, 1.0])).is_same, "minus zero is not zero"
    other = compare("w", torch.zeros(2, 3), torch.tensor([[0, 0, 0.25], [0, -0.5, 0]]))
    assert (other.elements, other.differing, other.largest) == (6, 2, 0.5)
    for now in (torch.zeros(3, 2), torch.zeros(2, 3).double(), None):
        changed = compare("w", torch.zeros(2, 3), now)
        assert (changed.is_same, changed.differing) == (False, None)


def test_only_a_concluded_run_can_be_reproduced(march: Path, simulated: Path, tmp_path: Path) -> None:
    store = shutil.copytree(march, tmp_path / "store")
    (store / "runs/march/outcome.json").unlink()
    done = fraud_ray_reproduce("march", simulated, store)
    assert done.exit_code == 2
    assert "run 'march' is unfinished: only one that is concluded can be reproduced" in " ".join(done.stderr.split())
    assert "no run 'april'" in fraud_ray_reproduce("april", simulated, store).stderr
