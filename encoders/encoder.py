"""The two sides of an encoder run here: products become vectors, queries become vectors.

Legend: B products or queries, T texts, P images, I image slots of a product, S side of an image in pixels, D fused
dimension, Dt and Di widths of the text and image towers' vectors.

On a CPU a product's vector depends on the product alone: the same bits in whatever batch, order, shard, thread or
process, on one kind of CPU and one version of torch. On a GPU, and for queries, which run as they come, companions may
change the last digits. Vectors are L2-normalised, so that cosine is the inner product.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, cast

import numpy as np
import torch
from torch.nn import functional

from encoders.config import ModelName, Precision
from encoders.folded_norms import fold_norms, prepack_folded
from encoders.image_decoding import AnyImage
from encoders.image_tower import ClipTextTower
from encoders.kept_vectors import KeptTower, KeptVectors
from encoders.model import EncoderModel, EncoderParts
from encoders.precision import apply_precision
from encoders.prepacking import prepack_layers, prepacking_helps
from encoders.preprocessing import ImagePreprocessing
from encoders.query_batches import BaseQueryEncoder
from encoders.running import ImageRunner, Lanes, Placement, TextRunner, fixed_rows, run_batches
from encoders.text_tower import TextTower
from encoders.tokenizers import TokenizedTexts
from encoders.tower_features import TowerFeatures, TowerPart

_ROWS_FUSED_AT_A_TIME = 64


class ProductEncoder:
    """The product side; load it once a process (`load_product_encoder`). Encoding is read-only: threads may share it.

    Towers and fusion are called apart, so that a text or image shared by several products goes through its tower
    once: `encode_texts`, `encode_images`, then `fuse` with the rows that each product uses. Attributes are those of
    `EncoderDescription`; `load_exact` loads the same in float32, to measure what the precision loses (None where this
    is float32 already).
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
        load_exact: Callable[[], ProductEncoder] | None = None,
    ) -> None:
        model, architecture = parts.model, parts.model.architecture
        self.model: ModelName = architecture.model
        self.dim = architecture.dim
        self.fingerprint = fingerprint
        self.load_exact = load_exact
        self.uses_text = architecture.uses_text
        self.text_is_fallback = architecture.text_is_fallback
        self.uses_images = architecture.uses_images
        if not compiled:
            fold_towers(model, device)
        self._model = move_towers(model, device, precision)
        if not compiled:
            prepack_towers(model, device)
        self._device, self._precision, self._parts, self._compiled = device, precision, parts, compiled
        self._lanes = Lanes() if device.type == "cpu" else None
        self._placement = placement = Placement(device, batch_size, self._lanes, graphed=device.type == "cuda")
        texts = _text_runners(model.document_text, model.clip_text, parts, placement)
        if self.uses_text and not texts:
            raise ValueError(f"a {self.model} encoder without a text tower and its tokenizer cannot encode products")
        self._text = texts[0] if texts else None
        self._images = _image_runner(model, placement)
        if compiled:
            for runner in (self._text, self._images):
                if runner is not None:
                    runner.compile()
        self.preprocessing: ImagePreprocessing | None = self._images.preprocessing if self._images else None
        self.max_tokens = self._text.max_tokens if self._text else 0

    def tokenize(self, texts: Sequence[str]) -> TokenizedTexts:
        """Tokenizes texts for `encode_texts`, without a device; `.truncated` of the result counts those cut."""
        return self._text_runner().tokenize(texts)

    def encode_texts(self, texts: Sequence[str] | TokenizedTexts) -> torch.Tensor:
        """Runs the text tower over T texts in batches of like length; returns float32 `[T, Dt]` on the device."""
        return self._text_runner().run(texts)

    def encode_images(self, pixels: np.ndarray) -> torch.Tensor:
        """Runs the image tower over uint8 `[P, 3, S, S]`; returns float32 `[P, Di]` on the device."""
        if self._images is None:
            raise ValueError(f"a {self.model} encoder reads no pictures: expected encode_images not to be called")
        return self._images.run(pixels)

    def tower_features(self, name: Literal["text", "image"]) -> TowerFeatures | None:
        """One tower without its projection; None where there is none, or where it is compiled as a whole."""
        document: TowerPart = "clip_text" if self._model.document_text is None else "document_text"
        part: TowerPart = "image" if name == "image" else document
        if self._compiled or (self._images if name == "image" else self._text) is None:
            return None
        return TowerFeatures(self._parts, part, precision=self._precision, placement=self._placement)

    def fuse(
        self,
        text: torch.Tensor | np.ndarray | None,
        text_rows: np.ndarray,
        image: torch.Tensor | np.ndarray | None,
        image_rows: np.ndarray,
    ) -> np.ndarray:
        """Makes one vector of each product's text and images.

        Args:
            text: What `encode_texts` returned (or the same as NumPy), or None when no product has a text.
            text_rows: int64 `[B]`: row of `text`, -1 for a product without text.
            image: What `encode_images` returned, or None when no product has an image.
            image_rows: int64 `[B, I]`: rows of `image`, -1 in slots that are empty. Of several images the mean of the
                normalised vectors counts.

        Returns float32 `[B, D]`, L2-normalised; a missing half follows the rule of the fusion (`encoders/README.md`).
        Raises ValueError where a product has nothing that this encoder can read, or a row is out of range.
        """
        text_rows, image_rows = np.asarray(text_rows, np.int64), np.asarray(image_rows, np.int64)
        image_rows = image_rows[:, None] if image_rows.ndim == 1 else image_rows
        if not self.uses_images:
            image, image_rows = None, image_rows[:, :0]
        if not self.uses_text:
            text, text_rows = None, np.full(len(text_rows), -1)
        _check_rows("text_rows", text_rows, 0 if text is None else len(text))
        _check_rows("image_rows", image_rows, 0 if image is None else len(image))
        has_text = np.asarray(text_rows >= 0)
        has_image = np.asarray((image_rows >= 0).any(axis=1))
        empty = np.flatnonzero(~(has_text | has_image))
        if len(empty):
            wanted = " or ".join(["a text"] * self.uses_text + ["a picture"] * self.uses_images)
            raise ValueError(
                f"{len(empty)} of {len(text_rows)} products have nothing to encode (first: row {empty[0]}); "
                f"a {self.model} encoder needs {wanted} of each"
            )
        fused = torch.empty((len(text_rows), self.dim), dtype=torch.float32, device=self._device)
        widths = [runner.dim for runner in (self._images, self._text) if runner is not None]
        image_dim, text_dim = widths[0], widths[-1]

        def fuse_rows(batch: tuple[np.ndarray, np.ndarray]) -> None:
            rows, filled = batch
            text_there, image_there = (torch.from_numpy(has[filled]).to(self._device) for has in (has_text, has_image))
            texts = _gather(text, text_rows[filled, None], text_dim, self._device)
            images = _gather(image, image_rows[filled], image_dim, self._device)
            vectors = self._model.fuse_product(texts, text_there, images, image_there)
            fused[torch.from_numpy(rows).to(self._device)] = vectors[: len(rows)].float()

        run_batches(self._lanes, fuse_rows, fixed_rows(np.arange(len(text_rows)), _ROWS_FUSED_AT_A_TIME))
        return fused.cpu().numpy()

    def encode(self, texts: Sequence[str | None], images: Sequence[AnyImage | None] | None = None) -> np.ndarray:
        """Encodes B products from texts and images (None: missing); float32 `[B, D]`, L2-normalised.

        Raises ImageDecodingError for an image that cannot be decoded.
        """
        text, text_rows = None, np.full(len(texts), -1)
        if self.uses_text:
            text, text_rows = _encode_present(texts, self.encode_texts)
        image, image_rows = None, np.full(len(texts), -1)
        if images is not None and self._images is not None:
            image, image_rows = _encode_present(images, self._images.run_images)
        return self.fuse(text, text_rows, image, image_rows)

    def _text_runner(self) -> TextRunner:
        if self._text is None:
            raise ValueError(f"this {self.model} encoder reads no texts: expected its text tower not to be called")
        return self._text


class QueryEncoder(BaseQueryEncoder):
    """The query side in torch, in float32, as a server loads it (`load_query_encoder`).

    With `kept` its towers compute what is not known there, in batches of fixed shape as the product side's; the image
    tower is then `kept_image`.
    """

    def __init__(
        self,
        parts: EncoderParts,
        *,
        fingerprint: str,
        device: torch.device,
        batch_size: int = 64,
        kept: KeptVectors | None = None,
    ) -> None:
        model, architecture = parts.model, parts.model.architecture
        self.model, self.dim, self.fingerprint = architecture.model, architecture.dim, fingerprint
        self.accepts_text, self.accepts_images = architecture.query_takes_text, architecture.uses_images
        self.image_weight = architecture.image_weight
        self.parts = architecture.parts
        self._model = move_towers(model, device, "float32")
        self._device = device
        self._texts: Sequence[TextRunner | KeptTower]
        self._images: ImageRunner | KeptTower | None
        self.kept_image: KeptTower | None = None
        if kept is None:
            placement = Placement(device, batch_size)
            self._texts = _text_runners(model.query_text, model.clip_text, parts, placement)
            self._images = _image_runner(model, placement)
        else:
            fold_towers(self._model, device)  # as the product side's, so that both know what either saw
            prepack_towers(self._model, device)
            placement = Placement(device, batch_size, Lanes() if device.type == "cpu" else None)

            def kept_tower(part: TowerPart) -> KeptTower:
                return kept.tower(TowerFeatures(parts, part, precision="float32", placement=placement))

            there: list[TowerPart] = ["query_text"] * (model.query_text is not None and parts.tokenizer is not None)
            there += ["clip_text"] * (model.clip_text is not None and parts.clip_tokenizer is not None)
            self._texts = [kept_tower(part) for part in there]
            self._images = self.kept_image = kept_tower("image") if model.image is not None else None
        self.preprocessing = architecture.clip.preprocessing if model.image is not None and architecture.clip else None

    @torch.inference_mode()
    def _encode_texts(self, texts: Sequence[str]) -> np.ndarray:
        return self._model.fuse_query(*(runner.run(texts) for runner in self._texts)).cpu().numpy()

    @torch.inference_mode()
    def _encode_images(self, images: Sequence[AnyImage]) -> np.ndarray:
        runner = cast("ImageRunner | KeptTower", self._images)  # `encode` asks only where images are accepted
        return self._model.fuse_photo(runner.run_images(images)).cpu().numpy()

    @torch.inference_mode()
    def _fuse_both(self, text: np.ndarray, image: np.ndarray, image_weight: float) -> np.ndarray:
        vectors = (torch.from_numpy(half).to(self._device) for half in (text, image))
        return self._model.fuse_photo_text(*vectors, image_weight=image_weight).cpu().numpy()


def move_towers(model: EncoderModel, device: torch.device, precision: Precision) -> EncoderModel:
    """Towers take the precision; fusions stay in float32, they cost nothing beside the towers."""
    model.to(device)
    for tower in (model.document_text, model.query_text, model.image, model.clip_text):
        if tower is not None:
            apply_precision(tower, precision)
    return model.eval()


def fold_towers(model: EncoderModel, device: torch.device) -> None:
    """Has a convolutional image tower run without batch norms on a CPU (`folded_norms`); it is in float32 yet."""
    if model.image is not None and device.type == "cpu":
        fold_norms(model.image)


def prepack_towers(model: EncoderModel, device: torch.device) -> None:
    """Has towers that are only ever run keep their weights as this device multiplies them fastest (`prepacking`)."""
    for tower in (model.document_text, model.query_text, model.clip_text, model.image):
        if tower is None:
            continue
        prepack_folded(tower)
        if prepacking_helps(next(tower.parameters()).dtype, device):
            if not isinstance(tower, TextTower):
                tower.prepack_blocks()
            prepack_layers(tower)


def _text_runners(
    bert: TextTower | None, clip: ClipTextTower | None, parts: EncoderParts, placement: Placement
) -> list[TextRunner]:
    pairs = (bert, parts.tokenizer), (clip, parts.clip_tokenizer)
    return [TextRunner(tower, tokenizer, placement) for tower, tokenizer in pairs if tower and tokenizer]


def _image_runner(model: EncoderModel, placement: Placement) -> ImageRunner | None:
    clip = model.architecture.clip
    return None if model.image is None or clip is None else ImageRunner(model.image, clip.preprocessing, placement)


def _gather(
    vectors: torch.Tensor | np.ndarray | None, rows: np.ndarray, dim: int, device: torch.device
) -> torch.Tensor:
    """Mean of the normalised vectors of each product's rows `[B, I]`, zeros where all are -1; `[B, dim]`."""
    if vectors is None or rows.shape[1] == 0 or len(vectors) == 0:
        return torch.zeros(len(rows), dim, device=device)
    picked_rows = torch.from_numpy(rows).to(device)
    total = torch.zeros(len(rows), dim, device=device)
    vectors = torch.as_tensor(vectors, device=device)
    for slot in picked_rows.T:  # one by one, so that empty slots at the end change nothing
        picked = functional.normalize(vectors[slot.clamp(min=0)].float(), dim=-1)
        total += picked * (slot >= 0).unsqueeze(-1)
    return total / (picked_rows >= 0).sum(1, keepdim=True).clamp(min=1)


def _check_rows(name: str, rows: np.ndarray, available: int) -> None:
    if rows.size and (rows.max() >= available or rows.min() < -1):
        raise ValueError(f"{name} holds {rows.min()} to {rows.max()}: expected -1 (missing) to {available - 1}")


def _encode_present(
    items: Sequence[Any], encode: Callable[[Sequence[Any]], torch.Tensor]
) -> tuple[torch.Tensor | None, np.ndarray]:
    """Encodes the items that are not None; returns their vectors and for each item its row, -1 where it is None."""
    present = np.fromiter((item is not None for item in items), bool, len(items))
    rows = np.where(present, np.cumsum(present) - 1, -1)
    found = [item for item in items if item is not None]
    return (encode(found) if found else None), rows
