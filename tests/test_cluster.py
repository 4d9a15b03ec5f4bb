"""Ray: connected to or refused with a reason, and large enough for what the settings ask for."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from fraud_ray import cluster
from fraud_ray.cluster import (
    Room,
    answer,
    check_resources,
    join_or_start,
    refuse_relative,
    refuse_relative_folders,
    shortage,
)
from fraud_ray.errors import FraudRayError, ServerError, SettingsError
from fraud_ray.progress import Quiet
from fraud_ray.settings import Settings, parse_settings

GIB = 2**30
LAPTOP = [{"CPU": 2.0, "memory": 8.0 * GIB}]


def settings(**sections: Any) -> Settings:
    columns = {"is_fraud": {"kind": "label"}, "amount": {"kind": "amount"}, "at": {"kind": "timestamp"}}
    return parse_settings({"data": {"path": "/data", "columns": columns}, **sections}, "test")


def test_what_fits_has_no_shortage() -> None:
    assert shortage(settings(train={"workers": 2}), LAPTOP) is None
    assert shortage(settings(train={"workers": 4, "resources_per_worker": {"CPU": 0.5}}), LAPTOP) is None
    share = {"CPU": 0.5, "GPU": 0.25}
    packed = settings(train={"use_gpu": True, "resources_per_worker": share})
    assert shortage(packed, [{"CPU": 0.5, "GPU": 0.25}]) is None


def test_too_many_workers_are_told_with_what_there_is() -> None:
    message = shortage(settings(train={"workers": 64}), LAPTOP)
    assert message
    assert "64 ranks (train.workers) of 1 CPU (train.resources_per_worker) do not fit: there is room for 2" in message
    assert "The cluster has 2 CPU on 1 node" in message
    assert "cluster.autoscaling" in message


def test_a_gpu_or_memory_that_is_not_there_is_named() -> None:
    gpu = shortage(settings(train={"use_gpu": True}), LAPTOP)
    assert gpu
    assert "0 GPU" in gpu
    assert "unset train.use_gpu" in gpu
    memory = shortage(settings(train={"resources_per_worker": {"CPU": 1, "memory": "32GiB"}}), LAPTOP)
    assert memory
    assert "32.0 GiB memory" in memory
    assert "8.0 GiB memory" in memory


def test_a_rank_must_fit_on_one_node() -> None:
    wide = settings(train={"resources_per_worker": {"CPU": 3}})
    assert shortage(wide, LAPTOP * 4)
    assert shortage(wide, [{"CPU": 4.0}]) is None


def test_resources_of_trials_are_checked_too() -> None:
    message = shortage(settings(search={"resources_per_trial": {"CPU": 8}}), LAPTOP)
    assert message
    assert "8 CPU (search.resources_per_trial)" in message


@pytest.mark.faults("16", "more ranks are asked for than fit", "refused at once, with what there is")
@pytest.mark.quick
def test_an_impossible_request_is_refused_at_once(ray_session: None) -> None:
    with join_or_start(settings().cluster):
        check_resources(settings(train={"workers": 2}), Quiet())
        with pytest.raises(SettingsError, match="do not fit"):
            check_resources(settings(train={"workers": 64}), Quiet())


def test_with_autoscaling_nodes_are_waited_for_up_to_the_limit(ray_session: None) -> None:
    told: list[str] = []

    class Told(Quiet):
        def update(self, done: float, total: float, text: str = "") -> None:
            told.append(text)

    waiting = settings(train={"workers": 64}, cluster={"autoscaling": True, "wait_s": 0.5})
    with (
        join_or_start(waiting.cluster),
        pytest.raises(SettingsError, match=r"No more nodes came within cluster\.wait_s"),
    ):
        check_resources(waiting, Told())
    assert "waiting for room for 64 ranks" in told[0]


def test_room_that_is_lost_is_waited_for_up_to_the_limit_and_said(
    ray_session: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster, "_POLL_S", 0.1)
    told: list[str] = []

    def look_at(room: Room) -> None:
        for _ in range(3):
            time.sleep(0.15)
            room.look(told.append)

    look_at(Room(settings(train={"workers": 2}, cluster={"wait_s": 0.1}), for_search=True))
    assert told == []
    with pytest.raises(ServerError, match=r"(?s)no room for 64 ranks .*room for 2 left.*cluster\.wait_s \(0\.2 s\)"):
        look_at(Room(settings(train={"workers": 64}, cluster={"wait_s": 0.2}), for_search=False))
    assert told[0].startswith(
        "waiting for room for 64 ranks (train.workers) of 1 CPU (train.resources_per_worker): a node"
    )


def test_a_head_without_workers_is_given_time_to_get_one(monkeypatch: pytest.MonkeyPatch) -> None:
    from fraud_ray import cluster

    told: list[str] = []

    class Told(Quiet):
        def note(self, text: str) -> None:
            told.append(text)

    seen = iter([[{"memory": 1.0}], [{"memory": 1.0}], [{"memory": 1.0}, {"CPU": 2.0}]])
    monkeypatch.setattr(cluster, "_nodes", lambda: next(seen))
    monkeypatch.setattr(cluster, "_POLL_S", 0.01)
    cluster.await_worker(Told())
    assert told == ["no worker is there yet: waiting for one, 120 s at most"]
    assert list(seen) == []


def test_a_ray_that_runs_already_is_used_and_left_running(ray_session: None) -> None:
    import ray

    handler = signal.getsignal(signal.SIGTERM)
    with join_or_start(settings().cluster):
        assert ray.is_initialized()
    assert ray.is_initialized()
    assert signal.getsignal(signal.SIGTERM) is handler


STARTED = """
from fraud_ray.cluster import answer, join_or_start
from fraud_ray.data.tasks import map_tasks
from fraud_ray.settings import ClusterSettings
with join_or_start(ClusterSettings(cpus=1, dashboard={dashboard})):
    import ray
    from ray.util import state
    from ray.util.state.exception import ServerUnavailable
    assert answer(ray.remote(lambda: 3).remote()) == 3
    assert sorted(map_tasks(abs, [-1, 2], [1, 1])) == [(0, 1), (1, 2)]
    try:
        print("dashboard", len(state.list_nodes(ray.get_runtime_context().gcs_address)))
    except (ConnectionError, ServerUnavailable):  # nothing listens, or something that serves no state
        print("no dashboard")
    ask = ray.remote(lambda: __import__("os").environ.get("RAY_AUTH_MODE"))
    print("mode", answer(ask.remote()))
"""


@pytest.mark.parametrize(("dashboard", "told"), [(False, "no dashboard"), (True, "dashboard 1")])
def test_a_ray_started_here_asks_for_a_token_and_serves_its_dashboard_only_when_asked(
    dashboard: bool, told: str
) -> None:
    environment = {name: value for name, value in os.environ.items() if name not in ("RAY_ADDRESS", "RAY_AUTH_MODE")}
    ran = subprocess.run(
        [sys.executable, "-c", STARTED.format(dashboard=dashboard)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert ran.returncode == 0, ran.stderr
    assert not ran.stderr
    assert [ran.stdout.splitlines()[0], ran.stdout.splitlines()[-1]] == [told, "mode token"]


def test_a_task_fails_as_it_failed_there(ray_session: None) -> None:
    import ray

    def refuse() -> None:
        raise SettingsError("not so")

    with pytest.raises(SettingsError, match=r"^not so$"):
        answer(ray.remote(refuse).remote())


NO_RAY = {
    "a dashboard by its URI": (
        "http://10.1.2.3:8265",
        "a web server, .* dashboard at port 8265: .* 10.1.2.3:6379 unless",
    ),
    "no address": ("10.1.2.3", "should be host:port of the head's GCS"),
    "nobody, by IPv6": ("[::1]:9", "no Ray cluster answers .* refused.*: RAY_ADDRESS should .*, \\[::1\\]:6379 unless"),
}


@pytest.mark.parametrize(("address", "told"), NO_RAY.values(), ids=list(NO_RAY))
def test_what_is_no_ray_is_told_by_the_variable_that_names_it(
    address: str, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", address)
    assert_refused(told)


def test_a_dashboard_by_its_port_is_told_from_a_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    with HTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as web:
        threading.Thread(target=web.handle_request).start()
        monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{web.server_port}")
        assert_refused(r"RAY_ADDRESS is 127.0.0.1:\d+, the address of a web server")


def assert_refused(told: str) -> None:
    import ray

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ray, "is_initialized", lambda: False)
        with pytest.raises(FraudRayError, match=told), join_or_start(settings().cluster):
            pass


def test_a_folder_too_long_for_sockets_is_told_with_the_room_there_is(tmp_path: Path) -> None:
    folder = tmp_path / ("long" * 20)
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    ran = subprocess.run(
        [sys.executable, "-c", STARTED.format(dashboard=False)],
        env={**environment, "RAY_TMPDIR": str(folder)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    told = rf"RAY_TMPDIR is {folder}, whose {len(str(folder))} bytes .* end at 107 bytes.* at most (\d\d) bytes"
    found = re.search(told, ran.stderr)
    assert found, ran.stderr
    assert 30 < int(found[1]) < 60


INSIDE_A_JOB = {
    "relative root": ({"storage": {"root": ".fraud_ray"}}, "storage.root"),
    "relative sqlite": ({"storage": {"root": "/shared"}, "registry": {"uri": "sqlite:///mlflow.db"}}, "registry.uri"),
    "relative folder": ({"storage": {"root": "/shared"}, "registry": {"uri": "mlruns"}}, "registry.uri"),
}


@pytest.mark.parametrize(("sections", "key"), INSIDE_A_JOB.values(), ids=list(INSIDE_A_JOB))
def test_relative_folders_of_a_job_are_refused(sections: dict[str, Any], key: str) -> None:
    with pytest.raises(SettingsError, match=f"^{key} is .* temporary"):
        refuse_relative_folders(settings(**sections))


@pytest.mark.parametrize("uri", [None, "sqlite:////shared/mlflow.db", "http://mlflow:5000", "databricks"])
def test_absolute_folders_and_servers_of_a_job_are_fine(uri: str | None) -> None:
    refuse_relative_folders(settings(storage={"root": "/shared"}, registry={"uri": uri}))
    refuse_relative("--output", "s3://bank/scored")
