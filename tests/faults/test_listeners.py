"""Who can reach what a run starts, and read what it keeps."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from fraud_ray.cluster import keep_token_to_owner
from fraud_ray.registry.server import ui_command
from fraud_ray.settings import RegistrySettings, ServingSettings

SECURITY = (Path(__file__).parents[2] / "cluster/SECURITY.md").read_text(encoding="utf-8")

STARTED = """
import json, os
from pathlib import Path
from fraud_ray.cluster import join_or_start
from fraud_ray.settings import ClusterSettings

LISTENS, LOOPBACK = "0A", ("0100007F", "00000000000000000000000001000000")

def sockets():
    for table in ("tcp", "tcp6"):
        for line in Path("/proc/net", table).read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == LISTENS and fields[1].partition(":")[0] not in LOOPBACK:
                yield f"socket:[{fields[9]}]"

def is_ours(pid):
    while pid > 1 and pid != os.getpid():
        pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    return pid > 1

def owners(inodes):
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if is_ours(int(process.name)) and any(str(fd.readlink()) in inodes for fd in process.glob("fd/*")):
                yield process.joinpath("cmdline").read_text().replace(chr(0), " ")[:300]
        except OSError:
            continue

with join_or_start(ClusterSettings(cpus=1)):
    found = sorted(set(owners(set(sockets()))))
print(json.dumps(found))
"""


@pytest.mark.faults("25", "another user of the machine reads ~/.ray/auth_token", "0600, for one that was there too")
@pytest.mark.quick
@pytest.mark.parametrize("is_there", [False, True])
def test_rays_token_is_its_owners_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_there: bool) -> None:
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    file = tmp_path / ".ray/auth_token"
    if is_there:
        file.parent.mkdir()
        file.write_text("a token")
        file.chmod(0o644)
    keep_token_to_owner()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    content = file.read_text()
    assert content == "a token" if is_there else len(content) == 64
    keep_token_to_owner()
    assert (file.read_text(), [f.name for f in file.parent.iterdir()]) == (content, ["auth_token"])


@pytest.mark.faults("25", "a listener beyond loopback", "none but those of Ray that SECURITY.md names")
def test_what_listens_beyond_loopback_is_named(tmp_path: Path) -> None:
    environment = {**os.environ, "HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", STARTED], env=environment, capture_output=True, text=True, check=True)
    assert stat.S_IMODE((tmp_path / ".ray/auth_token").stat().st_mode) == 0o600
    known = ("gcs_server", "raylet", "monitor.py", "dashboard.py", "ray::", " -c ")
    listening = json.loads(done.stdout.splitlines()[-1])
    for command in listening:
        assert any(name in command for name in known), command
    named = ("gcs_server", "raylet", "workers", "the driver", "runtime env agent", "metrics export", "monitor (44217)")
    assert [name for name in named if name not in SECURITY] == []


@pytest.mark.faults("25", "pages and the endpoint are started without a word on hosts", "127.0.0.1")
def test_pages_and_the_endpoint_are_on_this_machine_alone(tmp_path: Path) -> None:
    command = ui_command(RegistrySettings(uri=f"sqlite:///{tmp_path}/mlflow.db"))
    assert command[command.index("--host") + 1] == ServingSettings().host == "127.0.0.1"
