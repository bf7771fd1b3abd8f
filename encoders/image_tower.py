"""The two towers of an open_clip model read images, and CLIP's own texts.

Both are pooled at one token, and where their blocks are known here the last block runs for that token alone: its keys
and values come from all tokens, all else of it is wanted where the vector is taken and nowhere else. That is the same
sum in another order: vectors agree to the last digits, and a tower of twelve blocks takes 6 to 8 % less time.

Legend: P images, S side of an image in pixels, T texts, L tokens of the longest text of the batch, B images or texts, W
width of a transformer, D width of the joint CLIP space (of the projection after it, where there is one).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from encoders.bert import spans
from encoders.errors import CheckpointError
from encoders.prepacking import PrepackedBlock
from encoders.preprocessing import ImagePreprocessing
from encoders.text_tower import in_equal_parts

if TYPE_CHECKING:  # open_clip takes seconds to load, which other towers do without
    from open_clip import CustomTextCLIP

_PERCEPTRON_DROPOUT = 0.2  # in training alone
_NO_TEXT = {"context_length": 4, "vocab_size": 4, "width": 64, "heads": 1, "layers": 1}


class ImageTower(nn.Module):
    """An image tower of any library that takes uint8 pixels and normalises them on its own device.

    Its vectors have width `dim`, or D = `projection_dim` after a linear projection; with `hidden`, after a perceptron
    of one hidden layer so wide.
    """

    visual: Any
    mean: Tensor
    std: Tensor

    def __init__(
        self,
        visual: Any,
        preprocessing: ImagePreprocessing,
        *,
        dim: int,
        projection_dim: int | None = None,
        hidden: int | None = None,
    ) -> None:
        super().__init__()
        self.visual = visual
        self._pools_one_token = pools_one_token(visual)
        self.projection: nn.Module = nn.Identity()
        if projection_dim and hidden:
            self.projection = perceptron(dim, hidden, projection_dim)
        elif projection_dim:
            self.projection = nn.Linear(dim, projection_dim, bias=False)
        self.feature_dim, self.dim = dim, projection_dim or dim
        for name, values in (("mean", preprocessing.mean), ("std", preprocessing.std)):
            self.register_buffer(name, torch.tensor(values).reshape(1, 3, 1, 1), persistent=False)

    def forward(self, pixels: Tensor) -> Tensor:
        """Encodes pixels uint8 `[P, 3, S, S]` to `[P, D]`, not normalised."""
        return self.projection(self.features(pixels))

    def features(self, pixels: Tensor) -> Tensor:
        """What the projection gets, `[P, dim]`."""
        dtype = self.mean.dtype
        # Scaled in float32 whatever the tower's precision, as the tower's own training did; in place, because the
        # memory of a batch of images costs more time than the arithmetic.
        mean, std = self.mean.float(), self.std.float()
        scaled = pixels.float().mul_(1.0 / (255.0 * std)).sub_(mean / std).to(dtype)
        # With checkpointed gradients the library's own pass is wanted, which recomputes its blocks.
        if self._pools_one_token and not self.visual.transformer.grad_checkpointing:
            return encode_images(self.visual, scaled)
        return self.visual(scaled)

    def prepack_blocks(self) -> None:
        """Prepacks the blocks of open_clip's own transformer (`prepacking`)."""
        prepack_blocks(getattr(self.visual, "transformer", None))


def perceptron(dim: int, hidden: int, projection_dim: int) -> nn.Sequential:
    """A projection of one hidden layer.

    Each number is first brought to mean 0 and deviation 1 over what training has seen, since those of early stages are
    far from it and would otherwise hardly be heard.
    """
    return nn.Sequential(
        nn.BatchNorm1d(dim, affine=False),
        nn.Dropout(_PERCEPTRON_DROPOUT),
        nn.Linear(dim, hidden),
        nn.GELU(),
        nn.Dropout(_PERCEPTRON_DROPOUT),
        nn.Linear(hidden, projection_dim, bias=False),
    )


class ClipTextTower(nn.Module):
    """An open_clip text tower. A causal one that pools at the end-of-text token, where no position sees a later one,
    runs a batch cut to its longest text; others run their full context.
    """

    def __init__(self, text: nn.Module, *, dim: int) -> None:
        from open_clip.transformer import TextTransformer

        super().__init__()
        if not isinstance(text, TextTransformer):
            raise CheckpointError(
                f"the text tower of this open_clip model is a {type(text).__name__}: expected a TextTransformer; "
                "models with a Hugging Face text tower can serve as picture towers (3tmm), not as clip or 4tmm"
            )
        self.text = text
        self.feature_dim = self.dim = dim
        self.context_length = int(text.context_length)
        self._has_plain_blocks = has_plain_blocks(text.transformer)
        is_causal = text.attn_mask is not None and text.cls_emb is None and not text.use_pad_mask
        self.cuts_batches = is_causal and text.pool_type in ("argmax", "eos")

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Encodes token ids int64 `[T, L]`, which carry their padding, to `[T, D]`, not normalised."""
        return self.features(ids, mask)

    def features(self, ids: Tensor, mask: Tensor) -> Tensor:
        """The same: its projection is a part of open_clip's tower."""
        if not self.cuts_batches:
            missing = self.context_length - ids.shape[1]
            return self.text(nn.functional.pad(ids, (0, missing), value=int(self.text.pad_id)))
        text, length = self.text, ids.shape[1]
        states, causal_mask = text._embeds(ids)
        causal_mask = causal_mask[:length, :length]
        if self._has_plain_blocks and not text.transformer.grad_checkpointing:
            end = ids.argmax(-1) if text.pool_type == "argmax" else (ids == text.eos_id).int().argmax(-1)
            pooled = text.ln_final(run_for_token(text.transformer, states, end, mask=causal_mask))
        else:
            from open_clip.transformer import text_global_pool

            states = text.ln_final(text.transformer(states, attn_mask=causal_mask))
            pooled = text_global_pool(states, ids, pool_type=text.pool_type, eos_token_id=text.eos_id)
        return self._project(pooled)

    @property
    def packs(self) -> bool:
        """Whether texts may lie end to end (`packed`)."""
        return self.cuts_batches and isinstance(self.text.transformer.resblocks[-1], PrepackedBlock)

    def packed(self, ids: Tensor, positions: Tensor, groups: Tensor) -> Tensor:
        """Encodes texts that lie end to end, in a number of tokens that is always the same, to `[T, D]`.

        Args:
            ids: int64 `[N]`; behind the last text there may be others, of no text.
            positions: int64 `[N]`, of each token in its text.
            groups: int64 `[., 2]`, (number of texts, tokens of each) of neighbours of equal length, in their order.
        """
        text, sizes = self.text, [(texts, length) for texts, length in groups.tolist()]
        states = text.token_embedding(ids) + text.positional_embedding[positions]
        for block in text.transformer.resblocks:
            states = block.packed(states, sizes, text.attn_mask)
        ends = []
        for place, (texts, length) in spans(sizes):
            own = ids[place].view(texts, length)
            last = own.argmax(-1) if text.pool_type == "argmax" else (own == text.eos_id).int().argmax(-1)
            ends.append(place.start + length * torch.arange(texts, device=ids.device) + last)
        pooled = states[torch.cat(ends)]
        return in_equal_parts(lambda part: self._project(text.ln_final(part)), pooled)

    features_packed = packed  # as `features` and `forward`

    def _project(self, pooled: Tensor) -> Tensor:
        projection = self.text.text_projection
        if isinstance(projection, nn.Module):
            return projection(pooled)
        return pooled if projection is None else pooled @ projection

    def prepack_blocks(self) -> None:
        """As `ImageTower.prepack_blocks`."""
        if not self.text.use_pad_mask and self.text.cls_emb is None:  # else each text has a mask of its own
            prepack_blocks(self.text.transformer)


def prepack_blocks(transformer: Any) -> None:
    """Replaces the blocks of an open_clip transformer, in place, where they are known here."""
    of_open_clip = type(transformer).__module__.startswith("open_clip.")
    if of_open_clip and has_plain_blocks(transformer) and not transformer.grad_checkpointing:
        transformer.resblocks = nn.ModuleList(PrepackedBlock(block) for block in transformer.resblocks)


def build_clip(model_config: dict[str, Any], *, with_text: bool) -> CustomTextCLIP:
    """Builds an open_clip model of a `model_cfg` with random weights; CheckpointError unless it is a two-tower CLIP.

    Without text, a placeholder that builds in no time stands for the text tower.
    """
    missing = [key for key in ("embed_dim", "vision_cfg", "text_cfg") if key not in model_config]
    if missing and (with_text or missing != ["text_cfg"]):
        lacks = (
            "this open_clip model is an image tower alone, and encoder.model wants its text tower too (clip, 4tmm): "
        )
        raise CheckpointError(
            f"{lacks if missing == ['text_cfg'] else ''}open_clip model config without {', '.join(missing)}: expected "
            "embed_dim, vision_cfg, text_cfg"
        )
    if "multimodal_cfg" in model_config:
        raise CheckpointError("this open_clip model is a CoCa (it has a multimodal_cfg): expected a two-tower CLIP")
    text_config = dict(model_config["text_cfg"]) if with_text else dict(_NO_TEXT)  # an image tower alone has none
    if with_text and text_config.get("hf_model_name"):
        raise CheckpointError(
            f"the text tower of this open_clip model is the Hugging Face model {text_config['hf_model_name']!r}: "
            "such a model can serve as the picture tower of 3tmm, not as clip or 4tmm"
        )
    from open_clip import CustomTextCLIP

    known = ("embed_dim", "quick_gelu", "init_logit_scale", "init_logit_bias", "nonscalar_logit_scale")
    options = {key: model_config[key] for key in known if key in model_config}
    # Base weights of a timm tower would be fetched from a hub only to be overwritten by the checkpoint.
    vision_config = dict(model_config["vision_cfg"])
    if "timm_model_name" in vision_config:
        vision_config["timm_model_pretrained"] = False
    return CustomTextCLIP(**options, vision_cfg=vision_config, text_cfg=text_config)


def pools_one_token(visual: Any) -> bool:
    """Whether an image tower is a ViT whose vector comes of its class token alone, with blocks known here."""
    if not type(visual).__module__.startswith("open_clip."):
        return False
    from open_clip.transformer import VisionTransformer

    return (
        type(visual) is VisionTransformer
        and visual.attn_pool is None
        and visual.pool_type == "tok"
        and not visual.output_tokens
        and has_plain_blocks(visual.transformer)
    )


def has_plain_blocks(transformer: Any) -> bool:
    """Whether `run_for_token` may stand for a transformer's own forward pass."""
    from open_clip.transformer import ResidualAttentionBlock as Block
    from open_clip.transformer import Transformer

    return (
        type(transformer) is Transformer
        and transformer.batch_first
        and all(type(block) is Block for block in transformer.resblocks)
        and not hasattr(transformer.resblocks[-1], "ln_1_kv")
        and transformer.resblocks[-1].attn.in_proj_bias is not None
    )


def encode_images(visual: Any, pixels: Tensor) -> Tensor:
    """What `visual(pixels)` gives, for a tower that `pools_one_token`: `[B, 3, S, S]` to `[B, D]`."""
    states = visual._embeds(pixels)
    pooled = visual.ln_post(run_for_token(visual.transformer, states, None))
    return pooled if visual.proj is None else pooled @ visual.proj


def run_for_token(transformer: Any, states: Tensor, token: Tensor | None, *, mask: Tensor | None = None) -> Tensor:
    """Runs all blocks over `[B, L, W]`; returns the last one's output at one token of each item, `[B, W]`.

    It `has_plain_blocks`; `token` is int64 `[B]`, None for the first; `mask` `[L, L]` is added to the scores.
    """
    *blocks, last = transformer.resblocks
    for block in blocks:
        states = block(states, attn_mask=mask)
    if isinstance(last, PrepackedBlock):
        return last.for_token(states, token, mask)
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
