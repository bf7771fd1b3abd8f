from __future__ import annotations

from pathlib import Path

import pytest

from pipelines.config.errors import ConfigError
from pipelines.config.yaml_files import parse_config, read_config_file


def test_every_key_has_its_line() -> None:
    file = parse_config("# comment\ncatalog:\n  uri: a\n\n  text_fields:\n    - title\nindex: {uri: b}\n", "x.yaml")
    assert file.data == {"catalog": {"uri": "a", "text_fields": ["title"]}, "index": {"uri": "b"}}
    assert file.lines == {"catalog": 2, "catalog.uri": 3, "catalog.text_fields": 5, "index": 7, "index.uri": 7}


def test_a_key_given_twice_is_an_error_with_both_lines() -> None:
    with pytest.raises(ConfigError) as caught:
        parse_config("catalog:\n  uri: a\n  uri: b\nindex: {}\ncatalog: {}\n", "x.yaml")
    assert caught.value.problems == (
        "x.yaml, line 3: the key catalog.uri stands already on line 2; keep one",
        "x.yaml, line 5: the key catalog stands already on line 1; keep one",
    )


def test_anchors_and_merges_work_and_a_cycle_does_not_hang() -> None:
    file = parse_config("a: &a {x: 1}\nb: {<<: *a, y: 2}\n", "x.yaml")
    assert file.data["b"] == {"x": 1, "y": 2}
    assert parse_config("a: &a {x: *a}\n", "x.yaml").lines == {"a": 1, "a.x": 1}


def test_dates_stay_text_and_an_empty_file_is_an_empty_mapping() -> None:
    assert parse_config("day: 2026-11-21\n", "x.yaml").data == {"day": "2026-11-21"}
    assert parse_config("# nothing\n", "x.yaml").data == {}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- a\n- b\n", "x.yaml, line 1: expected a mapping of sections such as catalog:, found a list"),
        ("a: [1, 2\n", "x.yaml: is not valid YAML: line 2, column 1"),
        ("a: b: c\n", "x.yaml: is not valid YAML: line 1, column 5: mapping values are not allowed here"),
        ("a: !!python/object:os.system {}\n", "x.yaml: is not valid YAML: line 1"),
    ],
)
def test_what_is_no_mapping_is_told_with_its_place(text: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_config(text, "x.yaml")
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize("name", ["minilm", "minilm.yaml", "run_configs/minilm.yaml"])
def test_shipped_configs_are_found_by_name_from_anywhere(name: str, work_dir: Path) -> None:
    file = read_config_file(name)
    assert file.name == "run_configs/minilm.yaml"
    assert file.data["encoder"]["model"] == "bibert"


def test_a_file_of_ones_own_wins(work_dir: Path) -> None:
    (work_dir / "minilm.yaml").write_text("mine: 1\n")
    assert read_config_file("minilm.yaml").data == {"mine": 1}


def test_a_missing_file_is_told_with_the_nearest_shipped_name(work_dir: Path) -> None:
    with pytest.raises(ConfigError, match=r"config minilmm.yaml: expected a YAML file .* Did you mean 'minilm'\?"):
        read_config_file("minilmm.yaml")
    with pytest.raises(ConfigError, match="found a folder"):
        read_config_file(str(work_dir))


def test_bytes_that_are_no_text_are_told(work_dir: Path) -> None:
    (work_dir / "bad.yaml").write_bytes(b"a: \xff\xfe\n")
    with pytest.raises(ConfigError, match=r"config bad.yaml: cannot be read as UTF-8 text"):
        read_config_file("bad.yaml")
