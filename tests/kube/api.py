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

RAYJOBS, CONFIG_MAPS, PODS = (
    kmock.resource("ray.io/v1/rayjobs"),
    kmock.resource("v1/configmaps"),
    kmock.resource("v1/pods"),
)


@attrs.define(kw_only=True)
class Api(kmock.KubernetesEmulator):
    """Refuses bodies that the definitions refuse, and lists by label."""

    definitions: Definitions

    async def _handle(self, request: kmock.Request) -> Any:
        if request.action == kmock.action.CREATE:
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

    def forget(self) -> None:
        """Leaves no object and no request."""
        self.objects.clear()
        self._requests.clear()

    @property
    def asked(self) -> set[tuple[str, str]]:
        """Verb and resource of every request in a namespace, as a Role names them."""
        found = set()
        for request in self._requests:
            _, within, rest = request.url.path.partition("/namespaces/")
            if within:
                _, kind, *name = rest.split("/")
                verb = {"GET": "get" if name else "list", "POST": "create", "DELETE": "delete"}[request.method.value]
                found.add((verb, "/".join([kind, *name[1:]])))
        return found

    @property
    def created(self) -> list[str]:
        """What was asked to be created, in order: kind/name."""
        made = [r.data for r in self._requests if r.action == kmock.action.CREATE]
        return [f"{body['kind']}/{body['metadata']['name']}" for body in made]


@contextmanager
def serving(definitions: Definitions) -> Iterator[tuple[Api, str]]:
    """The API and its URL, served by a thread."""
    started: list[tuple[Api, str]] = []
    ready = threading.Event()
    loop = asyncio.new_event_loop()
    ended = asyncio.Event()

    async def serve() -> None:
        async with Api(definitions=definitions) as api, kmock.Server(api) as server:
            for resource in (RAYJOBS, CONFIG_MAPS, PODS):
                api.resources[resource] = {"namespaced": True}
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
