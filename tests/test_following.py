"""Serving follows the champion of a real registry: at once, without a request that fails, and never into a forgery."""

from __future__ import annotations

import asyncio
import json
import logging
import shutil
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from fraud_ray.errors import SettingsError
from fraud_ray.registry.promotion import promote, record_registration, rollback
from fraud_ray.registry.tracking import Tracking, connect
from fraud_ray.registry.versions import register
from fraud_ray.serving.following import NOT_PRIMED, Following
from fraud_ray.settings import Settings, parse_settings
from fraud_ray.storage import Storage
from fraud_ray.windows.definition import Definition
from tests.handmade import example, expected, write_bundle

COLUMNS = {
    "time": {"kind": "timestamp"},
    "card": {"kind": "entity"},
    "amount": {"kind": "amount"},
    "night": {"kind": "boolean"},
    "merchant": {"kind": "categorical"},
    "is_fraud": {"kind": "label"},
}
ROW = pa.table({"amount": [250.0], "night": [True], "merchant": ["shop"]})
SLOPES = (0.01, -0.01, 0.02)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, mlflow_template: Path) -> Path:
    """A storage whose registry has three versions, each of another slope, and the last of windows; 1 is champion."""
    root = tmp_path_factory.mktemp("following") / "store"
    root.mkdir()
    shutil.copy(mlflow_template, root / "mlflow.db")
    tracking = registry_in(root)
    for number, slope in enumerate(SLOPES, 1):
        bundle = write_bundle(root / f"runs/run-{number}/bundle", slope=slope)
        if number == 3:
            definition = Definition.of(settings_in(root, windowed=True))
            assert definition is not None
            windows = {"definition": definition.to_json(), "state": "a-state"}
            (bundle / "bundle.json").write_text(json.dumps({"origin": {"windows": windows}}))
        run = tracking.start(f"run-{number}", {})
        record_registration(run, Storage.at(str(root)), register(run, bundle, example()))
    return root


@pytest.fixture
def root(made: Path, tmp_path: Path) -> Path:
    shutil.copy(made / "mlflow.db", tmp_path)
    shutil.copytree(made / "audit", tmp_path / "audit")
    return tmp_path


def settings_in(root: Path, windowed: bool = False, **serving: object) -> Settings:
    columns = {"spent": {"entity": "card", "compute": "sum", "of": "amount", "days": [7]}}
    raw = {
        "data": {"path": "data", "columns": COLUMNS},
        "storage": {"root": str(root)},
        "registry": {"model_name": "cards", "uri": f"sqlite:///{root}/mlflow.db"},
        "serving": {"poll_s": 0.02, **serving},
        **({"windows": {"columns": {"spent_{days}d": columns["spent"]}}} if windowed else {}),
    }
    return parse_settings(raw, "a test")


def registry_in(root: Path) -> Tracking:
    return connect(settings_in(root).registry)


async def always(definition: Definition, state: str | None) -> bool:
    return True


async def until(holds: Callable[[], bool]) -> None:
    for _ in range(3_000):
        if holds():
            return
        await asyncio.sleep(0.02)
    raise AssertionError("it never came to be so")


def followed(following: Following, act: Callable[[Following], Awaitable[None]]) -> None:
    """Starts to follow, does something, and stops."""

    async def whole() -> None:
        await following.start()
        try:
            await act(following)
        finally:
            await following.stop()

    asyncio.run(whole())


def probability(following: Following) -> tuple[str, float]:
    served = following.current
    return served.version, float(served.scorer.score(ROW)[0])


def test_a_promotion_and_a_rollback_are_live_and_no_request_fails(root: Path) -> None:
    tracking, storage = registry_in(root), Storage.at(str(root))
    answers: list[tuple[str, float]] = []

    async def ask(following: Following) -> None:
        while True:
            answers.append(probability(following))
            await asyncio.sleep(0)

    async def act(following: Following) -> None:
        asking = asyncio.create_task(ask(following))
        for move, version in ((lambda: promote(tracking, storage, 2), "2"), (lambda: rollback(tracking, storage), "1")):
            await asyncio.to_thread(move)
            await until(lambda version=version: following.current.version == version)
        asking.cancel()
        assert following.ready

    followed(Following(settings_in(root), always), act)
    assert len(answers) > 20
    assert {version for version, _ in answers} == {"1", "2"}
    for version, answer in answers:
        np.testing.assert_allclose(answer, expected(250, 1, "shop", SLOPES[int(version) - 1]), rtol=1e-6)


def test_a_version_that_is_not_what_was_registered_is_not_taken_and_why_is_said(
    root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tracking, storage = registry_in(root), Storage.at(str(root))
    location = Path(tracking.client.get_model_version_download_uri("cards", "2").removeprefix("file://"))
    graph = location / "artifacts/model.onnx"
    whole = graph.read_bytes()
    caplog.set_level(logging.WARNING, "fraud_ray.serving")

    async def act(following: Following) -> None:
        await asyncio.to_thread(promote, tracking, storage, 2)
        await until(lambda: following.waiting is not None)
        await asyncio.sleep(0.2)
        assert following.waiting is not None
        version, why = following.waiting
        assert (version, "is not what was registered: model.onnx has" in why) == ("2", True)
        assert (following.current.version, following.ready) == ("1", True)
        graph.write_bytes(whole)
        await until(lambda: following.current.version == "2")
        assert following.waiting is None

    graph.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    try:
        followed(Following(settings_in(root), always), act)
    finally:
        graph.write_bytes(whole)
    assert sum("does not answer yet" in line for line in caplog.messages) == 1


def test_a_version_of_other_windows_answers_once_their_past_is_primed(root: Path) -> None:
    tracking, storage = registry_in(root), Storage.at(str(root))
    asked: list[tuple[str, str | None]] = []
    is_primed = asyncio.Event()

    async def primed(definition: Definition, state: str | None) -> bool:
        asked.append((definition.names[0], state))
        return is_primed.is_set()

    async def act(following: Following) -> None:
        assert asked == []
        await asyncio.to_thread(promote, tracking, storage, 3)
        await until(lambda: following.waiting is not None)
        assert (following.waiting, following.current.version) == (("3", NOT_PRIMED), "1")
        assert asked[0] == ("spent_7d", "a-state")
        is_primed.set()
        await until(lambda: following.current.version == "3")
        assert following.current.definition is not None
        assert following.current.data == following.current.definition.data

    followed(Following(settings_in(root), primed), act)


def test_a_load_of_minutes_keeps_no_other_version_from_its_place(root: Path) -> None:
    tracking, storage = registry_in(root), Storage.at(str(root))
    loads = 0

    async def primed(definition: Definition, state: str | None) -> bool:
        nonlocal loads
        loads += 1
        await asyncio.sleep(600)
        return True

    async def act(following: Following) -> None:
        await asyncio.to_thread(promote, tracking, storage, 3)
        await until(lambda: following.waiting == ("3", NOT_PRIMED))
        await asyncio.to_thread(promote, tracking, storage, 2)
        await until(lambda: following.current.version == "2")
        assert (following.waiting, loads) == (None, 1)

    followed(Following(settings_in(root), primed), act)


def test_the_first_version_is_not_ready_before_its_past_is_primed(root: Path) -> None:
    promote(registry_in(root), Storage.at(str(root)), 3)
    is_primed = asyncio.Event()

    async def primed(definition: Definition, state: str | None) -> bool:
        return is_primed.is_set()

    async def act(following: Following) -> None:
        assert (following.current.version, following.ready, following.waiting) == ("3", False, ("3", NOT_PRIMED))
        is_primed.set()
        await until(lambda: following.ready)
        is_primed.clear()  # as while the store is away: who answered once goes on
        await asyncio.sleep(0.1)
        assert (following.ready, following.waiting) == (True, None)

    followed(Following(settings_in(root), primed), act)


def test_while_the_registry_is_away_the_version_that_is_there_answers(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tracking, storage = registry_in(root), Storage.at(str(root))

    def away(*arguments: object) -> None:
        raise MlflowException("connection refused")

    async def act(following: Following) -> None:
        with monkeypatch.context() as broken:
            broken.setattr(MlflowClient, "get_registered_model", away)
            await until(lambda: following.fault is not None)
            assert "connection refused; check registry.uri" in str(following.fault)
            assert probability(following)[0] == "1"
        await asyncio.to_thread(promote, tracking, storage, 2)
        await until(lambda: following.current.version == "2")
        assert following.fault is None

    followed(Following(settings_in(root), always), act)


def test_the_challenger_is_the_shadow_where_that_is_wanted(root: Path) -> None:
    async def act(following: Following) -> None:
        assert following.shadow is not None
        assert (following.current.version, following.shadow.version) == ("1", "3")
        await asyncio.to_thread(promote, registry_in(root), Storage.at(str(root)), 3)
        await until(lambda: following.shadow is None)

    followed(Following(settings_in(root, shadow="challenger"), always), act)


def test_a_bundles_folder_answers_for_good(root: Path, made: Path) -> None:
    async def act(following: Following) -> None:
        assert (following.current.name, following.ready, following.waiting) == ("bundle", True, None)
        assert len(following.current.version) == 12

    followed(Following(settings_in(root), always, uri=str(made / "runs/run-1/bundle")), act)


def test_without_a_champion_serving_does_not_start(root: Path) -> None:
    registry_in(root).client.delete_registered_model_alias("cards", "champion")
    with pytest.raises(SettingsError, match="no champion to serve: `fraud-ray run -c FILE` registers"):
        asyncio.run(Following(settings_in(root), always).start())


def test_following_imports_neither_ray_nor_torch(root: Path) -> None:
    settings = settings_in(root)
    script = f"""
import asyncio, sys
import fraud_ray.serving.app, fraud_ray.serving.shadow
from fraud_ray.serving.following import Following
from fraud_ray.settings import Settings
assert "mlflow" not in sys.modules
following = Following(Settings.model_validate_json({settings.model_dump_json()!r}), None)
async def main():
    await following.start()
    await following.stop()
asyncio.run(main())
print(following.current.version, {{"ray", "torch", "mlflow"}} & sys.modules.keys())
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.stdout == "1 {'mlflow'}\n", done.stderr
