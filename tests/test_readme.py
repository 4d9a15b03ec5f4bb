"""The README is true: its reference is the settings', its commands exist, its files are there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import typer

from fraud_ray.cli import app
from fraud_ray.cli.settings import reference_table
from fraud_ray.settings import load_settings

REPOSITORY = Path(__file__).parents[1]
README = (REPOSITORY / "README.md").read_text()


def test_the_reference_of_settings_is_the_one_that_the_command_prints() -> None:
    assert reference_table() in README, "replace the table by what `fraud-ray settings --schema` prints"


def test_every_command_that_is_named_exists() -> None:
    group = typer.main.get_command(app)
    known = set(group.commands)  # type: ignore[attr-defined]
    named = set(re.findall(r"fraud-ray ([a-z]+)", README))
    assert named
    assert named <= known


def test_every_configuration_and_folder_that_is_named_exists() -> None:
    for name in set(re.findall(r"`((?:configs|cluster|jobs|fraud_ray)/[\w./]*)`", README)):
        assert (REPOSITORY / name).exists(), name


@pytest.mark.parametrize("name", ["local", "seed", "handbook", "handbook-raw", "cluster"])
def test_every_configuration_is_valid(name: str) -> None:
    load_settings(REPOSITORY / f"configs/{name}.yaml")


def test_every_setting_that_is_set_in_the_readme_exists() -> None:
    given = re.findall(r"--set ([a-z_]+\.[a-z_.]+)=", README)
    assert given
    for key in given:
        assert f"`{key}`" in reference_table() or key.startswith("search.space."), key
