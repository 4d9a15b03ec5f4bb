"""Which version answers: the one that holds the alias champion, followed while requests go on.

The registry is asked in a thread of its own, where alone MLflow is imported, so that no request waits for it. A version
takes over by one assignment: whoever began with the one before ends with it. What keeps one from taking over is told as
`waiting`, and what keeps the registry from being asked as `fault`; meanwhile the version that is there answers.
"""

from __future__ import annotations

import asyncio
import logging
import shutil
import tempfile
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from fraud_ray.errors import FraudRayError, SettingsError
from fraud_ray.model.scorer import GraphError, GraphScorer
from fraud_ray.registry.opened import Opened, open_uri, open_version
from fraud_ray.serving.served import Served
from fraud_ray.settings import DataSettings, Settings
from fraud_ray.storage import Storage
from fraud_ray.windows.definition import Definition

if TYPE_CHECKING:  # MLflow is imported in the thread
    from fraud_ray.registry.tracking import Tracking

CHAMPION = "champion"
NOT_PRIMED = "the past that its windows look back on is not primed yet"
_PATIENCE_S = 0.5  # for a store to say whether it has a past, before the next version is looked for

T = TypeVar("T")
# Whether the past of windows, of which a version carries the definition and its state's key, is there to answer from.
Primed = Callable[[Definition, str | None], Awaitable[bool]]

_log = logging.getLogger(__name__)


class Following:
    """The version that answers, `current`, and beside it the one that scores in the shadow, where settings want one.

    ready: whether `current` has had its windows' past, so that it may answer. waiting: the version that shall answer
    and why it does not yet; None where `current` is the one. fault: why the registry could not be asked the last time;
    None where it was.
    """

    current: Served

    def __init__(self, settings: Settings, primed: Primed, uri: str | None = None, verified: bool = True) -> None:
        """uri: of the version or folder that answers for good, in place of following the champion."""
        self.shadow: Served | None = None
        self.ready = False
        self.waiting: tuple[str, str] | None = None
        self.fault: str | None = None
        self._settings, self._primed, self._uri, self._verified = settings, primed, uri, verified
        self._storage = Storage.at(settings.storage.root)
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="registry")
        self._folder = tempfile.TemporaryDirectory(prefix="fraud_ray-", ignore_cleanup_errors=True)
        self._opened: dict[int, Served] = {}
        self._loads: dict[str, asyncio.Future[bool]] = {}  # by the fingerprint of the windows
        self._told: dict[str, str | None] = {}
        self._tracking: Tracking | None = None
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Opens what shall answer, and follows it from then on. Raises FraudRayError where there is none to be had."""
        if self._uri is None:
            aliases = await self._in_thread(self._aliases)
            if CHAMPION not in aliases:
                raise SettingsError(
                    f"{self._settings.registry.model_name} has no champion to serve: `fraud-ray run -c FILE` registers "
                    "a version, the first of which is champion, and `fraud-ray models promote` makes another one it"
                )
            self.current = await self._version(aliases[CHAMPION])
        else:
            self.current = await self._in_thread(partial(self._open_uri, self._uri))
            aliases = {}
        await self._follow(aliases)
        self._task = asyncio.create_task(self._poll())

    async def stop(self) -> None:
        """Follows no more, and lets go of the thread."""
        for task in (self._task, *self._loads.values()):
            if task is not None:
                task.cancel()
                with suppress(asyncio.CancelledError, FraudRayError):
                    await task
        self._thread.shutdown(wait=False, cancel_futures=True)
        self._folder.cleanup()

    async def _poll(self) -> None:
        while True:
            await asyncio.sleep(self._settings.serving.poll_s)
            try:
                await self._follow(await self._in_thread(self._aliases) if self._uri is None else {})
                self.fault = None
            except FraudRayError as fault:
                self.fault = str(fault)
            except Exception as fault:  # whatever it is, those who are answered shall not miss the next version for it
                _log.exception("the champion could not be followed")
                self.fault = str(fault)
            self._tell("the version stays as it is", self.fault)

    async def _follow(self, aliases: dict[str, int]) -> None:
        """Lets the champion and, where wanted, the challenger take their places, as far as they can."""
        self.waiting = await self._follow_champion(aliases.get(CHAMPION))
        self._tell("the champion does not answer yet", self.waiting and "version {}: {}".format(*self.waiting))
        wanted = self._settings.serving.shadow
        self.shadow = await self._challenger(aliases.get(wanted)) if wanted else None
        kept = {number for number, served in self._opened.items() if served is self.current} | {*aliases.values()}
        self._opened = {number: served for number, served in self._opened.items() if number in kept}

    async def _follow_champion(self, number: int | None) -> tuple[str, str] | None:
        """Which version does not answer and why, None where the champion does; without one the last one goes on."""
        try:
            served = self.current if number is None else await self._version(number)
            if served is self.current and self.ready:
                return None
            if not await self._has_past(served):
                return served.version, NOT_PRIMED
        except FraudRayError as fault:
            return str(number or self.current.version), str(fault)
        _log.info("%s version %s answers", served.name, served.version)
        self.current, self.ready = served, True
        return None

    async def _challenger(self, number: int | None) -> Served | None:
        fault, served = None, None
        try:
            served = None if number is None else await self._version(number)
            if served and not await self._has_past(served):
                fault, served = NOT_PRIMED, None
        except FraudRayError as refused:
            fault, served = str(refused), None
        self._tell("the challenger does not score in the shadow", fault)
        return served

    async def _has_past(self, served: Served) -> bool:
        """Whether the past of a version's windows is there. It is loaded beside all else, but for the first version's:
        a load of minutes keeps no other version from its place."""
        if served.definition is None:
            return True
        key = served.definition.fingerprint()
        if key not in self._loads:
            self._loads[key] = asyncio.ensure_future(self._primed(served.definition, served.state))
        load = self._loads[key]
        await asyncio.wait([load], timeout=_PATIENCE_S if self._task else None)
        if not load.done():
            return False
        del self._loads[key]
        return load.result()

    async def _version(self, number: int) -> Served:
        if number not in self._opened:
            self._opened[number] = await self._in_thread(partial(self._open_version, number))
        return self._opened[number]

    async def _in_thread(self, function: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, function)

    def _tell(self, what: str, why: str | None) -> None:
        """Logs why something is as it is, once as long as it is so."""
        if why and self._told.get(what) != why:
            _log.warning("%s: %s", what, why)
        self._told[what] = why

    # In the thread.

    def _connected(self) -> Tracking:
        from fraud_ray.registry.tracking import connect_existing

        self._tracking = self._tracking or connect_existing(self._settings.registry)
        return self._tracking

    def _aliases(self) -> dict[str, int]:
        from fraud_ray.registry.server import short_patience
        from fraud_ray.registry.versions import existing_model

        with short_patience():
            return existing_model(self._connected()).aliases

    def _open_version(self, number: int) -> Served:
        from fraud_ray.registry.server import short_patience
        from fraud_ray.registry.versions import version_of

        scratch = Path(tempfile.mkdtemp(dir=self._folder.name))
        try:
            with short_patience():
                version, registered = version_of(self._connected(), number)
                opened = open_version(self._connected(), version, self._storage, scratch, self._verified)
            return served_of(opened, self._settings.data, registered)
        except FraudRayError:
            shutil.rmtree(scratch)
            raise

    def _open_uri(self, uri: str) -> Served:
        opened = open_uri(uri, self._settings.registry, self._storage, Path(self._folder.name), self._verified)
        return served_of(opened, self._settings.data)


def served_of(opened: Opened, data: DataSettings, registered: datetime | None = None) -> Served:
    """A model ready to answer. data: what columns are, where its windows do not say. Raises FraudRayError."""
    try:
        scorer = GraphScorer(opened.graph)
    except GraphError as fault:
        raise FraudRayError(f"{opened.named} is no model of this package: {fault}; serve another version") from fault
    if opened.note:
        _log.warning("%s: %s", opened.named, opened.note)
    windows = opened.windows
    definition = Definition.from_json(windows["definition"]) if windows else None
    return Served(
        name=opened.version.name if opened.version else opened.folder.name,
        version=str(opened.version.version) if opened.version else opened.named.removeprefix("sha256:"),
        scorer=scorer,
        data=definition.data if definition else data,
        definition=definition,
        state=windows["state"] if windows else None,
        folder=opened.folder,
        registered=registered,
    )
