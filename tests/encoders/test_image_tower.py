from __future__ import annotations

import numpy as np
import open_clip
import pytest
import torch
from torch.nn import functional

from encoders.errors import CheckpointError
from encoders.image_tower import ClipTextTower, ImageTower, build_clip
from encoders.tokenizers import clip_tokenizer
from tests.encoders.tiny import CLIP_MODEL_CONFIG, IMAGE_DIM, PREPROCESSING, random_picture

TEXT_CONFIG = CLIP_MODEL_CONFIG["text_cfg"]


@pytest.fixture
def clip() -> open_clip.CustomTextCLIP:
    torch.manual_seed(0)
    return build_clip(CLIP_MODEL_CONFIG, with_text=True).eval()


def test_uint8_pixels_are_normalised_as_by_open_clip(clip):
    from open_clip.transform import PreprocessCfg, image_transform_v2

    from encoders.preprocessing import resize_picture

    tower = ImageTower(clip.visual, PREPROCESSING, dim=IMAGE_DIM)
    pictures = [random_picture(seed) for seed in range(3)]
    theirs = image_transform_v2(
        PreprocessCfg(size=PREPROCESSING.size, mean=PREPROCESSING.mean, std=PREPROCESSING.std), is_train=False
    )
    expected = clip.encode_image(torch.stack([theirs(picture) for picture in pictures]))
    pixels = np.stack([resize_picture(picture, PREPROCESSING) for picture in pictures])
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
