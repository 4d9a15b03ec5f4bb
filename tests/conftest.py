"""What tests share: one Ray a session, the handbook's data, and the definitions where they are at hand."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from fraud_ray.runs import Outcome
from tests.line import Start, local

if TYPE_CHECKING:
    from tests.kube.api import Api
    from tests.kube.schema import Definitions


MONITORING = Path(__file__).parent / "kube/monitoring"


@pytest.fixture(scope="session")
def ray_session() -> Iterator[None]:
    """One local Ray for the whole session, as a run starts it."""
    from fraud_ray.cluster import join_or_start
    from fraud_ray.settings import ClusterSettings

    with join_or_start(ClusterSettings(cpus=2)):
        yield


@pytest.fixture(scope="session")
def simulated(ray_session: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40,000 simulated rows of 24 days."""
    from fraud_ray.data.simulate import simulate
    from fraud_ray.settings import SimulateSettings

    folder = tmp_path_factory.mktemp("simulated") / "data"
    simulate(SimulateSettings(rows=40_000, days=24, seed=3), str(folder))
    return folder


@pytest.fixture(scope="session")
def mlflow_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty store: creating its schema takes seconds, copying it none."""
    from mlflow import MlflowClient

    file = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    MlflowClient(f"sqlite:///{file}").search_experiments()
    return file


@pytest.fixture
def store(tmp_path: Path, mlflow_template: Path) -> Path:
    """A storage root with an empty MLflow store."""
    folder = tmp_path / "store"
    folder.mkdir()
    shutil.copy(mlflow_template, folder / "mlflow.db")
    return folder


@pytest.fixture(scope="session")
def march(simulated: Path, mlflow_template: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The storage root of a registered run `march`, killed just before its outcome and then started again; to read."""
    from fraud_ray import pipeline
    from fraud_ray.progress import Quiet
    from fraud_ray.runs import Run
    from fraud_ray.settings import load_settings

    def killed(*arguments: object) -> None:
        raise KeyboardInterrupt

    folder = tmp_path_factory.mktemp("march")
    shutil.copy(mlflow_template, folder / "mlflow.db")
    loaded = load_settings(*local(simulated, folder, ["run.name=march"]))
    with pytest.MonkeyPatch.context() as broken, pytest.raises(KeyboardInterrupt):
        broken.setattr(Run, "conclude", killed)
        pipeline.run(loaded, Quiet())
    assert pipeline.run(loaded, Quiet()).status == "registered"
    return folder


@pytest.fixture
def run(ray_session: None, simulated: Path, store: Path) -> Start:
    """Runs configs/local.yaml, made small, with further overrides."""
    from fraud_ray import pipeline
    from fraud_ray.progress import Quiet
    from fraud_ray.settings import load_settings

    def start(*overrides: str, until: str | None = None) -> Outcome:
        return pipeline.run(load_settings(*local(simulated, store, overrides)), Quiet(), until)

    return start


def _external(variable: str, public: str) -> Path:
    folder = os.environ.get(variable)
    if not folder or not Path(folder).is_dir():
        pytest.skip(f"{variable} names no folder; the originals are public: {public}")
    return Path(folder)


@pytest.fixture(scope="session")
def handbook() -> Path:
    """Folder with raw/ and features/ of the handbook's simulated data."""
    return _external("FRAUD_RAY_HANDBOOK", "Fraud-Detection-Handbook/simulated-data-raw and -transformed on GitHub")


@pytest.fixture(scope="session")
def crds() -> Path:
    """Folder with KubeRay's resource definitions."""
    return _external("FRAUD_RAY_CRDS", "ray-project/kuberay, helm-chart/kuberay-operator/crds, release 1.7.0")


@pytest.fixture(scope="session")
def kserve_crds() -> Path:
    """Folder with KServe's definitions of InferenceService and ServingRuntime."""
    return _external("FRAUD_RAY_KSERVE_CRDS", "kserve/kserve, config/crd/full, release 0.20")


@pytest.fixture(scope="session")
def definitions(crds: Path) -> Definitions:
    """What an API server with KubeRay would check objects with."""
    from tests.kube.schema import Definitions

    return Definitions(crds, MONITORING)


@pytest.fixture(scope="session")
def kserve_definitions(crds: Path, kserve_crds: Path) -> Definitions:
    """What an API server with KubeRay and KServe would."""
    from tests.kube.schema import Definitions

    return Definitions(crds, kserve_crds, MONITORING)


@pytest.fixture(scope="session")
def kubectl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tests.kube.render import find_kubectl

    return find_kubectl(tmp_path_factory.mktemp("kubectl"))


@pytest.fixture(scope="session")
def serving_api(definitions: Definitions, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Api, Path]]:
    """A Kubernetes API, and a kubeconfig for it."""
    import yaml

    from tests.kube.api import serving

    with serving(definitions) as (api, url):
        kubeconfig = tmp_path_factory.mktemp("kube") / "config"
        names = {"cluster": "test", "user": "test"}
        kubeconfig.write_text(
            yaml.safe_dump(
                {
                    "current-context": "test",
                    "contexts": [{"name": "test", "context": names}],
                    "clusters": [{"name": "test", "cluster": {"server": url}}],
                    "users": [{"name": "test", "user": {}}],
                }
            )
        )
        yield api, kubeconfig


@pytest.fixture
def api(serving_api: tuple[Api, Path], monkeypatch: pytest.MonkeyPatch) -> Api:
    """The API without any objects, which `fraud-ray` finds by its environment."""
    server, kubeconfig = serving_api
    server.forget()
    monkeypatch.setenv("KUBECONFIG", str(kubeconfig))
    return server
