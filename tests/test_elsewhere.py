"""`--to kuberay`: commands in pods of a cluster, whose node here runs what their containers say."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import date
from pathlib import Path
from typing import Any

import kmock
import pytest
import typer
import yaml
from typer.testing import CliRunner, Result

from fraud_ray.cli import app
from fraud_ray.data.source import Source
from fraud_ray.errors import SettingsError
from fraud_ray.registry.audit import read_all
from fraud_ray.registry.promotion import record_registration
from fraud_ray.registry.tracking import connect
from fraud_ray.registry.versions import champion, register
from fraud_ray.registry.writer import writing
from fraud_ray.runs import open_run
from fraud_ray.settings import RegistrySettings, load_settings
from fraud_ray.storage import Storage
from fraud_ray.submission.streams import MARK
from tests.cards import card_table, write_partition
from tests.handmade import example, write_bundle
from tests.kube.api import CONFIG_MAPS, JOBS, PODS, Api
from tests.kube.render import Document, with_components
from tests.kube.schema import Definitions

ROOT = Path(__file__).parents[1]
NAMESPACE = "ml-pipelines"
SERVICES = kmock.resource("v1/services")
DEV = ("-c", "configs/cluster.yaml", "--set", "cluster.overlay=dev")
THERE = (*DEV, "--to", "kuberay")
IMAGE = f"registry.example.com/fraud-ray@sha256:{'5eed' * 16}"


@pytest.fixture
def api(api: Api, kubectl: Path, monkeypatch: pytest.MonkeyPatch) -> Api:
    """The API, for commands that look for its pods often, and find kubectl."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("PATH", f"{kubectl.parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr("fraud_ray.submission.commands._POLL_S", 0.05)
    return api


def fraud_ray(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments))


# A pod's log and exit code, of its container.
Play = Callable[[dict[str, Any]], tuple[str, int]]


def for_real(container: dict[str, Any]) -> tuple[str, int]:
    """Runs a container's command with its environment on this machine."""
    environment = {variable["name"]: variable["value"] for variable in container["env"]}
    words = (word.replace("$$(", "$(") for word in container["command"][1:])  # as Kubernetes does
    command = [sys.executable, "-m", "fraud_ray", *words]
    done = subprocess.run(
        command,
        cwd=ROOT,
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=120,
    )
    return done.stdout, done.returncode


@contextmanager
def node(api: Api, play: Play) -> Iterator[None]:
    """Gives each Job a pod, and runs it."""
    ended = threading.Event()

    def work() -> None:
        seen: set[str] = set()
        while not ended.wait(0.02):
            for name, job in api.bodies(JOBS).items():
                if name not in seen:
                    seen.add(name)
                    put_pod(api, name, {"phase": "Running"})
                    log, code = play(job["spec"]["template"]["spec"]["containers"][0])
                    api[f"get /api/v1/namespaces/{NAMESPACE}/pods/{name}-x/log"] << log.encode()
                    put_pod(api, name, terminated(code))

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def put_pod(api: Api, job: str, status: dict[str, Any]) -> None:
    pod = {"metadata": {"name": f"{job}-x", "labels": {"job-name": job}}, "spec": {"containers": []}, "status": status}
    api.objects[PODS, NAMESPACE, f"{job}-x"] = pod


def terminated(code: int, reason: str = "Completed") -> dict[str, Any]:
    state = {"terminated": {"exitCode": code, "reason": reason}}
    container = {"name": "fraud-ray", "state": state, "image": "", "imageID": "", "ready": False, "restartCount": 0}
    return {"phase": "Failed" if code else "Succeeded", "containerStatuses": [container]}


def played(log: str, code: int = 0) -> Play:
    return lambda container: (log, code)


def test_a_command_runs_in_a_pod_of_the_runs_image_settings_volume_and_accounts(
    api: Api, definitions: Definitions, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOGNAME", "ada")
    with node(api, played(f"{MARK}first  registered\nnote: held by grace\n{MARK}second  rejected\n")):
        listed = fraud_ray("runs", "list", *THERE)
    assert listed.exit_code == 0, listed.stderr
    assert listed.stdout == "first  registered\nsecond  rejected\n"
    assert listed.stderr == "note: held by grace\n"
    ((name, job),) = api.bodies(JOBS).items()
    (config_map,) = api.bodies(CONFIG_MAPS)
    assert [str(finding) for finding in definitions.check(Document(_made(job), ("job",)))] == []
    overlays = ["cluster.autoscaling=false", "train.use_gpu=false", "train.resources_per_worker={CPU: 1}"]
    overlays += ["simulate={rows: 335000, days: 67}", "folds.fit_days=32"]
    own = [word for override in overlays for word in ("--set", override)]
    labels = {"app.kubernetes.io/component": "command", "fraud-ray/command": "runs-list"}
    assert _made(job) == {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {
            "name": name,
            "namespace": NAMESPACE,
            "labels": labels,
            "annotations": job["metadata"]["annotations"],
        },
        "spec": {
            "backoffLimit": 0,
            "ttlSecondsAfterFinished": 60,
            "activeDeadlineSeconds": 86400,
            "template": {
                "metadata": {
                    "labels": labels,
                    "annotations": {"cluster-autoscaler.kubernetes.io/safe-to-evict": "false"},
                },
                "spec": {
                    "serviceAccountName": "ray-worker",
                    "automountServiceAccountToken": False,
                    "restartPolicy": "Never",
                    "terminationGracePeriodSeconds": 60,
                    "securityContext": {
                        "runAsNonRoot": True,
                        "fsGroup": 1000,
                        "fsGroupChangePolicy": "OnRootMismatch",
                        "seccompProfile": {"type": "RuntimeDefault"},
                    },
                    "containers": [
                        {
                            "name": "fraud-ray",
                            "image": "fraud-ray:dev",
                            "command": ["fraud-ray", "runs", "list", "-c", "configs/cluster.yaml", *own, *DEV[2:]],
                            "env": [
                                {"name": "HOME", "value": "/tmp"},
                                {"name": "RAY_USAGE_STATS_ENABLED", "value": "0"},
                                {"name": "RAY_JOB_STOP_WAIT_TIME_S", "value": "30"},
                                {"name": "FRAUD_RAY_IN_POD", "value": name},
                                {"name": "LOGNAME", "value": "ada"},
                            ],
                            "envFrom": [
                                {"secretRef": {"name": "fraud-storage", "optional": True}},
                                {"secretRef": {"name": "mlflow-client"}},
                            ],
                            "resources": {
                                "requests": {"cpu": "100m", "memory": "512Mi"},
                                "limits": {"cpu": "500m", "memory": "512Mi"},
                            },
                            "securityContext": {
                                "allowPrivilegeEscalation": False,
                                "readOnlyRootFilesystem": True,
                                "capabilities": {"drop": ["ALL"]},
                            },
                            "volumeMounts": [
                                {"name": "scratch", "mountPath": "/tmp"},
                                {"name": "ray-logs", "mountPath": "/tmp/ray"},
                                {"name": "spill", "mountPath": "/spill"},
                                {"name": "shm", "mountPath": "/dev/shm"},
                                {"name": "storage", "mountPath": "/mnt/fraud_ray"},
                                {
                                    "name": "settings",
                                    "mountPath": "/opt/fraud_ray/configs/cluster.yaml",
                                    "subPath": "cluster.yaml",
                                    "readOnly": True,
                                },
                            ],
                        }
                    ],
                    "volumes": [
                        {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": "1Gi"}},
                        {"name": "scratch", "emptyDir": {"sizeLimit": "5Gi"}},
                        {"name": "ray-logs", "emptyDir": {"sizeLimit": "10Gi"}},
                        {"name": "spill", "emptyDir": {"sizeLimit": "50Gi"}},
                        {"name": "storage", "persistentVolumeClaim": {"claimName": "fraud-storage"}},
                        {"name": "settings", "configMap": {"name": config_map}},
                    ],
                },
            },
        },
    }


def _made(job: dict[str, Any]) -> dict[str, Any]:
    """A Job as it was asked for."""
    metadata = {key: job["metadata"][key] for key in ("name", "namespace", "labels", "annotations")}
    return {**{key: value for key, value in job.items() if key != "status"}, "metadata": metadata}


@pytest.fixture(scope="module")
def registered(tmp_path_factory: pytest.TempPathFactory, mlflow_template: Path) -> Path:
    """The storage of a cluster, with two versions: 1 is champion, 2 challenger."""
    folder = tmp_path_factory.mktemp("registered")
    shutil.copy(mlflow_template, folder / "mlflow.db")
    tracking, bundle = connect(RegistrySettings(uri=f"sqlite:///{folder}/mlflow.db")), write_bundle(folder / "bundle")
    for number in (1, 2):
        run = tracking.start(f"run-{number}", {})
        record_registration(run, Storage.at(str(folder)), register(run, bundle, example()))
    return folder


def test_a_promotion_is_made_there_by_who_asked_and_its_answer_is_handed_on(
    api: Api, registered: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOGNAME", "ada")
    registry = f"sqlite:///{registered}/mlflow.db"
    where = (*THERE, "--set", f"storage.root={registered}", "--set", f"registry.uri={registry}")
    with node(api, for_real):
        moved = fraud_ray("models", "promote", "--reason", "cost $(HOME)", *where, "--json")
    assert moved.exit_code == 0, moved.stderr
    assert json.loads(moved.stdout)["version"] == 2, "stdout has the JSON alone"
    held = champion(connect(RegistrySettings(uri=registry)))
    assert held is not None
    assert held.version == 2
    last = read_all(Storage.at(str(registered)))[-1]
    assert (last.event, last.facts["user"], last.facts["reason"]) == ("promote", "ada", "cost $(HOME)")


ENDED = {"status": "True", "lastTransitionTime": "2100-01-01T00:00:00Z"}
STATES: dict[str, dict[str, Any]] = {
    "pending": {},
    "running": {"active": 1, "ready": 1},
    "succeeded": {"conditions": [{"type": "Complete", **ENDED}]},
    "failed: it was active too long": {
        "conditions": [{"type": "Failed", "message": "it was active too long", **ENDED}]
    },
}


def test_what_works_on_data_gets_what_a_worker_has_and_waits_in_the_runs_queue(
    api: Api, definitions: Definitions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(with_components(ROOT, "production", ("kueue",), tmp_path / "repository"))
    words = ("score", "--model", "models:/m@champion", "--input", "/mnt/fraud_ray/in", "--output", "/mnt/fraud_ray/out")
    where = ("-c", "configs/cluster.yaml", "--set", f"cluster.image={IMAGE}")
    with node(api, played(f"✓ score 3.1 s\n{MARK}40,000 rows\n", 4)):
        scored = fraud_ray(*words, *where, "--to=kuberay")
    assert (scored.exit_code, scored.stdout) == (4, "40,000 rows\n")
    assert "✓ score 3.1 s\n" in scored.stderr
    ((name, job),) = api.bodies(JOBS).items()
    assert f"job {name}, which jobs list, logs and stop know" in scored.stderr
    assert name in fraud_ray("jobs", "list", *where).stdout
    for state, status in STATES.items():
        api.objects[JOBS, NAMESPACE, name] = {**job, "status": status}
        (listed,) = json.loads(fraud_ray("jobs", "list", *where, "--json").stdout)
        assert (listed["name"], listed["state"]) == (name, state)
    assert "score --model models:/m@champion --input" in fraud_ray("jobs", "show", name, *where).stdout
    assert fraud_ray("jobs", "logs", name, *where).stdout == "✓ score 3.1 s\n40,000 rows\n"
    assert fraud_ray("jobs", "stop", name, *where).exit_code == 0
    assert api.bodies(JOBS) == {}
    assert [str(finding) for finding in definitions.check(Document(_made(job), ("job",)))] == []
    assert job["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "fraud"
    (container,) = job["spec"]["template"]["spec"]["containers"]
    assert container["image"] == IMAGE
    assert container["resources"]["requests"] == {"cpu": "4", "memory": "16Gi"}
    assert container["command"] == ["fraud-ray", "score", *where[:2], *words[1:], *where[2:]]
    assert {"secretRef": {"name": "mlflow-client"}} in container["envFrom"]


def test_another_configuration_is_what_the_pod_reads(api: Api, tmp_path: Path) -> None:
    other = tmp_path / "mine.yaml"
    other.write_text((ROOT / "configs/cluster.yaml").read_text().replace("epochs: 12", "epochs: 30"))
    with node(api, played("")):
        done = fraud_ray("cache", "list", "--to", "kuberay", f"--config={other}", "--set", "cluster.overlay=dev")
    assert done.exit_code == 0, done.stderr
    ((name, config_map),) = api.bodies(CONFIG_MAPS).items()
    assert "epochs: 30" in config_map["data"]["cluster.yaml"]
    (job,) = api.bodies(JOBS).values()
    assert {"name": "settings", "configMap": {"name": name}} in job["spec"]["template"]["spec"]["volumes"]
    assert "mine.yaml" not in str(job["spec"])


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interruption_ends_the_pod_too(api: Api, number: signal.Signals) -> None:
    def interrupt(container: dict[str, Any]) -> tuple[str, int]:
        os.kill(os.getpid(), number)
        time.sleep(0.5)
        return "", 0

    with node(api, interrupt):
        done = fraud_ray("runs", "list", *THERE)
    assert done.exit_code == 128 + number
    assert api.bodies(JOBS) == {}
    assert api.asked <= granted("ray", "fraud-submitter")


WAITING = {
    "a node": (
        {"conditions": [{"type": "PodScheduled", "status": "False", "message": "0/1 nodes: Insufficient memory."}]},
        "0/1 nodes: Insufficient memory.",
    ),
    "an image": (
        {"containerStatuses": [{**terminated(0)["containerStatuses"][0], "state": {"waiting": {"reason": "ErrPull"}}}]},
        "ErrPull",
    ),
}


@pytest.mark.parametrize(("status", "told"), WAITING.values(), ids=list(WAITING))
def test_what_does_not_start_says_why_and_is_taken_back(api: Api, status: dict[str, Any], told: str) -> None:
    def pending(container: dict[str, Any]) -> tuple[str, int]:
        (name,) = api.bodies(JOBS)
        put_pod(api, name, {"phase": "Pending", **status})
        time.sleep(0.7)
        return "", 0

    with node(api, pending):
        done = fraud_ray("runs", "list", *THERE, "--set", "cluster.wait_s=0.5")
    assert done.exit_code == 1
    assert f"waits: {told}" in done.stderr
    assert "did not start within 0.5 s (cluster.wait_s), and was taken back" in done.stderr
    assert api.bodies(JOBS) == {}


def test_a_pod_that_is_evicted_or_killed_for_memory_is_no_success(api: Api) -> None:
    def evicted(container: dict[str, Any]) -> tuple[str, int]:
        (name,) = api.bodies(JOBS)
        put_pod(api, name, {"phase": "Failed", "reason": "Evicted", "message": "The node was low on memory."})
        time.sleep(0.5)
        return "", 0

    with node(api, evicted):
        done = fraud_ray("runs", "list", *THERE)
    assert done.exit_code == 1
    assert "ended before its command did (Evicted: The node was low on memory.)" in done.stderr


REFUSED = {
    "no configuration": (("runs", "list", "--to", "kuberay"), "goes with -c FILE"),
    "no overlay": (("runs", "list", "-c", "configs/local.yaml", "--to", "kuberay"), "cluster.overlay is not set"),
    "a place in the pod": (("runs", "list", *THERE, "--set", "storage.root=mine"), "storage.root is mine, relative"),
    "a password": (
        ("score", "--model", "m", "--input", "s3://a:b@c/d", "--output", "/mnt/x", *THERE),
        "s3://***@c/d holds a password",
    ),
    "another place": (("runs", "list", *DEV, "--to", "mars"), "'mars'"),
}


@pytest.mark.parametrize(("words", "told"), REFUSED.values(), ids=list(REFUSED))
def test_what_cannot_run_there_is_refused_before_anything_is_made(api: Api, words: tuple[str, ...], told: str) -> None:
    done = fraud_ray(*words)
    assert done.exit_code == 2
    assert told in " ".join(done.stderr.split())
    assert api.created == []


def test_every_command_on_storage_or_registry_has_the_option() -> None:
    def leaves(group: Any, path: str = "") -> Iterator[tuple[str, Any]]:
        for name, command in group.commands.items():
            yield from leaves(command, f"{path}{name} ") if hasattr(command, "commands") else [(path + name, command)]

    found = {path for path, command in leaves(typer.main.get_command(app)) if "to" in [p.name for p in command.params]}
    groups = ("runs ", "models ", "audit ", "cache ")
    wanted = {path for path, _ in leaves(typer.main.get_command(app)) if path.startswith(groups)}
    assert found == wanted | {"drift", "validate", "backtest", "reproduce", "score", "ui"}


# What only reads makes nothing, and what changes a registry needs the storage with its record.


@pytest.mark.parametrize(
    "words",
    [
        ("runs", "list"),
        ("runs", "show", "first"),
        ("audit", "show"),
        ("cache", "list"),
        ("reproduce", "first"),
        ("runs", "report", "first", "-o", "-"),
        ("models", "list"),
        ("audit", "verify"),
        ("drift",),
    ],
    ids=" ".join,
)
def test_what_reads_makes_no_storage_and_says_that_there_is_none(words: tuple[str, ...], tmp_path: Path) -> None:
    day = date(2024, 1, 1)
    write_partition(tmp_path / "data", f"date={day}/part-0.parquet", card_table(day))
    where = ("-c", str(ROOT / "configs/local.yaml"), "--set", f"storage.root={tmp_path}/none")
    done = fraud_ray(*words, *where, "--set", f"data.path={tmp_path}/data")
    assert done.exit_code == 2, done.stderr
    assert "--to kuberay" in done.stderr
    assert not (tmp_path / "none").exists()
    assert "none yet" not in done.stderr


def test_a_registry_is_changed_from_the_storage_alone_that_has_its_record(registered: Path, tmp_path: Path) -> None:
    registry = f"sqlite:///{registered}/mlflow.db"
    before = read_all(Storage.at(str(registered)))

    def refused(root: Path) -> str:
        settings = (f"storage.root={root}", f"registry.uri={registry}")
        words = [word for setting in settings for word in ("--set", setting)]
        done = fraud_ray("models", "promote", "1", "-c", str(ROOT / "configs/local.yaml"), *words)
        assert done.exit_code == 2
        assert "--to kuberay" in done.stderr
        return done.stderr

    assert f"there is no storage at {tmp_path}/none" in refused(tmp_path / "none")
    assert not (tmp_path / "none").exists()
    other = tmp_path / "other"
    other.mkdir()
    assert f"keeps its audit record in the storage {registered}, and the one here, {other}, has none" in refused(other)
    own = connect(RegistrySettings(uri=registry, experiment="other", model_name="other"))
    run = own.start("other-1", {})
    record_registration(run, Storage.at(str(other)), register(run, write_bundle(tmp_path / "bundle"), example()))
    assert f"{other}, has another" in refused(other)
    assert read_all(Storage.at(str(registered))) == before
    assert [record.event for record in read_all(Storage.at(str(other)))] == ["register"]


def test_a_run_is_refused_before_it_trains_where_the_registry_has_another_record(
    registered: Path, tmp_path: Path
) -> None:
    overrides = [f"storage.root={tmp_path}", f"registry.uri=sqlite:///{registered}/mlflow.db"]
    loaded = load_settings(ROOT / "configs/local.yaml", overrides)
    source, storage = Source("data", (), "5eed", None), Storage.at(str(tmp_path))
    with (
        pytest.raises(SettingsError, match="for a run: fraud-ray submit"),
        open_run(loaded, storage, "5eed") as run,
        writing(loaded, source, run) as writer,
    ):
        assert writer.tracking


def test_an_address_of_a_cluster_alone_says_so(tmp_path: Path) -> None:
    done = fraud_ray("models", "list", "-c", str(ROOT / "configs/cluster.yaml"))
    assert done.exit_code == 1
    assert "only pods of its cluster know that name: the same command with --to kuberay" in done.stderr


# Pages.

PAGE = "<html>\n<p>€ 3.50\n</html>\n"


def test_a_runs_page_comes_through_the_pod(api: Api, tmp_path: Path) -> None:
    storage, file = Storage.at(str(tmp_path / "there")), tmp_path / "first.html"
    with open_run(load_settings(ROOT / "configs/local.yaml", ["run.name=first"]), storage, "5eed") as run:
        storage.put(run.key("report.html"), PAGE.encode())
    where = (*THERE, "--set", f"storage.root={storage.root}")
    with node(api, for_real):
        done = fraud_ray("runs", "report", "first", "-o", str(file), *where)
        missing = fraud_ray("runs", "report", "second", f"--output={tmp_path}/second.html", *where)
    assert (done.exit_code, done.stderr) == (0, "")
    assert file.read_text() == PAGE
    assert missing.exit_code == 2
    assert "no run 'second'" in missing.stderr and "there are: first" in missing.stderr
    assert not (tmp_path / "second.html").exists()


def test_a_runs_page_comes_from_mlflow_where_its_storage_is_not_at_hand(tmp_path: Path, store: Path) -> None:
    registry = f"registry.uri=sqlite:///{store}/mlflow.db"
    tracking = connect(RegistrySettings(uri=f"sqlite:///{store}/mlflow.db"))
    tracking.start("first", {}).log_text(PAGE, "report.html")
    tracking.start("second", {})
    where = ("-c", str(ROOT / "configs/local.yaml"), "--set", f"storage.root={tmp_path}/none", "--set", registry)
    assert fraud_ray("runs", "report", "first", "-o", "-", *where).stdout == PAGE
    assert fraud_ray("runs", "report", "latest", "-o", f"{tmp_path}/page.html", *where).exit_code == 2
    absent = fraud_ray("runs", "report", "third", "-o", "-", *where)
    assert absent.exit_code == 2
    assert "there are: first, second" in absent.stderr
    assert not (tmp_path / "none").exists()


def test_mlflows_pages_are_forwarded_by_the_api_and_it_is_said_where_and_who_logs_in(api: Api) -> None:
    pod = {"name": "mlflow-1", "namespace": "mlops", "labels": {"app.kubernetes.io/name": "mlflow"}}
    port = {"name": "http", "containerPort": 5000}
    service = {"selector": pod["labels"], "ports": [{"name": "http", "port": 5000, "targetPort": "http"}]}
    api.resources[SERVICES] = {"namespaced": True}
    named = {"name": "mlflow", "namespace": "mlops"}
    api.objects[SERVICES, "mlops", "mlflow"] = {
        "kind": "Service",
        "apiVersion": "v1",
        "metadata": named,
        "spec": service,
    }
    api.objects[PODS, "mlops", "mlflow-1"] = {
        "kind": "Pod",
        "apiVersion": "v1",
        "metadata": pod,
        "spec": {"containers": [{"name": "mlflow", "ports": [port]}]},
        "status": {"phase": "Running"},
    }
    known = [
        {"name": name, "kind": kind, "singularName": short, "shortNames": [short], "verbs": ["get"], "namespaced": True}
        for name, kind, short in (("services", "Service", "svc"), ("pods", "Pod", "po"))
    ]
    api["get /api/v1"] << {"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": "v1", "resources": known}
    command = [sys.executable, "-m", "fraud_ray", "ui", "-c", "configs/cluster.yaml", "--to", "kuberay"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.stderr.startswith("http://localhost:5000 — log in with your account of MLflow, or the runs'")
    assert "error upgrading connection" in done.stderr, "which this API cannot"
    asked = [("get", "services"), ("list", "pods"), ("get", "pods"), ("create", "pods/portforward")]
    assert api.asked - {("get", "pods/portforward")} == {*asked}
    assert api.asked <= granted("mlflow", "fraud-submitter")


def granted(room: str, role: str) -> set[tuple[str, str]]:
    documents = yaml.safe_load_all((ROOT / f"cluster/base/{room}/access.yaml").read_text())
    (rules,) = [d["rules"] for d in documents if d["kind"] == "Role" and d["metadata"]["name"] == role]
    return {(verb, resource) for rule in rules for resource in rule["resources"] for verb in rule["verbs"]}


def test_pages_that_no_cluster_has_are_not_forwarded() -> None:
    done = fraud_ray("ui", "-c", str(ROOT / "configs/local.yaml"), "--to", "kuberay")
    assert done.exit_code == 2
    assert "which is no Service of a cluster" in done.stderr
    here = fraud_ray("ui", "-c", str(ROOT / "configs/cluster.yaml"))
    assert here.exit_code == 2
    assert "--to kuberay forwards them to this machine" in here.stderr
