"""The last block for one token alone gives what open_clip's own pass gives there."""

from __future__ import annotations

import pytest
import torch

from encoders.image_tower import (
    ClipTextTower,
    ImageTower,
    build_clip,
    encode_pictures,
    has_plain_blocks,
    pools_one_token,
    run_for_token,
)
from tests.encoders.tiny import CLIP_MODEL_CONFIG, IMAGE_DIM, PREPROCESSING


def clip_with(*, seed: int = 0, vision: dict | None = None, text: dict | None = None):
    torch.manual_seed(seed)
    config = {
        **CLIP_MODEL_CONFIG,
        "vision_cfg": {**CLIP_MODEL_CONFIG["vision_cfg"], "layers": 3, **(vision or {})},
        "text_cfg": {**CLIP_MODEL_CONFIG["text_cfg"], "layers": 3, "width": 16, "heads": 2, **(text or {})},
    }
    clip = build_clip(config, with_text=True).eval()
    with torch.no_grad():
        for weight in clip.parameters():
            weight.add_(0.2 * torch.randn_like(weight))  # no weight at zero or one, as biases and norms start
    return clip


@pytest.mark.parametrize("options", [{}, {"ls_init_value": 0.3}, {"final_ln_after_pool": True}, {"no_ln_pre": True}])
def test_vit(options):
    visual = clip_with(vision=options).visual
    assert pools_one_token(visual)
    pixels = torch.randn(5, 3, 16, 16)
    expected = visual(pixels)
    assert torch.allclose(encode_pictures(visual, pixels), expected, atol=1e-5 * float(expected.detach().abs().max()))


@pytest.mark.parametrize("causal", [True, False])
def test_the_token_may_stand_anywhere(causal):
    transformer = clip_with().text.transformer
    assert has_plain_blocks(transformer)
    states = torch.randn(7, 7, 16)
    mask = torch.full((7, 7), float("-inf")).triu_(1) if causal else None
    expected, token = transformer(states, attn_mask=mask), torch.randperm(7)
    found = run_for_token(transformer, states, token, mask=mask)
    assert torch.allclose(found, expected[torch.arange(7), token], atol=1e-4)
    first = run_for_token(transformer, states, None, mask=mask)
    assert torch.allclose(first, expected[:, 0], atol=1e-4)


@pytest.mark.parametrize(
    "vision", [{"pool_type": "avg"}, {"attentional_pool": True}, {"layers": [1, 1, 1, 1], "width": 8, "image_size": 32}]
)
def test_other_towers_keep_their_own_pass(vision):
    visual = clip_with(vision=vision).visual
    assert not pools_one_token(visual)
    size = vision.get("image_size", 16)
    pixels = torch.randint(0, 256, (2, 3, size, size), dtype=torch.uint8)
    mean, std = (torch.tensor(values).reshape(1, 3, 1, 1) for values in (PREPROCESSING.mean, PREPROCESSING.std))
    tower = ImageTower(visual, PREPROCESSING, dim=IMAGE_DIM)
    expected = visual((pixels / 255 - mean) / std)
    assert torch.allclose(tower(pixels), expected, atol=1e-5 * float(expected.detach().abs().max()))


def test_gradients_are_the_same():
    clip = clip_with()
    tower = ImageTower(clip.visual, PREPROCESSING, dim=IMAGE_DIM)
    pixels = torch.randint(0, 256, (4, 3, 16, 16), dtype=torch.uint8)
    found = []
    for checkpointed in (False, True):  # True takes the library's own pass
        clip.visual.set_grad_checkpointing(checkpointed)
        clip.zero_grad()
        tower(pixels).square().sum().backward()
        found.append({name: weight.grad.clone() for name, weight in clip.visual.named_parameters()})
    for name, gradient in found[1].items():
        assert torch.allclose(found[0][name], gradient, rtol=1e-3, atol=1e-5 * float(gradient.abs().max())), name


def test_text_gradients_are_the_same():
    clip = clip_with()
    tower = ClipTextTower(clip.text, dim=IMAGE_DIM)
    ids = torch.tensor([[49406, 7, 9, 49407, 0], [49406, 49407, 0, 0, 0], [49406, 5, 5, 5, 49407]])
    found = []
    for checkpointed in (False, True):
        clip.text.set_grad_checkpointing(checkpointed)
        clip.zero_grad()
        tower(ids, ids != 0).square().sum().backward()
        found.append(clip.text.transformer.resblocks[-1].attn.in_proj_weight.grad.clone())
    assert torch.allclose(*found, rtol=1e-3, atol=1e-5 * float(found[1].abs().max()))
