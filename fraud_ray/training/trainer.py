"""Ray Train: the loop on N ranks, checkpoints and recovery.

A checkpoint is one file of tensors and numbers, without pickle: the networks and their optimisers, the curve so far, a
dictionary an epoch, and the holdout logits of the best epoch. Ray Train keeps the last one in the folder that is
named; a trial in a process of Tune's puts it there itself.
"""

from __future__ import annotations

import io
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import ray
import ray.train
import torch
from ray.train.torch import TorchTrainer

from fraud_ray.cluster import Room, answer, here
from fraud_ray.data.rows import PreparedFold, Rows, RowSet, load
from fraud_ray.errors import FraudRayError
from fraud_ray.settings import TrainSettings
from fraud_ray.storage import Storage
from fraud_ray.training.build import build_fold, network_shape
from fraud_ray.training.feed import Feed, ResidentFeed, Slot, StreamedFeed
from fraud_ray.training.loop import Best, Epoch, Float32, FoldFit, fit

CHECKPOINT, PROGRESS, LOGITS = "checkpoint.pt", "progress.json", "best.npz"

Placed = dict[str, Any]  # a fold as `place` gives it
State = dict[str, Any]
# Told what an epoch came to, and the checkpoint from which training goes on after it; None where it is not this rank's.
Report = Callable[[dict[str, Any], bytes | None], None]


@dataclass(frozen=True, repr=False)
class Fitted:
    """A network after its last epoch: weights by name, and a dictionary an epoch."""

    weights: dict[str, torch.Tensor]
    curve: tuple[dict[str, Any], ...]

    def to_json(self) -> dict[str, Any]:
        """What a run keeps of it: the rest is read back from the checkpoint."""
        return {"epochs": len(self.curve)}

    def __repr__(self) -> str:
        epochs, last = len(self.curve), self.curve[-1]
        told = f"{epochs:,} epoch{'' if epochs == 1 else 's'}, loss {last['loss']:.4f}"
        return f"{told}, {last['rows_per_second']:,.0f} rows/s"


def place(fold: PreparedFold, settings: TrainSettings, storage: Storage, with_holdout: bool) -> Placed:
    """A fold as its ranks are told of it: resident rows go into the object store once, for every rank of every trial.

    Rows are streamed when `settings.residency` says so, or when both sides exceed `settings.memory_budget`. `fit` is a
    reference into Ray's object store, or a RowSet to stream; a `holdout` of None is not scored.
    """
    needed = fold.fit.size + (fold.holdout.size if with_holdout else 0)
    streamed = settings.residency == "streamed" or (settings.residency == "auto" and needed > settings.memory_budget)
    return {
        "features": len(fold.encoder.feature_names),
        "code_sizes": fold.encoder.code_sizes,
        "fit": fold.fit if streamed else _load_remotely.remote(storage, fold.fit),
        "holdout": _load_remotely.remote(storage, fold.holdout) if with_holdout else None,
    }


_load_remotely = ray.remote(num_cpus=1)(load)


def refit(
    fold: PreparedFold,
    settings: TrainSettings,
    epochs: int,
    storage: Storage,
    folder: str,
    update: Callable[[float, float, str], None],
    room: Room | None = None,
) -> Fitted:
    """Trains on all fit rows of a fold for `epochs`, under Ray Train on `settings.workers` ranks.

    folder: key below the storage root; a second call with it goes on from the last epoch. room: looked at meanwhile.
    Raises FraudRayError when training failed more often than `settings.max_failures`, ServerError when nodes are gone.
    """
    placed = [place(fold, settings, storage, with_holdout=False)]
    resources, told = settings.resources_per_worker, _Progress(storage, folder)
    with _watched(storage, folder, epochs, update):
        # Not here, where Ray Train would take Ctrl-C for itself, and end the process with exit code 0.
        fit_here = _train_remotely.options(scheduling_strategy=here())
        fitting = fit_here.remote(settings, epochs, placed, storage, folder, resources, told)
        try:
            while room and not ray.wait([fitting], timeout=1)[0]:
                room.look(lambda lacking: update(0, 0, lacking))
            answer(fitting)
        except BaseException:
            ray.cancel(fitting)  # as Ctrl-C there, at which Ray Train ends its ranks
            raise
    return load_fitted(storage, folder)


def load_fitted(storage: Storage, folder: str) -> Fitted:
    """What a refit in this folder left. Raises FraudRayError where its checkpoint is gone."""
    state = load_checkpoint(storage, folder)
    return Fitted(state["folds"][0]["network"], tuple(state["curve"]))


def load_checkpoint(storage: Storage, folder: str) -> State:
    """The last checkpoint of this folder. Raises FraudRayError where there is none."""
    content = storage.get(f"{folder}/{CHECKPOINT}")
    if content is None:
        try:
            checkpoint = ray.train.Result.from_path(storage.path(folder)).checkpoint
        except RuntimeError:  # nothing of Ray Train's is there
            checkpoint = None
        if checkpoint is None:
            raise FraudRayError(f"{storage.path(folder)} holds no checkpoint; delete the run's folder and run again")
        content = _content(checkpoint)
    return read_checkpoint(content)


def train_on_workers(
    settings: TrainSettings,
    epochs: int,
    folds: list[Placed],
    storage: Storage,
    folder: str,
    resources: Mapping[Any, Any],
    told: ray.train.UserCallback,
) -> None:
    """Trains under Ray Train on `settings.workers` ranks, each of which reserves `resources`.

    folder: key below the storage root; a second call with it goes on from the last epoch. told: of each epoch. Raises
    FraudRayError when training failed more often than `settings.max_failures`.
    """
    parent, _, name = storage.path(folder).rpartition("/")
    trainer = TorchTrainer(
        train_one_rank,
        # Plain, so that a worker needs nothing captured from here.
        train_loop_config={
            "train": settings.model_dump(mode="json"),
            "epochs": epochs,
            "folds": folds,
            "storage": storage.root,
        },
        scaling_config=ray.train.ScalingConfig(
            num_workers=settings.workers,
            use_gpu=settings.use_gpu,
            resources_per_worker={str(k): float(v) for k, v in resources.items()},
        ),
        run_config=ray.train.RunConfig(
            name=name,
            storage_path=parent,
            failure_config=ray.train.FailureConfig(max_failures=settings.max_failures),
            checkpoint_config=ray.train.CheckpointConfig(num_to_keep=1),
            callbacks=[told],  # type: ignore[list-item]  # Ray tells type checkers of Tune's
        ),
    )
    try:
        trainer.fit()
    except ray.train.TrainingFailedError as fault:
        raise FraudRayError(
            f"training failed {settings.max_failures + 1} times, the last time with: {_last_line(fault)}; "
            f"the checkpoint is kept, the same command resumes (train.max_failures sets how often it is tried)"
        ) from fault


_train_remotely = ray.remote(num_cpus=0, max_retries=0)(train_on_workers)


def train_one_rank(job: dict[str, Any]) -> None:
    """Ray Train's train function; rank 0 gives a checkpoint an epoch."""
    context, checkpoint = ray.train.get_context(), ray.train.get_checkpoint()

    def report(result: dict[str, Any], content: bytes | None) -> None:
        if content is None:
            ray.train.report(result)
            return
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / CHECKPOINT).write_bytes(content)
            ray.train.report(result, checkpoint=ray.train.Checkpoint.from_directory(folder))

    train_rank(
        TrainSettings.model_validate(job["train"]),
        job["epochs"],
        job["folds"],
        Storage(job["storage"]),
        report,
        None if checkpoint is None else _content(checkpoint),
        Place(context.get_world_rank(), context.get_world_size(), ray.train.torch.get_device()),
    )


@dataclass(frozen=True)
class Place:
    """Where a rank trains: its number among all ranks, and its device."""

    rank: int
    ranks: int
    device: torch.device


def train_rank(
    settings: TrainSettings,
    epochs: int,
    folds: list[Placed],
    storage: Storage,
    report: Report,
    checkpoint: bytes | None,
    place: Place,
) -> Best:
    """One rank's part of a fit.

    report: told epoch, loss, average_precision and best_average_precision after each epoch. checkpoint: what an earlier
    call gave to `report`, from which this one goes on.
    """
    rank, ranks, device = place.rank, place.ranks, place.device
    if device.type == "cpu":
        torch.set_num_threads(max(1, int(settings.resources_per_worker.get("CPU", 1))))
    slot = Slot(rank, ranks, settings.batch_size, settings.negative_share, settings.seed)
    fits = [_open_fold(fold, settings, storage, slot, device) for fold in folds]
    state = None if checkpoint is None else read_checkpoint(checkpoint, device)
    curve = [] if state is None else state["curve"]

    def told(epoch: Epoch, best: Best, current: Callable[[], State]) -> None:
        result = {
            "epoch": epoch.number,
            "loss": epoch.loss,
            "average_precision": epoch.average_precision,
            "best_average_precision": best.average_precision if best.logits else None,
            "best_epoch": best.epoch,
            "rows_per_second": epoch.rows_per_second,
            "steps": epoch.steps,
        }
        curve.append(result)
        content = None
        if rank == 0:
            buffer = io.BytesIO()
            torch.save({**current(), "curve": curve, "is_finished": epoch.is_last}, buffer)
            content = buffer.getvalue()
        report(_reported(result), content)

    if curve:
        report(_reported(curve[-1]), None)
    return fit(fits, epochs, settings.patience_epochs, told, state)


def _reported(result: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in result.items() if value is not None}


def _content(checkpoint: ray.train.Checkpoint) -> bytes:
    with checkpoint.as_directory() as folder:
        return (Path(folder) / CHECKPOINT).read_bytes()


def read_checkpoint(content: bytes, device: torch.device | None = None) -> State:
    """What a checkpoint holds, its tensors on this device, by default the CPU."""
    state: State = torch.load(io.BytesIO(content), weights_only=True, map_location=device or "cpu")
    return state


def save_logits(storage: Storage, folder: str, logits: list[Float32]) -> None:
    """Keeps logits where `load_logits` finds them."""
    buffer = io.BytesIO()
    np.savez(buffer, *logits)
    storage.put(f"{folder}/{LOGITS}", buffer.getvalue())


def load_logits(storage: Storage, folder: str) -> list[Float32]:
    """What `save_logits` kept. Raises FraudRayError where it is gone."""
    content = storage.get(f"{folder}/{LOGITS}")
    if content is None:
        raise FraudRayError(f"{storage.path(folder)}/{LOGITS} is gone; delete the run's folder and run again")
    stored = np.load(io.BytesIO(content), allow_pickle=False)
    return [stored[name] for name in stored.files]


def _open_fold(fold: Placed, settings: TrainSettings, storage: Storage, slot: Slot, device: torch.device) -> FoldFit:
    shape = network_shape(fold["features"], tuple(fold["code_sizes"]), settings)
    feed: Feed
    if isinstance(fold["fit"], RowSet):
        row_bytes = max(1, fold["fit"].size // max(1, fold["fit"].rows))
        feed = StreamedFeed(storage, fold["fit"], slot, int(settings.memory_budget) // 8 // row_bytes, device)
    else:
        feed = ResidentFeed(_rows(fold["fit"]), slot, device)
    holdout = None if fold["holdout"] is None else _rows(fold["holdout"])
    torch.manual_seed(settings.seed)
    return build_fold(shape, feed, holdout, settings, device)


def _rows(reference: ray.ObjectRef[Rows]) -> Rows:
    return ray.get(reference)


class _Progress(ray.train.UserCallback):
    """Puts what the last epoch came to beside the checkpoint, for `_watched`: Ray Train calls it in another process."""

    def __init__(self, storage: Storage, folder: str) -> None:
        self.storage, self.key = storage, f"{folder}/{PROGRESS}"

    def after_report(self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Any) -> None:
        self.storage.put_json(self.key, metrics[0])


@contextmanager
def _watched(storage: Storage, folder: str, epochs: int, update: Callable[[float, float, str], None]) -> Iterator[None]:
    """Tells `update` of each epoch of a fit in this folder."""
    ended = threading.Event()

    def watch() -> None:
        shown = None
        while not ended.wait(0.5):
            last = storage.get_json(f"{folder}/{PROGRESS}")
            if last and last != shown:
                shown = last
                told = f"loss {last['loss']:.4f}, {last['rows_per_second']:,.0f} rows/s"
                update(last["epoch"], epochs, f"epoch {last['epoch']} of {epochs}, {told}")

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        ended.set()
        watcher.join(timeout=5)


def _last_line(fault: BaseException) -> str:
    lines = [line.strip() for line in str(fault).splitlines() if line.strip()]
    return lines[-1] if lines else type(fault).__name__
