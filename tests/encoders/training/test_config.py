from __future__ import annotations

import pytest

from encoders.errors import EncoderConfigError
from encoders.training.config import (
    LossWeights,
    PairsConfig,
    PartRates,
    SmallEncoderConfig,
    TrainingConfig,
    check_together,
)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({}, "data.uri is None"),
        ({"uri": ""}, "data.uri is ''"),
        ({"uri": "x", "query_field": None}, "both null"),
        ({"queries": "titles", "negatives_field": "seen"}, "data.negatives_field is 'seen'"),
        ({"uri": "x", "queries": "words"}, "expected pairs or titles"),
        ({"uri": "x", "max_pairs": 1}, "expected 2 or more"),
        ({"uri": "x", "text_fields": (), "image_field": None}, "text_fields is empty"),
        ({"queries": "titles", "label_field": "label"}, "data.label_field is 'label'"),
        (
            {"uri": "x", "teacher_uri": "y", "query_field": None, "query_image_field": "photo"},
            "data.teacher_uri is 'y'",
        ),
    ],
)
def test_impossible_data(values, words):
    with pytest.raises(EncoderConfigError, match=words):
        PairsConfig(**values)


@pytest.mark.parametrize(
    "values",
    [
        {"text_width": 130, "text_heads": 4},
        {"image_size": 60, "image_layers": (2,), "image_width": 64},
        {"image_layers": (2,), "image_width": 100},
        {"image_size": 48},
        {"image_layers": (1, 1)},
        {"vocabulary": 100},
    ],
)
def test_shapes_that_cannot_be(values):
    with pytest.raises(EncoderConfigError, match="expected"):
        SmallEncoderConfig(**values)


def test_models_and_fusions_that_do_not_fit():
    with pytest.raises(EncoderConfigError, match="a clip has no BERT towers"):
        SmallEncoderConfig(model="clip", text_from="bibert")
    with pytest.raises(EncoderConfigError, match=r"small.fusion is 'concat': small.model 3tmm expects mlp"):
        SmallEncoderConfig(fusion="concat")
    with pytest.raises(EncoderConfigError, match=r"small.model is 'bert'"):
        SmallEncoderConfig(model="bert")


@pytest.mark.parametrize(
    ("values", "word"),
    [
        ({"epochs": -1}, "epochs"),
        ({"temperature": 0}, "temperature"),
        ({"tuned": ()}, "tuned"),
        ({"warmup_share": 1}, "warmup"),
    ],
)
def test_impossible_settings(values, word):
    with pytest.raises(EncoderConfigError, match=word):
        TrainingConfig(**values)


def test_rates_and_parts_that_do_not_fit():
    with pytest.raises(
        EncoderConfigError, match=r"training.rates.bert is 0.1, but training.tuned is \['fusion'\]: add"
    ):
        TrainingConfig(tuned=("fusion",), rates=PartRates(bert=0.1))
    with pytest.raises(EncoderConfigError, match="expected some of bert, projection, clip_image, clip_text, fusion"):
        TrainingConfig(tuned=("towers",))
    with pytest.raises(EncoderConfigError, match=r"rates.fusion is 0: expected a positive number"):
        PartRates(fusion=0)
    with pytest.raises(EncoderConfigError, match=r"training.losses.photo_text is -1"):
        LossWeights(photo_text=-1)
    with pytest.raises(EncoderConfigError, match="temperature_range"):
        TrainingConfig(temperature=0.001, learn_temperature=True)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"drop_image": 0.6, "drop_text": 0.5}, "sum of 1 at most"),
        ({"drop_text": -0.1}, "training.drop_text -0.1"),
        ({"matryoshka": (64, 32)}, r"training.matryoshka is \[64, 32\]"),
        ({"matryoshka": (0, 32)}, "each larger"),
        ({"label_weights": {"E": -1.0}}, "weights of 0 or more"),
        ({"label_weights": {"E": 0.0}}, "one above 0"),
        ({"teacher_scale": 0.0}, "training.teacher_scale is 0.0"),
        ({"mine_negatives": 0}, "training.mine_negatives is 0"),
        ({"negatives": "mine"}, "expected batch or own"),
    ],
)
def test_impossible_negatives_and_weights(values, words):
    with pytest.raises(EncoderConfigError, match=words):
        TrainingConfig(**values)


@pytest.mark.parametrize(
    ("data", "training", "words"),
    [
        ({"label_field": "label"}, {}, "expected both"),
        ({}, {"label_weights": {"E": 1.0}}, "data.label_field is None"),
        ({"query_field": None, "query_image_field": "photo"}, {"mine_from": "index"}, "it searches query texts"),
    ],
)
def test_sections_that_do_not_fit_together(data, training, words):
    with pytest.raises(EncoderConfigError, match=words):
        check_together(PairsConfig(uri="x", **data), TrainingConfig(**training))
