"""A registry whose answers are lost, or that is away: one version and one parent, found again by their run."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from fraud_ray import pipeline
from fraud_ray.errors import ServerError
from fraud_ray.progress import Quiet
from fraud_ray.registry import anchors
from fraud_ray.registry.promotion import promote, record_registration, rollback
from fraud_ray.registry.tracking import PARENT_TAG, RUN_TAG, TRIAL_TAG, Dataset, Tracking, connect
from fraud_ray.registry.versions import list_versions, register
from fraud_ray.settings import RegistrySettings, load_settings
from fraud_ray.storage import Storage
from tests.faults.registries import Lossy, proxy, server
from tests.handmade import example, write_bundle
from tests.line import local as small
from tests.rays import free_ports

LOST = ("6", "the answer to a write in the registry is lost, and MLflow's client writes again")


@pytest.fixture(scope="module")
def port(tmp_path_factory: pytest.TempPathFactory, mlflow_template: Path) -> Iterator[int]:
    folder = tmp_path_factory.mktemp("server")
    shutil.copy(mlflow_template, folder / "mlflow.db")
    with server(folder / "mlflow.db") as found:
        yield found


@pytest.fixture
def lossy(port: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, Lossy]]:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR", "0")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_BACKOFF_JITTER", "0")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "60")
    with proxy(port) as found:
        yield found


def connected(uri: str, name: str) -> Tracking:
    return connect(RegistrySettings(uri=uri, experiment=name, model_name=name))


def all_runs(tracking: Tracking, tag: str) -> list[str]:
    return [run.data.tags[tag] for run in tracking.client.search_runs([tracking.experiment_id], f"tags.`{tag}` != ''")]


@pytest.mark.faults(*LOST, "one version and one parent, nothing left RUNNING, the audit record clean")
def test_a_life_in_which_every_write_is_answered_at_the_second_time_leaves_no_twin(
    lossy: tuple[str, Lossy], tmp_path: Path
) -> None:
    uri, proxied = lossy
    proxied.each_write_once()
    tracking, storage = connected(uri, "lost"), Storage.at(str(tmp_path / "store"))
    for number, name in enumerate(["march", "april"], 1):
        run = tracking.start(name, {"train": {"epochs": 2}}, dataset=Dataset("cards", "/cards", "abc", 3))
        run.log_trial("t-1", {"dropout": 0.1}, [{"epoch": 1, "loss": 0.5}], {"average_precision": 0.5})
        run.log_curve([{"epoch": 1, "loss": 0.5}])
        run.finish("FAILED", "failed", "the network")
        run = tracking.start(name, {"train": {"epochs": 2}})
        bundle = write_bundle(tmp_path / "store/runs" / name / "bundle", slope=number / 100)
        version = register(run, bundle, example())
        record_registration(run, storage, version)
        run.finish("FINISHED", "registered")
        assert version.run == name
    promote(tracking, storage)
    rollback(tracking, storage)

    assert [version.run for version in list_versions(tracking)] == ["april", "march"]
    assert all_runs(tracking, RUN_TAG) == ["april", "march"]
    assert all_runs(tracking, TRIAL_TAG) == ["t-1", "t-1"]
    assert anchors.verify(tracking, storage) == []
    assert {"POST /api/2.0/mlflow/runs/create", "POST /api/2.0/mlflow/model-versions/create"} <= set(proxied.asked)


@pytest.mark.faults("5", "MLflow is away at the start", "found before data is read")
@pytest.mark.quick
def test_a_dead_server_is_found_before_data_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline, "open_source", lambda data: pytest.fail("data is read"))
    monkeypatch.setattr(pipeline, "simulate_if_absent", lambda *given: pytest.fail("data is made"))
    (port,) = free_ports(1)
    loaded = load_settings(*small(tmp_path, tmp_path / "store", [f"registry.uri=http://127.0.0.1:{port}"]))
    with pytest.raises(ServerError, match=r"MLflow at http://127\.0\.0\.1:\d+ cannot be used: .*Connection refused"):
        pipeline.run(loaded, Quiet())


@pytest.mark.faults("5", "MLflow goes away while trials are logged, or at registering", "the same command finishes it")
@pytest.mark.parametrize("at", ["runs/log-batch", "model-versions/create"])
def test_a_run_whose_server_went_away_is_finished_by_the_same_command(
    lossy: tuple[str, Lossy],
    simulated: Path,
    tmp_path: Path,
    at: str,
    monkeypatch: pytest.MonkeyPatch,
    ray_session: None,
) -> None:
    uri, proxied = lossy
    name = f"away-{at.partition('/')[0]}"
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    proxied.loses = lambda asked: any(at in before for before in proxied.asked)
    told = [f"registry.uri={uri}", f"registry.experiment={name}", f"registry.model_name={name}", f"run.name={name}"]
    loaded = load_settings(*small(simulated, tmp_path / "store", told))
    with pytest.raises(ServerError, match=f"(?s)MLflow at {uri} cannot.*same command goes on.*--name {name}"):
        pipeline.run(loaded, Quiet())
    proxied.loses = lambda asked: False
    assert pipeline.run(loaded, Quiet()).status == "registered"
    tracking, storage = connect(loaded.settings.registry), Storage.at(loaded.settings.storage.root)
    assert anchors.verify(tracking, storage) == []
    assert [version.run for version in list_versions(tracking)] == [name]
    assert all_runs(tracking, RUN_TAG) == [name]


@pytest.fixture
def local(tmp_path: Path, mlflow_template: Path) -> tuple[Tracking, Storage]:
    shutil.copy(mlflow_template, tmp_path / "mlflow.db")
    return connected(f"sqlite:///{tmp_path}/mlflow.db", "cards"), Storage.at(str(tmp_path))


@pytest.mark.faults(
    "6", "twins that came after a run had looked", "audit verify names them; a start takes the empty away"
)
def test_a_twin_that_came_later_is_named_and_taken_away_by_the_next_start(local: tuple[Tracking, Storage]) -> None:
    tracking, storage = local
    run = tracking.start("march", {"train": {"epochs": 2}})
    trial = ("t-1", {"dropout": 0.1}, [], {"average_precision": 0.5})
    run.log_trial(*trial, status="FAILED")
    empty = tracking.client.create_run(tracking.experiment_id, start_time=1, tags={RUN_TAG: "march"})
    tracking.client.create_run(tracking.experiment_id, tags={PARENT_TAG: run.id, TRIAL_TAG: "t-1"})
    first, second = anchors.verify(tracking, storage)
    assert first.what == second.what == "twice"
    assert first.reason.startswith(f"MLflow run of march: there are {', '.join(sorted([run.id, empty.info.run_id]))}.")
    assert second.reason.startswith(f"MLflow run of a trial of t-1 of {run.id}: there are ")

    assert tracking.start("march", {"train": {"epochs": 2}}).id == run.id
    run.log_trial(*trial)
    assert tracking.client.get_run(empty.info.run_id).info.status == "KILLED"
    assert anchors.verify(tracking, storage) == []


@pytest.mark.faults("6", "two versions of one run", "audit verify names them")
def test_two_versions_of_one_run_are_named(local: tuple[Tracking, Storage], tmp_path: Path) -> None:
    tracking, storage = local
    run = tracking.start("march", {})
    version = register(run, write_bundle(tmp_path / "bundle"), example())
    source = f"{run.run.info.artifact_uri}/model"
    tracking.client.create_model_version("cards", source, run_id=run.id, tags={RUN_TAG: "march"})
    (fault,) = anchors.verify(tracking, storage)
    assert fault.reason.startswith("version of march: there are version 1, version 2.")
    assert register(run, tmp_path / "bundle", example()).version == version.version
    assert anchors.verify(tracking, storage) == []
