"""Packed layers give what the plain ones give, and their weights back."""

from __future__ import annotations

import copy

import pytest
import torch
from open_clip.transformer import LayerNorm, QuickGELU, TextTransformer, Transformer
from torch import nn
from torch.nn.functional import cosine_similarity

from encoders.image_tower import ClipTextTower, prepack_blocks, run_for_token
from encoders.prepacking import PrepackedBlock, PrepackedLinear, PrepackedPatches, prepack_layers, prepacking_helps

pytestmark = pytest.mark.skipif(
    not prepacking_helps(torch.bfloat16, torch.device("cpu")), reason="this CPU does not multiply bfloat16"
)


def test_only_bfloat16_on_a_cpu_is_packed():
    assert not prepacking_helps(torch.float32, torch.device("cpu"))
    assert not prepacking_helps(torch.bfloat16, torch.device("cuda"))


@pytest.mark.parametrize("rows", [1, 7, 64])
def test_a_packed_layer_gives_what_the_plain_one_does_and_its_weights_back(rows):
    """The same bits on the CPUs tried; another one's kernels may round in another place."""
    torch.manual_seed(0)
    plain = nn.Linear(64, 96).to(torch.bfloat16)
    packed, inputs = PrepackedLinear(plain.weight, plain.bias), torch.randn(rows, 64).to(torch.bfloat16)
    with torch.inference_mode():
        torch.testing.assert_close(packed(inputs), plain(inputs), rtol=0.02, atol=0.02)
    assert torch.equal(packed.state_dict()["weight"], plain.weight)
    assert torch.equal(packed.state_dict()["bias"], plain.bias)


@pytest.mark.parametrize("side", [64, 70])
def test_patches_are_those_of_the_convolution(side):
    torch.manual_seed(0)
    convolution = nn.Conv2d(3, 32, 16, 16, bias=False).to(torch.bfloat16)
    pixels = torch.randn(2, 3, side, side).to(torch.bfloat16)
    with torch.inference_mode():
        packed = PrepackedPatches(convolution)
        expected, found = convolution(pixels), packed(pixels)
    assert torch.equal(packed.weight, convolution.weight)
    assert found.shape == expected.shape
    torch.testing.assert_close(found, expected, rtol=0.02, atol=0.02)


@pytest.mark.parametrize("activation", [nn.GELU, QuickGELU])
@pytest.mark.parametrize("scale", [None, 0.5])
@pytest.mark.parametrize("causal", [False, True])
def test_packed_blocks_agree_with_the_exact_sums_as_plain_ones_do(activation, scale, causal):
    torch.manual_seed(0)
    exact = Transformer(64, 3, 4, act_layer=activation, norm_layer=LayerNorm, ls_init_value=scale).eval()
    exact.requires_grad_(False)
    plain = copy.deepcopy(exact).to(torch.bfloat16)
    packed = copy.deepcopy(plain)
    prepack_blocks(packed)
    assert all(type(block) is PrepackedBlock for block in packed.resblocks)
    states = torch.randn(4, 9, 64)
    mask = torch.full((9, 9), float("-inf")).triu(1) if causal else None
    token = torch.tensor([2, 8, 0, 5]) if causal else None
    with torch.inference_mode():
        whole = exact(states, attn_mask=mask)
        pooled = run_for_token(exact, states, token, mask=mask)
        half = states.to(torch.bfloat16)
        for model in (plain, packed):
            found = model(half, attn_mask=mask)
            assert cosine_similarity(found.float(), whole, dim=-1).min() > 0.9998
            found = run_for_token(model, half, token, mask=mask)
            assert cosine_similarity(found.float(), pooled, dim=-1).min() > 0.9998


def test_projections_and_convolutions_of_other_shapes_stay():
    tower = nn.Module()
    tower.body = nn.Sequential(nn.Conv2d(3, 8, 3, 2), nn.Conv2d(8, 8, 2, 2), nn.Linear(8, 8))
    tower.projection = nn.Linear(8, 4)
    prepack_layers(tower.to(torch.bfloat16))
    kinds = [type(layer) for layer in (*tower.body, tower.projection)]
    assert kinds == [nn.Conv2d, nn.Conv2d, PrepackedLinear, nn.Linear]


def test_texts_end_to_end_are_encoded_as_each_alone():
    torch.manual_seed(0)
    text = TextTransformer(context_length=16, vocab_size=50, width=64, heads=4, layers=2, output_dim=32).eval()
    exact = ClipTextTower(text.requires_grad_(False), dim=32)
    tower = copy.deepcopy(exact).to(torch.bfloat16)
    assert not tower.packs
    tower.prepack_blocks()
    prepack_layers(tower)
    assert tower.packs
    lengths = (9, 9, 5, 3, 3, 3)
    texts = [torch.cat([torch.randint(1, 49, (length - 1,)), torch.tensor([49])]) for length in lengths]

    def run(texts: list[torch.Tensor], groups: list[tuple[int, int]]) -> torch.Tensor:
        ids, positions = torch.zeros((2, 40), dtype=torch.int64)
        used = sum(map(len, texts))
        ids[:used] = torch.cat(texts)
        positions[:used] = torch.cat([torch.arange(len(each)) for each in texts])
        return tower.packed(ids, positions, torch.tensor(groups))

    with torch.inference_mode():
        together = run(texts, [(2, 9), (1, 5), (3, 3)])
        for row, each in enumerate(texts):
            assert torch.equal(run([each], [(1, len(each))])[0], together[row])
            alone = exact(each[None], torch.ones((1, len(each)), dtype=torch.bool))[0]
            assert cosine_similarity(together[row].float(), alone, dim=-1) > 0.9995
