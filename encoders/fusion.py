"""Fusions, where two vectors become one.

Legend: B products, Dt width of the text vector, Di width of the image vector, D width of the fused vector.

Both inputs are L2-normalised first, so that neither half outweighs the other by its scale. Each fusion states what it
does when a half is missing; a product without both is an error of the caller.

    concat, alpha   the missing half is zeros: after the final normalisation all weight lies on the other half
    mlp             the missing half is a learned vector, trained by modality dropout
    sum             the half that is there takes all weight
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from encoders.config import FusionSpec
from encoders.errors import EncoderConfigError


class ConcatFusion(nn.Module):
    """α-weighted concatenation `[α·text, (1 - α)·image]` (plain: α = 0.5); D = Dt + Di, no weights of its own."""

    def __init__(self, text_dim: int, image_dim: int, *, alpha: float = 0.5) -> None:
        super().__init__()
        self.text_dim, self.image_dim, self.dim = text_dim, image_dim, text_dim + image_dim
        self.alpha = alpha

    def forward(self, text: Tensor, has_text: Tensor, image: Tensor, has_image: Tensor) -> Tensor:
        """Fuses `[B, Dt]` and `[B, Di]` to `[B, D]`; rows where `has_*` (bool `[B]`) is False are taken as zeros."""
        text_half = self.alpha * functional.normalize(text, dim=-1) * has_text.unsqueeze(-1)
        image_half = (1.0 - self.alpha) * functional.normalize(image, dim=-1) * has_image.unsqueeze(-1)
        return torch.cat([text_half, image_half], dim=-1)


class MlpFusion(nn.Module):
    """A perceptron of one hidden layer over the two normalised vectors side by side.

    In 3tmm it aligns the image into the BERT space while it fuses, so D is the width of the query tower.
    """

    def __init__(self, text_dim: int, image_dim: int, *, hidden: int, dim: int) -> None:
        super().__init__()
        self.text_dim, self.image_dim, self.dim = text_dim, image_dim, dim
        self.missing_text = nn.Parameter(torch.randn(text_dim) * 0.1)
        self.missing_image = nn.Parameter(torch.randn(image_dim) * 0.1)
        self.layers = nn.Sequential(nn.Linear(text_dim + image_dim, hidden), nn.GELU(), nn.Linear(hidden, dim))

    def forward(self, text: Tensor, has_text: Tensor, image: Tensor, has_image: Tensor) -> Tensor:
        """Fuses `[B, Dt]` and `[B, Di]` to `[B, D]`; rows where `has_*` (bool `[B]`) is False take a learned vector."""
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
        """Fuses two `[B, D]`; rows where only one `has_*` (bool `[B]`) is True are that vector alone."""
        text_weight = torch.where(has_text & has_image, self.text_weight, has_text.float()).unsqueeze(-1)
        image_weight = torch.where(has_text & has_image, 1.0 - self.text_weight, has_image.float()).unsqueeze(-1)
        return text_weight * functional.normalize(text, dim=-1) + image_weight * functional.normalize(image, dim=-1)


class PhotoTextFusion(nn.Module):
    """A query of photo and text: their weighted sum, and what a perceptron of one hidden layer adds to it.

    The perceptron's last layer starts at zero, so that training starts from the plain sum.
    """

    def __init__(self, dim: int, *, hidden: int) -> None:
        super().__init__()
        self.dim = dim
        self.layers = nn.Sequential(nn.Linear(2 * dim, hidden), nn.GELU(), nn.Linear(hidden, dim))
        for weight in self.layers[2].parameters():
            nn.init.zeros_(weight)

    def forward(self, text: Tensor, image: Tensor) -> Tensor:
        """What is added to the sum, `[B, D]`, for normalised text and photo vectors `[B, D]`."""
        return self.layers(torch.cat([text, image], dim=-1) * self.dim**0.5)


def build_fusion(spec: FusionSpec, *, text_dim: int, image_dim: int, dim: int) -> ConcatFusion | MlpFusion:
    """Builds the fusion that `spec` names. `dim` is the output width of an `mlp`; concatenations bring their own."""
    if spec.method == "concat":
        return ConcatFusion(text_dim, image_dim)
    if spec.method == "alpha":
        return ConcatFusion(text_dim, image_dim, alpha=spec.alpha)
    if spec.method == "mlp":
        return MlpFusion(text_dim, image_dim, hidden=spec.hidden, dim=dim)
    raise EncoderConfigError(f"fusion.method is {spec.method!r}: nothing to build, expected concat, alpha or mlp")
