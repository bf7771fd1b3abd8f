"""open_clip's own byte-pair tokenizer, for servers without torch: the same ids from the `tokenizers` library.

open_clip's `SimpleTokenizer` comes with torch; `clip_bpe_tokenizer` rewrites it once, at export, and `ClipBpeTokenizer`
reads what that wrote.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tokenizers import Regex, Tokenizer, models, pre_tokenizers, processors

from encoders.tokenization.clip_cleaning import clean_text
from encoders.tokenization.fast_tokenizing import FastTokenizer, TokenizedTexts

_WORDS = r"(?i)'s|'t|'re|'ve|'m|'ll|'d|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+"


class ClipBpeTokenizer:
    """Gives each text the ids that open_clip's tokenizer gives it, start and end tokens included.

    Args:
        tokenizer: What `clip_bpe_tokenizer` made.
        max_tokens: Longer texts are cut to this many tokens; the end token stays.
    """

    def __init__(self, tokenizer: Tokenizer, *, max_tokens: int) -> None:
        self.max_tokens = max_tokens
        self._pieces = FastTokenizer(tokenizer, max_tokens=max_tokens)

    @classmethod
    def load(cls, folder: Path, *, max_tokens: int) -> ClipBpeTokenizer:
        """Reads `folder/tokenizer.json`; raises CheckpointError when it is missing or broken."""
        loaded = cls.__new__(cls)
        loaded.max_tokens = max_tokens
        loaded._pieces = FastTokenizer.load(folder, max_tokens=max_tokens)
        return loaded

    def tokenize(self, texts: Sequence[str]) -> TokenizedTexts:
        """Tokenizes T texts."""
        return self._pieces.tokenize([clean_text(text, "lower") for text in texts])

    def save(self, folder: Path) -> None:
        """Writes `folder/tokenizer.json`."""
        self._pieces.save(folder)


def clip_bpe_tokenizer(vocabulary: dict[str, int], merges: Sequence[tuple[str, str]]) -> Tokenizer:
    """Builds the tokenizer from the tables of open_clip's `SimpleTokenizer`: `encoder`, and `bpe_ranks` in order."""
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=list(merges), end_of_word_suffix="</w>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_WORDS), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    ends = ("<start_of_text>", "<end_of_text>")
    tokenizer.add_special_tokens(list(ends))
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{ends[0]} $A {ends[1]}", special_tokens=[(token, vocabulary[token]) for token in ends]
    )
    return tokenizer


def can_rewrite(pieces: Any, text_config: dict[str, Any]) -> bool:
    """Whether an open_clip tokenizer is one that `ClipBpeTokenizer` equals: its own table, lower-cased, cut plainly."""
    options = text_config.get("tokenizer_kwargs") or {}
    return pieces.reduction_fn is None and options.get("clean", "lower") == "lower" and len(pieces.all_special_ids) == 2
