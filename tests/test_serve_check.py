"""Online equals batch: transactions and labels replayed through real endpoints, every value compared to the bit."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import yaml

from fraud_ray.scoring.partitions import Model
from fraud_ray.serving.check import Endpoint, expect, first_partitions, replay
from fraud_ray.settings import ClusterSettings, Settings
from fraud_ray.windows.definition import Definition
from tests.cards import COLUMNS, TIMED_COLUMNS, days, timed, write_days, write_partition
from tests.handmade import write_bundle
from tests.rays import free_ports
from tests.stores import status_of, valkey

# The handmade graph reads `amount`, `night` and `merchant`; the first two are windows, and others are compared too.
RAW = {"amount": "spent", "category": "merchant"}
WINDOWS: dict[str, Any] = {
    "amount": {"compute": "mean", "of": "spent", "entity": "card", "days": [3]},
    "night": {"compute": "night"},
    "count_{days}d": {"compute": "count", "entity": "card", "days": [1, 7]},
    "merchants": {"compute": "distinct", "of": "merchant", "entity": "card", "days": [7]},
    "deviations": {"compute": "deviations", "of": "spent", "among": "legitimate", "entity": "card", "days": [7]},
    "risk_{days}d": {"compute": "share", "among": "frauds", "entity": "merchant", "days": [1, 3]},
    "streak": {"compute": "streak", "among": "legitimate", "entity": "card", "days": [7]},
    # Of a window column of another entity.
    "deviation": {"compute": "min", "of": "deviations", "among": "frauds", "entity": "merchant", "days": [3]},
}


def columns_of(declared: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    columns = {RAW.get(name, name): column for name, column in declared.items() if name != "probability"}
    return {**columns, "spent": {"kind": "amount"}}


def world(root: Path, count: int, rows: int, with_label_times: bool = False) -> Path:
    """A configuration of labelled partitions, a model of their windows beside it."""
    tables = write_days(root / "data", count, rows, cards=max(6, rows // 20))
    for day, table in zip(days(count), tables, strict=True):
        held = timed(table, days(count)[-1]) if with_label_times else table
        held = held.drop_columns("probability").rename_columns(
            [RAW.get(n, n) for n in held.column_names if n != "probability"]
        )
        write_partition(root / "data", f"date={day}/part-0.parquet", held)
    settings = {
        "data": {"path": str(root / "data"), "columns": columns_of(TIMED_COLUMNS if with_label_times else COLUMNS)},
        "windows": {"label_delay_days": 2, "columns": WINDOWS},
        "folds": {"delay_days": 2},
        "storage": {"root": str(root / "store")},
    }
    definition = Definition.of(Settings.model_validate(settings))
    assert definition is not None
    bundle = write_bundle(root / "bundle")
    windows = {"definition": definition.to_json(), "state": "none: begun afresh"}
    (bundle / "bundle.json").write_text(json.dumps({"origin": {"windows": windows}}))
    config = root / "check.yaml"
    config.write_text(yaml.safe_dump(settings))
    return config


def serve_check(config: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "fraud_ray", "serve-check", "-c", str(config), "--json", *options]
    return subprocess.run([*command, "--model", str(config.parent / "bundle")], capture_output=True, text=True)


@pytest.mark.parametrize("with_label_times", [False, True], ids=["delays", "label times"])
def test_what_is_answered_equals_batch_scoring_value_by_value(tmp_path, with_label_times):
    # With label times many requests hold one transaction, as labels become known between them.
    count, rows = (20, 1_000) if not with_label_times else (10, 150)
    done = serve_check(world(tmp_path, count, rows, with_label_times))
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found["transactions"], found["differing"], found["first"]) == (count * rows, 0, None)
    assert found["values"] == count * rows * 11
    assert found["labels"] > count * rows / 2
    assert len(list((tmp_path / "store").rglob("*"))) == 0, "nothing that is served is touched"


def test_the_first_value_that_differs_is_shown_whole(tmp_path):
    config = world(tmp_path, 3, 60)
    # An endpoint of another model, whose graph weighs amounts twice as much.
    settings = yaml.safe_load(config.read_text())
    other = tmp_path / "other" / "bundle"
    write_bundle(other, slope=0.02)
    (other / "bundle.json").write_bytes((tmp_path / "bundle" / "bundle.json").read_bytes())
    with ExitStack() as held:
        (url,) = held.enter_context(serving(config, settings, other, None, 1))
        done = serve_check(config, "--url", url)
    assert done.returncode == 1, done.stderr
    found = json.loads(done.stdout)
    assert found["differing"] > 100
    assert found["first"]["column"] == "probability" and found["first"]["transaction"]["transaction_id"]


def test_what_is_no_endpoint_is_refused_before_anything_is_scored(tmp_path):
    done = serve_check(world(tmp_path, 1, 60), "--url", "notaurl")
    assert done.returncode == 2 and "'notaurl' is no URL of an endpoint" in done.stderr


class serving:  # noqa: N801 - a context manager
    """Replicas of one past; their URLs, and `processes`."""

    def __init__(self, config: Path, settings: dict[str, Any], bundle: Path, store: str | None, count: int) -> None:
        self.ports = free_ports(count)
        command = [sys.executable, "-m", "fraud_ray", "serve", "-c", str(config), "--model", str(bundle)]
        shared = ["--set", f"serving.store={store}"] if store else []
        self.commands = [
            [*command, *shared, "--set", f"serving.port={port}", "--without-token", "--fresh", "test"]
            for port in self.ports
        ]
        self.processes: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> list[str]:
        for command in self.commands:
            self.processes.append(subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL))
        urls = [f"http://127.0.0.1:{port}" for port in self.ports]
        deadline = time.monotonic() + 120
        while any(status_of(f"{url}/v2/health/ready") != 200 for url in urls):
            assert time.monotonic() < deadline and all(p.poll() is None for p in self.processes)
            time.sleep(0.2)
        return urls

    def __exit__(self, *fault: object) -> None:
        for process in self.processes:
            process.terminate()
        for process in self.processes:
            process.wait(60)


@pytest.mark.parametrize(
    "rows", [pytest.param(20_000, marks=pytest.mark.long), pytest.param(200_000, marks=pytest.mark.slow)]
)
def test_a_replica_killed_in_the_middle_changes_no_value(tmp_path, rows):
    config = world(tmp_path, rows // 2_000, 2_000)
    settings = yaml.safe_load(config.read_text())
    parsed = Settings.model_validate(settings)
    definition = Definition.of(parsed)
    assert definition is not None
    windows = {"definition": definition.to_json(), "state": ""}
    model = Model("test", (tmp_path / "bundle" / "model.onnx").read_bytes(), windows)
    names = [name for name in parsed.raw_data.columns if name not in definition.labels]
    source = first_partitions(parsed.raw_data, None)
    expected = expect(model, source, parsed.raw_data, names, tmp_path / "scratch", ClusterSettings(), lambda *_: None)
    with valkey(tmp_path) as store, ExitStack() as held:
        replicas = serving(config, settings, tmp_path / "bundle", store.url, 2)
        urls = held.enter_context(replicas)

        def kill_in_the_middle(done: float, total: float, text: str) -> None:
            if done > total / 2 and replicas.processes[0].poll() is None:
                replicas.processes[0].kill()

        found = replay(expected, Endpoint(urls, None), kill_in_the_middle)
    assert (found.transactions, found.differing, found.first) == (rows, 0, None)
    assert found.again > 0, "a replica was asked that had been killed"
