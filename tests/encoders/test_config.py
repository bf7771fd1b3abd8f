from __future__ import annotations

import pickle
from dataclasses import replace

import pytest
from pydantic import TypeAdapter, ValidationError

from encoders import EncoderConfig, EncoderConfigError, FusionSpec, TowerSpec

BERT = TowerSpec(library="transformers", checkpoint="some/bert")
CLIP = TowerSpec(library="open_clip", checkpoint="ViT-B-32/laion2b_s34b_b79k")


def test_config_from_yaml_values():
    values = {
        "model": "4tmm",
        "text_tower": {"library": "transformers", "checkpoint": "some/bert", "pooling": "cls", "max_tokens": 32},
        "clip_tower": {"library": "open_clip", "checkpoint": "hf-hub:org/clip"},
        "fusion": {"method": "alpha", "alpha": 0.3},
    }
    config = TypeAdapter(EncoderConfig).validate_python(values)
    assert config.text_tower == TowerSpec(library="transformers", checkpoint="some/bert", pooling="cls", max_tokens=32)
    assert config.fusion.alpha == 0.3
    assert pickle.loads(pickle.dumps(config)) == config


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({}, ["encoder.uri", "encoder.model", "neither"]),
        ({"uri": "x", "model": "clip", "clip_tower": CLIP}, ["both"]),
        ({"uri": "x", "text_tower": BERT}, ["remove"]),
        ({"model": "bibert"}, ["encoder.text_tower", "missing"]),
        ({"model": "bibert", "text_tower": CLIP}, ["library", "transformers"]),
        ({"model": "clip", "clip_tower": CLIP, "text_tower": BERT}, ["encoder.text_tower", "remove"]),
        ({"model": "3tmm", "text_tower": BERT, "clip_tower": CLIP}, ["encoder.fusion.method", "none", "mlp"]),
        ({"model": "bibert", "text_tower": BERT, "fusion": FusionSpec(method="mlp")}, ["encoder.fusion.method"]),
        ({"model": "match9"}, ["encoder.model", "match9"]),
        ({"model": "match4", "clip_tower": CLIP, "fusion": FusionSpec(method="sum")}, ["encoder.text_tower"]),
        (
            {"model": "match3", "clip_tower": CLIP, "text_tower": BERT, "fusion": FusionSpec(method="mlp")},
            ["encoder.fusion.method", "sum"],
        ),
        (
            {"model": "3tmm", "clip_tower": CLIP, "text_tower": BERT, "fusion": FusionSpec(method="mlp", dim=8)},
            ["encoder.fusion.dim", "match3", "remove"],
        ),
        (
            {
                "model": "3tmm",
                "clip_tower": CLIP,
                "text_tower": BERT,
                "fusion": FusionSpec(method="mlp", image_hidden=8),
            },
            ["encoder.fusion.image_hidden", "match4", "remove"],
        ),
        ({"uri": "x", "device": "gpu"}, ["encoder.device", "gpu", "cuda:N"]),
        ({"uri": "x", "device": "cpu:1"}, ["encoder.device"]),
        ({"uri": "x", "precision": "int4"}, ["encoder.precision", "int4", "bfloat16"]),
        ({"model": "bibert", "text_tower": replace(BERT, image_size=8)}, ["encoder.text_tower", "image_size"]),
        ({"uri": "x", "batch_size": 0}, ["encoder.batch_size", "0"]),
        ({"uri": "x", "image_weight": 1.5}, ["encoder.image_weight", "1.5"]),
    ],
)
def test_impossible_configs_name_key_and_value(arguments, words):
    with pytest.raises(EncoderConfigError) as error:
        EncoderConfig(**arguments)
    assert all(word in str(error.value) for word in words), error.value


def test_validation_through_pydantic_keeps_the_message():
    with pytest.raises(ValidationError, match=r"fusion.alpha is 1.5"):
        TypeAdapter(EncoderConfig).validate_python({"uri": "x", "fusion": {"alpha": 1.5}})


@pytest.mark.parametrize(
    "arguments", [{"checkpoint": ""}, {"checkpoint": "x", "max_tokens": 2}, {"checkpoint": "x", "pooling": "max"}]
)
def test_impossible_towers(arguments):
    with pytest.raises(EncoderConfigError):
        TowerSpec(library="transformers", **arguments)
