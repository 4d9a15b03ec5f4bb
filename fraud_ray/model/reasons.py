"""Why a row scores as it does: what each column adds to its logit, against a typical transaction.

Integrated gradients along the straight line from the baseline to the row, in the space of encoded features and of
looked-up category rows. The contributions add up to the difference of the two logits (completeness): what the integral
misses, a hundredth of it where a network has kinks, is shared out in proportion to their size. A column's contribution
is the sum over all its encodings.
Source: Sundararajan, Taly, Yan, "Axiomatic Attribution for Deep Networks" (2017).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
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
        return tuple(dict.fromkeys((*self.encoder.feature_columns, *self._books)))

    @property
    def baseline(self) -> pa.Table:
        """The one row that all others are compared with."""
        return self.encoder.typical_rows().slice(0, 1)

    def contributions(self, table: pa.Table) -> Float32:
        """What each of `columns` adds to the logit of each row, (rows, columns); positive is towards fraud."""
        with _one_thread():
            found = [self._of_batch(table.slice(start, BATCH_ROWS)) for start in range(0, table.num_rows, BATCH_ROWS)]
        return np.concatenate(found) if found else np.empty((0, len(self.columns)), np.float32)

    def reasons(self, table: pa.Table, count: int) -> tuple[npt.NDArray[np.object_], Float32]:
        """The columns that weigh most in each row, either way, and their contributions; both (rows, count).

        A model of fewer columns has fewer.
        """
        contributions = self.contributions(table)
        heaviest = np.argsort(-np.abs(contributions), axis=1, kind="stable")[:, :count]
        return np.array(self.columns, object)[heaviest], np.take_along_axis(contributions, heaviest, axis=1)

    @staticmethod
    def fields(count: int) -> tuple[pa.Field, ...]:
        """For each reason its column's name and what that adds to the log-odds of fraud; null where nothing alerts."""
        kinds = {"reason": pa.string(), "effect": pa.float32()}
        return tuple(pa.field(f"{name}_{n}", kind) for n in range(1, count + 1) for name, kind in kinds.items())

    def of_alerts(self, table: pa.Table, alert: npt.NDArray[np.bool_], count: int) -> list[pa.Array]:
        """The columns of `fields` for the rows of a table; alert: (rows,)."""
        names, effects = self.reasons(table.filter(pa.array(alert)), count)
        # The place of each alert's reasons; null for the others.
        at = pa.array(np.cumsum(alert) - 1, mask=~alert)
        found = [values for pair in zip(names.T, effects.T, strict=True) for values in pair]
        return [
            pa.array(found[place], field.type).take(at) if place < len(found) else pa.nulls(len(alert), field.type)
            for place, field in enumerate(self.fields(count))
        ]

    @property
    def _books(self) -> tuple[str, ...]:
        return tuple(book.column for book in self.encoder.categorical)

    def _encoded(self, table: pa.Table) -> tuple[Tensor, Tensor]:
        features, codes = self.encoder.apply(table)
        return torch.from_numpy(features), torch.from_numpy(codes)

    def _of_batch(self, table: pa.Table) -> Float32:
        (features, codes), (from_features, from_codes) = self._encoded(table), self._encoded(self.baseline)
        logits, looked_up = self._scored(features, codes)
        from_logits, from_looked_up = self._scored(from_features, from_codes)
        starts = [from_features, *from_looked_up.values()]
        moves = [end - start for end, start in zip((features, *looked_up.values()), starts, strict=True)]
        gradients = [torch.zeros_like(move) for move in moves]
        nodes, weights = np.polynomial.legendre.leggauss(self.steps)
        for at, weight in zip((nodes + 1) / 2, weights / 2, strict=True):
            points = [(start + at * move).requires_grad_() for start, move in zip(starts, moves, strict=True)]
            with _hooked(self.network, dict(zip(looked_up, points[1:], strict=True)).get):
                there = self.network(points[0], codes).sum()
            found = torch.autograd.grad(there, points, materialize_grads=True)
            for total, gradient in zip(gradients, found, strict=True):
                total += weight * gradient
        of_features, *of_codes = (move * gradient for move, gradient in zip(moves, gradients, strict=True))
        # Looked-up rows are (rows, categorical columns, width).
        by_source = torch.cat([of_features, *(of.sum(dim=2) for of in of_codes)], dim=1)
        missed = logits - from_logits - by_source.sum(dim=1)
        size = by_source.abs()
        by_source += missed[:, None] * size / size.sum(dim=1, keepdim=True).clamp_min(1e-12)
        sources = (*self.encoder.feature_columns, *(self._books * len(of_codes)))
        contributions = np.zeros((len(by_source), len(self.columns)), np.float32)
        for source, of_source in zip(sources, by_source.numpy().T, strict=True):
            contributions[:, self.columns.index(source)] += of_source
        return contributions

    def _scored(self, features: Tensor, codes: Tensor) -> tuple[Tensor, dict[nn.Module, Tensor]]:
        """Logits (rows,), and what each table of category rows gave for these codes."""
        looked_up: dict[nn.Module, Tensor] = {}
        with torch.no_grad(), _hooked(self.network, looked_up.__setitem__):
            return self.network(features, codes), looked_up


@contextmanager
def _one_thread() -> Iterator[None]:
    """One, as a task of Ray has: with more, the last bits may differ."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@contextmanager
def _hooked(network: FraudNetwork, hook: Callable[[nn.Module, Tensor], Tensor | None]) -> Iterator[None]:
    """Shows a hook what each table of category rows gives; what the hook returns, if anything, takes its place."""

    def seen(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
        return hook(module, output)

    handles = [part.register_forward_hook(seen) for part in network.modules() if isinstance(part, nn.Embedding)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
