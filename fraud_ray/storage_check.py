"""Whether every node of the connected Ray sees the same storage, asked of a worker on each."""

from __future__ import annotations

import uuid
from typing import Any

from fraud_ray.errors import FraudRayError, ServerError, SettingsError
from fraud_ray.storage import Storage

_PATIENCE_S = 120.0


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
        blind = [node for node, answer in answers.items() if not _answer(answer, nodes[node])]
        unseen = [node for node in nodes if node not in blind and storage.get(f"{folder}/{node}") is None]
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


def _answer(task: Any, node: str) -> bool:
    import ray

    try:
        return bool(ray.get(task, timeout=_PATIENCE_S))
    except ray.exceptions.RayError as fault:
        cause = getattr(fault, "cause", None)
        if isinstance(cause, FraudRayError):
            raise ServerError(f"on node {node}: {cause}") from fault
        raise ServerError(f"node {node} cannot run a worker: {str(fault).strip().splitlines()[0]}") from fault
