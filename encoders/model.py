"""The model is an encoder's module tree: towers and fusions of both sides, and which weights each side needs.

Legend: B products or queries, D fused dimension, Dt and Di widths of text and image vectors.

| model | query side | product side |
|---|---|---|
| bibert | query_text | document_text |
| clip | clip_text (image, for an image) | image (clip_text, without an image) |
| 3tmm | query_text | product_fusion(document_text, image) |
| 4tmm | query_fusion(query_text, clip_text) | product_fusion(document_text, image) |
| match3 | image | product_fusion(document_text, image) |
| match4 | image, query_text, or both by photo_text_fusion | product_fusion(document_text, image) |

In match3 and match4 query and product side share the image tower, and in match4 `query_text` is `document_text`
itself: towers, projections and LayerNorms ("Bringing Multimodality to Amazon Visual Search System").

Fusions take `[B, Dt]` and `[B, Di]`, and bool `[B]` masks of what is there, to `[B, D]`. They normalise both first, so
that neither half outweighs the other by its scale. A product without both halves is an error of the caller.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from encoders.architecture import EncoderArchitecture
from encoders.config import FusionSpec
from encoders.errors import CheckpointError, EncoderConfigError
from encoders.image_tower import ClipTextTower, ImageTower, build_clip
from encoders.text_tower import TextTower, build_backbone, tie_document_and_query
from encoders.tokenizers import TextTokenizer

Side = Literal["both", "query", "product"]
_Tower = TypeVar("_Tower", bound=nn.Module)


class ConcatFusion(nn.Module):
    """α-weighted concatenation `[α·text, (1 - α)·image]` (plain: α = 0.5); D = Dt + Di, no weights of its own."""

    def __init__(self, text_dim: int, image_dim: int, *, alpha: float = 0.5) -> None:
        super().__init__()
        self.text_dim, self.image_dim, self.dim = text_dim, image_dim, text_dim + image_dim
        self.alpha = alpha

    def forward(self, text: Tensor, has_text: Tensor, image: Tensor, has_image: Tensor) -> Tensor:
        """Fuses; rows where `has_*` is False are taken as zeros."""
        text_half = self.alpha * functional.normalize(text, dim=-1) * has_text.unsqueeze(-1)
        image_half = (1.0 - self.alpha) * functional.normalize(image, dim=-1) * has_image.unsqueeze(-1)
        return torch.cat([text_half, image_half], dim=-1)


class MlpFusion(nn.Module):
    """A perceptron of one hidden layer over both vectors; in 3tmm it also aligns the image into the BERT space."""

    def __init__(self, text_dim: int, image_dim: int, *, hidden: int, dim: int) -> None:
        super().__init__()
        self.text_dim, self.image_dim, self.dim = text_dim, image_dim, dim
        self.missing_text = nn.Parameter(torch.randn(text_dim) * 0.1)
        self.missing_image = nn.Parameter(torch.randn(image_dim) * 0.1)
        self.layers = nn.Sequential(nn.Linear(text_dim + image_dim, hidden), nn.GELU(), nn.Linear(hidden, dim))

    def forward(self, text: Tensor, has_text: Tensor, image: Tensor, has_image: Tensor) -> Tensor:
        """Fuses; rows where `has_*` is False take a learned vector."""
        # Unit vectors have tiny entries; times sqrt(width) they have the scale that linear layers are initialised for.
        text = functional.normalize(text, dim=-1) * self.text_dim**0.5
        image = functional.normalize(image, dim=-1) * self.image_dim**0.5
        text = torch.where(has_text.unsqueeze(-1), text, self.missing_text)
        image = torch.where(has_image.unsqueeze(-1), image, self.missing_image)
        return self.layers(torch.cat([text, image], dim=-1))


class SumFusion(nn.Module):
    """The weighted sum `w·text + (1 - w)·image` of two vectors of one space; D = Dt = Di, no weights of its own."""

    def __init__(self, dim: int, *, text_weight: float) -> None:
        super().__init__()
        self.text_dim, self.image_dim, self.dim = dim, dim, dim
        self.text_weight = text_weight

    def forward(self, text: Tensor, has_text: Tensor, image: Tensor, has_image: Tensor) -> Tensor:
        """Fuses; rows where only one `has_*` is True are that vector alone."""
        text_weight = torch.where(has_text & has_image, self.text_weight, has_text.float()).unsqueeze(-1)
        image_weight = torch.where(has_text & has_image, 1.0 - self.text_weight, has_image.float()).unsqueeze(-1)
        return text_weight * functional.normalize(text, dim=-1) + image_weight * functional.normalize(image, dim=-1)


class PhotoTextFusion(nn.Module):
    """What a perceptron of one hidden layer adds to the weighted sum of photo and text; nothing before training."""

    def __init__(self, dim: int, *, hidden: int) -> None:
        super().__init__()
        self.dim = dim
        self.layers = nn.Sequential(nn.Linear(2 * dim, hidden), nn.GELU(), nn.Linear(hidden, dim))
        for weight in self.layers[2].parameters():
            nn.init.zeros_(weight)

    def forward(self, text: Tensor, image: Tensor) -> Tensor:
        """`[B, D]` for normalised text and photo vectors `[B, D]`."""
        return self.layers(torch.cat([text, image], dim=-1) * self.dim**0.5)


def build_fusion(spec: FusionSpec, *, text_dim: int, image_dim: int, dim: int) -> ConcatFusion | MlpFusion:
    """Builds the fusion that `spec` names. `dim` is the output width of an `mlp`; concatenations bring their own."""
    if spec.method in ("concat", "alpha"):
        return ConcatFusion(text_dim, image_dim, alpha=spec.alpha if spec.method == "alpha" else 0.5)
    if spec.method == "mlp":
        return MlpFusion(text_dim, image_dim, hidden=spec.hidden, dim=dim)
    raise EncoderConfigError(f"fusion.method is {spec.method!r}: nothing to build, expected concat, alpha or mlp")


class EncoderModel(nn.Module):
    """Both sides of an encoder.

    `encode_*` (match3 and match4) give the vectors that alignment losses compare, of uint8 pixels `[B, 3, S, S]`, or of
    token ids int64 `[B, L]` and mask bool `[B, L]`, each `[B, D]`, normalised, with gradients; ValueError for other
    models and towers that are not there. `fuse_*` give those that search compares, normalised again.

    `backbone` is a loaded text encoder for the text towers, and `clip` has the loaded image tower as `visual` and
    the text tower that belongs to it as `text`; what the architecture has and is not given has random weights.
    """

    def __init__(
        self,
        architecture: EncoderArchitecture,
        *,
        backbone: nn.Module | None = None,
        clip: Any = None,
    ) -> None:
        super().__init__()
        self.architecture = architecture
        self.document_text: TextTower | None = None
        self.query_text: TextTower | None = None
        self.image: ImageTower | None = None
        self.clip_text: ClipTextTower | None = None
        self.product_fusion: ConcatFusion | MlpFusion | SumFusion | None = None
        self.query_fusion: ConcatFusion | MlpFusion | None = None
        self.photo_text_fusion: PhotoTextFusion | None = None
        if architecture.text is not None:
            text = architecture.text
            backbone = backbone if backbone is not None else build_backbone(text.config)
            self.document_text = TextTower(backbone, pooling=text.pooling, projection_dim=text.projection_dim)
            if architecture.model == "match4":
                self.query_text = self.document_text
            elif architecture.model != "match3":
                self.query_text = tie_document_and_query(self.document_text)
        if architecture.clip is not None:
            if clip is None and architecture.clip.library != "open_clip":
                from encoders.image_backbones import build_backbone as build_image_backbone  # loads timm

                clip = build_image_backbone(architecture.clip)
            elif clip is None:
                clip = build_clip(architecture.clip.model_config, with_text=architecture.uses_clip_text)
            dim, projected = architecture.clip.dim, architecture.image_projection_dim
            self.image = ImageTower(
                clip.visual,
                architecture.clip.preprocessing,
                dim=dim,
                projection_dim=projected,
                hidden=architecture.fusion.image_hidden,
            )
            if architecture.uses_clip_text:
                self.clip_text = ClipTextTower(clip.text, dim=dim)
        if architecture.is_match:
            fusion = architecture.fusion
            self.product_fusion = SumFusion(architecture.whole_dim, text_weight=fusion.product_text_weight)
            if fusion.method == "mlp":
                self.photo_text_fusion = PhotoTextFusion(architecture.whole_dim, hidden=fusion.hidden)
        elif self.document_text is not None and self.image is not None:
            widths = {"text_dim": self.document_text.dim, "image_dim": self.image.dim, "dim": architecture.whole_dim}
            self.product_fusion = build_fusion(architecture.fusion, **widths)
            if self.clip_text is not None:
                self.query_fusion = build_fusion(architecture.fusion, **widths)
        self.eval()

    def encode_query_image(self, pixels: Tensor) -> Tensor:
        """Photo vectors."""
        return functional.normalize(self._match_tower(self.image)(pixels), dim=-1)

    def encode_query_text(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Query text vectors (match4)."""
        return functional.normalize(self._match_tower(self.query_text)(ids, mask), dim=-1)

    encode_product_image = encode_query_image  # the tower is shared

    def encode_product_text(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Product text vectors."""
        return functional.normalize(self._match_tower(self.document_text)(ids, mask), dim=-1)

    def fuse_photo(self, image: Tensor) -> Tensor:
        """Query vectors `[B, D]` of photos alone (`[B, Di]` of the tower): the product side, its text missing."""
        fusion = self.product_fusion
        text_dim = fusion.text_dim if fusion is not None else image.shape[1]
        text = torch.zeros(len(image), text_dim, device=image.device)
        there = torch.ones(len(image), dtype=torch.bool, device=image.device)
        return self.fuse_product(text, ~there, image, there)

    def fuse_photo_text(self, text: Tensor, image: Tensor, *, image_weight: float | None = None) -> Tensor:
        """Vectors `[B, D]`, normalised, of queries that are photo and text, of any model, from those of each alone.

        They are the weighted sum (`image_weight` 0 to 1; None: that of the architecture), and what `photo_text_fusion`
        adds.
        """
        weight = self.architecture.image_weight if image_weight is None else image_weight
        fused = (1.0 - weight) * text + weight * image
        if self.photo_text_fusion is not None:
            fused = fused + self.photo_text_fusion(text, image)
        return functional.normalize(fused, dim=-1)

    def fuse_product(self, text: Tensor, has_text: Tensor, image: Tensor, has_image: Tensor) -> Tensor:
        """Product vectors `[B, D]`, normalised, from `[B, Dt]`, `[B, Di]` and bool `[B]` masks of what is there."""
        if self.product_fusion is not None:
            text = self.product_fusion(text, has_text, image, has_image)
        elif self.image is not None:
            text = torch.where(has_image.unsqueeze(-1), image, text)
        return self._as_served(text)

    def fuse_query(self, text: Tensor, clip_text: Tensor | None = None) -> Tensor:
        """Query vectors `[B, D]`, normalised, of texts: of the only text tower's vectors, or BERT's and CLIP's."""
        if self.query_fusion is not None and clip_text is not None:
            there = torch.ones(len(text), dtype=torch.bool, device=text.device)
            text = self.query_fusion(text, there, clip_text, there)
        return self._as_served(text)

    def _as_served(self, vectors: Tensor) -> Tensor:
        """Cut to the architecture's `prefix`, and of length 1."""
        if self.architecture.prefix is not None:
            vectors = vectors[:, : self.architecture.prefix]
        return functional.normalize(vectors, dim=-1)

    def keep_side(self, side: Side) -> EncoderModel:
        """Drops the towers that one side alone does not need, to free their memory; returns self."""
        if side == "query":
            self.document_text = None
        if side == "product":
            self.query_text, self.query_fusion, self.photo_text_fusion = None, None, None
            if self.architecture.model == "4tmm":
                self.clip_text = None
        return self

    def weights(self, side: Side = "both") -> dict[str, Tensor]:
        """Named tensors of one side or both, each tensor once: of both, shared ones under `document_text`."""
        state = self.state_dict()
        if side != "both":
            others = ("document_text.",) if side == "query" else ("query_text.", "query_fusion.", "photo_text_fusion.")
            return {name: tensor for name, tensor in state.items() if not name.startswith(others)}
        own: dict[str, Tensor] = {}
        for name, tensor in state.items():
            kind, _, rest = name.partition(".")
            twin = state.get(f"document_text.{rest}") if kind == "query_text" else None
            if twin is None or twin.data_ptr() != tensor.data_ptr():
                own[name] = tensor
        return own

    def load_weights(self, weights: dict[str, Tensor], *, side: Side, where: str) -> None:
        """Takes over the tensors of `weights(side)`; raises CheckpointError naming what is missing or does not fit."""
        expected = self.weights(side)
        missing, unknown = sorted(expected.keys() - weights.keys()), sorted(weights.keys() - expected.keys())
        if missing or unknown:
            first = [f" (first: {names[0]})" if names else "" for names in (missing, unknown)]
            raise CheckpointError(
                f"{where}: expected {len(expected)} tensors; {len(missing)} are missing{first[0]}, {len(unknown)} are "
                f"not known{first[1]}; encoder.json and weights.safetensors do not belong together"
            )
        for name, tensor in expected.items():
            if weights[name].shape != tensor.shape:
                raise CheckpointError(
                    f"{where}: tensor {name} has shape {list(weights[name].shape)}, expected {list(tensor.shape)}"
                )
        self.load_state_dict(weights, strict=False)

    def _match_tower(self, tower: _Tower | None) -> _Tower:
        if tower is None or not self.architecture.is_match:
            raise ValueError(f"a {self.architecture.model} encoder has no such vectors: expected match3 or match4")
        return tower


@dataclass(frozen=True, kw_only=True, slots=True)
class EncoderParts:
    """An encoder in memory, on the CPU in float32: its modules and tokenizers."""

    model: EncoderModel
    tokenizer: TextTokenizer | None = None
    clip_tokenizer: TextTokenizer | None = None
