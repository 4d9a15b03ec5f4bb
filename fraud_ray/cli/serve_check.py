"""`fraud-ray serve-check`: proof that what is answered online is what batch scoring gives."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fraud_ray.cli.options import AsJson, Config, Overrides, settings_of
from fraud_ray.cli.tables import print_json, print_line, print_table
from fraud_ray.errors import EXIT_FAULT, DataError, ServerError
from fraud_ray.progress import counted

if TYPE_CHECKING:
    from fraud_ray.serving.check import Equality


def serve_check(
    config: Config,
    overrides: Overrides = None,
    model: Annotated[
        str | None,
        typer.Option(
            metavar="URI", help="models:/NAME/VERSION or a bundle's folder; by default the champion, as it is now."
        ),
    ] = None,
    source: Annotated[
        str | None,
        typer.Option("--input", metavar="DIR", help="Folder or URI of labelled partitions; by default data.path."),
    ] = None,
    rows: Annotated[
        int | None, typer.Option(min=1, help="Take the first partitions that hold so many rows; by default all.")
    ] = None,
    url: Annotated[
        list[str] | None,
        typer.Option(
            help="Endpoint that is up, and whose past is empty, in place of one that is started here. Repeatable: they "
            "are asked in turn."
        ),
    ] = None,
    token: Annotated[str | None, typer.Option(envvar="TOKEN", help="Bearer token of --url.")] = None,
    as_json: AsJson = False,
) -> None:
    """Replay partitions through an endpoint, and compare every value with batch scoring of the same partitions.

    Transactions are sent in the order of time, and labels when they become known. Window columns and probabilities are
    compared to the bit; the first that differs is shown whole, and the command then ends with exit code 1. Nothing that
    is served is touched: the endpoint is started for it, with a past of its own, in serving.store if one is named.
    """
    import tempfile

    from fraud_ray.cli.display import Display, stdout_for_the_result
    from fraud_ray.registry.opened import open_uri
    from fraud_ray.scoring.partitions import Model
    from fraud_ray.serving.check import Endpoint, expect, first_partitions, replay
    from fraud_ray.serving.following import served_of
    from fraud_ray.serving.requests import Form
    from fraud_ray.storage import Storage

    settings = settings_of(config, overrides)
    uri = model or f"models:/{settings.registry.model_name}@champion"
    display = Display()
    given = Endpoint(url, token) if url else None
    with ExitStack() as held, stdout_for_the_result():
        scratch = Path(held.enter_context(tempfile.TemporaryDirectory()))
        opened = open_uri(uri, settings.registry, Storage.at(settings.storage.root), scratch / "model")
        served = served_of(opened, settings.raw_data)
        data = served.data.model_copy(update={"path": source or settings.data.path, "csv": settings.data.csv})
        if served.definition is not None and data.of_kind("id") is None:
            raise DataError(
                "labels are told by id, and the data declares no column of kind 'id'; declare one under data.columns"
            )
        with display.stage("score") as stage:
            names = Form.of(served, settings.serving.ahead_s).fields
            wanted = [name for name in [*names, data.of_kind("id")] if name in data.columns]
            partitions = first_partitions(data, rows)
            scoring = Model(opened.named, opened.graph, opened.windows)
            columns = list(dict.fromkeys(wanted))
            expected = expect(scoring, partitions, data, columns, scratch, settings.cluster, stage.update, display)
            stage.say(
                f"{counted(len(expected.sent), 'transaction')} of {counted(len(partitions.partitions), 'partition')}"
            )
        named = f"models:/{opened.version.name}/{opened.version.version}" if opened.version else uri
        endpoint = given or Endpoint([held.enter_context(_serving(config, overrides, named, scratch / "log"))], None)
        with display.stage("replay") as stage:
            found = replay(expected, endpoint, stage.update)
            stage.say(f"{found.transactions / found.seconds:,.0f} transactions/s")
    if as_json:
        print_json(found.to_json())
    else:
        _print(found)
    if found.differing:
        raise typer.Exit(EXIT_FAULT)


def _print(found: Equality) -> None:
    cells = {
        "Transactions": f"{found.transactions:,}",
        "Labels": f"{found.labels:,}",
        "Values compared": f"{found.values:,}",
        "Differ": f"{found.differing:,}",
    }
    print_table([*cells], [[*cells.values()]], right={*cells})
    if found.again:
        print_line(f"{counted(found.again, 'request')} repeated, as nothing answered", "yellow")
    if found.first is None:
        print_line("online equals batch scoring, value by value")
    else:
        first = found.first
        print_line(f"the first that differs: {first.column} is {first.online} online and {first.batch} in batch", "red")
        print_line(f"of {first.transaction}")


@contextmanager
def _serving(config: Path, overrides: list[str] | None, model: str, log: Path) -> Iterator[str]:
    """The URL of an endpoint with a past of its own, which ends with the check."""
    import socket
    import subprocess
    import sys
    import time
    import urllib.request
    import uuid

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url, port = f"http://127.0.0.1:{free.getsockname()[1]}", free.getsockname()[1]
    own = ["--set", "serving.host=127.0.0.1", "--set", f"serving.port={port}", "--without-token"]
    given = [part for one in overrides or () for part in ("--set", one)]
    command = [sys.executable, "-m", "fraud_ray", "serve", "-c", str(config), *given, *own, "--model", model]
    with log.open("w") as written:
        fresh = ["--fresh", f"check-{uuid.uuid4().hex[:12]}"]
        process = subprocess.Popen([*command, *fresh], stdout=written, stderr=written)
    try:
        deadline = time.monotonic() + 120
        while True:
            try:
                with urllib.request.urlopen(f"{url}/v2/health/ready", timeout=5):
                    break
            except OSError as fault:
                if process.poll() is not None or time.monotonic() > deadline:
                    lines = log.read_text().strip().splitlines()
                    raise ServerError(f"the endpoint did not start: {lines[-1] if lines else fault}") from None
            time.sleep(0.2)
        yield url
    finally:
        process.terminate()
        process.wait(60)
