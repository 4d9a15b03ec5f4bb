"""The log of a job's run, kept in its storage beside what Ray keeps: there when the pods are gone, one file a start."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fraud_ray.storage import Storage

_UPLOAD_EVERY_S = 30.0
_END_S = 10.0
_STDOUT, _STDERR = 1, 2


@dataclass
class JobLog:
    """Keeps what this process prints, from the moment when its run is known; true, as it stands for being in a job."""

    _tee: subprocess.Popen[bytes] | None = None
    _before: list[int] = field(default_factory=list)
    _upload: threading.Thread | None = None
    _over: threading.Event = field(default_factory=threading.Event)

    def keep(self, storage: Storage, run: str) -> None:
        """Has everything printed from now on, by libraries in C too, go into the run's folder as well.

        Another process writes it, so that the last words of one that is killed are there. A bucket, which nothing can
        be appended to, gets the whole every half a minute and at the end.
        """
        from fraud_ray.runs import new_log

        if self._tee:
            return
        key = new_log(storage, run)
        file = Path(storage.path(key)) if storage.is_local else Path(tempfile.mkstemp(suffix=".log")[1])
        self._flush()
        # What stops the job signals its process group and all processes below it: this one ends when we have.
        deaf = ["sh", "-c", 'trap "" INT TERM; exec tee -a "$0"', str(file)]
        self._tee = subprocess.Popen(deaf, stdin=subprocess.PIPE, start_new_session=True)
        assert self._tee.stdin
        self._before = [os.dup(stream) for stream in (_STDOUT, _STDERR)]
        for stream in (_STDOUT, _STDERR):
            os.dup2(self._tee.stdin.fileno(), stream)
        self._tee.stdin.close()
        if not storage.is_local:
            self._upload = threading.Thread(target=self._upload_until_over, args=(storage, key, file), daemon=True)
            self._upload.start()

    def end(self) -> None:
        """Returns when all that was printed is kept."""
        if not self._tee:
            return
        self._flush()
        for stream, before in zip((_STDOUT, _STDERR), self._before, strict=True):
            os.dup2(before, stream)
            os.close(before)
        try:
            self._tee.wait(_END_S)
        except subprocess.TimeoutExpired:  # a child of ours still holds the stream
            self._tee.terminate()
        self._over.set()
        if self._upload:
            self._upload.join(_END_S)

    def _flush(self) -> None:
        sys.stdout.flush()
        sys.stderr.flush()

    def _upload_until_over(self, storage: Storage, key: str, file: Path) -> None:
        while not self._over.wait(_UPLOAD_EVERY_S):
            storage.put(key, file.read_bytes())
        storage.put(key, file.read_bytes())
        file.unlink()


@contextmanager
def kept() -> Iterator[JobLog]:
    """The log of a job, ended with it."""
    log = JobLog()
    try:
        yield log
    finally:
        log.end()
