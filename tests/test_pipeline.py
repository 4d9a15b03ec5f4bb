"""The whole line, on real Ray, real parquet and a real MLflow store."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml
from mlflow import MlflowClient

from fraud_ray import pipeline
from fraud_ray.data.output import KEPT
from fraud_ray.data.source import open_source, read_partition
from fraud_ray.errors import RunDiffersError, SettingsError
from fraud_ray.model.bundle import Bundle, load_profile, network_logits, open_graph
from fraud_ray.progress import Quiet
from fraud_ray.runs import Outcome, read_outcome
from fraud_ray.scoring.partitions import open_model, score_partitions
from fraud_ray.settings import RegistrySettings, load_settings
from fraud_ray.storage import Storage
from tests.line import REPOSITORY, Start, local

MODEL = "fraud-detection-production"


def client(store: Path) -> MlflowClient:
    return MlflowClient(f"sqlite:///{store}/mlflow.db")


def versions(store: Path) -> list[Any]:
    return client(store).search_model_versions(f"name = '{MODEL}'")


def test_one_command_ends_with_a_registered_version_that_scores_like_the_pipeline(
    run: Start, simulated: Path, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    beside = "decision.rival=logistic_regression"
    settings = ("run.name=april", "search.space={learning_rate: [0.001, 0.004]}", beside)
    assert run(*settings, until="search").status == "stopped after search"
    (stopped,) = client(store).search_runs(["1"], "tags.`fraud_ray.run` = 'april'")
    assert (stopped.info.status, stopped.data.tags["fraud_ray.reason"]) == ("KILLED", "stopped after search")
    searched = (store / "runs/april/stages/search.json").read_bytes()
    outcome = run(*settings)
    assert (store / "runs/april/stages/search.json").read_bytes() == searched
    assert (outcome.status, outcome.exit_code) == ("registered", 0)
    assert outcome.version is not None
    assert outcome.version["alias"] == "champion"
    assert outcome.evaluation is not None
    assert outcome.evaluation["best_possible"]["average_precision"] > outcome.evaluation["metrics"]["average_precision"]
    assert outcome.rival is not None
    assert outcome.rival.startswith("logistic regression on the same rows: average precision 0.")
    kept = json.loads((store / "runs/april/stages/rival.json").read_text())["value"]
    lead = outcome.evaluation["metrics"]["average_precision"] - kept["metrics"]["average_precision"]
    assert kept["differences"]["average_precision"]["value"] == pytest.approx(lead, abs=1e-5)
    assert outcome.rival in (store / "runs/april/report.html").read_text()

    parents = client(store).search_runs(["1"], "tags.`fraud_ray.run` = '" + outcome.name + "'")
    assert [(p.info.run_name, p.info.status) for p in parents] == [("april", "FINISHED")]
    assert parents[0].data.tags["fraud_ray.state"] == "registered"
    params = parents[0].data.params
    assert (params["train.seed"], params["folds.fit_days"]) == ("42", "12"), "all of train, else what is no default"
    assert "folds.seed" not in params
    artifact = next((store / "mlartifacts").rglob("settings.yaml"))
    assert yaml.safe_load(artifact.read_text())["folds"]["seed"] == 42
    logged = parents[0].data.metrics
    for name in ("auc_roc", "precision", "recall", "f1_score", "average_precision"):
        assert logged[name] == pytest.approx(outcome.evaluation["metrics"][name])
    children = client(store).search_runs(["1"], f"tags.`mlflow.parentRunId` = '{parents[0].info.run_id}'")
    assert sorted(c.info.run_name for c in children) == ["learning_rate=0.001", "learning_rate=0.004"]
    assert all(c.data.metrics["epoch/average_precision"] > 0 for c in children)

    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{store}/mlflow.db")
    model = mlflow.pyfunc.load_model(f"models:/{MODEL}@champion")
    settings = load_settings(*local(simulated, store)).settings
    source = open_source(settings.data)
    raw = read_partition(source.root, source.partitions[3], settings.data, settings.data.features)
    frame = raw.to_pandas().astype({"merchant_category": object})
    frame.loc[0, "merchant_category"] = "never seen"
    frame.loc[1, "merchant_category"] = None
    frame.loc[2, "transaction_amount"] = np.nan
    ours = open_graph(Path(outcome.folder) / "bundle").score(type(raw).from_pandas(frame, preserve_index=False))
    np.testing.assert_allclose(model.predict(frame)["probability"], ours, atol=1e-5)
    logged = [file.suffix for file in (store / "mlartifacts").rglob("*") if file.is_file()]
    assert ".onnx" in logged
    [profile] = (store / "mlartifacts").rglob("profile.json")
    scores = load_profile(profile.parent).scores
    assert scores is not None
    assert scores.rows == outcome.evaluation["rows"]
    assert not {".pkl", ".pickle", ".pt", ".pth"} & set(logged)
    assert {path.name for path in store.iterdir()} <= set(KEPT), "what data may not lie in"


def test_a_concluded_run_answers_with_its_outcome_and_trains_nothing(simulated: Path, march: Path) -> None:
    def again(*overrides: str) -> Outcome:
        settings = load_settings(*local(simulated, march, ["run.name=march", *overrides]))
        return pipeline.run(settings, Quiet())

    before = {file: file.stat().st_mtime_ns for file in march.rglob("*") if file.is_file()}
    assert again("search.concurrency=1", "train.max_failures=1") == read_outcome(Storage.at(str(march)), "march")
    assert {file: file.stat().st_mtime_ns for file in march.rglob("*") if file.is_file()} == before
    with pytest.raises(RunDiffersError, match=r"train\.dropout"):
        again("train.dropout=0.25")


def test_a_second_run_becomes_challenger_and_a_rejected_one_leaves_the_registry_untouched(
    run: Start, store: Path
) -> None:
    champion = run("train.epochs=3")
    weak = ("run.name=weak", "train.epochs=1", "train.learning_rate=0.00001", "gate.min_f1=0.999")
    rejected = run(*weak, "gate.beats_champion=true")
    assert (rejected.status, rejected.exit_code, rejected.version) == ("rejected", 3, None)
    assert [int(version.version) for version in versions(store)] == [1]
    assert rejected.gate is not None
    check = next(c for c in rejected.gate["checks"] if c["name"] == "beats_champion")
    assert champion.evaluation is not None
    assert check["bound"] == pytest.approx(champion.evaluation["metrics"]["average_precision"], abs=1e-6)
    assert rejected.rejection is not None
    assert "below the required 0.999 by" in rejected.rejection["advice"][0]
    assert any("days unused" in line or "days are used" in line for line in rejected.rejection["advice"])
    assert rejected.report is not None
    assert Path(rejected.report).read_text().count("champion</text>") == 3  # alerts, precision and recall, ROC
    parent = client(store).search_runs(["1"], "tags.`fraud_ray.run` = 'weak'")[0]
    assert "below the required 0.999" in parent.data.tags["fraud_ray.reason"]
    assert (parent.info.status, parent.data.tags["fraud_ray.state"]) == ("FAILED", "rejected")
    assert run(*weak, "gate.beats_champion=true") == rejected

    other = run("train.epochs=3", "train.seed=1", "decision.calibration=isotonic")
    assert other.version is not None
    assert (other.version["version"], other.version["alias"]) == (2, "challenger")
    drift = json.loads((Path(other.folder) / "drift.json").read_text())
    assert drift["drifted"] == []
    assert {"model score", "merchant_category"} <= {column["name"] for column in drift["columns"]}


def test_a_model_that_reads_the_clock_scores_like_the_pipeline_and_compares_with_one_that_does_not(
    run: Start, simulated: Path, store: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    outcome = run("prepare.calendar=true")
    assert outcome.status == "registered"
    assert outcome.evaluation is not None
    assert {"timestamp:hour", "timestamp:weekday"} <= set(outcome.evaluation["importance"])
    bundle = Path(outcome.folder) / "bundle"
    scored = score_partitions(open_model(str(bundle), RegistrySettings(), True), str(simulated), str(tmp_path / "out"))
    assert scored.rows == 40_000
    written = pq.read_table(next((tmp_path / "out").rglob("*.parquet")), partitioning=None)
    own = Bundle.load(bundle)
    logits = network_logits(own.network(), *own.encoder.apply(written))
    np.testing.assert_allclose(written["probability"], own.calibration.apply(logits), atol=1e-5)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{store}/mlflow.db")
    model = mlflow.pyfunc.load_model(f"models:/{MODEL}@champion")
    again = model.predict(written.to_pandas().astype({"timestamp": str}))
    np.testing.assert_allclose(again["probability"], written["probability"], atol=1e-5)

    other = run("gate.beats_champion=true")
    assert other.gate is not None
    check = next(c for c in other.gate["checks"] if c["name"] == "beats_champion")
    assert check["bound"] == pytest.approx(outcome.evaluation["metrics"]["average_precision"], abs=1e-6)
    drift = json.loads((Path(other.folder) / "drift.json").read_text())
    assert "model score" in {column["name"] for column in drift["columns"]}
    assert "timestamp:hour" in drift["not_compared"]


def test_a_hyperparameter_that_is_set_leaves_the_search_and_the_plan_says_so(run: Start) -> None:
    overrides = ("search.space={learning_rate: [0.001, 0.01], dropout: [0.0]}", "train.learning_rate=0.002")
    outcome = run(*overrides, until="plan")
    assert {"search: grid over dropout", "learning_rate is set, so it leaves search.space"} <= set(outcome.plan)


def test_more_workers_than_the_cluster_has_are_refused_before_anything_is_prepared(run: Start, store: Path) -> None:
    with pytest.raises(SettingsError, match=r"64 ranks .*there is room for 2"):
        run("train.workers=64")
    assert not (store / "prepared").exists()


@pytest.mark.slow
def test_the_handbooks_final_fold_beats_the_published_network(ray_session: None, handbook: Path, store: Path) -> None:
    overrides = [f"data.path={handbook}/features", f"storage.root={store}"]
    outcome = pipeline.run(load_settings(REPOSITORY / "configs/handbook.yaml", overrides), Quiet())
    assert outcome.evaluation is not None
    metrics = outcome.evaluation["metrics"]
    assert metrics["auc_roc"] >= 0.87
    assert metrics["average_precision"] >= 0.69
    assert metrics["card_precision_at_100"] >= 0.290
    assert outcome.status == "registered"


@pytest.mark.faults("4", "SIGKILL of the driver in the search", "finished trials are not repeated, one version")
@pytest.mark.long
def test_a_driver_killed_in_the_search_repeats_no_finished_trial(simulated: Path, store: Path) -> None:
    config, overrides = local(
        simulated,
        store,
        [
            *("run.name=killed", "search.concurrency=1", "train.epochs=4", "cluster.cpus=2"),
            "search.space={learning_rate: [0.001, 0.002, 0.003, 0.004, 0.005, 0.006]}",
        ],
    )
    command = [sys.executable, "-m", "fraud_ray", "run", "-c", str(config)]
    command += [part for override in overrides for part in ("--set", override)]
    environment = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}
    ledger = store / "runs/killed/search/ledger"
    process = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 180
        while len(list(ledger.glob("*.json"))) < 2 and time.monotonic() < deadline and process.poll() is None:
            time.sleep(0.02)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    finished = {p.name: p.read_bytes() for p in ledger.glob("*.json")}
    assert 2 <= len(finished) < 6
    assert not (store / "runs/killed/outcome.json").exists()

    done = subprocess.run([*command, "--json"], env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["status"] == "registered"
    assert {name: (ledger / name).read_bytes() for name in finished} == finished
    assert len(list(ledger.glob("*.json"))) == 6
    assert len(versions(store)) == 1

    again = subprocess.run([*command, "--json"], env=environment, capture_output=True, text=True, timeout=60)
    assert again.stdout == done.stdout
