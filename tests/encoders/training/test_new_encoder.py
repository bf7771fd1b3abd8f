from __future__ import annotations

import numpy as np
import pytest
import torch

from encoders import (
    EncoderConfig,
    FusionSpec,
    TowerSpec,
    check_encoder,
    load_product_encoder,
    load_query_encoder,
    save_encoder,
    save_query_encoder,
)
from encoders.errors import CheckpointError
from encoders.training.config import PairsConfig, SmallEncoderConfig, TrainingConfig
from encoders.training.new_encoder import find_starting_point, new_small_encoder, train_tokenizer
from encoders.training.run import train_encoder
from tests.encoders.tiny import (
    IMAGE_DIM,
    TEXT_DIM,
    random_picture,
    save_tiny_bert,
    save_tiny_clip,
    save_tiny_encoder,
)
from tests.encoders.training.pairs_files import coloured_rows, write_pairs


def load_starting_point(config):
    return find_starting_point(config).load()


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


SMALL = {
    "vocabulary": 300, "text_width": 16, "text_heads": 2, "dim": 12, "image_size": 16, "image_layers": (1,),
    "image_width": 32, "image_dim": 8, "clip_text_width": 16, "clip_text_heads": 2, "clip_text_layers": 1,
    "fusion_hidden": 20,
}  # fmt: skip


@pytest.mark.parametrize(
    ("model", "fusion", "dim"),
    [
        ("bibert", None, 12),
        ("clip", None, 8),
        ("3tmm", None, 12),
        ("4tmm", None, 20),
        ("4tmm", "alpha", 20),
        ("4tmm", "mlp", 12),
        ("match3", None, 8),
        ("match4", "mlp", 8),
    ],
)
def test_every_model_can_be_made_from_nothing_saved_and_loaded(tmp_path, model, fusion, dim):
    parts = new_small_encoder(SmallEncoderConfig(model=model, fusion=fusion, alpha=0.6, **SMALL), TEXTS)
    save_encoder(parts, str(tmp_path / "e"))
    config = EncoderConfig(uri=str(tmp_path / "e"), device="cpu")
    description = check_encoder(config)
    assert (description.model, description.dim) == (model, dim)
    pictures = [random_picture(0), random_picture(1)] if model != "bibert" else None
    assert load_product_encoder(config).encode(["red mug", "blue mug"], pictures).shape == (2, dim)
    queries = load_query_encoder(config.uri, device="cpu")
    if queries.accepts_text:
        assert queries.encode(["red"]).shape == (1, dim)
    if queries.accepts_images:
        assert queries.encode(images=[random_picture(2)]).shape == (1, dim)


def test_towers_of_saved_encoders_are_put_together_without_training(tmp_path):
    """Paper A's 4tMM cat: BiBERT's towers beside CLIP's, nothing learned."""
    text, clip = (
        save_tiny_encoder(tmp_path / "t", model="bibert"),
        save_tiny_encoder(tmp_path / "c", model="clip", seed=5),
    )
    small = SmallEncoderConfig(model="4tmm", text_from=text.uri, clip_from=clip.uri)
    data = PairsConfig(uri=write_pairs(tmp_path / "pairs", coloured_rows(8)))
    train_encoder(data, TrainingConfig(epochs=0, device="cpu"), str(tmp_path / "out"), small=small, say=lambda _: None)
    made = load_product_encoder(EncoderConfig(uri=str(tmp_path / "out"), device="cpu"))
    picture = random_picture(3)
    vector = made.encode(["red mug"], [picture])[0]
    halves = [
        load_product_encoder(text).encode(["red mug"])[0],
        load_product_encoder(clip).encode([None], [picture])[0],
    ]
    np.testing.assert_allclose(vector * np.sqrt(2), np.concatenate(halves), atol=1e-6)
    asked = load_query_encoder(str(tmp_path / "out"), device="cpu").encode(["red mug"])[0]
    halves = [load_query_encoder(uri, device="cpu").encode(["red mug"])[0] for uri in (text.uri, clip.uri)]
    np.testing.assert_allclose(asked * np.sqrt(2), np.concatenate(halves), atol=1e-6)
    assert not (tmp_path / "out.checkpoints").exists()


def test_only_the_fusion_learns_on_frozen_towers(tmp_path):
    text, clip = save_tiny_encoder(tmp_path / "t", model="bibert"), save_tiny_encoder(tmp_path / "c", model="clip")
    small = SmallEncoderConfig(model="3tmm", text_from=text.uri, clip_from=clip.uri, fusion_hidden=20)
    data = PairsConfig(uri=write_pairs(tmp_path / "pairs", coloured_rows(24)))
    training = TrainingConfig(epochs=1, batch_size=8, tuned=("fusion",), device="cpu", progress=False)
    train_encoder(data, training, str(tmp_path / "out"), small=small, say=lambda _: None)
    made = load_starting_point(EncoderConfig(uri=str(tmp_path / "out"))).model.state_dict()
    for source in (text, clip):
        weights = load_starting_point(source).model.state_dict()
        shared = {name for name in weights if name in made}
        assert shared
        assert all(torch.equal(weights[name], made[name]) for name in shared)


def test_towers_of_checkpoints_beside_small_ones(tmp_path):
    bert, clip = save_tiny_bert(tmp_path / "b"), save_tiny_clip(tmp_path / "c")
    options = {**SMALL, "max_tokens": 12}
    parts = new_small_encoder(SmallEncoderConfig(model="4tmm", text_from=str(bert), **options), TEXTS)
    loaded = load_starting_point(
        EncoderConfig(model="bibert", text_tower=TowerSpec(library="transformers", checkpoint=str(bert), max_tokens=12))
    )
    weights = loaded.model.document_text.state_dict()
    made = parts.model.document_text.state_dict()
    assert all(torch.equal(weights[name], made[name]) for name in weights)
    assert parts.model.architecture.clip.dim == 8
    parts = new_small_encoder(SmallEncoderConfig(model="match4", clip_from=str(clip), **options), TEXTS)
    assert parts.model.architecture.dim == IMAGE_DIM
    parts = new_small_encoder(SmallEncoderConfig(model="match3", text_from=str(bert), **options), TEXTS)
    assert parts.model.document_text.dim == 8, "projected into the pictures' space"
    assert torch.equal(parts.model.document_text.backbone.state_dict()["embeddings.word_embeddings.weight"],
                       weights["backbone.embeddings.word_embeddings.weight"])  # fmt: skip


def test_towers_that_are_not_there(tmp_path):
    bibert, clip = save_tiny_encoder(tmp_path / "t", model="bibert"), save_tiny_encoder(tmp_path / "c", model="clip")
    fused = save_tiny_encoder(tmp_path / "f", model="3tmm")
    for values, words in (
        ({"model": "3tmm", "text_from": clip.uri}, "the clip in .* has no BERT towers"),
        ({"model": "3tmm", "clip_from": bibert.uri}, "the bibert in .* has no picture tower"),
        ({"model": "4tmm", "clip_from": fused.uri}, "the 3tmm in .* has no CLIP text tower"),
    ):
        with pytest.raises(CheckpointError, match=words):
            new_small_encoder(SmallEncoderConfig(**{**SMALL, **values}), TEXTS)
