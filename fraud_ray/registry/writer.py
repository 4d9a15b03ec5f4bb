"""The one writer of a run to MLflow: a thread, so that neither training nor the terminal waits for a server."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import yaml

from fraud_ray.data.source import Source
from fraud_ray.errors import RunHeldError
from fraud_ray.redaction import without_passwords
from fraud_ray.registry.anchors import require_own
from fraud_ray.registry.server import answers, is_server, uri_of
from fraud_ray.registry.tracking import Dataset, TrackedRun, Tracking, connect
from fraud_ray.runs import Run, read_record
from fraud_ray.settings import Loaded

if TYPE_CHECKING:
    from fraud_ray.training.search import Trial

T = TypeVar("T")

ASK_EVERY_S = 3.0

_SOURCE = {"mlflow.source.name": "fraud-ray", "mlflow.source.type": "LOCAL"}
SETTINGS = "settings.yaml"  # of the run's artifacts


@dataclass
class Writer:
    """What is told is written in order, while the caller goes on; the next `settled` or `ask` raises a fault of it.

    newest: the call that was asked for last; all before it are done when it is.
    """

    thread: ThreadPoolExecutor
    check_held: Callable[[], None]
    run: Future[TrackedRun]
    told: list[Future[Any]] = field(default_factory=list)
    newest: Future[Any] | None = None

    @property
    def tracking(self) -> Tracking:
        """The store. Raises ServerError where it is out of reach."""
        return self.run.result().tracking

    def tell(self, method: str, *values: Any, **named: Any) -> None:
        """Has a method of TrackedRun called."""
        self.newest = self.thread.submit(lambda: getattr(self.run.result(), method)(*values, **named))
        self.told.append(self.newest)

    def tell_trial(self, trial: Trial) -> None:
        """Writes a finished trial of the search as a child run."""
        result = {"average_precision": trial.average_precision, "best_epoch": trial.best_epoch}
        told = {key: value for key, value in result.items() if value is not None}
        status = {"finished": "FINISHED", "stopped": "KILLED", "failed": "FAILED"}[trial.status]
        self.tell("log_trial", trial.id, trial.hyperparameters, trial.curve, told, seconds=trial.seconds, status=status)

    def ask(self, function: Callable[..., T], *values: Any) -> T:
        """What a function answers, called with the TrackedRun and the values after all that was told is written.

        Raises RunHeldError, before that, if another process has taken the run over.
        """
        self.check_held()
        answer = self.newest = self.thread.submit(lambda: function(self.run.result(), *values))
        self.settled(None)
        return answer.result()

    def settled(self, value: T) -> T:
        """The value, once all that was told is written."""
        for told in self.told:
            told.result()
        self.told.clear()
        return value


@contextmanager
def writing(loaded: Loaded, source: Source, run: Run) -> Iterator[Writer]:
    """The writer of a run. MLflow is connected to meanwhile; a fault ends the run there as failed, or as killed."""
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="mlflow") as thread:
        started = thread.submit(_start, loaded, source, run)
        writer = Writer(thread, run.check_held, started, newest=started)
        try:
            with watched(writer, uri_of(loaded.settings.registry), run.progress.note):
                yield writer
        except BaseException as fault:
            if isinstance(fault, Exception) and not isinstance(fault, RunHeldError):  # the run is another's by then
                writer.tell("finish", "FAILED", "failed", str(fault) or type(fault).__name__)
            elif not isinstance(fault, Exception):
                writer.tell("finish", "KILLED", "interrupted")
            raise


@contextmanager
def watched(writer: Writer, uri: str, say: Callable[[str], None]) -> Iterator[None]:
    """Says when a server that something is written to falls silent, and when it is back: MLflow repeats, and says not.

    It is asked while a call waits for it, every few seconds, for what asks for no account.
    """
    over = threading.Event()

    def watch() -> None:
        silent: float | None = None
        while not over.wait(ASK_EVERY_S):
            if silent is None and (writer.newest is None or writer.newest.done()):
                continue
            is_there = answers(uri)
            if not is_there and silent is None:
                silent = time.monotonic()
                say(f"MLflow at {without_passwords(uri)} does not answer: the run waits for it, some minutes at most")
            elif is_there and silent is not None:
                say(f"MLflow answers again, after {time.monotonic() - silent:.0f} s")
                silent = None

    watcher = threading.Thread(target=watch, daemon=True, name="mlflow-watcher")
    if is_server(uri):
        watcher.start()
    try:
        yield
    finally:
        over.set()


def _start(loaded: Loaded, source: Source, run: Run) -> TrackedRun:
    settings, record = loaded.settings, read_record(run.storage, run.name)
    tags = {"fraud_ray.config": loaded.config, "fraud_ray.folder": run.folder, "mlflow.user": record["user"]} | _SOURCE
    if record["git"]:
        tags["mlflow.source.git.commit"] = record["git"]["commit"]
    params = {**settings.changed(), "train": settings.recorded()["train"]}
    dataset = Dataset(Path(source.root).name or source.root, source.root, source.fingerprint, source.rows)
    tracking = connect(settings.registry)
    require_own(tracking, run.storage)
    started = tracking.start(run.name, params, tags, dataset)
    started.log_text(yaml.safe_dump(settings.recorded(), sort_keys=False, allow_unicode=True), SETTINGS)
    return started
