"""match3 and match4: one picture tower, one text tower, one space."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional

from encoders import EncoderConfig, FusionSpec, TowerSpec, check_encoder, load_product_encoder, load_query_encoder
from encoders.architecture import EncoderArchitecture
from encoders.errors import CheckpointError, EncoderConfigError
from encoders.preprocessing import resize_picture
from encoders.saved_encoder import read_saved, resolve_encoder
from tests.encoders.tiny import (
    IMAGE_DIM,
    PREPROCESSING,
    random_picture,
    save_tiny_bert,
    save_tiny_clip,
    save_tiny_encoder,
    tiny_parts,
)

TEXTS = ["red dress", "small wooden lamp", "mug"]
PICTURES = [random_picture(seed) for seed in range(3)]
PIXELS = torch.from_numpy(np.stack([resize_picture(picture, PREPROCESSING) for picture in PICTURES]))


def tokens(parts):
    return tuple(torch.from_numpy(array) for array in parts.tokenizer.tokenize(TEXTS).padded())


def storages(module) -> set[int]:
    return {parameter.untyped_storage().data_ptr() for parameter in module.parameters()}


def test_match4_query_and_product_share_both_encoders():
    model = tiny_parts("match4").model
    assert storages(model.query_text) == storages(model.document_text)
    assert sum(1 for name in model.weights("both") if name.startswith("query_text.")) == 0
    query, product = model.weights("query"), model.weights("product")
    for name in (name for name in product if name.startswith("image.")):
        assert query[name].data_ptr() == product[name].data_ptr()
    assert {name for name in query if name.startswith("query_text.")} == {
        name.replace("document_text.", "query_text.") for name in product if name.startswith("document_text.")
    }


def test_match3_queries_know_no_text(tmp_path):
    model = tiny_parts("match3").model
    assert model.query_text is None
    assert all(name.startswith("image.") for name in model.weights("query"))
    save_tiny_encoder(tmp_path, model="match3")
    query = load_query_encoder(str(tmp_path), device="cpu")
    assert (query.accepts_text, query.accepts_images) == (False, True)
    with pytest.raises(ValueError, match="match3 encoder takes no texts as queries"):
        query.encode(["mug"])


def test_the_vectors_for_alignment_losses_make_those_of_search(tmp_path):
    config = save_tiny_encoder(tmp_path, model="match4")
    parts = read_saved(tmp_path).load()
    model, products = parts.model, load_product_encoder(config)
    queries = load_query_encoder(str(tmp_path), device="cpu")
    photo, text = model.encode_query_image(PIXELS), model.encode_query_text(*tokens(parts))
    picture, title = model.encode_product_image(PIXELS), model.encode_product_text(*tokens(parts))
    for vectors in (photo, text, picture, title):
        assert vectors.shape == (3, 12)
        assert vectors.requires_grad
        assert torch.allclose(vectors.norm(dim=-1), torch.ones(3), atol=1e-6)

    def same(found: np.ndarray, expected: torch.Tensor) -> bool:
        return np.allclose(found, functional.normalize(expected, dim=-1).detach().numpy(), atol=1e-6)

    assert same(products.encode(TEXTS, PICTURES), 0.3 * title + 0.7 * picture)
    assert same(products.encode(TEXTS), title)
    assert same(products.encode([None] * 3, PICTURES), picture)
    assert same(queries.encode(images=PICTURES), photo)
    assert same(queries.encode(TEXTS), text)
    assert same(queries.encode(TEXTS, PICTURES), text + photo)


def test_the_head_for_photo_and_text_starts_as_the_sum():
    parts = tiny_parts("match4", fusion="mlp")
    model, fresh = parts.model, type(parts.model)(parts.model.architecture)
    text, photo = model.encode_query_text(*tokens(parts)), model.encode_query_image(PIXELS)
    plain = functional.normalize(0.5 * text + 0.5 * photo, dim=-1)
    assert torch.allclose(fresh.fuse_photo_text(text, photo), plain, atol=1e-6)
    assert not torch.allclose(model.fuse_photo_text(text, photo), plain, atol=1e-3)
    fresh.fuse_photo_text(text, photo).sum().backward()
    assert fresh.photo_text_fusion.layers[2].weight.grad.abs().sum() > 0


def test_weight_zero_reads_texts_only_of_products_without_a_picture():
    spec = FusionSpec(method="sum", dim=12, product_text_weight=0.0)
    architecture = tiny_parts("match3").model.architecture
    images_only = EncoderArchitecture(
        model="match3", text=architecture.text, clip=architecture.clip, fusion=spec, image_weight=0.5
    )
    assert images_only.text_is_fallback
    assert not architecture.text_is_fallback
    fuse = type(tiny_parts("match3").model)(images_only).fuse_product
    text, image = torch.randn(2, 12), torch.randn(2, 12)
    found = fuse(text, torch.tensor([True, True]), image, torch.tensor([True, False]))
    assert torch.allclose(found[0], functional.normalize(image[0], dim=-1), atol=1e-6)
    assert torch.allclose(found[1], functional.normalize(text[1], dim=-1), atol=1e-6)


def test_towers_of_two_checkpoints_want_training_first(tmp_path):
    config = EncoderConfig(
        model="match4",
        text_tower=TowerSpec(library="transformers", checkpoint=str(save_tiny_bert(tmp_path / "b")), max_tokens=16),
        clip_tower=TowerSpec(library="open_clip", checkpoint=str(save_tiny_clip(tmp_path / "c"))),
        fusion=FusionSpec(method="sum"),
    )
    for call in (check_encoder, load_product_encoder):
        with pytest.raises(CheckpointError, match=r"no trained projection weights.*train_encoder"):
            call(config)
    architecture = resolve_encoder(config).architecture
    assert architecture.dim == architecture.text.dim == IMAGE_DIM
    assert architecture.image_projection_dim is None, "the picture tower ends in this width by itself"
    model = resolve_encoder(config).load().model
    assert model.encode_product_image(PIXELS).shape == (3, IMAGE_DIM)


def test_widths_that_do_not_fit():
    architecture = tiny_parts("match3").model.architecture
    with pytest.raises(EncoderConfigError, match=r"texts have width 12 and pictures 8"):
        EncoderArchitecture(
            model="match3", text=architecture.text, clip=architecture.clip, fusion=FusionSpec(method="sum")
        )


def test_other_models_have_no_space_of_single_towers():
    parts = tiny_parts("3tmm")
    with pytest.raises(ValueError, match="expected match3 or match4"):
        parts.model.encode_product_image(PIXELS)
    with pytest.raises(ValueError, match="expected match3 or match4"):
        tiny_parts("match3").model.encode_query_text(*tokens(parts))
