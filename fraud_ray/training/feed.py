"""Minibatches of one fold's fit rows for one rank: from arrays in memory, or streamed from storage.

Both give every rank the same number of steps an epoch, and the same global batches whatever the number of ranks.
With a share of the negatives, the rows of an epoch are all frauds and a fresh draw of the others, weighted back.
"""

from __future__ import annotations

import queue
import threading
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from torch import Tensor

from fraud_ray.data.rows import Part, Rows, RowSet, from_tables, read_part
from fraud_ray.storage import Storage

Item = TypeVar("Item")
Window = tuple[Tensor, Tensor, Tensor]  # features, codes and labels of the same rows

# Rows that are gathered at once: many small batches are cut from one gathered block.
BLOCK_ROWS = 65_536


@dataclass(frozen=True)
class Batch:
    """One rank's share of a step.

    features: float32 (rows, F); codes: int32 (rows, C); labels: float32 (rows,); weights: float32 (rows,) or None.
    global_rows: rows of this step over all ranks.
    """

    features: Tensor
    codes: Tensor
    labels: Tensor
    weights: Tensor | None
    global_rows: float

    @property
    def tensors(self) -> list[Tensor]:
        return [t for t in (self.features, self.codes, self.labels, self.weights) if t is not None]

    def clone(self) -> Batch:
        """The same rows in memory of their own."""
        weights = None if self.weights is None else self.weights.clone()
        return Batch(self.features.clone(), self.codes.clone(), self.labels.clone(), weights, self.global_rows)


@dataclass(frozen=True)
class Slot:
    """What decides a rank's share of an epoch: its place among the ranks, the global batch, the draw."""

    rank: int = 0
    ranks: int = 1
    batch_size: int = 256
    negative_share: float = 1.0
    seed: int = 0

    def generator(self, *path: int) -> np.random.Generator:
        """A generator that is the same on every rank."""
        return np.random.Generator(np.random.Philox(np.random.SeedSequence(self.seed, spawn_key=path)))

    def permutation(self, rows: int, path: tuple[int, ...], device: torch.device) -> Tensor:
        """A random order of rows, the same on every rank; drawn on the device that uses it.

        As int32 where that holds them: every rank draws all of it, on a CPU in half the time that int64 takes.
        """
        drawing = torch.Generator(device).manual_seed(int(self.generator(*path).integers(2**63)))
        dtype = torch.int32 if rows < 2**31 else torch.int64
        return torch.randperm(rows, generator=drawing, device=device, dtype=dtype)


class Feed(Protocol):
    """Where a rank's minibatches come from."""

    slot: Slot
    rows: int
    frauds: int
    steps: int

    def epoch(self, number: int) -> Iterator[Batch]:
        """The batches of one epoch, the same for the same number."""


class ResidentFeed:
    """Batches from arrays in memory, which many processes may share: they are only read.

    An epoch costs one permutation, and a gather of the rows drawn.
    """

    def __init__(self, rows: Rows, slot: Slot, device: torch.device | None = None) -> None:
        self.slot = slot
        self.rows, self.frauds = len(rows), int(rows.label.sum())
        self.negatives = _negatives_drawn(self.rows, self.frauds, slot)
        self.steps = -(-(self.frauds + self.negatives) // slot.batch_size)
        self.device = device or torch.device("cpu")
        self.features, self.codes, self.labels = on_device(rows, self.device)
        self._label_array = rows.label if self.negatives < self.rows - self.frauds else None

    def epoch(self, number: int) -> Iterator[Batch]:
        order, slot = self._order(number), self.slot
        weighing = _weights(self.rows, self.frauds, self.negatives)
        steps_a_block = max(1, BLOCK_ROWS * slot.ranks // slot.batch_size)
        for first in range(0, self.steps, steps_a_block):
            batches = order[first * slot.batch_size :][: steps_a_block * slot.batch_size].split(slot.batch_size)
            mine = [batch[slot.rank :: slot.ranks] for batch in batches]
            chosen = torch.cat(mine).long()
            # Row by row: torch's indexing by brackets takes a number at a time, three times as long.
            features, codes = self.features.index_select(0, chosen), self.codes.index_select(0, chosen)
            labels = self.labels.index_select(0, chosen).float()
            weights = None if weighing is None else torch.where(labels > 0, weighing[0], weighing[1])
            start = 0
            for batch, share in zip(batches, mine, strict=True):
                stop = start + len(share)
                cut = slice(start, stop)
                yield Batch(
                    features[cut], codes[cut], labels[cut], None if weights is None else weights[cut], len(batch)
                )
                start = stop

    def _order(self, number: int) -> Tensor:
        if self._label_array is None:
            return self.slot.permutation(self.rows, (number,), self.device)
        generator = self.slot.generator(number)
        others = np.flatnonzero(self._label_array == 0)
        drawn = others[generator.choice(len(others), self.negatives, replace=False, shuffle=False)]
        order = generator.permutation(np.concatenate([np.flatnonzero(self._label_array), drawn]))
        return torch.from_numpy(order).to(self.device)


class StreamedFeed:
    """Batches from stored parts, holding a window of rows at a time; the next window is read meanwhile.

    An epoch visits the parts in a random order, as one long sequence of rows that is cut into equal pieces, one a
    rank; within a window rows are shuffled. Memory: three windows of `window_rows`.
    """

    def __init__(
        self, storage: Storage, rows: RowSet, slot: Slot, window_rows: int, device: torch.device | None = None
    ) -> None:
        self.storage, self.parts, self.slot = storage, rows.parts, slot
        self.window_rows = max(window_rows, 4 * slot.batch_size)
        self.rows, self.frauds = rows.rows, rows.frauds
        self.drawn = [p.frauds + _negatives_drawn(p.rows, p.frauds, slot) for p in rows.parts]
        self.steps = -(-sum(self.drawn) // slot.batch_size)
        self.device = device or torch.device("cpu")

    def epoch(self, number: int) -> Iterator[Batch]:
        total, slot = sum(self.drawn), self.slot
        start, stop = total * slot.rank // slot.ranks, total * (slot.rank + 1) // slot.ranks
        cuts = [(stop - start) * step // self.steps for step in range(self.steps + 1)]
        weighing = _weights(self.rows, self.frauds, total - self.frauds)
        step = given = 0
        # In the thread that reads ahead, so that a window travels while the one before it is trained on.
        for features, codes, labels in _ahead(self._windows(number, start, stop)):
            labels = labels.float()
            weights = None if weighing is None else torch.where(labels > 0, weighing[0], weighing[1])
            used = 0
            while step < self.steps and cuts[step + 1] <= given + len(labels):
                cut = slice(used, cuts[step + 1] - given)
                yield Batch(
                    features[cut],
                    codes[cut],
                    labels[cut],
                    None if weights is None else weights[cut],
                    total / self.steps,
                )
                used, step = cut.stop, step + 1
            given += used

    def _windows(self, number: int, start: int, stop: int) -> Iterator[Window]:
        """This rank's rows in shuffled windows; what a window has over whole batches opens the next one."""
        order = self.slot.generator(number).permutation(len(self.parts))
        held: list[Window] = []
        position, given, shuffled = 0, 0, 0
        for place in order:
            first, position = position, position + self.drawn[place]
            if position <= start or first >= stop:
                continue
            table = self._draw(self.parts[place], number, int(place))
            table = table.slice(max(start - first, 0), min(stop, position) - max(start, first))
            for offset in range(0, table.num_rows, self.window_rows):
                held.append(on_device(from_tables([table.slice(offset, self.window_rows)]), self.device))
                if sum(map(_rows, held)) >= self.window_rows:
                    window = self._shuffled(held, number, shuffled)
                    kept = self._whole_batches(given + _rows(window), stop - start) - given
                    yield _cut(window, slice(kept))
                    held = [_cut(window, slice(kept, None))]
                    given, shuffled = given + kept, shuffled + 1
        if sum(map(_rows, held)):
            yield self._shuffled(held, number, shuffled)

    def _shuffled(self, windows: list[Window], number: int, place: int) -> Window:
        """The rows of windows as one, in an order of this rank's own; `place` tells an epoch's windows apart."""
        features, codes, labels = (torch.cat(tensors) for tensors in zip(*windows, strict=True))
        order = self.slot.permutation(len(labels), (number, 1 + self.slot.rank, place), self.device).long()
        return features.index_select(0, order), codes.index_select(0, order), labels.index_select(0, order)

    def _whole_batches(self, rows: int, total: int) -> int:
        """The last batch boundary at or before this many rows."""
        return total * (rows * self.steps // total) // self.steps

    def _draw(self, part: Part, number: int, place: int) -> pa.Table:
        table = read_part(self.storage, part).select(["features", "codes", "label"])
        negatives = _negatives_drawn(part.rows, part.frauds, self.slot)
        if negatives == part.rows - part.frauds:
            return table
        label = table["label"].to_numpy()
        others = np.flatnonzero(label == 0)
        generator = self.slot.generator(number, 0, place)
        drawn = others[generator.choice(len(others), negatives, replace=False, shuffle=False)]
        return table.take(pa.array(np.sort(np.concatenate([np.flatnonzero(label), drawn]))))


def _negatives_drawn(rows: int, frauds: int, slot: Slot) -> int:
    return round((rows - frauds) * slot.negative_share)


def _weights(rows: int, frauds: int, negatives: int) -> tuple[float, float] | None:
    """Weights of a fraud and of a drawn negative, of mean 1 over the drawn rows; None where all are drawn."""
    if negatives in (0, rows - frauds):
        return None
    scale = (frauds + negatives) / rows
    return scale, scale * (rows - frauds) / negatives


def on_device(rows: Rows, device: torch.device) -> Window:
    """Features, codes and labels as tensors: on a CPU without a copy, to a GPU from pinned memory without waiting."""
    tensors = [_tensor(array) for array in (rows.features, rows.codes, rows.label)]
    if device.type != "cpu":
        with torch.cuda.device(device):  # a thread starts on the first one
            tensors = [tensor.pin_memory().to(device, non_blocking=True) for tensor in tensors]
    features, codes, labels = tensors
    return features, codes, labels


def _tensor(array: npt.NDArray[np.generic]) -> Tensor:
    with warnings.catch_warnings():
        # Arrays from the object store are read-only; nothing here writes into them.
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(array)


def _rows(window: Window) -> int:
    return len(window[2])


def _cut(window: Window, cut: slice) -> Window:
    features, codes, labels = window
    return features[cut], codes[cut], labels[cut]


def _ahead(items: Iterator[Item]) -> Iterator[Item]:
    """Runs an iterator in a thread, one item ahead of its reader; its exception is raised here."""
    ready: queue.Queue[Item | BaseException | None] = queue.Queue(maxsize=1)
    ended = threading.Event()

    def put(item: Item | BaseException | None) -> None:
        while not ended.is_set():
            try:
                ready.put(item, timeout=0.1)
                return
            except queue.Full:
                continue

    def work() -> None:
        try:
            for item in items:
                put(item)
                if ended.is_set():
                    return
            put(None)
        except BaseException as fault:
            put(fault)

    threading.Thread(target=work, daemon=True).start()
    try:
        while (item := ready.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        ended.set()
