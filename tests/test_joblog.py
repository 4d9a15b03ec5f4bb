"""What a job prints is in its run's folder too, whatever ends it."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from fraud_ray.errors import SettingsError
from fraud_ray.runs import logs_of, new_log, read_log
from fraud_ray.storage import Storage

JOB = """
import os, signal, sys
from fraud_ray.cli.joblog import kept
from fraud_ray.storage import Storage
signal.signal(signal.SIGTERM, lambda *_: sys.exit("terminated"))
with kept() as log:
    log.keep(Storage.at(sys.argv[1]), "march")
    log.keep(Storage.at(sys.argv[1]), "march")  # once is enough
    print("✓ validate")
    os.write(2, b"from C\\n")
    sys.stdout.flush()
    os.kill(os.getpid(), int(sys.argv[2]))
    print("no word of which is lost")
"""


@pytest.mark.parametrize(
    ("number", "last"), [(0, "no word of which is lost\n"), (signal.SIGTERM, "terminated\n"), (signal.SIGKILL, "")]
)
def test_every_line_that_a_job_prints_is_kept_start_by_start(number: int, last: str, tmp_path: Path) -> None:
    storage = Storage.at(str(tmp_path))
    new_log(storage, "march")
    command = [sys.executable, "-c", JOB, str(tmp_path), str(number)]
    shown = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=60).stdout
    kept = "✓ validate\nfrom C\n" + (last if number != signal.SIGTERM else "")
    assert (read_log(storage, "march", 2), logs_of(storage, "march")) == (kept, [1, 2])
    assert shown == "✓ validate\nfrom C\n" + last
    with pytest.raises(SettingsError, match=r"no log of start 3 of run 'march' .* there are: 1, 2"):
        read_log(storage, "march", 3)


def test_a_bucket_has_the_whole_log_at_the_end(tmp_path: Path) -> None:
    told = JOB.replace("with kept()", "Storage.is_local = property(lambda storage: False)\nwith kept()")
    subprocess.run([sys.executable, "-c", told, str(tmp_path), "0"], capture_output=True, timeout=60, check=True)
    assert read_log(Storage.at(str(tmp_path)), "march", None).endswith("no word of which is lost\n")
