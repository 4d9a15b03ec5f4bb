"""A model version that answers requests."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from fraud_ray.model.scorer import GraphScorer
from fraud_ray.settings import DataSettings
from fraud_ray.windows.definition import Definition


@dataclass(frozen=True)
class Served:
    """One version, ready to answer.

    name, version: of the registered model; a bundle's folder has its own name and the digest of its graph. data: what
    the columns of a transaction are, as the windows carry it, else as the configuration declares it. definition, state:
    the window columns that the graph reads, and the key of the state that it was fitted with; None where it reads none.
    folder: its bundle on this machine. registered: when; None for a folder.
    """

    name: str
    version: str
    scorer: GraphScorer
    data: DataSettings
    definition: Definition | None
    state: str | None
    folder: Path
    registered: datetime | None


@dataclass(frozen=True)
class Scored:
    """What a version says of a batch; lists (rows,).

    computed: the window columns by name; none for a version that reads none. degraded: whether they were computed as if
    there were no past.
    """

    probability: list[float]
    decision: list[bool]
    version: list[str]
    computed: list[dict[str, float]]
    degraded: list[bool]
