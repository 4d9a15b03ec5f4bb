"""A Kubernetes API over HTTP on this machine: kmock's, which keeps objects, with validation, times and selectors."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

import attrs
import kmock

from tests.kube.render import Document
from tests.kube.schema import Definitions
from tests.kube.transitions import Moment

RAYJOBS, CLUSTERS = kmock.resource("ray.io/v1/rayjobs"), kmock.resource("ray.io/v1/rayclusters")
CONFIG_MAPS, PODS, EVENTS = (kmock.resource(f"v1/{plural}") for plural in ("configmaps", "pods", "events"))
ACCOUNTS, SECRETS, CLAIMS = (
    kmock.resource(f"v1/{plural}") for plural in ("serviceaccounts", "secrets", "persistentvolumeclaims")
)
QUEUES = kmock.resource("kueue.x-k8s.io/v1beta1/localqueues")
JOBS = kmock.resource("batch/v1/jobs")
KINDS = (RAYJOBS, CLUSTERS, JOBS, CONFIG_MAPS, PODS, EVENTS, ACCOUNTS, SECRETS, CLAIMS, QUEUES)
PLATFORM = {ACCOUNTS: ("ray-head", "ray-worker"), SECRETS: ("ray-auth", "mlflow-client"), CLAIMS: ("fraud-storage",)}
NAMESPACE = "ml-pipelines"
FINALIZER = "ray.io/rayjob-finalizer"
WORKLOADS = kmock.resource("kueue.x-k8s.io/v1beta1/workloads")


def _group(name: str, version: str) -> dict[str, Any]:
    served = {"groupVersion": f"{name}/{version}", "version": version}
    return {"name": name, "versions": [served], "preferredVersion": served}


@attrs.define(kw_only=True)
class Api(kmock.KubernetesEmulator):
    """Refuses bodies that the definitions refuse, and lists by label."""

    definitions: Definitions
    forbidden: set[tuple[str, str]] = attrs.field(factory=set)  # verb and resource, as a Role names them
    served: set[str] = attrs.field(factory=set)  # groups with definitions
    namespaces: set[str] = attrs.field(factory=set)

    async def _handle(self, request: kmock.Request) -> Any:
        if request.resource and (_verb(request), request.resource.plural) in self.forbidden:
            told = f'{request.resource.plural} is forbidden: User "maya" cannot {_verb(request)} it in the namespace'
            raise kmock.KubernetesError(status=403, reason="Forbidden", message=told)
        if request.action == kmock.action.FETCH and request.resource == RAYJOBS:
            self._operate()
        if request.action == kmock.action.CREATE:
            self._require_namespace(request.namespace or "")
            findings = self.definitions.check(Document(request.data, ("request",)))
            if findings:
                told = "; ".join(f"{finding.field}: {finding.message}" for finding in findings)
                raise kmock.KubernetesError(status=422, reason="Invalid", message=told)
            request.data["metadata"]["creationTimestamp"] = f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}"
        return await super()._handle(request)

    async def _serve_list(self, request: kmock.Request) -> Any:
        found = await super()._serve_list(request)
        key, equals, value = request.params.get("labelSelector", "").partition("=")
        labels = [item["metadata"].get("labels", {}) for item in found["items"]]
        wanted = [not key or (key in held and (not equals or held[key] == value)) for held in labels]
        return {**found, "items": [item for item, is_wanted in zip(found["items"], wanted, strict=True) if is_wanted]}

    def bodies(self, resource: kmock.resource) -> dict[str, dict[str, Any]]:
        """The objects that are there, by name."""
        return {name: obj.raw for (kind, _, name), obj in self.objects.items() if kind == resource and not obj.deleted}

    def report(self, job: str, status: dict[str, str], finalizers: list[str] | None = None) -> None:
        """Has KubeRay tell of a RayJob."""
        (key,) = [key for key in self.objects if key[0] == RAYJOBS and key[2] == job]
        body = self.objects[key].raw
        metadata = {**body["metadata"], "finalizers": finalizers or []}
        self.objects[key] = {**body, "metadata": metadata, "status": status}

    def groups(self, request: kmock.Request) -> dict[str, Any]:
        return {"groups": [_group(name, "v1" if name == "ray.io" else "v1beta1") for name in sorted(self.served)]}

    def namespace(self, request: kmock.Request) -> dict[str, Any]:
        if ("get", "namespaces") in self.forbidden:
            raise kmock.KubernetesError(status=403, reason="Forbidden", message="namespaces is forbidden")
        self._require_namespace(NAMESPACE)
        return {"metadata": {"name": NAMESPACE}}

    def _require_namespace(self, name: str) -> None:
        if name not in self.namespaces:
            raise kmock.KubernetesError(status=404, reason="NotFound", message=f'namespaces "{name}" not found')

    def _operate(self) -> None:
        """KubeRay at work: jobs that are to go do so, if there is the token to stop them; what they made follows."""
        has_token = (SECRETS, NAMESPACE, "ray-auth") in self.objects
        for name, obj in [(key[2], obj) for key, obj in self.objects.items() if key[0] == RAYJOBS]:
            if not obj.deleted and obj.raw["metadata"].get("deletionTimestamp") and has_token:
                obj.delete()
            if obj.deleted:
                self._collect(name)

    def _collect(self, owner: str) -> None:
        """Garbage collection of what an object that is gone had made, and what that had."""
        for (_, _, name), obj in list(self.objects.items()):
            metadata = {} if obj.deleted else obj.raw["metadata"]
            owners = [metadata.get("labels", {}).get(label) for label in ("job-name", "ray.io/cluster")]
            if owner in [*owners, *(one["name"] for one in metadata.get("ownerReferences", ()))]:
                obj.delete()
                self._collect(name)

    def play(self, moment: Moment) -> None:
        """Has the cluster be as it was at a moment that was recorded."""
        self.provide()
        kinds = ((RAYJOBS, [moment.job]), (PODS, moment.pods), (CLUSTERS, moment.clusters), (EVENTS, moment.events))
        for resource, bodies in kinds:
            for body in bodies:
                self.objects[resource, NAMESPACE, body["metadata"]["name"]] = body

    def provide(self) -> None:
        """Has the cluster hold what is applied before a run, and nothing else."""
        self.objects.clear()
        self.served = {"ray.io", "kueue.x-k8s.io"}
        self.namespaces = {NAMESPACE}
        for resource, names in PLATFORM.items():
            for name in names:
                self.objects[resource, NAMESPACE, name] = {"metadata": {"name": name}}

    def forget(self) -> None:
        """Leaves the platform, and no refusal and no request."""
        self.provide()
        self.forbidden.clear()
        self._requests.clear()

    @property
    def asked(self) -> set[tuple[str, str]]:
        """Verb and resource of every request in a namespace, as a Role names them."""
        found = set()
        for request in self._requests:
            _, _, rest = request.url.path.partition("/namespaces/")
            if "/" in rest:
                _, kind, *name = rest.split("/")
                found.add((_verb(request, bool(name)), "/".join([kind, *name[1:]])))
        return found

    @property
    def created(self) -> list[str]:
        """What was asked to be created, in order: kind/name."""
        made = [r.data for r in self._requests if r.action == kmock.action.CREATE]
        return [f"{body['kind']}/{body['metadata']['name']}" for body in made]


def _verb(request: kmock.Request, is_named: bool | None = None) -> str:
    is_named = request.name is not None if is_named is None else is_named
    return {"GET": "get" if is_named else "list", "POST": "create", "DELETE": "delete"}[request.method.value]


@contextmanager
def serving(definitions: Definitions) -> Iterator[tuple[Api, str]]:
    """The API and its URL, served by a thread."""
    started: list[tuple[Api, str]] = []
    ready = threading.Event()
    loop = asyncio.new_event_loop()
    ended = asyncio.Event()

    async def serve() -> None:
        async with Api(definitions=definitions) as api, kmock.Server(api) as server:
            for resource in (*KINDS, WORKLOADS):
                api.resources[resource] = {"namespaced": True}
            api["get /apis/"] << api.groups
            api[f"get /api/v1/namespaces/{NAMESPACE}"] << api.namespace
            started.append((api, str(server.url)))
            ready.set()
            await ended.wait()

    thread = threading.Thread(target=lambda: loop.run_until_complete(serve()), daemon=True)
    thread.start()
    assert ready.wait(10)
    try:
        yield started[0]
    finally:
        loop.call_soon_threadsafe(ended.set)
        thread.join(10)
        loop.close()
