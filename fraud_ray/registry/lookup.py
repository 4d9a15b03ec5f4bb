"""A registered version by the URI that people write, models:/name@alias or models:/name/version, with its bundle."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from fraud_ray.errors import FraudRayError, SettingsError
from fraud_ray.registry.tracking import Tracking, connect_existing, reported
from fraud_ray.registry.versions import RegisteredVersion, download, list_versions
from fraud_ray.settings import RegistrySettings


def fetch(registry: RegistrySettings, uri: str, folder: Path) -> tuple[RegisteredVersion, Path]:
    """The version of a URI, and the folder below `folder` into which its bundle is downloaded.

    Raises FraudRayError that says which versions there are, and how to get one, where the URI names none.
    """
    written = re.fullmatch(r"models:/([^/@]+)(?:@([^/@]+)|/(\d+))", uri)
    if not written:
        raise SettingsError(f"{uri} is no URI of a version; write models:/NAME@ALIAS or models:/NAME/VERSION")
    name, alias, number = written.groups()
    tracking = connect_existing(registry.model_copy(update={"model_name": name}))
    versions = list_versions(tracking)
    if alias and versions:
        with reported(tracking.uri):
            number = tracking.client.get_registered_model(name).aliases.get(alias)
    found = next((version for version in versions if str(version.version) == str(number)), None)
    if found is None:
        raise FraudRayError(f"{uri} does not exist: {_what_there_is(tracking, name, versions)}")
    return found, download(tracking, found, folder)


def _what_there_is(tracking: Tracking, name: str, versions: Sequence[RegisteredVersion]) -> str:
    where = f"the registry at {re.sub('://[^/@]*@', '://***@', tracking.uri)}"
    if versions:
        listed = ", ".join(f"{v.version} ({v.alias})" if v.alias else str(v.version) for v in versions)
        return (
            f"{where} has versions {listed} of '{name}'. `fraud-ray models promote` makes one of them champion, "
            "`fraud-ray run -c FILE` registers another"
        )
    with reported(tracking.uri):
        others = ", ".join(sorted(model.name for model in tracking.client.search_registered_models()))
    return (
        f"{where} has no '{name}'{f', but {others}' if others else ''}. `fraud-ray run -c FILE` trains and registers "
        "one; the first becomes champion"
    )
