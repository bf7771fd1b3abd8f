"""The saved encoder folder: written whole, read back with checks.

    encoder.json            schema version, model, dims, towers, fusion, preprocessing, rules, fingerprint, training
    note weights.safetensors     every tensor once
    text_tower/             config.json and tokenizer.json of the BERT tower, where there is one
    clip_tokenizer/         tokenizer files of a CLIP text tower that does not use open_clip's own byte-pair table

A folder of side `query` holds what a server needs to embed queries, and the fingerprint of the encoder that made the
products' vectors.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from encoders.architecture import EncoderArchitecture
from encoders.checkpoint import file_sha256, read_config
from encoders.errors import CheckpointError, EncoderConfigError
from encoders.model import EncoderModel, Side
from encoders.tokenization.tokenizing import ClipTokenizer, FastTokenizer, FolderClipTokenizer, load_clip_tokenizer

SCHEMA_VERSION = 1
_CONFIG, _WEIGHTS, _TEXT, _CLIP_TOKENIZER = "encoder.json", "weights.safetensors", "text_tower", "clip_tokenizer"


@dataclass(frozen=True, kw_only=True, slots=True)
class EncoderParts:
    """An encoder in memory, on the CPU in float32: its modules and tokenizers."""

    model: EncoderModel
    tokenizer: FastTokenizer | None = None
    clip_tokenizer: ClipTokenizer | FolderClipTokenizer | None = None


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
