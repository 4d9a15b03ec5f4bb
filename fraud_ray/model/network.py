"""The networks: encoded rows in, one logit a row out."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


@dataclass(frozen=True)
class NetworkShape:
    """All that is needed to build a network again: what it reads, its layers, and how many members it has."""

    features: int
    code_sizes: tuple[int, ...]
    hidden_sizes: tuple[int, ...]
    dropout: float
    members: int = 1

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> NetworkShape:
        return cls(
            stored["features"],
            tuple(stored["code_sizes"]),
            tuple(stored["hidden_sizes"]),
            stored["dropout"],
            stored["members"],
        )


class FraudNetwork(nn.Module):
    """A multilayer perceptron on features and one-hot categories, or several trained as one batched computation.

    The members share nothing but their rows: each has weights and dropout of its own, and the network's probability is
    the mean of theirs. The first layer's product with the one-hot columns is a sum of rows of its weight, which is what
    `categories` looks up. Those rows start at zero, so that a category never seen in training adds nothing.
    """

    starts: Tensor

    def __init__(self, shape: NetworkShape) -> None:
        super().__init__()
        widths = (*shape.hidden_sizes, 1)
        self.members = shape.members
        self.first = nn.Linear(shape.features, shape.members * widths[0]) if shape.features else None
        self.categories: nn.Embedding | None = None
        if shape.code_sizes:
            self.categories = nn.Embedding(sum(shape.code_sizes), shape.members * widths[0])
            nn.init.zeros_(self.categories.weight)
            starts = torch.tensor([0, *shape.code_sizes[:-1]]).cumsum(0)
            self.register_buffer("starts", starts.to(torch.int32), persistent=False)
        self.activations = nn.ModuleList(DroppedReLU(shape.dropout) for _ in shape.hidden_sizes)
        layer = nn.Linear if shape.members == 1 else lambda a, b: MemberLinear(shape.members, a, b)
        self.following = nn.ModuleList(layer(a, b) for a, b in itertools.pairwise(widths))

    def forward(self, features: Tensor, codes: Tensor) -> Tensor:
        """Logits float32 (rows,) of features float32 (rows, F) and codes int (rows, C).

        In training the members' own logits, (rows, members), each of which is fitted to the labels.
        """
        parts = [] if self.first is None else [self.first(features)]
        if self.categories is not None:
            rows = self.categories(codes + self.starts)
            # A sum over one column is a slow copy, here and in the graph.
            parts.append(rows.squeeze(1) if rows.shape[1] == 1 else rows.sum(dim=1))
        hidden = parts[0] if len(parts) == 1 else parts[0] + parts[1]
        if self.members > 1:
            hidden = hidden.unflatten(1, (self.members, -1)).transpose(0, 1)
        for activation, layer in zip(self.activations, self.following, strict=True):
            hidden = layer(activation(hidden))
        logits: Tensor = hidden.squeeze(-1).T if self.members > 1 else hidden
        if self.training:
            return logits
        return logits.squeeze(1) if self.members == 1 else logit_of_mean(logits)


class MemberLinear(nn.Module):
    """A linear layer for each member: (members, rows, inputs) to (members, rows, outputs), as one batched product."""

    def __init__(self, members: int, inputs: int, outputs: int) -> None:
        super().__init__()
        bound = 1 / math.sqrt(inputs)  # as nn.Linear begins
        self.weight = nn.Parameter(torch.empty(members, inputs, outputs).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(members, 1, outputs).uniform_(-bound, bound))

    def forward(self, hidden: Tensor) -> Tensor:
        return torch.baddbmm(self.bias, hidden, self.weight)


def logit_of_mean(logits: Tensor) -> Tensor:
    """Logit (rows,) of the mean over the members' probabilities, from their logits (rows, members)."""
    fraud = torch.logsumexp(F.logsigmoid(logits), dim=1)
    return fraud - torch.logsumexp(F.logsigmoid(-logits), dim=1)


class DroppedReLU(nn.Module):
    """ReLU, then dropout whose mask is drawn a byte a unit: the probability is a multiple of 1/256.

    On a CPU, torch's own dropout costs more than the matrix products around it.
    """

    def __init__(self, dropout: float) -> None:
        super().__init__()
        self.dropped_of_256 = round(dropout * 256)

    def forward(self, hidden: Tensor) -> Tensor:
        if not self.training or self.dropped_of_256 == 0:
            return torch.relu(hidden)
        dropped: Tensor = _DroppedReLU.apply(hidden, self.dropped_of_256)
        return dropped


class _DroppedReLU(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, hidden: Tensor, dropped_of_256: int) -> Tensor:
        words = torch.empty((hidden.numel() + 7) // 8, dtype=torch.int64, device=hidden.device)
        # From -2**63 with no upper bound, torch fills all 64 bits in one draw.
        draws = words.random_(-(2**63), None).view(torch.uint8)[: hidden.numel()].view(hidden.shape)
        context.scale = 256 / (256 - dropped_of_256)
        mask = draws.ge_(dropped_of_256).to(hidden.dtype)
        kept = torch.addcmul(hidden.new_zeros(()), mask, hidden, value=context.scale).relu_()
        context.save_for_backward(kept)
        return kept

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (kept,) = context.saved_tensors
        # A unit passes its gradient on where it was positive and kept, that is where the output is positive.
        return torch.ops.aten.threshold_backward(gradients[0], kept, 0).mul_(context.scale), None
