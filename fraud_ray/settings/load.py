"""YAML and overrides in, validated settings out; the only reader of configuration files."""

from __future__ import annotations

import typing
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

from pydantic import (
    BaseModel,
    ValidationError,
)

from fraud_ray.errors import SettingsError
from fraud_ray.settings.base import fault_in_words, nested_model, suggestion
from fraud_ray.settings.places import RegistrySettings, StorageSettings
from fraud_ray.settings.text import DEEPEST, MOST_BYTES, read_yaml, shortened
from fraud_ray.settings.training import spelled_out
from fraud_ray.settings.whole import Settings

MOST_FAULTS = 50  # that are told at once


@dataclass(frozen=True)
class Loaded:
    """Settings as read, the name of the configuration they came from, and remarks for the plan line.

    beside: what else tells one run from another, by dotted key.
    """

    settings: Settings
    config: str
    notes: tuple[str, ...] = ()
    beside: dict[str, Any] | None = None


def load_settings(path: str | Path, overrides: typing.Sequence[str] = ()) -> Loaded:
    """Reads a YAML file and applies `a.b.c=VALUE` overrides (values are YAML).

    A hyperparameter overridden under `train` leaves `search.space`, and a note says so.
    Raises SettingsError that lists every fault by its dotted key.
    """
    path = Path(path)
    if not path.is_file():
        near = sorted(str(p) for p in Path("configs").glob("*.yaml"))
        raise SettingsError(
            f"no configuration file at {path.absolute()}" + (f"; there are {', '.join(near)}" if near else "")
        )
    try:
        with path.open(encoding="utf-8") as file:
            text = file.read(MOST_BYTES + 1)
    except (OSError, UnicodeDecodeError) as fault:
        raise SettingsError(f"{path} cannot be read: {fault}") from None
    raw = read_yaml(text, str(path))
    if not isinstance(raw, dict):
        raise SettingsError(f"{path} holds no settings; it should be a mapping with at least 'data'")
    notes = _override(raw, overrides)
    return Loaded(parse_settings(raw, str(path)), path.stem, notes)


def parse_settings(raw: dict[str, Any], where: str) -> Settings:
    """Validates a mapping; raises SettingsError with one line a fault, each with its dotted key."""
    try:
        settings = Settings.model_validate(raw)
    except ValidationError as fault:
        errors = fault.errors()
        lines = list(dict.fromkeys(_explain(error) for error in errors[:MOST_FAULTS]))
        if len(errors) > MOST_FAULTS:
            lines.append(f"and {len(errors) - MOST_FAULTS:,} more faults")
        raise SettingsError("\n".join(f"{where}: {line}" for line in lines)) from None
    return settings.model_copy(update={"registry": locate_registry(settings.registry, settings.storage, where)})


def locate_registry(registry: RegistrySettings, storage: StorageSettings, where: str) -> RegistrySettings:
    """The registry with its URI, by default sqlite below the storage's root.

    Raises SettingsError for a root where that cannot lie.
    """
    if registry.uri is not None:
        return registry
    root = storage.root
    if "://" in root:
        raise SettingsError(
            f"{where}: storage.root is {root}, where no sqlite can lie; name a tracking server with registry.uri"
        )
    file = f"{Path(root).expanduser().absolute()}/mlflow.db"
    if (misread := unquote(file)) != file:
        raise SettingsError(
            f"{where}: storage.root is {root}, which MLflow reads as {misread.removesuffix('/mlflow.db')}; "
            "name a folder without '%' before two digits of a hexadecimal number, or a tracking server with "
            "registry.uri"
        )
    # MLflow takes sqlite: as it is written for a path, too, and makes its folder, but not where a driver is named.
    uri = f"sqlite+pysqlite:///{quote(file)}" if "?" in file else f"sqlite:///{file}"
    return registry.model_copy(update={"uri": uri})


def _override(raw: dict[str, Any], overrides: typing.Sequence[str]) -> tuple[str, ...]:
    keys = []
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals or not key:
            raise SettingsError(f"--set {override}: write it as --set section.key=VALUE")
        value = read_yaml(text, f"--set {shortened(key)}: '{shortened(text)}'")
        _spell_out_space(raw)
        _put(raw, key.split("."), value)
        keys.append(key)
    notes = []
    _spell_out_space(raw)
    space = (raw.get("search") or {}).get("space") or {}
    for key in keys:
        section, _, name = key.partition(".")
        if section == "train" and name in space and f"search.space.{name}" not in keys:
            del space[name]
            notes.append(f"{name} is set, so it leaves search.space")
    return tuple(notes)


def _spell_out_space(raw: dict[str, Any]) -> None:
    """Lets overrides change and remove what `search.space: default` stands for."""
    if isinstance(raw.get("search"), dict) and "space" in raw["search"]:
        raw["search"]["space"] = spelled_out(raw["search"]["space"])


def _put(raw: dict[str, Any], path: list[str], value: Any) -> None:
    *parents, last = path
    if len(path) > DEEPEST:
        raise SettingsError(f"--set {shortened('.'.join(path))}: no setting lies so deep")
    for depth, key in enumerate(parents):
        raw.setdefault(key, {})
        if raw[key] is None:
            raw[key] = {}
        raw = raw[key]
        if not isinstance(raw, dict):
            raise SettingsError(
                f"--set {'.'.join(path)}: {'.'.join(path[: depth + 1])} is a value, it has no keys below it"
            )
    raw[last] = value


def _explain(error: Any) -> str:
    """One line on a fault: its dotted key, what is wrong, what was given."""
    location = [shortened(str(part)) for part in error["loc"] if not str(part).startswith("<") and part != "[key]"]
    key = ".".join(location)
    if error["type"] == "extra_forbidden":
        siblings = _fields_at(location[:-1])
        return f"{key} is no setting{suggestion(location[-1], siblings) or '; there are ' + ', '.join(siblings)}"
    if error["type"] == "missing":
        return f"{key} is missing"
    if error["type"] == "value_error":  # raised by the validators above: a whole sentence
        return f"{key}: {fault_in_words(error)}" if key else fault_in_words(error)
    shown = "" if isinstance(error["input"], BaseModel) else f" (given: {shortened(repr(error['input']))})"
    wording = fault_in_words(error)
    return f"{key}{' ' if wording.startswith('should') else ': '}{wording}{shown}"


def _fields_at(location: list[str]) -> list[str]:
    model: Any = Settings
    for part in location:
        if isinstance(model, type) and issubclass(model, BaseModel) and part in model.model_fields:
            model = nested_model(model.model_fields[part].annotation)
    return list(model.model_fields) if isinstance(model, type) and issubclass(model, BaseModel) else []
