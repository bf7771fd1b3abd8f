"""What a training run is told: the pairs, the model to start from, and how to train."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from encoders.errors import EncoderConfigError

TunedPart = Literal["text", "image", "fusion"]


@dataclass(frozen=True, kw_only=True, slots=True)
class PairsConfig:
    """The `data:` section: Parquet files with one row for each pair of a query and a product bought or clicked for it.

    Attributes:
        uri: A Parquet file or a folder of them, local or fsspec.
        query_field: Column of the query text.
        id_field: Column of the product id; rows of one id are taken as one product.
        text_fields: Columns of the product's text, joined by single spaces in this order, as the catalog's are.
        image_field: Column of the picture: struct of bytes and path, or binary; null for text-only training.
        negatives_field: Column of seen negatives, a list of product ids that stand elsewhere in the data; null for
            none.
        max_pairs: Take the first this many rows; null for all.
        validation_share: Share of the products, chosen by hash of the id, whose pairs are held out to measure the loss.
    """

    uri: str
    query_field: str = "query"
    id_field: str = "product_id"
    text_fields: tuple[str, ...] = ("title", "description")
    image_field: str | None = "image"
    negatives_field: str | None = None
    max_pairs: int | None = None
    validation_share: float = 0.02

    def __post_init__(self) -> None:
        if not self.uri:
            raise EncoderConfigError("data.uri is empty: expected a Parquet file or a folder of them")
        if not self.text_fields:
            raise EncoderConfigError("data.text_fields is empty: expected at least one column")
        if self.max_pairs is not None and self.max_pairs < 2:
            raise EncoderConfigError(f"data.max_pairs is {self.max_pairs}: expected 2 or more")
        if not 0.0 <= self.validation_share < 1.0:
            raise EncoderConfigError(
                f"data.validation_share is {self.validation_share}: expected a number from 0 up to 1"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class SmallEncoderConfig:
    """The `small:` section: a 3tmm made from nothing, where no encoder is given to start from.

    A BERT of a few layers with a WordPiece vocabulary learned from the training texts, and a small ViT.

    Attributes:
        vocabulary: Most word pieces.
        max_tokens: Token limit of texts.
        text_width: Hidden width of the BERT.
        text_layers: Its layers.
        text_heads: Its attention heads.
        dim: Width of the vectors: the projection of both text towers.
        image_size: Side of the picture in pixels.
        image_layers: Four numbers: blocks in each stage of a ResNet as CLIP has it, quick to learn from few pictures.
            One number: layers of a ViT.
        image_width: Width of the picture tower: of the ResNet's first stage, or of the ViT.
        patch_size: Side of a ViT's patch in pixels.
        image_dim: Width of the picture's vector.
        fusion_hidden: Hidden width of the fusion.
    """

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
    fusion_hidden: int = 256

    def __post_init__(self) -> None:
        if self.vocabulary < 256:
            raise EncoderConfigError(
                f"small.vocabulary is {self.vocabulary}: expected 256 or more, letters take their share"
            )
        if self.text_width % self.text_heads:
            raise EncoderConfigError(
                f"small.text_width is {self.text_width}: expected a multiple of text_heads {self.text_heads}"
            )
        if len(self.image_layers) not in (1, 4) or min(self.image_layers) < 1:
            raise EncoderConfigError(
                f"small.image_layers is {list(self.image_layers)}: expected four numbers (ResNet) or one (ViT), each 1 "
                "or more"
            )
        is_vit = len(self.image_layers) == 1
        side, width = (self.patch_size, 32) if is_vit else (32, 1)  # a ResNet halves the side five times
        if self.image_size % side or self.image_width % width:
            raise EncoderConfigError(
                f"small.image_size is {self.image_size}, image_width {self.image_width}: expected multiples of {side} "
                f"and {width} for a {'ViT' if is_vit else 'ResNet'}"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingConfig:
    """The `training:` section.

    Attributes:
        epochs: Passes over the pairs.
        batch_size: Pairs a step; every other product of the batch is a negative, so more is harder and better. Pairs
            of one product come in the same batch, which encodes it once.
        learning_rate: Peak of the schedule (linear warm-up, then a cosine to zero).
        weight_decay: AdamW's, on matrices only.
        warmup_share: Share of the steps that the warm-up takes.
        temperature: Of the loss.
        symmetric: Also tell queries apart by their products (the paper's loss only tells products apart by queries).
        dropped_weight: Weight of the loss on a second view of the batch in which each product loses its text or its
            picture at random (modality dropout): it trains the vectors that stand for what is missing, and search by
            picture.
        tuned: What is trained; the rest keeps its weights.
        seed: Of weights, order and dropout.
        device: auto, cpu, cuda or cuda:N.
        precision: float32, or bfloat16 for mixed precision.
        workers: Processes that read and decode ahead; 0 does it between steps.
        progress: Show a progress bar.
    """

    epochs: int = 3
    batch_size: int = 256
    learning_rate: float = 5e-4
    weight_decay: float = 0.05
    warmup_share: float = 0.05
    temperature: float = 0.05
    symmetric: bool = False
    dropped_weight: float = 0.5
    tuned: tuple[TunedPart, ...] = ("fusion", "text")
    seed: int = 0
    device: str = "auto"
    precision: Literal["float32", "bfloat16"] = "float32"
    workers: int = 0
    progress: bool = True

    def __post_init__(self) -> None:
        for key, least in (("epochs", 1), ("batch_size", 2), ("workers", 0)):
            if getattr(self, key) < least:
                raise EncoderConfigError(f"training.{key} is {getattr(self, key)}: expected {least} or more")
        for key in ("learning_rate", "temperature"):
            if getattr(self, key) <= 0:
                raise EncoderConfigError(f"training.{key} is {getattr(self, key)}: expected a positive number")
        if self.dropped_weight < 0 or not 0 <= self.warmup_share < 1:
            raise EncoderConfigError(
                f"training.dropped_weight is {self.dropped_weight}, expected 0 or more; "
                f"training.warmup_share is {self.warmup_share}, expected 0 up to 1"
            )
        if not self.tuned or set(self.tuned) - {"text", "image", "fusion"}:
            raise EncoderConfigError(f"training.tuned is {list(self.tuned)}: expected some of text, image, fusion")
