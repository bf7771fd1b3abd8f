from __future__ import annotations

import pytest

from encoders.config import EncoderConfig, TowerSpec
from encoders.flops import count_flops
from tests.encoders.tiny import save_tiny_encoder

DEMO = EncoderConfig(uri="package://encoders/pretrained/demo")


def test_operations_are_those_of_the_architecture():
    """A ViT's layer takes 24 h² a token (its MLP is 4 h wide) and 4 T² h for attention; of the last one all tokens go
    through keys and values only, for one token is pooled.
    """
    found = count_flops(DEMO, tokens=16)
    assert found is not None
    width, layers, tokens, patch = 128, 4, (64 // 8) ** 2 + 1, 8
    whole = (layers - 1) * (tokens * 24 * width**2 + 4 * tokens**2 * width)
    last = tokens * 4 * width**2 + 20 * width**2 + 4 * tokens * width
    patches = (tokens - 1) * 2 * 3 * patch**2 * width
    assert found.image == pytest.approx(whole + last + patches + 2 * width * 128, rel=0.01)
    assert count_flops(DEMO, tokens=32).text == pytest.approx(2 * found.text, rel=0.1)


def test_a_text_is_no_longer_than_the_tower_reads(tmp_path):
    config = save_tiny_encoder(tmp_path / "encoder", model="bibert")
    found = count_flops(config, tokens=10_000)
    assert found.tokens < 10_000
    assert (found.image, found.text > 0) == (0, True)


def test_no_weights_are_needed():
    """A tower of 151 million numbers is counted in well under the time and memory that drawing them takes."""
    clip = TowerSpec(library="open_clip", checkpoint="random:ViT-B-32?seed=0")
    found = count_flops(EncoderConfig(model="clip", clip_tower=clip), tokens=16)
    assert found.weights == 151_277_312
    assert found.image == pytest.approx(8.8e9, rel=0.1)  # 4.4 billion multiply-adds, as the CLIP paper's ViT-B/32
