"""The encoder that training starts from: a saved one, towers of other checkpoints, or a small one made from nothing."""

from __future__ import annotations

import string
from collections.abc import Iterable

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from encoders.architecture import ClipArchitecture, EncoderArchitecture, TextArchitecture
from encoders.errors import CheckpointError
from encoders.loading import resolve_encoder
from encoders.model import EncoderModel
from encoders.preprocessing import ImagePreprocessing
from encoders.saved_folder import EncoderParts, SavedEncoder
from encoders.spec import EncoderConfig, FusionSpec
from encoders.tokenizing import FastTokenizer
from encoders.training.config import SmallEncoderConfig

_SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


def load_starting_point(config: EncoderConfig) -> EncoderParts:
    """Loads both sides of the encoder that `config` names; a fusion without trained weights starts at random.

    Raises:
        CheckpointError: As `check_encoder`, and for a folder that holds the query side only.
    """
    source = resolve_encoder(config)
    if isinstance(source, SavedEncoder) and source.side != "both":
        raise CheckpointError(f"{source.folder} holds the {source.side} side only: training needs the whole encoder")
    return source.load()


def new_small_encoder(config: SmallEncoderConfig, texts: Iterable[str]) -> EncoderParts:
    """Makes a small 3tmm with random weights (torch's generator) and a vocabulary learned from `texts`."""
    tokenizer = train_tokenizer(texts, vocabulary=config.vocabulary)
    text = TextArchitecture(
        config={
            "model_type": "bert",
            "vocab_size": tokenizer.get_vocab_size(),
            "hidden_size": config.text_width,
            "num_hidden_layers": config.text_layers,
            "num_attention_heads": config.text_heads,
            "intermediate_size": 4 * config.text_width,
            "max_position_embeddings": config.max_tokens,
            "pad_token_id": 0,
        },
        pooling="mean",
        max_tokens=config.max_tokens,
        projection_dim=config.dim,
    )
    clip = ClipArchitecture(
        model_config={
            "embed_dim": config.image_dim,
            "vision_cfg": {
                "image_size": config.image_size,
                "width": config.image_width,
                "head_width": 32,
                **(
                    {"layers": config.image_layers[0], "patch_size": config.patch_size}
                    if len(config.image_layers) == 1
                    else {"layers": list(config.image_layers)}
                ),
            },
        },
        preprocessing=ImagePreprocessing(size=config.image_size, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)),
    )
    fusion = FusionSpec(method="mlp", hidden=config.fusion_hidden)
    architecture = EncoderArchitecture(model="3tmm", text=text, clip=clip, fusion=fusion)
    return EncoderParts(
        model=EncoderModel(architecture), tokenizer=FastTokenizer(tokenizer, max_tokens=config.max_tokens)
    )


def train_tokenizer(texts: Iterable[str], *, vocabulary: int) -> Tokenizer:
    """Learns a lower-casing WordPiece vocabulary, laid out as BERT's; equal texts give equal vocabularies."""
    pieces = _learn_pieces(texts, vocabulary=vocabulary)
    tokenizer = Tokenizer(models.WordPiece({piece: row for row, piece in enumerate(pieces)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    ends = [(token, tokenizer.token_to_id(token)) for token in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=ends
    )
    return tokenizer


def _learn_pieces(texts: Iterable[str], *, vocabulary: int) -> list[str]:
    """Special tokens, letters, then the pieces that byte-pair merges make, most frequent first.

    The library's own WordPiece trainer numbers its `##` letters in the order of a hash map, and breaks ties by those
    numbers: two runs give two vocabularies. Its byte-pair trainer sorts its letters, so it is trained instead, with a
        mark
    before each word; pieces without the mark are those that go on in a word.
    """
    start = "\u2581"
    learner = Tokenizer(models.BPE())
    learner.normalizer = normalizers.BertNormalizer(lowercase=True)
    learner.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.BertPreTokenizer(), pre_tokenizers.Metaspace(replacement=start, prepend_scheme="always")]
    )
    trainer = trainers.BpeTrainer(vocab_size=vocabulary, min_frequency=2, limit_alphabet=200, show_progress=False)
    learner.train_from_iterator(texts, trainer)
    learned = [piece for piece, _ in sorted(learner.get_vocab().items(), key=lambda item: item[1]) if piece != start]
    # Shoppers type what no training text holds: every ASCII character has a piece, seen or not.
    letters = [*string.ascii_lowercase, *string.digits, *string.punctuation]
    letters += [piece for piece in learned if len(piece) == 1 and piece not in letters]
    longer = [
        piece.removeprefix(start) if piece.startswith(start) else f"##{piece}" for piece in learned if len(piece) > 1
    ]
    pieces = dict.fromkeys([*_SPECIAL_TOKENS, *letters, *(f"##{letter}" for letter in letters), *longer])
    return list(pieces)[:vocabulary]
