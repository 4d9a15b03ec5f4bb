"""The MLflow that `registry.uri` names: found in seconds or not at all, and its faults as ones to act on."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from http import HTTPStatus
from pathlib import Path
from urllib.parse import urlsplit

import sqlalchemy
import urllib3
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from fraud_ray.errors import ServerError, SettingsError
from fraud_ray.redaction import refuse_misread, without_passwords
from fraud_ray.settings import RegistrySettings
from fraud_ray.storage import MAKE_ROOM, free_space, is_full

FIRST_ANSWER_S = 5
_HEALTH_S = 3.0


def uri_of(registry: RegistrySettings) -> str:
    assert registry.uri is not None, "settings fill it in when they are read"
    return registry.uri


def sqlite_file(uri: str) -> Path | None:
    """The file of an sqlite store; None of any other."""
    return Path(sqlalchemy.make_url(uri).database or "").absolute() if _backend(uri) == "sqlite" else None


def ui_command(registry: RegistrySettings, port: int = 5000) -> list[str]:
    """The command that shows the store's pages on 127.0.0.1 at this port.

    Raises SettingsError where registry.uri is a tracking server, which has pages of its own.
    """
    uri = uri_of(registry)
    if not _is_database(uri):
        way = "--to kuberay forwards them to this machine" if service_of(uri) else f"open {uri} in a browser"
        raise SettingsError(f"registry.uri is a tracking server, {uri}, which shows its own pages: {way}")
    folder = _artifact_folder(uri)
    return [
        *(sys.executable, "-m", "mlflow", "server", "--backend-store-uri", uri),
        *(("--default-artifact-root", folder.as_uri()) if folder else ()),
        *("--no-serve-artifacts", "--workers", "1", "--host", "127.0.0.1", "--port", str(port)),
    ]


def service_of(uri: str) -> tuple[str, str] | None:
    """Name and namespace of the Service of Kubernetes that a URI names, which pods alone resolve; None of others."""
    found = re.fullmatch(r"([^.]+)\.([^.]+)\.svc(\..+)?", urlsplit(uri).hostname or "")
    return (found[1], found[2]) if found else None


@contextmanager
def reported(uri: str) -> Iterator[None]:
    """Turns MLflow's faults, and those of what it stands on, into one that a person can act on."""
    try:
        yield
    except (MlflowException, sqlalchemy.exc.SQLAlchemyError, OSError) as fault:
        reason = str(fault).strip().splitlines()[0]
        cause = re.search(r'Caused by \w+\("?\w+\([^()]*\): (.+?)"?\)+$', reason)
        shown = without_passwords(uri)
        if is_full(fault):
            room = free_space(str(sqlite_file(uri) or ""))
            raise ServerError(f"MLflow at {shown} cannot be written: {reason}{room}; {MAKE_ROOM}") from fault
        advice = "check registry.uri and that the server runs"
        if not _is_database(uri):
            advice += " (MLFLOW_TRACKING_TOKEN, or MLFLOW_TRACKING_USERNAME and _PASSWORD, say who asks)"
        if service_of(uri):
            advice += "; only pods of its cluster know that name: the same command with --to kuberay runs in one"
        raise ServerError(f"MLflow at {shown} cannot be used: {cause[1] if cause else reason}; {advice}") from fault


def is_server(uri: str) -> bool:
    """Whether it is reached over HTTP."""
    return urlsplit(uri).scheme in {"http", "https"}


def answers(uri: str) -> bool:
    """Whether a server answers within seconds that it works, whoever asks."""
    try:
        told = urllib3.request("GET", f"{uri.rstrip('/')}/health", timeout=_HEALTH_S, retries=False)
    except urllib3.exceptions.HTTPError:
        return False
    return told.status < HTTPStatus.INTERNAL_SERVER_ERROR


def open_experiment(registry: RegistrySettings) -> tuple[MlflowClient, str]:
    """A client of the store, and the id of the settings' experiment in it; both are created where they are missing."""
    uri = uri_of(registry)
    refuse_misread("registry.uri", uri, taken="/?#[]" if _is_database(uri) else "@")
    with reported(uri), short_patience():
        if _is_database(uri):
            _probe(uri)
        client = MlflowClient(uri, registry_uri=uri)
        return client, _experiment(client, registry)


@contextmanager
def short_patience() -> Iterator[None]:
    """Few and short requests for as long as it lasts, unless the environment says otherwise."""
    wanted = {"MLFLOW_HTTP_REQUEST_TIMEOUT": str(FIRST_ANSWER_S), "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1"}
    added = {name: value for name, value in wanted.items() if name not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            del os.environ[name]


def _probe(uri: str) -> None:
    """One connection to a database, which MLflow would try ten times, for over a minute."""
    url = sqlalchemy.make_url(uri)
    backend = url.get_backend_name()
    if backend == "sqlite" and url.database:
        Path(url.database).parent.mkdir(parents=True, exist_ok=True)
    limits = {"connect_timeout": FIRST_ANSWER_S} if backend in {"postgresql", "mysql"} else {}
    try:
        engine = sqlalchemy.create_engine(url, connect_args=limits)
    except ImportError as fault:
        raise SettingsError(
            f"registry.uri begins with {url.drivername}://, and the driver for that is not installed ({fault}): "
            "install it, or name the one that is (postgresql+psycopg2:// comes with this package)"
        ) from fault
    try:
        engine.connect().close()
    finally:
        engine.dispose()


def _experiment(client: MlflowClient, registry: RegistrySettings) -> str:
    """The experiment's id; creating it may be won by somebody else, whose experiment is then used."""
    found = client.get_experiment_by_name(registry.experiment)
    if found is None:
        uri = uri_of(registry)
        folder = _artifact_folder(uri)
        if _is_database(uri) and folder is None:
            raise SettingsError(
                f"experiment '{registry.experiment}' does not exist, and registry.uri is a database, which does not "
                "say where artifacts go: create it with `mlflow experiments create --artifact-location`, or let "
                "registry.uri be a tracking server"
            )
        try:
            return client.create_experiment(registry.experiment, artifact_location=folder.as_uri() if folder else None)
        except MlflowException:
            found = client.get_experiment_by_name(registry.experiment)
            if found is None:
                raise
    if found.lifecycle_stage != "active":
        raise SettingsError(
            f"experiment '{registry.experiment}' was deleted in MLflow: restore it there "
            f"(`mlflow experiments restore --experiment-id {found.experiment_id}`), or name another with "
            "registry.experiment"
        )
    return found.experiment_id


def _is_database(uri: str) -> bool:
    return _backend(uri) in {"sqlite", "postgresql", "mysql", "mssql"}


def _backend(uri: str) -> str:
    return urlsplit(uri).scheme.partition("+")[0]


def _artifact_folder(uri: str) -> Path | None:
    """The folder beside an sqlite file; elsewhere the server knows."""
    file = sqlite_file(uri)
    return file.parent / "mlartifacts" if file else None
