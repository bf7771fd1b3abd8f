"""Towers in bfloat16 on a CPU keep their weights in the order in which its matrix unit reads them.

A layer of torch lays its weights out anew for every batch, about a fifth of a layer's time; oneDNN takes them laid
out once, and adds what follows a product (GELU, the residual) before the sums are rounded. Vectors agree with
those of the plain layers to the last digits; a product's vector still depends on the product alone.

The operations are those that torch's own compiler emits for CPUs (`torch/_inductor/mkldnn_lowerings.py`).

Legend: B images or texts, L tokens of each, M tokens of texts end to end, W width of a transformer, K and N widths of a
layer's inputs and outputs, S side of an image in pixels, G patches on a side.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from encoders.bert import spans

if TYPE_CHECKING:  # open_clip takes seconds to load, which other towers do without
    from open_clip.transformer import ResidualAttentionBlock


def prepacking_helps(dtype: torch.dtype, device: torch.device) -> bool:
    """Whether a tower of this type, on this device, is faster with its weights laid out once."""
    return (
        dtype == torch.bfloat16
        and device.type == "cpu"
        and torch.backends.mkldnn.is_available()
        and torch.ops.mkldnn._is_mkldnn_bf16_supported()
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    )


def prepack_layers(tower: nn.Module) -> None:
    """Replaces, in place, the layers of a tower that is only ever run from now on; a `projection` stays as it is.

    Blocks of open_clip's own transformers come before (`PrepackedBlock`), for their attention is no layer.
    """
    for name, child in list(tower.named_children()):
        if name == "projection":
            continue
        if type(child) is nn.Linear:  # subclasses are layers whose weights others read
            setattr(tower, name, PrepackedLinear(child.weight, child.bias))
        elif type(child) is nn.Conv2d and _cuts_patches(child):
            setattr(tower, name, PrepackedPatches(child))
        else:
            prepack_layers(child)


class PrepackedLinear(nn.Module):
    """A linear layer of prepacked weights `[N, K]`, with an activation of oneDNN's after it.

    Args:
        activation: `none`, or `gelu` with `algorithm` none (exact) or tanh.
    """

    int8_original_dtype = torch.bfloat16
    """Where open_clip looks for the type of a block's activations."""

    def __init__(
        self, weight: Tensor, bias: Tensor | None, *, activation: str = "none", algorithm: str | None = None
    ) -> None:
        super().__init__()
        self._packed = torch.ops.mkldnn._reorder_linear_weight(weight.detach().contiguous())
        self._activation, self._algorithm = activation, algorithm
        self.bias = None if bias is None else nn.Parameter(bias.detach(), requires_grad=False)

    @property
    def weight(self) -> Tensor:
        """The plain weights, unpacked anew."""
        return self._packed.to_dense()

    def forward(self, inputs: Tensor) -> Tensor:
        """`[..., K]` to `[..., N]`."""
        return torch.ops.mkldnn._linear_pointwise(
            inputs, self._packed, self.bias, self._activation, [], self._algorithm
        )

    def added_to(self, residual: Tensor, inputs: Tensor) -> Tensor:
        """`residual + layer(inputs)` of a layer without an activation, `[..., N]`, rounded once."""
        return torch.ops.mkldnn._linear_pointwise.binary(inputs, residual, self._packed, self.bias, "add")

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination[f"{prefix}weight"] = self.weight


class PrepackedPatches(nn.Module):
    """A convolution that cuts an image into patches beside each other: one product of all patches with its weights."""

    def __init__(self, convolution: nn.Conv2d) -> None:
        super().__init__()
        self._side = int(convolution.kernel_size[0])
        self.linear = PrepackedLinear(convolution.weight.flatten(1), convolution.bias)

    @property
    def weight(self) -> Tensor:
        """The convolution's, `[N, 3, side, side]`, unpacked anew: transformers' CLIP and SigLIP look at their type."""
        return self.linear.weight.unflatten(1, (-1, self._side, self._side))

    def forward(self, pixels: Tensor) -> Tensor:
        """`[B, 3, S, S]` to `[B, N, G, G]`, the channels last in memory."""
        images, channels, height, width = pixels.shape
        side = self._side
        rows, columns = height // side, width // side
        cut = pixels[:, :, : rows * side, : columns * side].reshape(images, channels, rows, side, columns, side)
        patches = cut.permute(0, 2, 4, 1, 3, 5).reshape(images, rows * columns, channels * side * side)
        return self.linear(patches).transpose(1, 2).unflatten(2, (rows, columns))


class PrepackedBlock(nn.Module):
    """A block of an open_clip transformer (batch first, self-attention), its residuals added inside the products."""

    def __init__(self, block: ResidualAttentionBlock) -> None:
        super().__init__()
        attention, mlp = block.attn, block.mlp
        self._heads = attention.num_heads
        self.ln_1, self.ls_1, self.ln_2, self.ls_2 = block.ln_1, block.ls_1, block.ln_2, block.ls_2
        self.in_proj = PrepackedLinear(attention.in_proj_weight, attention.in_proj_bias)
        self.out_proj = PrepackedLinear(attention.out_proj.weight, attention.out_proj.bias)
        if type(mlp.gelu) is nn.GELU:
            self.c_fc = PrepackedLinear(
                mlp.c_fc.weight, mlp.c_fc.bias, activation="gelu", algorithm=str(mlp.gelu.approximate)
            )
            self.activation: nn.Module = nn.Identity()
        else:
            self.c_fc, self.activation = PrepackedLinear(mlp.c_fc.weight, mlp.c_fc.bias), mlp.gelu
        self.c_proj = PrepackedLinear(mlp.c_proj.weight, mlp.c_proj.bias)

    def get_weight_dtype(self) -> torch.dtype:
        """As open_clip's blocks say it."""
        return self.ln_1.weight.dtype

    def forward(self, states: Tensor, *, attn_mask: Tensor | None = None) -> Tensor:
        """`[B, L, W]`; `attn_mask` `[L, L]` is added to the scores."""
        query, keys, values = self._attention_inputs(states)
        mask = None if attn_mask is None else attn_mask.to(states.dtype)
        seen = functional.scaled_dot_product_attention(query, keys, values, attn_mask=mask)
        return self._after_attention(states, seen.transpose(1, 2).flatten(2))

    def packed(self, states: Tensor, groups: Sequence[tuple[int, int]], mask: Tensor) -> Tensor:
        """`[M, W]` of texts that lie end to end: (number of texts, tokens of each) of neighbours of equal length.

        `mask` `[L, L]` of the longest text, or longer; behind the last text there may be tokens that mean nothing.
        """
        mixed = self.in_proj(self.ln_1(states)).unflatten(-1, (3, self._heads, -1))
        seen = torch.zeros_like(states)
        for place, (texts, length) in spans(groups):
            query, keys, values = mixed[place].unflatten(0, (texts, length)).permute(2, 0, 3, 1, 4).unbind(0)
            own = mask[:length, :length].to(states.dtype)
            found = functional.scaled_dot_product_attention(query, keys, values, attn_mask=own)
            seen[place] = found.transpose(1, 2).reshape(texts * length, -1)
        return self._after_attention(states, seen)

    def for_token(self, states: Tensor, token: Tensor | None, mask: Tensor | None) -> Tensor:
        """The output at one token of each item, `[B, W]`: see `image_tower.run_for_token`."""
        query, keys, values = self._attention_inputs(states)
        item = torch.arange(len(states))
        place = torch.zeros_like(item) if token is None else token
        own_mask = None if mask is None else mask[place].to(states.dtype)[:, None, None]
        own_query = query[item, :, place].unsqueeze(2)
        seen = functional.scaled_dot_product_attention(own_query, keys, values, attn_mask=own_mask)
        return self._after_attention(states[item, place], seen.flatten(1))

    def _attention_inputs(self, states: Tensor) -> tuple[Tensor, ...]:
        """Queries, keys and values, each `[B, heads, L, W / heads]`."""
        mixed = self.in_proj(self.ln_1(states)).unflatten(-1, (3, self._heads, -1))
        return mixed.permute(2, 0, 3, 1, 4).unbind(0)

    def _after_attention(self, states: Tensor, seen: Tensor) -> Tensor:
        states = _add(states, self.out_proj, self.ls_1, seen)
        return _add(states, self.c_proj, self.ls_2, self.activation(self.c_fc(self.ln_2(states))))


def _add(states: Tensor, layer: PrepackedLinear, scale: nn.Module, inputs: Tensor) -> Tensor:
    if type(scale) is nn.Identity:
        return layer.added_to(states, inputs)
    return states + scale(layer(inputs))


def _cuts_patches(convolution: nn.Conv2d) -> bool:
    """Whether a convolution reads the pixels in squares that neither overlap nor leave gaps."""
    first, *others = {*convolution.kernel_size, *convolution.stride}
    return (
        not others
        and first > 1
        and convolution.in_channels == 3
        and convolution.groups == 1
        and convolution.padding in ((0, 0), "valid")
        and convolution.dilation == (1, 1)
    )
