"""Who may ask: bearer tokens in a file, one a line, so that several hold while they are changed."""

from __future__ import annotations

import hmac
import ipaddress
import os
import secrets
from pathlib import Path

from fraud_ray.errors import SettingsError
from fraud_ray.serving.requests import RequestFault
from fraud_ray.settings import ServingSettings
from fraud_ray.storage import Storage


class Tokens:
    """The tokens of a file, read again whenever it changes. Raises SettingsError where it holds none."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._stamp, self._tokens = self._read()
        if not self._tokens:
            raise SettingsError(f"{path} holds no token; write one a line, such as `openssl rand -hex 32` makes")

    def check(self, authorization: str | None) -> None:
        """authorization: the header of that name. Raises RequestFault unless it bears a token."""
        try:
            if _stamp_of(self.path) != self._stamp:
                self._stamp, self._tokens = self._read()
        except SettingsError:
            pass  # while the file is being replaced, those that it held go on
        scheme, _, given = (authorization or "").partition(" ")
        # All are compared, in a time that does not tell how much of one is right.
        found = [hmac.compare_digest(given.strip().encode(), token) for token in self._tokens]
        if scheme.lower() != "bearer" or not any(found):
            raise RequestFault(None, "send a token that is known here: Authorization: Bearer TOKEN", 401)

    def _read(self) -> tuple[tuple[int, ...], tuple[bytes, ...]]:
        stamp = _stamp_of(self.path)
        try:
            lines = self.path.read_bytes().splitlines()
        except OSError as fault:
            raise SettingsError(f"the tokens at {self.path} cannot be read: {fault.strerror}") from None
        return stamp, tuple(line.strip() for line in lines if line.strip())


def _stamp_of(path: Path) -> tuple[int, ...]:
    try:
        found = path.stat()
    except OSError as fault:
        raise SettingsError(f"the tokens at {path} cannot be read: {fault.strerror}") from None
    return found.st_ino, found.st_size, found.st_mtime_ns


def tokens_of(settings: ServingSettings, root: str, without_token: bool) -> Tokens | None:
    """The tokens that hold; None: everybody on this machine may ask.

    root: of the storage, below which one is made and kept for an address that only this machine reaches. Raises
    SettingsError where others could ask without one.
    """
    is_own = is_loopback(settings.host)
    if without_token:
        if not is_own:
            raise SettingsError(
                f"--without-token is for addresses of this machine alone, and {settings.host} is none; name a file of "
                "tokens with serving.tokens"
            )
        return None
    if settings.tokens is not None:
        return Tokens(settings.tokens.expanduser())
    if not is_own:
        raise SettingsError(
            f"whoever reaches {settings.host} could ask for scores; name a file of tokens, one a line, with "
            "serving.tokens, or listen on 127.0.0.1 (serving.host)"
        )
    return Tokens(_own_token(root))


def _own_token(root: str) -> Path:
    """The file of this user's own token, which nobody else can read; made where it is not there."""
    state = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local/state") / "fraud_ray"
    folder = Path(root) / "serving" if Storage.at(root).is_local else state
    path = folder.expanduser().absolute() / "token"
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(f"{secrets.token_hex(32)}\n")
    except FileExistsError:
        path.chmod(0o600)
    return path


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches an address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
