"""Production's stores for real: everything of a run on S3, MLflow as its manifest starts it on PostgreSQL and S3."""

from __future__ import annotations

import base64
import json
import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import boto3
import mlflow
import numpy as np
import pytest

from fraud_ray.data.source import open_source, read_partition
from fraud_ray.model.bundle import open_graph
from fraud_ray.settings import load_settings
from fraud_ray.storage import Storage
from fraud_ray.training.assemble import fetch_bundle
from tests.kube.render import render
from tests.line import REPOSITORY, local
from tests.rays import BIN
from tests.stores import find_postgres, mlflow_of, postgres, s3, status_of

pytestmark = pytest.mark.long

MODEL = "fraud-detection-production"
ACCOUNT = {"MLFLOW_TRACKING_USERNAME": "admin", "MLFLOW_TRACKING_PASSWORD": "a password of sixteen"}


@dataclass(frozen=True)
class Stores:
    """MLflow's URL, and the environment of a pod that may use it and the buckets `bank` and `models`."""

    mlflow: str
    environment: dict[str, str]


@pytest.fixture(scope="module")
def stores(kubectl: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stores]:
    programs = find_postgres()
    if programs is None:
        pytest.skip("there is no PostgreSQL; Debian's package is postgresql")
    scratch = tmp_path_factory.mktemp("mlflow")
    documents = render(kubectl, REPOSITORY, "production", scratch)
    (deployment,) = [d.body for d in documents if (d.kind, d.name) == ("Deployment", "mlflow")]
    with s3("bank", "models") as buckets, postgres(programs) as database:
        secrets = {
            "mlflow-server": {
                "MLFLOW_FLASK_SERVER_SECRET_KEY": "5eed" * 16,
                "MLFLOW_AUTH_ADMIN_USERNAME": ACCOUNT["MLFLOW_TRACKING_USERNAME"],
                "MLFLOW_AUTH_ADMIN_PASSWORD": ACCOUNT["MLFLOW_TRACKING_PASSWORD"],
            },
            "mlflow-database": {"uri": database},
            "mlflow-artifacts": {"destination": "s3://models/mlflow"},
            "mlflow-s3": buckets,
        }
        with mlflow_of(deployment, secrets, scratch) as url:
            yield Stores(url, {**buckets, **ACCOUNT})


def test_mlflow_answers_who_it_knows_and_under_its_own_name_alone(stores: Stores) -> None:
    asked = f"{stores.mlflow}/api/2.0/mlflow/experiments/search?max_results=1"
    account = ":".join(ACCOUNT.values())
    known = {"Authorization": f"Basic {base64.b64encode(account.encode()).decode()}"}
    assert status_of(asked, known) == 200
    assert status_of(asked) == 401
    assert status_of(asked, {**known, "Host": "elsewhere.example.com"}) == 403
    assert status_of(f"{stores.mlflow}/health", {"Host": "10.0.0.7"}) == 200, "the probe knows neither"


def test_a_run_whose_data_storage_and_artifacts_are_on_s3_registers_a_version_that_loads(
    stores: Stores, simulated: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in stores.environment.items():
        monkeypatch.setenv(name, value)
    bucket = boto3.client("s3")
    for file in simulated.rglob("*.parquet"):
        bucket.upload_file(file, "bank", f"transactions/{file.relative_to(simulated)}")
    places = ("data.path=s3://bank/transactions", "storage.root=s3://bank/fraud", f"registry.uri={stores.mlflow}")
    config, overrides = local(simulated, tmp_path, [*places, "run.name=bucket", "cluster.cpus=2"])
    command = [BIN / "fraud-ray", "run", "-c", config, "--json"]
    command += [word for override in overrides for word in ("--set", override)]
    done = subprocess.run(command, env=dict(os.environ), cwd=tmp_path, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stderr
    outcome = json.loads(done.stdout)
    assert (outcome["status"], outcome["folder"]) == ("registered", "s3://bank/fraud/runs/bucket")
    assert list(tmp_path.iterdir()) == [], "nothing stayed here"

    storage = Storage.at("s3://bank/fraud")
    assert storage.get_json("runs/bucket/lease/000001.json")["released"]
    assert storage.keys("checks") == []
    artifacts = [entry["Key"] for entry in bucket.list_objects_v2(Bucket="models")["Contents"]]
    assert any(key.startswith("mlflow/") and key.endswith("model.onnx") for key in artifacts)

    settings = load_settings(config, overrides).settings
    source = open_source(settings.data)
    raw = read_partition(source.root, source.partitions[3], settings.data, settings.data.features)
    graph = open_graph(fetch_bundle(storage, "runs/bucket/bundle", tmp_path))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", stores.mlflow)
    model = mlflow.pyfunc.load_model(f"models:/{MODEL}@champion")
    np.testing.assert_allclose(model.predict(raw.to_pandas())["probability"], graph.score(raw), atol=1e-5)

    again = subprocess.run(command, env=dict(os.environ), cwd=tmp_path, capture_output=True, text=True, timeout=100)
    assert again.stdout == done.stdout
