"""Ray Train: the loop on N ranks, checkpoints and recovery.

A job is a plain dictionary, so that a worker needs nothing captured from the driver:

    storage, folder   where its checkpoint, curve and best holdout logits are kept: the same folder again resumes
    train, epochs     TrainSettings as JSON types, and how far to train
    folds             a list of {shape, fit, holdout}; rows come as a reference into Ray's object store, or as a
                      RowSet to stream; a holdout of None is not scored
"""

from __future__ import annotations

import asyncio
import io
import os
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import ray
import ray.train
import torch
from ray.runtime_context import RuntimeContext
from ray.train.torch import TorchTrainer
from ray.train.v2._internal.callbacks import DatasetsCallback
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.train.v2._internal.constants import DEFAULT_HEALTH_CHECK_INTERVAL_S
from ray.train.v2._internal.execution.controller import TrainController
from ray.train.v2._internal.execution.scaling_policy import FixedScalingPolicy
from torch import distributed

from fraud_ray.data.rows import PreparedFold, RowSet, load
from fraud_ray.errors import FraudRayError
from fraud_ray.model.network import NetworkShape
from fraud_ray.settings import TrainSettings
from fraud_ray.storage import Storage
from fraud_ray.training.exchange import Shared
from fraud_ray.training.feed import Feed, ResidentFeed, Slot, StreamedFeed
from fraud_ray.training.loop import Best, Epoch, Float32, FoldFit, fit

STATE, CURVE, LOGITS = "state.pt", "curve.json", "best.npz"

Job = dict[str, Any]


@dataclass(frozen=True, repr=False)
class Fitted:
    """A network after its last epoch: weights by name, and a dictionary an epoch."""

    weights: dict[str, torch.Tensor]
    curve: tuple[dict[str, Any], ...]

    def __repr__(self) -> str:
        epochs, last = len(self.curve), self.curve[-1]
        told = f"{epochs:,} epoch{'' if epochs == 1 else 's'}, loss {last['loss']:.4f}"
        return f"{told}, {last['rows_per_second']:,.0f} rows/s"


def place(fold: PreparedFold, settings: TrainSettings, storage: Storage, with_holdout: bool) -> dict[str, Any]:
    """A fold as a job names it: resident rows go into the object store once, for every rank of every trial.

    Rows are streamed when `settings.residency` says so, or when both sides exceed `settings.memory_budget`.
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


def make_job(storage: Storage, folder: str, settings: TrainSettings, epochs: int, folds: list[dict[str, Any]]) -> Job:
    """A job for these settings on folds as `place` gives them."""
    return {
        "storage": storage.root,
        "folder": folder,
        "train": settings.model_dump(mode="json"),
        "epochs": epochs,
        "folds": folds,
    }


def refit(
    fold: PreparedFold,
    settings: TrainSettings,
    epochs: int,
    storage: Storage,
    folder: str,
    update: Callable[[float, float, str], None],
) -> Fitted:
    """Trains on all fit rows of a fold for `epochs`, under Ray Train on `settings.workers` ranks.

    folder: key below the storage root; a second call with it goes on from the last epoch. Raises FraudRayError when
    training failed more often than `settings.max_failures`.
    """
    job = make_job(storage, folder, settings, epochs, [place(fold, settings, storage, with_holdout=False)])
    with _watched(storage, folder, epochs, update):
        train_on_workers(job, settings, settings.resources_per_worker)
    return load_fitted(storage, folder)


def load_fitted(storage: Storage, folder: str) -> Fitted:
    """What a refit in this folder left. Raises FraudRayError where its checkpoint is gone."""
    state, curve = load_state(storage, folder), storage.get_json(f"{folder}/{CURVE}")
    if state is None or curve is None:
        raise FraudRayError(f"{storage.path(folder)} holds no checkpoint; delete the run's folder and run again")
    return Fitted(state["folds"][0]["network"], tuple(curve))


def network_shape(features: int, code_sizes: tuple[int, ...], settings: TrainSettings) -> NetworkShape:
    """The network that these settings ask for on so many features and categories."""
    chosen = {field.name for field in fields(NetworkShape)} - {"features", "code_sizes"}
    return NetworkShape(features, code_sizes, **{name: getattr(settings, name) for name in chosen})


def train_on_workers(
    job: Job, settings: TrainSettings, resources: dict[Any, Any], callbacks: list[Any] | None = None
) -> None:
    """Runs a job on `settings.workers` ranks; each reserves `resources`.

    callbacks: of Ray Train, which are told of each epoch. Without them it tells nobody: the job's folder has the curve.
    """
    trainer = _Trainer(
        train_one_rank if callbacks else _train_untold,
        train_loop_config=job,
        scaling_config=ray.train.ScalingConfig(
            num_workers=settings.workers,
            use_gpu=settings.use_gpu,
            resources_per_worker={str(k): float(v) for k, v in resources.items()},
        ),
        run_config=ray.train.RunConfig(
            # The job's own folder holds what resumes; Ray's record of this attempt lies beside it.
            name=f"attempt-{uuid.uuid4().hex[:8]}",
            storage_path=Storage(job["storage"]).path(f"{job['folder']}/ray"),
            failure_config=ray.train.FailureConfig(max_failures=settings.max_failures),
            callbacks=callbacks or [],
            # Of what the run's terminal is told; Ray Train's log files are told everything.
            logging_config=ray.train.LoggingConfig(log_level="CRITICAL"),  # type: ignore[call-arg]  # as below
        ),
    )
    try:
        trainer.fit()
    except ray.train.TrainingFailedError as fault:
        raise FraudRayError(
            f"training failed {settings.max_failures + 1} times, the last time with: {_last_line(fault)}; "
            f"the checkpoint is kept, the same command resumes (train.max_failures sets how often it is tried)"
        ) from fault


class _Trainer(TorchTrainer):
    """Ray Train with its controller in this process, and without a helper for data sets, of which there are none.

    As processes of their own both take seconds to start, one after the other with the ranks, and then wake on the
    ranks' cores. A controller that ends with this process leaves nothing reserved either, so that the helper that gives
    back what a dead one had reserved is left out as well.
    """

    def _create_default_callbacks(self) -> list[Any]:
        callbacks = super()._create_default_callbacks()  # type: ignore[misc]  # Ray tells type checkers of another class
        needless = DatasetsCallback, PlacementGroupCleanerCallback
        return [callback for callback in callbacks if not isinstance(callback, needless)]

    def _initialize_and_run_controller(self, **given: Any) -> Any:
        in_actor = ray.get_runtime_context().get_actor_id() is not None
        # The ranks are told which actor controls them, to ask it for checkpoints that went through Ray Train; none do.
        with nullcontext() if in_actor else patch.object(RuntimeContext, "current_actor", None):
            told = self.train_loop_per_worker is train_one_rank  # type: ignore[attr-defined]  # as above
            controller = (TrainController if told else _Controller)(**given)
            loop = asyncio.new_event_loop()  # asyncio.run would answer Ctrl-C only between two waits
            try:
                loop.run_until_complete(controller.run())
            finally:
                loop.close()
                ranks = controller.get_worker_group()
                if ranks:
                    ranks.abort()
            return controller.get_result()


class _NoMoreNodes(FixedScalingPolicy):
    """Where there is one node: does not start the process that would ask for more."""

    def after_controller_start(self, train_run_context: Any) -> None: ...

    def _maybe_send_resource_request(self) -> None: ...


class _NoBarrier:
    """Where ranks report nothing: in place of the actor in which they would wait for each other's reports."""

    @classmethod
    def options(cls, **_: Any) -> type[_NoBarrier]:
        return cls

    @classmethod
    def remote(cls, **_: Any) -> str:
        return "no actor"


class _Controller(TrainController):
    """Where ranks report nothing: asks them less often the longer they run, since each time interrupts their work.

    Their end is noticed within a tenth of the time they took, and at the latest after Ray Train's default.
    """

    def __init__(self, **given: Any) -> None:
        super().__init__(**given)
        self._shortest_s = self._health_check_interval_s  # as the environment has it

    async def _poll_workers(self) -> Any:
        ranks = self.get_worker_group()
        assert ranks is not None, "only ranks that have started are asked"
        ran_s = time.monotonic() - ranks.get_worker_group_state().start_time
        self._health_check_interval_s = max(self._shortest_s, min(ran_s / 10, DEFAULT_HEALTH_CHECK_INTERVAL_S))
        return await super()._poll_workers()


def train_one_rank(job: Job) -> None:
    """Ray Train's train function; Ray Train is told of each epoch."""
    _train_one_rank(job, ray.train.report)


def _train_untold(job: Job) -> None:
    _train_one_rank(job, lambda _: None)


def _train_one_rank(job: Job, report: Callable[[dict[str, Any]], None]) -> None:
    context = ray.train.get_context()
    device = ray.train.torch.get_device()
    if device.type == "cpu":
        threads = threads_of_a_rank(job["train"]["resources_per_worker"])
        keep_to_own_cores(context.get_local_rank(), context.get_local_world_size(), threads)
    run_job(job, context.get_world_rank(), context.get_world_size(), device, report)


def run_job(job: Job, rank: int, ranks: int, device: torch.device, report: Callable[[dict[str, Any]], None]) -> Best:
    """One rank's part of a job, resuming from the folder's checkpoint; rank 0 writes a checkpoint an epoch.

    report: told epoch, loss, average_precision and best_average_precision after each epoch.
    """
    settings = TrainSettings.model_validate(job["train"])
    storage, folder = Storage(job["storage"]), job["folder"]
    if device.type == "cpu":
        torch.set_num_threads(threads_of_a_rank(settings.resources_per_worker))
    slot = Slot(rank, ranks, settings.batch_size, settings.negative_share, settings.seed)
    folds = [_open_fold(fold, settings, storage, slot, device) for fold in job["folds"]]
    if all(isinstance(fold.exchange, Shared) for fold in folds):
        distributed.destroy_process_group()  # else its thread goes on waking on this rank's core
    state = load_state(storage, folder)
    curve = [] if state is None else (storage.get_json(f"{folder}/{CURVE}") or [])[: state["epoch"]]

    def told(epoch: Epoch, best: Best, current: Callable[[], dict[str, Any]]) -> None:
        result = {
            "epoch": epoch.number,
            "loss": epoch.loss,
            "average_precision": epoch.average_precision,
            "best_average_precision": best.average_precision if best.logits else None,
            "best_epoch": best.epoch,
            "rows_per_second": epoch.rows_per_second,
            "steps": epoch.steps,
        }
        if rank == 0:
            curve.append(result)
            if best.epoch == epoch.number and best.logits:
                save_logits(storage, folder, best.logits)
            storage.put_json(f"{folder}/{CURVE}", curve)
            _save_state(storage, folder, current())
        report(_reported(result))

    if curve:
        report(_reported(curve[-1]))
    return fit(folds, settings, told, job["epochs"], state)


def threads_of_a_rank(resources: dict[Any, Any]) -> int:
    """How many threads compute in a rank on CPUs that reserves these resources."""
    return max(1, int(resources.get("CPU", 1)))


def keep_to_own_cores(local_rank: int, local_ranks: int, threads: int) -> None:
    """Binds this process to cores of its own where a node's ranks take all of its cores, as MPI's launchers do.

    Else a rank's communication, in threads of its own, is woken on a core where another rank computes, for which all
    then wait. Where other work may run beside the ranks the kernel decides, and on systems without affinity.
    """
    if local_ranks == 1 or not hasattr(os, "sched_setaffinity"):
        return
    cores = sorted(os.sched_getaffinity(0))
    if local_ranks * threads == len(cores):
        for thread in Path("/proc/self/task").iterdir():
            os.sched_setaffinity(int(thread.name), cores[local_rank * threads :][:threads])


def _reported(result: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in result.items() if value is not None}


def load_state(storage: Storage, folder: str) -> dict[str, Any] | None:
    """A job's checkpoint, or None before its first epoch has ended. Holds tensors and numbers only, no pickle."""
    content = storage.get(f"{folder}/{STATE}")
    return None if content is None else torch.load(io.BytesIO(content), weights_only=True, map_location="cpu")


def save_logits(storage: Storage, folder: str, logits: list[Float32]) -> None:
    """Keeps logits where `load_logits` finds them."""
    buffer = io.BytesIO()
    np.savez(buffer, *logits)
    storage.put(f"{folder}/{LOGITS}", buffer.getvalue())


def load_logits(storage: Storage, folder: str) -> list[Float32]:
    """The holdout logits of a job's best epoch, one array a fold."""
    content = storage.get(f"{folder}/{LOGITS}")
    if content is None:
        raise FraudRayError(f"{storage.path(folder)}/{LOGITS} is gone; delete the run's folder and run again")
    stored = np.load(io.BytesIO(content), allow_pickle=False)
    return [stored[name] for name in stored.files]


def _save_state(storage: Storage, folder: str, state: dict[str, Any]) -> None:
    buffer = io.BytesIO()
    torch.save(state, buffer)
    storage.put(f"{folder}/{STATE}", buffer.getvalue())


def _open_fold(
    fold: dict[str, Any], settings: TrainSettings, storage: Storage, slot: Slot, device: torch.device
) -> FoldFit:
    shape = network_shape(fold["features"], tuple(fold["code_sizes"]), settings)
    feed: Feed
    if isinstance(fold["fit"], RowSet):
        row_bytes = max(1, fold["fit"].size // max(1, fold["fit"].rows))
        feed = StreamedFeed(storage, fold["fit"], slot, int(settings.memory_budget) // 8 // row_bytes, device)
    else:
        feed = ResidentFeed(ray.get(fold["fit"]), slot, device)
    holdout = None if fold["holdout"] is None else ray.get(fold["holdout"])
    torch.manual_seed(settings.seed)
    return FoldFit(shape, feed, holdout, settings, device)


@contextmanager
def _watched(storage: Storage, folder: str, epochs: int, update: Callable[[float, float, str], None]) -> Iterator[None]:
    """Tells `update` of each epoch that a job running elsewhere has written."""
    ended = threading.Event()

    def watch() -> None:
        shown = 0
        while not ended.wait(0.5):
            curve = storage.get_json(f"{folder}/{CURVE}") or []
            if len(curve) > shown:
                shown = len(curve)
                last = curve[-1]
                update(last["epoch"], epochs, f"loss {last['loss']:.4f}, {last['rows_per_second']:,.0f} rows/s")

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
