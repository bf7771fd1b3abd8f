"""Batch norms of a convolutional network that only runs go into the convolutions before them, on a CPU.

A frozen batch norm is a scale and an offset of each channel: a convolution has both. What is left of timm's
EfficientNets and their like is then one operation of oneDNN for convolution, norm and activation, the one that torch's
own compiler emits (`torch/_inductor/mkldnn_lowerings.py`), without a compiler at run time. In bfloat16 the folded
weights are rounded once, where weights and norms were rounded apart.

Legend: B images, C and N channels in and out, H and W of a map.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

_PAIRS = {
    "EfficientNet": (("conv_stem", "bn1"), ("conv_head", "bn2")),
    "ConvBnAct": (("conv", "bn1"),),
    "DepthwiseSeparableConv": (("conv_dw", "bn1"), ("conv_pw", "bn2")),
    "InvertedResidual": (("conv_pw", "bn1"), ("conv_dw", "bn2"), ("conv_pwl", "bn3")),
    "EdgeResidual": (("conv_exp", "bn1"), ("conv_pwl", "bn2")),
}
"""The modules of timm that run a convolution and then its norm, and the names of both in each."""
_FUSED: dict[type[nn.Module], tuple[str, list[float]]] = {
    nn.Identity: ("none", []),
    nn.ReLU: ("relu", []),
    nn.ReLU6: ("hardtanh", [0.0, 6.0]),
}
"""Activations that oneDNN computes with the convolution, as it calls them."""


def fold_norms(tower: nn.Module) -> None:
    """Folds, in place, the batch norms of timm's convolutional blocks into the convolutions of a float32 tower.

    Training and gradients are over with it. What is not known here stays as it is.
    """
    for module in list(tower.modules()):
        if not type(module).__module__.startswith("timm.models."):
            continue
        for convolution, norm in _PAIRS.get(type(module).__name__, ()):
            first, second = getattr(module, convolution, None), getattr(module, norm, None)
            if _pads_plainly(first) and type(second).__name__ == "BatchNormAct2d" and _runs_plainly(second):
                setattr(module, convolution, FoldedConvolution(first, second))
                setattr(module, norm, nn.Identity())


def prepack_folded(tower: nn.Module) -> None:
    """Has folded convolutions, in place, keep their weights as oneDNN reads them, where it reads the tower's type."""
    for name, child in list(tower.named_children()):
        if type(child) is FoldedConvolution:
            if _prepacking_helps(child.weight):
                setattr(tower, name, PrepackedConvolution(child))
        else:
            prepack_folded(child)


class FoldedConvolution(nn.Module):
    """A convolution with the batch norm and activation after it; `same` pads as TensorFlow does."""

    def __init__(self, convolution: Any, norm: Any) -> None:
        super().__init__()
        scale = norm.weight / torch.sqrt(norm.running_var + norm.eps)
        offset = norm.bias - norm.running_mean * scale
        if convolution.bias is not None:
            offset = offset + convolution.bias * scale
        weight = (convolution.weight * scale[:, None, None, None]).detach()
        self.weight = nn.Parameter(weight.to(memory_format=torch.channels_last), requires_grad=False)
        self.bias = nn.Parameter(offset.detach(), requires_grad=False)
        self.activation: nn.Module = norm.act
        self.steps = convolution.kernel_size, convolution.stride, convolution.dilation
        self.groups, self.same = convolution.groups, type(convolution) is not nn.Conv2d
        self.padding = (0, 0) if self.same else convolution.padding

    def forward(self, maps: Tensor) -> Tensor:
        """`[B, C, H, W]` to `[B, N, ., .]`."""
        maps, (_, stride, dilation) = same_padded(maps, *self.steps) if self.same else maps, self.steps
        found = functional.conv2d(maps, self.weight, self.bias, stride, self.padding, dilation, self.groups)
        return self.activation(found)


class PrepackedConvolution(nn.Module):
    """The same in one operation of oneDNN, the weights laid out once."""

    def __init__(self, folded: FoldedConvolution) -> None:
        super().__init__()
        self._same, self._steps, self.bias = folded.same, folded.steps, folded.bias
        self._packed = folded.weight.detach().to_mkldnn()
        name, scalars = _FUSED.get(type(folded.activation), ("none", []))
        self.rest = nn.Identity() if type(folded.activation) in _FUSED else folded.activation
        self._how = (folded.padding, *folded.steps[1:], folded.groups, name, scalars, "")

    def forward(self, maps: Tensor) -> Tensor:
        """`[B, C, H, W]` to `[B, N, ., .]`."""
        maps = same_padded(maps, *self._steps) if self._same else maps
        return self.rest(torch.ops.mkldnn._convolution_pointwise(maps, self._packed, self.bias, *self._how))

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination[f"{prefix}weight"] = self._packed.to_dense()


def same_padded(maps: Tensor, kernel: Sequence[int], stride: Sequence[int], dilation: Sequence[int]) -> Tensor:
    """`[B, C, H, W]`, padded with zeros as TensorFlow does: steps of one pixel would leave H and W as they are."""
    edges: list[int] = []
    for size, reach, step, gap in zip(maps.shape[:1:-1], kernel[::-1], stride[::-1], dilation[::-1], strict=True):
        missing = max(0, (-(-size // step) - 1) * step + (reach - 1) * gap + 1 - size)
        edges += [missing // 2, missing - missing // 2]
    return functional.pad(maps, edges) if any(edges) else maps


def _pads_plainly(convolution: Any) -> bool:
    """Whether it is a convolution that pads with zeros, by a number or as TensorFlow does."""
    if type(convolution) is nn.Conv2d:
        return convolution.padding_mode == "zeros" and not isinstance(convolution.padding, str)
    return type(convolution).__name__ == "Conv2dSame"


def _runs_plainly(norm: Any) -> bool:
    """Whether a norm has statistics and weights of its own, and nothing between it and its activation."""
    return norm.affine and norm.track_running_stats and isinstance(norm.drop, nn.Identity)


def _prepacking_helps(weight: Tensor) -> bool:
    return (
        torch.backends.mkldnn.is_available()
        and weight.device.type == "cpu"
        and hasattr(torch.ops.mkldnn, "_convolution_pointwise")
        and (
            weight.dtype == torch.float32
            or (weight.dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported())
        )
    )
