"""Where things are: registry, storage, cluster; and the run's name."""

from __future__ import annotations

from datetime import date, timedelta

from pydantic import (
    Field,
    PositiveFloat,
    PositiveInt,
    field_validator,
)

from fraud_ray.settings.base import NO_EFFECT, Frozen


class RegistrySettings(Frozen):
    uri: str | None = None
    """MLflow's tracking and registry URI; by default sqlite below storage.root."""
    experiment: str = "fraud-detection-experiments"
    """MLflow experiment."""
    run_name: str | None = Field(default=None, json_schema_extra=NO_EFFECT)
    """Name of the parent run in MLflow; null: the run's own."""
    model_name: str = "fraud-detection-production"
    """Registered model."""


class StorageSettings(Frozen):
    root: str = Field(default=".fraud_ray", json_schema_extra=NO_EFFECT)
    """Folder or URI of runs and prepared data; on a cluster shared by all nodes."""


class CacheSettings(Frozen):
    max_staleness: timedelta | None = timedelta(days=7)
    """Age from which prepared data is computed anew, as an ISO 8601 duration such as P7D or PT12H; PT0S: always;
    null: never."""


class ClusterSettings(Frozen):
    address: str | None = None
    """Ray's address; by default RAY_ADDRESS, else a Ray is started here."""
    cpus: PositiveInt | None = None
    """CPUs of a Ray started here; by default all."""
    dashboard: bool = False
    """Whether a Ray started here serves its dashboard."""
    autoscaling: bool = False
    """Whether nodes may still come, so that a shortage is waited for."""
    wait_s: PositiveFloat = 900
    """Seconds to wait for nodes: at the start with autoscaling, and for another where one is lost in training."""
    overlay: str | None = None
    """Folder below cluster/overlays whose RayJob `fraud-ray submit` fills in."""
    image: str | None = None
    """Image of a submitted run's pods; by default the overlay's."""


class RunSettings(Frozen):
    name: str | None = None
    """The run's identity; may hold a date ({as_of:%Y-%m}); by default <config>-<as_of>-<hash>."""

    @field_validator("name")
    @classmethod
    def _formats(cls, name: str | None) -> str | None:
        if name is None:
            return name
        try:
            shown = name.format(as_of=date(2024, 1, 1))
        except (KeyError, IndexError, ValueError) as fault:
            raise ValueError(f"'{name}' does not format; the only field is {{as_of}}, as in {{as_of:%Y-%m}}") from fault
        if not shown or not all(c.isalnum() or c in "-_." for c in shown) or not shown[0].isalnum():
            raise ValueError(
                f"'{shown}' must begin with a letter or digit and hold letters, digits, '-', '_', '.' only"
            )
        return name
