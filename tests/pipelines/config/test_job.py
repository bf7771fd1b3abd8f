from __future__ import annotations

import pytest

from pipelines.config.job import GatesConfig, JobConfig, WorkConfig, to_yaml
from pipelines.config.validation import build_config, list_keys
from pipelines.config.yaml_files import parse_config, read_config_file

SHIPPED = (
    *("demo", "minilm", "clip_vit_b32", "4tmm_dfn5b", "marqo_ecommerce_b", "fashion_siglip", "siglip2_b16"),
    *("flink", "spark", "dataflow_gpu"),
)


def load(name: str) -> JobConfig:
    return build_config(JobConfig, read_config_file(name).data, origins={})


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_configs_are_valid(name: str) -> None:
    assert isinstance(load(name), JobConfig)


@pytest.mark.parametrize("name", SHIPPED)
def test_printed_configs_read_back_equal(name: str) -> None:
    config = load(name)
    assert build_config(JobConfig, parse_config(to_yaml(config), "printed").data, origins={}) == config


def test_the_demo_asks_for_every_stage_in_small() -> None:
    config = load("demo")
    assert config.catalog.uri == "demo://3000"
    assert config.index.serving_shards == 2
    assert config.index.rows_per_add < 3000
    assert "IVF" in config.index.factory
    assert "PQ" in config.index.factory
    assert config.work.uri == "shelfmark-demo/work"
    assert config.index.uri == "shelfmark-demo/index"


def test_the_contracts_keys_are_there() -> None:
    names = {key.name for key in list_keys(JobConfig)}
    assert names >= {
        "catalog.uri", "catalog.id_field", "catalog.text_fields", "catalog.image_field", "catalog.image_root",
        "catalog.on_bad_image", "catalog.display_fields", "catalog.filter_fields", "encoder.uri", "encoder.batch_size",
        "encoder.device", "encoder.precision", "work.uri", "index.uri", "index.factory", "index.bytes_per_vector",
        "index.target_recall", "index.serving_shards", "gates.min_recall", "gates.max_rejected_share",
        "gates.max_degraded_share", "gates.max_row_change", "gates.min_precision_cosine", "beam",
    }  # fmt: skip


def test_every_key_has_a_line_of_help() -> None:
    without = [key.name for key in list_keys(JobConfig) if not key.help]
    assert not without, f"no entry under Attributes: in the docstring of the section's class: {without}"


@pytest.mark.parametrize(
    "values",
    [
        {"min_recall": 1.2},
        {"min_recall": -0.1},
        {"max_rejected_share": 5.0},
        {"max_degraded_share": 2.0},
        {"max_row_change": -1.0},
    ],
)
def test_gates_outside_their_range_are_refused(values: dict[str, float]) -> None:
    (key,) = values
    with pytest.raises(ValueError, match=rf"^{key} is {values[key]}: expected a number"):
        GatesConfig(**values)


def test_a_config_without_gates_has_safe_ones_and_they_may_be_left_open() -> None:
    assert GatesConfig() == GatesConfig(
        min_recall=0.05, max_rejected_share=0.05, max_degraded_share=0.1, max_row_change=0.3
    )
    left_open = GatesConfig(min_recall=None, max_degraded_share=None, max_row_change=None)
    assert left_open.max_row_change is None
    assert GatesConfig(max_row_change=3.0).max_row_change == 3.0


def test_work_needs_a_folder() -> None:
    with pytest.raises(ValueError, match=r"^uri is ' ': expected a folder"):
        WorkConfig(uri=" ")
