"""An activation, then dropout whose mask is drawn a byte a unit: the probability is a multiple of 1/256.

On a CPU, torch's own dropout costs more than the matrix products around it; on a GPU it is a single kernel.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Dropped(nn.Module):
    """relu or silu, then dropout of this share, rounded to 256ths."""

    def __init__(self, activation: str, dropout: float) -> None:
        super().__init__()
        self.activate = {"relu": torch.relu, "silu": F.silu}[activation]
        self.dropped_of_256 = round(dropout * 256)

    def forward(self, hidden: Tensor) -> Tensor:
        active = self.activate(hidden)
        if not self.training or self.dropped_of_256 == 0:
            return active
        if hidden.is_cuda:
            return F.dropout(active, self.dropped_of_256 / 256)
        # Kept units are scaled, so that the mean stays.
        return active * (_kept(hidden, self.dropped_of_256) * (256 / (256 - self.dropped_of_256)))


def _kept(hidden: Tensor, dropped_of_256: int) -> Tensor:
    """A mask of hidden's shape, 0 for the dropped units and 1 for the others, as bytes."""
    words = torch.empty((hidden.numel() + 7) // 8, dtype=torch.int64)
    # From -2**63 with no upper bound, torch fills all 64 bits in one draw.
    draws = words.random_(-(2**63), None).view(torch.uint8)[: hidden.numel()].view(hidden.shape)
    return draws.ge_(dropped_of_256)
