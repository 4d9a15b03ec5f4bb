"""A run's lease: who works on it, so that no second process does, and that a dead one's work is taken over.

Numbered objects below `runs/<name>/lease/`; the one with the highest number is the lease. It is made by
create-if-absent, so exactly one contender gets it, and renewed by its holder alone. Nothing here needs locks, which
buckets do not have, and no clock of one host is compared with another's.
"""

from __future__ import annotations

import getpass
import json
import os
import socket
import subprocess
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path

from fraud_ray.errors import RunHeldError, ServerError
from fraud_ray.storage import Storage

RENEWAL_S = 5.0
# Several renewals: a holder that lets them pass, by the clock of who watches it, is gone.
SILENCE_S = 20.0


@dataclass(frozen=True)
class Holder:
    """A process that holds, or held, a lease. Times are seconds since 1970, by the holder's clock, for people alone."""

    id: str
    user: str
    host: str
    machine: str
    pid: int
    process_start: str
    since: float
    heartbeat: float
    released: bool = False

    @classmethod
    def this_process(cls) -> Holder:
        now = time.time()
        return cls(
            id=uuid.uuid4().hex,
            user=user_name(),
            host=socket.gethostname(),
            machine=_machine(),
            pid=os.getpid(),
            process_start=_process_start(os.getpid()) or "",
            since=now,
            heartbeat=now,
        )

    def has_let_go(self) -> bool:
        """Whether it released the lease, or is known to be dead."""
        return self.released or (not self.is_elsewhere and _process_start(self.pid) != self.process_start)

    @property
    def is_elsewhere(self) -> bool:
        """Whether it is on another machine, of which only its renewals tell."""
        return self.machine != _machine()

    def __str__(self) -> str:
        since = datetime.fromtimestamp(self.since, UTC)
        return f"{self.user} on {self.host} (process {self.pid}) since {since:%Y-%m-%d %H:%M:%S} UTC"


@dataclass
class Lease:
    """A held lease; renewed by a thread until it is released."""

    storage: Storage
    run: str
    number: int
    holder: Holder
    ended: threading.Event = field(default_factory=threading.Event)

    def check(self) -> None:
        """Raises RunHeldError if another process has taken over since, as it may after a long silence of this one."""
        number, holder = _newest(self.storage, self.run)
        if number > self.number:
            raise RunHeldError(
                f"run '{self.run}' was taken over by {holder}, as this process had not renewed its lease "
                f"for {SILENCE_S:.0f} s; this process stops"
            )

    def write(self, released: bool = False) -> None:
        """Renews it, or lets go of it."""
        self.holder = replace(self.holder, heartbeat=time.time(), released=released)
        self.storage.put_json(_key(self.run, self.number), asdict(self.holder))

    def release(self) -> None:
        """Lets go of it; where a full disk has no room for that, by emptying it; else it lapses by its silence."""
        try:
            self.write(released=True)
        except ServerError:
            with suppress(ServerError):
                self.storage.put(_key(self.run, self.number), b"")

    def renew(self) -> None:
        """Writes it again and again until it has ended."""
        while not self.ended.wait(RENEWAL_S):
            try:
                self.write()
            except ServerError:  # a storage that stays away lets the lease lapse, which `check` then finds
                continue


@contextmanager
def hold(storage: Storage, run: str, say: Callable[[str], object] = str) -> Iterator[Lease]:
    """The lease of a run for as long as the context lasts; raises RunHeldError where a living process has it.

    say: is told when one on another machine has to be watched for that.
    """
    lease = _acquire(storage, run, say)
    renewing = threading.Thread(target=lease.renew, name=f"lease of {run}", daemon=True)
    renewing.start()
    try:
        yield lease
    finally:
        lease.ended.set()
        renewing.join()
        lease.release()


def holders_of(storage: Storage, runs: Iterable[str], say: Callable[[str], object] = str) -> dict[str, Holder]:
    """Who works on which of the runs now. Those on other machines are watched for that, all at the same time.

    say: is told of that.
    """
    found = {run: holder for run in runs if (holder := _newest(storage, run)[1]) and not holder.has_let_go()}
    elsewhere = {run: holder for run, holder in found.items() if holder.is_elsewhere}
    silent = _silent(storage, elsewhere, say)
    return {run: holder for run, holder in found.items() if run not in silent}


def user_name() -> str:
    """Who runs this process; its number where, as in many containers, it has no name."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return str(os.getuid())


def _acquire(storage: Storage, run: str, say: Callable[[str], object]) -> Lease:
    number, holder = _newest(storage, run)
    is_free = holder is None or holder.has_let_go()
    if holder and not is_free and holder.is_elsewhere:  # a retry on a new pod goes on soon after its forerunner died
        is_free = run in _silent(storage, {run: holder}, say)
    if is_free:
        lease = Lease(storage, run, number + 1, Holder.this_process())
        if storage.create(_key(run, lease.number), json.dumps(asdict(lease.holder), indent=1).encode()):
            return lease
        _, holder = _newest(storage, run)
    raise RunHeldError(
        f"run '{run}' at {storage.path(f'runs/{run}')} is held by {holder}. Wait for it, or start another with --name; "
        "a process that is gone loses its lease by itself"
    )


def _silent(storage: Storage, held: Mapping[str, Holder], say: Callable[[str], object]) -> set[str]:
    """Those of the runs whose leases do not change, or are released, while they are watched.

    How long that takes is measured by this process's monotonic clock.
    """
    watched = dict(held)
    for run, holder in watched.items():
        say(f"run '{run}' is held by {holder}, elsewhere: watching for up to {SILENCE_S:.0f} s whether it lives")
    deadline = time.monotonic() + SILENCE_S
    while watched and time.monotonic() < deadline:
        time.sleep(min(1.0, SILENCE_S / 4))
        for run, holder in list(watched.items()):
            _, now = _newest(storage, run)
            if now is not None and not now.released and now != holder:
                del watched[run]
    return set(watched)


def _newest(storage: Storage, run: str) -> tuple[int, Holder | None]:
    """Number and holder of the lease; no holder of one that was emptied."""
    keys = storage.keys(f"runs/{run}/lease")
    content = storage.get(keys[-1]) if keys else None
    return (int(Path(keys[-1]).stem) if keys else 0), Holder(**json.loads(content)) if content else None


def _key(run: str, number: int) -> str:
    return f"runs/{run}/lease/{number:06d}.json"


def _machine() -> str:
    """Within what a process id means something: this boot of this machine, and this container's process namespace."""
    try:
        return f"{Path('/proc/sys/kernel/random/boot_id').read_text().strip()} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return f"{socket.gethostname()} {uuid.getnode():x}"


def _process_start(pid: int) -> str | None:
    """When the process started, in whatever terms this system has, or None where it does not run.

    Tells a process from a later one with the same id.
    """
    if Path("/proc/self/stat").exists():
        try:
            state, *rest = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            return None
        return None if state == "Z" else rest[18]
    shown = subprocess.run(["ps", "-o", "lstart=", "-p", str(pid)], capture_output=True, text=True, check=False)
    return shown.stdout.strip() or None
