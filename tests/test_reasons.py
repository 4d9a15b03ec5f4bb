"""What `fraud-ray jobs` says of a job, in everything that a real cluster did to one."""

from __future__ import annotations

import json
import os
import re
from datetime import timedelta
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner, Result

from fraud_ray.cli import app
from fraud_ray.runs import new_log
from fraud_ray.storage import Storage
from fraud_ray.submission import kuberay, render
from fraud_ray.submission.reasons import ENDED, Surroundings, attempts, seconds, tell
from tests.kube.api import ACCOUNTS, CLUSTERS, NAMESPACE, PODS, RAYJOBS, SECRETS, WORKLOADS, Api
from tests.kube.transitions import Body, Moment, moment, scenarios

ROOT = Path(__file__).parents[1]
DEV = ("-c", "configs/cluster.yaml", "--set", "cluster.overlay=dev")
NEW, BEGINS = "pending: KubeRay has not taken it up yet", "pending: its cluster starts"
SUBMITTER, STARTS = "pending: submitter starts", "pending: the run starts"
STOPPING = "stopping: KubeRay ends the run, then its cluster"
AGAIN = "pending: attempt {} of 3 ended (rejected by the gate), and the next begins"

SENTENCES = {
    "rejected": [
        *(NEW, NEW, BEGINS, SUBMITTER, STARTS, "running", AGAIN.format(1), AGAIN.format(1)),
        *(BEGINS, BEGINS, SUBMITTER, STARTS, "running", AGAIN.format(2), AGAIN.format(2)),
        *(BEGINS, BEGINS, SUBMITTER, STARTS, "running", "rejected by the gate", "rejected by the gate"),
        "rejected by the gate; its record is being deleted",
    ],
    "head_lost_and_replaced": [
        *(NEW, NEW, BEGINS, SUBMITTER, STARTS, "running", "running: no status since 00:55:11 UTC", STARTS, "running"),
        *("succeeded", "succeeded", "succeeded; its record is being deleted"),
    ],
    "head_lost_for_long": [
        *(NEW, NEW, BEGINS, SUBMITTER, STARTS, "running", "running: no status since 01:01:03 UTC"),
        *("failed: no status for 300 s", "failed: no status for 300 s; its record is being deleted"),
    ],
    "secret_missing": [NEW, NEW, BEGINS, STOPPING],
    "image_missing": [NEW, NEW, BEGINS, STOPPING],
    "stopped_by_fraud_ray_jobs_stop": [NEW, NEW, BEGINS, SUBMITTER, STARTS, "running", STOPPING],
    "queued_by_kueue": [*["queued in fraud"] * 5, BEGINS, BEGINS, BEGINS, STOPPING],
    "raycronjob_child": [NEW, NEW, BEGINS, SUBMITTER, STARTS, "running", STOPPING],
    "kueue_without_queue_label": [
        "pending: suspended, and nothing will start it: no label kueue.x-k8s.io/queue-name names a queue",
        STOPPING,
    ],
    "stopped_by_ray_job_stop": ["stopped"],
    "service_account_missing": [BEGINS],
    "submitter_pending": [SUBMITTER],
}
CAPTURED = {
    ("rejected", 21, "rejected"): "rejected by the gate",
    ("head_lost_and_replaced", 10, "headback"): "succeeded",
    ("head_lost_for_long", 6, "headgone-waiting"): (
        "running: no status since 01:01:03 UTC; head waits for a node: 1 node(s) were unschedulable"
    ),
    ("head_lost_for_long", 7, "headgone-failed"): (
        "failed: no status for 300 s; its pods stand, and may run it to its end"
    ),
    ("head_lost_for_long", 7, "headgone-zombie"): (
        "failed: no status for 300 s; its pods stand, and may run it to its end"
    ),
    ("secret_missing", 2, "nosecret"): "pending: head: secret mlflow-client not found",
    ("service_account_missing", 0, "at 12 s"): "pending: service account ray-head not found",
    ("submitter_pending", 0, "at 100 s"): "pending: submitter waits for memory (512Mi)",
}
STEPS = {(scenario, step, None): told for scenario, said in SENTENCES.items() for step, told in enumerate(said)}
EVERY = {**STEPS, **CAPTURED}
ONE_A_SENTENCE = list({told: where for where, told in EVERY.items()}.values())  # a command takes a fifth of a second


@pytest.fixture(scope="module")
def submitted(kubectl: Path) -> Body:
    """The RayJob that `submit` makes."""
    return _order()[0]


@pytest.fixture(autouse=True)
def in_the_repository(kubectl: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("PATH", f"{kubectl.parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr(render, "render_overlay", _rendered)  # the same overlay, once for all


_RENDER = cache(render.render_overlay)


def _rendered(overlay: str | None) -> render.Template:
    return _RENDER(overlay)


def _order() -> tuple[Body, Body]:
    from fraud_ray.submission.order import order

    os.chdir(ROOT)
    template = _rendered("dev")
    placed = order(Path("configs/cluster.yaml"), ["cluster.overlay=dev"], "march", template.line)
    return render.fill(template, placed, 1)


def fraud_ray(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments))


def told(result: Result) -> Any:
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout)


def around(seen: Moment) -> Surroundings:
    return Surroundings(seen.clusters, seen.pods, seen.events)


def test_every_scenario_that_was_recorded_is_played_to_its_end() -> None:
    assert {name: len(recorded["rayjob"]) for name, recorded in scenarios().items()} == {
        name: len(sentences) for name, sentences in SENTENCES.items()
    }
    captured = {(name, moment) for name, recorded in scenarios().items() for moment in recorded.get("captured", ())}
    assert {(scenario, capture) for scenario, _, capture in CAPTURED} == captured


@pytest.mark.parametrize("scenario", SENTENCES)
def test_each_step_of_a_scenario_has_its_sentence(scenario: str, submitted: Body) -> None:
    for (one, step, capture), sentence in EVERY.items():
        if one == scenario:
            seen = moment(submitted, scenario, step, capture)
            assert tell(seen.job, around(seen))[1] == sentence, f"step {step}, {capture}"


@pytest.mark.parametrize(("scenario", "step", "capture"), ONE_A_SENTENCE)
def test_list_and_show_say_what_a_job_is_doing_and_why_not(
    scenario: str, step: int, capture: str | None, submitted: Body, api: Api
) -> None:
    seen = moment(submitted, scenario, step, capture)
    api.play(seen)
    (listed,) = told(fraud_ray("jobs", "list", *DEV, "--json"))
    assert listed["says"] == EVERY[scenario, step, capture]
    shown = fraud_ray("jobs", "show", seen.name, *DEV)
    assert f"state   {EVERY[scenario, step, capture]}\n" in shown.stdout


def test_attempts_and_time_are_of_the_whole_job(submitted: Body) -> None:
    def counted(scenario: str, step: int) -> tuple[tuple[int, int], timedelta]:
        job = moment(submitted, scenario, step).job
        return attempts(job), timedelta(seconds=seconds(job) or 0)

    assert counted("rejected", 21) == ((3, 3), timedelta(minutes=4, seconds=26))
    assert counted("head_lost_and_replaced", 10) == ((1, 3), timedelta(minutes=5, seconds=37))
    assert [counted("rejected", step)[0][0] for step in (0, 5, 7, 8, 12, 14, 19)] == [1, 1, 1, 2, 2, 2, 3]


def test_what_no_recording_has_is_told_too(submitted: Body) -> None:
    """An image that nobody has, a volume that does not come, no quota, and a program that says why it ended."""
    seen = moment(submitted, "image_missing", 2)
    spec = seen.job["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]
    cluster = seen.job["status"]["rayClusterName"]

    def head(waiting: dict[str, str]) -> Body:
        status = {
            "phase": "Pending",
            "conditions": [{"type": "PodScheduled", "status": "True"}],
            "containerStatuses": [{"name": "ray-head", "image": "fraud-ray:nope", "state": {"waiting": waiting}}],
        }
        labels = {"ray.io/cluster": cluster, "ray.io/node-type": "head"}
        return {"metadata": {"name": "head", "labels": labels}, "spec": spec, "status": status}

    def event(kind: str, name: str, reason: str, message: str) -> Body:
        return {"involvedObject": {"kind": kind, "name": name}, "reason": reason, "message": message}

    nowhere = Surroundings(pods=[head({"reason": "ImagePullBackOff", "message": "Back-off pulling image"})])
    assert tell(seen.job, nowhere) == ("pending", "pending: image fraud-ray:nope cannot be pulled")
    unmounted = event("Pod", "head", "FailedMount", 'MountVolume.SetUp failed for volume "storage": timed out')
    creating = Surroundings(pods=[head({"reason": "ContainerCreating"})], events=[unmounted])
    assert tell(seen.job, creating)[1].startswith("pending: head waits for a volume: MountVolume.SetUp failed")
    refused = event("RayCluster", cluster, "FailedToCreateHeadPod", 'pods "h" is forbidden: exceeded quota: team')
    assert tell(seen.job, Surroundings(events=[refused]))[1] == "pending: exceeded quota: team"
    told_by_cluster = moment(submitted, "secret_missing", 2, "nosecret")
    unread = Surroundings(clusters=told_by_cluster.clusters)
    assert tell(told_by_cluster.job, unread)[1] == "pending: head: secret mlflow-client not found"

    ended = moment(submitted, "rejected", 21).job
    ended["status"]["message"] = "Job entrypoint command failed with exit code 4, logs:\nerror: fold lies outside\n"
    assert tell(ended, Surroundings()) == ("failed", "failed: fold lies outside (exit code 4)")
    ended["status"] |= {"reason": "DeadlineExceeded", "message": "The RayJob has passed the activeDeadlineSeconds."}
    assert tell(ended, Surroundings())[1] == (
        "failed: DeadlineExceeded: The RayJob has passed the activeDeadlineSeconds."
    )


def test_a_queue_says_what_a_run_waits_for(submitted: Body, api: Api) -> None:
    seen = moment(submitted, "queued_by_kueue", 4)
    api.play(seen)
    lacking = "insufficient unused quota for cpu in flavor default, 2 more needed"
    waits = {"type": "QuotaReserved", "status": "False", "message": f"{lacking}; couldn't assign flavors"}
    owner = {"kind": "RayJob", "name": seen.name, "uid": seen.name}
    api.objects[WORKLOADS, "ml-pipelines", "rayjob-q3-1"] = {
        "metadata": {"name": "rayjob-q3-1", "ownerReferences": [owner]},
        "status": {"conditions": [waits]},
    }
    (listed,) = told(fraud_ray("jobs", "list", *DEV, "--json"))
    assert (listed["state"], listed["says"]) == ("queued", f"queued in fraud: {lacking}")


def test_what_may_not_be_read_is_said(submitted: Body, api: Api) -> None:
    api.play(moment(submitted, "submitter_pending", 0, "at 100 s"))
    api.forbidden |= {("list", "pods"), ("list", "events")}
    listed = fraud_ray("jobs", "list", *DEV)
    assert "pending: submitter starts" in listed.stdout
    assert "reasons may lack: pods, events cannot be read" in listed.stdout
    api.forbidden.add(("list", "rayjobs"))
    refused = fraud_ray("jobs", "list", *DEV)
    assert refused.exit_code == 1
    assert "ask for a role that may do this in the namespace" in refused.stderr
    assert api.bodies(RAYJOBS)


# Logs.


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kuberay, "_POLL_S", 0.01)
    monkeypatch.setattr(kuberay, "_STOPPING_S", 0.05)


@pytest.mark.parametrize("scenario", SENTENCES)
def test_a_followed_job_says_why_it_waits_and_prints_what_it_can(
    scenario: str, submitted: Body, api: Api, quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The scenario goes one step on each time it is looked at; then the job is gone, as when somebody deletes it."""
    steps = list(range(len(SENTENCES[scenario])))
    name = moment(submitted, scenario, 0).name
    jobs = kuberay.KubeRayJobs(_rendered("dev"))

    def attempts(with_reasons: bool = False) -> list[kuberay.Attempt]:
        api.provide()
        if steps:
            seen = moment(submitted, scenario, steps.pop(0))
            api.play(seen)
            if seen.job["status"].get("jobStatus") == "RUNNING":
                pod = f"{name}-{seen.job['status']['rayJobInfo']['startTime'][14:16]}"
                status = {"phase": "Running"}
                labels, born = {"job-name": name}, seen.job["status"]["rayJobInfo"]["startTime"]
                metadata = {"name": pod, "labels": labels, "creationTimestamp": born}
                api.objects[PODS, NAMESPACE, pod] = {"metadata": metadata, "status": status}
                api[f"get /api/v1/namespaces/{NAMESPACE}/pods/{pod}/log"] << b"it runs\n"
        return read(with_reasons)

    read = jobs.attempts
    monkeypatch.setattr(jobs, "attempts", attempts)
    heard: list[str] = []
    printed = "".join(kuberay.follow(jobs, name, heard.append))
    expected = [told for told in SENTENCES[scenario] if told != "running"]
    expected = [told for told, before in zip(expected, ["", *expected], strict=False) if told != before]
    runs = {m["rayJobInfo"]["startTime"] for m in _statuses(scenario) if m.get("jobStatus") == "RUNNING"}
    ends = next((i for i, sentence in enumerate(expected) if _is_over(sentence)), None)
    gone = "stopped, or deleted: it is there no more"
    assert heard == ([*expected, gone] if ends is None else expected[: ends + 1])
    assert printed == "it runs\n" * len(runs)


def _is_over(sentence: str) -> bool:
    return re.split("[:; ]", sentence)[0] in ENDED


def _statuses(scenario: str) -> list[dict[str, Any]]:
    return [one["status"] for one in scenarios()[scenario]["rayjob"]]


def test_without_following_the_log_says_what_there_is(submitted: Body, api: Api) -> None:
    api.play(moment(submitted, "secret_missing", 2, "nosecret"))
    waiting = fraud_ray("jobs", "logs", "nosecret2", *DEV)
    assert waiting.exit_code == 1
    assert (
        "job nosecret2-1: pending: head: secret mlflow-client not found\nIt has printed nothing yet" in waiting.stderr
    )


# Stop.


@pytest.mark.parametrize(("scenario", "step", "capture"), ONE_A_SENTENCE)
def test_stop_ends_what_works_and_leaves_alone_what_is_over(
    scenario: str, step: int, capture: str | None, submitted: Body, api: Api, quick: None
) -> None:
    seen = moment(submitted, scenario, step, capture)
    api.play(seen)
    stopped = fraud_ray("jobs", "stop", seen.name, *DEV)
    assert stopped.exit_code == 0, stopped.stderr
    sentence = EVERY[scenario, step, capture]
    record = api.bodies(RAYJOBS)[seen.name]
    if _is_over(sentence):
        assert stopped.stdout == f"nothing to stop: job {seen.name} is over ({sentence}); its record stays\n"
        assert "suspend" not in record["spec"]
        return
    run = seen.name.rpartition("-")[0]
    assert stopped.stdout.splitlines() == [
        f"stopping {seen.name} (context test, namespace ml-pipelines)",
        f"stopped {seen.name}; run '{run}' goes on from here when it is submitted again",
    ]
    assert record["spec"]["suspend"]
    assert "kueue.x-k8s.io/queue-name" not in record["metadata"]["labels"], "no queue starts it"
    assert (api.bodies(CLUSTERS), api.bodies(PODS)) == ({}, {}), "collected with what it had made"


def test_a_job_that_cannot_be_stopped_says_why(submitted: Body, api: Api, quick: None) -> None:
    seen = moment(submitted, "stopped_by_fraud_ray_jobs_stop", 5)
    api.play(seen)
    del api.objects[SECRETS, NAMESPACE, "ray-auth"]
    known = fraud_ray("jobs", "stop", "ev", *DEV)
    assert known.exit_code == 1
    assert "the secret ray-auth is missing, without which KubeRay stops nothing" in known.stderr
    assert "kubectl -n ml-pipelines create secret generic ray-auth --from-literal=auth_token=" in known.stderr
    assert "deletionTimestamp" not in api.bodies(RAYJOBS)["ev-1"]["metadata"]
    api.forbidden.add(("get", "secrets"))
    unknown = fraud_ray("jobs", "stop", "ev", *DEV)
    assert unknown.exit_code == 1
    assert "KubeRay has not ended ev-1 within a minute, and may still" in unknown.stderr
    assert told(fraud_ray("jobs", "show", "ev", *DEV, "--json"))["says"] == STOPPING


# What submit looks for first.


def submit(*arguments: str) -> Result:
    return fraud_ray("submit", *DEV, "--name", "march", *arguments)


def test_submit_names_what_the_cluster_lacks_and_what_makes_it(api: Api) -> None:
    del api.objects[SECRETS, NAMESPACE, "mlflow-client"]
    del api.objects[ACCOUNTS, NAMESPACE, "ray-head"]
    lacking = submit()
    assert lacking.exit_code == 1
    assert "context test, namespace ml-pipelines lacks what the run needs; nothing was submitted:" in lacking.stderr
    platform = (
        "kubectl apply --server-side -k cluster/overlays/dev -l 'app.kubernetes.io/component notin (run, interactive)'"
    )
    assert f"\n  service account ray-head: {platform}" in lacking.stderr
    assert "\n  secret mlflow-client: kubectl -n ml-pipelines create secret generic mlflow-client" in lacking.stderr
    api.namespaces.clear()
    assert f"\n  namespace ml-pipelines, service account ray-head: {platform}" in submit().stderr
    api.served.clear()
    assert "\n  definition rayjobs.ray.io: helm install kuberay-operator" in submit().stderr
    assert api.created == []


def test_submit_says_what_it_could_not_look_for(api: Api) -> None:
    api.forbidden |= {("get", "secrets"), ("get", "namespaces")}
    made = submit()
    assert made.exit_code == 0, made.stderr
    assert "run 'march' submitted as job march-1 (context test, namespace ml-pipelines)" in made.stdout
    assert (
        "could not be looked for (no right to read them): namespace ml-pipelines, secret ray-auth, secret"
        in made.stdout
    )


def test_another_context_is_taken_and_told(api: Api) -> None:
    file = Path(os.environ["KUBECONFIG"])
    kubeconfig = yaml.safe_load(file.read_text())
    (usual,) = kubeconfig["contexts"]
    file.write_text(yaml.safe_dump({**kubeconfig, "contexts": [usual, {**usual, "name": "there"}]}))
    try:
        made = submit("--context", "there")
        assert "(context there, namespace ml-pipelines)" in made.stdout
        assert f"jobs logs -f march-1 {' '.join(DEV)} --context there" in made.stdout
        assert "context there, namespace" in fraud_ray("jobs", "list", *DEV, "--context", "there").stdout
        unknown = submit("--context", "nowhere")
        assert unknown.exit_code == 1
        assert "the kubeconfig has no context 'nowhere'; there are: test, there" in unknown.stderr
    finally:
        file.write_text(yaml.safe_dump(kubeconfig))


def test_after_success_there_is_nothing_to_stop(submitted: Body, api: Api) -> None:
    assert "jobs stop march-1" in submit().stdout
    api.report("march-1", {"jobDeploymentStatus": "Complete", "jobStatus": "SUCCEEDED"})
    done = submit().stdout
    assert "run 'march' is succeeded as job march-1" in done
    assert "jobs stop" not in done


# Logs that the storage keeps.


def test_the_log_of_an_earlier_attempt_is_read_from_the_storage_where_it_is_seen(
    submitted: Body, api: Api, tmp_path: Path
) -> None:
    seen = moment(submitted, "rejected", 21)
    api.play(seen)
    gone = fraud_ray("jobs", "logs", "rej2", *DEV)
    assert gone.exit_code == 1
    assert "job rej2-1: rejected by the gate\nIts pods are gone; its run's storage keeps the log: " in gone.stderr
    assert f"jobs logs rej2-1 --attempt 1 {' '.join(DEV)}\n" in gone.stderr

    def kept_at(root: Path) -> None:
        annotations = seen.job["metadata"]["annotations"]
        settings = yaml.safe_load(annotations["fraud-ray/settings"])
        annotations["fraud-ray/settings"] = yaml.safe_dump({**settings, "storage": {"root": str(root)}})
        api.play(seen)

    kept_at(tmp_path / "volume")
    elsewhere = fraud_ray("jobs", "logs", "rej2", "--attempt", "1", *DEV)
    assert elsewhere.exit_code == 2
    assert f"this machine does not see {tmp_path / 'volume'}, where run 'rej2' keeps its logs" in elsewhere.stderr
    assert f"runs logs rej2 --attempt 1 {' '.join(DEV)} --to kuberay" in elsewhere.stderr
    kept_at(tmp_path)
    storage = Storage.at(str(tmp_path))
    for text in (b"first: fold lies outside\n", b"second\n"):
        storage.put(new_log(storage, "rej2"), text)
    assert fraud_ray("jobs", "logs", "rej2", "--attempt", "1", *DEV).stdout == "first: fold lies outside\n"
