"""Vectors that codes alone cannot tell apart, as titles that differ in a word: what re-ranking is for."""

from __future__ import annotations

import numpy as np


def near_copies(products: int, copies: int, dim: int, *, noise: float = 0.02, seed: int = 0) -> np.ndarray:
    """Unit vectors, of each product so many that lie close to it: float32 [products * copies, dim], mixed."""
    random = np.random.default_rng(seed)
    scale = np.arange(1, dim + 1) ** -0.4
    base = random.normal(size=(products, dim)) * scale
    base /= np.linalg.norm(base, axis=1, keepdims=True)
    vectors = np.repeat(base, copies, axis=0) + random.normal(0, noise, (products * copies, dim))
    vectors = vectors[random.permutation(len(vectors))]
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
