"""The page of errors is what the source says, tells a cause and a remedy of each, and knows messages as they come."""

from __future__ import annotations

import dataclasses
import re

import pytest

from encoders.errors import EncoderError
from index_builder.errors import IndexBuilderError
from pipelines import embed_catalog, search
from pipelines.catalog.config import CatalogError
from pipelines.catalog.dead_letters import Reason
from pipelines.config import exit_codes
from pipelines.config.command_line import run_command
from pipelines.config.job import GatesConfig
from pipelines.config.validation import ConfigError
from tests import errors_page

AGAIN = "write the pages again: python -m tests.errors_page"


def test_the_pages_are_what_the_source_says():
    assert errors_page.PAGE.read_text(encoding="utf-8") == errors_page.page(), AGAIN
    assert errors_page.MESSAGES.read_text(encoding="utf-8") == errors_page.messages(), AGAIN


def test_every_kind_tells_its_cause_and_its_remedy():
    told = {each.name: each.told for each in errors_page.kinds()}
    assert [name for name, each in told.items() if len(each.cause) < 10 or len(each.remedy) < 10] == []


def subclasses(kind: type) -> set[str]:
    return {kind.__name__}.union(*map(subclasses, kind.__subclasses__()))


@pytest.mark.parametrize(
    "root", [EncoderError, IndexBuilderError, CatalogError, ConfigError, exit_codes.RunFailedError]
)
def test_the_tree_of_the_running_program_is_in_the_page(root):
    of_tests = {name for name in subclasses(root) if name.startswith(("_", "Test"))}
    assert subclasses(root) - of_tests <= {each.name for each in errors_page.kinds()}


def test_codes_reasons_and_gates_have_a_line_each():
    codes = {value for name, value in vars(exit_codes).items() if name.isupper() and isinstance(value, int)}
    told = errors_page.told_values("pipelines/config/exit_codes.py")
    assert set(told) == set(map(str, codes))
    reasons = errors_page.told_values("pipelines/catalog/dead_letters.py", "Reason")
    assert set(reasons) == {reason.value for reason in Reason}
    gates = errors_page.gates()
    limits = {f"`gates.{field.name}`" for field in dataclasses.fields(GatesConfig) if field.name != "queries"}
    assert set(gates) == limits
    assert all(each.cause and each.remedy for each in (*told.values(), *reasons.values(), *gates.values()))


@pytest.mark.parametrize(
    ("command", "argv"),
    [
        (embed_catalog, ["--index.serving_shards", "0"]),
        (embed_catalog, ["--index.serving_shard", "2"]),
        (embed_catalog, ["--catalog.uri", "nowhere.csv", "--catalog.id_field", "id", "--catalog.text_fields", "name"]),
        (embed_catalog, ["--config", "nowhere.yaml"]),
        (embed_catalog, ["--encoder.device", "gpu"]),
        (embed_catalog, ["--encoder.uri", "nowhere"]),
        (embed_catalog, ["--gates.min_recall", "7"]),
        (search, ["--index", "nowhere", "mug"]),
        (search, ["--index", "nowhere", "-k", "0", "mug"]),
        (search, ["--index", "nowhere"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_message_as_it_comes_is_found_in_the_list(work_dir, capsys, command, argv):
    assert run_command(command.main, argv) == exit_codes.REFUSED
    came = capsys.readouterr().err
    listed = [message for each in errors_page.kinds() for message in each.messages]
    as_patterns = [re.sub(r"(?:\\ )?<[^<>]+>", ".*", re.escape(message)) for message in listed]
    # Of patterns that are nearly all names anything would do.
    said = [pattern for pattern in as_patterns if len(pattern.replace(".*", "")) > 15]
    assert any(re.search(pattern, came, re.DOTALL) for pattern in said), came
