"""Who does something here, with which command, code and packages: what runs and audit records say of their origin."""

from __future__ import annotations

import getpass
import importlib.metadata
import os
import platform
import re
import shlex
import socket
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

_PACKAGES = (
    *("fraud_ray", "ray", "torch", "numpy", "pandas", "pyarrow", "scikit-learn", "optuna"),
    *("mlflow", "onnx", "onnxruntime"),
)


def provenance() -> dict[str, Any]:
    """This process, as JSON types: user, host, command, git and versions.

    git: commit, and whether files differ from it (`dirty`); None where the code is no git checkout.
    """
    return {
        "command": without_passwords(shlex.join(sys.argv)),
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


def user_name() -> str:
    """Who runs this process; its number where, as in many containers, it has no name."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return str(os.getuid())


def without_passwords(text: str) -> str:
    """The text with the user and password of each URI in it starred out."""
    return re.sub(r"://[^/@\s]*@", "://***@", text)


def _git() -> dict[str, Any] | None:
    def git(*arguments: str) -> str:
        folder = str(Path(__file__).parent)
        done = subprocess.run(["git", "-C", folder, *arguments], capture_output=True, text=True, check=True)
        return done.stdout.strip()

    try:
        return {"commit": git("rev-parse", "HEAD"), "dirty": bool(git("status", "--porcelain"))}
    except (OSError, subprocess.CalledProcessError):
        return None
