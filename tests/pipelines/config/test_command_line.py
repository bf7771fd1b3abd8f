from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from apache_beam.options.pipeline_options import DirectOptions

from pipelines.config.command_line import load_job_config
from pipelines.config.errors import ConfigError

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


def problems_of(*argv: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load_job_config(argv)
    return list(caught.value.problems)


def test_without_arguments_it_is_the_demo() -> None:
    parsed = load_job_config([])
    assert parsed.config.catalog.uri == "demo://3000"
    assert (parsed.full, parsed.plan, parsed.beam_args) == (False, False, [])


def test_a_catalog_of_ones_own_in_one_line(work_dir: Path) -> None:
    parsed = load_job_config(
        ["--catalog.uri", "../my/catalog", "--catalog.text_fields", "[title, brand]", "--catalog.image_field=null",
         "--index.uri=out", "--full", "--plan", "--runner=DirectRunner", "--direct_num_workers", "2"]
    )  # fmt: skip
    assert parsed.config.catalog.uri == "../my/catalog"
    assert parsed.config.catalog.text_fields == ("title", "brand")
    assert parsed.config.catalog.image_field is None
    assert (parsed.full, parsed.plan) == (True, True)
    assert parsed.beam_args == ["--runner=DirectRunner", "--direct_num_workers", "2"]
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
    assert problems_of("--print-config", "--runer=DirectRunner") == [
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
    ("argv", "told"),
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
def test_mistakes_are_told_in_one_sentence_with_their_place(argv: list[str], told: str) -> None:
    (problem,) = problems_of(*argv)
    assert problem.startswith(told)


def test_mistakes_of_every_kind_are_told_at_once(work_dir: Path) -> None:
    (work_dir / "own.yaml").write_text(OWN.replace("direct_num_workers", "direct_workers"))
    told = problems_of("--config", "own.yaml", "--index.k=ten", "--catalog.urii", "x", "--runer=DirectRunner")
    assert told == [
        "command line: unknown option --catalog.urii. Did you mean '--catalog.uri'?",
        "beam: section: unknown option direct_workers. Did you mean 'direct_num_workers'?",
        "command line: unknown option --runer. Did you mean '--runner'?",
        'command line: index.k: expected a whole number, found "ten" (text)',
    ]


def test_mistakes_in_a_file_are_told_together_with_their_lines(work_dir: Path) -> None:
    (work_dir / "own.yaml").write_text(OWN.replace("  uri: work", "  url: work").replace("uri: index", "uri: 7"))
    assert problems_of("--config", "own.yaml") == [
        "own.yaml, line 6: unknown key work.url. Did you mean 'work.uri'?",
        "work.uri: missing; expected text; set it in the YAML or with --work.uri",
        "own.yaml, line 8: index.uri: expected text, found 7 (a number)",
    ]
