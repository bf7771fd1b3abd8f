from __future__ import annotations

import json
from dataclasses import replace

import pytest

from pipelines.catalog.config import CatalogConfig
from pipelines.config.job import WorkConfig
from pipelines.config.validation import ConfigError
from pipelines.evaluation.config import EvaluateJob, EvaluationConfig, expand_systems


@pytest.fixture
def things(tmp_path):
    """A saved encoder, an index and a job's config, as far as their names tell."""
    (tmp_path / "encoder").mkdir()
    (tmp_path / "encoder" / "encoder.json").write_text("{}")
    (tmp_path / "index").mkdir()
    (tmp_path / "index" / "CURRENT").write_text("x\n")
    (tmp_path / "job.yaml").write_text("encoder:\n  uri: somewhere\n  batch_size: 8\n")
    (tmp_path / "without.yaml").write_text("catalog:\n  uri: somewhere\n")
    return tmp_path


def systems(*arguments: str):
    option, value = expand_systems(["--systems", *arguments])
    assert option == "--systems"
    return json.loads(value)


def test_each_kind_is_told_by_what_lies_there(things):
    version = "20261120T031500Z-54ecf43a0d36"
    given = systems(
        f"job={things}/job.yaml",
        f"saved={things}/encoder",
        f"seeds={things}/encoder,package://encoders/pretrained/demo",
        f"live={things}/index",
        f"old={things}/index@{version}",
        "shipped=minilm",
    )
    assert given[:5] == [
        {"name": "job", "encoder": {"uri": "somewhere", "batch_size": 8}},
        {"name": "saved", "encoder": {"uri": f"{things}/encoder"}},
        {"name": "seeds", "encoders": [{"uri": f"{things}/encoder"}, {"uri": "package://encoders/pretrained/demo"}]},
        {"name": "live", "index": f"{things}/index"},
        {"name": "old", "index": f"{things}/index", "version": version},
    ]
    assert given[5]["encoder"]["model"] == "bibert"


def test_other_arguments_stay_where_they_are(things):
    arguments = ["--config", "x", "--systems", f"a={things}/index", "--baseline", "a", "--print-config"]
    given = expand_systems(arguments)
    assert given[:3] == ["--config", "x", "--systems"]
    assert given[4:] == ["--baseline", "a", "--print-config"]
    assert expand_systems(["--systems", "[{name: a}]"]) == ["--systems", "[{name: a}]"]
    assert expand_systems([f"--systems=a={things}/index"])[0] == "--systems"


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("encoder", "expected NAME=WHAT"),
        ("=encoder", "expected NAME=WHAT"),
        ("a=", "expected NAME=WHAT"),
        ("a={things}/nothing", "neither a saved encoder"),
        ("a={things}/nothing.yaml", r"nothing\.yaml"),
        ("a={things}/without.yaml", "no section encoder"),
        ("a={things}/encoder,{things}/index", "an index among several"),
    ],
)
def test_what_names_nothing_is_explained(things, argument, message):
    with pytest.raises(ConfigError, match=message):
        systems(argument.format(things=things))


def test_vectors_are_kept_below_a_work_folder_that_can_be_written(tmp_path):
    (tmp_path / "file").write_text("no folder")
    kept = {
        f"{tmp_path}/work": f"{tmp_path}/work/vectors",
        f"file://{tmp_path}/work": f"{tmp_path}/work/vectors",
        f"{tmp_path}/file/work": None,
        "s3://shop/work": None,
    }
    for uri, folder in kept.items():
        job = EvaluateJob(catalog=CatalogConfig(uri="shop"), work=WorkConfig(uri=uri))
        assert job.vectors == folder
        named = replace(job, evaluation=EvaluationConfig(vectors="mine"))
        assert named.vectors == "mine"
