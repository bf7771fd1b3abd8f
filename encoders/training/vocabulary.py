"""A WordPiece vocabulary learned from the training texts."""

from __future__ import annotations

import string
from collections.abc import Iterable

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

_SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


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
    mark before each word; pieces without the mark are those that go on in a word.
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
