"""Champion and challenger on what was served: as retraining compares them, each transaction once."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from sklearn.metrics import average_precision_score
from typer.testing import CliRunner, Result

from fraud_ray.cli import app
from fraud_ray.errors import DataError, SettingsError
from fraud_ray.registry.opened import open_folder
from fraud_ray.registry.promotion import promote
from fraud_ray.registry.tracking import Tracking, connect
from fraud_ray.registry.versions import register
from fraud_ray.serving.following import served_of
from fraud_ray.serving.hours import close_hour, put_piece
from fraud_ray.serving.journal import table_of
from fraud_ray.serving.judging import FEW_FRAUDS, judge
from fraud_ray.settings import Settings, load_settings
from fraud_ray.storage import Storage
from tests.handmade import example, write_bundle
from tests.test_journal import COLUMNS, batch, transaction

ROWS = 600


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, mlflow_template: Path) -> Path:
    """A storage with a poor champion, a good challenger, and what both said of ROWS transactions, some of it twice."""
    root = tmp_path_factory.mktemp("judged") / "store"
    root.mkdir()
    shutil.copy(mlflow_template, root / "mlflow.db")
    settings = settings_in(root)
    tracking, data = connect(settings.registry), settings.data
    versions = []
    for number, slope in enumerate((-0.001, 0.01), 1):
        bundle = write_bundle(root / f"bundle-{number}", slope=slope)
        register(tracking.start(f"run-{number}", {}), bundle, example())
        one = served_of(open_folder(str(bundle), root), data, datetime(2024, 3, 1, tzinfo=UTC))
        versions.append(replace(one, name="cards", version=str(number)))
    table = table_of([batch(*versions, transactions())], *versions)
    target = str(root / "served")
    put_piece(target, "2024-03-01T10", "abc", 1, table.slice(0, 400))
    close_hour(target, "2024-03-01T10", "abc")
    put_piece(target, "2024-03-01T11", "def", 1, table.slice(300))
    return root


def transactions() -> list[dict[str, object]]:
    draw = np.random.default_rng(5)
    return [
        transaction(number, amount=float(draw.gamma(2, 100)), card=int(draw.integers(80))) for number in range(ROWS)
    ]


def frauds() -> np.ndarray:
    """Frauds are of large amounts."""
    noise = np.random.default_rng(6).normal(0, 60, ROWS)
    return np.array([one["amount"] for one in transactions()], float) + noise > 420


def settings_in(root: Path) -> Settings:
    raw = {
        "data": {"path": "data", "columns": COLUMNS},
        "storage": {"root": str(root)},
        "registry": {"model_name": "cards", "uri": f"sqlite:///{root}/mlflow.db"},
        "retrain": {"metric": "average_precision", "repeats": 200},
    }
    (root / "cards.yaml").write_text(yaml.safe_dump(raw))
    return load_settings(root / "cards.yaml").settings


def write_labels(folder: Path, rows: int) -> str:
    """Labels of the first rows, by id, in another order, the first one corrected; and of one that nobody served."""
    folder.mkdir()
    fraud = frauds().astype(np.int8)
    ids = [*(f"t{number}" for number in reversed(range(rows))), "t0", "elsewhere"]
    labels = [*fraud[:rows][::-1].tolist()[:-1], 1 - int(fraud[0]), int(fraud[0]), 1]
    pq.write_table(
        pa.table({"transaction_id": ids, "is_fraud": pa.array(labels, pa.int8())}), folder / "labels.parquet"
    )
    return str(folder)


def compare(root: Path, *options: str) -> Result:
    return CliRunner().invoke(app, ["models", "compare", "-c", str(root / "cards.yaml"), *options])


def registry_in(root: Path) -> Tracking:
    return connect(settings_in(root).registry)


def test_the_better_challenger_is_found_on_what_was_served_and_the_next_command_named(
    made: Path, tmp_path: Path
) -> None:
    labels = write_labels(tmp_path / "labels", 500)
    judged = judge(settings_in(made), registry_in(made), Storage.at(str(made)), str(made / "served"), labels)
    fraud = frauds()[:500]
    assert fraud.sum() > FEW_FRAUDS
    assert (judged.served, judged.labelled, judged.frauds) == (ROWS, 500, int(fraud.sum()))
    assert (judged.champion, judged.challenger, judged.is_better) == (1, 2, True)
    found = judged.comparison
    assert found is not None
    for version, figure in ((1, found.champion), (2, found.challenger)):
        bundle = open_folder(str(made / f"bundle-{version}"), tmp_path)
        served = served_of(bundle, settings_in(made).data)
        scores = batch(served, None, transactions()[:500]).said.probability
        assert figure == pytest.approx(average_precision_score(fraud, scores), abs=1e-9)
    assert found.low < found.difference < found.high

    done = compare(made, "--labels", labels)
    assert done.exit_code == 0, done.output
    assert f"600 scored by both; labels have come for 500 of them, {judged.frauds} frauds" in done.stdout
    assert "the challenger, version 2, is better" in done.stdout
    assert f"models promote 2 -c {made / 'cards.yaml'}" in done.stdout


def test_few_frauds_are_no_ground_to_promote_on(made: Path, tmp_path: Path) -> None:
    labels = write_labels(tmp_path / "labels", 60)
    told = json.loads(compare(made, "--labels", labels, "--json").stdout)
    assert (told["labelled"], told["few_frauds"], told["is_better"]) == (60, True, False)
    done = compare(made, "--labels", labels)
    assert ("too few frauds to judge by" in done.stdout, "models promote" in done.stdout) == (True, False)
    assert "no label has come yet; --labels DIR says where they lie" in compare(made).stdout


def test_labels_may_stand_beside_the_answers(made: Path, tmp_path: Path) -> None:
    answers = pa.concat_tables([pq.ParquetFile(file).read() for file in sorted((made / "served").rglob("*.parquet"))])
    known = dict(zip((f"t{number}" for number in range(ROWS)), frauds().tolist(), strict=True))
    labels = pa.array([known[id] if id != "t7" else None for id in answers["transaction_id"].to_pylist()])
    (tmp_path / "answers").mkdir()
    pq.write_table(answers.append_column("is_fraud", labels), tmp_path / "answers/all.parquet")
    told = json.loads(compare(made, "--served", str(tmp_path / "answers"), "--json").stdout)
    assert (told["served"], told["labelled"], told["frauds"]) == (ROWS, ROWS - 1, int(frauds().sum()))


def test_what_other_versions_said_does_not_count_and_is_named(made: Path, tmp_path: Path) -> None:
    shutil.copy(made / "mlflow.db", tmp_path)
    settings, tracking, storage = settings_in(tmp_path), registry_in(tmp_path), Storage.at(str(tmp_path))
    promote(tracking, storage, 2)
    with pytest.raises(SettingsError, match="no version of cards is challenger"):
        judge(settings, tracking, storage, str(made / "served"), None)
    tracking.client.set_registered_model_alias("cards", "challenger", "1")
    with pytest.raises(DataError, match=r"cards/2 answered and cards/1 .* 700 of cards/1 with cards/2"):
        judge(settings, tracking, storage, str(made / "served"), None)
    with pytest.raises(DataError, match=r"but nothing that serving wrote; set serving\.shadow"):
        judge(settings, tracking, storage, str(tmp_path / "nowhere"), None)
