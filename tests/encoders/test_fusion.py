from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from encoders.config import FusionSpec
from encoders.errors import EncoderConfigError
from encoders.fusion import ConcatFusion, MlpFusion, build_fusion

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
