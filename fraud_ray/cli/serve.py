"""`fraud-ray serve`: scores transactions as they happen, over HTTP."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from fraud_ray.cli.options import Config, Overrides, settings_of
from fraud_ray.cli.tables import print_line
from fraud_ray.errors import ServerError, SettingsError
from fraud_ray.progress import counted

if TYPE_CHECKING:
    import socket

    from fraud_ray.serving.journal import Journal
    from fraud_ray.serving.served import Served
    from fraud_ray.serving.tokens import Tokens
    from fraud_ray.settings import ServingSettings, Settings
    from fraud_ray.storage import Storage
    from fraud_ray.windows.definition import Definition
    from fraud_ray.windows.state import State

_WAITING = 2_048  # connections that the system holds until they are accepted
_IDLE_S = 75  # for which a connection is kept: longer than ingresses hold theirs, so that none sends into a closed one
_LONGEST_S = 30  # until requests that are under way are given up, when the server is ended


def serve(
    config: Config,
    overrides: Overrides = None,
    model: Annotated[
        str | None,
        typer.Option(
            metavar="URI",
            help="models:/NAME/VERSION or a bundle's folder; by default the champion, and whatever follows it.",
        ),
    ] = None,
    without_token: Annotated[
        bool, typer.Option("--without-token", help="Answer without a token, on an address of this machine alone.")
    ] = False,
    prime: Annotated[
        bool,
        typer.Option(
            "--prime",
            help="Load the newest window state of the version into serving.store, and end. Again: what is new since.",
        ),
    ] = False,
    unverified: Annotated[
        bool,
        typer.Option("--unverified", help="Take a version as it is, also where it is not what was registered."),
    ] = False,
    fresh: Annotated[str | None, typer.Option(hidden=True, metavar="NAME", help="For serve-check: no past.")] = None,
) -> None:
    """Score transactions as they are sent to serving.host and serving.port, until interrupted.

    Whoever asks needs a token: one of the file serving.tokens, or on this machine one that is made and kept. The
    application describes itself at /docs.
    """
    import uvloop

    from fraud_ray.serving.tokens import tokens_of

    settings = settings_of(config, overrides)
    if prime:
        _prime(settings, model, not unverified)
        return
    tokens = tokens_of(settings.serving, settings.storage.root, without_token)
    with _bound(settings.serving) as bound:
        uvloop.run(_serve(settings, model, not unverified, tokens, bound, fresh))


def _prime(settings: Settings, model: str | None, verified: bool) -> None:
    """Loads the past of a version's windows into the store that replicas share."""
    import asyncio
    import tempfile
    from pathlib import Path

    from fraud_ray.cli.display import Display, stdout_for_the_result
    from fraud_ray.registry.opened import open_uri
    from fraud_ray.serving.following import served_of
    from fraud_ray.serving.priming import newest_state
    from fraud_ray.storage import Storage

    if settings.serving.store is None:
        raise SettingsError(
            "serving.store names no store, and a past in a process's memory is loaded when that starts; name one that "
            "replicas share: --set serving.store=redis://HOST:6379/0"
        )
    storage = Storage.at(settings.storage.root)
    uri = model or f"models:/{settings.registry.model_name}@champion"
    with stdout_for_the_result(), Display().stage("prime") as stage, tempfile.TemporaryDirectory() as scratch:
        served = served_of(open_uri(uri, settings.registry, storage, Path(scratch), verified), settings.data)
        if served.definition is None or served.state is None:
            stage.say(f"version {served.version} computes no windows: it needs no past")
            return
        state = newest_state(storage, served.state)
        loaded = asyncio.run(_load(settings, storage, served.definition, state))
        stage.say(f"{counted(loaded, 'transaction')} loaded, of window state {state.key[:12]}")


async def _load(settings: Settings, storage: Storage, definition: Definition, state: State) -> int:
    from fraud_ray.serving.priming import layout_of, prime
    from fraud_ray.serving.stores import open_store

    store = open_store(layout_of(definition, settings.serving), settings.serving.store)
    try:
        return await prime(store, storage, definition, state)
    finally:
        await store.close()


async def _serve(
    settings: Settings,
    model: str | None,
    verified: bool,
    tokens: Tokens | None,
    bound: socket.socket,
    fresh: str | None,
) -> None:
    """Answers until a signal comes, which it raises again when every request has its reply."""
    import gc

    import uvicorn

    from fraud_ray.cli.display import Display, stdout_for_the_result
    from fraud_ray.serving.app import create_app
    from fraud_ray.serving.following import Following
    from fraud_ray.serving.metrics import Metrics
    from fraud_ray.serving.priming import Histories
    from fraud_ray.serving.service import Service
    from fraud_ray.serving.shadow import Shadow
    from fraud_ray.storage import Storage

    metrics = Metrics()
    histories = Histories(settings.serving, Storage.at(settings.storage.root), metrics.observe, fresh)
    following = Following(settings, histories.primed, model, verified)
    with stdout_for_the_result(), Display().stage("open") as stage:
        await following.start()
        # What is there now stays: looking through a past of millions for garbage would make requests wait.
        gc.collect()
        gc.freeze()
        past = ", with its past" if following.ready and following.current.definition else ""
        stage.say(f"{following.current.name} version {following.current.version}{past}")

    metrics.watch("model_waiting", "1 while a version waits to answer.", lambda: following.waiting is not None)
    metrics.watch("registry_away", "1 while the registry is not to be asked.", lambda: following.fault is not None)
    service = Service(
        current=lambda: following.current if following.ready else None,
        settings=settings.serving,
        history_of=histories.of,
        histories=histories.all,
        waiting=lambda: following.waiting,
        shadow=lambda: following.shadow,
        metrics=metrics,
    )
    journal, shadow = (None if fresh is not None else _journal(settings)), None
    if journal is not None:
        metrics.watch("journal_written_rows", "Answers written to serving.output.", lambda: journal.written)
        metrics.watch("journal_dropped_rows", "Answers not written, as too many waited.", lambda: journal.dropped)
        metrics.watch("journal_away", "1 while serving.output cannot be written.", lambda: journal.fault is not None)
        shadow = Shadow(journal, service.scored, settings.serving.ahead_s)
        service.answered = shadow.put
        journal.start()

    async def close() -> None:
        await following.stop()
        if journal and shadow:
            await shadow.stop()
            await journal.stop()
        await histories.close()

    app = create_app(service, tokens, close)
    _tell(following.current, settings.serving, tokens)
    bound.listen(_WAITING)
    config = uvicorn.Config(
        app,
        http="httptools",
        ws="none",
        log_level="warning",
        access_log=False,
        server_header=False,
        timeout_keep_alive=_IDLE_S,
        timeout_graceful_shutdown=_LONGEST_S,
    )
    await uvicorn.Server(config).serve(sockets=[bound])


def _journal(settings: Settings) -> Journal | None:
    """What writes the answers; None where none are written. Raises SettingsError for a place that overlaps the data."""
    from fraud_ray.data.output import refuse_to_write_into
    from fraud_ray.data.source import absolute
    from fraud_ray.serving.journal import Journal
    from fraud_ray.storage import Storage

    target = settings.serving.output
    if target is None and settings.serving.shadow:
        target = Storage.at(settings.storage.root).path("served")
    if target is None:
        return None
    refuse_to_write_into("data", settings.data.path, absolute(target), written="serving.output")
    return Journal(absolute(target))


def _bound(settings: ServingSettings) -> socket.socket:
    """A socket at the address of the settings, which does not listen yet. Raises ServerError."""
    import socket

    try:
        [(family, kind, protocol, _, address), *_] = socket.getaddrinfo(
            settings.host, settings.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
        bound = socket.socket(family, kind, protocol)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
    except OSError as fault:
        where = f"{settings.host}:{settings.port}"
        raise ServerError(
            f"cannot listen on {where}: {fault.strerror}; name another port with --set serving.port=PORT"
        ) from None
    return bound


def _tell(served: Served, settings: ServingSettings, tokens: Tokens | None) -> None:
    """Where it listens, what answers, and a first call."""
    import json
    import shlex

    from fraud_ray.serving.requests import Form

    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    url = f"http://{host}:{settings.port}"
    print_line(f"{served.name} version {served.version} at {url} — Ctrl-C ends it")
    if tokens is not None:
        print_line(f"  export TOKEN=$(head -n 1 {shlex.quote(str(tokens.path))})")
    bearer = "" if tokens is None else '-H "Authorization: Bearer $TOKEN" '
    body = json.dumps({"transactions": [Form.of(served, settings.ahead_s).example()]}, ensure_ascii=False)
    print_line(f"  curl {bearer}{url}/score -d {shlex.quote(body)}")
