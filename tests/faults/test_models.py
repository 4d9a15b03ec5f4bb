"""What is scored with is what was registered: a version or a folder that was changed since is refused, with why."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from urllib.parse import unquote, urlsplit

import onnx
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from onnx import helper
from typer.testing import CliRunner, Result

from fraud_ray.cli import app
from fraud_ray.errors import FraudRayError
from fraud_ray.registry.audit import append, read_all
from fraud_ray.registry.champion import open_champion
from fraud_ray.registry.opened import UNRECORDED, open_folder, open_uri
from fraud_ray.registry.promotion import record_registration
from fraud_ray.registry.tracking import Tracking, connect
from fraud_ray.registry.versions import HASHES_TAG, register
from fraud_ray.settings import RegistrySettings
from fraud_ray.storage import Storage
from tests.handmade import example, write_bundle

ROWS = pa.table({"amount": [1.0, 250.0], "night": [True, False], "merchant": ["shop", "casino"], "is_fraud": [0, 1]})


@pytest.fixture(scope="module")
def registered(tmp_path_factory: pytest.TempPathFactory, mlflow_template: Path) -> Path:
    """A storage whose registry's champion is the bundle of its run `first`, recorded."""
    root = tmp_path_factory.mktemp("opened") / "store"
    bundle = write_bundle(root / "runs/first/bundle")
    shutil.copy(mlflow_template, root / "mlflow.db")
    run = registry_in(root).start("first", {})
    record_registration(run, Storage.at(str(root)), register(run, bundle, example()))
    return root


@pytest.fixture
def graph(registered: Path) -> Path:
    """The graph among the version's artifacts, put back as it was after the test."""
    location = registry_in(registered).client.get_model_version_download_uri("cards", "1")
    return Path(unquote(urlsplit(location).path)) / "artifacts/model.onnx"


@pytest.fixture(autouse=True)
def put_back(registered: Path) -> None:
    artifacts = next(registered.rglob("artifacts/model.onnx")).parent
    for file in (registered / "runs/first/bundle").iterdir():
        shutil.copy(file, artifacts)


def registry_in(root: Path) -> Tracking:
    return connect(RegistrySettings(uri=f"sqlite:///{root}/mlflow.db", model_name="cards"))


def with_zeroed_weights(graph: Path) -> None:
    model = onnx.load(graph)
    model.graph.initializer[1].float_data[:] = [0.0]
    onnx.save(model, graph)


def with_another_threshold(graph: Path) -> None:
    model = onnx.load(graph)
    columns = next(entry.value for entry in model.metadata_props if entry.key == "columns")
    helper.set_model_props(model, {"threshold": "0.99", "columns": columns})
    onnx.save(model, graph)


def with_one_flipped_bit(graph: Path) -> None:
    content = bytearray(graph.read_bytes())
    content[len(content) // 2] ^= 1
    graph.write_bytes(bytes(content))


def fraud_ray(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments))


def configured(root: Path, folder: Path) -> Path:
    (folder / "in").mkdir()
    pq.write_table(ROWS, folder / "in/rows.parquet")
    columns = {"amount": "amount", "night": "boolean", "merchant": "categorical", "is_fraud": "label"}
    settings = {
        "data": {"path": str(folder / "in"), "columns": {name: {"kind": kind} for name, kind in columns.items()}},
        "storage": {"root": str(root)},
        "registry": {"model_name": "cards"},
        "folds": {"kind": "stratified"},
    }
    (folder / "cards.yaml").write_text(yaml.safe_dump(settings))
    return folder / "cards.yaml"


@pytest.mark.faults(
    "20",
    "zeroed weights, another threshold, a flipped bit in a version's graph",
    "score, drift and the champion's comparison refuse it, with both hashes",
)
@pytest.mark.parametrize(
    "tamper", [pytest.param(with_zeroed_weights, marks=pytest.mark.quick), with_another_threshold, with_one_flipped_bit]
)
def test_a_version_whose_graph_was_changed_is_refused_by_all_who_score_with_it(
    registered: Path, graph: Path, tmp_path: Path, tamper: Callable[[Path], None]
) -> None:
    config = configured(registered, tmp_path)
    scoring = ["score", "-c", str(config), "--model", "models:/cards@champion", "--input", str(tmp_path / "in")]
    tamper(graph)
    for command in ([*scoring, "--output", str(tmp_path / "out")], ["drift", "-c", str(config)]):
        done = fraud_ray(*command)
        told = str(done.exception) + done.output
        assert done.exit_code == 1
        assert f"not {hashlib.sha256((registered / 'runs/first/bundle/model.onnx').read_bytes()).hexdigest()}" in told
        assert f"audit record 1 at {registered}" in told
        assert "models rollback" in told
    with pytest.raises(FraudRayError, match=r"version 1 of cards, at .*, is not what was registered: model\.onnx has"):
        open_champion(registry_in(registered), Storage.at(str(registered)))
    assert not (tmp_path / "out").exists()


def test_a_changed_version_is_scored_where_that_is_asked_for_and_the_output_says_so(
    registered: Path, graph: Path, tmp_path: Path
) -> None:
    config = configured(registered, tmp_path)
    with_another_threshold(graph)
    folders = ["--input", str(tmp_path / "in"), "--output", str(tmp_path / "out")]
    done = fraud_ray("score", "-c", str(config), "--model", "models:/cards/1", *folders, "--unverified", "--json")
    scored = json.loads(done.stdout)
    assert (scored["threshold"], scored["notes"]) == (0.99, ["cards/1: not verified, as was asked for"])


@pytest.mark.faults("20", "another file beside the graph is changed, or removed", "refused by its name")
def test_what_lies_beside_the_graph_is_checked_too(registered: Path, graph: Path, tmp_path: Path) -> None:
    tracking, storage = registry_in(registered), Storage.at(str(registered))
    graph.with_name("bundle.json").write_text("{}")
    graph.with_name("encoder.json").unlink()
    with pytest.raises(FraudRayError, match=r"bundle\.json has the SHA-256 .*, encoder\.json is gone"):
        open_uri("models:/cards/1", tracking.registry, storage, tmp_path)


@pytest.mark.faults("20", "a version of a storage without its record is changed", "refused by the tag in the registry")
def test_a_storage_without_the_record_asks_the_registry(registered: Path, graph: Path, tmp_path: Path) -> None:
    registry, elsewhere = registry_in(registered).registry, Storage.at(str(tmp_path / "elsewhere"))
    assert open_uri("models:/cards/1", registry, elsewhere, tmp_path / "whole").note == ""
    with_one_flipped_bit(graph)
    with pytest.raises(FraudRayError, match="says its tag in the registry"):
        open_uri("models:/cards/1", registry, elsewhere, tmp_path / "changed")


def test_a_version_from_before_hashes_is_compared_with_the_record_of_its_run_or_taken_with_a_note(
    tmp_path: Path, mlflow_template: Path
) -> None:
    shutil.copy(mlflow_template, tmp_path / "mlflow.db")
    tracking, storage = registry_in(tmp_path), Storage.at(str(tmp_path))
    run = tracking.start("old", {})
    version = register(run, write_bundle(tmp_path / "bundle"), example())
    record_registration(run, storage, version)
    tracking.client.delete_model_version_tag("cards", "1", HASHES_TAG)
    assert open_uri("models:/cards/1", tracking.registry, storage, tmp_path / "unknown").note == UNRECORDED

    hashes = {f.name: hashlib.sha256(f.read_bytes()).hexdigest() for f in (tmp_path / "bundle").iterdir()}
    facts = {"run": "old", "model": {"name": "cards", "version": 1}, "bundle": hashes}
    append(storage, "run", lambda: facts)
    assert open_uri("models:/cards/1", tracking.registry, storage, tmp_path / "known").note == ""
    with_one_flipped_bit(next(tmp_path.rglob("mlartifacts/**/artifacts/model.onnx")))
    with pytest.raises(FraudRayError, match="says audit record 2"):
        open_uri("models:/cards/1", tracking.registry, storage, tmp_path / "changed")


def test_a_version_of_another_registry_is_not_held_against_this_storages_record(
    registered: Path, tmp_path: Path, mlflow_template: Path
) -> None:
    shutil.copy(mlflow_template, tmp_path / "mlflow.db")
    other, storage = registry_in(tmp_path), Storage.at(str(registered))
    register(other.start("elsewhere", {}), write_bundle(tmp_path / "bundle", slope=0.5), example())
    assert read_all(storage)[0].version == 1
    assert open_uri("models:/cards/1", other.registry, storage, tmp_path / "scratch").note == ""


@pytest.mark.faults("20", "the graph in a bundle's folder is changed", "refused by its own manifest")
@pytest.mark.quick
def test_a_folder_is_held_against_its_own_manifest(tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path / "bundle")
    assert open_folder(str(bundle), tmp_path).note.startswith("not from a registry, and nothing says")
    names = ("model.onnx", "encoder.json")
    hashes = {name: hashlib.sha256((bundle / name).read_bytes()).hexdigest() for name in names}
    (bundle / "bundle.json").write_text(json.dumps({"files": hashes}))
    for named in (bundle, bundle / "model.onnx"):
        assert open_folder(str(named), tmp_path).note == (
            "not from a registry; its files are those that bundle.json names"
        )
    with_zeroed_weights(bundle / "model.onnx")
    with pytest.raises(FraudRayError, match=r"at .*bundle is not what was written there: model\.onnx has the SHA-256"):
        open_folder(str(bundle), tmp_path)
    assert (
        open_folder(str(bundle), tmp_path, verified=False).note == "not from a registry; not verified, as was asked for"
    )
