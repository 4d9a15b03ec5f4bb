"""What tests share: one Ray a session, the handbook's data, and the definitions where they are at hand."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.kube.schema import Definitions

os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")


@pytest.fixture(scope="session")
def ray_session() -> Iterator[None]:
    """One local Ray for the whole session: it takes 5 to 10 seconds to start."""
    import ray

    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    yield
    ray.shutdown()


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
def definitions(crds: Path) -> Definitions:
    """What an API server with KubeRay would check objects with."""
    from tests.kube.schema import Definitions

    return Definitions(crds)


@pytest.fixture(scope="session")
def kubectl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tests.kube.render import find_kubectl

    return find_kubectl(tmp_path_factory.mktemp("kubectl"))
