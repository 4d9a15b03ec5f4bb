"""What is submitted: the words that start a run, with settings that are valid and a name that is settled."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fraud_ray.cluster import refuse_relative_folders
from fraud_ray.data.folds import at_newest_window, without_leaks
from fraud_ray.data.source import open_source
from fraud_ray.errors import DataError, ServerError, SettingsError
from fraud_ray.redaction import without_passwords
from fraud_ray.runs import run_name
from fraud_ray.settings import Loaded, Settings, load_settings

_RETRAIN = ("exec", "python", "jobs/retrain.py")


@dataclass(frozen=True)
class Order:
    """A run to submit. words: its command line, as a program gets it; config: the file that its settings come from."""

    run: str
    settings: Settings
    words: tuple[str, ...]
    config: Path

    def attempt_name(self, number: int) -> str:
        return f"{self.run}-{number}"


@dataclass(frozen=True)
class CommandLine:
    """A command line of jobs/pipeline.py or jobs/retrain.py, taken apart."""

    program: tuple[str, ...]
    config: str
    overrides: tuple[str, ...] = ()
    name: str | None = None

    @classmethod
    def parse(cls, words: Sequence[str], where: str) -> CommandLine:
        """Raises SettingsError for other words than a program and its -c, --set and --name."""
        start = next((index for index, word in enumerate(words) if word.startswith("-")), len(words))
        options: dict[str, list[str]] = {"-c": [], "--set": [], "--name": []}
        pairs = words[start:]
        if len(pairs) % 2 or any(option not in options for option in pairs[::2]):
            raise SettingsError(
                f"{where}: '{' '.join(words)}' should be jobs/pipeline.py with -c, --set and --name only"
            )
        for option, value in zip(pairs[::2], pairs[1::2], strict=True):
            options[option].append(value)
        if len(options["-c"]) != 1:
            raise SettingsError(f"{where}: '{' '.join(words)}' names no configuration with -c")
        return cls(tuple(words[:start]), options["-c"][0], tuple(options["--set"]), next(iter(options["--name"]), None))

    def words(self) -> tuple[str, ...]:
        named = ("--name", self.name) if self.name else ()
        overrides = (word for override in self.overrides for word in ("--set", override))
        return (*self.program, "-c", self.config, *overrides, *named)


def order(config: Path, overrides: Sequence[str], name: str | None, base: CommandLine, retrain: bool = False) -> Order:
    """The run, or the retraining, of this configuration with these overrides.

    base: the command line of the overlay's job; its overrides come first, its name last. name: may hold the data's
    date, which is looked up; a run without any name gets its default one. Raises SettingsError for invalid settings,
    passwords in overrides, folders that no job can see, and a name that depends on data which cannot be read from here.
    """
    every = (*base.overrides, *overrides)
    refuse_passwords(every)
    loaded = load_settings(config, every)
    without_leaks(loaded, is_strict=retrain)
    pattern = name or loaded.settings.run.name or base.name
    if pattern is not None:
        loaded = load_settings(config, [*every, f"run.name={json.dumps(pattern)}"])
    refuse_relative_folders(loaded.settings)
    run = settled_name(loaded, retrain)
    line = CommandLine(_RETRAIN if retrain else base.program, base.config, every, run)
    return Order(run, loaded.settings, line.words(), config)


def refuse_passwords(words: Sequence[str]) -> None:
    """A command line is shown by Kubernetes, the operator's log and Ray's dashboard."""
    for word in words:
        if without_passwords(word) != word:
            raise SettingsError(
                f"{without_passwords(word)} holds a password, which everybody would see in the job: take it "
                "out, and give it by a secret of the overlay as an environment variable (MLFLOW_TRACKING_USERNAME and "
                "_PASSWORD, AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY)"
            )


def settled_name(loaded: Loaded, retrain: bool) -> str:
    """The name of a run of this configuration. Raises SettingsError where its data, which dates it, cannot be read."""
    pattern = loaded.settings.run.name
    if pattern is not None and "{" not in pattern:
        return pattern
    try:
        source = open_source(loaded.settings.data)
    except (DataError, ServerError) as fault:
        raise SettingsError(
            f"the run's name {f'{pattern!r} ' if pattern else ''}comes from its data, which cannot be read from here: "
            f"{fault}\nGive a name without a date: --name …"
        ) from fault
    return run_name(at_newest_window(loaded, source) if retrain else loaded, source.fingerprint, source.as_of)
