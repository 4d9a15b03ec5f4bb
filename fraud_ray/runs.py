"""A run: its name, which is its identity, its folder, what of it is concluded, and so what a second start resumes.

Below `runs/<name>/`: run.json (settings, data and code), lease/ (who works on it), logs/<number>.log (what each start
as a job printed), stages/<stage>.json (values of concluded stages), curves.json, report.html and outcome.json (once it
is concluded).
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import platform
import re
import shlex
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from fraud_ray.errors import EXIT_DONE, EXIT_REJECTED, DamagedError, RunDiffersError, SettingsError
from fraud_ray.lease import Lease, hold, holders_of, user_name
from fraud_ray.progress import Progress, Quiet, Update
from fraud_ray.redaction import without_passwords
from fraud_ray.settings import Loaded, dotted, parse_settings
from fraud_ray.storage import Storage, damaged
from fraud_ray.values import Value

T = TypeVar("T")

FINGERPRINT = "data fingerprint"
LATEST = "latest"
REPORT, _RECORD = "report.html", "run.json"  # in a run's folder
_READERS = 16
_PACKAGES = (
    *("fraud_ray", "ray", "torch", "numpy", "pandas", "pyarrow", "scikit-learn", "optuna"),
    *("mlflow", "onnx", "onnxruntime"),
)


@dataclass(frozen=True)
class Outcome(Value):
    """What a run came to.

    status: registered, rejected, backtested, or `stopped after <stage>`. evaluation, gate, version: the JSON of
    decision.metrics.Evaluation, decision.gate.GateDecision and registry.versions.RegisteredVersion, where the run got
    so far. rival: what a model of another kind reached on the same rows, in words. comparison: after a retraining
    against a champion, the JSON of decision.comparison.Comparison with its message. rejection: what would likely help,
    in words (`advice`), and what other `thresholds` do, with their `alerts` a day or per 1,000 rows. report: where its
    page lies. timings: seconds a stage, those of earlier starts included. seconds: of the start that concluded it, by
    the wall; earlier_seconds: of the stages that it found concluded.
    """

    name: str
    folder: str
    status: str
    exit_code: int = EXIT_DONE
    plan: tuple[str, ...] = ()
    hyperparameters: dict[str, Any] = field(default_factory=dict)
    evaluation: dict[str, Any] | None = None
    gate: dict[str, Any] | None = None
    version: dict[str, Any] | None = None
    rival: str | None = None
    comparison: dict[str, Any] | None = None
    rejection: dict[str, Any] | None = None
    report: str | None = None
    timings: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0
    earlier_seconds: float = 0.0

    @classmethod
    def of_gate(cls, passed: bool, champion_stays: bool = False, **values: Any) -> Outcome:
        """The outcome of a run that went through, with the status and exit code that the gate's decision gives it.

        champion_stays: a rejected model was to take the place of one that goes on working.
        """
        exit_code = EXIT_DONE if passed or champion_stays else EXIT_REJECTED
        return cls(status="registered" if passed else "rejected", exit_code=exit_code, **values)


@dataclass(frozen=True)
class RunRecord:
    """A run as `runs list` shows it. state: an outcome's status, `running`, `unfinished` or `damaged`."""

    name: str
    folder: str
    state: str
    config: str
    created: str
    record: dict[str, Any]
    stages: tuple[str, ...]
    outcome: Outcome | None
    holder: str | None

    @property
    def identity(self) -> dict[str, Any]:
        """The settings that can change the result, by dotted key, and the data's fingerprint."""
        return _identity_there(self.record)

    @property
    def changed(self) -> dict[str, Any]:
        """The settings that differ from the defaults; all, where this version of the package does not know one."""
        try:
            return parse_settings(self.record["settings"], self.folder).changed()
        except SettingsError:
            return self.record["settings"]

    @property
    def metrics(self) -> dict[str, float]:
        """The figures on the final holdout; empty before they are known."""
        return dict(self.evaluation.get("metrics", {}))

    @property
    def evaluation(self) -> dict[str, Any]:
        """The JSON of decision.evaluate.Evaluation; empty before it is known."""
        return (self.outcome.evaluation if self.outcome else None) or {}


class _Record(BaseModel):
    """What every version of the package writes into run.json."""

    config: str
    created: str
    fingerprint: str
    identity: dict[str, Any]
    settings: dict[str, Any]


class StoppedAfter(Exception):  # noqa: N818 - no error
    """The run was asked to stop after this stage."""


@dataclass
class Run:
    """A run that this process works on, or, with `concluded`, one that has its outcome already.

    until: the stage after which StoppedAfter is raised. plan: what the terminal and the outcome say of how it goes.
    began: when this start did, on the monotonic clock; earlier_seconds: of the stages that it found concluded.
    """

    name: str
    storage: Storage
    concluded: Outcome | None = None
    timings: dict[str, float] = field(default_factory=dict)
    progress: Progress = field(default_factory=Quiet)
    until: str | None = None
    plan: list[str] = field(default_factory=list)
    began: float = field(default_factory=time.monotonic)
    earlier_seconds: float = 0.0
    _lease: Lease | None = None

    @property
    def folder(self) -> str:
        """Absolute path or URI of everything that belongs to the run."""
        return self.storage.path(_folder(self.name))

    def key(self, name: str) -> str:
        """The storage key of a file in the run's folder."""
        return f"{_folder(self.name)}/{name}"

    @property
    def took(self) -> dict[str, Any]:
        """What an outcome says of the time until now."""
        seconds = round(time.monotonic() - self.began, 3)
        return {"timings": self.timings, "seconds": seconds, "earlier_seconds": round(self.earlier_seconds, 3)}

    def has(self, stage: str) -> bool:
        """Whether the stage is concluded, so that `once` will not compute it."""
        return self.storage.kept(self._stage_key(stage)) is not None

    def stage(
        self,
        name: str,
        compute: Callable[[Update], T],
        read: Callable[[Any], T] | None = None,
        say: Callable[[T], object] = str,
    ) -> T:
        """The value of a stage, which has a line that tells how far it is and, at its end, what `say` makes of it.

        read: where the value is kept in the run (see `once`).
        """
        with self.progress.stage(name) as line:
            began = time.monotonic()
            value = self.once(name, lambda: compute(line.update), read) if read else compute(line.update)
            self.timings.setdefault(name, round(time.monotonic() - began, 3))
            line.say(str(say(value)))
        self.stop_after(name)
        return value

    def announce(self, planned: object, notes: Iterable[str] = ()) -> str:
        """Adds what is planned, line by line, and notes to the plan; returns the plan as one line."""
        self.plan += [*str(planned).splitlines(), *notes]
        return "; ".join(self.plan)

    def remark(self, text: str | None) -> None:
        """Tells of something at once, and adds it to the plan; None: there is nothing to tell."""
        if text:
            self.plan.append(text)
            self.progress.note(text)

    def stop_after(self, stage: str) -> None:
        """Raises StoppedAfter if the run is to stop after this stage, which is over or was not needed."""
        if stage == self.until:
            raise StoppedAfter(stage)

    def once(self, stage: str, compute: Callable[[], T], read: Callable[[Any], T]) -> T:
        """The stage's value: if an earlier start concluded it, what `read` makes of what was kept; else it is computed.

        Kept is what the value's `to_json` gives, or a value of JSON types itself. Raises RunHeldError at either end of
        the stage if another process has taken the run over meanwhile.
        """
        self.check_held()
        stored = self.storage.kept(self._stage_key(stage))
        if stored is not None:
            self.timings[stage] = stored["seconds"]
            self.earlier_seconds += stored["seconds"]
            return read(stored["value"])
        began = time.monotonic()
        value = compute()
        self.check_held()
        self.timings[stage] = round(time.monotonic() - began, 3)
        told = value.to_json() if hasattr(value, "to_json") else value
        concluded = {"seconds": self.timings[stage], "finished": now(), "value": told}
        self.storage.keep(self._stage_key(stage), concluded)
        return value

    def stopped(self, stage: object) -> Outcome:
        """The outcome of a run that was asked to stop after a stage; the run is not concluded."""
        return Outcome(self.name, self.folder, f"stopped after {stage}", plan=tuple(self.plan), **self.took)

    def conclude(self, outcome: Outcome) -> Outcome:
        """Keeps the outcome: the same run answers with it from now on."""
        self.check_held()
        self.storage.put_json(self.key("outcome.json"), {**outcome.to_json(), "finished": now()})
        return read_outcome(self.storage, self.name) or outcome

    def is_untouched(self) -> bool:
        """Whether nothing was written but what the run is declared and held with, and what it printed."""
        apart = (self.key("lease/"), self.key("logs/"))
        return all(key == self.key(_RECORD) or key.startswith(apart) for key in self.storage.keys(self.key("")))

    def check_held(self) -> None:
        """Raises RunHeldError if another process has taken the run over."""
        if self._lease:
            self._lease.check()

    def _stage_key(self, stage: str) -> str:
        return self.key(f"stages/{stage}.json")


@contextmanager
def open_run(
    loaded: Loaded,
    storage: Storage,
    fingerprint: str,
    as_of: date | None = None,
    progress: Progress | None = None,
    until: str | None = None,
) -> Iterator[Run]:
    """The run that these settings and this data name, held by this process for as long as the context lasts.

    A concluded run comes with its outcome in `concluded` and is not held. fingerprint: of the data's content; as_of:
    day of the newest data, for the name; progress, until: as Run has them. Raises RunDiffersError if the run exists
    with other settings or data, RunHeldError if another process works on it. A run that fails before it wrote anything
    leaves none behind.
    """
    name = run_name(loaded, fingerprint, as_of)
    _declare(loaded, storage, name, fingerprint)
    concluded = read_outcome(storage, name)
    if concluded:
        yield Run(name, storage, concluded)
        return
    with hold(storage, name, (progress or Quiet()).note) as lease:
        # Whoever held the lease until now may have concluded the run.
        run = Run(name, storage, read_outcome(storage, name), {}, progress or Quiet(), until, _lease=lease)
        try:
            yield run
        except BaseException:
            if run.is_untouched():
                storage.delete([run.key(_RECORD)])
            raise


def run_name(loaded: Loaded, fingerprint: str, as_of: date | None = None) -> str:
    """`run.name` with its date filled in, else `<config>-<as_of>-<6 hex digits of settings and data>`."""
    pattern = loaded.settings.run.name
    as_of = as_of if loaded.settings.data.is_dated else None
    if pattern is None:
        identity = json.dumps(_identity(loaded, fingerprint), sort_keys=True)
        config = re.sub(r"[^A-Za-z0-9_.-]+", "-", loaded.config).strip("-.") or "run"
        day = "undated" if as_of is None else f"{as_of:%Y-%m-%d}"
        return f"{config}-{day}-{hashlib.sha256(identity.encode()).hexdigest()[:6]}"
    if as_of is None and "{as_of" in pattern:
        raise SettingsError(
            f"run.name is '{pattern}', but the data has no date to fill in: no 'date=' folders and no column of kind "
            "'timestamp'. Give a name without {as_of}"
        )
    return pattern.format(as_of=as_of)


def read_outcome(storage: Storage, name: str) -> Outcome | None:
    """The outcome of a concluded run, else None. Raises DamagedError."""
    key = f"{_folder(name)}/outcome.json"
    stored = storage.get_json(key)
    try:
        return None if stored is None else Outcome.from_json(stored)
    except ValidationError as fault:
        raise damaged(storage.path(key), fault) from None


def read_run(storage: Storage, name: str, say: Callable[[str], object] = str) -> RunRecord:
    """A run with its settings, state and outcome.

    say: is told where a holder on another machine has to be watched. Raises as `read_record`.
    """
    return _with_holders(storage, [_read(storage, name)], say)[0]


def read_record(storage: Storage, name: str) -> dict[str, Any]:
    """What a run was declared with.

    Raises SettingsError that names the runs there are, and DamagedError for one whose files are not as written.
    """
    record = _recorded(storage, name)
    if record is None:
        known = ", ".join(run_names(storage)) or "none yet"
        raise SettingsError(f"no run '{name}' at {storage.path('runs')}; there are: {known}")
    return record


def find_runs(storage: Storage, *wanted: str, say: Callable[[str], object] = str) -> list[RunRecord]:
    """The runs that a person means, as `named` has each; say: as for `read_run`.

    Raises SettingsError that names the runs there are.
    """

    def meant(one: str) -> str:
        is_exact = storage.exists(f"{_folder(one)}/{_RECORD}")
        return one if is_exact else named(one, [run.name for run in _read_all(storage)]) or one

    return _with_holders(storage, [_read(storage, meant(one)) for one in wanted], say)


def named(wanted: str, names: Sequence[str]) -> str | None:
    """The name that is meant: the exact one, else the only one that begins so; `latest`: the last. None: there is none.

    Raises SettingsError that lists those which begin so, where there are several.
    """
    if wanted == LATEST and names and LATEST not in names:
        return names[-1]
    found = [wanted] if wanted in names else list(dict.fromkeys(name for name in names if name.startswith(wanted)))
    if len(found) > 1:
        raise SettingsError(f"'{wanted}' may be any of {', '.join(found)}; write more of the name")
    return found[0] if found else None


def read_report(storage: Storage, wanted: str) -> str:
    """The page of the run that is meant, as `find_runs` has it. Raises SettingsError where it has none."""
    [run] = find_runs(storage, wanted)
    page = storage.get(f"{_folder(run.name)}/{REPORT}")
    if page is None:
        raise SettingsError(f"run '{run.name}' at {run.folder} is {run.state} and has no report; its end writes one")
    return page.decode()


def list_runs(storage: Storage, say: Callable[[str], object] = str) -> list[RunRecord]:
    """All runs, oldest first; before them, as `damaged`, those whose files are not as they were written.

    say: as for `read_run`.
    """
    return _with_holders(storage, _read_all(storage), say)


def provenance() -> dict[str, Any]:
    """This process, as JSON types: user, host, command, git and versions.

    git: commit, and whether files differ from it (`dirty`); None where the code is no git checkout.
    """
    return {
        "command": shlex.join(map(without_passwords, sys.argv)),
        "user": user_name(),
        "host": socket.gethostname(),
        "git": _git(),
        "versions": {
            "python": platform.python_version(),
            **{name: importlib.metadata.version(name) for name in _PACKAGES},
        },
    }


def now() -> str:
    """The time in UTC, in ISO 8601 with milliseconds."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, tuple[str, str]]:
    """Keys whose values differ, each with both values as text; a key that one side lacks is `absent` there."""

    def shown(side: Mapping[str, Any], key: str) -> str:
        return json.dumps(side[key]) if key in side else "absent"

    keys = [*old, *(key for key in new if key not in old)]
    return {key: (shown(old, key), shown(new, key)) for key in keys if shown(old, key) != shown(new, key)}


def run_names(storage: Storage) -> list[str]:
    """The names of all runs, in order."""
    keys = (key.split("/") for key in storage.keys("runs"))
    return [parts[1] for parts in keys if len(parts) == 3 and parts[2] == _RECORD]


def new_log(storage: Storage, name: str) -> str:
    """The key of a log for one more start of a run, made empty."""
    number = 1 + max(logs_of(storage, name), default=0)
    while not storage.create(key := _log(name, number), b""):
        number += 1
    return key


def logs_of(storage: Storage, name: str) -> list[int]:
    """The numbers of a run's starts that have a log, in order."""
    return sorted(int(Path(key).stem) for key in storage.keys(f"{_folder(name)}/logs"))


def read_log(storage: Storage, name: str, number: int | None) -> str:
    """What one start of a run printed; None: the newest. Raises SettingsError that names those there are."""
    there = logs_of(storage, name)
    wanted = number or max(there, default=0)
    if wanted not in there:
        known = ", ".join(map(str, there)) or "none"
        raise SettingsError(
            f"no log of start {wanted or 1} of run '{name}' at {storage.path(_folder(name))}; there are: {known} (runs "
            "as jobs keep theirs)"
        )
    return (storage.get(_log(name, wanted)) or b"").decode(errors="replace")


def _log(name: str, number: int) -> str:
    return f"{_folder(name)}/logs/{number}.log"


def runs_at_work(storage: Storage, say: Callable[[str], object] = str) -> list[str]:
    """The names of those that somebody holds, in order; say: as for `read_run`."""
    return list(holders_of(storage, run_names(storage), say))


def _read(storage: Storage, name: str) -> RunRecord:
    """As `read_run`, but that nobody looks whether somebody works on it."""
    record, outcome = read_record(storage, name), read_outcome(storage, name)
    return RunRecord(
        name=name,
        folder=storage.path(_folder(name)),
        state=outcome.status if outcome else "unfinished",
        config=record["config"],
        created=record["created"],
        record=record,
        stages=tuple(Path(key).stem for key in storage.keys(f"{_folder(name)}/stages")),
        outcome=outcome,
        holder=None,
    )


def _read_all(storage: Storage) -> list[RunRecord]:
    """As `list_runs`, but that nobody looks who works on them."""

    def read(name: str) -> RunRecord:
        try:
            return _read(storage, name)
        except DamagedError:
            return RunRecord(name, storage.path(_folder(name)), "damaged", "", "", {}, (), None, None)

    with ThreadPoolExecutor(_READERS) as pool:
        return sorted(pool.map(read, run_names(storage)), key=lambda run: run.created)


def _with_holders(storage: Storage, runs: Sequence[RunRecord], say: Callable[[str], object]) -> list[RunRecord]:
    """The runs with who works on those without an outcome; all that have to be watched are at the same time."""
    held = holders_of(storage, [run.name for run in runs if run.state == "unfinished"], say)
    return [replace(run, state="running", holder=str(held[run.name])) if run.name in held else run for run in runs]


def _declare(loaded: Loaded, storage: Storage, name: str, fingerprint: str) -> None:
    """Writes run.json, or compares with the one that is there."""
    key, identity = f"{_folder(name)}/{_RECORD}", _identity(loaded, fingerprint)
    record = {
        "name": name,
        "config": loaded.config,
        "created": now(),
        **provenance(),
        "fingerprint": fingerprint,
        "identity": identity,
        "settings": loaded.settings.recorded(),
    }
    if storage.create(key, json.dumps(record, indent=1).encode()):
        return
    there = _recorded(storage, name) or record
    changed = differences(_identity_there(there), identity)
    if changed:
        lines = [f"  {key}: {old} there, {new} now" for key, (old, new) in changed.items()]
        raise RunDiffersError(
            "\n".join([f"run '{name}' at {storage.path(_folder(name))} exists, and differs in", *lines])
            + "\nGive this one another name with --name, or take the values that are there "
            f"(fraud-ray runs show {name})"
        )


def _identity(loaded: Loaded, fingerprint: str) -> dict[str, Any]:
    """What makes two runs the same, as JSON types."""
    told = {**loaded.settings.identity(), **(loaded.beside or {}), FINGERPRINT: fingerprint}
    return json.loads(json.dumps(told, default=str))


def _identity_there(record: Mapping[str, Any]) -> dict[str, Any]:
    """A record's identity in today's settings: those that came since have their defaults, those that went are gone."""
    try:
        today = parse_settings(record["settings"], record["name"]).identity()
    except SettingsError:
        return record["identity"]
    there = dict(dotted(record["settings"]))
    # What is backtested stands beside the settings under their names: in those, it changes no result.
    beside = [key for key in record["identity"] if key not in there or key.startswith("backtest.")]
    return json.loads(json.dumps({**today, **{key: record["identity"][key] for key in beside}}, default=str))


def _recorded(storage: Storage, name: str) -> dict[str, Any] | None:
    """A run's run.json; None where it is absent. Raises DamagedError."""
    key = f"{_folder(name)}/{_RECORD}"
    found = storage.get_json(key)
    try:
        return None if found is None else found | _Record.model_validate(found).model_dump()
    except ValidationError as fault:
        raise damaged(storage.path(key), fault) from None


def _folder(name: str) -> str:
    return f"runs/{name}"


def _git() -> dict[str, Any] | None:
    def git(*arguments: str) -> str:
        folder = str(Path(__file__).parent)
        done = subprocess.run(["git", "-C", folder, *arguments], capture_output=True, text=True, check=True)
        return done.stdout.strip()

    try:
        return {"commit": git("rev-parse", "HEAD"), "dirty": bool(git("status", "--porcelain"))}
    except (OSError, subprocess.CalledProcessError):
        return None
