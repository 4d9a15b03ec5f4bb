"""Where and how transactions are scored as they happen."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import ByteSize, NonNegativeFloat, PositiveFloat, PositiveInt

from fraud_ray.settings.base import Frozen


class ServingSettings(Frozen):
    host: str = "127.0.0.1"
    """Address to listen on; beyond this machine only with `tokens`."""
    port: PositiveInt = 8000
    """Port to listen on."""
    tokens: Path | None = None
    """File of bearer tokens, one a line, read again when it changes, so that they can be rotated; null: on this machine
    one is made and kept."""
    store: str | None = None
    """Where the past of entities is kept: redis://HOST:PORT/DB (Valkey or Redis), shared by all replicas; null: in this
    process's memory, from the newest window state."""
    degraded: bool = False
    """Whether requests are answered as if there were no past while the store is away, and marked so; else with 503."""
    poll_s: PositiveFloat = 5.0
    """Seconds between two looks at which version is the champion."""
    shadow: Literal["challenger"] | None = None
    """Version that scores the same requests beside the champion, off the reply's path."""
    output: str | None = None
    """Folder or URI of the partitions of what was answered, one an hour; null: `served` below storage.root where there
    is a shadow, else nowhere."""
    max_transactions: PositiveInt = 1_000
    """Most transactions of a request."""
    max_body: ByteSize = ByteSize(8 * 2**20)
    """Largest body of a request, such as 8MiB."""
    ahead_s: NonNegativeFloat = 300.0
    """How far a transaction's time may lie ahead of this machine's clock."""
    late_days: NonNegativeFloat = 1.0
    """How late a transaction may come and still find the whole past of its own time."""
