"""Texts to token ids by the `tokenizers` library, in one compact form. Needs no torch.

Legend: T texts, L tokens of the longest text of a batch.

The library runs a batch on all cores and guards itself against forked processes; set `TOKENIZERS_PARALLELISM=false` to
keep it on one core.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from tokenizers import Tokenizer

from encoders.errors import CheckpointError


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenizedTexts:
    """Token ids of T texts, end to end.

    Attributes:
        ids: int64 `[sum of lengths]`.
        offsets: int64 `[T + 1]`; text t owns `ids[offsets[t]:offsets[t + 1]]`.
        truncated: How many texts were cut to the token limit.
        pad_id: Id that fills up a batch.
    """

    ids: np.ndarray
    offsets: np.ndarray
    truncated: int
    pad_id: int

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def batches(self, batch_size: int) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Yields (rows int64 `[B]`, ids int64 `[B, L]`, mask bool `[B, L]`), texts of like length together.

        The longest batch comes first, so that a device too small for it fails at once. The order is stable: equal
        inputs give equal batches.
        """
        lengths = np.diff(self.offsets)
        order = np.argsort(-lengths, kind="stable")
        for start in range(0, len(order), batch_size):
            rows = order[start : start + batch_size]
            yield rows, *self.padded(rows)

    def padded(self, rows: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Ids int64 `[B, L]` and mask bool `[B, L]` of the given rows (all, in order, without any)."""
        rows = np.arange(len(self)) if rows is None else rows
        lengths = self.offsets[rows + 1] - self.offsets[rows]
        columns = np.arange(int(lengths.max(initial=0)))
        mask = columns < lengths[:, None]
        positions = np.minimum(self.offsets[rows][:, None] + columns, len(self.ids) - 1)
        return np.where(mask, self.ids[positions], self.pad_id), mask


class TextTokenizer(Protocol):
    """What a text tower needs of its tokenizer."""

    max_tokens: int

    def tokenize(self, texts: Sequence[str]) -> TokenizedTexts:
        """Tokenizes T texts."""
        ...

    def save(self, folder: Path) -> None:
        """Writes the tokenizer's files into a folder."""
        ...


class FastTokenizer:
    """A `tokenizers` tokenizer (`tokenizer.json`) with a token limit, for transformers towers."""

    def __init__(self, tokenizer: Tokenizer, *, max_tokens: int) -> None:
        # A saved tokenizer may carry padding and truncation of its own (MiniLM pads everything to 128): both go.
        tokenizer.no_padding()
        tokenizer.enable_truncation(max_tokens)
        self._tokenizer = tokenizer
        self.max_tokens = max_tokens
        found = (tokenizer.token_to_id(token) for token in ("[PAD]", "<pad>"))
        self.pad_id = next((number for number in found if number is not None), 0)

    @classmethod
    def load(cls, folder: Path, *, max_tokens: int) -> FastTokenizer:
        """Reads `folder/tokenizer.json`; raises CheckpointError when it is missing or broken."""
        path = folder / "tokenizer.json"
        if not path.is_file():
            raise CheckpointError(f"no tokenizer.json in {folder}: expected the tokenizer of the text tower there")
        try:
            return cls(Tokenizer.from_str(path.read_text(encoding="utf-8")), max_tokens=max_tokens)
        except Exception as error:  # the Rust library raises bare Exception on a broken file
            raise CheckpointError(f"{path} is not a tokenizer of the tokenizers library: {error}") from error

    def tokenize(self, texts: Sequence[str]) -> TokenizedTexts:
        """Tokenizes T texts in one call of the batch path."""
        encodings = self._tokenizer.encode_batch_fast(list(texts))
        return pack_tokens(
            [encoding.ids for encoding in encodings],
            truncated=sum(1 for encoding in encodings if encoding.overflowing),
            pad_id=self.pad_id,
        )

    def save(self, folder: Path) -> None:
        """Writes `folder/tokenizer.json`, without the token limit (that stands in encoder.json)."""
        plain = Tokenizer.from_str(self._tokenizer.to_str())
        plain.no_truncation()
        (folder / "tokenizer.json").write_text(plain.to_str(pretty=True) + "\n", encoding="utf-8")


def pack_tokens(rows: list[list[int]], *, truncated: int, pad_id: int) -> TokenizedTexts:
    """Token ids of T texts, a list each, in the compact form."""
    lengths = np.fromiter((len(row) for row in rows), np.int64, len(rows))
    offsets = np.zeros(len(rows) + 1, np.int64)
    np.cumsum(lengths, out=offsets[1:])
    ids = np.fromiter((token for row in rows for token in row), np.int64, int(offsets[-1]))
    return TokenizedTexts(ids=ids, offsets=offsets, truncated=truncated, pad_id=pad_id)
