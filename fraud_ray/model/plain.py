"""The plain network in training on a CPU, with its gradients written out.

Plain is a multilayer perceptron of ReLU and dropout, of one member, with one-hot categories. In batches of some hundred
rows torch's recording of each operation takes as long as the arithmetic; here the whole network is recorded as one.
The operations are those of `FraudNetwork` and their order is autograd's, so the numbers are the same but for rounding.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fraud_ray.model.dropout import dropped_relu, dropped_relu_backward


class PlainNetwork(torch.autograd.Function):
    """Logits float32 (rows, 1) of features float32 (rows, F) and codes int (rows, C).

    rows: of the categories, (codes in all, width of the first layer), or None where C is 0. layers: weight and bias of
    each, as nn.Linear has them.
    """

    @staticmethod
    def forward(
        context: Any, features: Tensor, codes: Tensor, dropped_of_256: int, rows: Tensor | None, *layers: Tensor
    ) -> Tensor:
        (weight, bias), following = layers[:2], layers[2:]
        if rows is None:
            hidden = torch.addmm(bias, features, weight.T)
        else:
            hidden = summed(torch.embedding(rows + bias / codes.shape[1], codes))
            hidden.addmm_(features, weight.T)
        inputs = []
        for weight, bias in zip(following[::2], following[1::2], strict=True):
            inputs.append(dropped_relu(hidden, dropped_of_256))
            hidden = torch.addmm(bias, inputs[-1], weight.T)
        context.dropped_of_256 = dropped_of_256
        context.count = None if rows is None else len(rows)
        context.save_for_backward(features, codes, *following[::2], *inputs)
        return hidden

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        features, codes, *saved = context.saved_tensors
        weights, inputs = saved[: len(saved) // 2], saved[len(saved) // 2 :]
        gradient = gradients[0]
        of_layers: list[Tensor] = []  # bias before weight, from the last layer to the first
        for weight, given in zip(reversed(weights), reversed(inputs), strict=True):
            of_layers += [gradient.sum(0), gradient.T @ given]
            gradient = gradient @ weight
            dropped_relu_backward(gradient, given, context.dropped_of_256, out=gradient)
        of_rows = None
        if context.count is None:
            of_layers.append(gradient.sum(0))
        else:
            columns = codes.shape[1]
            of_each = gradient.unsqueeze(1).expand(-1, columns, -1)
            of_rows = torch.ops.aten.embedding_dense_backward(of_each, codes, context.count, -1, False)
            of_layers.append(of_rows.sum(0) / columns)
        of_layers.append((features.T @ gradient).T)
        return None, None, None, of_rows, *reversed(of_layers)


def summed(found: Tensor) -> Tensor:
    """(rows, columns, width) to (rows, width). A sum over one column is a slow copy, here and in the graph."""
    return found.squeeze(1) if found.shape[1] == 1 else found.sum(dim=1)
