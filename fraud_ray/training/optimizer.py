"""Adam on torch's fused kernel: for small networks the bookkeeping of torch.optim takes longer than the arithmetic."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

BETAS, EPSILON = (0.9, 0.999), 1e-8  # torch.optim's own


class FusedAdam:
    """Adam, or with a weight decay AdamW; bit for bit torch.optim's with `fused=True`.

    Every parameter must have a gradient at each step. Source: Kingma and Ba, "Adam" (2015); Loshchilov and Hutter,
    "Decoupled Weight Decay Regularization" (2019).
    """

    def __init__(self, parameters: Iterable[nn.Parameter], weight_decay: float = 0.0) -> None:
        self.parameters: list[Tensor] = list(parameters)
        self.weight_decay = weight_decay
        self.means = [torch.zeros_like(parameter) for parameter in self.parameters]
        self.squares = [torch.zeros_like(parameter) for parameter in self.parameters]
        self.steps = torch.zeros((), device=self.parameters[0].device)

    def zero_grad(self) -> None:
        for parameter in self.parameters:
            parameter.grad = None

    @torch.no_grad()
    def step(self, learning_rate: float | Tensor) -> None:
        self.steps += 1
        gradients = [parameter.grad for parameter in self.parameters if parameter.grad is not None]
        torch._fused_adamw_(
            self.parameters,
            gradients,
            self.means,
            self.squares,
            [],
            [self.steps] * len(self.parameters),
            lr=learning_rate,
            beta1=BETAS[0],
            beta2=BETAS[1],
            weight_decay=self.weight_decay,
            eps=EPSILON,
            amsgrad=False,
            maximize=False,
        )

    def state_dict(self) -> dict[str, Any]:
        return {"means": self.means, "squares": self.squares, "steps": self.steps}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.steps.copy_(state["steps"])
        for held, stored in ((self.means, state["means"]), (self.squares, state["squares"])):
            for tensor, value in zip(held, stored, strict=True):
                tensor.copy_(value)
