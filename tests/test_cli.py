"""The command line: what it prints, how it ends, and that it starts quickly."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
from datetime import datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import typer
import yaml
from rich.console import Console
from typer.testing import CliRunner, Result

from fraud_ray.cli import app
from fraud_ray.cli.display import Display
from fraud_ray.cli.faults import Commands
from fraud_ray.cli.outcomes import print_outcome
from fraud_ray.cli.tables import print_next
from fraud_ray.data.source import open_source
from fraud_ray.errors import DataError, TaskFault
from fraud_ray.runs import Outcome, list_runs, open_run
from fraud_ray.settings import load_settings
from fraud_ray.storage import Storage

ROOT = Path(__file__).parents[1]
EVALUATION = {
    "rows": 1000,
    "frauds": 10,
    "threshold": 0.4,
    "metrics": {"auc_roc": 0.98, "average_precision": 0.9, "precision": 0.8, "recall": 0.7, "f1_score": 0.75},
    "intervals": {"f1_score": [0.7, 0.8]},
    "best_possible": {"average_precision": 0.95, "f1_score": 0.9},
}
CHECK = {
    "name": "min_f1",
    "subject": "F1",
    "value": 0.75,
    "bound": 0.85,
    "comparison": ">=",
    "passed": False,
    "note": "",
}


def fraud_ray(*arguments: str, **options: Any) -> Result:
    """The command, in this process."""
    return CliRunner().invoke(app, list(arguments), **options)


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """A configuration over 400 valid rows in 40 days."""
    rows = 400
    frauds = [int(i % 20 == 0) for i in range(rows)]
    table = pa.table(
        {
            "at": [datetime(2024, 1, 1) + timedelta(hours=2.4 * i) for i in range(rows)],
            "amount": [float(i) for i in range(rows)],
            "is_fraud": pa.array(frauds, pa.int8()),
        }
    )
    (tmp_path / "data").mkdir()
    pq.write_table(table, tmp_path / "data" / "part-0.parquet")
    path = tmp_path / "bank.yaml"
    columns = {"is_fraud": {"kind": "label"}, "amount": {"kind": "amount", "min": 0}, "at": {"kind": "timestamp"}}
    folds = {"fit_days": 14, "delay_days": 1, "holdout_days": 7, "selection_shift_days": [7]}
    storage = {"root": str(tmp_path / "store")}
    data = {"path": str(tmp_path / "data"), "columns": columns}
    path.write_text(yaml.safe_dump({"data": data, "folds": folds, "storage": storage}))
    return path


def storage_of(config: Path) -> Storage:
    return Storage.at(str(config.parent / "store"))


# Starting.


def test_help_imports_nothing_heavy() -> None:
    script = """
import sys
from fraud_ray.cli import main
try:
    main(["run", "--help"])
finally:
    heavy = {"pandas", "numpy", "pyarrow", "ray", "torch", "mlflow", "sklearn", "scipy"}
    print(sorted(heavy & set(sys.modules)), file=sys.stderr)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0
    assert done.stderr.strip() == "[]"


# Bad input: one message, an exit code, no stack trace.

BAD = {
    "a missing file": (["-c", "none.yaml"], 2, f"no configuration file at {Path.cwd()}/none.yaml"),
    "an unknown setting": (["-c", "CONFIG", "--set", "train.epohcs=3"], 2, "did you mean 'epochs'?"),
    "a value out of range": (["-c", "CONFIG", "--set", "gate.min_f1=85"], 2, "gate.min_f1 should be less than or eq"),
    "a root in the data": (
        ["-c", "CONFIG", "--set", "storage.root=CONFIG/../data/store"],
        2,
        "store/runs lies in the data ",
    ),
    "a missing path": (["-c", "CONFIG", "--set", "data.path=/nowhere"], 4, "/nowhere does not exist"),
}


@pytest.mark.parametrize(("arguments", "exit_code", "message"), BAD.values(), ids=list(BAD))
def test_bad_input_is_one_message_and_an_exit_code(
    config: Path, arguments: list[str], exit_code: int, message: str
) -> None:
    done = fraud_ray("run", *(word.replace("CONFIG", str(config)) for word in arguments))
    assert (done.exit_code, done.stdout) == (exit_code, "")
    assert done.stderr.startswith("error: ")
    assert message in done.stderr
    assert not (config.parent / "store").exists(), "nothing half-written"


def test_an_address_without_ray_is_told_by_a_process_without_a_trace(config: Path) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{unused.getsockname()[1]}"
    command = [str(Path(sys.executable).parent / "fraud-ray"), "validate", "-c", str(config)]
    line = [*command, "--set", f"cluster.address={address}"]
    done = subprocess.run(line, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (1, "")
    assert re.search("^error: no Ray cluster answers", done.stderr, re.MULTILINE)
    assert "Traceback" not in done.stderr


def test_few_rows_need_no_ray_and_what_is_wrong_is_said_before_one_starts(config: Path, tmp_path: Path) -> None:
    script = """
import sys
from fraud_ray.cli import main
try:
    main(sys.argv[1:])
finally:
    print("ray" in sys.modules, file=sys.stderr)
"""

    def told(*arguments: str) -> str:
        line = [sys.executable, "-c", script, *arguments]
        environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
        return subprocess.run(line, env=environment, capture_output=True, text=True, timeout=60).stderr

    assert "keep the contract" in (checked := told("validate", "-c", str(config)))
    assert checked.endswith("False\n")
    against = told("drift", "-c", str(config), "--against", str(tmp_path / "none"))
    assert f"{tmp_path}/none does not exist" in against
    (tmp_path / "full").mkdir()
    (tmp_path / "full/notes.txt").write_text("mine")
    full = told("simulate", "--rows", "900000", "--out", str(tmp_path / "full"))
    server = told("run", "-c", str(config), "--set", "registry.uri=http://127.0.0.1:9")
    assert "http://127.0.0.1:9" in server
    assert not any("starting Ray" in text for text in (checked, against, full, server))


@pytest.mark.parametrize("arguments", [["run"], ["run", "-c", "x", "--until", "lunch"], ["trian"], ["settings"]])
def test_wrong_usage_ends_with_2(arguments: list[str]) -> None:
    done = fraud_ray(*arguments)
    assert done.exit_code == 2
    assert "Usage:" in done.stderr


def test_more_workers_than_the_cluster_has_are_refused_and_nothing_is_written(config: Path, ray_session: None) -> None:
    done = fraud_ray("run", "-c", str(config), "--set", "train.workers=64")
    assert done.exit_code == 2
    assert "64 ranks (train.workers)" in done.stderr
    assert "The cluster has 2 CPU" in done.stderr
    assert list_runs(storage_of(config)) == []


def test_a_tracking_server_out_of_reach_is_found_before_training(config: Path, ray_session: None) -> None:
    done = fraud_ray("run", "-c", str(config), "--set", "registry.uri=http://127.0.0.1:9", "--name", "x")
    assert done.exit_code == 1
    assert "http://127.0.0.1:9" in done.stderr
    assert "search" not in done.stderr
    assert list_runs(storage_of(config)) == []


def test_folds_outside_the_data_are_a_data_error(config: Path, ray_session: None) -> None:
    done = fraud_ray("run", "-c", str(config), "--set", "folds.start=2031-01-01")
    assert done.exit_code == 4
    assert "2031" in done.stderr
    assert list_runs(storage_of(config)) == []


# How commands end.


def outcome(**changes: Any) -> Outcome:
    values: dict[str, Any] = {
        "name": "march",
        "folder": "/store/runs/march",
        "evaluation": EVALUATION,
        "gate": {"checks": [{**CHECK, "passed": True}], "passed": True},
        "version": {"name": "fraud-detection-production", "version": 3, "alias": "challenger"},
        "hyperparameters": {"dropout": 0.2},
        "seconds": 61.0,
        "plan": ("learning_rate is set, so it leaves search.space",),
        "report": "/store/runs/march/report.html",
    }
    return Outcome.of_gate(**{"passed": True, **values, **changes})


def conclude(config: Path, came_to: Outcome, *overrides: str) -> None:
    """Makes a run one that is concluded, so that the same command answers at once."""
    loaded = load_settings(config, [*overrides, f"run.name={came_to.name}"])
    with open_run(loaded, storage_of(config), open_source(loaded.settings.data).fingerprint) as run:
        run.conclude(came_to)


def test_an_outcome_is_figures_checks_version_and_where_it_lies(capsys: pytest.CaptureFixture[str]) -> None:
    print_outcome(outcome())
    shown = " ".join(capsys.readouterr().out.split())
    for text in (
        "1,000 holdout rows, 10 frauds",
        "ROC AUC",
        "F1 at threshold 0.4000",
        "0.7000 … 0.8000",
        "Best possible",
        "min_f1",
        ">= 0.8500",
        "fraud-detection-production version 3, challenger",
        "at /store/runs/march report at /store/runs/march/report.html",
        "0:01:01",
        "leaves search.space",
    ):
        assert text in shown
    assert "Beside others" not in shown
    published = [{"name": "rules", "source": "in use", "figures": {"average_precision": 0.5, "precision_at_100": 0.25}}]
    print_outcome(outcome(evaluation={**EVALUATION, "published": published}))
    shown = " ".join(capsys.readouterr().out.split())
    assert re.search("Beside others .* average precision .* precision at 100 .* Source", shown)
    assert re.search("this run .* 0.9000 .* rules .* 0.5000 .* 0.2500 .* in use", shown)


def test_the_time_of_earlier_starts_is_told_apart(capsys: pytest.CaptureFixture[str]) -> None:
    print_outcome(outcome(earlier_seconds=40.0))
    assert "run march, 0:01:01 and 0:00:40 in earlier starts, at" in capsys.readouterr().out


def test_a_concluded_run_is_answered_with_what_to_type_next(config: Path) -> None:
    conclude(config, outcome())
    done = fraud_ray("run", "-c", str(config), "--name", "march")
    assert done.exit_code == 0
    assert f"fraud-ray ui -c {config}  # MLflow" in done.stdout
    as_json = fraud_ray("run", "-c", str(config), "--name", "march", "--json")
    assert Outcome.from_json(json.loads(as_json.stdout)) == outcome()


def test_next_commands_are_shown_as_they_have_to_be_typed_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    script = tmp_path / ".venv/bin/fraud-ray"
    script.parent.mkdir(parents=True)
    script.touch(mode=0o755)
    monkeypatch.setattr("sys.executable", str(script.with_name("python")))

    def shown(folder: Path, path: Path) -> str:
        monkeypatch.chdir(folder)
        monkeypatch.setenv("PATH", str(path))
        print_next([("MLflow", ["ui", "-c", "my bank.yaml"])])
        return capsys.readouterr().out.split("\n")[2]

    assert shown(tmp_path, Path("/nowhere")) == "  .venv/bin/fraud-ray ui -c 'my bank.yaml'  # MLflow"
    assert shown(tmp_path, script.parent) == "  fraud-ray ui -c 'my bank.yaml'  # MLflow"
    (tmp_path / "elsewhere").mkdir()
    assert shown(tmp_path / "elsewhere", Path("/nowhere")).split()[0] == str(script)


def test_a_rejected_model_ends_with_3(config: Path) -> None:
    cutoff = {"threshold": 0.31, "precision": 0.9, "recall": 0.7, "f1": 0.7875, "alerts": 12.97, "note": "largest F1"}
    rejection = {"advice": ["12 of 90 days unused"], "thresholds": [cutoff], "alerts": "a day"}
    came_to = outcome(passed=False, gate={"checks": [CHECK], "passed": False}, version=None, rejection=rejection)
    conclude(config, came_to)
    done = fraud_ray("run", "-c", str(config), "--name", "march")
    assert done.exit_code == 3
    assert "failed" in done.stdout
    assert "rejected by the gate; nothing was registered\n- 12 of 90 days unused\n" in done.stdout
    assert "Alerts a day" in done.stdout
    for figure in ("0.3100", "0.7875", " 13 ", "largest F1"):
        assert figure in done.stdout
    assert "registered model" not in done.stdout


def test_a_run_that_is_stopped_says_how_it_goes_on(config: Path, ray_session: None) -> None:
    name = "fraud-{as_of:%Y}"
    done = fraud_ray("run", "-c", str(config), "--name", name, "--until", "validate")
    assert done.exit_code == 0
    assert "stopped after validate" in done.stdout
    assert f"fraud-ray run -c {config} --name 'fraud-{{as_of:%Y}}'" in done.stdout
    assert "✓ validate" in done.stderr
    assert [run.name for run in list_runs(storage_of(config))] == ["fraud-2024"]


def fails(fault: Exception) -> typer.Typer:
    """A command that ends with a fault."""
    small = typer.Typer(cls=Commands, pretty_exceptions_enable=False)

    @small.callback()
    def group(debug: bool = False) -> None: ...

    @small.command()
    def work() -> None:
        raise fault

    return small


def test_an_unexpected_fault_is_one_message_with_its_trace_in_a_file() -> None:
    small = fails(ZeroDivisionError("of all things"))
    done = CliRunner().invoke(small, ["work"])
    assert done.exit_code == 1
    assert "error: unexpected ZeroDivisionError: of all things" in done.stderr
    assert "Traceback" not in done.stderr
    found = re.search(r"Its trace is in (\S+);", done.stderr)
    assert found
    trace = Path(found[1])
    assert "ZeroDivisionError" in trace.read_text()
    trace.unlink()
    assert "Traceback" in CliRunner().invoke(small, ["--debug", "work"]).stderr
    assert "Traceback" in CliRunner().invoke(small, ["work"], obj=True).stderr, "a job's disk is not seen"


def test_a_fault_of_a_ray_task_is_told_as_it_was_raised(ray_session: None) -> None:
    import ray

    def refuse() -> None:
        raise DataError("part-3.parquet is torn")

    with pytest.raises(DataError) as wrapped:
        ray.get(ray.remote(refuse).remote())
    done = CliRunner().invoke(fails(wrapped.value), ["work"])
    assert (done.exit_code, done.stderr) == (4, "error: part-3.parquet is torn\n")


def test_a_fault_of_a_ray_task_that_is_not_ours_is_told_without_rays_wrapping(ray_session: None) -> None:
    import ray

    def stumble() -> None:
        raise ZeroDivisionError("of all things")

    with pytest.raises(ZeroDivisionError) as wrapped:
        ray.get(ray.remote(stumble).remote())
    done = CliRunner().invoke(fails(wrapped.value), ["work"])
    message, beside = done.stderr.splitlines()
    assert (done.exit_code, message) == (1, "error: unexpected ZeroDivisionError: of all things")
    trace = Path(beside.removeprefix("Its trace is in ").partition(";")[0])
    assert "in stumble" in trace.read_text()
    trace.unlink()


def test_a_fault_of_a_task_that_is_not_ours_names_its_partition_and_cause_not_rays_advice() -> None:
    fault = TaskFault("day=1/a.parquet", "ValueError: no year\nadvice on retries", "the trace of the task")
    done = CliRunner().invoke(fails(fault), ["work"])
    assert done.exit_code == 1
    message, beside = done.stderr.splitlines()
    assert message == "error: unexpected day=1/a.parquet: ValueError: no year"
    trace = Path(beside.removeprefix("Its trace is in ").partition(";")[0])
    assert "the trace of the task" in trace.read_text()
    trace.unlink()


WORKS = """
import os, signal, sys, time
from contextlib import ExitStack
from pathlib import Path
import typer
from fraud_ray.cli.display import Display
from fraud_ray.cli.faults import Commands
from fraud_ray.runs import open_run
from fraud_ray.settings import load_settings
from fraud_ray.storage import Storage

app = typer.Typer(cls=Commands)
app.callback()(lambda: None)
tell = lambda text: print(text, file=sys.stderr, flush=True)

def clean_up():
    tell("cleaning up")
    time.sleep(2)

class Handle:
    def __del__(self):
        os.kill(os.getpid(), NUMBER)
        time.sleep(1)

def swallow():
    try:
        os.kill(os.getpid(), NUMBER)
        time.sleep(1)
    except KeyboardInterrupt:
        pass

@app.command()
def run(config: Path, number: int, how: str) -> None:
    global NUMBER
    NUMBER = number
    loaded = load_settings(config, ["run.name=march"])
    with open_run(loaded, Storage.at(loaded.settings.storage.root), "f") as held, ExitStack() as session:
        held.once("prepare", lambda: 1, int)
        session.callback(clean_up)
        session.enter_context(Display().stage("search"))
        {"sent": lambda: None, "lost in a destructor": Handle, "swallowed": swallow}[how]()
        tell("working")
        time.sleep(60)

app()
"""


@pytest.mark.faults(
    "23", "SIGINT, SIGTERM, also twice, and where Python loses it", "the lease is free; resumable; 130, 143"
)
@pytest.mark.quick
@pytest.mark.parametrize("how", ["sent", "lost in a destructor", "swallowed"])
@pytest.mark.parametrize(("number", "exit_code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_releases_the_lease_and_leaves_the_run_resumable(
    config: Path, number: signal.Signals, exit_code: int, how: str
) -> None:
    """Also where it comes again while the command cleans up, and where its exception is lost on the way."""
    command = [sys.executable, "-c", WORKS, "run", str(config), str(int(number)), how]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as worker:
        assert worker.stderr
        told = ""
        for line in worker.stderr:
            told += line
            if line in {"working\n", "cleaning up\n"} and (how == "sent" or line != "working\n"):
                worker.send_signal(number)
        assert worker.wait(20) == exit_code
    assert "search" in told
    assert told.endswith("goes on from here with the same command\n")
    if how != "lost in a destructor":  # of which Python tells itself
        assert "Traceback" not in told
    (run,) = list_runs(storage_of(config))
    assert (run.state, run.stages) == ("unfinished", ("prepare",))
    assert (storage_of(config).get_json("runs/march/lease/000001.json") or {})["released"]


JOBS = {
    "pipeline": ("run", ["-c", "CONFIG", "--set", "storage.root=store"], "storage.root is store"),
    "retrain": ("retrain", ["-c", "CONFIG", "--set", "registry.uri=sqlite:///m.db"], "registry.uri is sqlite:///m.db"),
    "backtest": ("backtest", ["-c", "CONFIG", "--set", "storage.root=store"], "storage.root is store"),
    "drift": ("drift", ["-c", "CONFIG", "--set", "storage.root=store"], "storage.root is store"),
    "score": ("score", ["--model", "m", "--input", "/cards", "--output", "scored"], "the output scored is relative"),
}


@pytest.mark.parametrize("script", JOBS)
def test_a_job_script_is_the_command_from_any_folder_and_stores_nothing_in_it(
    script: str, config: Path, tmp_path: Path
) -> None:
    command, arguments, message = JOBS[script]
    given = [word.replace("CONFIG", str(config)) for word in arguments]
    line = [sys.executable, str(ROOT / f"jobs/{script}.py"), *given]
    done = subprocess.run(line, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2, done.stderr
    assert message in done.stderr
    assert f"By hand, outside of a job: fraud-ray {command}" in done.stderr


# The other commands.


def test_settings_prints_what_a_configuration_comes_to(config: Path) -> None:
    plain, as_json = fraud_ray("settings", "-c", str(config)), fraud_ray("settings", "-c", str(config), "--json")
    resolved = json.loads(as_json.stdout)
    assert yaml.safe_load(plain.stdout)["train"] == resolved["train"]
    assert resolved["registry"]["uri"] == f"sqlite:///{config.parent}/store/mlflow.db"
    assert resolved == load_settings(config).settings.resolved()


def test_the_schema_is_a_markdown_table() -> None:
    lines = fraud_ray("settings", "--schema").stdout.splitlines()
    assert lines[0] == "| Setting | Type | Default | Meaning |"
    assert "| `train.epochs` | integer > 0 | `50` | Most passes over the fit rows. |" in lines
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in lines} == {5}


def test_validate_counts_what_it_found(config: Path, ray_session: None) -> None:
    beside = Path(load_settings(config).settings.data.path) / "notes.txt"
    beside.write_text("not data")
    done = fraud_ray("validate", "-c", str(config))
    beside.unlink()
    assert done.exit_code == 0
    assert done.stdout.startswith("400 rows, 20 frauds (5.000%)")
    assert "left out: 1 file that is no parquet (notes.txt)" in done.stdout
    found = json.loads(fraud_ray("validate", "-c", str(config), "--json").stdout)
    assert (found["frauds"], found["notes"]) == (20, [])


def test_validate_lists_what_breaks_the_contract(config: Path, ray_session: None) -> None:
    done = fraud_ray("validate", "-c", str(config), "--set", "data.columns.amount.min=3")
    assert (done.exit_code, done.stdout) == (4, "")
    assert "part-0.parquet: column 'amount'" in done.stderr
    as_json = fraud_ray("validate", "-c", str(config), "--set", "data.columns.amount.min=3", "--json")
    (violation,) = json.loads(as_json.stdout)["violations"]
    assert (as_json.exit_code, violation["column"], violation["count"]) == (4, "amount", 3)


def test_simulate_writes_partitions_and_tells_the_best_possible_scores(tmp_path: Path, ray_session: None) -> None:
    done = fraud_ray("simulate", "--rows", "2000", "--days", "4", "--out", str(tmp_path / "cards"), "--json")
    assert done.exit_code == 0
    assert json.loads(done.stdout)["rows"] == 2000
    assert len(list((tmp_path / "cards").glob("date=*"))) == 4


def test_runs_are_listed_shown_and_compared(config: Path) -> None:
    for name, override in (("march", "train.epochs=3"), ("april", "train.epochs=4")):
        conclude(config, outcome(name=name), override)
    where = ("-c", str(config))
    listed = fraud_ray("runs", "list", *where).stdout
    assert listed.index("march") < listed.index("april")
    assert "registered" in listed
    assert [run["name"] for run in json.loads(fraud_ray("runs", "list", *where, "--json").stdout)] == ["march", "april"]
    shown = fraud_ray("runs", "show", "march", *where).stdout
    assert "epochs: 3" in shown
    assert "F1 at threshold" in shown
    assert "patience_epochs" not in shown, "it is the default"
    compared = fraud_ray("runs", "compare", "march", "april", *where).stdout
    assert re.search(r"train\.epochs\W+3\W+4", compared)
    assert re.search(r"F1\W+0\.7500 \(0\.7000 … 0\.8000\)\W+0\.7500 \(0\.7000 … 0\.8000\)\W+\+0\.0000", compared)
    assert "holdouts" not in compared
    assert json.loads(fraud_ray("runs", "compare", "march", "april", *where, "--json").stdout)["settings"] == {
        "train.epochs": ["3", "4"]
    }
    unknown = fraud_ray("runs", "show", "may", *where)
    assert unknown.exit_code == 2
    assert "there are: april, march" in unknown.stderr


def test_a_run_is_named_by_how_it_begins_or_as_the_latest(config: Path) -> None:
    for name in ("march", "march-2", "april"):
        conclude(config, outcome(name=name))

    def shown(wanted: str) -> str:
        done = fraud_ray("runs", "show", wanted, "-c", str(config), "--json")
        return json.loads(done.stdout)["name"] if done.exit_code == 0 else done.stderr

    assert [shown(wanted) for wanted in ("march", "march-", "a", "latest")] == ["march", "march-2", "april", "april"]
    assert "'mar' may be any of march, march-2; write more of the name" in shown("mar")


def test_runs_of_other_holdouts_are_compared_with_a_warning(config: Path) -> None:
    conclude(config, outcome())
    conclude(config, outcome(name="april"), "folds.holdout_days=6")
    conclude(config, outcome(name="may", evaluation={**EVALUATION, "rows": 900}))

    def warning(other: str) -> str:
        compared = fraud_ray("runs", "compare", "march", other, "-c", str(config)).stdout.splitlines()[-1]
        as_json = fraud_ray("runs", "compare", "march", other, "-c", str(config), "--json").stdout
        assert json.loads(as_json)["warning"] == compared
        return compared

    assert warning("april") == "the holdouts may differ, as these do: folds.holdout_days"
    assert warning("may").endswith("cannot be compared: 1,000 rows with 10 frauds, and 900 rows with 10 frauds")


def test_json_holds_what_the_table_holds(config: Path) -> None:
    conclude(config, outcome())
    (listed,) = json.loads(fraud_ray("runs", "list", "-c", str(config), "--json").stdout)
    table = fraud_ray("runs", "list", "-c", str(config)).stdout
    assert f"{listed['metrics']['f1_score']:.4f}" in table
    assert listed["version"]["version"] == 3
    assert "fraud-detection-production version 3" in table
    shown = json.loads(fraud_ray("runs", "show", "march", "-c", str(config), "--json").stdout)
    assert shown["changed"]["folds"]["fit_days"] == 14
    assert "fit_days: 14" in fraud_ray("runs", "show", "march", "-c", str(config)).stdout
    schema = json.loads(fraud_ray("settings", "--schema", "--json").stdout)
    assert {entry["key"]: entry["default"] for entry in schema}["train.epochs"] == "50"


def test_the_version_and_the_shells_completion_are_at_hand() -> None:
    assert re.fullmatch(r"fraud-ray \d+\.\S+\n", fraud_ray("--version").stdout)
    assert "--install-completion" in fraud_ray("--help").stdout
    completed = fraud_ray(env={"_ROOT_COMPLETE": "complete_bash", "COMP_WORDS": "root ret", "COMP_CWORD": "1"})
    assert completed.stdout.strip() == "retrain"


# Progress.


def test_elsewhere_than_on_a_terminal_a_stage_is_one_plain_line() -> None:
    written = io.StringIO()
    display = Display(Console(file=written))
    with display.stage("prepare") as stage:
        stage.update(1, 2, "half")
        stage.say("200 rows")
    with pytest.raises(DataError), display.stage("search"):
        raise DataError("no")
    first, second = written.getvalue().splitlines()
    assert re.fullmatch(r"✓ prepare +0\.0 s  200 rows", first)
    assert re.fullmatch(r"✗ search +0\.0 s  failed", second)


def test_a_stage_says_how_long_the_rest_takes_and_a_note_comes_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([0.0, 10.0, 10.0, 110.0, 110.0, 110.0, 110.0, 140.0])
    monkeypatch.setattr("fraud_ray.cli.display.time", SimpleNamespace(monotonic=lambda: next(times)))
    written = io.StringIO()
    display = Display(Console(file=written))
    display.note("starting Ray")
    assert written.getvalue() == "· starting Ray\n"
    with display.stage("refit") as stage:
        stage.update(10, 50, "epoch 10 of 50")  # where an earlier start had come to
        stage.update(20, 50, "epoch 20 of 50")
    assert "40% about 5 min left, epoch 20 of 50" in written.getvalue()


def test_on_a_terminal_a_stage_has_a_bar_that_gives_way_to_its_line() -> None:
    written = io.StringIO()
    display = Display(Console(file=written, force_terminal=True, width=100))
    with display.stage("prepare") as stage:
        stage.update(1, 2, "half way [1/2]")
        stage.bar.refresh()
        stage.say("200 rows")
    assert "━" in written.getvalue()
    assert "half way [1/2]" in written.getvalue()
    assert "200 rows" in written.getvalue().splitlines()[-1]


def test_a_table_prints_markup_as_text(capsys: pytest.CaptureFixture[str]) -> None:
    from fraud_ray.cli.tables import print_table

    print_table(["[/b]", "count"], [["[red]", "[/]"]], title="[/title]")
    printed = capsys.readouterr().out
    assert all(text in printed for text in ("[/b]", "[red]", "[/]", "[/title]"))


def test_a_terminal_that_cannot_encode_a_users_text_gets_question_marks(config: Path) -> None:
    config.write_text(config.read_text() + "registry: {model_name: łódź}\n", encoding="utf-8")
    conclude(config, outcome(), "registry.model_name=łódź")
    commands = (["settings", "-c", str(config)], ["runs", "show", "march", "-c", str(config)], ["settings", "-c", "ł"])
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    for command, exit_code in zip(commands, (0, 0, 2), strict=True):
        line = [sys.executable, "-c", f"from fraud_ray.cli import main; main({command!r})"]
        done = subprocess.run(line, env=environment, capture_output=True, encoding="ascii", timeout=60)
        assert done.returncode == exit_code, done.stderr
        assert "?" in done.stdout + done.stderr
