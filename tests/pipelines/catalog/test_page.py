"""The page for users says what is true: its commands, keys, reasons and exit codes are those of the code."""

from __future__ import annotations

import dataclasses
import re
import shlex
from pathlib import Path

import pytest

from pipelines.catalog.config import CatalogConfig
from pipelines.catalog.layouts import LAYOUTS
from pipelines.config.command_line import load_job_config
from pipelines.config.job import JobConfig
from pipelines.config.validation import list_keys
from pipelines.config.yaml_files import shipped_configs
from tests.conftest import PROJECT_ROOT

PAGE = (PROJECT_ROOT / "pipelines/catalog/README.md").read_text(encoding="utf-8")
GUIDE = (PROJECT_ROOT / "guides/catalog.md").read_text(encoding="utf-8")
COMMANDS = re.findall(r"^python -m pipelines\.embed_catalog (.*)$", PAGE, re.MULTILINE)


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_of_the_page_is_one(command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("shop.yaml").write_text("")
    assert load_job_config(shlex.split(command)).config.catalog.uri


def test_every_shipped_config_of_a_catalog_has_a_section() -> None:
    named = set(re.findall(r"--config (catalogs/[a-z0-9_]+)", PAGE))
    assert named == {name for name in shipped_configs() if name.startswith("catalogs/")}
    assert len(named) >= len(LAYOUTS)


def test_the_keys_of_the_page_are_keys() -> None:
    known = {key.name for key in list_keys(JobConfig)}
    found = set(re.findall(r"(?<![/\w])((?:catalog|fetch|decode|gates|index|work)\.[a-z_]+)", PAGE))
    assert found <= known | {"catalog.where"}, found - known
    table = re.findall(r"^\| (`[^|]*) \|", PAGE[PAGE.index("`--catalog.KEY`") : PAGE.index("## Size")], re.M)
    keys = {name for row in table for name in re.findall(r"`([a-z_]+)", row)} - {"title", "images"}
    assert keys <= {field.name for field in dataclasses.fields(CatalogConfig)}, keys


def test_the_index_of_the_two_commands_is_that_of_the_catalog() -> None:
    first, index = re.search(r"--catalog\.uri (\S+)\npython -m pipelines\.search --index (\S+)", GUIDE).groups()  # type: ignore[union-attr]
    assert load_job_config(["--catalog.uri", first]).config.index.uri == index
