"""The challenger beside the champion, in one process and over HTTP, with promotions while requests go on."""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
import sys
import threading
import time
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from fraud_ray.registry.opened import open_folder
from fraud_ray.registry.promotion import promote, rollback
from fraud_ray.registry.tracking import connect
from fraud_ray.registry.versions import register
from fraud_ray.serving.following import served_of
from fraud_ray.serving.journal import Journal
from fraud_ray.serving.priming import Histories
from fraud_ray.serving.served import Served
from fraud_ray.serving.service import Service
from fraud_ray.serving.shadow import Shadow
from fraud_ray.settings import Settings, load_settings, parse_settings
from fraud_ray.storage import Storage
from fraud_ray.windows.definition import Definition
from tests.handmade import example, write_bundle
from tests.rays import free_ports
from tests.stores import status_of
from tests.test_journal import COLUMNS, rows_at, transaction, wait

RAW = {("spent" if name == "amount" else name): column for name, column in COLUMNS.items()}
MEAN = {"compute": "mean", "of": "spent", "entity": "card", "days": [3]}


def windowed(folder: Path, version: str, window: dict[str, Any]) -> Served:
    """A version that reads a window column as `amount`."""
    settings = parse_settings(
        {"data": {"path": "data", "columns": RAW}, "windows": {"columns": {"amount": window}}}, ""
    )
    definition = Definition.of(settings)
    assert definition is not None
    bundle = write_bundle(folder / version)
    carried = {"definition": definition.to_json(), "state": "none"}
    (bundle / "bundle.json").write_text(json.dumps({"origin": {"windows": carried}}))
    served = served_of(open_folder(str(bundle), folder), settings.data, datetime.now(UTC))
    return replace(served, name="cards", version=version)


def raw(number: int) -> dict[str, Any]:
    whole = transaction(number)
    return {("spent" if name == "amount" else name): value for name, value in whole.items()}


def answers(settings: Settings, champion: Served, challenger: Served | None, target: Path) -> pa.Table:
    """What is written of 40 transactions that one version answers with another in its shadow."""

    async def whole() -> None:
        histories = Histories(settings.serving, Storage.at(str(target)), lambda *_: None, "test")
        for one in filter(None, (champion, challenger)):
            assert one.definition is not None
            assert await histories.primed(one.definition, None)
        service = Service(lambda: champion, settings.serving, histories.of, shadow=lambda: challenger)
        journal = Journal(str(target))
        shadow = Shadow(journal, service.scored, settings.serving.ahead_s)
        service.answered = shadow.put
        for number in range(40):
            served, form = service.served()
            sent = [raw(number)]
            await service.score(served, form.read(sent, time.time()), sent)
        await shadow.stop()
        journal.start()
        await journal.stop()
        await histories.close()

    asyncio.run(whole())
    return rows_at(target)


def test_a_challenger_of_other_windows_scores_from_a_past_of_its_own(tmp_path: Path) -> None:
    settings = parse_settings({"data": {"path": "data", "columns": COLUMNS}}, "")
    champion = windowed(tmp_path, "1", MEAN)
    challenger = windowed(tmp_path, "2", {**MEAN, "compute": "sum"})
    both = answers(settings, champion, challenger, tmp_path / "both")
    alone = answers(settings, challenger, None, tmp_path / "alone")
    assert both["shadow_probability"].to_pylist() == alone["probability"].to_pylist()
    assert both["shadow_probability"].to_pylist() != both["probability"].to_pylist()
    assert set(both["shadow_version"].to_pylist()) == {"cards/2"}
    # The window columns are those of the version that answered.
    assert (both["amount"][5].as_py(), alone["amount"][5].as_py()) == ((0 + 50) / 2, 50.0)


def test_promotions_are_live_under_load_and_all_answers_are_written(tmp_path: Path, mlflow_template: Path) -> None:
    root, [port] = tmp_path / "store", free_ports(1)
    root.mkdir()
    shutil.copy(mlflow_template, root / "mlflow.db")
    raw = {
        "data": {"path": str(tmp_path / "data"), "columns": COLUMNS},
        "storage": {"root": str(root)},
        "registry": {"model_name": "cards"},
        "serving": {"port": port, "poll_s": 0.1, "shadow": "challenger"},
    }
    config = tmp_path / "cards.yaml"
    config.write_text(yaml.safe_dump(raw))
    tracking, storage = connect(load_settings(config).settings.registry), Storage.at(str(root))
    for number, slope in ((1, 0.01), (2, -0.01)):
        register(tracking.start(f"run-{number}", {}), write_bundle(tmp_path / f"b{number}", slope=slope), example())
    command = [sys.executable, "-m", "fraud_ray", "serve", "-c", str(config), "--without-token"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    url, replies, ends = f"http://127.0.0.1:{port}", [], threading.Event()

    def ask() -> None:
        with httpx.Client() as client:
            while not ends.is_set():
                number = len(replies)
                body = {"transactions": [transaction(number, transaction_id=f"t{number}")]}
                reply = client.post(f"{url}/score", json=body)
                replies.append((reply.status_code, reply.json()["scores"][0]["model_version"]))

    try:
        wait(lambda: status_of(f"{url}/v2/health/ready") == 200)
        asking = threading.Thread(target=ask)
        asking.start()
        for move, version in ((lambda: promote(tracking, storage, 2), 2), (lambda: rollback(tracking, storage), 1)):
            move()
            wait(lambda version=version: replies[-1] == (200, version))
        wait(lambda: len(replies) > 200)
        ends.set()
        asking.join()
        figures = httpx.get(f"{url}/metrics").text
    finally:
        ends.set()
        process.terminate()
        assert process.wait(30) == 143
    assert {status for status, _ in replies} == {200}
    assert "fraud_ray_journal_dropped_rows 0.0" in figures
    assert "fraud_ray_model_waiting 0.0" in figures
    written = rows_at(root / "served").sort_by("transaction_id")
    told = {f"t{number}": f"cards/{version}" for number, (_, version) in enumerate(replies)}
    assert dict(zip(written["transaction_id"].to_pylist(), written["model_version"].to_pylist(), strict=True)) == told
    pairs = set(zip(written["model_version"].to_pylist(), written["shadow_version"].to_pylist(), strict=True))
    assert ("cards/1", "cards/2") in pairs
    files = [file for file in (root / "served").rglob("*.parquet") if "_answered" not in str(file)]
    assert files and all(pq.read_metadata(file).num_rows for file in files)
