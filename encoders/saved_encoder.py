"""From the `encoder:` section to encoders that run: check, load, save.

`resolve_encoder` looks at files and reads no weights into memory; everything that could fail early fails there.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from encoders.architecture import EncoderArchitecture
from encoders.checkpoint import file_sha256, local_folder, read_config
from encoders.config import MATCH_MODELS, EncoderConfig, ModelName, Precision
from encoders.encoder import ProductEncoder, QueryEncoder
from encoders.errors import CheckpointError, EncoderConfigError
from encoders.model import EncoderModel, EncoderParts, Side
from encoders.preprocessing import ImagePreprocessing
from encoders.tokenizers import FastTokenizer, FolderClipTokenizer, load_clip_tokenizer
from encoders.towers import ClipCheckpoint, TextCheckpoint, find_clip_checkpoint, find_text_checkpoint

# ---- encoders/saved_folder.py ----
# The saved encoder folder: written whole, read back with checks.
#
# encoder.json            schema version, model, dims, towers, fusion, preprocessing, rules, fingerprint, training
# note weights.safetensors     every tensor once
# text_tower/             config.json and tokenizer.json of the BERT tower, where there is one
# clip_tokenizer/         tokenizer files of a CLIP text tower that does not use open_clip's own byte-pair table
#
# A folder of side `query` holds what a server needs to embed queries, and the fingerprint of the encoder that made the
# products' vectors.


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
        architecture = self.architecture
        model = EncoderModel(architecture)
        try:
            weights = load_file(str(self.folder / _WEIGHTS))
        except (OSError, SafetensorError) as error:
            raise CheckpointError(f"{self.folder / _WEIGHTS} cannot be read: {error}") from error
        model.load_weights(weights, side=self.side, where=str(self.folder / _WEIGHTS))
        if self.side == "query":
            model.keep_side("query")
        tokenizer, clip_tokenizer = None, None
        if architecture.text is not None:
            tokenizer = FastTokenizer.load(self.folder / _TEXT, max_tokens=architecture.text.max_tokens)
        if architecture.clip is not None and architecture.uses_clip_text:
            tokenizer_folder = self.folder / _CLIP_TOKENIZER
            clip_tokenizer = load_clip_tokenizer(
                architecture.clip.model_config["text_cfg"], tokenizer_folder if tokenizer_folder.is_dir() else None
            )
        return EncoderParts(model=model, tokenizer=tokenizer, clip_tokenizer=clip_tokenizer)


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


def write_saved(
    parts: EncoderParts,
    folder: str | os.PathLike[str],
    *,
    side: Side = "both",
    fingerprint: str | None = None,
    training: dict[str, Any] | None = None,
) -> None:
    """Writes a saved folder, in place only when it is whole; equal parts give equal bytes.

    Args:
        parts: The encoder.
        folder: Local folder; an earlier saved encoder there is replaced, anything else is left alone (CheckpointError).
        side: `both`, or `query` for what a server needs.
        fingerprint: Recorded with a query side: that of the encoder of the products' vectors.
        training: What made the weights, for people to read.
    """
    target = Path(folder)
    if target.exists() and not (target.is_dir() and (not any(target.iterdir()) or (target / _CONFIG).is_file())):
        raise CheckpointError(
            f"{target} exists and is no saved encoder: expected a new folder, or an earlier saved encoder"
        )
    target.parent.mkdir(parents=True, exist_ok=True)
    staged = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}.part-"))
    try:
        staged.chmod(0o755)
        _write_files(parts, staged, side=side, fingerprint=fingerprint, training=training)
        if target.exists():
            shutil.rmtree(target)
        staged.rename(target)
    finally:
        shutil.rmtree(staged, ignore_errors=True)


def _write_files(
    parts: EncoderParts, folder: Path, *, side: Side, fingerprint: str | None, training: dict[str, Any] | None
) -> None:
    architecture = parts.model.architecture
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in parts.model.weights(side).items()}
    save_file(weights, str(folder / _WEIGHTS), metadata={"format": "pt"})
    (folder / _WEIGHTS).chmod(0o644)  # safetensors writes files that only their owner may read
    values = {"schema_version": SCHEMA_VERSION, "side": side, **architecture.to_dict()}
    if fingerprint is not None:
        values["fingerprint"] = fingerprint
    if training is not None:
        values["training"] = training
    _write_json(folder / _CONFIG, values)
    if architecture.text is not None and parts.tokenizer is not None:
        (folder / _TEXT).mkdir()
        _write_json(folder / _TEXT / "config.json", architecture.text.config)
        parts.tokenizer.save(folder / _TEXT)
    if isinstance(parts.clip_tokenizer, FolderClipTokenizer):
        (folder / _CLIP_TOKENIZER).mkdir()
        parts.clip_tokenizer.save(folder / _CLIP_TOKENIZER)


def _write_json(path: Path, values: dict[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=2, sort_keys=True) + "\n", encoding="utf-8")


@dataclass(frozen=True, kw_only=True, slots=True)
class EncoderDescription:
    """What a job needs to know of its encoder before it does any work.

    Attributes:
        model: Name of the architecture.
        dim: Width D of the vectors.
        fingerprint: 16 hex digits over weights, config, tokenizer and precision. Vectors of one fingerprint may stand
            side by side whatever device or release made them: they agree up to the rounding of their sums.
        uses_text: Whether the product side reads texts.
        text_is_fallback: Whether it needs the text only of products without a picture (clip).
        uses_images: Whether the product side reads pictures.
        preprocessing: What the picture tower wants; None without one.
        max_tokens: Longer texts are cut to this many tokens.
        missing_rule: What happens to a product without text or picture.
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
    batch_invariant: bool = True


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
    described = _describe(source.architecture, _fingerprint(source, config.precision))
    on_gpu = config.device not in ("cpu", "auto") or (config.device == "auto" and torch.cuda.is_available())
    return replace(described, batch_invariant=not on_gpu)


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
