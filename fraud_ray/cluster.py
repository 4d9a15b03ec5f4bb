"""The Ray that a run works on: connected to or started here, checked against what the settings ask for, and ended."""

from __future__ import annotations

import logging
import os
import re
import signal
import socket
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fraud_ray.errors import ServerError, SettingsError
from fraud_ray.progress import Progress, Stage, counted
from fraud_ray.settings import ClusterSettings, Settings

# Read by Ray when it is imported or started, so set before; a value in the environment goes first.
_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",  # reports wait for the controller's poll, 2 s apart by default
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # Tune would end an interrupted search as if it were whole
    "RAY_AIR_NEW_OUTPUT": "0",  # of Tune's two reporters only the older one keeps quiet at verbosity 0
}
_LOCAL_ENVIRONMENT = {
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",  # nobody takes this machine away
}
_REMOTE_ENVIRONMENT = {
    "RAY_NUM_REDIS_GET_RETRIES": "3",  # a refused token is tried again this often, 1 s apart, 20 by default
}
_PROBE_S = 5.0
_POLL_S = 2.0

_is_bare = False


@contextmanager
def connect(settings: Settings) -> Iterator[None]:
    """`join_or_start` for a run; also raises SettingsError for folders that would end with a Ray job."""
    refuse_temporary_folders(settings)
    with join_or_start(settings.cluster):
        yield


@contextmanager
def join_or_start(cluster: ClusterSettings) -> Iterator[None]:
    """Ray for as long as the context lasts.

    The one that this process has already; else the cluster at cluster.address or RAY_ADDRESS (a Ray job has it set);
    else one started here, and ended here. Raises ServerError where a cluster does not answer or refuses the token.
    """
    address = cluster.address or os.environ.get("RAY_ADDRESS")
    for name, value in {**_ENVIRONMENT, **(_REMOTE_ENVIRONMENT if address else _LOCAL_ENVIRONMENT)}.items():
        os.environ.setdefault(name, value)
    import ray

    if ray.is_initialized():
        yield
        return
    global _is_bare
    with _own_signal_handler():
        _join(address) if address else _start(cluster)
    _is_bare = not address and not cluster.dashboard
    try:
        yield
    finally:
        _is_bare = False
        ray.shutdown()


def is_bare() -> bool:
    """Whether `join_or_start` started the connected Ray, without a dashboard: one node, at which nobody looks."""
    return _is_bare


def inside_ray_job() -> bool:
    """Whether this process was started by Ray's job manager."""
    return "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ


def refuse_temporary_folders(settings: Settings) -> None:
    """`refuse_relative_folders` inside a Ray job; elsewhere nothing is wrong with them."""
    if inside_ray_job():
        refuse_relative_folders(settings)


def refuse_relative_folders(settings: Settings) -> None:
    """Raises SettingsError where a Ray job would store in its own working folder, which ends with it."""
    for key, value in (("storage.root", settings.storage.root), ("registry.uri", settings.registry.uri)):
        path = _local_path(value) if value else None
        if path and not path.is_absolute():
            raise SettingsError(
                f"{key} is {value}, relative to the working folder of this Ray job, which is temporary: everything "
                f"there would be lost with the job. Give an absolute path on a shared volume, or a URI: --set {key}=…"
            )


def _local_path(uri: str) -> Path | None:
    """The path of a folder or an sqlite database; None for what lies on a server or in a bucket."""
    database = re.fullmatch(r"sqlite(?:\+\w+)?:///(.*)", uri)
    if database:
        return Path(database[1])
    return None if "://" in uri or uri.startswith("databricks") else Path(uri).expanduser()


def check_resources(settings: Settings, progress: Progress) -> None:
    """Raises SettingsError if the connected cluster has no room for the ranks of a fit or of one trial.

    With cluster.autoscaling it first asks for nodes and waits for them up to cluster.wait_s, a stage of its own.
    """
    if settings.cluster.autoscaling and (lacking := _lacking(settings, _nodes())):
        with progress.stage("nodes") as stage:
            _wait_for_nodes(settings, lacking, stage)
            _refuse_shortage(settings)
    else:
        _refuse_shortage(settings)


def _wait_for_nodes(settings: Settings, lacking: list[_Need], stage: Stage) -> None:
    import ray.autoscaler.sdk

    began, wait_s = time.monotonic(), settings.cluster.wait_s
    ray.autoscaler.sdk.request_resources(bundles=[need.rank for need in lacking for _ in range(need.ranks)])
    try:
        while lacking and (waited := time.monotonic() - began) < wait_s:
            stage.update(waited, wait_s, f"waiting for room for {lacking[0]}")
            time.sleep(_POLL_S)
            lacking = _lacking(settings, _nodes())
    finally:  # a request stays until it is replaced, and would keep the nodes up for ever
        ray.autoscaler.sdk.request_resources(bundles=[])


def _refuse_shortage(settings: Settings) -> None:
    lacking = shortage(settings, _nodes())
    if lacking:
        raise SettingsError(lacking)


@dataclass(frozen=True)
class _Need:
    """Equal ranks that must run at the same time, each whole on one node."""

    key: str
    ranks: int
    rank: dict[str, float]

    def room_on(self, node: Mapping[str, float]) -> int:
        return min(int(node.get(name, 0.0) / amount + 1e-9) for name, amount in self.rank.items())

    def __str__(self) -> str:
        ranks = "1 rank" if self.ranks == 1 else f"{self.ranks} ranks (train.workers)"
        return f"{ranks} of {_in_words(self.rank)} ({self.key})"


def shortage(settings: Settings, nodes: Sequence[Mapping[str, float]]) -> str | None:
    """What the settings ask for beyond what the nodes have, for a person; None where all fits.

    nodes: total resources of each (CPU, GPU, memory in bytes).
    """
    lacking = _lacking(settings, nodes)
    if not lacking:
        return None
    names = dict.fromkeys(name for need in lacking for name in ("CPU", *need.rank))
    total = {name: sum(node.get(name, 0.0) for node in nodes) for name in names}
    lines = [f"{need} do not fit: there is room for {sum(map(need.room_on, nodes))}" for need in lacking]
    waiting = (
        f"No more nodes came within cluster.wait_s ({settings.cluster.wait_s:g} s)."
        if settings.cluster.autoscaling
        else "If nodes may still come, set cluster.autoscaling."
    )
    return "\n".join(
        [
            *lines,
            f"The cluster has {_in_words(total)} on {counted(len(nodes), 'node')}. Lower train.workers or what a rank "
            "reserves"
            f"{', or unset train.use_gpu' if settings.train.use_gpu and not total.get('GPU') else ''}. {waiting}",
        ]
    )


def _lacking(settings: Settings, nodes: Sequence[Mapping[str, float]]) -> list[_Need]:
    needs = [_Need("train.resources_per_worker", settings.train.workers, settings.rank_resources(for_search=False))]
    if settings.search.resources_per_trial:
        needs.append(
            _Need("search.resources_per_trial", settings.train.workers, settings.rank_resources(for_search=True))
        )
    return [need for need in needs if sum(map(need.room_on, nodes)) < need.ranks]


def _nodes() -> list[Mapping[str, float]]:
    import ray

    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def _in_words(resources: Mapping[str, float]) -> str:
    def amount(name: str, value: float) -> str:
        return f"{value / 2**30:.1f} GiB memory" if name == "memory" else f"{value:g} {name}"

    return ", ".join(amount(name, value) for name, value in resources.items())


def _start(cluster: ClusterSettings) -> None:
    import ray

    with nullcontext() if cluster.dashboard else _without_needless_processes():
        ray.init(
            address="local",
            num_cpus=cluster.cpus,
            include_dashboard=cluster.dashboard,
            log_to_driver=False,
            logging_level=logging.ERROR,
        )


@contextmanager
def _without_needless_processes() -> Iterator[None]:
    """Has Ray start without what serves its dashboard, adds nodes, and forwards the workers' output.

    They are half of the time that Ray takes to start, and wake while the ranks compute. Only Ray's own class of a node
    can leave them out.
    """
    from ray._private import node

    class Node(node.Node):
        def start_api_server(self, **_: Any) -> None:
            self._webui_url = ""

        def start_monitor(self) -> None: ...

        def start_log_monitor(self) -> None: ...

    whole = node.Node
    node.Node = Node  # type: ignore[misc]
    try:
        yield
    finally:
        node.Node = whole  # type: ignore[misc]


def _join(address: str) -> None:
    import ray

    _probe(address)
    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, RuntimeError, ValueError, ray.exceptions.RayError) as fault:
        raise ServerError(
            f"the Ray cluster at {address} cannot be joined: {str(fault).partition('. ')[0]}.\n"
            "If it asks for a token, set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN to the cluster's token (on the head: "
            "ray get-auth-token); if not, check that Ray and Python have the same versions there and here"
        ) from fault


def _probe(address: str) -> None:
    """Raises ServerError if nothing listens at host:port, which Ray itself finds only after minutes."""
    host, _, port = address.rpartition("://")[2].rpartition(":")
    if not host or not port.isdecimal():  # such as 'auto', which Ray looks up on this machine
        return
    try:
        socket.create_connection((host, int(port)), timeout=_PROBE_S).close()
    except OSError as fault:
        raise ServerError(
            f"no Ray cluster answers at {address} ({fault}). Check cluster.address and RAY_ADDRESS (host:port of the "
            "head's GCS, 6379 unless changed) and the network; without both, a Ray is started here"
        ) from fault


@contextmanager
def _own_signal_handler() -> Iterator[None]:
    """Keeps this process's answer to SIGTERM, which ray.init replaces."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handler = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, handler)
