"""The report: its numbers are the run's, it needs no network, and it can be read in a narrow and in a wide window."""

from __future__ import annotations

import dataclasses
import html
import json
import re
import shutil
import subprocess
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pyarrow as pa
import pytest
import yaml

from fraud_ray import pipeline
from fraud_ray.data.drift import ColumnDrift, Drift, Measure
from fraud_ray.data.rows import Rows
from fraud_ray.decision.curves import Curves
from fraud_ray.decision.evaluate import evaluate
from fraud_ray.decision.gate import decide
from fraud_ray.progress import Quiet
from fraud_ray.registry.versions import RegisteredVersion
from fraud_ray.report.card import MOST_CHARACTERS, model_card
from fraud_ray.report.page import ReportValues, render
from fraud_ray.report.training import importances
from fraud_ray.runs import RunRecord
from fraud_ray.settings import Settings, load_settings, parse_settings
from fraud_ray.storage import Storage
from fraud_ray.training.search import SearchOutcome, Trial
from fraud_ray.training.space import enumerate_space, trial_id
from tests.cards import COLUMNS, card_table, days, write_partition
from tests.prepared import made_fold

ROWS = 4_000
SPACE = {"learning_rate": [0.001, 0.004], "dropout": [0.0, 0.1]}
WIDE_SPACE = {
    "learning_rate": {"low": 1e-4, "high": 1e-2, "log": True},
    "positive_weight": [1.0, 3.0, "balanced"],
    "hidden_sizes": [[256, 128, 64], [128, 64], [64]],
    "batch_size": {"low": 128, "high": 4096, "log": True},
    "dropout": {"low": 0.0, "high": 0.1},
    "optimizer": ["adam", "adamw"],
    "weight_decay": {"low": 0.5, "high": 4, "when": {"optimizer": "adamw"}},
}
SEED_COLUMNS = {
    "transaction_amount": {"kind": "numeric"},
    "merchant_category": {"kind": "categorical"},
    "is_fraud": {"kind": "label"},
}


def report_values(
    storage: Path,
    skill: float = 3.0,
    with_truth: bool = True,
    with_roles: bool = True,
    categories: int = 6,
    threshold: float = 0.4,
    **sections: Any,
) -> ReportValues:
    """Values of a made run. skill: distance between the mean logits of the classes."""
    columns = COLUMNS if with_roles else SEED_COLUMNS
    slices = ["category" if with_roles else "merchant_category"]
    raw = {
        "data": {"path": "/data", "columns": columns},
        "gate": {"min_f1": 0.3},
        "search": {"space": SPACE},
        **sections,
    }
    decision = {"slices": slices, "bootstrap_repeats": 20, **sections.get("decision", {})}
    settings = parse_settings({**raw, "decision": decision}, "test")
    rng = np.random.default_rng(5)
    label = (rng.random(ROWS) < 0.05).astype(np.int8)
    truth = rng.normal(-4 + skill * label, 1.0)
    probabilities = 1 / (1 + np.exp(-truth - rng.normal(0, 0.5, ROWS)))
    rows = Rows(
        np.zeros((ROWS, 0), np.float32),
        np.zeros((ROWS, 0), np.int32),
        label,
        {"true_probability": 1 / (1 + np.exp(-truth))} if with_truth else {},
        {slices[0]: rng.choice([*(f"kind-{i}" for i in range(categories)), ""], ROWS)},
    )
    evaluation = evaluate(probabilities, rows, threshold, settings.decision)
    evaluation = replace(evaluation, importance={"amount": 0.1234, "online": -0.0012})
    days_known, amounts = (7, rng.lognormal(3, 1, ROWS)) if with_roles else (None, None)
    true_probability, confidence = rows.roles.get("true_probability"), settings.decision.confidence
    curves = Curves.of(probabilities, label, threshold, true_probability, days_known, confidence, amounts)
    decision_made = decide(evaluation, settings.gate, None)
    found = made_search(settings)
    return ReportValues(
        run=RunRecord(
            name="march",
            folder="/store/runs/march",
            state="running",
            config="bank",
            created="2024-03-09T08:15:00.000+00:00",
            record={
                "created": "2024-03-09T08:15:00.000+00:00",
                "user": "ann",
                "host": "laptop",
                "command": "fraud-ray run -c bank.yaml --set registry.uri=postgresql://ann:hunter2@server/mlflow",
                "git": {"commit": "0123456789abcdef", "dirty": True},
                "versions": {"python": "3.11.7", "fraud_ray": "0.1.0", "ray": "2.60.0"},
                "fingerprint": "f" * 64,
            },
            stages=(),
            outcome=None,
            holder=None,
        ),
        settings=settings,
        data="/data",
        rows=40_000,
        partitions=40,
        folds=tuple(made_fold(Storage.at(str(storage)), name, 300, 100) for name in ("selection-1", "final")),
        found=found,
        refit_curve=found.best.curve[: found.best.best_epoch],
        evaluation=evaluation,
        curves=curves,
        decision=decision_made,
        version=RegisteredVersion("fraud-detection-production", 3, "champion", "march", "1")
        if decision_made.passed
        else None,
        timings={"search": 61.0, "refit": 4.2},
        rival="lightgbm on the same rows: average precision 0.7",
        advice=() if decision_made.passed else ("46 of 90 days unused",),
    )


def made_search(settings: Settings) -> SearchOutcome:
    """Trials over the settings' space; about one in ten failed before its first epoch, or was stopped early."""
    rng = np.random.default_rng(3)
    trials = []
    for number, point in enumerate(enumerate_space(settings)):
        rate = settings.train_with(point).learning_rate
        top = 0.9 - 0.03 * abs(np.log10(rate / 0.002)) + rng.normal(0, 0.003)
        failed, stopped = number % 10 == 9, number % 10 == 8
        epochs = 0 if failed else 3 if stopped else 12
        curve = tuple(
            {"epoch": e, "loss": 0.2 / e, "average_precision": float(top * (1 - 0.5**e)), "rows_per_second": 1e5}
            for e in range(1, epochs + 1)
        )
        status = "failed" if failed else "stopped" if stopped else "finished"
        score = curve[-1]["average_precision"] if curve else None
        trials.append(Trial(trial_id(point), point, status, score, epochs, 2.0, curve))
    ranked = sorted(trials, key=lambda trial: -(trial.average_precision or -1))
    return SearchOutcome(ranked[0], tuple(ranked), "search", 0)


class Cells(HTMLParser):
    """The rows of all tables of a page, and the terms of its lists, as tuples of texts."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.rows: list[tuple[str, ...]] = []
        self.open: list[str] | None = None
        self.feed(page)

    def handle_starttag(self, tag: str, attributes: Any) -> None:
        if tag == "tr":
            self.open = []
        elif tag in {"td", "th"} and self.open is not None:
            self.open.append("")

    def handle_endtag(self, tag: str) -> None:
        if tag == "tr" and self.open is not None:
            self.rows.append(tuple(cell.strip() for cell in self.open))
            self.open = None

    def handle_data(self, data: str) -> None:
        if self.open:
            self.open[-1] += data

    def row(self, *beginning: str) -> tuple[str, ...]:
        """The only row that begins so."""
        (found,) = {row for row in self.rows if row[: len(beginning)] == beginning}
        return found


def spans(low: float, high: float) -> str:
    return f"{low:.4f} … {high:.4f}"


PUBLISHED = [
    {"name": "forest", "source": "a book", "figures": {"average_precision": 0.658, "auc_roc": 0.867}},
    {"name": "rules", "source": "in use", "figures": {"card_precision_at_100": 0.29}},
]
CASES: dict[str, dict[str, Any]] = {
    "registered": {},
    "rejected": {"gate": {"min_f1": 0.99, "max_calibration_error": 0.5}},
    "without the best possible": {"with_truth": False},
    "as in seed.yaml": {
        "with_truth": False,
        "with_roles": False,
        "folds": {"kind": "stratified"},
        "search": {"space": {}},
    },
    "200 trials": {"search": {"space": WIDE_SPACE, "algorithm": "random", "trials": 200}},
    "many slices": {"categories": 300, "gate": {"min_f1": 0.1, "slices": {"min": 0.0, "min_frauds": 1}}},
    "no skill": {"skill": 0.0, "threshold": 0.03},
    "no alert": {"threshold": 1.0},
    "all are alerts": {"threshold": 0.0},
    "one epoch": {"train": {"epochs": 1}, "decision": {"bootstrap_repeats": 0, "published": PUBLISHED}},
}


Made = Callable[[str], tuple[ReportValues, str]]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """A case's values and page, each made once."""

    @cache
    def of(case: str) -> tuple[ReportValues, str]:
        values = report_values(tmp_path_factory.mktemp("made"), **CASES[case])
        return values, render(values)

    return of


@pytest.mark.parametrize("case", CASES)
def test_a_page_is_made_of_any_run_without_network_or_script_and_with_whole_pictures(made: Made, case: str) -> None:
    values, page = made(case)
    own = re.sub(r'\bxmlns(:\w+)?="[^"]*"|href="#|url\(#', "", page)  # namespaces, and what is within the page
    assert not re.search(r"https?:|<(script|link|img|iframe|object)\b|\b(src|href)=|url\(|@import", own)
    assert "content=\"default-src 'none'" in page
    drawn = re.findall(r"(<svg .*?</svg>)\s*</div>\s*</figure>", page, flags=re.DOTALL)
    # The counts, other thresholds, and the reliability of alerts.
    tables = 2 + bool(values.evaluation.confusion.tp + values.evaluation.confusion.fp)
    assert len(drawn) == page.count("<figure>") - tables
    for picture in drawn:
        assert not re.search(r"\b(nan|inf|None)\b", picture)
        ElementTree.fromstring(picture)


def test_a_conditional_hyperparameter_has_a_value_in_the_trials_in_which_its_condition_held(made: Made) -> None:
    values, page = made("200 trials")
    assert "0.5 to 4 (with optimizer adamw)" in page
    cells = Cells(page)
    for trial in values.found.trials[:20]:
        assert (cells.row(trial.id)[-1] != "") == (trial.hyperparameters["optimizer"] == "adamw")


@pytest.mark.parametrize("case", ["registered", "rejected", "as in seed.yaml", "many slices", "200 trials"])
def test_the_numbers_on_the_page_are_the_runs(made: Made, case: str) -> None:
    values, page = made(case)
    cells = Cells(page)
    evaluation = json.loads(json.dumps(values.evaluation.to_json()))
    labels = {"auc_roc": "ROC AUC", "f1_score": "F1 at threshold", "recall": "Recall at threshold"}
    for name, label in {**labels, "brier": "Brier score", "precision_at_100": "Precision at 100"}.items():
        row = cells.row(label)
        assert row[1] == f"{evaluation['metrics'][name]:.4f}"
        assert row[2] == (spans(*evaluation["intervals"][name]) if name in evaluation["intervals"] else "")
        if evaluation["best_possible"]:
            assert row[3] == (f"{evaluation['best_possible'][name]:.4f}" if name in evaluation["best_possible"] else "")
    bins = values.curves.alert_calibration
    for rows, probability, low, high in zip(*(bins[n] for n in ("rows", "probability", "low", "high")), strict=True):
        assert cells.row(f"{rows:,.0f}", f"{probability:.4f}")[3] == spans(low, high)
    for column, loss in evaluation["importance"].items():
        assert cells.row(column, f"{loss:.4f}")
    counts = evaluation["confusion"]
    assert cells.row("Alert")[1:] == tuple(f"{n:,}" for n in (counts["tp"], counts["fp"], counts["tp"] + counts["fp"]))
    assert cells.row("No alert")[1:3] == tuple(f"{n:,}" for n in (counts["fn"], counts["tn"]))
    for check in values.decision.to_json()["checks"]:
        sign = {">=": "≥", "<=": "≤"}[check["comparison"]]
        row = cells.row(check["name"])
        assert row[1:4] == (
            "passed" if check["passed"] else "failed",
            f"{check['value']:.4f}",
            f"{sign} {check['bound']:.4f}",
        )
    for part in evaluation["slices"]:
        row = cells.row(part["value"] or "(missing)", f"{part['rows']:,}", f"{part['frauds']:,}")
        assert row[3] == (f"{part['metrics']['recall']:.4f}" if part["frauds"] else "")
    for trial in values.found.trials:
        score = "" if trial.average_precision is None else f"{trial.average_precision:.4f}"
        assert cells.row(trial.id)[1:3] == (trial.status, score)
    for fold in values.folds:
        row = cells.row(fold.name)
        assert (row[2], row[3], row[5]) == (f"{fold.fit.rows:,}", f"{fold.fit.frauds:,}", f"{fold.holdout.rows:,}")
    text = " ".join(html.unescape(re.sub("<[^>]*>", " ", page)).split())
    alerts = counts["tp"] + counts["fp"]
    a_day = alerts / 7 if case != "as in seed.yaml" else alerts / (ROWS / 1_000)
    unit = "a day" if case != "as in seed.yaml" else "per 1,000 rows"
    shown = f"{a_day:,.0f}" if a_day >= 100 or a_day == round(a_day) else f"{a_day:.1f}"
    assert f"raises {alerts:,} alerts, {shown} {unit}" in text
    assert "Beside it: lightgbm on the same rows: average precision 0.7." in text


def test_figures_that_others_published_stand_beside_the_runs(made: Made) -> None:
    values, page = made("one epoch")
    cells, own = Cells(page), values.evaluation.metrics
    assert cells.row("Whose") == ("Whose", "ROC AUC", "Average precision", "Card precision at 100", "Source")
    assert cells.row("this run") == ("this run", f"{own['auc_roc']:.4f}", f"{own['average_precision']:.4f}", "", "")
    assert cells.row("forest") == ("forest", "0.8670", "0.6580", "", "a book")
    assert cells.row("rules") == ("rules", "", "", "0.2900", "in use")
    assert "this run" not in made("registered")[1]


def test_a_rejected_page_says_what_would_help_and_every_page_what_other_thresholds_do(made: Made) -> None:
    values, page = made("rejected")
    assert "<li>46 of 90 days unused</li>" in page
    assert "<li>" not in made("registered")[1]
    for one in values.cutoffs:
        assert Cells(page).row(f"{one.threshold:.4f}", f"{one.precision:.4f}")[3] == f"{one.f1:.4f}"


def test_the_search_is_drawn_from_twenty_trials_on_and_the_amount_where_it_is_known(made: Made) -> None:
    assert "<h3>Search</h3>" in made("200 trials")[1]
    _, few = made("registered")
    assert "<h3>Search</h3>" not in few
    assert "<h3>Loss without a column</h3>" in few
    assert few.count("amount alone") == 3
    assert "amount alone" not in made("as in seed.yaml")[1]


def test_lists_are_told_from_their_values(made: Made) -> None:
    assert "of [256, 128, 64], [128, 64], [64]<" in made("200 trials")[1]


def test_no_amount_is_in_the_curves_that_are_kept(made: Made) -> None:
    amount_alone = made("registered")[0].curves.amount_alone
    assert amount_alone is not None
    assert all(value == int(value) for value in amount_alone.precision_recall["threshold"])  # ranks


@pytest.mark.parametrize("case", ["registered", "without the best possible", "one epoch"])
def test_no_column_of_a_card_is_empty(made: Made, case: str) -> None:
    lines = [line for line in model_card(made(case)[0]).splitlines() if line.startswith("|")]
    header, _, *rows = ([cell.strip() for cell in line.strip("|").split("|")] for line in lines)
    assert all(header)
    assert [any(column) for column in zip(*rows, strict=True)] == [True] * len(header)


def test_who_when_and_which_code_are_told_and_no_password(made: Made) -> None:
    values, page = made("registered")
    card = model_card(values)
    for text in ("2024-03-09 08:15 UTC by ann", "0123456789ab", "f" * 64):
        assert text in page
        assert text in card
    assert "hunter2" not in page + card
    assert "postgresql://***@server/mlflow" in page


def test_drift_is_a_table_with_bounds_where_there_was_a_champion(made: Made) -> None:
    values, before = made("registered")
    assert "no champion to compare" in before
    exceeded, within = Measure("KS", 0.31254, 0.1), Measure("PSI", 0.05, 0.2)
    columns = (
        ColumnDrift("amount", "numeric", (exceeded, within), "KS", 1e-9, (0.0, 0.025), (50.0, 61.5)),
        ColumnDrift("category", "categorical", (within,), "chi-square", 0.4),
    )
    drift = Drift("version 1", (10_000, 5_000), columns, {"online": "it is declared as numeric now"})
    page = render(dataclasses.replace(values, drift=drift))
    assert Cells(page).row("amount", "0.3125") == (
        *("amount", "0.3125", "0.0500", "1e-09 (KS)"),
        *("50 → 61.5", "0.00% → 2.50%"),
    )
    assert Cells(page).row("category", "")[2:4] == ("0.0500", "0.4 (chi-square)")
    assert "KS (≤ 0.1)" in page
    assert "drift in amount<" in page
    assert "online was not compared: it is declared as numeric now" in page


def test_importance_finds_the_hyperparameter_that_matters(made: Made) -> None:
    values, _ = made("200 trials")
    weights = importances(values.found, values.settings.search)
    assert sum(weights.values()) == pytest.approx(1)
    assert max(weights, key=lambda name: weights[name]) == "learning_rate"
    few = dataclasses.replace(values.found, trials=values.found.trials[:3])
    assert importances(few, values.settings.search) == {}


def test_pictures_are_the_same_each_time_they_are_drawn(made: Made) -> None:
    values, page = made("registered")
    assert render(values) == page


WIDTHS = """<script>onload = () => {
  const wide = [...document.querySelectorAll("iframe")].filter(frame => {
    const page = frame.contentDocument; page.querySelectorAll("details").forEach(one => one.open = true);
    const boxes = [page.documentElement, ...page.querySelectorAll(".box, dl")];
    return boxes.some(box => box.scrollWidth > box.clientWidth); });
  document.title = "too wide: " + (wide.map(frame => frame.title).join() || "none") }</script>"""


def test_in_a_browser_no_page_and_no_table_of_it_is_wider_than_a_phone(made: Made, tmp_path: Path) -> None:
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("no chromium on the path to lay the page out with; apt-get install chromium")
    frames = "".join(
        f'<iframe title="{case}" style="width:390px" srcdoc="{html.escape(made(case)[1])}"></iframe>'
        for case in ("rejected", "many slices", "200 trials", "as in seed.yaml")
    )
    page = tmp_path / "frames.html"
    page.write_text(f"<meta charset=utf-8>{frames}{WIDTHS}")
    quiet = ("background-networking", "component-update", "sync", "gpu", "quic")
    switches = ("--headless", "--no-sandbox", "--no-first-run", *(f"--disable-{what}" for what in quiet))
    done = subprocess.run(
        [browser, *switches, f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom", page.as_uri()],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert "<title>too wide: none</title>" in done.stdout, done.stderr[-2_000:]


def test_a_card_fits_into_a_versions_description(made: Made) -> None:
    card = model_card(made("many slices")[0])
    assert len(card) <= MOST_CHARACTERS
    assert "more checks are in the report" in card
    assert card.endswith("**Report:** /store/runs/march/report.html\n")


def test_a_run_writes_its_page_and_its_versions_card_and_a_rejected_run_its_page(
    tmp_path: Path, ray_session: None
) -> None:
    """And nothing of them holds an id, an entity or a raw row."""
    for day in days(40):
        table = card_table(day, 80)
        cards = pa.array([f"card-{card}" for card in table["card"].to_pylist()])
        ids = pa.array([f"transaction-{one}" for one in table["transaction_id"].to_pylist()])
        table = table.set_column(2, "card", cards).set_column(0, "transaction_id", ids)
        write_partition(tmp_path / "data", f"date={day}/part-0.parquet", table)
    settings = {
        "data": {"path": str(tmp_path / "data"), "columns": COLUMNS},
        "folds": {"fit_days": 20, "delay_days": 2, "holdout_days": 7, "selection_shift_days": [7]},
        "train": {"epochs": 2, "batch_size": 64, "hidden_sizes": [8]},
        "decision": {"slices": ["category"], "bootstrap_repeats": 10},
        "gate": {"min_f1": 0.0},
        "storage": {"root": str(tmp_path / "store")},
        "run": {"name": "first"},
    }
    path = tmp_path / "bank.yaml"
    path.write_text(yaml.safe_dump(settings))
    registered = pipeline.run(load_settings(path, []), Quiet())
    # A run of its own, with what the first one found up to its evaluation.
    concluded = shutil.ignore_patterns("run.json", "lease", "gate.json", "register.json", "outcome.json", "report.html")
    shutil.copytree(registered.folder, Path(registered.folder).with_name("second"), ignore=concluded)
    rejected = pipeline.run(load_settings(path, ["run.name=second", "gate.min_f1=1.0"]), Quiet())
    uri = f"sqlite:///{tmp_path / 'store' / 'mlflow.db'}"
    client = mlflow.MlflowClient(uri, registry_uri=uri)
    version = client.get_model_version("fraud-detection-production", "1")
    for outcome, verdict in ((registered, "Registered as version 1"), (rejected, "Rejected by the gate")):
        assert outcome.report
        page = Path(outcome.report).read_text()
        assert verdict in page
        assert Cells(page).row("ROC AUC")[1] == f"{(outcome.evaluation or {})['metrics']['auc_roc']:.4f}"
        written = page + version.description + (Path(outcome.folder) / "curves.json").read_text()
        assert not re.search(r"card-\d|transaction-\d", written)
    assert version.description.startswith("# fraud-detection-production: run first")
    assert [entry.path for entry in client.list_artifacts(version.run_id) if entry.path == "report.html"]
