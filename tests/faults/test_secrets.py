"""No password, token or key stands in what is printed or stored, however it is written into a URI."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from fraud_ray.cli.tables import as_yaml, print_json, print_line, print_next, print_table
from fraud_ray.errors import SettingsError
from fraud_ray.redaction import redacted, refuse_misread, starred, without_passwords
from fraud_ray.registry.promotion import promote, record_registration
from fraud_ray.registry.tracking import Dataset, connect
from fraud_ray.registry.versions import register
from fraud_ray.runs import Outcome, open_run
from fraud_ray.settings import Loaded, RegistrySettings, parse_settings
from fraud_ray.storage import Storage
from tests.handmade import example as example_rows
from tests.handmade import write_bundle

schemes = st.sampled_from(["http", "https", "postgresql+psycopg2", "mysql", "redis", "rediss", "s3", "mssql+pyodbc"])
passwords = st.text(st.characters(exclude_categories=("C", "Z")), min_size=1)
users = st.from_regex(r"[A-Za-z0-9._-]*", fullmatch=True)
# What may follow: a host, a port, a path, harmless parameters.
places = st.from_regex(r"[a-z][a-z0-9.-]*(:[0-9]{2,5})?(/[a-z0-9_./-]*)?(\?ssl=[01](&timeout=[0-9])?)?", fullmatch=True)
PASSWORD = "faults-pa@ss/wo?rd#1"

ROW = ("22", "passwords with @ / ? # in a URI, and ?password=", "starred out in every message and file")


@pytest.mark.faults(*ROW)
@pytest.mark.quick
@given(schemes, users, passwords, places)
@example("postgresql", "me", "p@ss/word@", "db/x")
@example("redis", "", "p:/?#[]@!$&'()*+,;=", "cache:6379/0")
@example("http", "u", "[::1", "h")
def test_a_password_is_starred_out_whatever_it_holds(scheme: str, user: str, password: str, place: str) -> None:
    assume("=" not in password.partition("?")[2])  # digits?token= may as well be a port and a parameter
    shown = f"{scheme}://***@{place}"
    for uri, stars in ((f"{scheme}://{user}:{password}@{place}", shown), (shown, shown)):
        assert without_passwords(uri) == stars
        assert without_passwords(f"registry.uri={uri}") == f"registry.uri={stars}"
        told = redacted(f"MLflow at {uri} cannot be used; ask ada@bank or see http://h:5000/x")
        assert told == f"MLflow at {stars} cannot be used; ask ada@bank or see http://h:5000/x"
        assert starred({"a": [{"b": (uri, 1, None)}]}) == {"a": [{"b": [stars, 1, None]}]}


@pytest.mark.faults(*ROW)
@given(
    st.sampled_from(["password", "PassWord", "passwd", "pwd", "p%61ssword", "sslpassword", "token", "sig"]),
    passwords.filter(lambda text: "=" not in text),
    st.sampled_from(["", ":5432"]),
)
@example("password", "a&b#c@d/e?f", "")
def test_parameters_that_tell_a_secret_are_starred_out_by_name(name: str, password: str, port: str) -> None:
    shown = f"postgresql://db{port}/mlflow?user=me&{name}=***&ssl=1"
    for secret in (password, "***"):
        uri = f"postgresql://db{port}/mlflow?user=me&{name}={secret}&ssl=1"
        assert without_passwords(uri) == shown
        assert redacted(f"at {uri} now") == f"at {shown} now"


@pytest.mark.parametrize(
    "text",
    [
        "sqlite:////home/a@b/m.db",
        "s3://bucket/a@b/c",
        "http://h:5000/a",
        "http://[::1]:5000/a",
        "models:/cards@champion",
        "MLflow at http://h:5000 cannot be used; write to ada@bank",
        "no URI: me:p@h, a?password=x",
    ],
)
def test_what_holds_no_secret_stays_as_it_is(text: str) -> None:
    assert redacted(text) == text
    assert " " in text or without_passwords(text) == text


def test_a_uri_in_a_uri_and_one_with_a_blank_in_its_password_are_starred_out_too() -> None:
    assert redacted("http://proxy/?to=http://u:p@h") == "http://proxy/?to=http://***@h"
    assert redacted("http://proxy/?to=http://h?token=x") == "http://proxy/?to=http://h?token=***"
    assert redacted("at http://me:two words@h, then") == "at http://***@h, then"


@pytest.mark.faults(*ROW)
def test_everything_that_prints_stars_it_out(capsys: pytest.CaptureFixture[str]) -> None:
    uri = f"postgresql://me:{PASSWORD}@db/mlflow"
    print_json({"uri": [uri]})
    print_line(f"at {uri}")
    print_table(["Where"], [[uri]])
    print_next([("go on", ["run", "--set", f"registry.uri={uri}"])])
    print(as_yaml({"registry": {"uri": uri}}))
    told = capsys.readouterr().out
    assert told.count("***@db/mlflow") == 5
    assert PASSWORD[-4:] not in told


@pytest.mark.faults(*ROW)
@pytest.mark.parametrize(
    ("uri", "shown"),
    [
        ("http://me:geheim1@geheim2@127.0.0.1:9", "MLflow at http://***@127.0.0.1:9 cannot be used"),
        ("http://me:geheim1/geheim2@127.0.0.1:9", "write / as %2F in it"),
        ("postgresql+psycopg2://me:geheim1/geheim2@127.0.0.1:9/x", "at postgresql+psycopg2://***@127.0.0.1:9/x cannot"),
        ("postgresql+psycopg2://me:geheim1@geheim2/@127.0.0.1:9/x", "write @ as %40 in it"),
        ("postgresql+psycopg2://127.0.0.1:9/x?user=me&password=geheim1@geheim2", "write @ as %40 in it"),
        (
            "postgresql+psycopg2://127.0.0.1:9/x?user=me&password=geheim1%40geheim2",
            "127.0.0.1:9/x?user=me&password=***",
        ),
    ],
)
def test_a_command_that_fails_says_where_without_the_password(tmp_path: Path, uri: str, shown: str) -> None:
    data = {"path": str(tmp_path), "columns": {"y": {"kind": "label"}, "x": {"kind": "numeric"}}}
    (tmp_path / "c.yaml").write_text(json.dumps({"data": data, "folds": {"kind": "stratified"}}))
    command = ["models", "list", "-c", str(tmp_path / "c.yaml"), "--set", f"registry.uri={uri}"]
    done = subprocess.run([sys.executable, "-m", "fraud_ray", *command], capture_output=True, text=True, check=False)
    assert done.returncode in {1, 2}
    assert shown in done.stderr
    assert "geheim" not in done.stdout + done.stderr


@pytest.mark.faults(*ROW)
def test_a_store_of_histories_is_named_without_its_password() -> None:
    with pytest.raises(SettingsError, match="write / as %2F in it"):
        refuse_misread("serving.store", "redis://:ge/heim@cache:6379")
    refuse_misread("serving.store", "redis://:ge%2Fh@eim@cache:6379/0")
    assert without_passwords("redis://:ge%2Fh@eim@cache:6379/0") == "redis://***@cache:6379/0"


@pytest.mark.faults("22", "a password in --set of a job", "refused before it is submitted, as all would see it")
def test_a_job_takes_no_password_on_its_command_line(tmp_path: Path) -> None:
    from fraud_ray.submission.order import CommandLine, order

    base = CommandLine(("python", "jobs/pipeline.py"), "c.yaml")
    with pytest.raises(SettingsError, match=r"postgresql://\*\*\*@db/x holds a password.*MLFLOW_TRACKING_USERNAME"):
        order(tmp_path / "c.yaml", ["registry.uri=postgresql://me:geheim@db/x"], None, base)


def test_what_is_kept_of_settings_parses_again() -> None:
    values = {
        "data": {"path": "s3://key:se/cret@bucket/x", "columns": {"y": {"kind": "label"}, "x": {"kind": "numeric"}}}
    }
    kept = parse_settings({**values, "folds": {"kind": "stratified"}}, "a test").recorded()
    assert kept["data"]["path"] == "s3://***@bucket/x"
    assert parse_settings(kept, "a test").recorded() == kept


@pytest.mark.faults("22", "passwords in settings, commands, paths, reasons", "in no file, parameter, tag or record")
@pytest.mark.quick
def test_nothing_that_is_stored_holds_it(
    tmp_path: Path, mlflow_template: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = "postgresql://me:geheim@db/mlflow?sslpassword=geheim"
    monkeypatch.setattr("sys.argv", ["fraud-ray", "run", "--set", f"registry.uri={uri}"])
    shutil.copy(mlflow_template, tmp_path / "mlflow.db")
    data = {"path": "s3://key:geheim@bucket/x", "columns": {"y": {"kind": "label"}, "x": {"kind": "numeric"}}}
    values = {"data": data, "registry": {"uri": uri}, "run": {"name": "march"}, "folds": {"kind": "stratified"}}
    settings, storage = parse_settings(values, "a test"), Storage.at(str(tmp_path))
    tracking = connect(RegistrySettings(uri=f"sqlite:///{tmp_path}/mlflow.db", model_name="cards"))

    run = tracking.start("march", settings.changed(), {"where": uri}, Dataset("x", settings.data.path, "abc", 1))
    run.log_json({"where": [uri]}, "where.json")
    run.finish("FAILED", "failed", f"MLflow at {uri} cannot be used")
    record_registration(run, storage, register(run, write_bundle(tmp_path / "runs/march/bundle"), example_rows()))
    promote(tracking, storage, 1, reason=f"see {uri}")
    with open_run(Loaded(settings, "c"), storage, "abc") as kept:
        kept.once("plan", lambda: {"data": settings.data.path}, dict)
        kept.conclude(Outcome("march", uri, "rejected", plan=(f"of {uri}",)))
    stored = [file for file in tmp_path.rglob("*") if file.is_file()]
    assert len(stored) > 10
    assert [file for file in stored if b"geheim" in file.read_bytes()] == []
    assert b"***@db/mlflow" in (tmp_path / "runs/march/run.json").read_bytes()
