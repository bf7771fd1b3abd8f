from __future__ import annotations

import copy

import pytest
import timm
import torch
from torch import nn

from encoders.folded_norms import FoldedConvolution, PrepackedConvolution, fold_norms, prepack_folded
from encoders.image_backbones import StagePooled

NETWORKS = ["test_efficientnet", "tf_efficientnet_lite0", "mobilenetv2_035", "tf_efficientnetv2_b0"]
SIZE = 65  # odd: TensorFlow's padding then differs from one side to the other


def drawn(name: str) -> nn.Module:
    """A network whose norms have seen something."""
    torch.manual_seed(0)
    network = timm.create_model(name, pretrained=False, num_classes=0).eval()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(std=0.2)
            module.running_var.uniform_(0.5, 2.0)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.2)
    return network.to(memory_format=torch.channels_last)


def pixels(count: int) -> torch.Tensor:
    return torch.randn(count, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", NETWORKS)
@torch.inference_mode()
def test_a_folded_network_gives_the_same_vectors(name):
    plain = drawn(name)
    folded = copy.deepcopy(plain)
    fold_norms(folded)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in folded.modules()), "none is left"
    expected = plain(pixels(3))
    torch.testing.assert_close(folded(pixels(3)), expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))
    prepack_folded(folded)
    assert any(isinstance(module, PrepackedConvolution) for module in folded.modules())
    torch.testing.assert_close(folded(pixels(3)), expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


@torch.inference_mode()
def test_all_stages_of_a_folded_network():
    plain = StagePooled(drawn("test_efficientnet"))
    folded = copy.deepcopy(plain)
    fold_norms(folded)
    prepack_folded(folded)
    torch.testing.assert_close(folded(pixels(2)), plain(pixels(2)), rtol=1e-4, atol=1e-3)


@torch.inference_mode()
def test_in_bfloat16_it_is_nearer_to_float32_and_company_changes_nothing():
    exact, plain = drawn("tf_efficientnet_lite0"), drawn("tf_efficientnet_lite0").to(torch.bfloat16)
    folded = drawn("tf_efficientnet_lite0")
    fold_norms(folded)
    prepack_folded(folded.to(torch.bfloat16))
    images = pixels(6)
    near, nearer = (
        torch.nn.functional.cosine_similarity(network(images.bfloat16()).float(), exact(images)).mean()
        for network in (plain, folded)
    )
    assert nearer > near > 0.98
    order = torch.tensor([4, 0, 5, 2, 1, 3])
    assert torch.equal(folded(images[order].bfloat16()), folded(images.bfloat16())[order])


@torch.inference_mode()
def test_what_is_not_known_stays_as_it_is():
    plain = drawn("resnet18")
    folded = copy.deepcopy(plain)
    fold_norms(folded)
    prepack_folded(folded)
    assert not any(isinstance(module, FoldedConvolution | PrepackedConvolution) for module in folded.modules())
    assert torch.equal(folded(pixels(2)), plain(pixels(2)))


def test_the_weights_can_be_read():
    """What names kept vectors by their tower's weights reads them."""
    network = drawn("test_efficientnet")
    fold_norms(network)
    before = {name: weight.clone() for name, weight in network.state_dict().items()}
    prepack_folded(network)
    after = network.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
