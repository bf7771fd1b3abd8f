"""Vectors of towers by what the tower saw, kept from one encoder, and one command, to the next.

    FOLDER/text-FINGERPRINT/DIGEST.npy, FOLDER/image-FINGERPRINT-RULES/DIGEST.npy

Training and evaluation share them. The fingerprint is that of a tower below its projection (`tower_features`), RULES
are those by which an image's bytes become pixels. A file is an array of records, `key` uint8 `[16]` (of a text's
tokens, or of an image's encoded bytes) and `vector` float32 `[F]`, and its name is the xxh3-128 of them: what is
damaged is made again. Without a folder they are kept as long as the object.

Legend: F width before a tower's projection, D width after it.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xxhash

from encoders.errors import CheckpointError
from encoders.image_decoding import AnyImage, image_digest, image_pixels
from encoders.tower_features import TowerFeatures

FILE_BYTES = 64 << 20
"""Vectors that wait in memory for a file of their own; a run that is killed loses no more."""
log = logging.getLogger(__name__)


def take_rows(blocks: Sequence[np.ndarray], rows: np.ndarray) -> np.ndarray:
    """The vectors float32 `[len(rows), F]` at rows (int64) of blocks that stand one after the other, at least one."""
    starts = np.cumsum([0, *map(len, blocks)])
    taken = np.empty((len(rows), blocks[0]["vector"].shape[1]), np.float32)
    of_block = np.searchsorted(starts, rows, side="right") - 1
    for number in np.unique(of_block).tolist():
        own = of_block == number
        taken[own] = blocks[number]["vector"][rows[own] - starts[number]]
    return taken


class _Store:
    """The blocks of one tower: those of files, mapped, then those that wait for one."""

    def __init__(self, folder: Path | None, width: int) -> None:
        self._folder = folder
        self._type = np.dtype([("key", np.uint8, (16,)), ("vector", np.float32, (width,))])
        self.blocks: list[np.ndarray] = []
        self.paths: list[Path] = []
        self.rows: dict[bytes, int] = {}
        for path in sorted(folder.glob("*.npy")) if folder is not None else ():
            try:
                block = np.load(path, mmap_mode="r")
                if block.dtype != self._type or block.ndim != 1 or _name(block) != path.name:
                    raise ValueError("it holds something else than was written")
            except (OSError, ValueError, EOFError) as error:
                log.warning("%s is damaged, its vectors are computed again: %s", path, error)
                with suppress(OSError):
                    path.unlink()
                continue
            self._append(block)
            self.paths.append(path)

    def add(self, keys: Sequence[bytes], vectors: np.ndarray) -> None:
        """Takes in what is new."""
        block = np.empty(len(keys), self._type)
        block["key"] = np.frombuffer(b"".join(keys), np.uint8).reshape(len(keys), 16)
        block["vector"] = vectors
        self._append(block)
        if sum(waiting.nbytes for waiting in self.blocks[len(self.paths) :]) >= FILE_BYTES:
            self.save()

    def save(self) -> None:
        """Writes what waits as a file, which stands in the folder only when it is whole; or CheckpointError."""
        waiting = self.blocks[len(self.paths) :]
        if self._folder is None or not waiting:
            return
        block = np.concatenate(waiting)
        path = self._folder / _name(block)
        staged = path.with_suffix(f".{os.getpid()}.part")
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            with staged.open("wb") as file:
                np.save(file, block)
            staged.replace(path)
        except OSError as error:
            with suppress(OSError):
                staged.unlink()
            raise CheckpointError(
                f"{path}: expected a folder in which vectors of towers can be kept, cannot write it ({error}); make "
                "room, or name another one (training.vectors, evaluation.vectors or work.uri)"
            ) from error
        self.blocks[len(self.paths) :] = [np.load(path, mmap_mode="r")]
        self.paths.append(path)

    def _append(self, block: np.ndarray) -> None:
        begin, keys = sum(map(len, self.blocks)), block["key"].tobytes()
        self.blocks.append(block)
        self.rows.update((keys[16 * row : 16 * row + 16], begin + row) for row in range(len(block)))


class KeptTower:
    """A tower that computes what nobody with the same tower has computed yet; among runners it stands for its own."""

    def __init__(self, features: TowerFeatures, store: _Store) -> None:
        self._features, self._store = features, store
        self.text_keys = features.text_keys

    def __contains__(self, key: bytes) -> bool:
        return key in self._store.rows

    def __len__(self) -> int:
        return len(self._store.rows)

    @property
    def paths(self) -> list[Path]:
        """The files with what `rows` tells the place of, once they are saved."""
        return self._store.paths

    def rows(self, keys: Sequence[bytes]) -> np.ndarray:
        """int64: where the vectors of keys stand, -1 for those that are not known."""
        return np.fromiter((self._store.rows.get(key, -1) for key in keys), np.int64, len(keys))

    def see(self, keys: Sequence[bytes], items: Callable[[list[int]], Any]) -> None:
        """Computes what is new among the keys; `items` gives the texts, or the pixels, at the places of such keys.

        Raises:
            CheckpointError: The tower gives a vector that is not finite.
        """
        new: dict[bytes, int] = {}
        for place, key in enumerate(keys):
            if key not in self:
                new.setdefault(key, place)
        if not new:
            return
        vectors = self._features.run(items(list(new.values())))
        if not np.isfinite(vectors).all():
            raise CheckpointError(
                f"the {self._features.part} tower of this encoder gives vectors that are not finite: expected numbers; "
                "look at the weights that it was made of"
            )
        self._store.add(list(new), vectors)

    def see_texts(self, texts: Sequence[str]) -> list[bytes]:
        """Computes those that are new; returns their keys."""
        keys = self.text_keys(texts)
        self.see(keys, lambda places: [texts[place] for place in places])
        return keys

    def see_pixels(self, pixels: Mapping[bytes, np.ndarray]) -> None:
        """Computes images, uint8 `[3, S, S]` each by its key, that are new."""
        images = list(pixels.values())
        self.see(list(pixels), lambda places: np.stack([images[place] for place in places]))

    def take(self, keys: Sequence[bytes]) -> torch.Tensor:
        """What the tower gives for keys that it has seen, float32 `[n, D]` on its device."""
        return self._features.project(take_rows(self._store.blocks, self.rows(keys)))

    def run(self, texts: Sequence[str]) -> torch.Tensor:
        """As `TextRunner.run`."""
        return self.take(self.see_texts(texts))

    def run_images(self, images: Sequence[AnyImage]) -> torch.Tensor:
        """As `ImageRunner.run_images`; encoded bytes that are known are not decoded."""
        wanted = self._features.preprocessing
        data = [each if isinstance(each, bytes) else image_pixels(each, wanted).tobytes() for each in images]
        keys = list(map(image_digest, data))
        self.see(keys, lambda places: np.stack([image_pixels(images[place], wanted) for place in places]))
        return self.take(keys)


class KeptVectors:
    """The towers of a command's encoders.

    Args:
        folder: A local one that keeps their vectors for the next command; None keeps them as long as this object.
        decoding: The rules by which images become pixels; others give other vectors.
    """

    def __init__(self, folder: str | Path | None, *, decoding: str = "") -> None:
        self._folder = None if folder is None else Path(folder).expanduser()
        self._decoding = hashlib.sha256(decoding.encode()).hexdigest()[:8]
        self._stores: dict[str, _Store] = {}

    def tower(self, features: TowerFeatures) -> KeptTower:
        """One tower of an encoder, with what is known of it."""
        is_image = features.part == "image"
        name = f"image-{features.fingerprint}-{self._decoding}" if is_image else f"text-{features.fingerprint}"
        if name not in self._stores:
            self._stores[name] = _Store(None if self._folder is None else self._folder / name, features.dim)
        return KeptTower(features, self._stores[name])

    def save(self) -> None:
        """Writes what is new."""
        for store in self._stores.values():
            store.save()


def _name(block: np.ndarray) -> str:
    return f"{xxhash.xxh3_128_hexdigest(np.ascontiguousarray(block).view(np.uint8).data)}.npy"
