"""What holds for the whole package: public interfaces only, and imports that go one way."""

from __future__ import annotations

import ast
import importlib.util
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = sorted([*(ROOT / "fraud_ray").rglob("*.py"), *(ROOT / "jobs").rglob("*.py")])

# From the ground up: a room may import those before it, and its own files.
ORDER = (
    *("errors", "values", "progress", "redaction", "settings", "storage", "lease", "runs", "cluster"),
    *("model", "decision", "data", "windows", "intake", "training", "registry", "scoring", "serving", "report"),
    *("reporting", "pipeline", "reproduce", "backtest", "submission", "cli", "__main__"),
)
# `model` is what a model is: it knows no other room but how its own files read.
ALONE = {"model": {"model"}, "settings": {"settings", "errors", "redaction"}}

REFUSED = (
    *("torch.ops", "mlflow.store", "mlflow.utils", "unittest.mock", "ctypes", "onnxruntime.capi"),
    *("sys.unraisablehook", "sys.excepthook"),
)
PACKAGES = {"ray", "torch", "mlflow", "onnxruntime", "onnx", "pyarrow", "optuna", "obstore", "unittest"}
_DOTTED = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)+")


def imports(tree: ast.AST) -> Iterator[tuple[str, str]]:
    """The name that each import binds, and the dotted name that it stands for."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                bound = alias.asname or alias.name.partition(".")[0]
                yield bound, alias.name if alias.asname else bound
                yield "", alias.name
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            for alias in node.names:
                yield alias.asname or alias.name, f"{node.module}.{alias.name}"


def dotted(node: ast.AST) -> str | None:
    """`a.b.c` of an attribute of a name."""
    if isinstance(node, ast.Name):
        return node.id
    inner = dotted(node.value) if isinstance(node, ast.Attribute) else None
    return f"{inner}.{node.attr}" if inner and isinstance(node, ast.Attribute) else None


def _is_dotted(value: object) -> bool:
    return isinstance(value, str) and bool(_DOTTED.fullmatch(value)) and value.partition(".")[0] in PACKAGES


def third_party_names(source: str) -> set[str]:
    """Every dotted name of another package that a file imports, reads, or spells in a string."""
    tree = ast.parse(source)
    bound = {name: whole for name, whole in imports(tree) if name}
    found = {whole for _, whole in imports(tree)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            name = dotted(node)
            head, _, rest = (name or "").partition(".")
            if head in bound:
                found.add(f"{bound[head]}.{rest}")
        elif isinstance(node, ast.Constant) and _is_dotted(node.value):
            found.add(node.value)
    own = {"fraud_ray", "jobs", "benchmarks", "__future__"}
    return {name for name in found if name.partition(".")[0] not in own}


def faults(source: str) -> set[str]:
    """Those of a file's names that no library documents."""

    def is_undocumented(name: str) -> bool:
        private = any(part.startswith("_") and not part.endswith("__") for part in name.split(".")[1:])
        return private or any(name == refused or name.startswith(f"{refused}.") for refused in REFUSED)

    return {name for name in third_party_names(source) if is_undocumented(name)}


def test_only_documented_names_of_other_packages_are_used() -> None:
    found = {str(file.relative_to(ROOT)): faults(file.read_text()) for file in FILES}
    assert {file: names for file, names in found.items() if names} == {}


@pytest.mark.parametrize(
    "line",
    [
        "from ray.train.v2._internal import callbacks",
        "import ray\nray._private.node.Node",
        "from unittest.mock import patch",
        "import torch\ntorch._foreach_copy_([], [])",
        "import torch\ntorch.ops.aten.relu",
        "import mlflow.utils.mlflow_tags",
        "from mlflow.store.entities import PagedList",
        "import ctypes",
        "name = 'ray._private.worker'",
        "from onnxruntime.capi import onnxruntime_pybind11_state",
    ],
)
def test_an_undocumented_name_is_found(line: str) -> None:
    assert faults(line)


def room_of(module: str) -> str:
    return module.split(".")[1]


def test_imports_go_one_way() -> None:
    wrong = []
    for file in FILES:
        if "jobs" in file.relative_to(ROOT).parts[:1]:
            continue
        room = file.relative_to(ROOT / "fraud_ray").parts[0].removesuffix(".py")
        if room == "__init__":
            continue
        assert room in ORDER, f"{room} has no place in the order of the rooms: give it one"
        allowed = ALONE.get(room, {*ORDER[: ORDER.index(room) + 1]})
        for _, name in imports(ast.parse(file.read_text())):
            if name.startswith("fraud_ray.") and room_of(name) not in allowed:
                wrong.append(f"{file.relative_to(ROOT)} imports {name}")
    assert wrong == []


def test_every_module_that_is_imported_is_there() -> None:
    """The type checker passes over modules that it does not find, and many imports wait inside of functions."""
    gone = []
    for file in FILES:
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "fraud_ray":
                module = importlib.import_module(str(node.module))
                for alias in node.names:
                    try:
                        getattr(module, alias.name)
                    except AttributeError:
                        if importlib.util.find_spec(f"{node.module}.{alias.name}") is None:
                            gone.append(f"{file.relative_to(ROOT)} imports {node.module}.{alias.name}")
    assert gone == []
