"""Encoders are found, checked, loaded and saved: from the `encoder:` section, and as saved folders.

`resolve_encoder` looks at files and reads no weights into memory; everything that could fail early fails there. A saved
encoder is a folder, written whole and read back with checks:

    README.md               the model card of one that was trained here
    encoder.json            schema version, model, dims, towers, fusion, preprocessing, rules, fingerprint, training
    weights.safetensors     every tensor once
    text_tower/             config.json and tokenizer.json of the BERT tower, where there is one
    clip_tokenizer/         tokenizer files of a CLIP text tower that does not use open_clip's own byte-pair table

A folder of side `query` holds what a server needs, and the fingerprint of the encoder of the products' vectors.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from encoders.architecture import EncoderArchitecture
from encoders.checkpoint import check_replaceable, file_sha256, local_folder, read_config, replaced_folder, write_config
from encoders.config import MATCH_MODELS, USES_CLIP_TEXT, EncoderConfig, ModelName, Precision
from encoders.encoder import ProductEncoder, QueryEncoder
from encoders.errors import CheckpointError, EncoderConfigError
from encoders.kept_vectors import KeptVectors
from encoders.model import EncoderModel, EncoderParts, Side
from encoders.precision import FLOATING_POINT, check_precision, gaining_precisions, native_precision
from encoders.preprocessing import ImagePreprocessing
from encoders.tokenizers import FastTokenizer, TextTokenizer, clip_tokenizer
from encoders.towers import ClipCheckpoint, TextCheckpoint, find_clip_checkpoint, find_text_checkpoint

if TYPE_CHECKING:
    from encoders.image_backbones import ImageCheckpoint

SCHEMA_VERSION = 1
_KIND = "saved encoder"
_CONFIG, _WEIGHTS, _TEXT, _CLIP_TOKENIZER = "encoder.json", "weights.safetensors", "text_tower", "clip_tokenizer"


@dataclass(frozen=True, kw_only=True, slots=True)
class SavedEncoder:
    """A saved folder whose `encoder.json` has been read and whose files have been found."""

    folder: Path
    architecture: EncoderArchitecture
    side: Side
    fingerprint: str | None

    def identity(self) -> dict[str, str]:
        """Hash of every file that decides the vectors, by role."""
        paths = [self.folder / _WEIGHTS, self.folder / _TEXT / "tokenizer.json"]
        paths += sorted((self.folder / _CLIP_TOKENIZER).glob("*"))
        return {str(path.relative_to(self.folder)): file_sha256(path) for path in paths if path.is_file()}

    def load(self) -> EncoderParts:
        """Builds the modules with the saved weights."""
        architecture, weights = self.architecture, self.folder / _WEIGHTS
        model = EncoderModel(architecture)
        try:
            tensors = load_file(str(weights))
        except (OSError, SafetensorError) as error:
            raise CheckpointError(f"{weights} cannot be read: {error}") from error
        model.load_weights(tensors, side=self.side, where=str(weights))
        if self.side == "query":
            model.keep_side("query")
        text, clip, folder = architecture.text, architecture.clip, self.folder / _CLIP_TOKENIZER
        tokenizer = FastTokenizer.load(self.folder / _TEXT, max_tokens=text.max_tokens) if text else None
        of_clip: TextTokenizer | None = None
        if clip is not None and architecture.uses_clip_text:
            of_clip = clip_tokenizer(clip.model_config["text_cfg"], folder if folder.is_dir() else None)
        return EncoderParts(model=model, tokenizer=tokenizer, clip_tokenizer=of_clip)


@dataclass(frozen=True, kw_only=True, slots=True)
class TowerSources:
    """An encoder put together from checkpoints of its towers."""

    architecture: EncoderArchitecture
    text: TextCheckpoint | None
    clip: ClipCheckpoint | ImageCheckpoint | None

    def identity(self) -> dict[str, str]:
        """Hash of every file that decides the vectors, by role."""
        return {**(self.text.identity() if self.text else {}), **(self.clip.identity() if self.clip else {})}

    def load(self) -> EncoderParts:
        """Loads the towers; the fusion, where it has weights, is random."""
        uses_clip_text = self.architecture.uses_clip_text
        backbone = self.text.load() if self.text else None
        clip = self.clip.load(with_text=uses_clip_text) if self.clip else None
        return EncoderParts(
            model=EncoderModel(self.architecture, backbone=backbone, clip=clip),
            tokenizer=self.text.tokenizer() if self.text else None,
            clip_tokenizer=self.clip.tokenizer() if self.clip and uses_clip_text else None,
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class EncoderDescription:
    """What a job needs to know of its encoder, and of its product side, before it does any work.

    The fingerprint is 16 hex digits over weights, config, tokenizer and precision. Vectors of one fingerprint may stand
    side by side whatever device or release made them: they agree up to the rounding of their sums.
    """

    model: ModelName
    dim: int
    fingerprint: str
    uses_text: bool
    text_is_fallback: bool  # the text is needed only of products without an image (clip)
    uses_images: bool
    preprocessing: ImagePreprocessing | None  # what the image tower wants; None without one
    max_tokens: int  # longer texts are cut
    missing_rule: str  # what happens to a product without text or image, in words
    precision: Precision  # of the towers, decided
    batch_invariant: bool  # the bits of a product's vector depend on the product alone: on a CPU, not on a GPU


def check_encoder(config: EncoderConfig) -> EncoderDescription:
    """Preflight: finds the encoder's files and checks them without loading weights.

    Raises:
        CheckpointError: Files are missing, unreachable, pickled, incomplete, or untrained where training is needed.
        EncoderConfigError: A setting does not fit the checkpoint, or the device lacks the precision.
    """
    source = _trained_source(config)
    precision = _decided(config)
    architecture = source.architecture
    shared = ("model", "dim", "text_is_fallback", "uses_images", "max_tokens", "missing_rule")
    return EncoderDescription(
        **{name: getattr(architecture, name) for name in shared},
        fingerprint=_fingerprint(source, precision),
        precision=precision,
        uses_text=architecture.uses_text,
        preprocessing=architecture.clip.preprocessing if architecture.clip else None,
        batch_invariant=config.device == "cpu" or (config.device == "auto" and not torch.cuda.is_available()),
    )


def load_product_encoder(config: EncoderConfig) -> ProductEncoder:
    """Loads the product side onto its device. Raises as `check_encoder` does, and where nothing can be compiled."""
    source = _trained_source(config)
    parts = _load(source)
    parts.model.keep_side("product")
    precision = _decided(config)
    exact = None
    if precision != "float32":
        exact = partial(load_product_encoder, replace(config, precision="float32", compile=False))
    return ProductEncoder(
        parts,
        fingerprint=_fingerprint(source, precision),
        device=resolve_device(config.device),
        precision=precision,
        load_exact=exact,
        batch_size=config.batch_size,
        compiled=config.compile,
    )


def decide_precision(
    config: EncoderConfig, *, published: str | None = None, workers: Collection[Collection[Precision]] = ()
) -> EncoderConfig:
    """The config with a precision in place of `auto`, for all processes of a run; raises as `check_encoder`.

    That of the `published` encoder's fingerprint, where it is this encoder in a precision that all workers have: its
    vectors then stay good. Else the narrowest that all have.

    Args:
        workers: What each of them answered (`precision.gaining_precisions`); empty: this machine does the work.
    """
    if config.precision != "auto":
        return config
    had_by = workers or (gaining_precisions(config.device),)
    common = [each for each in FLOATING_POINT if all(each in had for had in had_by)]
    if published is not None:
        shape = _identity(_trained_source(config))
        common.sort(key=lambda precision: _digest(shape, precision) != published)
    return replace(config, precision=common[0])


def load_query_encoder(uri: str, *, device: str = "auto", kept: KeptVectors | None = None) -> QueryEncoder:
    """Loads the query side of a published version's `query_encoder/`, or of a saved encoder, in float32.

    `kept` holds what its towers made before (`QueryEncoder`).

    Raises CheckpointError where there is none, or an incomplete one.
    """
    parts, fingerprint = load_query_parts(local_folder(uri))
    return QueryEncoder(parts, fingerprint=fingerprint, device=resolve_device(device), kept=kept)


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
    save_encoder(_load(source), folder, side="query", fingerprint=_fingerprint(source, _decided(config)))


def check_out(folder: str) -> None:
    """CheckpointError where `save_encoder` would refuse the folder."""
    check_replaceable(Path(folder), marker=_CONFIG, kind=_KIND)


def save_encoder(
    parts: EncoderParts,
    folder: str,
    *,
    training: dict[str, Any] | None = None,
    side: Side = "both",
    fingerprint: str | None = None,
    card: str | None = None,
) -> None:
    """Writes an encoder, in place only when it is whole; equal parts give equal bytes.

    Args:
        folder: Local folder; an earlier saved encoder there is replaced, anything else is left alone (CheckpointError).
        training: What made the weights, for people to read.
        fingerprint: Recorded with a query side: that of the encoder of the products' vectors.
        card: The text of `README.md`, for people too.
    """
    architecture = parts.model.architecture
    with replaced_folder(Path(folder), marker=_CONFIG, kind=_KIND) as staged:
        weights = {name: tensor.detach().cpu().contiguous() for name, tensor in parts.model.weights(side).items()}
        save_file(weights, str(staged / _WEIGHTS), metadata={"format": "pt"})
        (staged / _WEIGHTS).chmod(0o644)  # safetensors writes files that only their owner may read
        values = {"schema_version": SCHEMA_VERSION, "side": side, **architecture.to_dict()}
        values |= {"fingerprint": fingerprint} if fingerprint is not None else {}
        write_config(staged / _CONFIG, values | ({"training": training} if training is not None else {}))
        if card is not None:
            (staged / "README.md").write_text(card, encoding="utf-8")
        if architecture.text is not None and parts.tokenizer is not None:
            (staged / _TEXT).mkdir()
            write_config(staged / _TEXT / "config.json", architecture.text.config)
            parts.tokenizer.save(staged / _TEXT)
        if parts.clip_tokenizer is not None and parts.clip_tokenizer.source is not None:
            parts.clip_tokenizer.source.save_pretrained(str(staged / _CLIP_TOKENIZER))


def resolve_encoder(config: EncoderConfig) -> SavedEncoder | TowerSources:
    """Finds the files behind `config`; a fusion that still wants training is let through (training starts there)."""
    source: SavedEncoder | TowerSources
    if config.uri is not None:
        folder = local_folder(config.uri)
        if not (folder / _CONFIG).is_file():
            raise CheckpointError(
                f"encoder.uri is {config.uri!r}: no encoder.json in {folder}. A saved Shelfmark encoder has one; "
                "towers of other libraries are named by encoder.model with text_tower and clip_tower"
            )
        source = read_saved(folder)
    else:
        model = cast(ModelName, config.model)  # one of the two is given
        text = find_text_checkpoint(config.text_tower) if config.text_tower else None
        clip_text = model in USES_CLIP_TEXT
        clip = find_clip_checkpoint(config.clip_tower, with_text=clip_text) if config.clip_tower else None
        if text is not None and clip is not None and model in MATCH_MODELS:
            # A tower that has the shared width already needs no projection, and keeps what it knows.
            shared = config.fusion.dim or clip.architecture.dim
            projected = replace(text.architecture, projection_dim=shared if shared != text.architecture.dim else None)
            text = replace(text, architecture=projected)
        architecture = EncoderArchitecture(
            model=model,
            text=text.architecture if text else None,
            clip=clip.architecture if clip else None,
            fusion=config.fusion,
        )
        source = TowerSources(architecture=architecture, text=text, clip=clip)
    if config.image_weight is not None:
        source = replace(source, architecture=replace(source.architecture, image_weight=config.image_weight))
    if config.dim is not None:
        source = replace(source, architecture=replace(source.architecture, prefix=config.dim))
    return source


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


def gpu_count() -> int:
    """How many GPUs this process can see; asking does not start CUDA where the driver answers by itself."""
    return torch.cuda.device_count()


def describe_device(name: str) -> str:
    """The device that a name stands for on this machine, in words; raises as `resolve_device`."""
    device = resolve_device(name)
    return f"{device}: {torch.cuda.get_device_name(device)}" if device.type == "cuda" else str(device)


def read_saved(folder: Path) -> SavedEncoder:
    """Reads and checks a saved folder without its weights; CheckpointError on an incomplete or newer one."""
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
    return SavedEncoder(folder=folder, architecture=architecture, side=side, fingerprint=values.get("fingerprint"))


def _load(source: SavedEncoder | TowerSources) -> EncoderParts:
    # Modules are built with random weights before the saved ones arrive; the caller's generator must not notice.
    with torch.random.fork_rng(devices=[]):
        return source.load()


def _trained_source(config: EncoderConfig) -> SavedEncoder | TowerSources:
    source = resolve_encoder(config)
    architecture = source.architecture
    is_new = config.fusion.method == "mlp" or (
        architecture.is_match and (architecture.text is not None or architecture.image_projection_dim is not None)
    )
    if isinstance(source, TowerSources) and is_new:
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


def _decided(config: EncoderConfig) -> Precision:
    check_precision(config.precision, config.device)
    return native_precision(config.device) if config.precision == "auto" else config.precision


def _fingerprint(source: SavedEncoder | TowerSources, precision: Precision) -> str:
    return _digest(_identity(source), precision)


def _identity(source: SavedEncoder | TowerSources) -> dict[str, Any]:
    """All that shapes the vectors but the precision."""
    shape = source.architecture.to_dict()
    del shape["image_weight"], shape["missing"]  # they do not change a product's vector
    text = source.architecture.text
    return {"shape": shape, "text_config": text.config if text else None, "files": source.identity()}


def _digest(identity: dict[str, Any], precision: Precision) -> str:
    return hashlib.sha256(json.dumps({**identity, "precision": precision}, sort_keys=True).encode()).hexdigest()[:16]
