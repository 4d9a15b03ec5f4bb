"""Runs and versions in a real MLflow on sqlite, and once behind a real MLflow server."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import mlflow.models
import mlflow.pyfunc
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from fraud_ray.data.source import open_source
from fraud_ray.errors import DataError, FraudRayError, RunHeldError, ServerError, SettingsError
from fraud_ray.registry import server
from fraud_ray.registry.champion import open_champion
from fraud_ray.registry.server import ui_command
from fraud_ray.registry.tracking import Dataset, TrackedRun, Tracking, connect
from fraud_ray.registry.versions import HASHES_TAG, champion, download, list_versions, register
from fraud_ray.registry.writer import writing
from fraud_ray.runs import open_run
from fraud_ray.settings import Loaded, RegistrySettings, StorageSettings, locate_registry, parse_settings
from fraud_ray.storage import Storage
from tests.handmade import THRESHOLD, example, expected, write_bundle
from tests.rays import wait_for

METRICS = {"f1_score": 0.9, "average_precision": 0.8}
names = (f"name-{number}" for number in itertools.count())


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A storage root whose name needs escaping."""
    return tmp_path_factory.mktemp("stores") / "a store #1 é&?[x] 100%"


@pytest.fixture(scope="module")
def uri(root: Path) -> str:
    """One sqlite store for the module, as its schema takes seconds."""
    located = locate_registry(RegistrySettings(), StorageSettings(root=str(root)), "a test")
    assert located.uri is not None
    return located.uri


@pytest.fixture
def tracking(uri: str) -> Tracking:
    """An experiment and a registered model of the test's own."""
    return connect(RegistrySettings(uri=uri, experiment=next(names), model_name=next(names)))


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bundle(tmp_path_factory.mktemp("bundle") / "bundle")


@pytest.fixture
def globally(uri: str) -> Iterator[None]:
    """The store as MLflow's global one, as a user sets it to load a model."""
    mlflow.set_tracking_uri(uri)
    yield
    mlflow.set_tracking_uri(None)


def started(tracking: Tracking, name: str = "run-1") -> TrackedRun:
    return tracking.start(name, {"train": {"epochs": 3}}, {"mlflow.source.git.commit": "abc"})


def stored(run: TrackedRun):
    return run.tracking.client.get_run(run.id)


def children(run: TrackedRun):
    return run.tracking.client.search_runs(
        [run.tracking.experiment_id], f"tags.`mlflow.parentRunId` = '{run.id}'", order_by=["tags.`fraud_ray.trial` ASC"]
    )


def test_a_run_is_created_once_and_then_resumed(tracking):
    first = started(tracking)
    first.finish("KILLED", "stopped", "stopped after prepare")
    again = tracking.start("run-1", {"train": {"epochs": 4, "workers": 2}}, {"mlflow.user": "ada"})
    assert again.id == first.id
    run = stored(again)
    assert (run.info.status, run.data.tags["fraud_ray.state"]) == ("RUNNING", "running")
    assert "fraud_ray.reason" not in run.data.tags
    assert run.info.run_name == "run-1"
    assert run.data.params == {"train.epochs": "3", "train.workers": "2"}
    assert run.data.tags["mlflow.source.git.commit"] == "abc"
    assert run.data.tags["mlflow.user"] == "ada"
    assert started(tracking, "run-2").id != first.id


def test_settings_of_any_name_and_length_become_parameters(tracking):
    columns = {f"column {number} (€)": {"kind": "numeric"} for number in range(150)}
    columns |= {name: {"kind": "numeric"} for name in ("km//h", "../a", "b/", "c/../d", "./e")}
    run = tracking.start("run-1", {"data": {"columns": columns}, "slices": ["x" * 10_000], "none": None, "empty": {}})
    params = stored(run).data.params
    assert params["data.columns.column 149 ___.kind"] == "numeric"
    assert params["data.columns.km__h.kind"] == "numeric"
    assert len(params["slices"]) == 6_000
    assert (params["none"], params["empty"]) == ("null", "{}")


def test_a_trial_is_one_child_however_often_it_is_logged(tracking):
    run = started(tracking)
    curve = [{"epoch": epoch, "loss": 1 / epoch, "average_precision": epoch / 10} for epoch in range(1, 6)]
    for _ in range(2):
        run.log_trial("t-1", {"learning_rate": 0.1}, curve, {"average_precision": 0.5, "best_epoch": 5}, seconds=9)
    (child,) = children(run)
    assert child.info.status == "FINISHED"
    assert child.info.end_time - child.info.start_time == 9_000
    assert child.data.params == {"learning_rate": "0.1"}
    assert child.info.run_name == "learning_rate=0.1"
    assert child.data.metrics["average_precision"] == 0.5
    history = tracking.client.get_metric_history(child.info.run_id, "epoch/loss")
    assert [(point.step, point.value) for point in history] == [(row["epoch"], row["loss"]) for row in curve]


def test_a_trial_that_was_cut_short_is_completed(tracking):
    run = started(tracking)
    curve = [{"epoch": 1, "loss": 0.5}, {"epoch": 2, "loss": 0.25}]
    run.log_trial("t-1", {"dropout": 0.1}, curve[:1], {}, status="FAILED")
    run.log_trial("t-1", {"dropout": 0.1}, curve, {"average_precision": 0.5})
    run.log_trial("t-2", {"dropout": 0.2}, [], {"average_precision": None}, status="KILLED")
    first, second = children(run)
    assert (first.info.status, second.info.status) == ("FINISHED", "KILLED")
    assert len(tracking.client.get_metric_history(first.info.run_id, "epoch/loss")) == 2


def test_a_long_curve_is_logged_whole(tracking):
    run = started(tracking)
    run.log_trial("t-1", {}, [{"loss": 0.5, "average_precision": 0.1}] * 700, {})
    (child,) = children(run)
    assert len(tracking.client.get_metric_history(child.info.run_id, "epoch/loss")) == 700


def test_metrics_curve_and_dataset_are_logged_once(tracking):
    dataset = Dataset("transactions", "s3://bucket/data", "0123456789abcdef" * 4, 1000)
    for _ in range(2):
        run = tracking.start("run-1", {}, dataset=dataset)
        run.log_metrics({**METRICS, "note": "text is left out"})
        run.log_curve([{"epoch": 1, "loss": 0.5}, {"epoch": 2, "loss": 0.5}])
    (logged,) = stored(run).inputs.dataset_inputs
    assert (logged.dataset.name, logged.dataset.digest) == ("transactions", dataset.fingerprint[:36])
    assert dataset.fingerprint in logged.dataset.profile
    run.log_metrics({"f1_score": 0.85})
    history = tracking.client.get_metric_history(run.id, "f1_score")
    assert [(point.step, point.value) for point in history] == [(0, 0.9), (0, 0.85)]
    assert stored(run).data.metrics["f1_score"] == 0.85, "the last that was said counts"
    assert [point.step for point in tracking.client.get_metric_history(run.id, "epoch/loss")] == [1, 2]


def test_a_rejected_run_keeps_its_reason_and_registers_nothing(tracking):
    run = started(tracking)
    run.finish("FAILED", "rejected", "f1_score 0.71 is below gate.min_f1 0.85")
    assert stored(run).data.tags["fraud_ray.state"] == "rejected"
    assert stored(run).data.tags["fraud_ray.reason"].startswith("f1_score 0.71")
    assert champion(tracking) is None
    assert list_versions(tracking) == []


@pytest.mark.parametrize(
    ("fault", "shown"),
    [
        (KeyboardInterrupt(), ("KILLED", "interrupted", None)),
        (DataError("no rows"), ("FAILED", "failed", "no rows")),
        (RunHeldError("by ada"), ("RUNNING", "running", None)),
    ],
)
def test_how_a_run_ends_is_told_even_while_the_store_is_being_connected_to(tracking, tmp_path, fault, shown):
    pq.write_table(pa.table({"is_fraud": [0, 1], "amount": [1.0, 2.0]}), tmp_path / "a.parquet")
    columns = {"is_fraud": {"kind": "label"}, "amount": {"kind": "amount"}}
    raw = {
        "data": {"path": str(tmp_path), "columns": columns},
        "registry": tracking.registry.model_dump(),
        "folds": {"kind": "stratified"},
    }
    loaded = Loaded(parse_settings(raw, "test"), "test")
    storage, source = Storage.at(str(tmp_path / "store")), open_source(loaded.settings.data)
    with pytest.raises(type(fault)), open_run(loaded, storage, "f") as run, writing(loaded, source, run):
        run.storage.put(run.key("kept"), b"")
        raise fault
    (told,) = tracking.client.search_runs([tracking.experiment_id])
    tags = told.data.tags
    assert (told.info.status, tags["fraud_ray.state"], tags.get("fraud_ray.reason")) == shown


def test_artifacts_lie_beside_the_database(tracking, root):
    run = started(tracking)
    run.log_json({"passed": True}, "gate/decision.json")
    run.log_text("<html>", "report.html")
    beside = root / "mlartifacts" / run.id / "artifacts"
    logged = {str(path.relative_to(beside)) for path in beside.rglob("*") if path.is_file()}
    assert logged == {"gate/decision.json", "report.html"}
    assert list(root.parent.iterdir()) == [root]


def test_nothing_is_printed_and_nothing_lands_in_the_working_folder(tracking, bundle, tmp_path):
    story = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parents[1])!r})
from tests.handmade import example
from fraud_ray.registry.tracking import connect
from fraud_ray.registry.versions import champion, download, register
from fraud_ray.settings import RegistrySettings, StorageSettings, locate_registry
tracking = connect(RegistrySettings.model_validate({tracking.registry.model_dump()!r}))
run = tracking.start("run-1", {{}})
run.log_trial("t-1", {{}}, [{{"epoch": 1, "loss": 0.5}}], {{}})
register(run, {str(bundle)!r}, example())
download(tracking, champion(tracking), "download")
run.finish("FINISHED", "registered")
"""
    ran = subprocess.run([sys.executable, "-c", story], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert (ran.stdout, ran.stderr) == ("", "")
    assert [path.name for path in tmp_path.iterdir()] == ["download"]


def test_the_first_version_is_champion_and_later_ones_are_challengers(tracking, bundle):
    versions = [register(started(tracking, f"run-{n}"), bundle, example()) for n in (1, 2, 3)]
    assert [version.version for version in versions] == [1, 2, 3]
    assert [version.alias for version in versions] == ["champion", "challenger", "challenger"]
    assert [version.alias for version in list_versions(tracking)] == ["challenger", None, "champion"]
    assert champion(tracking).run == "run-1"


def test_a_version_carries_where_it_comes_from(tracking, bundle, globally):
    run = started(tracking)
    version = register(run, bundle, example(), {"fraud_ray.fingerprint": "f00"}, "the first")
    entry = tracking.client.get_model_version(version.name, str(version.version))
    assert (entry.run_id, entry.description) == (run.id, "the first")
    hashes = json.loads(entry.tags.pop(HASHES_TAG))
    assert hashes["model.onnx"] == hashlib.sha256((bundle / "model.onnx").read_bytes()).hexdigest()
    assert entry.tags == {"fraud_ray.run": "run-1", "fraud_ray.fingerprint": "f00", "fraud_ray.alias": "champion"}
    about = mlflow.models.get_model_info(version.uri)
    assert about.run_id == run.id
    assert about.metadata["threshold"] == THRESHOLD
    assert about.signature.inputs.input_names() == ["amount", "night", "merchant"]
    assert [file.path for file in tracking.client.list_artifacts(run.id)] == ["model"]


STEPS = (
    "log_artifacts",
    "create_registered_model",
    "create_model_version",
    "get_registered_model",
    "set_registered_model_alias",
    "set_model_version_tag",
)


@pytest.mark.parametrize("is_lost", [False, True], ids=["cut short", "answer lost"])
@pytest.mark.parametrize("step", STEPS)
def test_a_repeat_after_a_step_broke_makes_no_second_version(tracking, bundle, monkeypatch, globally, step, is_lost):
    run = started(tracking)
    acts = getattr(MlflowClient, step)

    def breaks(*arguments, **options):
        if is_lost:
            acts(*arguments, **options)
        raise MlflowException("the connection broke")

    with monkeypatch.context() as broken:
        broken.setattr(MlflowClient, step, breaks)
        with pytest.raises(ServerError, match="the connection broke"):
            register(run, bundle, example())
    again = register(started(tracking), bundle, example())
    assert (again.version, again.alias) == (1, "champion")
    assert again.created == (STEPS.index(step) < STEPS.index("create_model_version") + (not is_lost))
    assert len(list_versions(tracking)) == 1
    assert mlflow.pyfunc.load_model(again.uri).predict(example()).shape == (3, 2)
    assert register(run, bundle, example()).created is False


def test_a_version_that_mlflows_client_made_twice_is_one(tracking, bundle, monkeypatch):
    creates = MlflowClient.create_model_version

    def twice(*arguments, **options):
        creates(*arguments, **options)
        return creates(*arguments, **options)

    monkeypatch.setattr(MlflowClient, "create_model_version", twice)
    assert register(started(tracking), bundle, example()).version == 1
    assert [version.version for version in list_versions(tracking)] == [1]


def test_a_repeat_takes_no_alias_back(tracking, bundle):
    register(started(tracking, "run-1"), bundle, example())
    second = register(started(tracking, "run-2"), bundle, example())
    third = register(started(tracking, "run-3"), bundle, example())
    assert (second.alias, third.alias) == ("challenger", "challenger")
    assert register(started(tracking, "run-2"), bundle, example()).alias is None
    assert [version.alias for version in list_versions(tracking)] == ["challenger", None, "champion"]


def test_a_version_is_loaded_by_alias_and_by_number(tracking, bundle, tmp_path, globally):
    first = register(started(tracking, "run-1"), bundle, example())
    other = write_bundle(tmp_path / "other", slope=-0.01)
    second = register(started(tracking, "run-2"), other, example())
    row = pd.DataFrame({"amount": [250], "night": [True], "merchant": ["shop"]})
    for address, slope in (
        (f"models:/{first.name}@champion", 0.01),
        (first.uri, 0.01),
        (f"models:/{second.name}@challenger", -0.01),
    ):
        scored = mlflow.pyfunc.load_model(address).predict(row)
        assert scored["probability"][0] == pytest.approx(expected(250, 1, "shop", slope), rel=1e-6)


def test_a_version_gives_back_its_whole_bundle(tracking, bundle, tmp_path):
    folder = download(tracking, register(started(tracking), bundle, example()), tmp_path)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == {
        path.name: path.read_bytes() for path in bundle.iterdir()
    }


def test_the_champion_scores_rows_that_have_its_columns_and_names_those_that_lack(tracking, bundle, tmp_path):
    storage = Storage.at(str(tmp_path))
    assert open_champion(tracking, storage) is None
    register(started(tracking), bundle, example())
    held = open_champion(tracking, storage)
    assert held is not None
    assert (held.version.version, held.baseline) == (1, None)
    rows = pa.table({"amount": [250.0], "night": [True], "merchant": ["shop"], "card": [1]})
    probabilities, threshold = held.score(rows)
    assert probabilities[0] == pytest.approx(expected(250, 1, "shop"), rel=1e-6)
    assert threshold == THRESHOLD
    with pytest.raises(FraudRayError, match=r"version 1 of .*, reads night, merchant, which data\.columns does not"):
        held.score(rows.select(["amount"]))


def test_an_experiment_that_somebody_else_creates_meanwhile_is_used(tracking, monkeypatch):
    real = MlflowClient.get_experiment_by_name
    answers = iter([lambda *_: None, real])
    monkeypatch.setattr(MlflowClient, "get_experiment_by_name", lambda *arguments: next(answers)(*arguments))
    assert connect(tracking.registry).experiment_id == tracking.experiment_id


def test_a_deleted_experiment_is_an_error_that_says_how_to_restore_it(tracking):
    tracking.client.delete_experiment(tracking.experiment_id)
    with pytest.raises(SettingsError, match=f"restore --experiment-id {tracking.experiment_id}"):
        connect(tracking.registry)


@pytest.fixture
def silent_port() -> Iterator[int]:
    """A port that takes connections and never answers."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(16)
        yield listener.getsockname()[1]


def closed_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.mark.parametrize("scheme", ["http://", "postgresql+psycopg2://ada:secret@"])
@pytest.mark.parametrize("kind", ["closed", "silent"])
def test_a_server_out_of_reach_is_found_in_seconds(scheme, kind, silent_port, monkeypatch):
    monkeypatch.setattr(server, "FIRST_ANSWER_S", 2)
    port = closed_port() if kind == "closed" else silent_port
    database = "/mlflow" if scheme.startswith("postgresql") else ""
    started_at = time.monotonic()
    with pytest.raises(ServerError, match=rf"127\.0\.0\.1:{port}.*registry\.uri") as refused:
        connect(RegistrySettings(uri=f"{scheme}127.0.0.1:{port}{database}"))
    assert time.monotonic() - started_at < 8
    assert "secret" not in str(refused.value)
    assert "MLFLOW_HTTP_REQUEST_TIMEOUT" not in os.environ


def test_a_store_that_mlflow_does_not_open_is_an_error_that_says_so(tmp_path):
    with pytest.raises(ServerError, match="sqlite:///"):
        connect(RegistrySettings(uri=f"file://{tmp_path}/mlruns"))
    (tmp_path / "file").write_text("")
    with pytest.raises(ServerError, match=r"registry\.uri"):
        connect(RegistrySettings(uri=f"sqlite:///{tmp_path}/file/mlflow.db"))


def test_a_database_without_its_driver_is_an_error_that_names_one():
    with pytest.raises(SettingsError, match=r"postgresql\+psycopg2://"):
        connect(RegistrySettings(uri="postgresql+pg8000://127.0.0.1/mlflow"))


def test_the_pages_show_the_store_and_a_server_behaves_as_the_file_does(tracking, bundle, tmp_path):
    port = closed_port()
    process = subprocess.Popen(
        ui_command(tracking.registry, port), cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        uri = f"http://127.0.0.1:{port}"
        wait_for(f"{uri}/health", process)
        served = connect(RegistrySettings(uri=uri, experiment="served", model_name=tracking.registry.model_name))
        run = started(served)
        run.log_trial("t-1", {"dropout": 0.1}, [{"epoch": 1, "loss": 0.5}], {"average_precision": 0.5})
        version = register(run, bundle, example())
        run.finish("FINISHED", "registered")
        assert register(started(served), bundle, example()).version == version.version == 1
        assert champion(tracking) == champion(served)
        assert download(served, version, tmp_path / "download").joinpath("model.onnx").is_file()
        load = f"import mlflow; mlflow.pyfunc.load_model('models:/{version.name}@champion')"
        subprocess.run([sys.executable, "-c", load], env={**os.environ, "MLFLOW_TRACKING_URI": uri}, check=True)
        with pytest.raises(SettingsError, match=f"open {uri} in a browser"):
            ui_command(served.registry)
    finally:
        process.terminate()
        process.wait(timeout=30)
