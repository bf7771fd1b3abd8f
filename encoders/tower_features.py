"""One tower of an encoder, apart from its projection, so that what it gives can be kept and used again.

The towers of many encoders are the same: those of a pretrained pair whose projections or fusion were trained in several
ways. What a frozen tower makes of a text or an image is then computed once.

Legend: T texts, P images, S side of an image in pixels, F width before the projection, D width after it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import cast

import numpy as np
import torch
from torch import nn

from encoders.image_tower import ClipTextTower, ImageTower
from encoders.preprocessing import ImagePreprocessing
from encoders.running import ImageRunner, Placement, TextRunner, fixed_rows, run_batches
from encoders.text_tower import ROWS_PROJECTED_AT_A_TIME, TextTower
from encoders.tokenizers import TextTokenizer


class _Below(nn.Module):
    """A tower without its projection, as the runners take one."""

    def __init__(self, tower: TextTower | ClipTextTower | ImageTower) -> None:
        super().__init__()
        self.tower, self.dim = tower, tower.feature_dim
        if isinstance(tower, ImageTower):
            self.mean = tower.mean
        if isinstance(tower, TextTower | ClipTextTower):
            self.packs, self.packed = tower.packs, tower.features_packed

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        """Vectors `[., F]`."""
        return self.tower.features(*inputs)


class TowerFeatures:
    """A tower on its device; see `ProductEncoder.tower_features`.

    Args:
        shape: All that shapes the vectors beside the weights: architecture, precision, device.
        reads: A text tower's tokenizer, or an image tower's preprocessing.

    Attributes:
        fingerprint: 16 hex digits; equal ones give equal vectors for equal token ids or pixels, up to the last digits
            on a GPU.
        dim: F.
    """

    def __init__(
        self,
        tower: TextTower | ClipTextTower | ImageTower,
        shape: str,
        placement: Placement,
        *,
        reads: TextTokenizer | ImagePreprocessing | None,
    ) -> None:
        below, plain = _Below(tower), placement._replace(graphed=False)
        self.dim, self._width, self._placement = below.dim, tower.dim, placement
        self._projection = getattr(tower, "projection", nn.Identity())
        self._tokenizer = None if isinstance(reads, ImagePreprocessing) else reads
        self._runner: TextRunner | ImageRunner
        if isinstance(reads, ImagePreprocessing):
            self._runner = ImageRunner(cast(ImageTower, below), reads, plain)
        else:
            self._runner = TextRunner(cast(TextTower, below), cast(TextTokenizer, reads), plain)
        digest = hashlib.sha256(shape.encode())
        for name, weight in sorted(tower.state_dict().items()):
            if not name.startswith("projection."):
                digest.update(name.encode())
                digest.update(weight.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
        self.fingerprint = digest.hexdigest()[:16]

    def text_keys(self, texts: Sequence[str]) -> list[bytes]:
        """16 bytes a text, equal for texts of equal tokens: a tower sees nothing else of them."""
        return cast(TextTokenizer, self._tokenizer).tokenize(texts).keys()

    def run(self, items: Sequence[str] | np.ndarray) -> np.ndarray:
        """Vectors before the projection, float32 `[n, F]`, of T texts or of uint8 `[P, 3, S, S]`."""
        return self._runner.run(items).cpu().numpy()  # type: ignore[arg-type]

    def project(self, features: np.ndarray) -> torch.Tensor:
        """What the tower itself gives, float32 `[n, D]` on the device, of `[n, F]`."""
        device, vectors = self._placement.device, torch.from_numpy(features)
        weights = next(self._projection.parameters(), None)
        if weights is None:
            return vectors.to(device)
        projected = torch.empty((len(vectors), self._width), dtype=torch.float32, device=device)

        def run_rows(batch: tuple[np.ndarray, np.ndarray]) -> None:
            rows, filled = batch
            found = self._projection(vectors[torch.from_numpy(filled)].to(device, weights.dtype))
            projected[torch.from_numpy(rows).to(device)] = found[: len(rows)].float()

        run_batches(self._placement.lanes, run_rows, fixed_rows(np.arange(len(vectors)), ROWS_PROJECTED_AT_A_TIME))
        return projected
