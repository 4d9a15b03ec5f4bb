"""Runs and versions in a real MLflow on sqlite, and once behind a real MLflow server."""

from __future__ import annotations

import itertools
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import mlflow.pyfunc
import pandas as pd
import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from fraud_ray.errors import ServerError, SettingsError
from fraud_ray.registry import tracking as tracking_module
from fraud_ray.registry.tracking import Dataset, TrackedRun, Tracking, connect, ui_command
from fraud_ray.registry.versions import champion, download, list_versions, register
from fraud_ray.settings import RegistrySettings
from tests.handmade import example, expected, write_bundle

METRICS = {"f1_score": 0.9, "average_precision": 0.8}
names = (f"name-{number}" for number in itertools.count())


@pytest.fixture(scope="module")
def uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    """One sqlite store for the module (its schema takes seconds), in a folder whose name needs escaping."""
    return f"sqlite:///{tmp_path_factory.mktemp('a store #')}/mlflow.db"


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
    first.finish("KILLED", "interrupted")
    again = tracking.start("run-1", {"train": {"epochs": 4, "workers": 2}}, {"mlflow.user": "ada"})
    assert again.id == first.id
    run = stored(again)
    assert run.info.status == "RUNNING"
    assert run.info.run_name == tracking.registry.run_name
    assert run.data.params == {"train.epochs": "3", "train.workers": "2"}
    assert run.data.tags["mlflow.source.git.commit"] == "abc"
    assert run.data.tags["mlflow.user"] == "ada"
    assert started(tracking, "run-2").id != first.id


def test_settings_of_any_name_and_length_become_parameters(tracking):
    columns = {f"column {number} (€)": {"kind": "numeric"} for number in range(150)}
    run = tracking.start("run-1", {"data": {"columns": columns}, "slices": ["x" * 10_000], "none": None, "empty": {}})
    params = stored(run).data.params
    assert params["data.columns.column 149 ___.kind"] == "numeric"
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
        run.log_metrics(METRICS)
        run.log_curve([{"epoch": 1, "loss": 0.5}, {"epoch": 2, "loss": 0.5}])
        run.log_metrics({"note": "text is left out", "f1_score": 0.95}, step=1)
    (logged,) = stored(run).inputs.dataset_inputs
    assert (logged.dataset.name, logged.dataset.digest) == ("transactions", dataset.fingerprint[:36])
    assert dataset.fingerprint in logged.dataset.profile
    history = tracking.client.get_metric_history(run.id, "f1_score")
    assert [(point.step, point.value) for point in history] == [(0, 0.9), (1, 0.95)]
    assert [point.step for point in tracking.client.get_metric_history(run.id, "epoch/loss")] == [1, 2]


def test_a_rejected_run_keeps_its_reason_and_registers_nothing(tracking):
    run = started(tracking)
    run.finish("FINISHED", "f1_score 0.71 is below gate.min_f1 0.85")
    assert stored(run).data.tags["fraud_ray.reason"].startswith("f1_score 0.71")
    assert champion(tracking) is None
    assert list_versions(tracking) == []


def test_artifacts_lie_beside_the_database(tracking, uri):
    run = started(tracking)
    run.log_json({"passed": True}, "gate/decision.json")
    run.log_text("<html>", "report.html")
    beside = Path(uri.removeprefix("sqlite:///")).parent / "mlartifacts" / run.id / "artifacts"
    logged = {str(path.relative_to(beside)) for path in beside.rglob("*") if path.is_file()}
    assert logged == {"gate/decision.json", "report.html"}


def test_nothing_is_printed_and_nothing_lands_in_the_working_folder(tracking, bundle, tmp_path):
    story = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parents[1])!r})
from tests.handmade import example
from fraud_ray.registry.tracking import connect
from fraud_ray.registry.versions import champion, download, register
from fraud_ray.settings import RegistrySettings
tracking = connect(RegistrySettings.model_validate({tracking.registry.model_dump()!r}))
run = tracking.start("run-1", {{}})
run.log_trial("t-1", {{}}, [{{"epoch": 1, "loss": 0.5}}], {{}})
register(run, {str(bundle)!r}, example(), {{"f1_score": 0.9}})
download(tracking, champion(tracking), "download")
run.finish("FINISHED")
"""
    ran = subprocess.run([sys.executable, "-c", story], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert (ran.stdout, ran.stderr) == ("", "")
    assert [path.name for path in tmp_path.iterdir()] == ["download"]


def test_the_first_version_is_champion_and_later_ones_are_challengers(tracking, bundle):
    versions = [register(started(tracking, f"run-{n}"), bundle, example(), METRICS) for n in (1, 2, 3)]
    assert [version.version for version in versions] == [1, 2, 3]
    assert [version.alias for version in versions] == ["champion", "challenger", "challenger"]
    assert [version.alias for version in list_versions(tracking)] == ["challenger", None, "champion"]
    assert champion(tracking).run == "run-1"


def test_a_version_carries_where_it_comes_from(tracking, bundle):
    run = started(tracking)
    run.log_metrics(METRICS)
    version = register(run, bundle, example(), METRICS, {"fraud_ray.fingerprint": "f00"}, "the first")
    entry = tracking.client.get_model_version(version.name, str(version.version))
    assert (entry.run_id, entry.description) == (run.id, "the first")
    assert entry.tags == {"fraud_ray.run": "run-1", "fraud_ray.fingerprint": "f00", "fraud_ray.alias": "champion"}
    (output,) = stored(run).outputs.model_outputs
    model = tracking.client.get_logged_model(output.model_id)
    assert {point.key: point.value for point in model.metrics} == METRICS
    assert len(tracking.client.get_metric_history(run.id, "f1_score")) == 1


STEPS = (
    "create_logged_model",
    "log_model_artifacts",
    "log_outputs",
    "log_batch",
    "finalize_logged_model",
    "create_registered_model",
    "create_model_version",
    "set_logged_model_tags",
    "set_registered_model_alias",
    "set_model_version_tag",
)


@pytest.mark.parametrize("step", STEPS)
def test_a_repeat_after_a_lost_answer_makes_no_second_version(tracking, bundle, monkeypatch, step):
    run = started(tracking)
    acts = getattr(MlflowClient, step)

    def answer_is_lost(*arguments, **options):
        acts(*arguments, **options)
        raise MlflowException("the connection broke")

    with monkeypatch.context() as broken:
        broken.setattr(MlflowClient, step, answer_is_lost)
        with pytest.raises(ServerError, match="the connection broke"):
            register(run, bundle, example(), METRICS)
    again = register(started(tracking), bundle, example(), METRICS)
    assert (again.version, again.alias) == (1, "champion")
    assert again.created == (STEPS.index(step) < STEPS.index("create_model_version"))
    assert len(list_versions(tracking)) == 1
    (model,) = tracking.client.search_logged_models([tracking.experiment_id])
    assert model.status == "READY"
    assert {point.key: point.value for point in model.metrics} == METRICS
    assert len(stored(run).outputs.model_outputs) == 1
    assert register(run, bundle, example(), METRICS).created is False


def test_a_repeat_takes_no_alias_back(tracking, bundle):
    register(started(tracking, "run-1"), bundle, example(), METRICS)
    second = register(started(tracking, "run-2"), bundle, example(), METRICS)
    third = register(started(tracking, "run-3"), bundle, example(), METRICS)
    assert (second.alias, third.alias) == ("challenger", "challenger")
    assert register(started(tracking, "run-2"), bundle, example(), METRICS).alias is None
    assert [version.alias for version in list_versions(tracking)] == ["challenger", None, "champion"]


def test_a_version_is_loaded_by_alias_and_by_number(tracking, bundle, tmp_path, globally):
    first = register(started(tracking, "run-1"), bundle, example(), METRICS)
    other = write_bundle(tmp_path / "other", slope=-0.01)
    second = register(started(tracking, "run-2"), other, example(), METRICS)
    row = pd.DataFrame({"amount": [250], "night": [True], "merchant": ["shop"]})
    for address, slope in (
        (f"models:/{first.name}@champion", 0.01),
        (first.uri, 0.01),
        (f"models:/{second.name}@challenger", -0.01),
    ):
        scored = mlflow.pyfunc.load_model(address).predict(row)
        assert scored["probability"][0] == pytest.approx(expected(250, 1, "shop", slope), rel=1e-6)


def test_a_version_gives_back_its_whole_bundle(tracking, bundle, tmp_path):
    folder = download(tracking, register(started(tracking), bundle, example(), METRICS), tmp_path)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == {
        path.name: path.read_bytes() for path in bundle.iterdir()
    }


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
    monkeypatch.setattr(tracking_module, "FIRST_ANSWER_S", 2)
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
        version = register(run, bundle, example(), METRICS)
        run.finish("FINISHED")
        assert register(started(served), bundle, example(), METRICS).version == version.version == 1
        assert champion(tracking) == champion(served)
        assert download(served, version, tmp_path / "download").joinpath("model.onnx").is_file()
        load = f"import mlflow; mlflow.pyfunc.load_model('models:/{version.name}@champion')"
        subprocess.run([sys.executable, "-c", load], env={**os.environ, "MLFLOW_TRACKING_URI": uri}, check=True)
        with pytest.raises(SettingsError, match=f"open {uri} in a browser"):
            ui_command(served.registry)
    finally:
        process.terminate()
        process.wait(timeout=30)


def wait_for(url: str, process: subprocess.Popen[bytes], limit_s: float = 90) -> None:
    deadline = time.monotonic() + limit_s
    while time.monotonic() < deadline and process.poll() is None:
        try:
            with urllib.request.urlopen(url, timeout=2):
                return
        except OSError:
            time.sleep(0.2)
    raise AssertionError(f"{url} did not answer")
