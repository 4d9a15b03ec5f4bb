"""YAML of whatever origin as values, or one sentence on why not, within a second."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import yaml

from fraud_ray.errors import SettingsError

MOST_BYTES = 2**20  # 10,000 columns with a remark each; a second to read
MOST_VALUES = 200_000  # with what aliases stand for written out
DEEPEST = 32
LONGEST = 200  # characters of a value that a message shows


class _Loader(yaml.CSafeLoader):
    """PyYAML reads YAML 1.1, where 1e-4 is text; here it is a number, as in YAML 1.2. Keys are names, never values."""

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        super().flatten_mapping(node)
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                key.tag = "tag:yaml.org,2002:str"  # true, or a column that is called on or 2024


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)


def read_yaml(text: str, where: str) -> Any:
    """The values of a text. Raises SettingsError, which begins with `where`, for what is no YAML or no settings."""
    if len(text) > MOST_BYTES:
        raise SettingsError(f"{where} holds more than {MOST_BYTES:,} characters; settings are shorter")
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        values, _ = _measure(node, {}, where, 1)
        if values > MOST_VALUES:
            raise SettingsError(
                f"{where} comes to {min(values, 10**12):,} values or more with its aliases written out; settings have "
                f"at most {MOST_VALUES:,}"
            )
        return loader.construct_document(node)
    except yaml.YAMLError as fault:
        raise SettingsError(f"{where} is not valid YAML: {' '.join(str(fault).split())}") from None
    except (ValueError, LookupError, AttributeError) as fault:  # as PyYAML ends where a tag does not fit its value
        raise SettingsError(f"{where} holds a value that is not what its tag says: {fault}") from None
    finally:
        loader.dispose()


def shortened(text: str) -> str:
    """As a message shows it."""
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}…"


def _measure(node: yaml.Node, found: dict[int, tuple[int, int] | None], where: str, level: int) -> tuple[int, int]:
    """How many values a node stands for, and how deep they lie. found: what nodes before it come to; None: unfinished.

    Raises SettingsError for one that holds itself or lies too deep, and for a mapping with a key twice.
    """
    if id(node) in found:
        known = found[id(node)]
        if known is None:
            raise SettingsError(f"{where}: line {node.start_mark.line + 1} holds itself by an alias; write it out")
        return known
    found[id(node)] = None
    if isinstance(node, yaml.MappingNode):
        _refuse_twice(node, where)
    values, deep = 1, 1
    for child in _children(node) if level < DEEPEST else ():
        below = _measure(child, found, where, level + 1)
        values, deep = values + below[0], max(deep, 1 + below[1])
    if level + deep > DEEPEST:
        raise SettingsError(f"{where}: what begins in line {node.start_mark.line + 1} lies deeper than settings do")
    found[id(node)] = values, deep
    return values, deep


def _children(node: yaml.Node) -> Iterator[yaml.Node]:
    if isinstance(node, yaml.MappingNode):
        yield from (child for pair in node.value for child in pair)
    elif isinstance(node, yaml.SequenceNode):
        yield from node.value


def _refuse_twice(node: yaml.MappingNode, where: str) -> None:
    lines: dict[str, int] = {}
    for key, _ in node.value:
        line = key.start_mark.line + 1
        if isinstance(key, yaml.ScalarNode) and key.value in lines:
            raise SettingsError(
                f"{where}: line {line}: '{key.value}' is there already, in line {lines[key.value]}; keep one of them"
            )
        if isinstance(key, yaml.ScalarNode):
            lines[key.value] = line
