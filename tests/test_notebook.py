"""The notebook example, executed as it stands but for the size of its data."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.line import REPOSITORY, local


def test_every_cell_runs_and_its_values_show_themselves_in_a_line(
    ray_session: None,
    simulated: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    script = (REPOSITORY / "jobs/notebook.py").read_text()
    overrides = [*local(simulated, tmp_path)[1], "search.space={learning_rate: [0.002]}"]
    script, replaced = re.subn("^overrides = .*$", f"overrides = {overrides!r}", script, flags=re.MULTILINE)
    assert replaced == 1
    monkeypatch.chdir(REPOSITORY)
    cells: dict[str, object] = {}
    exec(compile(script, "jobs/notebook.py", "exec"), cells)
    shown = {name: repr(cells[name]) for name in ("census", "prepared", "found", "fitted", "evaluation", "decision")}
    assert all("\n" not in text and len(text) < 200 for text in shown.values()), shown
    assert shown["decision"] == "passed: the one check passed"
    assert re.fullmatch(r"fold selection-1: fit .*\nfold final: fit .*", repr(cells["folds"]))
    stages = re.findall(r"✓ (\w+)", capsys.readouterr().err)
    assert stages == ["validate", "prepare", "search", "refit"]
