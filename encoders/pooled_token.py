"""open_clip transformers that are pooled at one token: the last block runs for that token alone.

Its keys and values come from all tokens; its query, output projection and perceptron are wanted where the vector is
taken, and nowhere else. That is the same sum in another order: vectors agree to the last digits, and a block of twelve
costs a fifth of the others.

Legend: B items, L tokens of each, W width.
"""

from __future__ import annotations

from typing import Any

import torch
from open_clip.transformer import ResidualAttentionBlock, Transformer, VisionTransformer
from torch.nn import functional


def pools_one_token(visual: Any) -> bool:
    """Whether a picture tower is a ViT whose vector comes of its class token alone, with blocks known here."""
    return (
        type(visual) is VisionTransformer
        and visual.attn_pool is None
        and visual.pool_type == "tok"
        and not visual.output_tokens
        and has_plain_blocks(visual.transformer)
    )


def has_plain_blocks(transformer: Any) -> bool:
    """Whether `run_for_token` may stand for a transformer's own forward pass."""
    return (
        type(transformer) is Transformer
        and transformer.batch_first
        and all(type(block) is ResidualAttentionBlock for block in transformer.resblocks)
        and not hasattr(transformer.resblocks[-1], "ln_1_kv")
        and transformer.resblocks[-1].attn.in_proj_bias is not None
    )


def encode_pictures(visual: Any, pixels: torch.Tensor) -> torch.Tensor:
    """What `visual(pixels)` gives, for a tower that `pools_one_token`: `[B, 3, S, S]` to `[B, D]`."""
    states = visual._embeds(pixels)
    pooled = visual.ln_post(run_for_token(visual.transformer, states, None))
    return pooled if visual.proj is None else pooled @ visual.proj


def run_for_token(
    transformer: Any, states: torch.Tensor, token: torch.Tensor | None, *, mask: torch.Tensor | None = None
) -> torch.Tensor:
    """Runs all blocks; returns the last one's output at one token of each item.

    Args:
        transformer: One that `has_plain_blocks`.
        states: `[B, L, W]`.
        token: int64 `[B]`; None: the first.
        mask: `[L, L]`, added to the scores: causal, or None.

    Returns:
        `[B, W]`.
    """
    *blocks, last = transformer.resblocks
    for block in blocks:
        states = block(states, attn_mask=mask)
    attention, width = last.attn, states.shape[-1]
    weight, bias, heads = attention.in_proj_weight, attention.in_proj_bias, attention.num_heads
    normed = last.ln_1(states)
    if token is None:
        own, own_normed = states[:, 0], normed[:, 0]
    else:
        item = torch.arange(len(states), device=states.device)
        own, own_normed = states[item, token], normed[item, token]
    own_mask = None
    if mask is not None:
        own_mask = (mask[:1] if token is None else mask[token]).to(states.dtype)[:, None, None]
    query = functional.linear(own_normed, weight[:width], bias[:width])
    keys, values = functional.linear(normed, weight[width:], bias[width:]).split(width, dim=-1)
    seen = functional.scaled_dot_product_attention(
        query.unflatten(-1, (heads, -1)).unsqueeze(2),
        keys.unflatten(-1, (heads, -1)).transpose(1, 2),
        values.unflatten(-1, (heads, -1)).transpose(1, 2),
        attn_mask=own_mask,
    )
    own = own + last.ls_1(attention.out_proj(seen.squeeze(2).flatten(1)))
    return own + last.ls_2(last.mlp(last.ln_2(own)))
