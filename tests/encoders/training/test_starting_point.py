from __future__ import annotations

import pytest
import torch

from encoders import EncoderConfig, FusionSpec, TowerSpec, save_query_encoder
from encoders.errors import CheckpointError, EncoderConfigError
from encoders.training.small_config import SmallEncoderConfig
from encoders.training.starting_point import load_starting_point, new_small_encoder
from encoders.training.vocabulary import train_tokenizer
from tests.encoders.tiny import IMAGE_DIM, TEXT_DIM, save_tiny_bert, save_tiny_clip, save_tiny_encoder

TEXTS = ["Red striped mug for the office", "blue mug", "a red dress with stripes", "striped dress in blue"] * 5


def test_vocabulary_is_learned_from_the_texts_and_laid_out_as_berts():
    tokenizer = train_tokenizer(TEXTS, vocabulary=300)
    assert tokenizer.encode("striped MUG").tokens == ["[CLS]", "striped", "mug", "[SEP]"]
    assert [tokenizer.id_to_token(row) for row in range(5)] == ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    assert tokenizer.get_vocab_size() <= 300
    assert train_tokenizer(TEXTS, vocabulary=300).to_str() == tokenizer.to_str()


@pytest.mark.parametrize(("layers", "width"), [((1,), 32), ((1, 1, 2, 1), 2)])
def test_small_encoder_has_the_shape_asked_for(layers, width):
    small = SmallEncoderConfig(
        vocabulary=300,
        text_width=16,
        text_heads=2,
        dim=12,
        image_size=32,
        image_layers=layers,
        image_width=width,
        image_dim=8,
    )
    parts = new_small_encoder(small, TEXTS)
    architecture = parts.model.architecture
    assert (architecture.model, architecture.dim, architecture.clip.dim) == ("3tmm", 12, 8)
    assert architecture.text.config["num_hidden_layers"] == 2
    assert parts.tokenizer.max_tokens == 64
    assert parts.model.image(torch.zeros(2, 3, 32, 32, dtype=torch.uint8)).shape == (2, 8)


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


def test_towers_of_others_start_with_their_weights_and_an_untrained_fusion(tmp_path):
    towers = {
        "text_tower": TowerSpec(library="transformers", checkpoint=str(save_tiny_bert(tmp_path / "b")), max_tokens=12),
        "clip_tower": TowerSpec(library="open_clip", checkpoint=str(save_tiny_clip(tmp_path / "c"))),
    }
    parts = load_starting_point(EncoderConfig(model="3tmm", **towers, fusion=FusionSpec(method="mlp", hidden=10)))
    fusion = parts.model.product_fusion
    assert (fusion.text_dim, fusion.image_dim, fusion.dim) == (TEXT_DIM, IMAGE_DIM, TEXT_DIM)
    assert parts.model.clip_text is None


def test_a_saved_encoder_goes_on_from_where_it_was(tmp_path):
    config = save_tiny_encoder(tmp_path / "e")
    one, two = load_starting_point(config).model.weights(), load_starting_point(config).model.weights()
    assert all(torch.equal(one[name], two[name]) for name in one)
    save_query_encoder(config, str(tmp_path / "q"))
    with pytest.raises(CheckpointError, match="query side only"):
        load_starting_point(EncoderConfig(uri=str(tmp_path / "q")))
