"""The two sides of an encoder, ready to run: products to vectors, queries to vectors.

Legend: B products or queries, T texts, P pictures, I picture slots of a product, S side of a picture in pixels, D fused
dimension, Dt and Di widths of the text and picture towers' vectors.

Equal inputs in equal batches give equal bytes. Vectors are L2-normalised, so that cosine is the inner product.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np
import torch
from PIL import Image
from torch import nn
from torch._dynamo.exc import TorchDynamoException
from torch.nn import functional

from encoders.config import ModelName, Precision
from encoders.errors import EncoderConfigError
from encoders.image_tower import ClipTextTower, ImageTower
from encoders.model import EncoderModel, EncoderParts
from encoders.preprocessing import ImagePreprocessing, resize_picture
from encoders.query_batches import encode_queries
from encoders.text_tower import TextTower
from encoders.tokenizers import TextTokenizer, TokenizedTexts

# ---- encoders/compiling.py ----
# Towers through torch.compile, for `encoder.compile`.


_Tower = TypeVar("_Tower", bound=nn.Module)


def compile_tower(tower: _Tower, *example: torch.Tensor) -> _Tower:
    """Compiles a tower for batches of any size and texts of any length, and runs it once.

    Shapes are dynamic: a batch of another length runs the same code; only a batch of one item is compiled again. The
    run happens here, so that what cannot be compiled is known when the encoder is loaded.

    Args:
        tower: On its device, in its precision.
        example: What it is called with, at least two items a batch.

    Raises:
        EncoderConfigError: There is no compiler that works, or torch cannot compile this tower.
    """
    compiled = torch.compile(tower, dynamic=True)
    try:
        with torch.inference_mode():
            compiled(*example)
    except TorchDynamoException as error:
        device = example[0].device.type
        wanted = "a C++ compiler (g++, or the one that CXX names)" if device == "cpu" else "Triton and a C compiler"
        cause = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise EncoderConfigError(
            f"encoder.compile is true: torch.compile fails on the {type(tower).__name__} ({cause}); on {device} it "
            f"needs {wanted}: install it, or set encoder.compile: false"
        ) from error
    return compiled  # type: ignore[return-value]  # behaves as the tower, attributes included


# ---- encoders/running.py ----
# Towers on their device: batches in, float32 vectors out.
#
# Legend: T texts, P pictures, S side of a picture in pixels, D width of the tower's vectors.


class TextRunner:
    """A text tower with its tokenizer.

    Args:
        tower: On the device already.
        tokenizer: Its own.
        device: Where it is.
        batch_size: Texts per forward pass.
    """

    def __init__(
        self, tower: TextTower | ClipTextTower, tokenizer: TextTokenizer, *, device: torch.device, batch_size: int
    ) -> None:
        self.dim = tower.dim
        self.max_tokens = tokenizer.max_tokens
        self._tower = tower
        self._tokenizer = tokenizer
        self._device = device
        self._batch_size = batch_size

    def tokenize(self, texts: Sequence[str]) -> TokenizedTexts:
        """Tokenizes T texts; needs no device."""
        return self._tokenizer.tokenize(texts)

    def compile(self) -> None:
        """Compiles the tower; raises EncoderConfigError where that cannot be done."""
        ids = torch.zeros((2, 3), dtype=torch.int64, device=self._device)
        self._tower = compile_tower(self._tower, ids, torch.ones_like(ids, dtype=torch.bool))

    @torch.inference_mode()
    def run(self, texts: Sequence[str] | TokenizedTexts) -> torch.Tensor:
        """Encodes T texts in batches of like length; float32 `[T, D]` on the device, in the order given."""
        tokens = texts if isinstance(texts, TokenizedTexts) else self.tokenize(texts)
        vectors = torch.empty((len(tokens), self.dim), dtype=torch.float32, device=self._device)
        for rows, ids, mask in tokens.batches(self._batch_size):
            encoded = self._tower(torch.from_numpy(ids).to(self._device), torch.from_numpy(mask).to(self._device))
            vectors[torch.from_numpy(rows).to(self._device)] = encoded.float()
        return vectors


class ImageRunner:
    """A picture tower with its preprocessing.

    Args:
        tower: On the device already.
        preprocessing: What it wants to see.
        device: Where it is.
        batch_size: Pictures per forward pass.
    """

    def __init__(
        self, tower: ImageTower, preprocessing: ImagePreprocessing, *, device: torch.device, batch_size: int
    ) -> None:
        self.dim = tower.dim
        self.preprocessing = preprocessing
        self._tower = tower
        self._device = device
        self._batch_size = batch_size

    def compile(self) -> None:
        """Compiles the tower; raises EncoderConfigError where that cannot be done."""
        size = self.preprocessing.size
        self._tower = compile_tower(
            self._tower, torch.zeros((2, 3, size, size), dtype=torch.uint8, device=self._device)
        )

    def run(self, pixels: np.ndarray) -> torch.Tensor:
        """Encodes pixels uint8 `[P, 3, S, S]`; float32 `[P, D]` on the device. Raises ValueError on another shape."""
        expected = (3, self.preprocessing.size, self.preprocessing.size)
        if pixels.dtype != np.uint8 or pixels.shape[1:] != expected:
            raise ValueError(
                f"pixels are {pixels.dtype} {list(pixels.shape)}: expected uint8 [P, {', '.join(map(str, expected))}]"
            )
        return self._run(pixels)

    def run_pictures(self, images: Sequence[Image.Image]) -> torch.Tensor:
        """Resizes and encodes P PIL pictures, at least one."""
        return self.run(np.stack([resize_picture(image, self.preprocessing) for image in images]))

    @torch.inference_mode()
    def _run(self, pixels: np.ndarray) -> torch.Tensor:
        vectors = torch.empty((len(pixels), self.dim), dtype=torch.float32, device=self._device)
        for start in range(0, len(pixels), self._batch_size):
            batch = torch.from_numpy(np.ascontiguousarray(pixels[start : start + self._batch_size]))
            vectors[start : start + self._batch_size] = self._tower(batch.to(self._device, non_blocking=True)).float()
        return vectors


_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_Item = TypeVar("_Item")


class ProductEncoder:
    """The product side; load it once a process (`load_product_encoder`). Encoding is read-only: threads may share it.

    Towers and fusion are called apart, so that a text or picture shared by several products goes through its tower
    once: `encode_texts`, `encode_images`, then `fuse` with the rows that each product uses.

    Attributes:
        model: Name of the architecture.
        dim: D.
        fingerprint: 16 hex digits over weights, config, tokenizer and precision.
        uses_text: Whether texts are read.
        text_is_fallback: Whether a text matters only where the picture is missing (clip).
        uses_images: Whether pictures are read.
        preprocessing: What pictures must be resized to; None where none are read.
        max_tokens: Longer texts are cut to this many tokens.
    """

    def __init__(
        self,
        parts: EncoderParts,
        *,
        fingerprint: str,
        device: torch.device,
        precision: Precision,
        batch_size: int,
        compiled: bool = False,
    ) -> None:
        architecture = parts.model.architecture
        self.model: ModelName = architecture.model
        self.dim = architecture.dim
        self.fingerprint = fingerprint
        self.uses_text = architecture.uses_text
        self.text_is_fallback = architecture.text_is_fallback
        self.uses_images = architecture.uses_images
        self._model = _to_device(parts.model, device, precision)
        self._device = device
        text = _text_runner(parts, "product", device, batch_size) or _clip_text_runner(parts, device, batch_size)
        if text is None:
            raise ValueError(f"a {self.model} encoder without a text tower and its tokenizer cannot encode products")
        self._text = text
        self._images = _image_runner(parts, device, batch_size)
        if compiled:
            for runner in (self._text, self._images):
                if runner is not None:
                    runner.compile()
        self.preprocessing: ImagePreprocessing | None = self._images.preprocessing if self._images else None
        self.max_tokens = text.max_tokens

    def tokenize(self, texts: Sequence[str]) -> TokenizedTexts:
        """Tokenizes texts for `encode_texts`; `.truncated` of the result counts those that were cut. Needs no
        device.
        """
        return self._text.tokenize(texts)

    def encode_texts(self, texts: Sequence[str] | TokenizedTexts) -> torch.Tensor:
        """Runs the text tower over T texts in batches of like length; returns float32 `[T, Dt]` on the device."""
        return self._text.run(texts)

    def encode_images(self, pixels: np.ndarray) -> torch.Tensor:
        """Runs the picture tower over uint8 `[P, 3, S, S]`; returns float32 `[P, Di]` on the device."""
        if self._images is None:
            raise ValueError(f"a {self.model} encoder reads no pictures: expected encode_images not to be called")
        return self._images.run(pixels)

    def count_truncated(self, texts: Sequence[str]) -> int:
        """How many texts are longer than `max_tokens` and would be cut."""
        return self.tokenize(texts).truncated

    @torch.inference_mode()
    def fuse(
        self,
        text: torch.Tensor | np.ndarray | None,
        text_rows: np.ndarray,
        image: torch.Tensor | np.ndarray | None,
        image_rows: np.ndarray,
    ) -> np.ndarray:
        """Makes one vector of each product's text and pictures.

        Args:
            text: What `encode_texts` returned (or the same as NumPy), or None when no product has a text.
            text_rows: int64 `[B]`: row of `text`, -1 for a product without text.
            image: What `encode_images` returned, or None when no product has a picture.
            image_rows: int64 `[B, I]`: rows of `image`, -1 in slots that are empty. Of several pictures the mean of the
                normalised vectors counts.

        Returns:
            float32 `[B, D]`, L2-normalised. A missing half follows the rule of the fusion (see `encoders/README.md`).

        Raises:
            ValueError: A product has nothing that this encoder can read, or a row is out of range.
        """
        text_rows = np.asarray(text_rows, np.int64)
        image_rows = np.asarray(image_rows, np.int64)
        image_rows = image_rows[:, None] if image_rows.ndim == 1 else image_rows
        if not self.uses_images:
            image, image_rows = None, image_rows[:, :0]
        _check_rows("text_rows", text_rows, 0 if text is None else len(text))
        _check_rows("image_rows", image_rows, 0 if image is None else len(image))
        has_text, has_image = text_rows >= 0, (image_rows >= 0).any(axis=1)
        empty = np.flatnonzero(~(has_text | has_image))
        if len(empty):
            wanted = "a text or a picture" if self.uses_images else "a text"
            raise ValueError(
                f"{len(empty)} of {len(text_rows)} products have nothing to encode (first: row {empty[0]}); "
                f"a {self.model} encoder needs {wanted} of each"
            )
        text_vectors = _gather(text, text_rows[:, None], self._text.dim, self._device)
        image_dim = self._images.dim if self._images is not None else self._text.dim
        image_vectors = _gather(image, image_rows, image_dim, self._device)
        fused = self._model.fuse_product(
            text_vectors,
            torch.from_numpy(has_text).to(self._device),
            image_vectors,
            torch.from_numpy(has_image).to(self._device),
        )
        return fused.float().cpu().numpy()

    def encode(self, texts: Sequence[str | None], images: Sequence[Image.Image | None] | None = None) -> np.ndarray:
        """Encodes B products from texts and PIL pictures (None: missing); float32 `[B, D]`, L2-normalised."""
        text, text_rows = _encode_present(texts, self.encode_texts)
        image, image_rows = None, np.full(len(texts), -1)
        if images is not None and self._images is not None:
            image, image_rows = _encode_present(images, self._images.run_pictures)
        return self.fuse(text, text_rows, image, image_rows)


class QueryEncoder:
    """The query side, in float32, as a server loads it (`load_query_encoder`).

    A picture alone is encoded by the model's rule: the picture tower (clip, match3, match4), or the product side with
    its text missing (3tmm, 4tmm). Picture and text together: the two normalised vectors, weighted `image_weight` and
    1 - `image_weight`, summed and normalised; match4 with fusion `mlp` adds to the sum what it has learned.

    Attributes:
        model: Name of the architecture.
        dim: D.
        fingerprint: That of the encoder that made the products' vectors.
        accepts_text: Whether texts can be queries.
        accepts_images: Whether pictures can be queries.
        image_weight: Weight of the picture in a query of both.
    """

    def __init__(self, parts: EncoderParts, *, fingerprint: str, device: torch.device, batch_size: int = 64) -> None:
        architecture = parts.model.architecture
        self.model: ModelName = architecture.model
        self.dim = architecture.dim
        self.fingerprint = fingerprint
        self.accepts_text = architecture.query_takes_text
        self.accepts_images = architecture.uses_images
        self.image_weight = architecture.image_weight
        self._model = _to_device(parts.model, device, "float32")
        self._device = device
        self._text = _text_runner(parts, "query", device, batch_size)
        self._clip_text = _clip_text_runner(parts, device, batch_size)
        self._images = _image_runner(parts, device, batch_size)
        self.preprocessing: ImagePreprocessing | None = self._images.preprocessing if self._images else None

    def encode(
        self, texts: Sequence[str | None] | None = None, images: Sequence[Image.Image | None] | None = None
    ) -> np.ndarray:
        """Encodes B queries.

        Args:
            texts: B texts, None where a query has no text; None when no query has one.
            images: B PIL pictures in the same way.

        Returns:
            float32 `[B, D]`, L2-normalised.

        Raises:
            ValueError: Lengths differ, a query is empty, or a picture is given to an encoder that reads none.
        """
        return encode_queries(
            texts,
            images,
            dim=self.dim,
            encode_texts=self._encode_texts,
            encode_images=self._encode_images,
            fuse_both=self._fuse_both,
        )

    @torch.inference_mode()
    def _encode_texts(self, texts: Sequence[str]) -> np.ndarray:
        if not self.accepts_text:
            raise ValueError(f"a {self.model} encoder takes no texts as queries: expected pictures only")
        vectors = [runner.run(texts) for runner in (self._text, self._clip_text) if runner is not None]
        return self._model.fuse_query(*vectors).cpu().numpy()

    @torch.inference_mode()
    def _encode_images(self, images: Sequence[Image.Image]) -> np.ndarray:
        if self._images is None:
            raise ValueError(f"a {self.model} encoder takes no pictures as queries: expected texts only")
        return self._model.fuse_photo(self._images.run_pictures(images)).cpu().numpy()

    @torch.inference_mode()
    def _fuse_both(self, text: np.ndarray, image: np.ndarray) -> np.ndarray:
        vectors = (torch.from_numpy(half).to(self._device) for half in (text, image))
        return self._model.fuse_photo_text(*vectors, image_weight=self.image_weight).cpu().numpy()


def _to_device(model: EncoderModel, device: torch.device, precision: Precision) -> EncoderModel:
    """Towers take the precision; fusions stay in float32, they cost nothing beside the towers."""
    model.to(device)
    for tower in (model.document_text, model.query_text, model.image, model.clip_text):
        if tower is not None:
            tower.to(_DTYPES[precision])
    return model.eval()


def _text_runner(parts: EncoderParts, side: str, device: torch.device, batch_size: int) -> TextRunner | None:
    tower = parts.model.document_text if side == "product" else parts.model.query_text
    if tower is None or parts.tokenizer is None:
        return None
    return TextRunner(tower, parts.tokenizer, device=device, batch_size=batch_size)


def _clip_text_runner(parts: EncoderParts, device: torch.device, batch_size: int) -> TextRunner | None:
    if parts.model.clip_text is None or parts.clip_tokenizer is None:
        return None
    return TextRunner(parts.model.clip_text, parts.clip_tokenizer, device=device, batch_size=batch_size)


def _image_runner(parts: EncoderParts, device: torch.device, batch_size: int) -> ImageRunner | None:
    clip = parts.model.architecture.clip
    if parts.model.image is None or clip is None:
        return None
    return ImageRunner(parts.model.image, clip.preprocessing, device=device, batch_size=batch_size)


def _gather(
    vectors: torch.Tensor | np.ndarray | None, rows: np.ndarray, dim: int, device: torch.device
) -> torch.Tensor:
    """Mean of the normalised vectors of each product's rows `[B, I]`, zeros where all are -1; `[B, dim]`."""
    if vectors is None or rows.shape[1] == 0 or len(vectors) == 0:
        return torch.zeros(len(rows), dim, device=device)
    places = torch.from_numpy(rows).to(device)
    present = (places >= 0).unsqueeze(-1)
    picked = (
        functional.normalize(torch.as_tensor(vectors, device=device).float(), dim=-1)[places.clamp(min=0)] * present
    )
    return picked.sum(1) / present.sum(1).clamp(min=1)


def _check_rows(name: str, rows: np.ndarray, available: int) -> None:
    if rows.size and (rows.max() >= available or rows.min() < -1):
        raise ValueError(f"{name} holds {rows.min()} to {rows.max()}: expected -1 (missing) to {available - 1}")


def _encode_present(
    items: Sequence[_Item | None], encode: Callable[[Sequence[_Item]], torch.Tensor]
) -> tuple[torch.Tensor | None, np.ndarray]:
    """Encodes the items that are not None; returns their vectors and for each item its row, -1 where it is None."""
    present = np.fromiter((item is not None for item in items), bool, len(items))
    rows = np.where(present, np.cumsum(present) - 1, -1)
    found = [item for item in items if item is not None]
    return (encode(found) if found else None), rows
