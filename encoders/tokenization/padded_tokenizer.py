"""A Hugging Face tokenizer as open_clip uses it (SigLIP and others), for servers without torch and transformers.

What transformers does to a text stands in its `tokenizer.json`, cutting and padding included; open_clip cleans the text
before it, and may drop the separator after it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from encoders.errors import CheckpointError
from encoders.tokenization.clip_cleaning import clean_text
from encoders.tokenization.fast_tokenizing import TokenizedTexts


class PaddedTokenizer:
    """Gives each text the ids that open_clip's `HFTokenizer` gives it: the whole context, padding included.

    Args:
        tokenizer: Cuts and pads every text to the same length.
        cleaning: How open_clip cleans texts before it.
        dropped_id: Id of a token that becomes 0; None for no such token.
    """

    def __init__(self, tokenizer: Tokenizer, *, cleaning: str, dropped_id: int | None) -> None:
        padding = tokenizer.padding
        if padding is None or not padding["length"]:
            raise CheckpointError("the tokenizer does not pad to one length: expected one that open_clip has used")
        self.max_tokens: int = padding["length"]
        self.cleaning = cleaning
        self.dropped_id = dropped_id
        self._pad_id: int = padding["pad_id"]
        self._tokenizer = tokenizer

    @classmethod
    def load(cls, folder: Path, *, cleaning: str, dropped_id: int | None) -> PaddedTokenizer:
        """Reads `folder/tokenizer.json`; raises CheckpointError when it is missing or broken."""
        path = folder / "tokenizer.json"
        try:
            tokenizer = Tokenizer.from_str(path.read_text(encoding="utf-8"))
        except FileNotFoundError as error:
            raise CheckpointError(
                f"no tokenizer.json in {folder}: the export is incomplete, export it again"
            ) from error
        except Exception as error:  # the Rust library raises bare Exception on a broken file
            raise CheckpointError(f"{path} is not a tokenizer of the tokenizers library: {error}") from error
        return cls(tokenizer, cleaning=cleaning, dropped_id=dropped_id)

    def tokenize(self, texts: Sequence[str]) -> TokenizedTexts:
        """Tokenizes T texts; one without padding at its end counts as cut."""
        encodings = self._tokenizer.encode_batch_fast([clean_text(text, self.cleaning) for text in texts])
        rows = np.array([encoding.ids for encoding in encodings], np.int64).reshape(len(texts), self.max_tokens)
        if self.dropped_id is not None:
            rows[rows == self.dropped_id] = 0
        return TokenizedTexts(
            ids=rows.reshape(-1),
            offsets=np.arange(len(rows) + 1, dtype=np.int64) * self.max_tokens,
            truncated=int((rows[:, -1] != self._pad_id).sum()),
            pad_id=self._pad_id,
        )

    def save(self, folder: Path) -> None:
        """Writes `folder/tokenizer.json`."""
        (folder / "tokenizer.json").write_text(self._tokenizer.to_str(pretty=True) + "\n", encoding="utf-8")
