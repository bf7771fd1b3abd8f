"""From the `encoder:` section to encoders that run: check, load, save.

`resolve_encoder` looks at files and reads no weights into memory; everything that could fail early fails there.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from encoders.architecture import EncoderArchitecture
from encoders.checkpoint import local_folder
from encoders.encoder import ProductEncoder, QueryEncoder
from encoders.errors import CheckpointError, EncoderConfigError
from encoders.model import EncoderModel
from encoders.preprocessing import ImagePreprocessing
from encoders.saved_folder import EncoderParts, SavedEncoder, read_saved, write_saved
from encoders.spec import MATCH_MODELS, EncoderConfig, ModelName, Precision
from encoders.towers import ClipCheckpoint, TextCheckpoint, find_clip_checkpoint, find_text_checkpoint


@dataclass(frozen=True, kw_only=True, slots=True)
class EncoderDescription:
    """What a job needs to know of its encoder before it does any work.

    Attributes:
        model: Name of the architecture.
        dim: Width D of the vectors.
        fingerprint: 16 hex digits over weights, config, tokenizer and precision.
        uses_text: Whether the product side reads texts.
        text_is_fallback: Whether it needs the text only of products without a picture (clip).
        uses_images: Whether the product side reads pictures.
        preprocessing: What the picture tower wants; None without one.
        max_tokens: Longer texts are cut to this many tokens.
        missing_rule: What happens to a product without text or picture.
    """

    model: ModelName
    dim: int
    fingerprint: str
    uses_text: bool
    text_is_fallback: bool
    uses_images: bool
    preprocessing: ImagePreprocessing | None
    max_tokens: int
    missing_rule: str


@dataclass(frozen=True, kw_only=True, slots=True)
class TowerSources:
    """An encoder put together from checkpoints of its towers."""

    architecture: EncoderArchitecture
    text: TextCheckpoint | None
    clip: ClipCheckpoint | None

    def identity(self) -> dict[str, str]:
        """Hash of every file that decides the vectors, by role."""
        return {**(self.text.identity() if self.text else {}), **(self.clip.identity() if self.clip else {})}

    def load(self) -> EncoderParts:
        """Loads the towers; the fusion, where it has weights, is random."""
        uses_clip_text = self.architecture.uses_clip_text
        model = EncoderModel(
            self.architecture,
            backbone=self.text.load() if self.text else None,
            clip=self.clip.load(with_text=uses_clip_text) if self.clip else None,
        )
        return EncoderParts(
            model=model,
            tokenizer=self.text.tokenizer() if self.text else None,
            clip_tokenizer=self.clip.tokenizer() if self.clip and uses_clip_text else None,
        )


def check_encoder(config: EncoderConfig) -> EncoderDescription:
    """Preflight: finds the encoder's files and checks them without loading weights.

    Raises:
        CheckpointError: Files are missing, unreachable, pickled, incomplete, or untrained where training is needed.
        EncoderConfigError: A setting does not fit the checkpoint.
    """
    source = _trained_source(config)
    return _describe(source.architecture, _fingerprint(source, config.precision))


def load_product_encoder(config: EncoderConfig) -> ProductEncoder:
    """Loads the product side onto its device. Raises as `check_encoder` does, and EncoderConfigError where
    `config.compile` is set and nothing can be compiled.
    """
    source = _trained_source(config)
    fingerprint = _fingerprint(source, config.precision)
    with _untouched_random_state():
        parts = source.load()
    parts.model.keep_side("product")
    return ProductEncoder(
        parts,
        fingerprint=fingerprint,
        device=resolve_device(config.device),
        precision=config.precision,
        batch_size=config.batch_size,
        compiled=config.compile,
    )


def load_query_encoder(uri: str, *, device: str = "auto") -> QueryEncoder:
    """Loads the query side from a published version's `query_encoder/` or from a saved encoder folder, in float32.

    Raises:
        CheckpointError: No saved encoder at `uri`, or an incomplete one.
    """
    parts, fingerprint = load_query_parts(local_folder(uri))
    return QueryEncoder(parts, fingerprint=fingerprint, device=resolve_device(device))


def load_query_parts(folder: Path) -> tuple[EncoderParts, str]:
    """The query side's modules, on the CPU in float32, and the fingerprint of the encoder of the products' vectors."""
    saved = read_saved(folder)
    with _untouched_random_state():
        parts = saved.load()
    parts.model.keep_side("query")
    return parts, saved.fingerprint or _fingerprint(saved, "float32")


def save_query_encoder(config: EncoderConfig, folder: str) -> None:
    """Writes all that a server needs to embed queries into a local folder; the same bytes on every call.

    Weights are written in float32 whatever `config.precision` is; the fingerprint recorded is that of the product side.
    """
    source = _trained_source(config)
    with _untouched_random_state():
        parts = source.load()
    write_saved(parts, folder, side="query", fingerprint=_fingerprint(source, config.precision))


def save_encoder(parts: EncoderParts, folder: str, *, training: dict[str, Any] | None = None) -> None:
    """Writes a whole encoder, both sides; `load_product_encoder(EncoderConfig(uri=folder))` is the inverse."""
    write_saved(parts, folder, training=training)


def resolve_encoder(config: EncoderConfig) -> SavedEncoder | TowerSources:
    """Finds the files behind `config`; a fusion that still wants training is let through (training starts there)."""
    if config.uri is not None:
        folder = local_folder(config.uri)
        if not (folder / "encoder.json").is_file():
            raise CheckpointError(
                f"encoder.uri is {config.uri!r}: no encoder.json in {folder}. A saved Shelfmark encoder has one; "
                "towers of other libraries are named by encoder.model with text_tower and clip_tower"
            )
        saved = read_saved(folder)
        if config.image_weight is not None:
            saved = replace(saved, architecture=replace(saved.architecture, image_weight=config.image_weight))
        return saved
    if config.model is None:
        raise EncoderConfigError("encoder.uri and encoder.model: found neither, expected exactly one of the two")
    uses_clip_text = config.model in ("clip", "4tmm")
    text = find_text_checkpoint(config.text_tower) if config.text_tower else None
    clip = find_clip_checkpoint(config.clip_tower, with_text=uses_clip_text) if config.clip_tower else None
    if text is not None and clip is not None and config.model in MATCH_MODELS:
        projected = replace(text.architecture, projection_dim=config.fusion.dim or clip.architecture.dim)
        text = replace(text, architecture=projected)
    architecture = EncoderArchitecture(
        model=config.model,
        text=text.architecture if text else None,
        clip=clip.architecture if clip else None,
        fusion=config.fusion,
        image_weight=0.5 if config.image_weight is None else config.image_weight,
    )
    return TowerSources(architecture=architecture, text=text, clip=clip)


def resolve_device(name: str) -> torch.device:
    """`auto`, `cpu`, `cuda` or `cuda:N` to a device; raises EncoderConfigError where there is no such GPU."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(name)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise EncoderConfigError(
            f"encoder.device is {name!r}: this machine has {torch.cuda.device_count()} GPUs that torch can use; "
            "expected auto, cpu or a GPU that is there"
        )
    return device


def _trained_source(config: EncoderConfig) -> SavedEncoder | TowerSources:
    source = resolve_encoder(config)
    if isinstance(source, TowerSources) and (config.fusion.method == "mlp" or source.architecture.is_match):
        untrained = "projection" if source.architecture.is_match else "fusion"
        raise CheckpointError(
            f"encoder.model {config.model} with fusion.method {config.fusion.method} has no trained {untrained} "
            "weights: train it "
            "(python -m pipelines.train_encoder) and give the result as encoder.uri"
            + (", or take fusion.method concat or alpha" if config.model == "4tmm" else "")
        )
    if isinstance(source, SavedEncoder) and source.side == "query":
        raise CheckpointError(
            f"{source.folder} holds the query side only, as a published version's query_encoder does: expected the "
            "whole encoder"
        )
    return source


def _fingerprint(source: SavedEncoder | TowerSources, precision: Precision) -> str:
    shape = source.architecture.to_dict()
    del shape["image_weight"], shape["missing"]  # they do not change a product's vector
    text = source.architecture.text
    identity = {
        "shape": shape,
        "text_config": text.config if text else None,
        "files": source.identity(),
        "precision": precision,
    }
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]


def _describe(architecture: EncoderArchitecture, fingerprint: str) -> EncoderDescription:
    return EncoderDescription(
        model=architecture.model,
        dim=architecture.dim,
        fingerprint=fingerprint,
        uses_text=architecture.uses_text,
        text_is_fallback=architecture.text_is_fallback,
        uses_images=architecture.uses_images,
        preprocessing=architecture.clip.preprocessing if architecture.clip else None,
        max_tokens=architecture.max_tokens,
        missing_rule=architecture.missing_rule,
    )


def _untouched_random_state() -> Any:
    """Modules are built with random weights before the saved ones arrive; the caller's generator must not notice."""
    return torch.random.fork_rng(devices=[])
