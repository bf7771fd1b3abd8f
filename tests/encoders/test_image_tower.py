from __future__ import annotations

import numpy as np
import open_clip
import pytest
import torch
from open_clip.transform import PreprocessCfg, image_transform_v2
from torch.nn import functional

from encoders.errors import CheckpointError
from encoders.image_decoding import image_pixels
from encoders.image_tower import (
    ClipTextTower,
    ImageTower,
    build_clip,
    encode_images,
    has_plain_blocks,
    pools_one_token,
    run_for_token,
)
from encoders.tokenizers import clip_tokenizer
from tests.encoders.tiny import CLIP_MODEL_CONFIG, IMAGE_DIM, PREPROCESSING, random_picture

TEXT_CONFIG = CLIP_MODEL_CONFIG["text_cfg"]


@pytest.fixture
def clip() -> open_clip.CustomTextCLIP:
    torch.manual_seed(0)
    return build_clip(CLIP_MODEL_CONFIG, with_text=True).eval()


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


def test_uint8_pixels_are_normalised_as_by_open_clip(clip):
    tower = ImageTower(clip.visual, PREPROCESSING, dim=IMAGE_DIM)
    pictures = [random_picture(seed, (PREPROCESSING.size, PREPROCESSING.size)) for seed in range(3)]  # not resized
    theirs = image_transform_v2(
        PreprocessCfg(size=PREPROCESSING.size, mean=PREPROCESSING.mean, std=PREPROCESSING.std), is_train=False
    )
    expected = clip.encode_image(torch.stack([theirs(picture) for picture in pictures]))
    pixels = np.stack([image_pixels(picture, PREPROCESSING) for picture in pictures])
    assert torch.allclose(tower(torch.from_numpy(pixels)), expected, atol=1e-5)


@pytest.mark.parametrize("pool_type", ["argmax", "eos"])
def test_cutting_the_batch_is_exact(clip, pool_type):
    clip.text.pool_type = pool_type
    clip.text.eos_id = 49407
    tower = ClipTextTower(clip.text, dim=IMAGE_DIM)
    assert tower.cuts_batches
    ids, mask = clip_tokenizer(TEXT_CONFIG).tokenize(["red dress", "a small wooden chair", "x"]).padded()
    assert ids.shape[1] < TEXT_CONFIG["context_length"]
    whole = open_clip.SimpleTokenizer(context_length=16)(["red dress", "a small wooden chair", "x"])
    found = tower(torch.from_numpy(ids), torch.from_numpy(mask))
    assert torch.allclose(found, clip.encode_text(whole), atol=1e-6)


@pytest.mark.parametrize("pool_type", ["argmax", "eos"])
@pytest.mark.parametrize("pad_id", [0, 5])
def test_cutting_is_exact_at_every_length_and_whatever_stands_behind_the_end(pool_type, pad_id):
    """Three layers of attention: if a position saw a later one, what stands behind the end would show in the vector."""
    torch.manual_seed(3)
    config = {**CLIP_MODEL_CONFIG, "text_cfg": {**TEXT_CONFIG, "layers": 3, "width": 16, "heads": 2}}
    clip = build_clip(config, with_text=True).eval()
    clip.text.pool_type, clip.text.eos_id = pool_type, 49407
    for weight in clip.text.transformer.parameters():
        weight.data += 0.3 * torch.randn_like(weight)  # far from the small first weights
    tower, context = ClipTextTower(clip.text, dim=IMAGE_DIM), TEXT_CONFIG["context_length"]
    for longest in range(2, context + 1):
        lengths = torch.randint(2, longest + 1, (6,)).tolist() + [longest]
        whole = torch.full((7, context), pad_id)
        for row, length in enumerate(lengths):
            whole[row, :length] = torch.tensor([49406, *torch.randint(6, 49000, (length - 2,)).tolist(), 49407])
        found = tower(whole[:, :longest], whole[:, :longest] != pad_id)
        assert torch.allclose(found, clip.encode_text(whole), atol=1e-5), longest


@pytest.mark.parametrize("options", [{"no_causal_mask": True, "pool_type": "last"}, {"embed_cls": True}])
def test_towers_that_see_the_whole_context_are_not_cut(options):
    torch.manual_seed(0)
    clip = build_clip({**CLIP_MODEL_CONFIG, "text_cfg": {**TEXT_CONFIG, **options}}, with_text=True).eval()
    tower = ClipTextTower(clip.text, dim=IMAGE_DIM)
    assert not tower.cuts_batches
    ids, mask = clip_tokenizer(TEXT_CONFIG).tokenize(["red dress", "x"]).padded()
    whole = open_clip.SimpleTokenizer(context_length=16)(["red dress", "x"])
    assert torch.allclose(tower(torch.from_numpy(ids), torch.from_numpy(mask)), clip.encode_text(whole), atol=1e-6)


@pytest.mark.parametrize("projection", [{"proj_type": "none"}, {"proj_bias": True}])
def test_other_projections(projection):
    torch.manual_seed(0)
    clip = build_clip({**CLIP_MODEL_CONFIG, "text_cfg": {**TEXT_CONFIG, **projection}}, with_text=True).eval()
    ids, mask = clip_tokenizer(TEXT_CONFIG).tokenize(["red dress"]).padded()
    whole = open_clip.SimpleTokenizer(context_length=16)(["red dress"])
    found = ClipTextTower(clip.text, dim=IMAGE_DIM)(torch.from_numpy(ids), torch.from_numpy(mask))
    assert torch.allclose(found, clip.encode_text(whole), atol=1e-6)


def test_without_text_the_picture_tower_is_the_same():
    torch.manual_seed(0)
    visual = build_clip({**CLIP_MODEL_CONFIG, "text_cfg": {"hf_model_name": "some/model"}}, with_text=False).visual
    pixels = torch.zeros(1, 3, 16, 16, dtype=torch.uint8)
    assert ImageTower(visual, PREPROCESSING, dim=IMAGE_DIM)(pixels).shape == (1, IMAGE_DIM)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"embed_dim": 4}, "vision_cfg"),
        ({**CLIP_MODEL_CONFIG, "multimodal_cfg": {}}, "CoCa"),
        ({**CLIP_MODEL_CONFIG, "text_cfg": {"hf_model_name": "some/model"}}, "some/model"),
    ],
)
def test_models_that_do_not_fit(config, words):
    with pytest.raises(CheckpointError, match=words):
        build_clip(config, with_text=True)


def test_half_precision_stays_close(clip):
    pixels = torch.randint(0, 256, (4, 3, 16, 16), dtype=torch.uint8)
    exact = ImageTower(clip.visual, PREPROCESSING, dim=IMAGE_DIM)(pixels)
    rough = ImageTower(clip.visual, PREPROCESSING, dim=IMAGE_DIM).to(torch.bfloat16)(pixels)
    assert rough.dtype == torch.bfloat16
    assert (functional.cosine_similarity(exact, rough.float()) > 0.99).all()


@pytest.mark.parametrize("options", [{}, {"ls_init_value": 0.3}, {"final_ln_after_pool": True}, {"no_ln_pre": True}])
def test_the_last_block_for_the_class_token_alone(options):
    visual = clip_with(vision=options).visual
    assert pools_one_token(visual)
    pixels = torch.randn(5, 3, 16, 16)
    expected = visual(pixels)
    assert torch.allclose(encode_images(visual, pixels), expected, atol=1e-5 * float(expected.detach().abs().max()))


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
