"""The one place that stars out passwords, tokens and keys, in all that is printed or stored."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any
from urllib.parse import quote, unquote_plus, urlsplit

from fraud_ray.errors import SettingsError

STARS = "***"
_SECRET = re.compile(r"passw|pwd|secret|token|credential|signature|key|auth|^sig$|^pass$", re.IGNORECASE)
_NEXT = re.compile(r"(?<=\s)(?=\S*://)")


def without_passwords(value: str) -> str:
    """A value such as a setting or a word of a command line, with the secrets of the URI in it starred out.

    The URI goes to the value's end. User and password go whatever they hold, up to the last @, also where they should
    have been percent-encoded; parameters of the query go by their names. Of a URI with a port, an @ in its path is
    taken for that of a password: better a path less than a password more.
    """
    begin, mark, rest = value.partition("://")
    if not mark:
        return value
    held, at, behind = rest.rpartition("@")
    if at and _is_user(held):
        return f"{begin}://{STARS}@{_without_parameters(behind)}"
    return f"{begin}://{_without_parameters(rest)}"


def redacted(text: str) -> str:
    """A message, or what else holds values among words, with the secrets of every URI in it starred out."""
    return "".join(map(_redacted, _NEXT.split(text))) if "://" in text else text


def starred(tree: Any, star: Callable[[str], str] = redacted) -> Any:
    """Nested values of JSON types, in whose texts the secrets of every URI are starred out."""
    if isinstance(tree, dict):
        return {key: starred(value, star) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return [starred(value, star) for value in tree]
    return star(tree) if isinstance(tree, str) else tree


def refuse_misread(setting: str, uri: str, taken: str = "@") -> None:
    """Raises SettingsError where a part of a user or password would be read as a host, and so told to the network.

    taken: which of the characters that end a user and password their reader takes as they are.
    """
    begin, _, rest = uri.partition("://")
    held = rest.rpartition("@")[0]
    wrong = set(held) & set("@/?#[]") if _is_user(held) else set(rest.partition("?")[2]) & {"@"}
    if wrong := wrong - set(taken):
        shown = ", ".join(f"{character} as {quote(character, safe='')}" for character in sorted(wrong))
        raise SettingsError(
            f"{setting} begins with {begin}://, and a part of its user or password would be read as the host: "
            f"write {shown} in it"
        )


def _redacted(text: str) -> str:
    """A text with one URI, which goes to the next blank, unless what is before that cannot be all of it."""
    begin, mark, rest = text.partition("://")
    word = re.split(r"\s", rest, maxsplit=1)[0]
    others = rest[len(word) :]
    if "@" in word or "@" not in others or _is_place(word):
        return f"{begin}{without_passwords(f'{mark}{word}')}{others}"
    return f"{begin}{without_passwords(f'{mark}{rest}')}"


def _is_user(held: str) -> bool:
    """Whether what lies before the last @ of a URI, without its scheme, is user and password, and not a place."""
    try:
        parts = urlsplit(f"//{held}")
    except ValueError:
        return True
    if _has_port(held) and any(map(_is_secret, parts.query.split("&"))):  # the @ is a parameter's
        return False
    return parts.netloc == held or ":" in parts.netloc.rpartition("]")[2]


def _is_place(rest: str) -> bool:
    """Whether a URI, without its scheme, begins with a host, perhaps with a port, and not with user and password."""
    try:
        return ":" not in urlsplit(f"//{rest}").netloc.rpartition("]")[2] or _has_port(rest)
    except ValueError:
        return False


def _has_port(rest: str) -> bool:
    try:
        return urlsplit(f"//{rest}").port is not None
    except ValueError:
        return False


def _without_parameters(rest: str) -> str:
    """What follows user and password, without the values of parameters that tell a secret.

    What comes after one of those and is no parameter is the secret's too, as an & in it would make it. The other values
    may be URIs themselves.
    """
    place, mark, query = rest.partition("?")
    kept: list[str] = []
    is_secret = False
    for pair in query.split("&"):
        name, equals, value = pair.partition("=")
        if not equals and is_secret:
            continue
        is_secret = _is_secret(pair)
        kept.append(f"{name}={STARS}" if is_secret else f"{name}{equals}{without_passwords(value)}")
    return f"{without_passwords(place) if '://' in place else place}{mark}{'&'.join(kept)}"


def _is_secret(pair: str) -> bool:
    name, equals, _ = pair.partition("=")
    return bool(equals and _SECRET.search(unquote_plus(name)))
