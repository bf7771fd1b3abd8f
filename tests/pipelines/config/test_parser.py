from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from pipelines.config.errors import ConfigError
from pipelines.config.parser import ParsedArguments, parse_arguments
from tests.pipelines.config.sections import Tower, Tree


@pytest.fixture(autouse=True)
def _default_file(work_dir: Path) -> None:
    Path("tree.yaml").write_text("source:\n  uri: a.csv\n  share: 0.25\noutput: {uri: out, shards: 3}\n")


def parse(*argv: str, **options: Any) -> ParsedArguments[Tree]:
    return parse_arguments(argv, Tree, default_config="tree.yaml", description="Tests.", prog="tests", **options)


def problems_of(*argv: str, **options: Any) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        parse(*argv, **options)
    return list(caught.value.problems)


def test_the_file_alone() -> None:
    config = parse().config
    assert (config.source.uri, config.source.share, config.output.shards) == ("a.csv", 0.25, 3)


def test_a_key_on_the_command_line_wins_over_the_file_both_spellings() -> None:
    config = parse("--output.shards=5", "--source.share", "1", "--output.overwrite", "true").config
    assert (config.output.shards, config.source.share, config.output.overwrite) == (5, 1.0, True)
    assert parse("--output.shards=5", "--output.shards=6").config.output.shards == 6


def test_values_are_yaml() -> None:
    config = parse("--source.fields", "[title, brand]", "--source.uri", "[a, b]", "--extra", "{n: [1]}").config
    assert config.source.fields == ("title", "brand")
    assert config.source.uri == ("a", "b")
    assert config.extra == {"n": [1]}


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("*.parquet", "*.parquet"),
        ("{title}. {brand}", "{title}. {brand}"),
        ("{title}", "{title}"),
        ("a #b", "a #b"),
        ("2026", "2026"),
        ("yes", "yes"),
        ("s3://bucket/x: y", "s3://bucket/x: y"),
        ("'quoted'", "quoted"),
        ('"it\'s"', "it's"),
        ("'open", "'open"),
        ("", ""),
        ("null", None),
        ("~", None),
    ],
)
def test_text_is_taken_as_it_stands(given: str, meant: str | None) -> None:
    assert parse("--output.template", given).config.output.template == meant


def test_null_is_text_where_null_is_no_value() -> None:
    assert parse("--output.uri", "null").config.output.uri == "null"


def test_a_part_appears_by_its_keys_and_goes_by_null() -> None:
    config = parse("--source.tower.checkpoint", "c", "--source.tower.max_tokens", "9").config
    assert config.source.tower == Tower(checkpoint="c", max_tokens=9)
    Path("tree.yaml").write_text("source: {uri: a, tower: {checkpoint: c}}\n")
    assert parse("--source.tower", "null").config.source.tower is None


def test_entries_of_a_mapping_are_keys_too() -> None:
    Path("tree.yaml").write_text("source: {uri: a}\nextra: {kept: 1, changed: 2}\n")
    config = parse("--extra.changed=3", "--extra.added", "[x]", "--extra.switched_on").config
    assert config.extra == {"kept": 1, "changed": 3, "added": ["x"], "switched_on": True}


def test_a_mistyped_key_is_an_error_with_the_nearest_one() -> None:
    assert problems_of("--source.urii", "x") == [
        "command line: unknown option --source.urii. Did you mean '--source.uri'?"
    ]
    assert problems_of("--confg", "x") == ["command line: unknown option --confg. Did you mean '--config'?"]


def test_options_are_never_abbreviated() -> None:
    assert problems_of("--output.shard", "2") == [
        "command line: unknown option --output.shard. Did you mean '--output.shards'?"
    ]


def test_a_checker_of_the_rest_keeps_it_but_for_dotted_options() -> None:
    seen: list[tuple[list[str], dict[str, Any]]] = []

    def check(rest: Sequence[str], data: Mapping[str, Any], option_names: Collection[str]) -> list[str]:
        assert "--output.shards" in option_names
        seen.append((list(rest), dict(data["output"])))
        return ["no --nonsense here"] if "--nonsense" in rest else []

    parsed = parse("--runner=Direct", "--temp", "gs://a.b/c", "--output.shards=2", check_rest=check)
    assert parsed.rest == ["--runner=Direct", "--temp", "gs://a.b/c"]
    assert seen == [(parsed.rest, {"uri": "out", "shards": 2})]
    assert problems_of("--outptu.uri", "x", "--nonsense", "--output.shards", "y", check_rest=check) == [
        "command line: unknown option --outptu.uri. Did you mean '--output.uri'?",
        "no --nonsense here",
        'command line: output.shards: expected a whole number, found "y" (text)',
    ]


def test_problems_of_command_line_and_file_come_together() -> None:
    Path("tree.yaml").write_text("source:\n  uri: a\n  share: half\noutput: {uri: o}\n")
    told = problems_of("--output.shards", "many", "--output.overwrite", "[1", "--nonsense")
    assert [problem.partition(":")[0] for problem in told] == [
        "command line",
        "command line",
        "tree.yaml, line 3",
        "command line",
    ]
    assert told[-1] == 'command line: output.shards: expected a whole number, found "many" (text)'


def test_a_value_without_its_key_and_a_key_without_its_value() -> None:
    assert problems_of("tree.yaml") == ["command line: expected options only, found 'tree.yaml'"]
    assert problems_of("--output.shards") == ["command line: argument --output.shards: expected one argument"]


def test_help_lists_every_key_on_one_line_with_its_default(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        parse("--help")
    assert caught.value.code == 0
    lines = capsys.readouterr().out.splitlines()
    (line,) = [line for line in lines if "--output.shards" in line]
    assert line.split() == ["--output.shards", "VALUE", "How", "many", "files.", "(default:", "1)"]
    (line,) = [line for line in lines if "max_tokens" in line]
    assert "(100 % of them). (default: 64)" in line
