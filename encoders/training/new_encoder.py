"""An encoder to start training from is loaded, or put together.

One that is put together takes its BERT towers from a saved encoder or a transformers checkpoint, its image tower (and
CLIP text tower) from a saved encoder or an open_clip checkpoint, and small ones made from nothing where none is named.
"""

from __future__ import annotations

import string
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from encoders.architecture import ClipArchitecture, EncoderArchitecture, TextArchitecture
from encoders.checkpoint import local_folder
from encoders.config import MATCH_MODELS, NEEDS_CLIP_TOWER, NEEDS_TEXT_TOWER, EncoderConfig, FusionSpec, TowerSpec
from encoders.errors import CheckpointError, EncoderConfigError
from encoders.image_backbones import ImageCheckpoint
from encoders.model import EncoderModel, EncoderParts
from encoders.preprocessing import ImagePreprocessing
from encoders.saved_encoder import SavedEncoder, TowerSources, read_saved, resolve_encoder
from encoders.tokenizers import FastTokenizer, TextTokenizer, clip_tokenizer
from encoders.towers import ClipCheckpoint, TextCheckpoint, find_clip_checkpoint, find_text_checkpoint
from encoders.training.config import SmallEncoderConfig

_CLIP_VOCABULARY = 49408  # of open_clip's own byte-pair table
_SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


def find_starting_point(config: EncoderConfig) -> SavedEncoder | TowerSources:
    """Finds the files of both sides of the encoder that `config` names; a fusion without weights starts at random.

    Raises:
        CheckpointError: As `check_encoder`, and for a folder that holds the query side only.
        EncoderConfigError: `encoder.dim`: what is trained keeps all dimensions.
    """
    if config.dim is not None:
        raise EncoderConfigError(
            f"encoder.dim is {config.dim}: training keeps all dimensions; name those that are to stand alone in "
            "training.matryoshka, and give encoder.dim to the indexing job"
        )
    source = resolve_encoder(config)
    if isinstance(source, SavedEncoder):
        _check_whole(source)
    return source


@dataclass(frozen=True, kw_only=True, slots=True)
class PartSources:
    """Where the towers of an encoder that is put together come from; None: small ones made from nothing."""

    text: SavedEncoder | TextCheckpoint | None
    clip: SavedEncoder | ClipCheckpoint | ImageCheckpoint | None

    def identity(self) -> dict[str, str]:
        """Hash of every file that decides the towers, by role."""
        sources = [("text_from", self.text), ("clip_from", self.clip)]
        found = [(key, source.identity()) for key, source in sources if source is not None]
        return {f"{key}/{name}": digest for key, files in found for name, digest in files.items()}


def find_parts(config: SmallEncoderConfig) -> PartSources:
    """Finds the towers that `small.text_from` and `small.clip_from` name.

    Raises:
        CheckpointError: They are not there, or have no such towers.
    """
    text: SavedEncoder | TextCheckpoint | None = None
    clip: SavedEncoder | ClipCheckpoint | ImageCheckpoint | None = None
    if config.text_from is not None:
        text = _saved(config.text_from)
        if text is None:
            spec = TowerSpec(library="transformers", checkpoint=config.text_from, max_tokens=config.max_tokens)
            text = find_text_checkpoint(spec)
        elif text.architecture.text is None:
            raise CheckpointError(f"small.text_from: the {text.architecture.model} in {text.folder} has no BERT towers")
    if config.clip_from is not None:
        with_text = config.model in ("clip", "4tmm")
        clip = _saved(config.clip_from)
        if clip is None:
            spec = TowerSpec(library="open_clip", checkpoint=config.clip_from)
            clip = find_clip_checkpoint(spec, with_text=with_text)
        elif clip.architecture.clip is None or (with_text and not clip.architecture.uses_clip_text):
            lacks = "CLIP text tower" if clip.architecture.clip is not None else "picture tower"
            raise CheckpointError(
                f"small.clip_from: the {clip.architecture.model} in {clip.folder} has no {lacks}, which small.model "
                f"{config.model} needs"
            )
    return PartSources(text=text, clip=clip)


def new_small_encoder(
    config: SmallEncoderConfig, texts: Iterable[str], sources: PartSources | None = None
) -> EncoderParts:
    """Puts an encoder together; what is made from nothing has random weights (torch's generator).

    A vocabulary is learned from `texts` unless the BERT towers bring one; `sources`: `find_parts(config)`, where known.
    """
    sources = sources or find_parts(config)
    tokenizer, text = _text_side(config, sources.text, texts)
    clip, clip_text_tokenizer = _clip_side(config, sources.clip)
    if text is not None and clip is not None and config.model in MATCH_MODELS:
        text = replace(text, projection_dim=clip.dim)
    fusion = FusionSpec(
        method=config.fusion_method,
        alpha=config.alpha,
        hidden=config.fusion_hidden,
        product_text_weight=config.product_text_weight,
    )
    architecture = EncoderArchitecture(model=config.model, text=text, clip=clip, fusion=fusion)
    with_text, from_clip = architecture.uses_clip_text, sources.clip
    model = EncoderModel(
        architecture,
        backbone=sources.text.load() if isinstance(sources.text, TextCheckpoint) else None,
        clip=from_clip.load(with_text=with_text) if isinstance(from_clip, ClipCheckpoint | ImageCheckpoint) else None,
    )
    if isinstance(sources.text, SavedEncoder):
        _copy_towers(model, sources.text, ("document_text", "query_text"))
    if isinstance(sources.clip, SavedEncoder):
        _copy_towers(model, sources.clip, ("image", "clip_text"))
    return EncoderParts(model=model, tokenizer=tokenizer, clip_tokenizer=clip_text_tokenizer)


def train_tokenizer(texts: Iterable[str], *, vocabulary: int) -> Tokenizer:
    """Learns a lower-casing WordPiece vocabulary, laid out as BERT's; equal texts give equal vocabularies."""
    words = _learn_vocabulary(texts, vocabulary=vocabulary)
    tokenizer = Tokenizer(models.WordPiece({word: row for row, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    ends = [(token, tokenizer.token_to_id(token)) for token in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=ends
    )
    return tokenizer


def _learn_vocabulary(texts: Iterable[str], *, vocabulary: int) -> list[str]:
    """Special tokens, letters, then the word pieces that byte-pair merges make, most frequent first.

    The library's own WordPiece trainer numbers its `##` letters in the order of a hash map, and breaks ties by those
    numbers: two runs give two vocabularies. Its byte-pair trainer sorts its letters, so it is trained instead, with a
    mark before each word; word pieces without the mark are those that go on in a word.
    """
    start = "\u2581"
    learner = Tokenizer(models.BPE())
    learner.normalizer = normalizers.BertNormalizer(lowercase=True)
    learner.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.BertPreTokenizer(), pre_tokenizers.Metaspace(replacement=start, prepend_scheme="always")]
    )
    trainer = trainers.BpeTrainer(vocab_size=vocabulary, min_frequency=2, limit_alphabet=200, show_progress=False)
    learner.train_from_iterator(texts, trainer)
    learned = [word for word, _ in sorted(learner.get_vocab().items(), key=lambda item: item[1]) if word != start]
    # Shoppers type what no training text holds: every ASCII character has an entry, seen or not.
    letters = [*string.ascii_lowercase, *string.digits, *string.punctuation]
    letters += [word for word in learned if len(word) == 1 and word not in letters]
    longer = [word.removeprefix(start) if word.startswith(start) else f"##{word}" for word in learned if len(word) > 1]
    entries = dict.fromkeys([*_SPECIAL_TOKENS, *letters, *(f"##{letter}" for letter in letters), *longer])
    return list(entries)[:vocabulary]


def _text_side(
    config: SmallEncoderConfig, source: SavedEncoder | TextCheckpoint | None, texts: Iterable[str]
) -> tuple[TextTokenizer | None, TextArchitecture | None]:
    if config.model not in NEEDS_TEXT_TOWER:
        return None, None
    if isinstance(source, TextCheckpoint):
        return source.tokenizer(), source.architecture
    if source is not None and source.architecture.text is not None:
        return source.load().tokenizer, source.architecture.text
    tokenizer = train_tokenizer(texts, vocabulary=config.vocabulary)
    values = {
        "model_type": "bert",
        "vocab_size": tokenizer.get_vocab_size(),
        "hidden_size": config.text_width,
        "num_hidden_layers": config.text_layers,
        "num_attention_heads": config.text_heads,
        "intermediate_size": 4 * config.text_width,
        "max_position_embeddings": config.max_tokens,
        "pad_token_id": 0,
    }
    most = config.max_tokens
    architecture = TextArchitecture(config=values, pooling="mean", max_tokens=most, projection_dim=config.dim)
    return FastTokenizer(tokenizer, max_tokens=most), architecture


def _clip_side(
    config: SmallEncoderConfig, source: SavedEncoder | ClipCheckpoint | ImageCheckpoint | None
) -> tuple[ClipArchitecture | None, TextTokenizer | None]:
    if config.model not in NEEDS_CLIP_TOWER:
        return None, None
    with_text = config.model in ("clip", "4tmm")
    if isinstance(source, ClipCheckpoint | ImageCheckpoint):
        return source.architecture, source.tokenizer() if with_text else None
    if source is not None and source.architecture.clip is not None:
        return source.architecture.clip, source.load().clip_tokenizer if with_text else None
    vision: dict[str, Any] = {"image_size": config.image_size, "width": config.image_width, "head_width": 32}
    is_vit = len(config.image_layers) == 1
    vision["layers"] = config.image_layers[0] if is_vit else list(config.image_layers)
    vision |= {"patch_size": config.patch_size} if is_vit else {}
    values: dict[str, Any] = {"embed_dim": config.image_dim, "vision_cfg": vision}
    if with_text:
        values["text_cfg"] = {
            "context_length": config.clip_text_tokens,
            "vocab_size": _CLIP_VOCABULARY,
            "width": config.clip_text_width,
            "heads": config.clip_text_heads,
            "layers": config.clip_text_layers,
        }
    preprocessing = ImagePreprocessing(size=config.image_size, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
    architecture = ClipArchitecture(model_config=values, preprocessing=preprocessing)
    return architecture, clip_tokenizer(values["text_cfg"]) if with_text else None


def _copy_towers(model: EncoderModel, source: SavedEncoder, names: tuple[str, ...]) -> None:
    """Copies the weights of towers; a projection to another width stays as it is, new."""
    saved = source.load().model
    for name in names:
        target, origin = getattr(model, name), getattr(saved, name)
        if target is None or origin is None:
            continue
        own, weights = target.state_dict(), origin.state_dict()
        for key in [key for key in weights if key.startswith("projection.")]:
            if key not in own or own[key].shape != weights[key].shape:
                del weights[key]
        found = target.load_state_dict(weights, strict=False)
        misfits = [key for key in found.missing_keys if not key.startswith("projection.")] + found.unexpected_keys
        if misfits:
            raise CheckpointError(f"{source.folder}: its tower does not fit: {misfits[:3]}")


def _saved(address: str) -> SavedEncoder | None:
    """The saved encoder at an address; None where something else is meant."""
    if "://" not in address and not Path(address).expanduser().is_dir():
        return None  # a hub name, or open_clip's
    folder = local_folder(address)
    if not (folder / "encoder.json").is_file():
        return None
    saved = read_saved(folder)
    _check_whole(saved)
    return saved


def _check_whole(source: SavedEncoder) -> None:
    if source.side != "both":
        raise CheckpointError(f"{source.folder} holds the {source.side} side only: training needs the whole encoder")
