"""The documents are true: their commands parse, their settings exist, their links lead somewhere."""

from __future__ import annotations

import itertools
import re
import shlex
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from fraud_ray.cli import app
from fraud_ray.settings import Settings, load_settings, reference

REPOSITORY = Path(__file__).parents[1]
NAMES = (
    *("README.md", "configs/README.md", "configs/public/README.md", "jobs/README.md"),
    *("cluster/README.md", "cluster/MODELS.md"),
)
TEXTS = {name: (REPOSITORY / name).read_text() for name in NAMES}
KEYS = {entry.key for entry in reference()}
FENCED = re.compile(r"^```\w*\n(.*?)^```", re.MULTILINE | re.DOTALL)
of_each_document = pytest.mark.parametrize("name", NAMES)


def typed(text: str, program: str) -> list[list[str]]:
    """The commands in a document's blocks, indented or fenced, that begin with `program`, as it gets them."""
    text = re.sub(r"\\\n\s*", "", text)
    lines = [*re.findall(r"^ {4,}(\S.*)$", text, re.MULTILINE), *"\n".join(FENCED.findall(text)).splitlines()]
    return _split((line.strip().removeprefix(".venv/bin/") for line in lines), program)


def mentioned(text: str, program: str) -> list[list[str]]:
    """The commands in a document's running text and tables that begin with `program`."""
    return _split((" ".join(code.split()) for code in re.findall(r"`([^`]+)`", FENCED.sub("", text))), program)


def _split(lines: Iterable[str], program: str) -> list[list[str]]:
    return [shlex.split(line, comments=True) for line in lines if line.startswith(f"{program} ")]


def parse(words: list[str], may_be_a_name: bool = False) -> None:
    """Parses the words after `fraud-ray` without running them; raises KeyError or what a person would be told.

    may_be_a_name: words that name a command and give it nothing are enough.
    """
    command: Any = typer.main.get_command(app)
    while hasattr(command, "commands"):
        if words[0].startswith("-"):  # an option of the program itself, which would be carried out
            assert words[0] in {option for parameter in command.params for option in parameter.opts}
            return
        command, words = command.commands[words[0]], words[1:]
    if words or not may_be_a_name:
        command.make_context(command.name, words)


def commands(text: str, program: str) -> list[list[str]]:
    return [*typed(text, program), *mentioned(text, program)]


def given_settings(words: list[str]) -> Iterator[str]:
    for option, value in itertools.pairwise(words):
        if option == "--set":
            yield value.partition("=")[0]


@of_each_document
def test_every_command_parses(name: str) -> None:
    found = typed(TEXTS[name], "fraud-ray"), mentioned(TEXTS[name], "fraud-ray")
    assert any(found)
    for words in found[0]:
        parse(words[1:])
    for words in found[1]:
        parse(words[1:], may_be_a_name=True)


@of_each_document
def test_every_script_of_a_ray_job_exists_and_takes_its_options(name: str) -> None:
    for words in typed(TEXTS[name], "ray job submit"):
        leader, program, script, *rest = words[words.index("--") + 1 :]
        assert (leader, program) == ("exec", "python"), "a shell between Ray and the script keeps the signal"
        assert (REPOSITORY / script).is_file()
        parse([{"pipeline": "run"}.get(Path(script).stem, Path(script).stem), *rest])


@of_each_document
def test_every_call_of_the_benchmark_parses(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(REPOSITORY / "jobs")
    from benchmarks.cli import STAGES, benchmark

    alone = typer.Typer()
    alone.command()(benchmark)
    for words in commands(TEXTS[name], "python jobs/benchmark.py"):
        typer.main.get_command(alone).make_context("benchmark", words[2:])
        for option, value in itertools.pairwise(words):
            assert option != "--only" or any(stage.startswith(value) for stage in STAGES), value


@of_each_document
def test_every_target_of_make_exists(name: str) -> None:
    targets = set(re.findall(r"^([\w-]+):", (REPOSITORY / "Makefile").read_text(), re.MULTILINE))
    assert {words[1] for words in commands(TEXTS[name], "make")} <= targets


@of_each_document
def test_every_setting_that_is_named_exists(name: str) -> None:
    sections = "|".join(Settings.model_fields)
    named = set(re.findall(rf"`((?:{sections})\.[a-z_.]+)(?:: [^`]*)?`", TEXTS[name]))
    given = {key for words in commands(TEXTS[name], "fraud-ray") for key in given_settings(words)}
    given |= set(re.findall(r"--set ([a-z_]+\.[a-z_.]+)=", TEXTS[name]))
    for key in {key for key in named if not key.endswith((".py", ".yaml"))} | given:
        hyperparameter = re.sub(r"^search\.space\.", "train.", key)
        assert key in KEYS or hyperparameter in KEYS or key.endswith("."), key


@of_each_document
def test_every_link_leads_somewhere(name: str) -> None:
    links = re.findall(r"\]\(([^)\s]+)\)", TEXTS[name])
    assert links
    for link in (link for link in links if "://" not in link):
        path, _, anchor = link.partition("#")
        target = (REPOSITORY / name).parent / path if path else REPOSITORY / name
        assert target.exists(), link
        if anchor:
            assert anchor in anchors(target.read_text()), link


def anchors(text: str) -> set[str]:
    """The anchors that GitHub gives a document's headings."""
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_the_other_documents_are_linked_from_the_readme() -> None:
    linked = set(re.findall(r"\]\(([^)\s#]+)[^)]*\)", TEXTS["README.md"]))
    assert set(NAMES[1:]) <= linked


@of_each_document
def test_every_file_that_is_named_exists(name: str) -> None:
    for path in set(re.findall(r"`((?:configs|cluster|jobs|fraud_ray|tests)/[\w./-]*)`", TEXTS[name])):
        assert (REPOSITORY / path).exists(), path


def test_every_room_of_the_package_is_on_the_map() -> None:
    rooms = {f.name for f in (REPOSITORY / "fraud_ray").iterdir() if (f / "__init__.py").exists()}
    assert rooms == set(re.findall(r"`fraud_ray/(\w+)/`", TEXTS["README.md"]))


def test_the_benchmarks_lines_in_the_readme_are_of_its_table() -> None:
    def cells(name: str) -> list[list[str]]:
        lines = [line for line in TEXTS[name].splitlines() if re.search(r"\| [\d.]+ x \| [<>]= ", line)]
        return [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines]

    shown, whole = cells("README.md"), [(row[3], row[4]) for row in cells("jobs/README.md")]
    assert len(shown) == 7
    assert [row for row in shown if (row[2], row[3]) not in whole] == []


def test_the_configuration_that_is_walked_through_is_the_file() -> None:
    (shown,) = re.findall(r"^```yaml\n(.*?)^```", TEXTS["README.md"], re.MULTILINE | re.DOTALL)
    assert shown in (REPOSITORY / "configs/local.yaml").read_text()


def test_the_settings_that_are_shown_are_accepted(tmp_path: Path) -> None:
    shown = re.findall(r"^```yaml\n(.*?)^```", TEXTS["configs/README.md"], re.MULTILINE | re.DOTALL)
    assert shown
    data = "data: {path: /data, columns: {fraud: {kind: label}, amount: {kind: amount}, at: {kind: timestamp}}}\n"
    for block in shown:
        file = tmp_path / "shown.yaml"
        file.write_text(data + block)
        load_settings(file)
