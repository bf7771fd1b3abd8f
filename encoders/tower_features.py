"""One tower of an encoder, apart from its projection, so that what it gives can be kept and used again.

The towers of many encoders are the same: those of a pretrained pair whose projections or fusion were trained in several
ways. What a frozen tower makes of a text or an image is then computed once.

Legend: T texts, P images, S side of an image in pixels, F width before the projection, D width after it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, Literal, cast

import numpy as np
import torch
from torch import nn

from encoders.architecture import ClipArchitecture, EncoderArchitecture
from encoders.config import Precision
from encoders.image_tower import ClipTextTower, ImageTower
from encoders.model import EncoderParts
from encoders.preprocessing import ImagePreprocessing
from encoders.running import ImageRunner, Placement, TextRunner, fixed_rows, run_batches
from encoders.text_tower import ROWS_PROJECTED_AT_A_TIME, TextTower
from encoders.tokenizers import TextTokenizer

TowerPart = Literal["document_text", "query_text", "clip_text", "image"]
"""As `EncoderModel` names its towers."""


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
    """A tower, on its device and in its precision already.

    Args:
        part: Which tower of the encoder.

    Attributes:
        fingerprint: 16 hex digits of all that shapes the vectors; equal ones give equal vectors for equal token ids or
            pixels, up to the last digits on a GPU.
        dim: F.
        preprocessing: What an image tower wants to see.
    """

    preprocessing: ImagePreprocessing

    def __init__(self, parts: EncoderParts, part: TowerPart, *, precision: Precision, placement: Placement) -> None:
        architecture, tower = parts.model.architecture, getattr(parts.model, part)
        below, plain = _Below(tower), placement._replace(graphed=False)
        self.part, self.dim, self._width, self._placement = part, below.dim, tower.dim, placement
        self._projection = getattr(tower, "projection", nn.Identity())
        self._runner: TextRunner | ImageRunner
        shape = _shape(architecture, part)
        if part == "image":
            self.preprocessing = cast(ClipArchitecture, architecture.clip).preprocessing
            self._runner = ImageRunner(cast(ImageTower, below), self.preprocessing, plain)
        else:
            self._tokenizer = cast(TextTokenizer, parts.clip_tokenizer if part == "clip_text" else parts.tokenizer)
            self._runner = TextRunner(cast(TextTower, below), self._tokenizer, plain)
            shape |= {"tokens_per_pack": self._runner.tokens_per_pack}
        shape |= {"precision": precision, "device": placement.device.type}
        digest = hashlib.sha256(json.dumps(shape, sort_keys=True).encode())
        for name, weight in sorted(tower.state_dict().items()):
            if not name.startswith("projection."):
                digest.update(name.encode())
                digest.update(weight.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
        self.fingerprint = digest.hexdigest()[:16]

    def text_keys(self, texts: Sequence[str]) -> list[bytes]:
        """16 bytes a text, equal for texts of equal tokens: a tower sees nothing else of them."""
        return self._tokenizer.tokenize(texts).keys()

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


def _shape(architecture: EncoderArchitecture, part: TowerPart) -> dict[str, Any]:
    """What a tower's vectors depend on beside its weights and where it runs, as JSON holds it."""
    text, clip = architecture.text, architecture.clip
    if part in ("image", "clip_text"):
        shape = {} if clip is None else asdict(clip)
        return shape if part == "image" else {"model_config": shape["model_config"]}
    return {} if text is None else {"config": text.config, "pooling": text.pooling}
