"""Tokenizers of CLIP text towers, as open_clip makes them.

Those of transformers towers, and the form that all give their tokens in, are in `fast_tokenizing`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from open_clip.tokenizer import HFTokenizer, SimpleTokenizer

from encoders.errors import CheckpointError
from encoders.tokenization.fast_tokenizing import FastTokenizer, TextTokenizer, TokenizedTexts, pack_tokens

__all__ = [
    "ClipTokenizer",
    "FastTokenizer",
    "FolderClipTokenizer",
    "TextTokenizer",
    "TokenizedTexts",
    "load_clip_tokenizer",
]


class ClipTokenizer:
    """open_clip's own byte-pair tokenizer of CLIP text towers; its table comes with the library.

    Args:
        text_config: `text_cfg` of the open_clip model config.
    """

    def __init__(self, text_config: dict[str, Any]) -> None:
        self.max_tokens = int(text_config.get("context_length", 77))
        self.text_config = text_config
        self.pieces = SimpleTokenizer(context_length=self.max_tokens, **(text_config.get("tokenizer_kwargs") or {}))

    def tokenize(self, texts: Sequence[str]) -> TokenizedTexts:
        """Tokenizes T texts; each keeps its start and end tokens when it is cut."""
        pieces, limit, truncated, rows = self.pieces, self.max_tokens, 0, []
        if pieces.reduction_fn is not None:
            return _unpad(pieces(list(texts)), pad_id=0)
        for text in texts:
            ids = [pieces.sot_token_id, *pieces.encode(text), pieces.eot_token_id]
            if len(ids) > limit:
                ids = [*ids[: limit - 1], pieces.eot_token_id]
                truncated += 1
            rows.append(ids)
        return pack_tokens(rows, truncated=truncated, pad_id=0)

    def save(self, folder: Path) -> None:
        """Writes nothing."""


class FolderClipTokenizer:
    """A Hugging Face tokenizer in a folder, used the way open_clip uses it for a CLIP text tower (SigLIP and others).

    Args:
        text_config: `text_cfg` of the open_clip model config.
        folder: Where the tokenizer's files lie.
    """

    def __init__(self, text_config: dict[str, Any], folder: Path) -> None:
        self.max_tokens = int(text_config.get("context_length", 77))
        self.text_config = text_config
        try:
            self.pieces = HFTokenizer(
                str(folder),
                context_length=self.max_tokens,
                tokenizer_mode=text_config.get("tokenizer_mode"),
                **(text_config.get("tokenizer_kwargs") or {}),
            )
        except (OSError, ValueError, KeyError, ImportError) as error:
            raise CheckpointError(f"no tokenizer in {folder} that transformers can load: {error}") from error
        self._pad_id = int(self.pieces.tokenizer.pad_token_id or 0)

    def tokenize(self, texts: Sequence[str]) -> TokenizedTexts:
        """Tokenizes T texts to the whole context, padding included: such towers may look at it."""
        return _unpad(self.pieces(list(texts)) if texts else None, pad_id=self._pad_id, width=self.max_tokens)

    def save(self, folder: Path) -> None:
        """Writes the tokenizer's files."""
        self.pieces.save_pretrained(str(folder))


def load_clip_tokenizer(text_config: dict[str, Any], folder: Path | None) -> ClipTokenizer | FolderClipTokenizer:
    """The tokenizer that an open_clip `text_cfg` asks for; raises CheckpointError where it needs a folder and has
    none.
    """
    if not text_config.get("hf_tokenizer_name"):
        return ClipTokenizer(text_config)
    if folder is None:
        raise CheckpointError("this open_clip model needs a tokenizer of its own, and the checkpoint has none")
    return FolderClipTokenizer(text_config, folder)


def _unpad(padded: torch.Tensor | None, *, pad_id: int, width: int = 0) -> TokenizedTexts:
    """Rows `[T, width]` of a tokenizer that pads to the whole context; a row without padding counts as cut."""
    rows = np.zeros((0, width), np.int64) if padded is None else padded.numpy().astype(np.int64)
    return TokenizedTexts(
        ids=rows.reshape(-1),
        offsets=np.arange(len(rows) + 1, dtype=np.int64) * rows.shape[1],
        truncated=int((rows[:, -1] != pad_id).sum()) if rows.size else 0,
        pad_id=pad_id,
    )
