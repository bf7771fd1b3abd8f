"""The module tree of an encoder: towers and fusions of both sides, and which weights each side needs.

Legend: B products or queries, D fused dimension, Dt and Di widths of text and picture vectors.

| model | query side | product side |
|---|---|---|
| bibert | query_text | document_text |
| clip | clip_text (image, for a picture) | image (clip_text, without a picture) |
| 3tmm | query_text | product_fusion(document_text, image) |
| 4tmm | query_fusion(query_text, clip_text) | product_fusion(document_text, image) |
"""

from __future__ import annotations

from typing import Literal

import torch
from open_clip import CustomTextCLIP
from torch import nn
from torch.nn import functional
from transformers import PreTrainedModel

from encoders.architecture import EncoderArchitecture
from encoders.errors import CheckpointError
from encoders.fusion import ConcatFusion, MlpFusion, build_fusion
from encoders.image_tower import ClipTextTower, ImageTower, build_clip
from encoders.text_tower import TextTower, build_backbone, tie_document_and_query

Side = Literal["both", "query", "product"]


class EncoderModel(nn.Module):
    """Both sides of an encoder.

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
        self.product_fusion: ConcatFusion | MlpFusion | None = None
        self.query_fusion: ConcatFusion | MlpFusion | None = None
        if architecture.text is not None:
            text = architecture.text
            backbone = backbone if backbone is not None else build_backbone(text.config)
            self.document_text = TextTower(backbone, pooling=text.pooling, projection_dim=text.projection_dim)
            self.query_text = tie_document_and_query(self.document_text)
        if architecture.clip is not None:
            if clip is None:
                clip = build_clip(architecture.clip.model_config, with_text=architecture.uses_clip_text)
            dim = architecture.clip.dim
            self.image = ImageTower(clip.visual, architecture.clip.preprocessing, dim=dim)
            if architecture.uses_clip_text:
                self.clip_text = ClipTextTower(clip.text, dim=dim)
        if self.document_text is not None and self.image is not None:
            widths = {"text_dim": self.document_text.dim, "image_dim": self.image.dim, "dim": architecture.dim}
            self.product_fusion = build_fusion(architecture.fusion, **widths)
            if self.clip_text is not None:
                self.query_fusion = build_fusion(architecture.fusion, **widths)
        self.eval()

    def fuse_product(
        self, text: torch.Tensor, has_text: torch.Tensor, image: torch.Tensor, has_image: torch.Tensor
    ) -> torch.Tensor:
        """Product vectors `[B, D]`, normalised, from `[B, Dt]`, `[B, Di]` and bool `[B]` masks of what is there."""
        if self.product_fusion is not None:
            fused = self.product_fusion(text, has_text, image, has_image)
        elif self.image is not None:
            fused = torch.where(has_image.unsqueeze(-1), image, text)
        else:
            fused = text
        return functional.normalize(fused, dim=-1)

    def fuse_query(self, text: torch.Tensor, clip_text: torch.Tensor | None = None) -> torch.Tensor:
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
            self.query_text, self.query_fusion = None, None
            if self.architecture.model == "4tmm":
                self.clip_text = None
        return self

    def weights(self, side: Side = "both") -> dict[str, torch.Tensor]:
        """Named tensors of one side or both, each tensor once (shared ones under `document_text` when both are
        asked).
        """
        state = self.state_dict()
        if side == "query":
            return {name: tensor for name, tensor in state.items() if not name.startswith("document_text.")}
        if side == "product":
            return {
                name: tensor for name, tensor in state.items() if not name.startswith(("query_text.", "query_fusion."))
            }
        own: dict[str, torch.Tensor] = {}
        for name, tensor in state.items():
            twin = (
                state.get(name.replace("query_text.", "document_text.", 1)) if name.startswith("query_text.") else None
            )
            if twin is None or twin.data_ptr() != tensor.data_ptr():
                own[name] = tensor
        return own

    def load_weights(self, weights: dict[str, torch.Tensor], *, side: Side, where: str) -> None:
        """Takes over the tensors of `weights(side)`; raises CheckpointError naming what is missing or does not fit."""
        expected = self.weights(side)
        missing, unknown = sorted(expected.keys() - weights.keys()), sorted(weights.keys() - expected.keys())
        if missing or unknown:
            raise CheckpointError(
                f"{where}: expected {len(expected)} tensors; {len(missing)} are missing{_first(missing)}, "
                f"{len(unknown)} are not known{_first(unknown)}; encoder.json and weights.safetensors do not belong "
                "together"
            )
        for name, tensor in expected.items():
            if weights[name].shape != tensor.shape:
                raise CheckpointError(
                    f"{where}: tensor {name} has shape {list(weights[name].shape)}, expected {list(tensor.shape)}"
                )
        self.load_state_dict(weights, strict=False)


def _first(names: list[str]) -> str:
    return f" (first: {names[0]})" if names else ""
