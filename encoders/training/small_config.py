"""The `small:` section of a training run: an encoder put together, from nothing or from parts of others."""

from __future__ import annotations

from dataclasses import dataclass
from typing import get_args

from encoders.errors import EncoderConfigError
from encoders.spec import FUSIONS_OF_MODEL, FusionMethod, ModelName


@dataclass(frozen=True, kw_only=True, slots=True)
class SmallEncoderConfig:
    """The `small:` section: an encoder put together, where none is given whole to start from.

    Its towers are small and made from nothing (a BERT of a few layers with a WordPiece vocabulary learned from the
    training texts, a small ResNet or ViT, a small CLIP text tower), unless `text_from` or `clip_from` names them.

    Attributes:
        model: bibert, clip, 3tmm, 4tmm, match3 or match4.
        fusion: concat, alpha or mlp for 4tmm (null: concat), sum or mlp for match4 (null: sum); the other models have
            one each.
        alpha: Weight of the text half in fusion alpha.
        product_text_weight: Weight of the text in the product vectors of match3 and match4.
        text_from: A saved encoder whose BERT towers are taken, or a transformers checkpoint (folder, hub name,
            package://); null makes small ones.
        clip_from: A saved encoder whose picture tower (and CLIP text tower) is taken, or an open_clip checkpoint; null
            makes small ones.
        vocabulary: Most word pieces.
        max_tokens: Token limit of texts.
        text_width: Hidden width of the BERT.
        text_layers: Its layers.
        text_heads: Its attention heads.
        dim: Width of the vectors: the projection of both text towers (match3, match4: `image_dim`).
        image_size: Side of the picture in pixels.
        image_layers: Four numbers: blocks in each stage of a ResNet as CLIP has it, quick to learn from few pictures.
            One number: layers of a ViT.
        image_width: Width of the picture tower: of the ResNet's first stage, or of the ViT.
        patch_size: Side of a ViT's patch in pixels.
        image_dim: Width of the picture's vector.
        clip_text_width: Hidden width of the CLIP text tower (clip, 4tmm).
        clip_text_layers: Its layers.
        clip_text_heads: Its attention heads.
        clip_text_tokens: Its token limit.
        fusion_hidden: Hidden width of the fusion.
    """

    model: ModelName = "3tmm"
    fusion: FusionMethod | None = None
    alpha: float = 0.5
    product_text_weight: float = 0.3
    text_from: str | None = None
    clip_from: str | None = None
    vocabulary: int = 2500
    max_tokens: int = 64
    text_width: int = 128
    text_layers: int = 2
    text_heads: int = 4
    dim: int = 128
    image_size: int = 64
    image_layers: tuple[int, ...] = (1, 1, 1, 1)
    image_width: int = 12
    patch_size: int = 8
    image_dim: int = 128
    clip_text_width: int = 128
    clip_text_layers: int = 2
    clip_text_heads: int = 4
    clip_text_tokens: int = 32
    fusion_hidden: int = 256

    def __post_init__(self) -> None:
        if self.model not in get_args(ModelName):
            raise EncoderConfigError(f"small.model is {self.model!r}: expected one of {', '.join(get_args(ModelName))}")
        if self.fusion is not None and self.fusion not in FUSIONS_OF_MODEL[self.model]:
            raise EncoderConfigError(
                f"small.fusion is {self.fusion!r}: small.model {self.model} expects "
                f"{' or '.join(FUSIONS_OF_MODEL[self.model])}"
            )
        if not 0.0 < self.alpha < 1.0 or not 0.0 <= self.product_text_weight < 1.0:
            raise EncoderConfigError(
                f"small.alpha is {self.alpha}, small.product_text_weight {self.product_text_weight}: expected numbers "
                "between 0 and 1 (the second may be 0)"
            )
        if self.text_from is not None and self.model == "clip":
            raise EncoderConfigError(f"small.text_from is {self.text_from!r}: a clip has no BERT towers, remove it")
        if self.clip_from is not None and self.model == "bibert":
            raise EncoderConfigError(f"small.clip_from is {self.clip_from!r}: a bibert has no CLIP towers, remove it")
        if self.vocabulary < 256:
            raise EncoderConfigError(
                f"small.vocabulary is {self.vocabulary}: expected 256 or more, letters take their share"
            )
        for width, heads in (("text_width", "text_heads"), ("clip_text_width", "clip_text_heads")):
            if getattr(self, width) % getattr(self, heads):
                raise EncoderConfigError(
                    f"small.{width} is {getattr(self, width)}: expected a multiple of {heads} {getattr(self, heads)}"
                )
        if len(self.image_layers) not in (1, 4) or min(self.image_layers) < 1:
            raise EncoderConfigError(
                f"small.image_layers is {list(self.image_layers)}: expected four numbers (ResNet) or one (ViT), each 1 "
                "or more"
            )
        is_vit = len(self.image_layers) == 1
        side, step = (self.patch_size, 32) if is_vit else (32, 1)  # a ResNet halves the side five times
        if self.image_size % side or self.image_width % step:
            raise EncoderConfigError(
                f"small.image_size is {self.image_size}, image_width {self.image_width}: expected multiples of {side} "
                f"and {step} for a {'ViT' if is_vit else 'ResNet'}"
            )

    @property
    def fusion_method(self) -> FusionMethod:
        """`fusion`, or the model's first."""
        return self.fusion or FUSIONS_OF_MODEL[self.model][0]
