"""The Ray that a run works on: connected to or started here, checked against what the settings ask for, and ended."""

from __future__ import annotations

import itertools
import logging
import os
import re
import secrets
import signal
import socket
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from fraud_ray.errors import FraudRayError, ServerError, SettingsError, as_raised
from fraud_ray.progress import Progress, Quiet, Stage, counted
from fraud_ray.settings import ClusterSettings, Settings
from fraud_ray.storage import Storage

_PROBE_S = 5.0
_POLL_S = 2.0
_PATIENCE_S = 120.0
FEW_ROWS = 200_000  # fewer are worked through in a process before a Ray has started


@contextmanager
def join_or_start(cluster: ClusterSettings, progress: Progress | None = None) -> Iterator[None]:
    """Ray for as long as the context lasts; progress: told of it before it takes its seconds.

    The one that this process has already; else the cluster at cluster.address or RAY_ADDRESS (a Ray job has it set);
    else one started here, and ended here. Raises ServerError where a cluster does not answer or refuses the token,
    SettingsError for what is no address of one.
    """
    if is_connected():
        yield
        return
    named, address = _address(cluster)
    (progress or Quiet()).note(f"joining Ray at {address}" if address else "starting Ray")
    import ray

    with _own_signal_handler():
        _join(named, address) if address else _start(cluster)
    try:
        if address and not cluster.autoscaling:
            await_worker(progress or Quiet())
        yield
    finally:
        ray.shutdown()


@contextmanager
def join_unless_few(cluster: ClusterSettings, rows: int, progress: Progress | None = None) -> Iterator[None]:
    """As `join_or_start`, but none is started for fewer than FEW_ROWS, which `data.tasks` then maps in this process."""
    if rows < FEW_ROWS and not _address(cluster)[1]:
        yield
    else:
        with join_or_start(cluster, progress):
            yield


def is_connected() -> bool:
    """Whether this process has a Ray; one that never imported it, which takes a second, has none."""
    return "ray" in sys.modules and bool(sys.modules["ray"].is_initialized())


def _address(cluster: ClusterSettings) -> tuple[str, str]:
    """The setting or variable that gives a Ray's address, and the address; empty where a Ray is started here."""
    named, address = "cluster.address", cluster.address
    if not address:
        named, address = "RAY_ADDRESS", os.environ.get("RAY_ADDRESS", "")
    return named, "" if address == "local" else address


def here() -> Any:
    """Has a Ray task or actor run on this process's node: any other may be lost while this one goes on."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    return NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)


@contextmanager
def shelved(value: Any) -> Iterator[Any]:
    """An actor whose method `take` gives the value, for as long as the context lasts.

    For what refers to the object store: Tune keeps what it is given, and so all that it refers to, until the process
    ends.
    """
    import ray

    shelf: Any = ray.remote(num_cpus=0)(_Shelf).options(scheduling_strategy=here()).remote(value)
    try:
        yield shelf
    finally:
        ray.kill(shelf)


class _Shelf:
    def __init__(self, value: Any) -> None:
        self.value = value

    def take(self) -> Any:
        return self.value


def answer(task: Any, timeout_s: float | None = None) -> Any:
    """A Ray task's result; its FraudRayError as it was raised there."""
    import ray

    try:
        return ray.get(task, timeout=timeout_s)
    except ray.exceptions.RayTaskError as fault:
        raise as_raised(fault) from None


def refuse_relative_folders(settings: Settings) -> None:
    """Raises SettingsError where a job would store, or simulate, in its own working folder, which ends with it."""
    refuse_relative("data.path", settings.data.path)
    refuse_relative("storage.root", settings.storage.root)
    refuse_relative("registry.uri", settings.registry.uri)


def refuse_relative(name: str, place: str | None) -> None:
    """As `refuse_relative_folders`, for one place. name: of the setting or option that gives it."""
    path = local_path(place) if place else None
    if path and not path.is_absolute():
        option = name if name.startswith("--") else f"--set {name}"
        raise SettingsError(
            f"{name} is {place}, relative to the working folder of this job, which is temporary and each node's own: "
            f"everything there would be lost with it. Give an absolute path on a shared volume, or a URI: {option}=…"
        )


def local_path(uri: str) -> Path | None:
    """The path of a folder or an sqlite database; None for what lies on a server or in a bucket."""
    database = re.fullmatch(r"sqlite(?:\+\w+)?:///(.*)", uri)
    if database:
        return Path(unquote(database[1].partition("?")[0]))
    return None if "://" in uri or uri.startswith("databricks") else Path(uri).expanduser()


def check_storage(storage: Storage) -> None:
    """Has a worker on every node read what this process wrote, and reads what each of them wrote.

    Raises SettingsError that names the nodes where the root is not shared, ServerError for one where it cannot be used
    or that does not answer.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    folder = f"checks/{uuid.uuid4().hex}"
    nodes = {node["NodeID"]: node["NodeManagerHostname"] for node in ray.nodes() if node["Alive"]}
    storage.put(f"{folder}/driver", folder.encode())
    try:
        ask = ray.remote(num_cpus=0)(_reads_and_writes)  # a head without CPUs must see it too
        answers = {
            node: ask.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)).remote(
                storage, folder, node
            )
            for node in nodes
        }
        found = {node: _answer_of(task, node, nodes[node]) for node, task in answers.items()}
        blind = [node for node, sees in found.items() if sees is False]
        unseen = [node for node, sees in found.items() if sees and storage.get(f"{folder}/{node}") is None]
        if blind or unseen:
            named = ", ".join(f"{nodes[node]} ({node[:8]})" for node in [*blind, *unseen])
            raise SettingsError(
                f"storage.root {storage.root} is not shared: a worker on node {named} sees another folder there "
                "than the driver. Mount one volume at that path on every node, or use a bucket (s3://…)"
            )
    finally:
        storage.delete(storage.keys(folder))


def _reads_and_writes(storage: Storage, folder: str, node: str) -> bool:
    if storage.get(f"{folder}/driver") is None:
        return False
    storage.put(f"{folder}/{node}", b"seen")
    return True


def _answer_of(task: Any, node: str, name: str) -> bool | None:
    """None of a node that Ray held for alive, and has found to be lost meanwhile."""
    import ray

    try:
        return bool(answer(task, _PATIENCE_S))
    except FraudRayError as fault:
        raise ServerError(f"on node {name}: {fault}") from fault
    except ray.exceptions.RayError as fault:
        if not any(known["NodeID"] == node and known["Alive"] for known in ray.nodes()):
            return None
        raise ServerError(f"node {name} cannot run a worker: {str(fault).strip().splitlines()[0]}") from fault


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


def await_worker(progress: Progress) -> None:
    """Waits for a node with a CPU, which a head by itself lacks: Ray calls tasks infeasible that come before it.

    Where nodes scale, tasks are what brings them.
    """
    deadline = time.monotonic() + _PATIENCE_S
    for waited in itertools.count():
        if any(node.get("CPU") for node in _nodes()) or time.monotonic() > deadline:
            return
        if not waited:
            progress.note(f"no worker is there yet: waiting for one, {_PATIENCE_S:.0f} s at most")
        time.sleep(_POLL_S)


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
    needs = [_need(settings, for_search=False)]
    if settings.search.resources_per_trial:
        needs.append(_need(settings, for_search=True))
    return [need for need in needs if sum(map(need.room_on, nodes)) < need.ranks]


def _need(settings: Settings, for_search: bool) -> _Need:
    is_own = for_search and settings.search.resources_per_trial
    key = "search.resources_per_trial" if is_own else "train.resources_per_worker"
    return _Need(key, settings.train.workers, settings.rank_resources(for_search))


class Room:
    """The room that the ranks of a trial, or of a fit, have while they train: they may lose it with a node.

    What remains is trained on where it holds them all; else Ray waits for a node to come, for ever and without a word.
    """

    def __init__(self, settings: Settings, for_search: bool) -> None:
        self.need, self.wait_s = _need(settings, for_search), settings.cluster.wait_s
        self.looked = time.monotonic()
        self.lacks_since: float | None = None

    def look(self, say: Callable[[str], object]) -> None:
        """Says what is waited for, every few seconds while there is no room.

        Raises ServerError when there has been none for cluster.wait_s.
        """
        now = time.monotonic()
        if now - self.looked < _POLL_S:
            return
        self.looked, nodes = now, _nodes()
        there = sum(map(self.need.room_on, nodes))
        if there >= self.need.ranks:
            self.lacks_since = None
            return
        self.lacks_since = self.lacks_since or now
        lacking = f"room for {self.need}: a node is gone, and {counted(len(nodes), 'node')} with room for {there} left"
        if now - self.lacks_since >= self.wait_s:
            raise ServerError(f"no {lacking}. No other came within cluster.wait_s ({self.wait_s:g} s)")
        say(f"waiting for {lacking}")


def _nodes() -> list[Mapping[str, float]]:
    import ray

    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def _in_words(resources: Mapping[str, float]) -> str:
    def amount(name: str, value: float) -> str:
        return f"{value / 2**30:.1f} GiB memory" if name == "memory" else f"{value:g} {name}"

    return ", ".join(amount(name, value) for name, value in resources.items())


def _start(cluster: ClusterSettings) -> None:
    import ray

    keep_token_to_owner()
    try:
        ray.init(
            address="local",
            num_cpus=cluster.cpus,
            include_dashboard=cluster.dashboard,
            log_to_driver=False,
            logging_level=logging.ERROR,
        )
    except OSError as fault:
        raise _no_folder(fault) from fault


def keep_token_to_owner() -> None:
    """Makes the file of Ray's token the owner's alone, which Ray itself makes so that all may read it.

    The file is the documented one, ~/.ray/auth_token, unless the environment gives the token or another file.
    """
    if any(os.environ.get(name) for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")):
        return
    file = Path.home() / ".ray/auth_token"
    try:
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not file.exists():
            handle, made = tempfile.mkstemp(dir=file.parent)  # 0600
            with os.fdopen(handle, "w") as new:
                new.write(secrets.token_hex(32))
            with suppress(FileExistsError):  # another process was faster
                os.link(made, file)
            Path(made).unlink()
        file.chmod(0o600)
    except OSError:  # a home that cannot be written, of which Ray says what it needs
        return


def _no_folder(fault: OSError) -> SettingsError:
    """Why Ray has no use for the folder in which it keeps its sockets and logs, and which variable names another."""
    variable = next((name for name in ("RAY_TMPDIR", "TMPDIR") if os.environ.get(name)), "RAY_TMPDIR")
    folder = os.environ.get(variable, "/tmp")
    told = re.search(r"cannot exceed (\d+) bytes: (.+)", str(fault))
    if not told:
        return SettingsError(f"Ray cannot start in {folder}: {fault}; name a folder for it with {variable}")
    held = len(os.fsencode(folder))
    room = int(told[1]) - (len(os.fsencode(told[2])) - held)
    return SettingsError(
        f"{variable} is {folder}, whose {held} bytes are too many: Ray keeps sockets below it, whose paths end at "
        f"{told[1]} bytes. Name a folder of at most {room} bytes with {variable}, such as /tmp"
    )


def _join(named: str, address: str) -> None:
    """named: the setting or variable that gives the address."""
    import ray

    _probe(named, address)
    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, RuntimeError, ValueError, ray.exceptions.RayError) as fault:
        raise ServerError(
            f"the Ray cluster at {address} ({named}) cannot be joined: {str(fault).partition('. ')[0]}.\n"
            "If it asks for a token, set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN to the cluster's token (on the head: "
            "ray get-auth-token), else RAY_AUTH_MODE=disabled; and check that Ray and Python have the same versions "
            "there and here"
        ) from fault


def _probe(named: str, address: str) -> None:
    """Raises ServerError if nothing listens there, and SettingsError if it is no Ray: Ray itself takes minutes."""
    place = re.fullmatch(r"(?:(\w+)://)?(\[.+\]|[^/\[\]]+):(\d+)/?", address)
    if address == "auto" or ("://" in address and not place):  # which Ray looks up
        return
    scheme, host, port = place.groups() if place else ("", "HOST", "")
    wanted = (
        f"{named} should be host:port of the head's GCS, {host}:6379 unless changed; without it, a Ray is started here"
    )
    if not place:
        raise SettingsError(f"{named} is {address}, which is no address: {wanted}")
    is_web = scheme in {"http", "https"}
    try:
        if not is_web:
            with socket.create_connection((host.strip("[]"), int(port)), timeout=_PROBE_S) as connection:
                is_web = _answers_as_a_web_server(connection)
    except (OSError, OverflowError) as fault:
        raise ServerError(f"no Ray cluster answers at {address} ({fault}): {wanted}") from fault
    if is_web:
        raise SettingsError(
            f"{named} is {address}, the address of a web server, as of Ray's dashboard at port 8265: {wanted}"
        )


def _answers_as_a_web_server(connection: socket.socket) -> bool:
    try:
        connection.sendall(b"HEAD / HTTP/1.0\r\n\r\n")
        return connection.recv(5) == b"HTTP/"
    except OSError:
        return False


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
