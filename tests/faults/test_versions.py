"""Files that another version wrote, or that were cut: refused with what to do, one by one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from fraud_ray.cli import app
from fraud_ray.errors import DamagedError, SettingsError
from fraud_ray.runs import find_runs, list_runs, open_run
from fraud_ray.scoring.partitions import open_model
from fraud_ray.settings import RegistrySettings
from fraud_ray.storage import Storage
from fraud_ray.windows.definition import Definition
from tests.handmade import write_bundle
from tests.test_run import FINGERPRINT, loaded


@pytest.mark.faults("28", "a bundle, or windows, of another format", "refused with what to do")
@pytest.mark.quick
def test_a_bundle_of_another_format_is_not_scored(tmp_path: Path):
    folder = write_bundle(tmp_path / "bundle")
    for held in (0, 2, None):
        (folder / "bundle.json").write_text(json.dumps({"format": held}))
        for uri in (folder, folder / "model.onnx"):
            for verified in (True, False):
                with pytest.raises(SettingsError, match=rf"has format {held}, .* reads 1; .* or train and register"):
                    open_model(str(uri), RegistrySettings(), verified=verified)
    with pytest.raises(DamagedError, match=r"windows have format 0, .* reads 1; use the model with the version"):
        Definition.from_json({"format": 0})


@pytest.mark.faults("28", "a cut run.json, or outcome.json", "that run is named as damaged, and the others are listed")
@pytest.mark.quick
@pytest.mark.parametrize("file", ["run.json", "outcome.json"])
@pytest.mark.parametrize("content", [b'{"config": "ba', b"", b"[]", b'{"config": 3}', b"\xff"])
def test_a_run_whose_files_are_damaged_is_named(file, content, tmp_path: Path):
    storage = Storage.at(str(tmp_path / "store"))
    for name in ("april", "march"):
        with open_run(loaded(name), storage, FINGERPRINT) as run:
            storage.put(run.key("kept"), b"")
    storage.put(f"runs/april/{file}", content)
    assert [(run.name, run.state) for run in list_runs(storage)] == [("april", "damaged"), ("march", "unfinished")]
    assert find_runs(storage, "march")[0].state == "unfinished"
    told = rf"runs/april/{file} is damaged .*; put it back"
    with pytest.raises(DamagedError, match=told):
        find_runs(storage, "april")
    with pytest.raises(DamagedError, match=told), open_run(loaded("april"), storage, FINGERPRINT):
        pass
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump(loaded("april", storage={"root": storage.root}).settings.resolved()))
    told = CliRunner().invoke(app, ["runs", "list", "-c", str(config)])
    assert told.exit_code == 0
    assert "damaged" in told.output
    assert "march" in told.output
