"""Configurations of public data sets: each plans its protocol and runs, on a made file with the documented columns."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from fraud_ray import pipeline
from fraud_ray.data.contract import validate
from fraud_ray.data.folds import plan_folds
from fraud_ray.data.source import open_source
from fraud_ray.errors import DataError
from fraud_ray.progress import Quiet
from fraud_ray.settings import Loaded, load_settings
from tests.cards import count_here
from tests.test_readme import FENCED

PUBLIC = Path(__file__).parents[1] / "configs/public"
README = (PUBLIC / "README.md").read_text()
ROWS = 800
FRAUDS = np.arange(ROWS) % 10 == 3


def _numbers(names: list[str], seed: int = 0) -> pd.DataFrame:
    """Columns of numbers, which are larger where a row is a fraud."""
    values = np.random.default_rng(seed).normal(size=(ROWS, len(names))) + FRAUDS[:, None]
    return pd.DataFrame(values.round(4), columns=names)


def _codes(names: list[str], codes: list[str]) -> pd.DataFrame:
    return pd.DataFrame({name: np.resize(codes, ROWS) for name in names})


def creditcard(folder: Path) -> Path:
    time = pd.DataFrame({"Time": np.linspace(0, 172_792, ROWS).astype(int)})
    rest = pd.DataFrame({"Amount": np.linspace(0, 900, ROWS).round(2), "Class": FRAUDS.astype(int)})
    parts = [time, _numbers([f"V{i}" for i in range(1, 29)]), rest]
    pd.concat(parts, axis=1).to_csv(folder / "creditcard.csv", index=False)
    return folder / "creditcard.csv"


def ieee_cis(folder: Path) -> Path:
    (folder / "data/public").mkdir(parents=True)
    ids = np.arange(ROWS) + 2_987_000
    head = {"isFraud": FRAUDS.astype(int), "TransactionDT": 86_400 + 20_000 * np.arange(ROWS), "TransactionAmt": 59.5}
    cards = {"card1": 13_926 + ids % 7, "card2": [None, 404.0] * (ROWS // 2), "card3": 150.0, "card5": 142.0}
    names = ["dist1", "dist2", *(f"{k}{i}" for k, n in (("C", 14), ("D", 15), ("V", 339)) for i in range(1, n + 1))]
    texts = _codes(["ProductCD", "card4", "card6", "P_emaildomain", "R_emaildomain"], ["W", "H", "C"])
    places = {"addr1": 315.0, "addr2": 87.0}
    parts = [pd.DataFrame({"TransactionID": ids, **head, **cards, **places}), texts, _numbers(names)]
    matches = _codes([f"M{i}" for i in range(1, 10)], ["T", "F"])
    pd.concat([*parts, matches], axis=1).to_csv(folder / "data/public/train_transaction.csv", index=False)
    numbers = _numbers([f"id_{i:02}" for i in range(1, 39)]).round()
    identity = pd.concat(
        [pd.Series(ids, name="TransactionID"), numbers, _codes(["DeviceType", "DeviceInfo"], ["mobile"])], axis=1
    )
    identity[::4].to_csv(folder / "data/public/train_identity.csv", index=False)
    (block,) = FENCED.findall(README)
    with pytest.MonkeyPatch.context() as here:
        here.chdir(folder)
        exec(block, {})
    return folder / "data/public/ieee-cis.parquet"


def fraud_data(folder: Path) -> Path:
    bought = pd.date_range("2015-01-01", "2015-12-01", ROWS).floor("s")
    pd.DataFrame(
        {
            "user_id": np.arange(ROWS) + 22_058,
            "signup_time": bought - pd.Timedelta(days=3),
            "purchase_time": bought,
            "purchase_value": 34 + 10 * FRAUDS,
            "device_id": np.where(FRAUDS, "QVPSPJUOCKZAR", [f"D{i}" for i in range(ROWS)]),
            **_codes(["source"], ["SEO", "Ads", "Direct"]),
            **_codes(["browser"], ["Chrome", "Opera"]),
            **_codes(["sex"], ["M", "F"]),
            "age": 39,
            "ip_address": 732758368.79972 + np.arange(ROWS) // 2,
            "class": FRAUDS.astype(int),
        }
    ).to_csv(folder / "Fraud_Data.csv", index=False)
    return folder / "Fraud_Data.csv"


def sparkov(folder: Path) -> Path:
    times = pd.date_range("2019-01-01", "2020-12-31", ROWS).floor("s")
    texts = ["merchant", "category", "first", "last", "gender", "street", "city", "state", "job"]
    numbers = ["zip", "lat", "long", "city_pop", "merch_lat", "merch_long"]
    rows = pd.concat([_codes(texts, ["fraud_Rippin, Kub and Mann", "x"]), _numbers(numbers).abs()], axis=1)
    rows = rows.assign(
        trans_date_trans_time=times,
        cc_num=2_703_186_189_652_095 + np.arange(ROWS) % 30,
        amt=4.97 + 500 * FRAUDS,
        dob="1988-03-09",
        trans_num=[f"{i:032x}" for i in range(ROWS)],
        unix_time=1_325_376_018,
        is_fraud=FRAUDS.astype(int),
    )
    (folder / "sparkov").mkdir()
    for name, part in {"fraudTrain": rows[:600], "fraudTest": rows[600:].reset_index(drop=True)}.items():
        part.to_csv(folder / f"sparkov/{name}.csv")  # its first column is a number without a name
    return folder / "sparkov"


def baf(folder: Path) -> Path:
    numbers = [
        *("income", "name_email_similarity", "prev_address_months_count", "current_address_months_count"),
        *("days_since_request", "intended_balcon_amount", "zip_count_4w", "velocity_6h", "velocity_24h", "velocity_4w"),
        *("bank_branch_count_8w", "date_of_birth_distinct_emails_4w", "credit_risk_score", "bank_months_count"),
        *("proposed_credit_limit", "session_length_in_minutes", "device_distinct_emails_8w", "device_fraud_count"),
    ]
    flags = ["email_is_free", "phone_home_valid", "phone_mobile_valid", "has_other_cards", "foreign_request"]
    texts = ["payment_type", "employment_status", "housing_status", "source", "device_os"]
    parts = [_numbers(numbers), _codes(texts, ["AA", "AB", "AC"]), _codes([*flags, "keep_alive_session"], ["0", "1"])]
    rows = pd.concat(parts, axis=1).assign(
        fraud_bool=FRAUDS.astype(int), customer_age=np.resize([20, 50, 60], ROWS), month=np.arange(ROWS) * 8 // ROWS
    )
    rows.to_csv(folder / "Base.csv", index=False)
    return folder / "Base.csv"


# By configuration: its made file, what of that is held out, as of the real one, and what the plan says.
MADE: dict[str, tuple[Callable[[Path], Path], str, str]] = {
    "ulb-creditcard": (creditcard, "20%", "holdout 138406 s to 172792 s"),
    "ieee-cis": (ieee_cis, "5%", "holdout"),
    "fraud-ecommerce": (fraud_data, "20%", "holdout 2015-09-25"),
    "sparkov": (sparkov, "200", "holdout 2020-07-02"),
    "baf": (baf, "200", "fit 0 s to 5 s, holdout 6 s to 7 s"),
}
of_each = pytest.mark.parametrize("name", MADE)


def loaded_of(name: str, folder: Path, *overrides: str) -> Loaded:
    make, holdout, _ = MADE[name]
    own = [f"data.path={make(folder)}", f"data.expected_rows={ROWS}", f"folds.holdout={holdout}"]
    return load_settings(PUBLIC / f"{name}.yaml", [*own, *overrides])


def test_every_configuration_is_tested_and_in_the_table() -> None:
    assert {path.stem for path in PUBLIC.glob("*.yaml")} == set(MADE)
    assert set(MADE) <= set(re.findall(r"\]\(([\w-]+)\.yaml\)", README))


@of_each
def test_a_made_file_is_planned_as_the_protocol_says_and_a_part_of_the_data_is_refused(
    name: str, tmp_path: Path
) -> None:
    settings = loaded_of(name, tmp_path).settings
    data = settings.raw_data
    raw = settings.model_copy(update={"data": data})
    source = open_source(data)
    folds = plan_folds(count_here(source, raw), settings.folds)
    assert MADE[name][2] in folds.final.span
    given = load_settings(PUBLIC / f"{name}.yaml").settings
    assert given.data.expected_rows is not None
    with pytest.raises(DataError, match=f"holds 800 rows, and data.expected_rows says {given.data.expected_rows:,}: "):
        validate(source, data.model_copy(update={"expected_rows": given.data.expected_rows}), lambda *_: None)


@pytest.mark.long
@of_each
def test_a_made_file_is_run_and_shown_beside_what_is_published(
    name: str, tmp_path: Path, store: Path, ray_session: None
) -> None:
    quick = ["train.epochs=1", "train.members=1", "gate.min_auc=0", "decision.bootstrap_repeats=0"]
    loaded = loaded_of(name, tmp_path, f"storage.root={store}", *quick)
    outcome, published = pipeline.run(loaded, Quiet()), loaded.settings.decision.published
    assert outcome.status == "registered"
    assert outcome.evaluation is not None
    assert outcome.evaluation["published"] == [one.model_dump() for one in published]
    wanted = {metric for one in published for metric in one.figures}
    if name == "baf":
        wanted |= {"recall_at_fpr_0.05", "fpr_ratio_customer_age_at_fpr_0.05"}
    assert wanted
    assert wanted <= outcome.evaluation["metrics"].keys()
