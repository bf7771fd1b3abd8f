from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from apache_beam.options.pipeline_options import DirectOptions, StandardOptions

from encoders.errors import CheckpointError, EncoderError
from index_builder.errors import StorageError
from pipelines.catalog.config import CatalogError
from pipelines.config import ConfigError, run_command
from pipelines.config.command_line import ParsedCommand, load_job_config, parse_arguments
from pipelines.config.yaml_files import parse_config, read_config_file
from tests.pipelines.config.sections import Tower, Tree


@pytest.fixture(autouse=True)
def _default_file(work_dir: Path) -> None:
    Path("tree.yaml").write_text("source:\n  uri: a.csv\n  share: 0.25\noutput: {uri: out, shards: 3}\n")


def parse(*argv: str, **options: Any) -> ParsedCommand[Tree]:
    return parse_arguments(argv, Tree, default_config="tree.yaml", description="Tests.", prog="tests", **options)


def problems_of(*argv: str, **options: Any) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        parse(*argv, **options)
    return list(caught.value.problems)


def test_the_file_alone() -> None:
    config = parse().config
    assert (config.source.uri, config.source.share, config.output.shards) == ("a.csv", 0.25, 3)


def test_a_key_is_text_whatever_yaml_takes_it_for() -> None:
    config = parse_config("on: [held]\noff: {yes: true}\n", "job.yaml")
    assert config.data == {"on": ["held"], "off": {"yes": True}}
    assert set(config.lines) == {"on", "off", "off.yes"}


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


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("title", ("title",)),
        ("[title, brand]", ("title", "brand")),
        ("'title'", ("title",)),
        ("2026", ("2026",)),
        ("yes", ("yes",)),
        ("[]", ()),
    ],
)
def test_a_bare_word_is_a_list_of_one(given: str, meant: tuple[str, ...]) -> None:
    assert parse("--source.fields", given).config.source.fields == meant


def test_a_list_that_is_no_yaml_is_told() -> None:
    (problem,) = problems_of("--source.fields", "[title")
    assert problem.startswith("command line: source.fields: expected a list of text as YAML, found '[title'")
    assert problems_of("--source.fields", "null") == [
        "command line: source.fields: expected a list of text, found null"
    ]


@pytest.mark.parametrize("given", [r"\t", r"'\t'", '"\\t"', "\t"])
def test_a_tab_may_be_typed_as_backslash_t(given: str, work_dir: Path) -> None:
    assert load_job_config([f"--catalog.csv_delimiter={given}"]).config.catalog.csv_delimiter == "\t"
    if given != "\t":
        text = OWN.replace(
            "  uri: products.csv", f"  uri: products.csv\n  csv_delimiter: {given}\n  text_fields: brand"
        )
        (work_dir / "own.yaml").write_text(text)
        catalog = load_job_config(["--config", "own.yaml"]).config.catalog
        assert (catalog.csv_delimiter, catalog.text_fields) == ("\t", ("brand",))


def test_a_leading_tab_before_a_value_is_no_mistake() -> None:
    assert parse("--output.shards", "\t5").config.output.shards == 5


def test_a_second_name_of_a_key_takes_words() -> None:
    def add_options(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--fields", dest="key.source.fields", nargs="+")
        parser.add_argument("--share", dest="key.source.share")

    source = parse("--fields", "a", "b", "--share", "0.1", add_options=add_options).config.source
    assert (source.fields, source.share) == (("a", "b"), 0.1)


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


def test_what_is_no_key_goes_to_beam_but_for_dotted_options() -> None:
    parsed = parse("--runner=Direct", "--temp_location", "gs://a.b/c", "--output.shards=2", with_beam=True)
    given = parsed.pipeline_options.get_all_options()
    assert (given["runner"], given["temp_location"], parsed.config.output.shards) == ("DirectRunner", "gs://a.b/c", 2)
    assert problems_of("--outptu.uri", "x", "--nonsense", "--output.shards", "y", with_beam=True) == [
        "command line: unknown option --outptu.uri. Did you mean '--output.uri'?",
        "command line: unknown option --nonsense. Did you mean '--zone'?",  # one of Beam's
        'command line: output.shards: expected a whole number, found "y" (text)',
    ]


def test_problems_of_command_line_and_file_come_together() -> None:
    Path("tree.yaml").write_text("source:\n  uri: a\n  share: half\noutput: {uri: o}\n")
    problems = problems_of("--output.shards", "many", "--output.overwrite", "[1", "--nonsense")
    assert [problem.partition(":")[0] for problem in problems] == [
        "command line",
        "command line",
        "tree.yaml, line 3",
        "command line",
    ]
    assert problems[-1] == 'command line: output.shards: expected a whole number, found "many" (text)'


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


def test_twice_on_one_line_is_twice() -> None:
    with pytest.raises(ConfigError, match="the key a stands already on line 1"):
        parse_config("{a: 1, a: 2}", "x.yaml")


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


OWN = """\
catalog:
  uri: products.csv
encoder:
  uri: package://encoders/pretrained/demo
work:
  uri: work
index:
  uri: index
beam:
  direct_num_workers: 2
"""


def job_problems(*argv: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load_job_config(argv)
    return list(caught.value.problems)


def test_without_arguments_it_is_the_demo() -> None:
    parsed = load_job_config([])
    assert parsed.config.catalog.uri == "demo://3000"
    assert (parsed.flags.full, parsed.flags.plan) == (False, False)


def test_a_catalog_of_ones_own_in_one_line(work_dir: Path) -> None:
    parsed = load_job_config(
        ["--catalog.uri", "../my/catalog", "--catalog.text_fields", "[title, brand]", "--catalog.image_field=null",
         "--index.uri=out", "--full", "--plan", "--runner=DirectRunner", "--direct_num_workers", "2"]
    )  # fmt: skip
    assert parsed.config.catalog.uri == "../my/catalog"
    assert parsed.config.catalog.text_fields == ("title", "brand")
    assert parsed.config.catalog.image_field is None
    assert (parsed.flags.full, parsed.flags.plan) == (True, True)
    assert parsed.pipeline_options.view_as(StandardOptions).runner == "DirectRunner"
    assert parsed.pipeline_options.view_as(DirectOptions).direct_num_workers == 2


def test_a_file_of_ones_own_stands_alone_and_its_beam_section_counts(work_dir: Path) -> None:
    (work_dir / "own.yaml").write_text(OWN)
    parsed = load_job_config(["--config", "own.yaml"])
    assert parsed.config.index.serving_shards == 1  # the class's default, not the demo's
    assert parsed.pipeline_options.view_as(DirectOptions).direct_num_workers == 2
    overridden = load_job_config(["--config", "own.yaml", "--beam.direct_num_workers", "3"])
    assert overridden.config.beam == {"direct_num_workers": 3}
    assert overridden.pipeline_options.view_as(DirectOptions).direct_num_workers == 3


def test_another_encoder_in_place_of_the_demos() -> None:
    parsed = load_job_config(
        ["--encoder.uri", "null", "--encoder.model", "bibert", "--encoder.text_tower.library", "transformers",
         "--encoder.text_tower.checkpoint", "somewhere"]
    )  # fmt: skip
    assert parsed.config.encoder.model == "bibert"
    assert parsed.config.encoder.text_tower is not None
    assert parsed.config.encoder.text_tower.checkpoint == "somewhere"


def test_the_login_of_a_database_is_not_printed(capsys: pytest.CaptureFixture[str]) -> None:
    address = "postgresql+psycopg://shop:S3cret@db.shop.test/shop"
    given = ["--catalog.uri", address, "--catalog.query", "SELECT 1"]
    config = load_job_config(given).config
    assert config.catalog.uri == address
    assert "S3cret" not in repr(config)
    with pytest.raises(SystemExit):
        load_job_config([*given, "--print-config"])
    printed = capsys.readouterr().out
    assert yaml.safe_load(printed)["catalog"]["uri"] == "postgresql+psycopg://***@db.shop.test/shop"
    assert "S3cret" not in printed
    problems = [
        *job_problems("--catalog.uri", address, "--catalog.query", "SELECT 1", "--catalog.format", "csv"),
        *job_problems("--catalog.uri", address, "--catalog.query", "SELECT 1", "--catalog.id_field", ""),
    ]
    assert "S3cret" not in " ".join(problems)


def test_several_addresses_are_printed_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        load_job_config(["--catalog.uri", "[/data/a@b.csv, 's3://bucket/c.csv']", "--print-config"])
    assert yaml.safe_load(capsys.readouterr().out)["catalog"]["uri"] == ["/data/a@b.csv", "s3://bucket/c.csv"]


def test_the_login_of_a_proxy_is_for_the_workers_only(capsys: pytest.CaptureFixture[str]) -> None:
    proxy = ["--fetch.proxy", "http://user:S3cret@proxy.shop.test:3128"]
    assert load_job_config(proxy).config.fetch.proxy == proxy[1]
    with pytest.raises(SystemExit):
        load_job_config([*proxy, "--print-config"])
    printed = capsys.readouterr().out
    assert yaml.safe_load(printed)["fetch"]["proxy"] == "http://***@proxy.shop.test:3128"
    Path("list.yaml").write_text(f"fetch: {{proxy: [{proxy[1]}]}}")
    Path("section.yaml").write_text(f"fetch: {proxy[1]}")
    wrong = [
        *job_problems("--fetch.proxy", "user:S3cret@proxy.shop.test:3128"),
        *job_problems("--fetch.proxy=", proxy[1]),
        *job_problems("--config", "list.yaml"),
        *job_problems("--config", "section.yaml"),
    ]
    assert "command line: fetch.proxy: expected an address such as" in wrong[0]
    assert not [problem for problem in wrong if "S3cret" in problem]


def test_print_config_prints_all_of_it_and_stops(capsys: pytest.CaptureFixture[str], work_dir: Path) -> None:
    with pytest.raises(SystemExit) as caught:
        load_job_config(["--print-config", "--index.k", "20"])
    assert caught.value.code == 0
    printed = capsys.readouterr().out
    data = yaml.safe_load(printed)
    assert data["index"]["k"] == 20
    assert data["catalog"]["shard_bytes"] == 64 << 20  # a default that no file names
    (work_dir / "printed.yaml").write_text(printed)
    expected = load_job_config(["--index.k", "20"]).config
    assert load_job_config(["--config", "printed.yaml"]).config == expected


def test_print_config_does_not_hide_a_mistake() -> None:
    assert job_problems("--print-config", "--runer=DirectRunner") == [
        "command line: unknown option --runer. Did you mean '--runner'?"
    ]


def test_help_names_every_key(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        load_job_config(["--help"])
    printed = capsys.readouterr().out
    assert "--catalog.uri" in printed
    assert "--encoder.text_tower.checkpoint" in printed
    assert "Apache Beam" in printed


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--catalog.urii", "x"], "command line: unknown option --catalog.urii. Did you mean '--catalog.uri'?"),
        (["--confg", "x"], "command line: unknown option --confg. Did you mean '--config'?"),
        (
            ["--direct_num_worker", "2"],
            "command line: unknown option --direct_num_worker. Did you mean '--direct_num_workers'?",
        ),
        (["--index.k", "ten"], 'command line: index.k: expected a whole number, found "ten" (text)'),
        (["--encoder.batch_size", "0"], "command line: encoder.batch_size"),
        (["--catalog.on_bad_image", "ignore"], "command line: catalog.on_bad_image: expected one of degrade, reject"),
        (["--encoder.uri", "null"], "command line: encoder.uri and encoder.model: found neither"),
        (["--gates.min_recall", "2"], "command line: gates.min_recall is 2.0: expected a number from 0 to 1"),
    ],
)
def test_mistakes_are_told_in_one_sentence_with_their_place(argv: list[str], message: str) -> None:
    (problem,) = job_problems(*argv)
    assert problem.startswith(message)


def test_mistakes_of_every_kind_are_told_at_once(work_dir: Path) -> None:
    (work_dir / "own.yaml").write_text(OWN.replace("direct_num_workers", "direct_workers"))
    problems = job_problems("--config", "own.yaml", "--index.k=ten", "--catalog.urii", "x", "--runer=DirectRunner")
    assert problems == [
        "command line: unknown option --catalog.urii. Did you mean '--catalog.uri'?",
        "beam: section: unknown option direct_workers. Did you mean 'direct_num_workers'?",
        "command line: unknown option --runer. Did you mean '--runner'?",
        'command line: index.k: expected a whole number, found "ten" (text)',
    ]


def test_mistakes_in_a_file_are_told_together_with_their_lines(work_dir: Path) -> None:
    (work_dir / "own.yaml").write_text(OWN.replace("  uri: work", "  url: work").replace("uri: index", "uri: 7"))
    assert job_problems("--config", "own.yaml") == [
        "own.yaml, line 6: unknown key work.url. Did you mean 'work.uri'?",
        "work.uri: missing; expected text; set it in the YAML or with --work.uri",
        "own.yaml, line 8: index.uri: expected text, found 7 (a number)",
    ]


def test_the_commands_own_exit_code_passes() -> None:
    assert run_command(lambda argv: 3 if list(argv) == ["x"] else None, ["x"]) == 3
    assert run_command(lambda argv: None, []) == 0


@pytest.mark.parametrize("kind", [ConfigError, CatalogError, EncoderError, CheckpointError, StorageError])
def test_errors_raised_on_purpose_are_one_message_and_exit_code_2(
    kind: type[Exception], capsys: pytest.CaptureFixture[str]
) -> None:
    def main(argv: Sequence[str]) -> int:
        raise kind("what is wrong")

    assert run_command(main, []) == 2
    captured = capsys.readouterr()
    assert captured.err == "error: what is wrong\n"
    assert captured.out == ""


def test_help_and_print_config_end_with_their_code() -> None:
    def main(argv: Sequence[str]) -> int:
        raise SystemExit(int(argv[0]))

    assert run_command(main, ["0"]) == 0
    assert run_command(main, ["2"]) == 2


def test_a_bug_keeps_its_traceback() -> None:
    def main(argv: Sequence[str]) -> int:
        raise KeyError("bug")

    with pytest.raises(KeyError):
        run_command(main, [])


def test_an_interrupt_is_no_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    def main(argv: Sequence[str]) -> int:
        raise KeyboardInterrupt

    assert run_command(main, []) == 130
    assert capsys.readouterr().err.startswith("interrupted")


def test_a_character_that_yaml_does_not_know_is_one_clear_error():
    with pytest.raises(ConfigError, match=r"job.yaml: is not valid YAML: .*#x0000"):
        parse_config("a: \0\n", "job.yaml")


@pytest.mark.parametrize(
    "key",
    ["work.uri", "index.uri", "catalog.uri", "catalog.image_root", "encoder.uri", "index.queries_uri", "config"],
)
@pytest.mark.parametrize("text", ["", " "])
def test_an_empty_address_is_named(key: str, text: str) -> None:
    """As `--index.uri "$INDEX"` gives it where the variable is not set."""
    with pytest.raises(ConfigError, match=rf"^command line: .*{re.escape(key)}.*expected"):
        load_job_config([f"--{key}", text])


BOMB = "a0: &a0 [" + ", ".join(["x"] * 9) + "]\n"
BOMB += "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 10))


@pytest.mark.parametrize("text", [BOMB, BOMB.replace("[", "{k: [").replace("]", "]}"), "a: " + "[" * 1500 + "]" * 1500])
def test_a_few_lines_that_stand_for_gigabytes_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=r"bomb\.yaml: is not valid YAML: .*(aliases are written out|recursion)"):
        parse_config(text, "bomb.yaml")


def test_so_is_a_value_on_the_command_line() -> None:
    value = BOMB.replace("\n", ", ").rstrip(", ")
    with pytest.raises(ConfigError, match="aliases are written out"):
        load_job_config(["--catalog.uri", "x", "--catalog.column_types", f"{{{value}}}"])
