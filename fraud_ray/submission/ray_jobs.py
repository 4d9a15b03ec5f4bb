"""Jobs on a Ray that is up: its job submission API, with the working folder as the code, and without the data."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from ray.exceptions import AuthenticationError
from ray.job_submission import JobDetails, JobStatus, JobSubmissionClient

from fraud_ray.errors import ServerError, SettingsError
from fraud_ray.submission.jobs import Attempt, State, by_age
from fraud_ray.submission.order import Order

_RUN, _ATTEMPT, _SETTINGS = "fraud_ray.run", "fraud_ray.attempt", "fraud_ray.settings"
_STATES: dict[JobStatus, State] = {
    JobStatus.PENDING: "pending",
    JobStatus.RUNNING: "running",
    JobStatus.SUCCEEDED: "succeeded",
    JobStatus.FAILED: "failed",
    JobStatus.STOPPED: "stopped",
}
# A stopped driver ends its Ray, tells MLflow and lets go of its lease, for which Ray's 3 s may be too short.
_STOP_WAIT_S = 30


class RayJobs:
    """Jobs of the Ray whose dashboard is at `address`; fits jobs.Jobs."""

    def __init__(self, address: str, token: str | None) -> None:
        self.address = address
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        with self._reported():
            # The client would take an address from the environment rather than ours.
            os.environ["RAY_API_SERVER_ADDRESS"] = address
            for console in logging.getLogger("ray").handlers:
                console.setLevel(logging.ERROR)
            self.client = JobSubmissionClient(address, headers=headers)

    def attempts(self) -> list[Attempt]:
        with self._reported():
            ours = [job for job in self.client.list_jobs() if _RUN in (job.metadata or {})]
        return sorted((_attempt(job) for job in ours), key=by_age)

    def create(self, order: Order, number: int) -> bool:
        _require_in_working_folder(order)
        name = order.attempt_name(number)
        told = {_RUN: order.run, _ATTEMPT: str(number), _SETTINGS: json.dumps(order.settings.recorded())}
        # What .gitignore names is not uploaded: data, stores, environments.
        environment = {"working_dir": ".", "env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": str(_STOP_WAIT_S)}}
        with self._reported():
            try:
                self.client.submit_job(
                    entrypoint=shlex.join(order.words), submission_id=name, runtime_env=environment, metadata=told
                )
            except RuntimeError:
                if any(job.submission_id == name for job in self.client.list_jobs()):
                    return False
                raise
        return True

    def logs(self, attempt: Attempt, follow: bool) -> Iterator[str]:
        with self._reported():
            if not follow:
                yield self.client.get_job_logs(attempt.name)
                return
            pieces = self.client.tail_job_logs(attempt.name)

            async def next_piece() -> str | None:
                return await anext(pieces, None)

            with asyncio.Runner() as runner:
                while (piece := runner.run(next_piece())) is not None:
                    yield piece

    def stop(self, attempt: Attempt) -> None:
        with self._reported():
            self.client.stop_job(attempt.name)

    @contextmanager
    def _reported(self) -> Iterator[None]:
        """Turns the API's refusals, and its silence, into a message that a person can act on."""
        try:
            yield
        except AuthenticationError as fault:
            raise ServerError(
                f"the Ray at {self.address} asks for its token: set RAY_AUTH_TOKEN, or give --token-file "
                "(on its head: ray get-auth-token)"
            ) from fault
        except (RuntimeError, ConnectionError, OSError) as fault:
            raise ServerError(
                f"the jobs API of the Ray at {self.address} cannot be used: {str(fault).strip().splitlines()[0]}; "
                "check --address (http://HEAD:8265) and the network"
            ) from fault


def read_token(file: Path | None) -> str | None:
    """The token in a file, else the one in RAY_AUTH_TOKEN, else None; raises SettingsError for an unreadable file."""
    if file is None:
        return os.environ.get("RAY_AUTH_TOKEN")
    try:
        return file.read_text(encoding="utf-8").strip()
    except OSError as fault:
        raise SettingsError(f"the token file {file} cannot be read: {fault.strerror}; name another") from fault


def _require_in_working_folder(order: Order) -> None:
    """The job gets the working folder and nothing else."""
    here = Path.cwd()
    if not order.config.resolve().is_relative_to(here) or order.config.is_absolute():
        raise SettingsError(f"{order.config} is not below {here}, which is what the job gets; name it from there")
    if not (here / "jobs" / "pipeline.py").is_file():
        raise SettingsError(f"{here} holds no jobs/pipeline.py; submit from the root of the repository")


def _attempt(job: JobDetails) -> Attempt:
    metadata = job.metadata or {}
    return Attempt(
        name=job.submission_id or "",
        run=metadata[_RUN],
        number=int(metadata[_ATTEMPT]),
        state=_STATES[job.status],
        created=datetime.fromtimestamp(job.start_time / 1000, UTC) if job.start_time else None,
        message=(job.message or "").strip().splitlines()[0] if job.message else "",
        settings=json.loads(metadata[_SETTINGS]),
    )
