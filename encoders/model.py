"""An encoder's module tree: towers and fusions of both sides, and which weights each side needs.

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
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeVar

import torch
from open_clip import CustomTextCLIP
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel

from encoders.architecture import EncoderArchitecture
from encoders.errors import CheckpointError
from encoders.fusion import ConcatFusion, MlpFusion, PhotoTextFusion, SumFusion, build_fusion
from encoders.image_tower import ClipTextTower, ImageTower, build_clip
from encoders.text_tower import TextTower, build_backbone, tie_document_and_query
from encoders.tokenizers import TextTokenizer

Side = Literal["both", "query", "product"]
_Tower = TypeVar("_Tower", bound=nn.Module)


class EncoderModel(nn.Module):
    """Both sides of an encoder.

    `encode_*` (match3 and match4) give the vectors that alignment losses compare, of uint8 pixels `[B, 3, S, S]`, or of
    token ids int64 `[B, L]` and mask bool `[B, L]`, each `[B, D]`, normalised, with gradients; ValueError for other
    models and towers that are not there. `fuse_*` give those that search compares, normalised again.

    Args:
        architecture: The shape.
        backbone: A loaded transformers model for the text towers; None builds one with random weights.
        clip: A loaded open_clip model; None builds one with random weights where the architecture has one.
    """

    def __init__(
        self,
        architecture: EncoderArchitecture,
        *,
        backbone: PreTrainedModel | None = None,
        clip: CustomTextCLIP | None = None,
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
            if clip is None:
                clip = build_clip(architecture.clip.model_config, with_text=architecture.uses_clip_text)
            dim = architecture.clip.dim
            projection_dim = architecture.image_projection_dim
            self.image = ImageTower(
                clip.visual, architecture.clip.preprocessing, dim=dim, projection_dim=projection_dim
            )
            if architecture.uses_clip_text:
                self.clip_text = ClipTextTower(clip.text, dim=dim)
        if architecture.is_match:
            fusion = architecture.fusion
            self.product_fusion = SumFusion(architecture.dim, text_weight=fusion.product_text_weight)
            if fusion.method == "mlp":
                self.photo_text_fusion = PhotoTextFusion(architecture.dim, hidden=fusion.hidden)
        elif self.document_text is not None and self.image is not None:
            widths = {"text_dim": self.document_text.dim, "image_dim": self.image.dim, "dim": architecture.dim}
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

    def encode_product_image(self, pixels: Tensor) -> Tensor:
        """Product image vectors: `encode_query_image` by another name, the tower is shared."""
        return self.encode_query_image(pixels)

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
        """Vectors `[B, D]`, normalised, of queries that are photo and text, of any model.

        The weighted sum of both vectors; a model with `photo_text_fusion` adds what that has learned.

        Args:
            text: `[B, D]`, normalised: the queries' vectors by their text alone.
            image: `[B, D]`, normalised: the same by their photo alone.
            image_weight: 0 to 1; None: that of the architecture.
        """
        weight = self.architecture.image_weight if image_weight is None else image_weight
        fused = (1.0 - weight) * text + weight * image
        if self.photo_text_fusion is not None:
            fused = fused + self.photo_text_fusion(text, image)
        return functional.normalize(fused, dim=-1)

    def fuse_product(self, text: Tensor, has_text: Tensor, image: Tensor, has_image: Tensor) -> Tensor:
        """Product vectors `[B, D]`, normalised, from `[B, Dt]`, `[B, Di]` and bool `[B]` masks of what is there."""
        if self.product_fusion is not None:
            fused = self.product_fusion(text, has_text, image, has_image)
        elif self.image is not None:
            fused = torch.where(has_image.unsqueeze(-1), image, text)
        else:
            fused = text
        return functional.normalize(fused, dim=-1)

    def fuse_query(self, text: Tensor, clip_text: Tensor | None = None) -> Tensor:
        """Query vectors `[B, D]`, normalised, of texts.

        Args:
            text: `[B, Dt]` of the BERT tower; of CLIP's in a model without one.
            clip_text: `[B, Di]` of CLIP's text tower, in a model with both (4tmm).
        """
        if self.query_fusion is not None and clip_text is not None:
            there = torch.ones(len(text), dtype=torch.bool, device=text.device)
            text = self.query_fusion(text, there, clip_text, there)
        return functional.normalize(text, dim=-1)

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
        if side == "query":
            return {name: tensor for name, tensor in state.items() if not name.startswith("document_text.")}
        if side == "product":
            query_only = ("query_text.", "query_fusion.", "photo_text_fusion.")
            return {name: tensor for name, tensor in state.items() if not name.startswith(query_only)}
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
