"""Pictures to measure decoding on: the grocery photos where they are there, drawn textures elsewhere."""

from __future__ import annotations

import io
import os
from pathlib import Path

import numpy as np
from PIL import Image

PROJECT_ROOT = Path(__file__).resolve().parent.parent.parent


def grocery_photos(limit: int) -> list[bytes]:
    """Encoded photos, evenly drawn from the set; none where the shared data is absent."""
    folder = Path(os.environ.get("SHELFMARK_SHARED_DATA", PROJECT_ROOT.parent / "shared" / "data")) / "grocery" / "val"
    paths = sorted(folder.rglob("*.jpg"))
    return [path.read_bytes() for path in paths[:: max(1, len(paths) // limit)][:limit]]


def drawn_photo(seed: int, size: int) -> Image.Image:
    """Blurred noise of every scale, with the fall-off over frequency that photos have (about 1/f)."""
    rng = np.random.default_rng(seed)
    canvas = np.zeros((size, size, 3), np.float32)
    cells = 4
    while cells <= size:
        noise = Image.fromarray(rng.integers(0, 256, (cells, cells, 3), dtype=np.uint8))
        enlarged = np.asarray(noise.resize((size, size), Image.Resampling.BICUBIC), np.float32)
        canvas += (enlarged - 128) * (4 / cells) ** 0.5
        cells *= 2
    return Image.fromarray((128 + canvas / 2).clip(0, 255).astype(np.uint8))


def jpeg_of_size(image: Image.Image, size: int, *, quality: int = 88) -> bytes:
    """A square JPEG of the picture."""
    stream = io.BytesIO()
    image.convert("RGB").resize((size, size), Image.Resampling.BICUBIC).save(stream, "JPEG", quality=quality)
    return stream.getvalue()
