"""An activation, then dropout whose mask is drawn a byte a unit: the probability is a multiple of 1/256.

On a CPU, torch's own dropout costs more than the matrix products around it; on a GPU it is a single kernel.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def in_256ths(dropout: float) -> int:
    return round(dropout * 256)


def scale_of(dropped_of_256: int) -> float:
    """What a kept unit is multiplied with, so that the mean stays."""
    return 256 / (256 - dropped_of_256)


class DroppedReLU(nn.Module):
    """ReLU, then dropout."""

    def __init__(self, dropout: float) -> None:
        super().__init__()
        self.dropped_of_256 = in_256ths(dropout)

    def forward(self, hidden: Tensor) -> Tensor:
        if not self.training or self.dropped_of_256 == 0:
            return torch.relu(hidden)
        if hidden.is_cuda:
            return F.dropout(torch.relu(hidden), self.dropped_of_256 / 256)
        dropped: Tensor = _DroppedReLU.apply(hidden, self.dropped_of_256)
        return dropped


class DroppedSiLU(nn.Module):
    """SiLU, then dropout."""

    def __init__(self, dropout: float) -> None:
        super().__init__()
        self.dropped_of_256 = in_256ths(dropout)

    def forward(self, hidden: Tensor) -> Tensor:
        active = F.silu(hidden)
        if not self.training or self.dropped_of_256 == 0:
            return active
        if hidden.is_cuda:
            return F.dropout(active, self.dropped_of_256 / 256)
        return active * (_kept(hidden, self.dropped_of_256) * scale_of(self.dropped_of_256))


def dropped_relu(hidden: Tensor, dropped_of_256: int) -> Tensor:
    """A new tensor of hidden's shape: 0, or the unit and its scale."""
    if dropped_of_256 == 0:
        return torch.relu(hidden)
    kept = _kept(hidden, dropped_of_256).to(hidden.dtype)
    # Written over the mask: the speed of memory is what ranks on one machine share.
    return torch.addcmul(hidden.new_zeros(()), kept, hidden, value=scale_of(dropped_of_256), out=kept).relu_()


def dropped_relu_backward(gradient: Tensor, dropped: Tensor, dropped_of_256: int, out: Tensor) -> Tensor:
    """The gradient of what `dropped_relu` was given, from that of its result; in `out`, which may be `gradient`.

    A unit passes its gradient on where it was positive and kept, that is where the result is positive.
    """
    torch.ops.aten.threshold_backward.grad_input(gradient, dropped, 0, grad_input=out)
    return out.mul_(scale_of(dropped_of_256))


def _kept(hidden: Tensor, dropped_of_256: int) -> Tensor:
    """A mask of hidden's shape, 0 for the dropped units and 1 for the others, as bytes."""
    words = torch.empty((hidden.numel() + 7) // 8, dtype=torch.int64, device=hidden.device)
    # From -2**63 with no upper bound, torch fills all 64 bits in one draw.
    draws = words.random_(-(2**63), None).view(torch.uint8)[: hidden.numel()].view(hidden.shape)
    return draws.ge_(dropped_of_256)


class _DroppedReLU(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, hidden: Tensor, dropped_of_256: int) -> Tensor:
        context.dropped_of_256 = dropped_of_256
        dropped = dropped_relu(hidden, dropped_of_256)
        context.save_for_backward(dropped)
        return dropped

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (dropped,) = context.saved_tensors
        (gradient,) = gradients
        return dropped_relu_backward(gradient, dropped, context.dropped_of_256, torch.empty_like(gradient)), None
