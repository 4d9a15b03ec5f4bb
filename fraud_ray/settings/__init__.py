"""Typed, frozen settings: YAML and overrides in, one validated value out.

A section of the configuration is a class here; `whole.Settings` holds all of them.
"""

from fraud_ray.settings.data import (
    INNER,
    ColumnSettings,
    CsvSettings,
    DataSettings,
    FoldSettings,
    PrepareSettings,
    SimulateSettings,
)
from fraud_ray.settings.decision import (
    AlertsPerDay,
    DecisionSettings,
    DriftSettings,
    GateSettings,
    RecallAtPrecision,
    ReferenceName,
    SliceGate,
)
from fraud_ray.settings.load import Loaded, load_settings, locate_registry, parse_settings
from fraud_ray.settings.places import ClusterSettings, RegistrySettings, StorageSettings
from fraud_ray.settings.reference import reference
from fraud_ray.settings.serving import ServingSettings
from fraud_ray.settings.training import DEFAULT_SPACE, Listed, Options, Range, SearchSettings, TrainSettings
from fraud_ray.settings.whole import Settings, dotted, settings_hash
from fraud_ray.settings.windows import WindowsSettings

__all__ = [
    "DEFAULT_SPACE",
    "INNER",
    "AlertsPerDay",
    "ClusterSettings",
    "ColumnSettings",
    "CsvSettings",
    "DataSettings",
    "DecisionSettings",
    "DriftSettings",
    "FoldSettings",
    "GateSettings",
    "Listed",
    "Loaded",
    "Options",
    "PrepareSettings",
    "Range",
    "RecallAtPrecision",
    "ReferenceName",
    "RegistrySettings",
    "SearchSettings",
    "ServingSettings",
    "Settings",
    "SimulateSettings",
    "SliceGate",
    "StorageSettings",
    "TrainSettings",
    "WindowsSettings",
    "dotted",
    "load_settings",
    "locate_registry",
    "parse_settings",
    "reference",
    "settings_hash",
]
