"""Vectors of towers by what the tower saw, kept from one encoder, and one evaluation, to the next.

    FOLDER/text-FINGERPRINT.npz, image-FINGERPRINT-RULES.npz    keys uint8 [n, 16], vectors float32 [n, F]

The fingerprint is that of a tower below its projection (`encoders.tower_features`), a key that of a text's tokens or an
image's bytes. Without a folder they are kept while the evaluation lasts.
"""

from __future__ import annotations

import hashlib
import logging
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from encoders import ProductEncoder
from index_builder import storage

log = logging.getLogger(__name__)


class _Store:
    """Vectors `[F]` by key, in memory, and the file that they came from and go to."""

    def __init__(self, path: Path | None, width: int) -> None:
        self._path = path
        self.vectors: dict[bytes, np.ndarray] = {}
        self._saved = 0
        if path is None or not path.is_file():
            return
        try:
            with path.open("rb") as file, np.load(file) as stored:
                keys, vectors = stored["keys"], stored["vectors"]
            if vectors.dtype != np.float32 or vectors.shape != (len(keys), width):
                raise ValueError(
                    f"expected float32 [{len(keys)}, {width}], found {vectors.dtype} {list(vectors.shape)}"
                )
            self.vectors = {key.tobytes(): vector for key, vector in zip(keys, vectors, strict=True)}
            self._saved = len(self.vectors)
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            log.warning("%s cannot be read, its vectors are computed again: %s", path, error)

    def save(self) -> None:
        """Writes the file where there is anything new, in place only when it is whole."""
        if self._path is None or len(self.vectors) == self._saved:
            return
        self._path.parent.mkdir(parents=True, exist_ok=True)
        keys = np.frombuffer(b"".join(self.vectors), np.uint8).reshape(len(self.vectors), -1)
        with storage.atomic_file(str(self._path)) as staged, open(staged, "wb") as file:
            np.savez(file, keys=keys, vectors=np.stack(list(self.vectors.values())))
        self._saved = len(self.vectors)


class KeptTower:
    """A tower that computes what no encoder with the same tower has computed yet."""

    def __init__(self, features: Any, vectors: dict[bytes, np.ndarray]) -> None:
        self._features, self._vectors = features, vectors
        self.text_keys = features.text_keys

    def __contains__(self, key: bytes) -> bool:
        return key in self._vectors

    def see(self, keys: Sequence[bytes], items: Callable[[list[int]], Any]) -> None:
        """Computes what is new among the keys; `items` gives the texts, or the pixels, at the places of such keys."""
        new: dict[bytes, int] = {}
        for place, key in enumerate(keys):
            if key not in self._vectors:
                new.setdefault(key, place)
        if new:
            self._vectors.update(zip(new, self._features.run(items(list(new.values()))), strict=True))

    def take(self, keys: Sequence[bytes], items: Callable[[list[int]], Any]) -> Any:
        """What the tower gives for each key, a tensor float32 `[n, D]` on its device; `items` as `see` has it."""
        self.see(keys, items)
        return self._features.project(np.stack([self._vectors[key] for key in keys]))


class KeptVectors:
    """The towers of an evaluation's encoders.

    Args:
        folder: A local one that keeps their vectors for the next evaluation; None keeps them as long as this object.
        decoding: The rules by which images become pixels; others give other vectors.
    """

    def __init__(self, folder: str | None, *, decoding: str = "") -> None:
        self._folder = None if folder is None else Path(folder).expanduser()
        self._decoding = hashlib.sha256(decoding.encode()).hexdigest()[:8]
        self._stores: dict[str, _Store] = {}

    def tower(self, encoder: ProductEncoder, name: Literal["text", "image"]) -> KeptTower | None:
        """One tower of an encoder; None where it has none, or one that cannot be taken apart."""
        features = encoder.tower_features(name)
        if features is None:
            return None
        if features.fingerprint not in self._stores:
            stem = f"{name}-{features.fingerprint}" + (f"-{self._decoding}" if name == "image" else "")
            path = None if self._folder is None else self._folder / f"{stem}.npz"
            self._stores[features.fingerprint] = _Store(path, features.dim)
        return KeptTower(features, self._stores[features.fingerprint].vectors)

    def save(self) -> None:
        """Writes what is new."""
        for store in self._stores.values():
            store.save()
