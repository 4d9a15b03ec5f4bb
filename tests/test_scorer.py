"""The registered model as its users meet it: loaded by MLflow, given what pandas makes of their data."""

from __future__ import annotations

import importlib.metadata
import json
import subprocess
import sys
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from pathlib import Path

import mlflow.models
import mlflow.pyfunc
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from mlflow.exceptions import MlflowException
from mlflow.types.schema import ColSpec, DataType, Schema
from packaging.version import Version

from fraud_ray.model.calibration import Calibration
from fraud_ray.registry.versions import write_model
from tests.handmade import THRESHOLD, example, expected, write_bundle
from tests.test_graph import COLUMNS, made_bundle, trainer_probabilities

REFERENCE = {"amount": 250.0, "night": 1.0, "merchant": "shop"}


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scorer")
    write_model(write_bundle(folder / "bundle"), example(), str(folder / "model"))
    return folder / "model"


@pytest.fixture(scope="module")
def model(model_folder: Path):
    return mlflow.pyfunc.load_model(str(model_folder))


def table(**columns: pd.Series) -> pd.DataFrame:
    """Two rows: the reference, with the given columns in place of its own."""
    return pd.DataFrame({**{name: [value] * 2 for name, value in REFERENCE.items()}, **columns})


NUMBERS = {
    "float64": pd.Series([250.0, np.nan]),
    "float32": pd.Series([250.0, np.nan], dtype="float32"),
    "int64": pd.Series([250, 0]),
    "int8": pd.Series([100, 0], dtype="int8"),
    "uint64": pd.Series([250, 0], dtype="uint64"),
    "decimals with None": pd.Series([Decimal("250"), None], dtype=object),
    "nullable integer": pd.Series([250, pd.NA], dtype="Int64"),
    "nullable float": pd.Series([250.0, pd.NA], dtype="Float64"),
    "objects with None": pd.Series([250, None], dtype=object),
    "objects with NA": pd.Series([250, pd.NA], dtype=object),
    "arrow": pd.Series([250.0, None], dtype="double[pyarrow]"),
}


@pytest.mark.parametrize("kind", NUMBERS)
def test_numbers_of_any_type_and_missing_ones_are_scored(model, kind):
    amounts = NUMBERS[kind]
    present = float(amounts[0])
    scored = model.predict(table(amount=amounts))
    wanted = [expected(present, 1.0, "shop"), expected(0.0, 1.0, "shop")]  # the handmade graph takes missing as 0
    np.testing.assert_allclose(scored["probability"], wanted, rtol=1e-6)


BOOLEANS = {
    "bool": pd.Series([True, False]),
    "nullable boolean": pd.Series([True, pd.NA], dtype="boolean"),
    "objects with None": pd.Series([True, None], dtype=object),
    "floats with NaN": pd.Series([1.0, np.nan]),
    "integers": pd.Series([1, 0]),
}


@pytest.mark.parametrize("kind", BOOLEANS)
def test_booleans_of_any_type_and_missing_ones_are_scored(model, kind):
    scored = model.predict(table(night=BOOLEANS[kind]))
    wanted = [expected(250.0, 1.0, "shop"), expected(250.0, 0.0, "shop")]
    np.testing.assert_allclose(scored["probability"], wanted, rtol=1e-6)


def test_a_boolean_that_comes_as_text_is_read_by_the_text_that_means_true(tmp_path):
    write_model(write_bundle(tmp_path / "bundle", night="2"), example(), str(tmp_path / "model"))
    model = mlflow.pyfunc.load_model(str(tmp_path / "model"))
    for nights in (pd.Series(["2", "1"]), pd.Series([2.0, np.nan]), pd.Series(["2", None], dtype="category")):
        wanted = [expected(250.0, 1.0, "shop"), expected(250.0, 0.0, "shop")]
        np.testing.assert_allclose(model.predict(table(night=nights))["probability"], wanted, rtol=1e-6)


TEXTS = {
    "pandas text": pd.Series(["casino", None]),
    "objects with None": pd.Series(["casino", None], dtype=object),
    "objects with NaN": pd.Series(["casino", np.nan], dtype=object),
    "objects with NA": pd.Series(["casino", pd.NA], dtype=object),
    "empty text": pd.Series(["casino", ""]),
    "categories": pd.Series(["casino", None], dtype="category"),
    "arrow": pd.Series(["casino", None], dtype="string[pyarrow]"),
}


@pytest.mark.parametrize("kind", TEXTS)
def test_texts_of_any_type_and_missing_ones_are_scored(model, kind):
    scored = model.predict(table(merchant=TEXTS[kind]))
    wanted = [expected(250.0, 1.0, "casino"), expected(250.0, 1.0, "")]
    np.testing.assert_allclose(scored["probability"], wanted, rtol=1e-6)


@pytest.fixture(scope="module")
def clock(tmp_path_factory: pytest.TempPathFactory):
    """A model that reads a time alone, its bundle and what MLflow loads of it."""
    folder = tmp_path_factory.mktemp("clock")
    bundle = made_bundle(COLUMNS[5:], Calibration())
    bundle.save(folder / "bundle")
    write_model(folder / "bundle", bundle.encoder.typical_rows().to_pandas(), str(folder / "model"))
    return bundle, mlflow.pyfunc.load_model(str(folder / "model"))


MOMENT = datetime(2024, 3, 2, 23, 30)
IN_TOKYO = MOMENT.replace(tzinfo=UTC).astimezone(timezone(timedelta(hours=9)))
TIMES = {
    "pandas times": pd.Series([MOMENT, None]),
    "nanoseconds": pd.Series([MOMENT, None]).astype("datetime64[ns]"),
    "another zone": pd.Series([IN_TOKYO, None]),
    "objects with NA": pd.Series([MOMENT, pd.NA], dtype=object),
    "text": pd.Series([MOMENT.isoformat(), None]),
    "text with a zone": pd.Series([IN_TOKYO.isoformat(), ""], dtype=object),
    "arrow": pd.Series([MOMENT, None], dtype="timestamp[ms][pyarrow]"),
}


@pytest.mark.parametrize("kind", TIMES)
def test_times_of_any_type_and_missing_ones_are_scored(clock, kind):
    bundle, model = clock
    wanted = trainer_probabilities(bundle, pa.table({"at": pa.array([MOMENT, None], pa.timestamp("us"))}))
    assert wanted[0] != wanted[1]
    np.testing.assert_allclose(model.predict(pd.DataFrame({"at": TIMES[kind]}))["probability"], wanted, atol=1e-6)
    assert model.predict(pd.DataFrame({"at": TIMES[kind][:1]}))["probability"][0] == pytest.approx(wanted[0], abs=1e-6)


def test_the_example_of_a_time_is_scored_and_what_is_no_time_is_refused_by_its_column(clock):
    _, model = clock
    assert len(model.predict(model.input_example)) == 2
    for wrong in (pd.Series([5, 7]), pd.Series([5, None], dtype=object), pd.Series(["yesterday"])):
        with pytest.raises(ValueError, match="column 'at' holds what is no time"):
            model.predict(pd.DataFrame({"at": wrong}))


def test_unseen_categories_are_scored_whatever_they_are(model):
    for unseen in (pd.Series(["never", "seen"]), pd.Series([5, 7]), pd.Series([5.0, 7.5]), pd.Series([True, False])):
        scored = model.predict(table(merchant=unseen))
        np.testing.assert_allclose(scored["probability"], expected(250.0, 1.0, "never"), rtol=1e-6)


@pytest.mark.parametrize("frames", [NUMBERS, BOOLEANS, TEXTS, TIMES], ids=["numbers", "booleans", "texts", "times"])
def test_every_type_that_the_signature_could_state_would_refuse_what_is_scored(model, frames):
    assert {str(column.type) for column in model.metadata.get_input_schema()} == {"Any"}

    def is_refused(values, kind):
        try:
            mlflow.models.validate_schema(pd.DataFrame({"column": values}), Schema([ColSpec(kind, "column")]))
        except (MlflowException, ValueError):
            return True
        return False

    for kind in DataType:
        assert any(is_refused(values, kind) for values in frames.values()), f"{kind} refuses none: the signature's type"


def test_all_values_missing_are_scored(model):
    scored = model.predict(pd.DataFrame({name: [None] for name in REFERENCE}))
    np.testing.assert_allclose(scored["probability"], expected(0.0, 0.0, ""), rtol=1e-6)


def test_columns_come_in_any_order_and_others_are_ignored(model):
    rows = table(merchant=pd.Series(["casino", "shop"]))
    mixed = rows.assign(unknown="x")[["unknown", "merchant", "night", "amount"]]
    pd.testing.assert_frame_equal(model.predict(mixed), model.predict(rows))


def test_the_decision_is_whether_the_probability_reaches_the_threshold(model):
    amounts = np.linspace(-1000, 1000, 101)
    scored = model.predict(pd.DataFrame({"amount": amounts, "night": False, "merchant": "shop"}))
    assert scored["decision"].dtype == bool
    assert list(scored["decision"]) == list(scored["probability"] >= THRESHOLD)
    assert 0 < scored["decision"].sum() < len(amounts)


def test_rows_keep_their_index_and_none_are_needed(model):
    rows = table().set_index(pd.Index(["b", "b"]))
    from_3_17_on = Version(importlib.metadata.version("mlflow")) >= Version("3.17")  # before, MLflow numbers them anew
    assert list(model.predict(rows).index) == (["b", "b"] if from_3_17_on else [0, 1])
    assert len(model.predict(rows.iloc[:0])) == 0


def test_a_missing_column_is_named(model):
    with pytest.raises(Exception, match="merchant"):
        model.predict(table().drop(columns="merchant"))
    with pytest.raises(ValueError, match="merchant"):
        model.unwrap_python_model().predict(None, table().drop(columns="merchant"))


def test_text_where_a_number_belongs_is_refused_by_its_column(model):
    with pytest.raises(ValueError, match="column 'amount' holds what is no number"):
        model.predict(table(amount=pd.Series(["much", "more"])))


def test_what_a_client_posts_to_a_scoring_server_is_scored(model, model_folder):
    from mlflow.pyfunc.scoring_server import infer_and_parse_data

    rows = {"columns": list(REFERENCE), "data": [[250, True, "shop"], [None, None, None]]}
    parsed = infer_and_parse_data({"dataframe_split": rows}, schema=model.metadata.get_input_schema())
    wanted = [expected(250.0, 1.0, "shop"), expected(0.0, 0.0, "")]
    np.testing.assert_allclose(model.predict(parsed)["probability"], wanted, rtol=1e-6)


def test_two_models_live_side_by_side_in_one_process(model, tmp_path):
    write_model(write_bundle(tmp_path / "bundle", slope=-0.01), example(), str(tmp_path / "model"))
    other = mlflow.pyfunc.load_model(str(tmp_path / "model"))
    for _ in range(2):
        assert model.predict(table())["probability"][0] == pytest.approx(expected(250.0, 1.0, "shop"), rel=1e-6)
        assert other.predict(table())["probability"][0] == pytest.approx(expected(250.0, 1.0, "shop", -0.01), rel=1e-6)


def test_the_model_holds_no_pickle_and_asks_for_exact_versions_of_four_packages(model_folder):
    files = [path.name for path in model_folder.rglob("*") if path.is_file()]
    assert not [name for name in files if name.endswith((".pkl", ".pickle", ".pt", ".joblib"))]
    assert not [path for path in model_folder.rglob("*") if path.is_file() and path.read_bytes()[:1] == b"\x80"]
    requirements = (model_folder / "requirements.txt").read_text().split()
    assert [r.partition("==")[0] for r in requirements] == ["mlflow", "numpy", "onnxruntime", "pandas"]
    assert all(r.partition("==")[2] for r in requirements)


def test_the_input_example_is_valid_json_and_is_scored(model, model_folder):
    assert "NaN" not in (model_folder / "input_example.json").read_text()
    assert list(model.input_example.columns) == ["amount", "night", "merchant"]
    assert len(model.predict(model.input_example)) == len(example())


@pytest.mark.slow
def test_the_model_loads_where_only_its_own_requirements_are_installed(model_folder, tmp_path):
    python = tmp_path / "venv" / "bin" / "python"
    subprocess.run([sys.executable, "-m", "venv", str(tmp_path / "venv")], check=True)
    requirements = str(model_folder / "requirements.txt")
    subprocess.run([str(python), "-m", "pip", "install", "--quiet", "-r", requirements], check=True)
    code = (
        "import importlib.util, json, sys, mlflow, pandas as pd\n"
        "assert not [p for p in ('fraud_ray', 'ray', 'torch') if importlib.util.find_spec(p)]\n"
        "model = mlflow.pyfunc.load_model(sys.argv[1])\n"
        "rows = pd.DataFrame({'amount': [250, None], 'night': [True, None], 'merchant': ['never', None]})\n"
        "print(json.dumps(model.predict(rows)['probability'].tolist()))\n"
    )
    ran = subprocess.run(
        [str(python), "-c", code, str(model_folder)], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    np.testing.assert_allclose(
        json.loads(ran.stdout), [expected(250.0, 1.0, "never"), expected(0.0, 0.0, "")], rtol=1e-5
    )
