"""Fusions, the formulas of encoders/README.md in NumPy over every model, and the one space of match3 and match4."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch.nn import functional

from encoders import EncoderConfig, FusionSpec, TowerSpec, check_encoder, load_product_encoder, load_query_encoder
from encoders.architecture import EncoderArchitecture
from encoders.encoder import ProductEncoder
from encoders.errors import CheckpointError, EncoderConfigError
from encoders.image_decoding import image_pixels
from encoders.model import ConcatFusion, EncoderModel, MlpFusion, PhotoTextFusion, SumFusion, build_fusion
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

B, DT, DI = 5, 6, 4
YES, NO = torch.ones(B, dtype=torch.bool), torch.zeros(B, dtype=torch.bool)


@pytest.fixture
def vectors() -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(1)
    return torch.randn(B, DT) * 7, torch.randn(B, DI)


def test_alpha_weighs_the_cosines(vectors):
    text, image = vectors
    fusion = ConcatFusion(DT, DI, alpha=0.8)
    fused = fusion(text, YES, image, YES)
    assert fused.shape == (B, DT + DI)
    cosine = lambda left, right: functional.cosine_similarity(left, right, dim=-1)  # noqa: E731
    expected = 0.64 * cosine(text[0], text[1]) + 0.04 * cosine(image[0], image[1])
    assert torch.allclose(fused[0] @ fused[1], expected, atol=1e-6)


def test_concat_is_alpha_of_one_half(vectors):
    text, image = vectors
    one = build_fusion(FusionSpec(method="concat", alpha=0.9), text_dim=DT, image_dim=DI, dim=0)
    other = build_fusion(FusionSpec(method="alpha", alpha=0.5), text_dim=DT, image_dim=DI, dim=0)
    assert torch.equal(one(text, YES, image, YES), other(text, YES, image, YES))


def test_concat_puts_all_weight_on_the_half_that_is_there(vectors):
    text, image = vectors
    fusion = ConcatFusion(DT, DI, alpha=0.3)
    no_image = functional.normalize(fusion(text, YES, image, NO), dim=-1)
    assert torch.allclose(no_image[:, :DT], functional.normalize(text, dim=-1), atol=1e-6)
    assert (no_image[:, DT:] == 0).all()
    no_text = functional.normalize(fusion(text, NO, image, YES), dim=-1)
    assert (no_text[:, :DT] == 0).all()
    assert torch.allclose(no_text[:, DT:], functional.normalize(image, dim=-1), atol=1e-6)


def test_mlp_takes_the_learned_vector_where_a_half_is_missing(vectors):
    text, image = vectors
    fusion = MlpFusion(DT, DI, hidden=16, dim=7)
    fused = fusion(text, NO, image, YES)
    assert fused.shape == (B, 7)
    assert torch.equal(fused, fusion(torch.zeros_like(text), NO, image, YES))
    assert not torch.allclose(fused, fusion(text, YES, image, YES))
    fused.sum().backward()
    assert fusion.missing_text.grad.abs().sum() > 0
    assert fusion.missing_image.grad.abs().sum() == 0


def test_mlp_does_not_see_the_scale_of_its_inputs(vectors):
    text, image = vectors
    fusion = MlpFusion(DT, DI, hidden=16, dim=7)
    assert torch.allclose(fusion(text, YES, image, YES), fusion(text * 9, YES, image * 0.1, YES), atol=1e-5)


def test_each_row_has_its_own_rule(vectors):
    text, image = vectors
    fusion = MlpFusion(DT, DI, hidden=16, dim=7)
    has_text = torch.tensor([True, False, True, False, True])
    mixed = fusion(text, has_text, image, YES)
    assert torch.allclose(mixed[has_text], fusion(text, YES, image, YES)[has_text])
    assert torch.allclose(mixed[~has_text], fusion(text, NO, image, YES)[~has_text])


def test_nothing_to_build():
    with pytest.raises(EncoderConfigError, match="none"):
        build_fusion(FusionSpec(method="none"), text_dim=DT, image_dim=DI, dim=0)


CASES = [("both", True, True), ("no picture", True, False), ("no text", False, True)]
FUSED = [
    ("bibert", None),
    ("clip", None),
    ("3tmm", "mlp"),
    ("4tmm", "concat"),
    ("4tmm", "alpha"),
    ("4tmm", "mlp"),
    ("match3", "sum"),
    ("match4", "sum"),
    ("match4", "mlp"),
]


def unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def gelu(values: np.ndarray) -> np.ndarray:
    return 0.5 * values * (1 + np.vectorize(math.erf)(values / math.sqrt(2)))


def weights_of(module: torch.nn.Module) -> dict[str, np.ndarray]:
    return {name: weight.detach().numpy().astype(np.float64) for name, weight in module.named_parameters()}


def perceptron(inputs: np.ndarray, weights: dict[str, np.ndarray]) -> np.ndarray:
    hidden = gelu(inputs @ weights["layers.0.weight"].T + weights["layers.0.bias"])
    return hidden @ weights["layers.2.weight"].T + weights["layers.2.bias"]


def reference(fusion, text: np.ndarray | None, image: np.ndarray | None) -> np.ndarray:
    """One fused vector, before the last normalisation, by the formulas of encoders/README.md; None is missing."""
    if isinstance(fusion, ConcatFusion):
        left = np.zeros(fusion.text_dim) if text is None else fusion.alpha * unit(text)
        right = np.zeros(fusion.image_dim) if image is None else (1 - fusion.alpha) * unit(image)
        return np.concatenate([left, right])
    if isinstance(fusion, SumFusion):
        if text is None or image is None:
            return unit(image if text is None else text)
        return fusion.text_weight * unit(text) + (1 - fusion.text_weight) * unit(image)
    assert isinstance(fusion, MlpFusion)
    weights = weights_of(fusion)
    left = weights["missing_text"] if text is None else unit(text) * math.sqrt(len(text))
    right = weights["missing_image"] if image is None else unit(image) * math.sqrt(len(image))
    return perceptron(np.concatenate([left, right]), weights)


def drawn(model: EncoderModel, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Vectors as towers may give them: of any scale."""
    rng = np.random.default_rng(4)
    text_dim = (model.document_text or model.image).dim
    image_dim = (model.image or model.document_text).dim
    text, image = (rng.normal(size=(count, dim)) * rng.uniform(0.01, 50, (count, 1)) for dim in (text_dim, image_dim))
    return text.astype(np.float32), image.astype(np.float32)


def expected_product(model: EncoderModel, text: np.ndarray | None, image: np.ndarray | None) -> np.ndarray:
    if model.product_fusion is not None:
        return unit(reference(model.product_fusion, text, image))
    if model.architecture.model == "clip":
        return unit(text if image is None else image)
    return unit(text)


@pytest.mark.parametrize(
    ("name", "fusion", "case", "has_text", "has_image"),
    # A bibert product without text cannot be encoded, see test_encoder.
    [(*pair, *case) for pair in FUSED for case in CASES if pair[0] != "bibert" or case[1]],
)
def test_product_vectors(name, fusion, case, has_text, has_image):
    parts = tiny_parts(name, fusion=fusion)
    text, image = drawn(parts.model, 6)
    encoder = ProductEncoder(parts, fingerprint="f" * 16, device=torch.device("cpu"), precision="float32", batch_size=4)
    rows = np.arange(6)
    found = encoder.fuse(
        text, rows if has_text else np.full(6, -1), image, (rows if has_image else np.full(6, -1))[:, None]
    )
    expected = np.stack(
        [
            expected_product(
                parts.model,
                text[row].astype(np.float64) if has_text else None,
                image[row].astype(np.float64) if has_image else None,
            )
            for row in rows
        ]
    )
    assert np.abs(found - expected).max() < 2e-6, case


@pytest.mark.parametrize(("name", "fusion"), [pair for pair in FUSED if pair[0] != "bibert"])
def test_a_product_of_several_pictures(name, fusion):
    parts = tiny_parts(name, fusion=fusion)
    text, image = drawn(parts.model, 3)
    encoder = ProductEncoder(parts, fingerprint="f" * 16, device=torch.device("cpu"), precision="float32", batch_size=4)
    found = encoder.fuse(text, np.array([0, -1]), image, np.array([[0, 2, -1], [2, 1, 0]]))
    wide = image.astype(np.float64)
    for vector, words, pictures in ((found[0], text[0].astype(np.float64), [0, 2]), (found[1], None, [2, 1, 0])):
        mean = unit(wide[pictures]).mean(0)
        assert np.abs(vector - expected_product(parts.model, words, mean)).max() < 2e-6


@pytest.mark.parametrize("fusion", ["concat", "alpha", "mlp"])
def test_query_fusion_of_4tmm(fusion):
    model = tiny_parts("4tmm", fusion=fusion).model
    text, clip_text = drawn(model, 6)
    found = model.fuse_query(torch.from_numpy(text), torch.from_numpy(clip_text)).detach().numpy()
    pairs = zip(text.astype(np.float64), clip_text.astype(np.float64), strict=True)
    expected = np.stack([unit(reference(model.query_fusion, left, right)) for left, right in pairs])
    assert np.abs(found - expected).max() < 2e-6
    if fusion == "mlp":
        pairs = zip(text.astype(np.float64), clip_text.astype(np.float64), strict=True)
        others = np.stack([unit(reference(model.product_fusion, left, right)) for left, right in pairs])
        assert np.abs(found - others).max() > 0.05, "each side has its own weights"


@pytest.mark.parametrize("weight", [0.0, 0.25, 1.0])
@pytest.mark.parametrize(("name", "fusion"), [("clip", None), ("4tmm", "concat"), ("match4", "sum"), ("match4", "mlp")])
def test_queries_of_photo_and_text(name, fusion, weight):
    model = tiny_parts(name, fusion=fusion).model
    rng = np.random.default_rng(5)
    text, image = (unit(rng.normal(size=(6, model.architecture.dim))) for _ in range(2))
    found = model.fuse_photo_text(
        torch.from_numpy(text).float(), torch.from_numpy(image).float(), image_weight=weight
    ).detach()
    expected = weight * image + (1 - weight) * text
    head = model.photo_text_fusion
    assert isinstance(head, PhotoTextFusion) == (fusion == "mlp")
    if head is not None:
        scaled = np.concatenate([text, image], axis=1) * math.sqrt(model.architecture.dim)
        expected = expected + perceptron(scaled, weights_of(head))
    assert np.abs(found.numpy() - unit(expected)).max() < 2e-6


@pytest.mark.parametrize(("name", "fusion"), [pair for pair in FUSED if pair[0] != "bibert"])
def test_queries_that_are_a_photo(name, fusion):
    model = tiny_parts(name, fusion=fusion).model
    _, image = drawn(model, 6)
    found = model.fuse_photo(torch.from_numpy(image)).detach().numpy()
    expected = np.stack([expected_product(model, None, row) for row in image.astype(np.float64)])
    assert np.abs(found - expected).max() < 2e-6


TEXTS = ["red dress", "small wooden lamp", "mug"]
PICTURES = [random_picture(seed) for seed in range(3)]
PIXELS = torch.from_numpy(np.stack([image_pixels(picture, PREPROCESSING) for picture in PICTURES]))


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
