"""Every fusion and every missing modality against references written out in NumPy float64."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from encoders.encoder import ProductEncoder
from encoders.fusion import ConcatFusion, MlpFusion, PhotoTextFusion, SumFusion
from encoders.model import EncoderModel
from tests.encoders.tiny import tiny_parts

CASES = [("both", True, True), ("no picture", True, False), ("no text", False, True)]
MODELS = [
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
    [(*pair, *case) for pair in MODELS for case in CASES if pair[0] != "bibert" or case[1]],
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


@pytest.mark.parametrize(("name", "fusion"), [pair for pair in MODELS if pair[0] != "bibert"])
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


@pytest.mark.parametrize(("name", "fusion"), [pair for pair in MODELS if pair[0] != "bibert"])
def test_queries_that_are_a_photo(name, fusion):
    model = tiny_parts(name, fusion=fusion).model
    _, image = drawn(model, 6)
    found = model.fuse_photo(torch.from_numpy(image)).detach().numpy()
    expected = np.stack([expected_product(model, None, row) for row in image.astype(np.float64)])
    assert np.abs(found - expected).max() < 2e-6
