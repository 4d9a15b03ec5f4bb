"""`fraud-ray models export`: a version in the layout of other programs' model servers."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner, Result

from fraud_ray.cli import app
from fraud_ray.registry.promotion import record_registration
from fraud_ray.registry.tracking import Tracking, connect
from fraud_ray.registry.versions import register
from fraud_ray.settings import RegistrySettings
from fraud_ray.storage import Storage
from tests.handmade import example, write_bundle


@pytest.fixture
def registry(store: Path) -> Tracking:
    """Version 1 has no portable graph, version 2 is champion, version 3 challenger; as configured in cards.yaml."""
    tracking = connect(RegistrySettings(uri=f"sqlite:///{store}/mlflow.db", model_name="cards"))
    for name in ("old", "second", "third"):
        bundle = write_bundle(store / f"runs/{name}/bundle")
        if name != "old":
            (bundle / "portable.onnx").write_bytes(name.encode())
            (bundle / "vocabulary.json").write_text("{}")
        run = tracking.start(name, {})
        record_registration(run, Storage.at(str(store)), register(run, bundle, example()))
    tracking.client.set_registered_model_alias("cards", "champion", "2")
    settings = {
        "data": {"path": str(store), "columns": {"is_fraud": {"kind": "label"}, "amount": {"kind": "amount"}}},
        "storage": {"root": str(store)},
        "registry": {"model_name": "cards"},
        "folds": {"kind": "stratified"},
    }
    (store / "cards.yaml").write_text(yaml.safe_dump(settings))
    return tracking


def export(store: Path, output: Path, *version: str) -> Result:
    arguments = ["models", "export", *version, "-c", str(store / "cards.yaml"), "--output", str(output)]
    return CliRunner().invoke(app, arguments)


def there(output: Path) -> dict[str, str]:
    return {str(file.relative_to(output)): file.read_text() for file in output.rglob("*") if file.is_file()}


def test_the_version_that_is_asked_for_lies_alone_where_model_servers_look(
    store: Path, registry: Tracking, tmp_path: Path
) -> None:
    output = tmp_path / "portable"
    assert "cards version 3 at " in export(store, output, "3").output
    assert there(output) == {"cards/3/model.onnx": "third", "cards/3/vocabulary.json": "{}"}
    assert export(store, output).exit_code == 0
    assert there(output) == {"cards/2/model.onnx": "second", "cards/2/vocabulary.json": "{}"}
    assert [folder.name for folder in (output / "cards").iterdir()] == ["2"], "an empty folder is a version to them"
    assert export(store, output, "@champion").exit_code == 0, "again, as each pod does"
    assert set(there(output)) == {"cards/2/model.onnx", "cards/2/vocabulary.json"}


def test_what_was_changed_or_has_no_portable_graph_is_refused(store: Path, registry: Tracking, tmp_path: Path) -> None:
    refused = export(store, tmp_path / "portable", "1")
    assert refused.exit_code == 1
    assert "version 1 of cards is from before there was a portable.onnx" in refused.stderr
    artifacts = next(file for file in store.rglob("artifacts/portable.onnx") if file.read_text() == "second")
    artifacts.write_text("changed")
    changed = export(store, tmp_path / "portable")
    assert changed.exit_code == 1
    assert "portable.onnx has the SHA-256" in changed.stderr
    assert not (tmp_path / "portable").exists()
