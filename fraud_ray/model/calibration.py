"""From a network's logit to a probability: the value that the graph carries; fitted in `decision.calibration`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import TypeAdapter
from scipy.special import expit

Float32 = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Calibration:
    """`platt`: sigmoid(slope * logit + intercept). `isotonic`: a line from knot to knot, flat beyond the ends.

    knots: (logit, probability) pairs, both rising. The default is the plain sigmoid.
    """

    kind: str = "platt"
    slope: float = 1.0
    intercept: float = 0.0
    knots: tuple[tuple[float, float], ...] = ()

    def apply(self, logits: Float32) -> Float32:
        """Probabilities (rows,) of logits (rows,)."""
        if self.kind == "isotonic":
            x, y = np.array(self.knots, np.float64).T
            return np.interp(logits, x, y).astype(np.float32)
        z = np.float32(self.slope) * logits.astype(np.float32) + np.float32(self.intercept)
        return expit(z.astype(np.float64)).astype(np.float32)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> Calibration:
        return TypeAdapter(cls).validate_python(stored)
