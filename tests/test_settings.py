"""Settings: what is refused and how it says so, what overrides do, what makes two runs the same."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import BaseModel, ValidationError
from typer.testing import CliRunner

from fraud_ray.cli import app
from fraud_ray.errors import EXIT_SETTINGS, SettingsError
from fraud_ray.redaction import without_passwords
from fraud_ray.settings import (
    DEFAULT_SPACE,
    Listed,
    Loaded,
    Settings,
    TrainSettings,
    load_settings,
    parse_settings,
    reference,
    settings_hash,
)

RAW: dict[str, Any] = {
    "data": {
        "path": "/data",
        "columns": {
            "is_fraud": {"kind": "label"},
            "amount": {"kind": "amount"},
            "at": {"kind": "timestamp"},
            "category": {"kind": "categorical"},
        },
    },
    "storage": {"root": "/runs"},
}
WINDOWS = {"columns": {"spent_{days}d": {"compute": "sum", "of": "amount", "entity": "category", "days": [7]}}}


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "bank.yaml"
    path.write_text(yaml.safe_dump(RAW))
    return path


def load(config: Path, *overrides: str) -> Loaded:
    return load_settings(config, overrides)


REFUSED = {
    "train.epohcs=3": "train.epohcs is no setting; did you mean 'epochs'?",
    "trian.epochs=3": "trian is no setting; did you mean 'train'?",
    "data.columns.amount.knd=amount": "data.columns.amount.knd is no setting; did you mean 'kind'?",
    "train.epochs=0": "train.epochs should be greater than 0 (given: 0)",
    "train.hidden_sizes=4": "train.hidden_sizes should be a list (given: 4)",
    "train=3": "train should be a mapping (given: 3)",
    "train.positive_weight=many": "train.positive_weight should be a number above 0 or 'balanced' (given: 'many')",
    "train.resources_per_worker={CPU: -1}": "train.resources_per_worker.CPU should be greater than 0 (given: -1)",
    "train={workers: 2, use_gpu: true, resources_per_worker: {GPU: 0.5}}": "train.resources_per_worker gives a rank "
    "0.5 of a GPU, but ranks that exchange gradients (train.workers: 2) need one each",
    "decision.threshold=2": "decision.threshold should be less than or equal to 1 (given: 2)",
    "decision.threshold=best": "decision.threshold should be max_f1, min_cost, a probability, {recall_at_precision: …} "
    "or {alerts_per_day: …} (given: 'best')",
    "decision.threshold=[0.5]": "decision.threshold should be max_f1, min_cost, a probability",
    "decision.threshold=min_cost": "decision.threshold: min_cost needs decision.cost_per_alert",
    "decision.threshold={recall_at_precision: 3}": "decision.threshold.recall_at_precision should be less than 1",
    "search.space.learning_rate=5": "search.space.learning_rate should be a list of values or {low: …",
    "search.space.learning_rate=[-1]": "search.space.learning_rate: -1 should be greater than 0",
    "search.space.droput=[0.1]": "search.space.droput: train has no such setting; did you mean 'dropout'?",
    "search.space.workers=[1, 2]": "search.space.workers changes where training runs",
    "search.space.dropout={low: 0.1, high: 0.5}": "search.space.dropout is a range, which a grid cannot enumerate",
    "prepare.numeric_encodings=[]": "prepare.numeric_encodings should have at least 1 item, not 0 (given: [])",
    "prepare.ratios={amount: [amount, amount]}": "prepare.ratios.amount has the name of a column; give it another",
    "prepare.ratios={share: [amount, category]}": "prepare.ratios.share names 'category', which is no number that the",
    "prepare.ratios={fraud_ray/x: [amount, amount]}": "prepare.ratios: the name 'fraud_ray/x' begins with 'fraud_ray/'",
    "windows.columns={reason_1: {compute: night}}": "windows.columns: the name 'reason_1' is that of a column which",
    "search.space.members={values: [1], when: {netwrk: mlp}}": "search.space.members.when: train has no 'netwrk'; did",
    "search.space.weight_decay={values: [1], when: {optimizer: adm}}": "search.space.weight_decay: 'adm' should be",
    "search.space={weight_decay: {values: [1], when: {optimizer: adamw}}, optimizer: [adam]}": "search.space.weight_"
    "decay.when: 'optimizer' has to stand before 'weight_decay' in search.space",
    "train.loss=focal": "train.loss is no setting",
    "search.scheduler=median": "search.scheduler should be",
    "run.name=a/b": "run.name: 'a/b' must begin with a letter or digit",
    "folds.kind=entity": "folds.kind: entity needs a column of kind 'entity'",
    "data.columns.at.kind=label_time": "data: a column of kind 'label_time' needs one of kind 'timestamp' beside it",
    "data.columns.known={kind: label_time, feature: true}": "a column of kind 'label_time' cannot be a feature",
    "data.columns={y: {kind: label}, a: {kind: label_time}, b: {kind: label_time}}": "are all of kind 'label_time'",
    "data.columns.is_fraud.nulls=true": "labels that are not known yet may be missing as it is",
    "gate.slices={min: 0.5}": "gate.slices judges the slices of decision.slices, which names none",
    "decision.slices=[amount]": "decision.slices names 'amount', a number: say where its ranges begin in slice_edges",
    "decision.slice_edges={amount: [50]}": "decision.slice_edges.amount is of no number in decision.slices",
    "decision={slices: [amount], slice_edges: {amount: [50, 20]}}": "slice_edges.amount: [50.0, 20.0] should rise",
    "storage.root=s3://bucket/x": "storage.root is s3://bucket/x, where no sqlite can lie; name a tracking server",
    "storage.root=/runs/100%20": "storage.root is /runs/100%20, which MLflow reads as /runs/100 ; name a folder",
    "gate.min_f1": "write it as --set section.key=VALUE",
}


@pytest.mark.parametrize(("override", "message"), REFUSED.items())
def test_a_bad_setting_is_one_line_that_names_its_key(config: Path, override: str, message: str) -> None:
    with pytest.raises(SettingsError) as fault:
        load(config, override)
    assert message in str(fault.value)
    assert len(str(fault.value).splitlines()) == 1
    assert fault.value.exit_code == EXIT_SETTINGS


ODD_NAMES = {
    "": "is empty",
    " amount": "begins or ends with a blank",
    "amount\t2": "holds a character that is not printed",
    "fraud_ray/features": "begins with 'fraud_ray/', as the names inside a model do",
    "decision": "is that of a column which scoring writes",
}


@pytest.mark.parametrize(("name", "fault"), ODD_NAMES.items())
def test_a_column_that_could_be_taken_for_another_is_refused_by_its_name(name: str, fault: str) -> None:
    raw = deepcopy(RAW)
    raw["data"]["columns"][name] = {"kind": "id"}
    with pytest.raises(SettingsError, match=re.escape(f"data.columns: the name {name!r} {fault}; give the column ")):
        parse_settings(raw, "bank.yaml")


def test_an_override_below_a_value_is_refused(config: Path) -> None:
    with pytest.raises(SettingsError, match=r"train\.epochs is a value, it has no keys below it"):
        load(config, "train.epochs=3", "train.epochs.more=1")


def test_a_clock_needs_a_timestamp_and_a_name_of_its_own(config: Path) -> None:
    assert load(config, "prepare.calendar=true").settings.prepare.calendar
    with pytest.raises(SettingsError, match="calendar needs a column of kind 'timestamp'; declare one"):
        load(config, "prepare.calendar=true", "folds.kind=stratified", "data.columns.at.kind=id")
    with pytest.raises(SettingsError, match=r"prepare\.calendar makes a column 'at:hour'; give the one that is there"):
        load(config, "prepare.calendar=true", "data.columns.at:hour={kind: numeric}")


def test_every_bad_setting_is_told_at_once(config: Path) -> None:
    with pytest.raises(SettingsError) as fault:
        load(config, "train.epochs=0", "gate.min_f1=7", "serach={}")
    assert [line.split(": ", 1)[1].split()[0] for line in str(fault.value).splitlines()] == [
        "train.epochs",
        "gate.min_f1",
        "serach",
    ]


def test_a_missing_or_unreadable_file_is_a_settings_error(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="no configuration file at"):
        load(tmp_path / "none.yaml")
    broken = tmp_path / "broken.yaml"
    broken.write_text("data: [")
    with pytest.raises(SettingsError, match="is not valid YAML"):
        load(broken)
    broken.write_text("just words")
    with pytest.raises(SettingsError, match="holds no settings"):
        load(broken)


def test_settings_cannot_be_changed(config: Path) -> None:
    settings = load(config).settings
    with pytest.raises(ValidationError):
        settings.train.epochs = 3  # type: ignore[misc]


def test_numbers_in_scientific_notation_are_numbers(config: Path) -> None:
    settings = load(config, "train.learning_rate=1e-4", "search.space.dropout=[1e-1, 2E-1]").settings
    assert settings.train.learning_rate == 1e-4
    assert settings.search.space["dropout"].plain == [0.1, 0.2]


def test_keys_are_names_whatever_yaml_reads_them_as(tmp_path: Path) -> None:
    file = tmp_path / "names.yaml"
    columns = "{on: {kind: label}, 2024: {kind: numeric}, no: {kind: boolean, true: T}, <<: {null: {kind: numeric}}}"
    file.write_text(f"data: {{path: /data, columns: {columns}}}\nfolds: {{kind: stratified}}\n")
    loaded = load_settings(file).settings.data.columns
    assert set(loaded) == {"on", "2024", "no", "null"}
    assert loaded["no"].true == "T"


def test_the_default_space_can_be_changed_and_what_is_set_leaves_it(config: Path) -> None:
    search = ("search.space=default", "search.algorithm=tpe")
    loaded = load(config, *search, "train.optimizer=adam", "train.network=mlp", "search.space.dropout=[0.1]")
    assert loaded.notes == ("network is set, so it leaves search.space",)
    space = loaded.settings.search.space
    assert set(space) == set(DEFAULT_SPACE) - {"network"}
    assert isinstance(space["dropout"], Listed)
    assert settings_hash(load(config, *search).settings) == settings_hash(
        load(config, f"search.space={json.dumps(dict(DEFAULT_SPACE))}", "search.algorithm=tpe").settings
    )
    with pytest.raises(SettingsError, match="a range, which a grid cannot enumerate"):
        load(config, "search.space=default")


def test_a_hyperparameter_that_is_set_leaves_the_search_space(tmp_path: Path) -> None:
    config = tmp_path / "c.yaml"
    config.write_text(yaml.safe_dump({**RAW, "search": {"space": {"learning_rate": [1, 2], "dropout": [0.1]}}}))
    loaded = load(config, "train.learning_rate=0.5")
    assert list(loaded.settings.search.space) == ["dropout"]
    assert loaded.notes == ("learning_rate is set, so it leaves search.space",)
    both = load(config, "train.learning_rate=0.5", "search.space.learning_rate=[1]")
    assert set(both.settings.search.space) == {"learning_rate", "dropout"}
    assert not both.notes


def test_memory_may_be_given_in_words(config: Path) -> None:
    settings = load(config, "train.resources_per_worker={CPU: 2, memory: 32GiB}").settings
    assert settings.train.resources_per_worker == {"CPU": 2, "memory": 32 * 2**30}


def test_the_tracking_uri_defaults_to_sqlite_below_the_root(config: Path) -> None:
    assert load(config).settings.registry.uri == "sqlite:////runs/mlflow.db"
    named = load(config, "storage.root=s3://bucket/x", "registry.uri=http://mlflow:5000").settings
    assert named.registry.uri == "http://mlflow:5000"


def test_only_settings_that_change_the_result_make_another_run(config: Path) -> None:
    plain = load(config).settings
    same = load(config, "search.concurrency=3", "cluster.cpus=2", "run.name=x", "train.max_failures=9").settings
    other = load(config, "train.dropout=0.25").settings
    assert settings_hash(plain) == settings_hash(same) != settings_hash(other)
    assert {key for key in other.identity() if other.identity()[key] != plain.identity()[key]} == {"train.dropout"}


def test_resolved_settings_read_back_as_themselves(config: Path) -> None:
    settings = load(
        config,
        "decision.threshold={alerts_per_day: 100}",
        "search.algorithm=random",
        "search.space={dropout: {low: 0.1, high: 0.5}, hidden_sizes: [[8], [16, 8]]}",
        "train.positive_weight=balanced",
        "simulate={}",
    ).settings
    assert Settings.model_validate(json.loads(json.dumps(settings.resolved()))) == settings
    assert parse_settings(deepcopy(settings.resolved()), "again") == settings


def test_every_setting_has_a_meaning_in_the_reference() -> None:
    entries = list(reference())
    assert [entry.key for entry in entries if not entry.meaning] == []
    assert len({entry.key for entry in entries}) == len(entries)
    shown = {entry.key: (entry.type, entry.default) for entry in entries}
    assert shown["train.epochs"] == ("integer > 0", "50")
    assert shown["folds.holdout_share"] == ("number > 0 and < 1", "0.2")
    assert shown["decision.threshold"] == ("max_f1 or min_cost, number >= 0 and <= 1 or mapping", "max_f1")
    assert shown["gate.slices.min"] == ("number >= 0 and <= 1", "required")


def test_the_reference_has_every_setting(config: Path) -> None:
    optional = ("simulate={}", "gate.slices={min: 0.5}", "decision.slices=[category]", f"windows={json.dumps(WINDOWS)}")
    assert set(leaves(load(config, *optional).settings)) - {entry.key for entry in reference()} == set()


def leaves(section: BaseModel, prefix: str = "") -> Iterator[str]:
    """Dotted keys of a section's values, in those below it too; `<name>` stands for a name of the user's."""
    for name, value in section:
        if isinstance(value, BaseModel):
            yield from leaves(value, f"{prefix}{name}.")
        elif isinstance(value, dict) and all(isinstance(named, BaseModel) for named in value.values()) and value:
            for named in value.values():
                yield from leaves(named, f"{prefix}{name}.<name>.")
        else:
            yield f"{prefix}{name}"


def test_a_default_in_the_reference_is_what_is_taken_where_nothing_is_set(config: Path) -> None:
    entries = [entry for entry in reference() if entry.default != "required" and "<name>" not in entry.key]
    absent = tuple(f"{entry.key}." for entry in entries if entry.default == "null")
    given = [f"{entry.key}={entry.default}" for entry in entries if not entry.key.startswith(absent)]
    assert len(given) > 80
    config.write_text(yaml.safe_dump({"data": RAW["data"]}))
    assert load(config, *given).settings == load(config).settings


def test_the_reference_is_printed_as_a_table_that_markdown_reads() -> None:
    printed = CliRunner().invoke(app, ["settings", "--schema"]).stdout.splitlines()
    cells = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in printed]
    assert [len(row) for row in cells] == [4] * len(cells)
    assert [row[0] for row in cells[2:]] == [f"`{entry.key}`" for entry in reference()]
    assert [row[2].strip("`") for row in cells[2:]] == [entry.default for entry in reference()]


@pytest.mark.parametrize("path", sorted(Path(__file__).parents[1].glob("configs/*.yaml")), ids=lambda path: path.stem)
def test_the_configurations_of_the_repository_are_valid(path: Path) -> None:
    assert load(path).config == path.stem


def test_a_refits_line_says_on_how_many_ranks_of_what_it_ran() -> None:
    assert TrainSettings().ranks == "1 rank (CPU)"
    assert TrainSettings(workers=8, use_gpu=True).ranks == "8 ranks (GPU)"


def test_defaults_that_cannot_be_right_for_the_size_are_said_with_better_ones() -> None:
    local = Path(__file__).parents[1] / "configs/local.yaml"
    settings = load(local, "train.batch_size=256", "train.epochs=50", "search.space={}").settings
    told = settings.remark_on_steps(5_000_000)
    assert told
    assert "976,600 steps over 5,000,000 fit rows" in told
    assert told.endswith("--set train.batch_size=1024 --set train.epochs=12")
    assert settings.remark_on_steps(100_000) is None
    assert load(local).settings.remark_on_steps(5_000_000) is None


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("http://me:p@ss@host/x", "http://***@host/x"),
        ("http://me:p/a@b@host", "http://***@host"),
        ('http://me:p "a@b@host', "http://***@host"),
        ("http://me:12/a@host:5000/x", "http://***@host:5000/x"),
        ("http://h:5000/a", "http://h:5000/a"),
        ("postgresql://h/db?user=me&password=p@ss&ssl=1", "postgresql://h/db?user=me&password=***&ssl=1"),
        ("sqlite:////home/a@b/m.db", "sqlite:////home/a@b/m.db"),
    ],
)
def test_a_password_is_starred_out_up_to_the_last_at(text: str, shown: str) -> None:
    assert without_passwords(text) == shown
