"""`fraud-ray submit` and `fraud-ray jobs` on KubeRay: the manifests, and a Kubernetes API that takes them."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from typer.testing import CliRunner, Result

from fraud_ray.cli import app
from fraud_ray.settings import load_settings
from fraud_ray.submission.order import CommandLine
from tests.cards import COLUMNS, card_table, write_partition
from tests.kube.api import CLUSTERS, CONFIG_MAPS, FINALIZER, PODS, RAYJOBS, Api
from tests.kube.render import Document
from tests.kube.schema import Definitions

ROOT = Path(__file__).parents[1]
CONFIG = ROOT / "configs/cluster.yaml"
NAMESPACE = "ml-pipelines"
IMAGE = f"registry.example.com/fraud-ray@sha256:{'5eed' * 16}"
DEV = ("-c", "configs/cluster.yaml", "--set", "cluster.overlay=dev")
OVERRIDES = ("train.learning_rate=0.0005", "train.epochs=100", "gate.min_f1=0.90")


@pytest.fixture(autouse=True)
def in_the_repository(kubectl: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("PATH", f"{kubectl.parent}{os.pathsep}{os.environ['PATH']}")


def fraud_ray(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments))


def submit(*arguments: str, name: str = "march", where: tuple[str, ...] = DEV) -> Result:
    return fraud_ray("submit", *where, "--name", name, *arguments)


def sets(*overrides: str) -> tuple[str, ...]:
    return tuple(word for override in overrides for word in ("--set", override))


def told(result: Result) -> Any:
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout)


def rendered(result: Result) -> list[dict[str, Any]]:
    assert result.exit_code == 0, result.stderr
    return list(yaml.safe_load_all(result.stdout))


# Manifests.


@pytest.mark.parametrize("overlay", ["dev", "production", "openshift"])
def test_rendered_manifests_are_read_back_unchanged_and_keep_the_schemas(
    overlay: str, kubectl: Path, definitions: Definitions, tmp_path: Path
) -> None:
    where = ("-c", "configs/cluster.yaml", *sets(f"cluster.overlay={overlay}", f"cluster.image={IMAGE}"))
    printed = submit("--render", *sets(*OVERRIDES), name="fraud-model-v2", where=where)
    (job, settings) = rendered(printed)
    (tmp_path / "run.yaml").write_text(printed.stdout)
    (tmp_path / "kustomization.yaml").write_text("resources: [run.yaml]\n")
    read = subprocess.run([kubectl, "kustomize", tmp_path], capture_output=True, text=True, check=True)
    assert {d["kind"]: d for d in yaml.safe_load_all(read.stdout)} == {"RayJob": job, "ConfigMap": settings}
    assert [str(f) for body in (job, settings) for f in definitions.check(Document(body, ("rendered",)))] == []
    assert job["metadata"]["name"] == "fraud-model-v2-1"
    assert job["metadata"]["namespace"] == settings["metadata"]["namespace"] == NAMESPACE
    assert job["metadata"]["labels"]["fraud-ray/run"] == "fraud-model-v2"
    assert settings["data"]["cluster.yaml"] == CONFIG.read_text()
    head = job["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]
    assert {"configMap": {"name": settings["metadata"]["name"]}, "name": "settings"} in head["volumes"]
    pods = [head, job["spec"]["submitterPodTemplate"]["spec"]]
    pods += [group["template"]["spec"] for group in job["spec"]["rayClusterSpec"]["workerGroupSpecs"]]
    assert {container["image"] for pod in pods for container in pod["containers"]} == {IMAGE}


def test_the_entrypoint_keeps_what_the_overlay_sets_and_ends_with_what_the_user_sets() -> None:
    job, _ = rendered(submit("--render", *sets("train.workers=2", "train.resources_per_worker={CPU: 2}")))
    line = CommandLine.parse(shlex.split(job["spec"]["entrypoint"]), "here")
    assert line.program == ("exec", "python", "jobs/pipeline.py")
    assert (line.config, line.name) == ("configs/cluster.yaml", "march")
    assert line.overrides[:2] == ("cluster.autoscaling=false", "train.use_gpu=false")
    assert line.overrides[-2:] == ("train.workers=2", "train.resources_per_worker={CPU: 2}")
    submitted = yaml.safe_load(job["metadata"]["annotations"]["fraud-ray/settings"])
    started = load_settings(CONFIG, [*line.overrides, "run.name=march"]).settings
    assert submitted == started.resolved()
    assert started.train.resources_per_worker == {"CPU": 2}


@hypothesis_settings(max_examples=50, deadline=None)
@given(st.lists(st.text(st.characters(codec="ascii", exclude_characters="\0")), min_size=1, max_size=5))
def test_words_pass_the_submitters_and_the_jobs_shell_unchanged(words: list[str]) -> None:
    """As KubeRay and `ray job submit` do it: bash takes one quoting off, Ray puts one on for the next shell."""

    def split(shell: str, line: str) -> list[str]:
        seen = subprocess.run([shell, "-ec", f"printf '%s\\0' {line}"], stdout=subprocess.PIPE, check=True).stdout
        return seen.decode().split("\0")[:-1]

    assert split("sh", shlex.join(split("bash", shlex.join(words)))) == words


def test_another_configuration_travels_as_a_config_map_of_its_own(tmp_path: Path) -> None:
    other = tmp_path / "big.yaml"
    other.write_text(CONFIG.read_text().replace("epochs: 12", "epochs: 30"))
    job, settings = rendered(submit("--render", where=("-c", str(other), "--set", "cluster.overlay=dev")))
    _, usual = rendered(submit("--render"))
    assert settings["metadata"]["name"] != usual["metadata"]["name"]
    assert settings["data"]["cluster.yaml"] == other.read_text()
    assert "-c configs/cluster.yaml" in job["spec"]["entrypoint"]
    text = yaml.safe_dump(job["spec"])
    assert text.count(settings["metadata"]["name"]) == 2  # head and worker
    assert usual["metadata"]["name"] not in text


REFUSED = {
    "a placeholder for an image": ((), "march", "write the digest that your build pushed into cluster/overlays/prod"),
    "a name that is too long": (sets("cluster.overlay=dev"), "m" * 46, "47 characters at most"),
    "a name in capitals": (sets("cluster.overlay=dev"), "March", "lower-case letter"),
    "a name that begins with a digit": (sets("cluster.overlay=dev"), "2024-03", "lower-case letter"),
    "a date without data": (sets("cluster.overlay=dev"), "m-{as_of:%m}", "cannot be read from here"),
    "an unknown overlay": (sets("cluster.overlay=prod"), "march", "there are: dev, openshift, production"),
    "an unknown setting": (sets("cluster.overlay=dev", "train.epohcs=3"), "march", "did you mean 'epochs'?"),
    "what the overlay makes invalid": (sets("cluster.overlay=dev", "simulate.rows=-3"), "march", "simulate.rows"),
    "a root in the pod": (sets("cluster.overlay=dev", "storage.root=store"), "march", "storage.root is store"),
    "data in the pod": (sets("cluster.overlay=dev", "data.path=data"), "march", "data.path is data, relative"),
}


@pytest.mark.parametrize(("arguments", "name", "message"), REFUSED.values(), ids=list(REFUSED))
def test_what_cannot_run_is_refused_before_anything_is_submitted(
    arguments: tuple[str, ...], name: str, message: str, api: Api
) -> None:
    result = submit(*arguments, name=name, where=("-c", "configs/cluster.yaml"))
    assert result.exit_code == 2
    assert message in result.stderr
    assert api.created == []


def test_without_kubectl_one_is_asked_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    result = submit("--render")
    assert result.exit_code == 2
    assert "no kubectl on the PATH" in result.stderr


def test_without_a_cluster_the_message_says_how_to_name_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    result = submit()
    assert result.exit_code == 1
    assert "Set KUBECONFIG" in result.stderr


# The API.


def test_a_submitted_run_is_a_rayjob_whose_resolved_settings_are_shown(api: Api) -> None:
    first = told(submit(*sets(*OVERRIDES), "--json", name="fraud-model-v2"))
    assert (first["name"], first["run"], first["state"], first["new"]) == (
        "fraud-model-v2-1",
        "fraud-model-v2",
        "pending",
        True,
    )
    assert [name.partition("/")[0] for name in api.created] == ["ConfigMap", "RayJob"]
    shown = told(fraud_ray("jobs", "show", "fraud-model-v2", *DEV, "--json"))["settings"]
    assert shown["train"]["learning_rate"] == 0.0005
    assert shown["train"]["epochs"] == 100
    assert shown["gate"]["min_f1"] == 0.9
    assert shown["train"]["dropout"] == 0.3, "a default, filled in"
    assert "    epochs: 100" in fraud_ray("jobs", "show", "fraud-model-v2-1", *DEV).stdout
    assert "fraud-model-v2-1" in fraud_ray("jobs", "list", *DEV).stdout


@pytest.mark.parametrize("status", [{}, {"jobStatus": "SUCCEEDED", "jobDeploymentStatus": "Complete"}])
def test_a_run_that_is_under_way_or_done_is_not_submitted_again(status: dict[str, str], api: Api) -> None:
    submit()
    api.report("march-1", status)
    again = told(submit("--json"))
    assert (again["name"], again["new"]) == ("march-1", False)
    other = submit(*sets("train.dropout=0.2"))
    assert other.exit_code == 2
    assert "train.dropout: 0.3 there, 0.2 now" in other.stderr
    assert list(api.bodies(RAYJOBS)) == ["march-1"]


def test_a_failed_run_gets_its_next_attempt(api: Api) -> None:
    submit()
    api.report("march-1", {"jobDeploymentStatus": "Failed", "reason": "AppFailed", "message": "exit code 1"})
    assert told(submit("--json"))["name"] == "march-2"
    listed = told(fraud_ray("jobs", "list", *DEV, "--json"))
    assert [(job["name"], job["state"], job["message"]) for job in listed] == [
        ("march-1", "failed", "AppFailed: exit code 1"),
        ("march-2", "pending", ""),
    ]
    for wanted in ("march", "mar", "latest"):
        assert told(fraud_ray("jobs", "show", wanted, *DEV, "--json"))["name"] == "march-2"


STATES = {
    "pending": [{}, {"jobDeploymentStatus": "Suspended"}, {"jobDeploymentStatus": "Retrying", "jobStatus": ""}],
    "running": [{"jobDeploymentStatus": "Running", "jobStatus": "RUNNING"}],
    "failed": [{"jobDeploymentStatus": "ValidationFailed"}, {"jobDeploymentStatus": "Failed", "jobStatus": "FAILED"}],
    "stopped": [{"jobDeploymentStatus": "Complete", "jobStatus": "STOPPED"}],
}


def test_what_kuberay_tells_becomes_one_of_five_states(api: Api) -> None:
    submit()
    for state, reports in STATES.items():
        for status in reports:
            api.report("march-1", status)
            assert told(fraud_ray("jobs", "show", "march", *DEV, "--json"))["state"] == state, status


def test_somebody_elses_submission_of_the_same_moment_is_the_answer(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    from fraud_ray.submission.kuberay import KubeRayJobs

    create = KubeRayJobs.create

    def late(self: KubeRayJobs, order: Any, number: int) -> bool:
        monkeypatch.setattr(KubeRayJobs, "create", create)
        assert create(self, order, number)
        return create(self, order, number)

    monkeypatch.setattr(KubeRayJobs, "create", late)
    answer = told(submit("--json"))
    assert (answer["name"], answer["new"]) == ("march-1", False)
    assert list(api.bodies(RAYJOBS)) == ["march-1"]


def test_a_stopped_run_leaves_a_record_and_resumes_as_its_next_attempt(api: Api) -> None:
    submit()
    running = {"jobDeploymentStatus": "Running", "jobStatus": "RUNNING"}
    api.report("march-1", running, finalizers=[FINALIZER])
    stopped = fraud_ray("jobs", "stop", "march", *DEV)
    assert "stopped march-1; run 'march' goes on from here when it is submitted again" in stopped.stdout
    record = told(fraud_ray("jobs", "show", "march", *DEV, "--json"))
    assert (record["state"], record["settings"]["train"]["epochs"]) == ("stopped", 12)
    assert api.bodies(RAYJOBS)["march-1"]["spec"]["suspend"], "nothing starts it"
    other = submit(*sets("train.dropout=0.2"))
    assert other.exit_code == 2
    assert "run 'march' is stopped as job march-1, and differs in\n  train.dropout: 0.3 there, 0.2 now" in other.stderr
    assert told(submit("--json"))["name"] == "march-2"


def test_what_is_left_of_a_job_that_kuberay_gave_up_is_ended_before_the_next(api: Api) -> None:
    submit()
    status = {"jobDeploymentStatus": "Failed", "jobStatus": "RUNNING", "reason": "JobStatusCheckTimeoutExceeded"}
    api.report("march-1", {**status, "rayClusterName": "march-1-vtj48"})
    api.objects[CLUSTERS, NAMESPACE, "march-1-vtj48"] = {"metadata": {"name": "march-1-vtj48"}}
    assert told(submit("--json"))["name"] == "march-2"
    assert api.bodies(CLUSTERS) == {}


def test_logs_are_those_of_the_newest_submitter(api: Api) -> None:
    submit()
    early = fraud_ray("jobs", "logs", "march", *DEV)
    assert early.exit_code == 1
    assert "job march-1: pending: KubeRay has not taken it up yet" in early.stderr
    assert "printed nothing yet; " in early.stderr
    assert f"jobs logs -f march-1 {' '.join(DEV)} waits for it" in early.stderr
    for number, text in (("1", "✓ validate\n"), ("2", "✓ register\n")):
        labels, born = {"job-name": "march-1"}, f"2024-03-01T02:0{number}:00Z"
        api.objects[PODS, NAMESPACE, f"march-1-{number}"] = {
            "metadata": {"name": f"march-1-{number}", "labels": labels, "creationTimestamp": born},
            "status": {"phase": "Running"},
        }
        api[f"get /api/v1/namespaces/{NAMESPACE}/pods/march-1-{number}/log"] << text.encode()
    assert fraud_ray("jobs", "logs", "march", *DEV).stdout == "✓ register\n"


def test_the_roles_let_people_and_the_schedule_do_what_the_commands_do_and_nothing_else(api: Api) -> None:
    def granted(role: str) -> set[tuple[str, str]]:
        documents = yaml.safe_load_all((ROOT / "cluster/base/ray/access.yaml").read_text())
        (rules,) = [d["rules"] for d in documents if d["kind"] == "Role" and d["metadata"]["name"] == role]
        return {(verb, resource) for rule in rules for resource in rule["resources"] for verb in rule["verbs"]}

    looks = {
        ("get", kind) for kind in ("serviceaccounts", "secrets", "persistentvolumeclaims")
    }  # and says so if it cannot
    submit()
    ends = {("delete", "rayclusters")}  # of an attempt that KubeRay gave up
    assert api.asked - looks == (granted("fraud-schedule") - ends) | {("create", "configmaps")}, (
        "its settings are there"
    )
    labels = {"job-name": "march-1"}
    metadata = {"name": "march-1-1", "labels": labels, "creationTimestamp": "2024-03-01T02:00:00Z"}
    api.objects[PODS, NAMESPACE, "march-1-1"] = {"metadata": metadata, "status": {"phase": "Running"}}
    api[f"get /api/v1/namespaces/{NAMESPACE}/pods/march-1-1/log"] << b"done"
    for command in ("show", "logs", "stop"):
        assert fraud_ray("jobs", command, "march", *DEV).exit_code == 0
    assert fraud_ray("jobs", "list", *DEV).exit_code == 0
    assert api.asked - granted("fraud-submitter") == {("get", "secrets")}, "nobody needs to read those"
    readable = ("pods", "pods/log", "events", "rayjobs", "workloads", "localqueues")
    to_look = {(verb, resource) for verb in ("get", "list") for resource in readable}
    to_look |= {(verb, "jobs") for verb in ("get", "list", "create", "delete")}  # tests/test_elsewhere.py
    assert granted("fraud-submitter") - api.asked - ends <= to_look


def test_a_job_that_is_not_there_is_answered_with_those_that_are(api: Api) -> None:
    submit()
    result = fraud_ray("jobs", "stop", "april", *DEV)
    assert result.exit_code == 2
    assert "no job and no run 'april'; there are: march-1" in result.stderr


def test_what_the_api_refuses_is_told_in_its_words(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    from fraud_ray.submission import kuberay

    def broken(*arguments: Any) -> Any:
        job, settings = fill(*arguments)
        job["spec"]["backofLimit"] = 2
        return job, settings

    fill = kuberay.fill
    monkeypatch.setattr(kuberay, "fill", broken)
    result = submit()
    assert result.exit_code == 1
    assert "refused: spec.backofLimit: there is no such field (422)" in result.stderr
    assert api.bodies(RAYJOBS) == {}


def test_an_api_that_does_not_answer_is_named(api: Api, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    away = yaml.safe_load(Path(os.environ["KUBECONFIG"]).read_text())
    away["clusters"][0]["cluster"]["server"] = "http://127.0.0.1:9"
    (tmp_path / "away").write_text(yaml.safe_dump(away))
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "away"))
    result = submit()
    assert result.exit_code == 1
    assert "Kubernetes at http://127.0.0.1:9 does not answer" in result.stderr


def test_the_schedule_submits_the_newest_months_retraining_once(
    api: Api, tmp_path: Path, card_configuration: Callable[[Path], Path]
) -> None:
    data = tmp_path / "data"
    config = card_configuration(data)
    schedule = yaml.safe_load((ROOT / "cluster/base/ray/schedule.yaml").read_text())
    (container,) = schedule["spec"]["jobTemplate"]["spec"]["template"]["spec"]["containers"]
    program, *command = container["command"]
    assert program == "fraud-ray"
    scheduled = [str(config) if word == "configs/cluster.yaml" else word for word in command]
    for month in (1, 1, 2, 2):
        day = date(2024, month, 28)
        write_partition(data, f"date={day}/part-0.parquet", card_table(day))
        assert fraud_ray(*scheduled).exit_code == 0
    assert list(api.bodies(RAYJOBS)) == ["fraud-2024-01-1", "fraud-2024-02-1"]
    assert len(api.bodies(CONFIG_MAPS)) == 1
    entrypoint = api.bodies(RAYJOBS)["fraud-2024-01-1"]["spec"]["entrypoint"]
    assert entrypoint.startswith("exec python jobs/retrain.py -c configs/cluster.yaml ")
    assert entrypoint.endswith("--name fraud-2024-01"), "settled: a retry in March is still January's run"


@pytest.fixture
def card_configuration(tmp_path: Path) -> Callable[[Path], Path]:
    def write(data: Path) -> Path:
        columns = {name: column for name, column in COLUMNS.items() if name != "probability"}
        config = tmp_path / "cards.yaml"
        config.write_text(
            yaml.safe_dump(
                {
                    "data": {"path": str(data), "columns": columns},
                    "storage": {"root": "/mnt/fraud_ray"},
                    "cluster": {"overlay": "dev"},
                }
            )
        )
        return config

    return write
