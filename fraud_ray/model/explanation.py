"""Why a row scores as it does: what each column adds to its logit, against a typical transaction.

Integrated gradients along the straight line from the baseline to the row, in the space of encoded features and of
looked-up category rows. The contributions add up to the difference of the two logits (completeness): what the integral
misses, a hundredth of it where a network has kinks, is shared out in proportion to their size. A column's contribution
is the sum over all its encodings.
Source: Sundararajan, Taly, Yan, "Axiomatic Attribution for Deep Networks" (2017).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from torch import Tensor, nn

from fraud_ray.model.bundle import Bundle
from fraud_ray.model.encoder import Encoder
from fraud_ray.model.network import FraudNetwork

Float32 = npt.NDArray[np.float32]

BATCH_ROWS = 4_096
_LookedUp = dict[nn.Embedding, Tensor]


@dataclass(frozen=True)
class Explainer:
    """A model's encoder and network. The baseline is the encoder's typical row: means and most frequent categories.

    steps: points of the integral (Gauss and Legendre's).
    """

    encoder: Encoder
    network: FraudNetwork
    steps: int = 64

    @classmethod
    def of(cls, bundle: Bundle) -> Explainer:
        """The explainer of a model."""
        return cls(bundle.encoder, bundle.network())

    @cached_property
    def columns(self) -> tuple[str, ...]:
        """What contributions are attributed to: every column that the network reads, in the encoder's order."""
        return tuple(
            dict.fromkeys([*self.encoder.feature_columns, *(book.column for book in self.encoder.categorical)])
        )

    def logits(self, table: pa.Table) -> Float32:
        """The network's logits (rows,) of a table that holds the encoder's columns, before calibration."""
        with torch.no_grad():
            logits: Float32 = self.network(*self._encoded(table)).numpy()
        return logits

    @property
    def baseline(self) -> pa.Table:
        """The one row that all others are compared with."""
        return self.encoder.typical_rows().slice(0, 1)

    def contributions(self, table: pa.Table) -> Float32:
        """What each of `columns` adds to the logit of each row, (rows, columns); positive is towards fraud."""
        found = [self._of_batch(table.slice(start, BATCH_ROWS)) for start in range(0, table.num_rows, BATCH_ROWS)]
        return np.concatenate(found) if found else np.empty((0, len(self.columns)), np.float32)

    def reasons(self, table: pa.Table, count: int) -> tuple[npt.NDArray[np.object_], Float32]:
        """The columns that weigh most in each row, either way, and their contributions; both (rows, count)."""
        contributions = self.contributions(table)
        heaviest = np.argsort(-np.abs(contributions), axis=1, kind="stable")[:, :count]
        return np.array(self.columns, object)[heaviest], np.take_along_axis(contributions, heaviest, axis=1)

    def _encoded(self, table: pa.Table) -> tuple[Tensor, Tensor]:
        features, codes = self.encoder.apply(table)
        return torch.from_numpy(features), torch.from_numpy(codes)

    def _of_batch(self, table: pa.Table) -> Float32:
        features, codes = self._encoded(table)
        from_features, from_codes = self._encoded(self.baseline)
        looked_up, from_looked_up = (self._look_up(*at) for at in ((features, codes), (from_features, from_codes)))
        moves = [features - from_features, *(looked_up[one] - from_looked_up[one] for one in looked_up)]
        gradients = [torch.zeros_like(move) for move in moves]
        nodes, weights = np.polynomial.legendre.leggauss(self.steps)
        for at, weight in zip((nodes + 1) / 2, weights / 2, strict=True):
            starts = [from_features, *from_looked_up.values()]
            points = [(start + at * move).requires_grad_() for start, move in zip(starts, moves, strict=True)]
            with _in_place_of(dict(zip(looked_up, points[1:], strict=True))):
                logits = self.network(points[0], codes)
            for total, gradient in zip(
                gradients, torch.autograd.grad(logits.sum(), points, materialize_grads=True), strict=True
            ):
                total += weight * gradient
        of_features, *of_codes = (move * gradient for move, gradient in zip(moves, gradients, strict=True))
        # Looked-up rows are (rows, categorical columns, width).
        by_source = torch.cat([of_features, *(of.sum(dim=2) for of in of_codes)], dim=1)
        with torch.no_grad():
            difference = self.network(features, codes) - self.network(from_features, from_codes)
        missed = difference - by_source.sum(dim=1)
        size = by_source.abs()
        by_source += missed[:, None] * size / size.sum(dim=1, keepdim=True).clamp_min(1e-12)
        return self._by_column(by_source.numpy(), len(of_codes))

    def _by_column(self, contributions: Float32, tables: int) -> Float32:
        """Contributions (rows, columns) from those of each feature, then of each category column of each table."""
        books = tuple(book.column for book in self.encoder.categorical)
        sources = (*self.encoder.feature_columns, *(books * tables))
        found = np.zeros((len(contributions), len(self.columns)), np.float32)
        for source, of_source in zip(sources, contributions.T, strict=True):
            found[:, self.columns.index(source)] += of_source
        return found

    def _look_up(self, features: Tensor, codes: Tensor) -> _LookedUp:
        """What each table of category rows gives for these codes."""
        found: _LookedUp = {}

        def keep(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            assert isinstance(module, nn.Embedding), "hooked for being one"
            found[module] = output

        handles = [module.register_forward_hook(keep) for module in _tables(self.network)]
        with torch.no_grad():
            self.network(features, codes)
        for handle in handles:
            handle.remove()
        return found


def _tables(network: FraudNetwork) -> list[nn.Embedding]:
    return [module for module in network.modules() if isinstance(module, nn.Embedding)]


@contextmanager
def _in_place_of(looked_up: Mapping[nn.Embedding, Tensor]) -> Iterator[None]:
    """Has each table of category rows give these instead of its own."""

    def given(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        assert isinstance(module, nn.Embedding), "hooked for being one"
        return looked_up[module]

    handles = [module.register_forward_hook(given) for module in looked_up]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
