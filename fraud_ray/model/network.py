"""The networks: encoded rows in, one logit a row out.

A network is named by its settings: a multilayer perceptron or residual blocks; ReLU or SiLU; layer norm or none;
categories one-hot or embedded; one network or several members trained as one batched computation, whose weights are
their own or shared but for scales. All are trained by the same loop and exported by the same graph.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fraud_ray.model.dropout import Dropped

# So many categories in all a GPU multiplies with their one-hot columns: a lookup's gradient needs the codes sorted.
MULTIPLIED_CODES = 512


@dataclass(frozen=True)
class NetworkShape:
    """All that is needed to build a network again.

    features, code_sizes: what it reads; network: mlp or residual; activation: relu or silu; embedding_size: None for
    one-hot categories; member_weights: own or shared.
    """

    features: int
    code_sizes: tuple[int, ...]
    hidden_sizes: tuple[int, ...]
    dropout: float
    members: int = 1
    network: str = "mlp"
    activation: str = "relu"
    layer_norm: bool = False
    embedding_size: int | None = None
    member_weights: str = "own"

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> NetworkShape:
        sizes = {name: tuple(stored[name]) for name in ("code_sizes", "hidden_sizes")}
        return cls(**{**stored, **sizes})


class FraudNetwork(nn.Module):
    """A network on features and categories, or several members whose probability is the mean of theirs.

    With hidden sizes (a, b, c) a multilayer perceptron has layers of a, b and c units. A residual network has a units
    throughout, to which a block of b and a block of c hidden units each add their output.

    Members with weights of their own share nothing but their rows (and embeddings, where there are any). One-hot
    categories: the first layer's product with the one-hot columns is a sum of rows of its weight, which is what
    `categories` looks up. Those rows, and embeddings, start at zero, so that a category never seen in training adds
    nothing.
    """

    starts: Tensor

    def __init__(self, shape: NetworkShape) -> None:
        super().__init__()
        self.members = shape.members
        residual = shape.network == "residual"
        widths = (*(shape.hidden_sizes[:1] if residual else shape.hidden_sizes), 1)
        inputs = shape.features
        self.categories: CategoryRows | None = None
        self.embeddings: CategoryRows | None = None
        if shape.code_sizes:
            starts = torch.tensor([0, *shape.code_sizes[:-1]]).cumsum(0)
            self.register_buffer("starts", starts.to(torch.int32), persistent=False)
            if shape.embedding_size:
                self.embeddings = CategoryRows(sum(shape.code_sizes), shape.embedding_size)
                inputs += len(shape.code_sizes) * shape.embedding_size
        self.first = _first_layer(shape, inputs, widths[0]) if inputs else None
        if shape.code_sizes and not shape.embedding_size:
            self.categories = CategoryRows(sum(shape.code_sizes), shape.members * widths[0])
        blocks = shape.hidden_sizes[1:] if residual else ()
        self.blocks = nn.ModuleList(ResidualBlock(shape, widths[0], size) for size in blocks)
        self.activations = nn.ModuleList(_activation(shape, width) for width in widths[:-1])
        pairs = list(itertools.pairwise(widths))
        self.following = nn.ModuleList(
            _layer(shape, a, b, is_head=i == len(pairs)) for i, (a, b) in enumerate(pairs, 1)
        )

    def forward(self, features: Tensor, codes: Tensor) -> Tensor:
        """Logits float32 (rows,) of features float32 (rows, F) and codes int (rows, C).

        In training the members' own logits, (rows, members), each of which is fitted to the labels.
        """
        if self.embeddings is not None:
            features = torch.cat([features, self.embeddings(codes + self.starts).flatten(1)], dim=1)
        hidden = self._first_sums(features, codes)
        if self.members > 1:
            hidden = hidden.unflatten(1, (self.members, -1)).transpose(0, 1)
        for block in self.blocks:
            hidden = block(hidden)
        for activation, layer in zip(self.activations, self.following, strict=True):
            hidden = layer(activation(hidden))
        logits: Tensor = hidden.squeeze(-1).T if self.members > 1 else hidden
        if self.training:
            return logits
        return logits.squeeze(1) if self.members == 1 else logit_of_mean(logits)

    def _first_sums(self, features: Tensor, codes: Tensor) -> Tensor:
        """The first layer of features and one-hot categories, (rows, members * width)."""
        if self.first is None:
            assert self.categories is not None, "a network reads features or codes"
            return _summed(self.categories(codes + self.starts))
        weight, bias = _weight_and_bias(self.first)
        sums = bias
        if self.categories is not None:
            if features.is_cuda and self.categories.num_embeddings <= MULTIPLIED_CODES:
                one_hot = _one_hot(codes + self.starts, self.categories.num_embeddings)
                both = torch.cat([weight, self.categories.weight])
                return torch.addmm(bias, torch.cat([features, one_hot], 1), both)
            # With the bias in what is looked up, one row a column, the product adds to it in a single pass.
            sums = _summed(self.categories(codes + self.starts, bias / codes.shape[1]))
        # Of few features, the gradient of a contiguous weight is a product that takes a seventh of the time.
        return torch.addmm(sums, features, weight.contiguous())


class CategoryRows(nn.Embedding):
    """A row a code, zero at the start, plus what is `added` to each."""

    def __init__(self, codes: int, size: int) -> None:
        super().__init__(codes, size)
        nn.init.zeros_(self.weight)

    def forward(self, codes: Tensor, added: Tensor | None = None) -> Tensor:
        return F.embedding(codes, self.weight if added is None else self.weight + added)


class ResidualBlock(nn.Module):
    """Adds to its input what a layer of `size` hidden units makes of it."""

    def __init__(self, shape: NetworkShape, width: int, size: int) -> None:
        super().__init__()
        norm = [_norm(shape, width)] if shape.layer_norm else []
        self.added = nn.Sequential(
            *norm, _layer(shape, width, size), Dropped(shape.activation, shape.dropout), _layer(shape, size, width)
        )

    def forward(self, hidden: Tensor) -> Tensor:
        result: Tensor = hidden + self.added(hidden)
        return result


class MemberLinear(nn.Module):
    """A linear layer for each member: (members, rows, inputs) to (members, rows, outputs), as one batched product."""

    def __init__(self, members: int, inputs: int, outputs: int) -> None:
        super().__init__()
        bound = 1 / math.sqrt(inputs)  # as nn.Linear begins
        self.weight = nn.Parameter(torch.empty(members, inputs, outputs).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(members, 1, outputs).uniform_(-bound, bound))

    def forward(self, hidden: Tensor) -> Tensor:
        return torch.baddbmm(self.bias, hidden, self.weight)


class SharedLinear(nn.Module):
    """A linear layer whose weight members share, each with a bias and scales of inputs and outputs of its own.

    Reads (members, rows, inputs) like MemberLinear. Of a first layer, where all members read the same rows, the network
    takes the weights and multiplies with all at once; there the scales of inputs start as random signs, so that the
    members differ from the start. Source: Gorishniy, Kotelnikov, Babenko, "TabM" (2024), section 3.
    """

    def __init__(self, members: int, inputs: int, outputs: int, random_signs: bool) -> None:
        super().__init__()
        bound = 1 / math.sqrt(inputs)
        self.weight = nn.Parameter(torch.empty(inputs, outputs).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(members, 1, outputs).uniform_(-bound, bound))
        signs = torch.randint(2, (members, inputs, 1)) * 2.0 - 1 if random_signs else torch.ones(members, inputs, 1)
        self.input_scales = nn.Parameter(signs)
        self.output_scales = nn.Parameter(torch.ones(members, 1, outputs))

    def forward(self, hidden: Tensor) -> Tensor:
        return torch.baddbmm(self.bias, hidden, self.scaled())

    def scaled(self) -> Tensor:
        """Each member's weight: the scales go there, for it is smaller than what it is multiplied with."""
        return self.input_scales * self.weight * self.output_scales


class MemberNorm(nn.Module):
    """Layer norm of (members, rows, width), with a scale and a shift for each member."""

    def __init__(self, members: int, width: int) -> None:
        super().__init__()
        self.width = width
        self.weight = nn.Parameter(torch.ones(members, 1, width))
        self.bias = nn.Parameter(torch.zeros(members, 1, width))

    def forward(self, hidden: Tensor) -> Tensor:
        return F.layer_norm(hidden, (self.width,)) * self.weight + self.bias


def _summed(found: Tensor) -> Tensor:
    """(rows, columns, width) to (rows, width). A sum over one column is a slow copy, here and in the graph."""
    return found.squeeze(1) if found.shape[1] == 1 else found.sum(dim=1)


def _one_hot(codes: Tensor, count: int) -> Tensor:
    """(rows, columns) of different codes to float32 (rows, count)."""
    return (codes.unsqueeze(2) == torch.arange(count, device=codes.device)).any(1).float()


def _first_layer(shape: NetworkShape, inputs: int, outputs: int) -> nn.Module:
    """From (rows, inputs) to (rows, members * outputs)."""
    if shape.members > 1 and shape.member_weights == "shared":
        return SharedLinear(shape.members, inputs, outputs, random_signs=True)
    return nn.Linear(inputs, shape.members * outputs)


def _weight_and_bias(first: nn.Module) -> tuple[Tensor, Tensor]:
    """Of a first layer: (inputs, members * outputs) and (members * outputs)."""
    if isinstance(first, SharedLinear):
        return first.scaled().transpose(0, 1).flatten(1), first.bias.flatten()
    assert isinstance(first, nn.Linear)
    return first.weight.T, first.bias


def _layer(shape: NetworkShape, inputs: int, outputs: int, is_head: bool = False) -> nn.Module:
    """A layer after the first; members that share the others have a last one of their own."""
    if shape.members == 1:
        return nn.Linear(inputs, outputs)
    if shape.member_weights == "shared" and not is_head:
        return SharedLinear(shape.members, inputs, outputs, random_signs=False)
    return MemberLinear(shape.members, inputs, outputs)


def _norm(shape: NetworkShape, width: int) -> nn.Module:
    return nn.LayerNorm(width) if shape.members == 1 else MemberNorm(shape.members, width)


def _activation(shape: NetworkShape, width: int) -> nn.Module:
    dropped = Dropped(shape.activation, shape.dropout)
    return nn.Sequential(_norm(shape, width), dropped) if shape.layer_norm else dropped


def logit_of_mean(logits: Tensor) -> Tensor:
    """Logit (rows,) of the mean over the members' probabilities, from their logits (rows, members).

    The logarithm of a sigmoid is written as a softplus, since `logsigmoid` is exported as Log of Sigmoid, which
    onnxruntime rounds to 0 where it is small.
    """
    return torch.logsumexp(-F.softplus(-logits), dim=1) - torch.logsumexp(-F.softplus(logits), dim=1)
