"""`fraud-ray run` and `fraud-ray retrain`: the whole pipeline."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, NoReturn

import typer

from fraud_ray.cli.joblog import JobLog
from fraud_ray.cli.options import AsJson, Config, Name, NoCache, Overrides, load
from fraud_ray.cli.outcomes import print_outcome
from fraud_ray.cli.tables import print_json, print_next

if TYPE_CHECKING:
    from fraud_ray.runs import Outcome
    from fraud_ray.settings import Loaded

Stage = Literal[
    "simulate", "windows", "validate", "plan", "drift", "prepare", "search", "refit", "evaluate", "gate", "register"
]


def run(
    context: typer.Context,
    config: Config,
    overrides: Overrides = None,
    name: Name = None,
    until: Annotated[
        Stage | None,
        typer.Option("--until", metavar="STAGE", help=f"Stop after a stage: {', '.join(Stage.__args__)}."),
    ] = None,
    no_cache: NoCache = False,
    as_json: AsJson = False,
) -> None:
    """Train, gate and register a model: simulate (if there is no data), windows (if any are declared), validate, plan,
    drift (if there is a champion), prepare, search, refit, evaluate, gate, register.

    The same command again answers at once with the outcome of a concluded run, and goes on with an interrupted one.
    Ends with exit code 3 if the gate rejects the model.
    """
    _run(context, config, overrides or [], name, no_cache, as_json, until)


def retrain(
    context: typer.Context,
    config: Config,
    overrides: Overrides = None,
    name: Name = None,
    no_cache: NoCache = False,
    as_json: AsJson = False,
) -> None:
    """Train on the newest window whose labels are mature, and replace the champion if the new model is better.

    Goes through the stages of `run`, then compares the new version with the champion on the same fresh holdout. It is
    promoted if the paired bootstrap shows it better by retrain.margin; else the champion stays, also where the gate
    rejects the new model, and the exit code is 0. Where there is no champion yet, it is as `run`.
    """
    _run(context, config, overrides or [], name, no_cache, as_json, retrain=True)


def _run(
    context: typer.Context,
    config: Path,
    overrides: list[str],
    name: str | None,
    no_cache: bool,
    as_json: bool,
    until: str | None = None,
    retrain: bool = False,
) -> NoReturn:
    loaded = load(context, config, overrides, name, no_cache)

    from fraud_ray import pipeline
    from fraud_ray.cli.display import Display, stdout_for_the_result

    if isinstance(context.obj, JobLog):
        _keep_log(context.obj, loaded, retrain)
    with stdout_for_the_result():
        outcome = pipeline.run(loaded, Display(), until, retrain=retrain)
    if as_json:
        print_json(outcome.to_json())
    else:
        print_outcome(outcome)
        if not context.obj:  # a job's log is read elsewhere
            print_next(_next(outcome, config, overrides, name))
    raise typer.Exit(outcome.exit_code)


def _keep_log(log: JobLog, loaded: Loaded, retrain: bool) -> None:
    """Has the run's log kept in its storage; where its data cannot be read, the run will say so in a moment."""
    from fraud_ray.errors import SettingsError
    from fraud_ray.storage import Storage
    from fraud_ray.submission.order import settled_name

    with suppress(SettingsError):
        log.keep(Storage.at(loaded.settings.storage.root), settled_name(loaded, retrain))


def _next(outcome: Outcome, config: Path, overrides: list[str], name: str | None) -> list[tuple[str, list[str]]]:
    """The commands worth typing after this outcome, each with its purpose."""
    if outcome.status.startswith("stopped"):
        named = ["--name", name] if name else []
        return [("go on from here", ["run", *_options(config, overrides), *named])]
    where = _options(config, [o for o in overrides if o.startswith(("storage.", "registry."))])
    replaced = outcome.comparison and outcome.version and outcome.version["alias"] == "champion"
    return [
        *([("the former champion again", ["models", "rollback", *where])] if replaced else []),
        ("its settings and figures again", ["runs", "show", outcome.name, *where]),
        (f"MLflow: every trial{', and the registered model' if outcome.version else ''}", ["ui", *where]),
        ("the trials' curves", ["ui", "--tensorboard", *where]),
    ]


def _options(config: Path, overrides: list[str]) -> list[str]:
    return ["-c", str(config), *(word for override in overrides for word in ("--set", override))]
