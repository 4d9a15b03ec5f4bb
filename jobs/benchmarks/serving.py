"""Serving: in the process and over HTTP, with windows from either store, beside a bare application and two servers."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
import yaml

from benchmarks.harness import Row, Target
from benchmarks.scoring import pyfunc_folder
from benchmarks.world import REPOSITORY, World
from fraud_ray.model.scorer import INFO, GraphScorer
from fraud_ray.serving.history import History
from fraud_ray.serving.priming import NOTHING, layout_of
from fraud_ray.serving.requests import Form
from fraud_ray.serving.served import Served
from fraud_ray.serving.service import score_by_row
from fraud_ray.serving.stores import MemoryStore
from fraud_ray.settings import Settings
from fraud_ray.windows.definition import Definition

FEW, MANY = 200, 50_000  # transactions in reach of an entity
RATE = 200  # requests a second
BEGINS = 1_700_000_000_000_000  # microseconds since 1970
SECONDS = 8  # that as many requests are sent as go
CONNECTIONS = 8

# Twelve columns over two entities; the graph reads the first two, which the simulated cards have ready.
_CARD, _SHOP = {"entity": "card_id", "days": [30]}, {"entity": "shop", "days": [30]}
WINDOWS: dict[str, Any] = {
    "time_since_last_transaction": {"compute": "since_last", **_CARD},
    "location_deviation": {"compute": "deviations", "of": "transaction_amount", **_CARD},
    "count_{days}": {"compute": "count", "entity": "card_id", "days": [1, 7]},
    "mean": {"compute": "mean", "of": "transaction_amount", **_CARD},
    "std": {"compute": "std", "of": "transaction_amount", **_CARD},
    "max": {"compute": "max", "of": "transaction_amount", **_CARD},
    "shops": {"compute": "distinct", "of": "shop", **_CARD},
    "shop_count": {"compute": "count", **_SHOP},
    "shop_mean": {"compute": "mean", "of": "transaction_amount", **_SHOP},
    "risk": {"compute": "share", "among": "frauds", **_SHOP},
    "streak": {"compute": "streak", "among": "legitimate", **_SHOP},
}


def in_process(world: World) -> list[Row]:
    """Windows and graph of one transaction, without HTTP."""
    _, bundle = _windowed(world)
    served = _served(world, bundle)
    definition = served.definition
    assert definition is not None
    form = Form.of(served, 300)

    async def work() -> list[float]:
        layout = layout_of(definition, _settings(world, WINDOWS).serving)
        store = MemoryStore(layout)
        await store.prime(NOTHING, {}, ())
        history, taken = History(layout, store), []
        for sent in _transactions(50, FEW):
            await history.answer(form.read([sent], time.time()), score_by_row(served, form.read([sent], time.time())))
        for sent in _transactions(50, 40, FEW):
            began = time.perf_counter()
            batch = form.read([sent], time.time())
            await history.answer(batch, score_by_row(served, batch))
            taken.append(1_000 * (time.perf_counter() - began))
        return taken

    taken = asyncio.run(work())
    note = f"12 columns over two entities of {FEW} transactions each, and the graph, in the process"
    return _quantiles("serve, one transaction", taken, {0.5: 2, 0.99: 5}, note)


def over_http(world: World) -> list[Row]:
    """One transaction a request, so many requests a second, whatever the replies take."""
    config, bundle = _windowed(world)
    rows = []
    with ExitStack() as held:
        url = held.enter_context(_serving(config, bundle))
        _send_all(url, _transactions(50, FEW))
        few = _at_rate(url, list(_transactions(50, 400, FEW)))
        note = f"{RATE} requests a second, windows over {FEW} transactions in memory"
        rows += _quantiles(f"serve, HTTP, {len(few):,} requests", few, {0.5: 6, 0.99: 20}, f"{note}; none failed")
        _send_all(url, _transactions(1, MANY, cards="long"))
        many = _at_rate(url, list(_transactions(1, 4_000, MANY, cards="long")))
        row, target = f"serve, HTTP, {MANY:,} in reach, 99th percentile", Target(">=", 1 / 3)
        peer = f"{FEW} in reach"
        rows.append(Row(row, "ms", _quantile(many, 0.99), _quantile(few, 0.99), peer, target=target))
    program = shutil.which("valkey-server") or shutil.which("redis-server")
    if program:
        with ExitStack() as held:
            store = held.enter_context(_valkey(program, world.scratch))
            url = held.enter_context(_serving(config, bundle, "--set", f"serving.store={store}"))
            _send_all(url, _transactions(50, FEW))
            shared = _at_rate(url, list(_transactions(50, 80, FEW)))
            note = f"{RATE} requests a second, Valkey on the same machine"
            rows += _quantiles("serve, HTTP, Valkey", shared, {0.99: 30}, note)
    return rows


def as_fast_as_it_goes(world: World) -> list[Row]:
    """Without windows, one process: one transaction a request, and a thousand."""
    config = _written(world, "plain", _settings(world, None))
    sent = {**_transaction(0, 0, "c"), "time_since_last_transaction": 60.0, "location_deviation": 3.0}
    sent |= {"merchant_category": "grocery", "device_fingerprint_match": True}
    names = [column.name for column in GraphScorer((world.bundle / "model.onnx").read_bytes()).columns]
    read = {name: sent[name] for name in names}
    one = json.dumps({"transactions": [{"transaction_id": "t1", **read}]})
    wrk, rows = shutil.which("wrk"), []
    with _serving(config, world.bundle) as url:
        ours = _wrk(wrk, world.scratch, f"{url}/score", one) if wrk else 0.0
        thousand = {"transactions": [{"transaction_id": f"t{n}", **read} for n in range(1_000)]}
        rate = statistics.median(_rate_of(f"{url}/score", thousand) for _ in range(3)) * 1_000
        rows.append(Row("serve, HTTP, 1,000 a request", "rows/s", rate, target=Target(">=", 30_000, "rows/s")))
    if not wrk:
        return rows
    peers: dict[str, tuple[Sequence[str], str, str, Mapping[str, str]]] = {
        "a bare ASGI application, the same graph": (
            [sys.executable, "-m", "uvicorn", "benchmarks.bare:app", "--log-level", "warning", "--no-access-log"],
            "/",
            one,
            {"BARE_GRAPH": str(world.bundle / "model.onnx"), "PYTHONPATH": str(REPOSITORY / "jobs")},
        ),
        "mlflow models serve": (
            [sys.executable, "-m", "mlflow", "models", "serve", "-m", str(pyfunc_folder(world)), "--env-manager=local"],
            "/invocations",
            json.dumps({"dataframe_records": [read]}),
            {"FRAUD_RAY_SCORER_THREADS": "1"},
        ),
    }
    note = f"one process, {CONNECTIONS} connections, load generator beside it"
    for name, (command, path, body, environment) in peers.items():
        with _process([*command, "--port"], environment) as url:
            theirs = _wrk(wrk, world.scratch, url + path, body)
        target = Target(">=", 0.5) if "bare" in name else None
        rows.append(Row("serve, HTTP, no windows", "requests/s", ours, theirs, name, target=target, note=note))
    if find_spec("grpc_reflection"):  # of the extra `compare`
        from benchmarks.bare import on_ray_serve

        with on_ray_serve(world.bundle / "model.onnx", _free_port()) as url:
            theirs = _wrk(wrk, world.scratch, url, one)
        rows.append(Row("serve, HTTP, no windows", "requests/s", ours, theirs, "Ray Serve, the same graph", note=note))
    return rows


def _settings(world: World, windows: dict[str, Any] | None) -> Settings:
    """The simulated cards' columns; those that windows compute are not the data's."""
    columns: dict[str, Any] = {
        "transaction_id": {"kind": "id"},
        "timestamp": {"kind": "timestamp"},
        "card_id": {"kind": "entity"},
        "shop": {"kind": "categorical", "feature": False},
        "transaction_amount": {"kind": "amount"},
        "merchant_category": {"kind": "categorical"},
        "device_fingerprint_match": {"kind": "boolean"},
        "is_fraud": {"kind": "label"},
    }
    if windows is None:
        columns |= {"time_since_last_transaction": {"kind": "numeric"}, "location_deviation": {"kind": "numeric"}}
    return Settings.model_validate(
        {
            "data": {"path": str(world.scratch), "columns": columns},
            "storage": {"root": str(world.scratch / "serving")},
            **({"windows": {"columns": windows}} if windows else {}),
        }
    )


def _written(world: World, name: str, settings: Settings) -> Path:
    config = world.scratch / f"{name}.yaml"
    config.write_text(yaml.safe_dump(settings.model_dump(mode="json", exclude_unset=True)))
    return config


def _windowed(world: World) -> tuple[Path, Path]:
    """A configuration with windows, and the bundle of a model that reads two of them."""
    settings = _settings(world, WINDOWS)
    definition = Definition.of(settings)
    assert definition is not None
    bundle = world.scratch / "windowed"
    if not bundle.exists():
        shutil.copytree(world.bundle, bundle)
        info = json.loads((bundle / INFO).read_text())
        info.pop("files", None)
        info["origin"] = {"windows": {"definition": definition.to_json(), "state": "none"}}
        (bundle / INFO).write_text(json.dumps(info))
    raw = settings.model_dump(mode="json", exclude_unset=True)
    raw["data"]["columns"] = {name: raw["data"]["columns"][name] for name in settings.raw_data.columns}
    config = world.scratch / "windowed.yaml"
    config.write_text(yaml.safe_dump(raw))
    return config, bundle


def _served(world: World, bundle: Path) -> Served:
    definition = Definition.of(_settings(world, WINDOWS))
    assert definition is not None
    scorer = GraphScorer((bundle / "model.onnx").read_bytes())
    return Served("fraud", "1", scorer, definition.data, definition, "none", bundle, None)


def _transactions(entities: int, each: int, before: int = 0, cards: str = "c") -> Iterator[dict[str, Any]]:
    """`each` of every entity, a second apart, after `before` of them; card and shop go together."""
    for number in range(before, before + each):
        for entity in range(entities):
            yield _transaction(number, entity, f"{cards}{entity}")


def _transaction(number: int, entity: int, card: str) -> dict[str, Any]:
    moment = np.datetime64(BEGINS + number * 1_000_000, "us")
    return {
        "transaction_id": f"{card}-{number}",
        "timestamp": f"{moment}Z",
        "card_id": card,
        "shop": f"s{card}",
        "transaction_amount": round(5 + (number * 7919 + entity) % 997 / 10, 2),
        "merchant_category": "grocery",
        "device_fingerprint_match": True,
    }


def _send_all(url: str, transactions: Iterator[dict[str, Any]]) -> None:
    while some := list(itertools.islice(transactions, 1_000)):
        _post(f"{url}/score", {"transactions": some})


def _post(url: str, body: Mapping[str, Any]) -> None:
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=120) as reply:
        reply.read()


def _rate_of(url: str, body: Mapping[str, Any], count: int = 20) -> float:
    """Requests a second, one after the other on one connection."""

    async def work() -> float:
        encoded = json.dumps(body).encode()
        async with aiohttp.ClientSession() as session:
            began = time.perf_counter()
            for _ in range(count):
                async with session.post(url, data=encoded) as reply:
                    await reply.read()
                    reply.raise_for_status()
            return count / (time.perf_counter() - began)

    return asyncio.run(work())


def _at_rate(url: str, transactions: Sequence[dict[str, Any]]) -> list[float]:
    """Milliseconds of each reply, counted from when its request was due. Raises ClientError for one that fails."""

    async def work() -> list[float]:
        taken: list[float] = []
        connector = aiohttp.TCPConnector(limit=64)
        async with aiohttp.ClientSession(connector=connector) as session:

            async def send(body: bytes, due: float) -> None:
                async with session.post(f"{url}/score", data=body) as reply:
                    await reply.read()
                    reply.raise_for_status()
                taken.append(1_000 * (time.perf_counter() - due))

            began, tasks = time.perf_counter(), []
            for number, sent in enumerate(transactions):
                due = began + number / RATE
                await asyncio.sleep(max(0, due - time.perf_counter()))
                tasks.append(asyncio.create_task(send(json.dumps({"transactions": [sent]}).encode(), due)))
            await asyncio.gather(*tasks)
        return taken

    return asyncio.run(work())


def _wrk(program: str, scratch: Path, url: str, body: str) -> float:
    """Requests a second; raises RuntimeError where some are not answered with 200."""
    script = scratch / "wrk.lua"
    told = f'wrk.method = "POST"\nwrk.headers["Content-Type"] = "application/json"\nwrk.body = {json.dumps(body)}\n'
    script.write_text(told)
    rates = []
    for _ in range(3):
        command = [program, "-t1", f"-c{CONNECTIONS}", f"-d{SECONDS}s", "-s", str(script), url]
        told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        if "Non-2xx" in told or "Socket errors" in told:
            raise RuntimeError(f"{url} failed under load: {told}")
        rates.append(float(told.partition("Requests/sec:")[2].split()[0]))
    return statistics.median(rates)


def _quantile(taken: Sequence[float], share: float) -> float:
    return float(np.quantile(taken, share))


def _quantiles(stage: str, taken: Sequence[float], bounds: Mapping[float, float], note: str) -> list[Row]:
    """Rows of quantiles with what they may be, in ms."""
    names = {0.5: "median", 0.99: "99th percentile"}
    return [
        Row(f"{stage}, {names[share]}", "ms", _quantile(taken, share), target=Target("<=", bound, "ms"), note=note)
        for share, bound in bounds.items()
    ]


@contextmanager
def _serving(config: Path, bundle: Path, *options: str) -> Iterator[str]:
    command = [sys.executable, "-m", "fraud_ray", "serve", "-c", str(config), "--model", str(bundle), *options]
    own = ["--without-token", "--fresh", "benchmark", "--set"]
    with _process([*command, *own], {}, "serving.port=", "/v2/health/ready") as url:
        yield url


@contextmanager
def _process(
    command: Sequence[str], environment: Mapping[str, str], port_option: str = "", ready: str = "/"
) -> Iterator[str]:
    """A server's URL; its port comes last on its command line."""
    port = _free_port()
    last = [f"{port_option}{port}"]
    # MLflow starts uvicorn by its name, in a process below its own.
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    given = {**os.environ, "PATH": path, "PYTHONPATH": str(REPOSITORY), **environment}
    to = subprocess.DEVNULL
    process = subprocess.Popen(
        [*command, *last], env=given, cwd=REPOSITORY, stdout=to, stderr=to, start_new_session=True
    )
    url = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + 120
        while not _answers(url + ready):
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"{command[2]} did not start")
            time.sleep(0.2)
        yield url
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(60)


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5):
            return True
    except urllib.error.HTTPError as fault:
        return fault.code != 503
    except OSError:
        return False


@contextmanager
def _valkey(program: str, folder: Path) -> Iterator[str]:
    port = _free_port()
    options = ["--port", str(port), "--bind", "127.0.0.1", "--dir", str(folder), "--save", "", "--appendonly", "yes"]
    process = subprocess.Popen([program, *options], stdout=subprocess.DEVNULL)
    try:
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
                break
            except OSError:
                time.sleep(0.1)
        yield f"redis://127.0.0.1:{port}/0"
    finally:
        process.terminate()
        process.wait(20)


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port
