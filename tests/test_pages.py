"""What the pages name is there: files, chapters, modules to run, and keys of a config."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest

from pipelines.config.job import IndexJobConfig, JobConfig
from pipelines.config.yaml_files import parse_config
from pipelines.server.config import ServerJobConfig
from tests.conftest import PROJECT_ROOT
from tests.page_commands import blocks, pages

ROOMS = ("encoders", "guides", "index_builder", "pipelines", "run_configs", "tests")
PAGES = pages(PROJECT_ROOT, ROOMS)
NO_KEYS = {
    "catalog.vectors",  # of the manifest
    "gates.publish",
    "encoder.batch_invariant",
    "encoder.precision_loss",
    "encoder.json",  # files
    "metrics.json",
    "metrics.csv",
    "beam.gpu",  # a label of GPU images
}


def name_of(page: Path) -> str:
    return page.relative_to(PROJECT_ROOT).as_posix()


def chapters(page: Path) -> set[str]:
    """Anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page):
    dead = []
    for link in re.findall(r"\]\(([^)\s]+)\)|src=\"([^\"]+)\"", page.read_text(encoding="utf-8")):
        link = link[0] or link[1]
        where, _, chapter = link.partition("#")
        if link.startswith(("https://", "http://", "mailto:")):
            continue
        found = page.parent / where if where else page
        if not found.exists() or (chapter and found.suffix == ".md" and chapter not in chapters(found)):
            dead.append(link)
    assert not dead


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_modules_can_be_run(page):
    """`python -m NAME` of one of our rooms; words in capitals stand for names."""
    named = set(re.findall(rf"python -m ((?:{'|'.join(ROOMS)})[\w.]*\w)", page.read_text(encoding="utf-8")))
    files = {name: PROJECT_ROOT / name.replace(".", "/") for name in named if not name.rpartition(".")[2].isupper()}
    assert [n for n, f in files.items() if not (f.with_suffix(".py").exists() or (f / "__main__.py").exists())] == []


def keys_of(section: Any, before: str = "") -> Iterator[str]:
    """Dotted keys of a config and its sections."""
    types = get_type_hints(section)
    for each in fields(section):
        yield before + each.name
        for kind in (types[each.name], *get_args(types[each.name])):
            if is_dataclass(kind):
                yield from keys_of(kind, f"{before}{each.name}.")


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_keys_are_those_of_the_config(page):
    """`section.key` as the pages name it; the change log names those of older versions, too."""
    known = {*keys_of(JobConfig), *keys_of(IndexJobConfig)}
    sections = "|".join(sorted({key.partition(".")[0] for key in known}))
    named = re.findall(rf"`(?:--)?((?:{sections})\.[a-z_]+)\b(?![./])", page.read_text(encoding="utf-8"))
    if page.name != "CHANGELOG.md":
        assert set(named) - known - NO_KEYS == set()


def keys_in(text: Any, known: set[str], before: str = "") -> Iterator[str]:
    """Dotted keys of a mapping that was read from YAML, down to those that a config has."""
    for name, value in (text or {}).items():
        if isinstance(value, dict) and f"{before}{name}" not in known:
            yield from keys_in(value, known, f"{before}{name}.")
        else:
            yield before + name


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_yaml_of_a_page_has_keys_of_a_config(page):
    known = {*keys_of(JobConfig), *keys_of(IndexJobConfig), *keys_of(ServerJobConfig)}
    sections = {key for key in known if any(other.startswith(f"{key}.") for other in known)}
    texts = [parse_config(block, name_of(page)).data for block in blocks(page.read_text(encoding="utf-8"), "yaml")]
    assert {key for text in texts for key in keys_in(text, known - sections)} <= known
