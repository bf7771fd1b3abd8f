"""Encoders from the `encoder:` section and from saved folders: find, check, load, save.

`resolve_encoder` looks at files and reads no weights into memory; everything that could fail early fails there. A saved
encoder is a folder, written whole and read back with checks:

    encoder.json            schema version, model, dims, towers, fusion, preprocessing, rules, fingerprint, training
    weights.safetensors     every tensor once
    text_tower/             config.json and tokenizer.json of the BERT tower, where there is one
    clip_tokenizer/         tokenizer files of a CLIP text tower that does not use open_clip's own byte-pair table

A folder of side `query` holds what a server needs to embed queries, and the fingerprint of the encoder that made the
products' vectors.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from encoders.architecture import EncoderArchitecture
from encoders.checkpoint import file_sha256, local_folder, read_config, replaced_folder
from encoders.config import MATCH_MODELS, USES_CLIP_TEXT, EncoderConfig, ModelName, Precision
from encoders.encoder import ProductEncoder, QueryEncoder
from encoders.errors import CheckpointError, EncoderConfigError
from encoders.model import EncoderModel, EncoderParts, Side
from encoders.preprocessing import ImagePreprocessing
from encoders.tokenizers import FastTokenizer, TextTokenizer, clip_tokenizer
from encoders.towers import ClipCheckpoint, TextCheckpoint, find_clip_checkpoint, find_text_checkpoint

SCHEMA_VERSION = 1
_CONFIG, _WEIGHTS, _TEXT, _CLIP_TOKENIZER = "encoder.json", "weights.safetensors", "text_tower", "clip_tokenizer"


@dataclass(frozen=True, kw_only=True, slots=True)
class SavedEncoder:
    """A saved folder whose `encoder.json` has been read and whose files have been found."""

    folder: Path
    architecture: EncoderArchitecture
    side: Side
    fingerprint: str | None
    training: dict[str, Any] | None

    def identity(self) -> dict[str, str]:
        """Hash of every file that decides the vectors, by role."""
        paths = [self.folder / _WEIGHTS, self.folder / _TEXT / "tokenizer.json"]
        paths += sorted((self.folder / _CLIP_TOKENIZER).glob("*"))
        return {str(path.relative_to(self.folder)): file_sha256(path) for path in paths if path.is_file()}

    def load(self) -> EncoderParts:
        """Builds the modules and takes the weights over."""
        architecture, weights = self.architecture, self.folder / _WEIGHTS
        model = EncoderModel(architecture)
        try:
            tensors = load_file(str(weights))
        except (OSError, SafetensorError) as error:
            raise CheckpointError(f"{weights} cannot be read: {error}") from error
        model.load_weights(tensors, side=self.side, where=str(weights))
        if self.side == "query":
            model.keep_side("query")
        tokenizer: TextTokenizer | None = None
        clip_text_tokenizer: TextTokenizer | None = None
        if architecture.text is not None:
            tokenizer = FastTokenizer.load(self.folder / _TEXT, max_tokens=architecture.text.max_tokens)
        if architecture.clip is not None and architecture.uses_clip_text:
            folder = self.folder / _CLIP_TOKENIZER
            text_config = architecture.clip.model_config["text_cfg"]
            clip_text_tokenizer = clip_tokenizer(text_config, folder if folder.is_dir() else None)
        return EncoderParts(model=model, tokenizer=tokenizer, clip_tokenizer=clip_text_tokenizer)


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


@dataclass(frozen=True, kw_only=True, slots=True)
class EncoderDescription:
    """What a job needs to know of its encoder before it does any work.

    Attributes:
        model: Name of the architecture.
        dim: Width D of the vectors.
        fingerprint: 16 hex digits over weights, config, tokenizer and precision. Vectors of one fingerprint may stand
            side by side whatever device or release made them: they agree up to the rounding of their sums.
        uses_text: Whether the product side reads texts.
        text_is_fallback: Whether it needs the text only of products without an image (clip).
        uses_images: Whether the product side reads images.
        preprocessing: What the image tower wants; None without one.
        max_tokens: Longer texts are cut to this many tokens.
        missing_rule: What happens to a product without text or image.
        batch_invariant: Whether the bits of a product's vector depend on the product alone: on a CPU, not on a GPU.
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
    batch_invariant: bool


def check_encoder(config: EncoderConfig) -> EncoderDescription:
    """Preflight: finds the encoder's files and checks them without loading weights.

    Raises:
        CheckpointError: Files are missing, unreachable, pickled, incomplete, or untrained where training is needed.
        EncoderConfigError: A setting does not fit the checkpoint.
    """
    source = _trained_source(config)
    architecture = source.architecture
    return EncoderDescription(
        model=architecture.model,
        dim=architecture.dim,
        fingerprint=_fingerprint(source, config.precision),
        uses_text=architecture.uses_text,
        text_is_fallback=architecture.text_is_fallback,
        uses_images=architecture.uses_images,
        preprocessing=architecture.clip.preprocessing if architecture.clip else None,
        max_tokens=architecture.max_tokens,
        missing_rule=architecture.missing_rule,
        batch_invariant=config.device == "cpu" or (config.device == "auto" and not torch.cuda.is_available()),
    )


def load_product_encoder(config: EncoderConfig) -> ProductEncoder:
    """Loads the product side onto its device. Raises as `check_encoder` does, and EncoderConfigError where
    `config.compile` is set and nothing can be compiled.
    """
    source = _trained_source(config)
    fingerprint = _fingerprint(source, config.precision)
    parts = _load(source)
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
    parts = _load(saved)
    parts.model.keep_side("query")
    return parts, saved.fingerprint or _fingerprint(saved, "float32")


def save_query_encoder(config: EncoderConfig, folder: str) -> None:
    """Writes all that a server needs to embed queries into a local folder; the same bytes on every call.

    Weights are written in float32 whatever `config.precision` is; the fingerprint recorded is that of the product side.
    """
    source = _trained_source(config)
    save_encoder(_load(source), folder, side="query", fingerprint=_fingerprint(source, config.precision))


def save_encoder(
    parts: EncoderParts,
    folder: str,
    *,
    training: dict[str, Any] | None = None,
    side: Side = "both",
    fingerprint: str | None = None,
) -> None:
    """Writes an encoder, in place only when it is whole; equal parts give equal bytes.

    `load_product_encoder(EncoderConfig(uri=folder))` is the inverse.

    Args:
        parts: The encoder.
        folder: Local folder; an earlier saved encoder there is replaced, anything else is left alone (CheckpointError).
        training: What made the weights, for people to read.
        side: `both`, or `query` for what a server needs.
        fingerprint: Recorded with a query side: that of the encoder of the products' vectors.
    """
    architecture = parts.model.architecture
    with replaced_folder(Path(folder), marker=_CONFIG, kind="saved encoder") as staged:
        weights = {name: tensor.detach().cpu().contiguous() for name, tensor in parts.model.weights(side).items()}
        save_file(weights, str(staged / _WEIGHTS), metadata={"format": "pt"})
        (staged / _WEIGHTS).chmod(0o644)  # safetensors writes files that only their owner may read
        noted = {"fingerprint": fingerprint, "training": training}
        values = {"schema_version": SCHEMA_VERSION, "side": side, **architecture.to_dict()}
        _write_json(staged / _CONFIG, values | {key: value for key, value in noted.items() if value is not None})
        if architecture.text is not None and parts.tokenizer is not None:
            (staged / _TEXT).mkdir()
            _write_json(staged / _TEXT / "config.json", architecture.text.config)
            parts.tokenizer.save(staged / _TEXT)
        if parts.clip_tokenizer is not None and parts.clip_tokenizer.source is not None:
            parts.clip_tokenizer.source.save_pretrained(str(staged / _CLIP_TOKENIZER))


def resolve_encoder(config: EncoderConfig) -> SavedEncoder | TowerSources:
    """Finds the files behind `config`; a fusion that still wants training is let through (training starts there)."""
    if config.uri is not None:
        folder = local_folder(config.uri)
        if not (folder / _CONFIG).is_file():
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
    with_text = config.model in USES_CLIP_TEXT
    text = find_text_checkpoint(config.text_tower) if config.text_tower else None
    clip = find_clip_checkpoint(config.clip_tower, with_text=with_text) if config.clip_tower else None
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


def read_saved(folder: Path) -> SavedEncoder:
    """Reads and checks a saved folder without loading its weights.

    Raises:
        CheckpointError: Not a saved encoder, of a newer schema, or without readable weights.
    """
    values = read_config(folder / _CONFIG)
    version = values.get("schema_version")
    if version != SCHEMA_VERSION:
        raise CheckpointError(
            f"{folder / _CONFIG} has schema_version {version!r}: this Shelfmark reads {SCHEMA_VERSION}; "
            "take the release that wrote it, or train again"
        )
    try:
        text_config = read_config(folder / _TEXT / "config.json") if values["text_tower"] is not None else None
        architecture = EncoderArchitecture.from_dict(values, text_config=text_config)
        side = values["side"]
    except (KeyError, TypeError, EncoderConfigError) as error:
        raise CheckpointError(f"{folder / _CONFIG} is not a saved encoder of version {version}: {error!r}") from error
    weights = folder / _WEIGHTS
    if not weights.is_file():
        raise CheckpointError(f"no {_WEIGHTS} in {folder}: the saved encoder is incomplete")
    try:
        with safe_open(str(weights), framework="numpy"):
            pass
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{weights} is not a complete safetensors file: {error}") from error
    return SavedEncoder(
        folder=folder,
        architecture=architecture,
        side=side,
        fingerprint=values.get("fingerprint"),
        training=values.get("training"),
    )


def _write_json(path: Path, values: dict[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _load(source: SavedEncoder | TowerSources) -> EncoderParts:
    """Modules are built with random weights before the saved ones arrive; the caller's generator must not notice."""
    with torch.random.fork_rng(devices=[]):
        return source.load()


def _trained_source(config: EncoderConfig) -> SavedEncoder | TowerSources:
    source = resolve_encoder(config)
    if isinstance(source, TowerSources) and (config.fusion.method == "mlp" or source.architecture.is_match):
        untrained = "projection" if source.architecture.is_match else "fusion"
        raise CheckpointError(
            f"encoder.model {config.model} with fusion.method {config.fusion.method} has no trained {untrained} "
            "weights: train it (python -m pipelines.train_encoder) and give the result as encoder.uri"
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
