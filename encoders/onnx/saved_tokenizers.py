"""The tokenizers of an export, rewritten for the `tokenizers` library wherever the ids stay the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from encoders.saved_folder import EncoderParts
from encoders.tokenization.clip_bpe import ClipBpeTokenizer, can_rewrite, clip_bpe_tokenizer
from encoders.tokenization.clip_cleaning import CLEANINGS
from encoders.tokenization.padded_tokenizer import PaddedTokenizer
from encoders.tokenization.tokenizing import FolderClipTokenizer

# What a tokenizer that is rewritten from its file is compared on, beside its tests.
_PROBES = (
    "",
    "red dress",
    "Women's Floral-Print Midi Dress, Größe 42 – 100% Cotton!!",
    "L&#39;Oréal &amp;amp; Co. «Café» 12.5oz/355ml",
    "手机壳 スマホケース чехол غطاء 🎁",
    "  two\nlines\tand snake_case  </s> [SEP] <pad>",
    "word " * 200,
)


def save_tokenizers(parts: EncoderParts, folder: Path) -> dict[str, Any] | None:
    """Writes `text_tower/` and `clip_tokenizer/`, as far as the query side has them.

    Returns:
        How the CLIP text tower's tokenizer is loaded, for `onnx.json`; None without such a tower.
    """
    if parts.tokenizer is not None and parts.model.query_text is not None:
        (folder / "text_tower").mkdir()
        parts.tokenizer.save(folder / "text_tower")
    tokenizer = parts.clip_tokenizer
    if tokenizer is None:
        return None
    (folder / "clip_tokenizer").mkdir()
    described: dict[str, Any] = {"tokenizer": "open_clip", "text_cfg": tokenizer.text_config}
    rewritten: ClipBpeTokenizer | PaddedTokenizer | None = None
    if isinstance(tokenizer, FolderClipTokenizer):
        rewritten = rewritten_padded(tokenizer)
    elif can_rewrite(tokenizer.pieces, tokenizer.text_config):
        pieces = clip_bpe_tokenizer(tokenizer.pieces.encoder, list(tokenizer.pieces.bpe_ranks))
        rewritten = ClipBpeTokenizer(pieces, max_tokens=tokenizer.max_tokens)
    if isinstance(rewritten, ClipBpeTokenizer):
        described["tokenizer"] = "bpe"
    elif rewritten is not None:
        described |= {"tokenizer": "padded", "cleaning": rewritten.cleaning, "dropped_id": rewritten.dropped_id}
    (rewritten or tokenizer).save(folder / "clip_tokenizer")
    return described


def rewritten_padded(tokenizer: FolderClipTokenizer) -> PaddedTokenizer | None:
    """The tokenizer without torch and transformers; None where it does more than its `tokenizer.json` says."""
    pieces = tokenizer.pieces
    cleaning = (tokenizer.text_config.get("tokenizer_kwargs") or {}).get("clean", "whitespace")
    if pieces.tokenizer_mode or not pieces.tokenizer.is_fast or cleaning not in CLEANINGS:
        return None
    # transformers tells the library how to cut and to pad when it is called.
    expected = tokenizer.tokenize(_PROBES)
    rewritten = PaddedTokenizer(
        Tokenizer.from_str(pieces.tokenizer.backend_tokenizer.to_str()),
        cleaning=cleaning,
        dropped_id=pieces.tokenizer.sep_token_id if pieces.strip_sep_token else None,
    )
    found = rewritten.tokenize(_PROBES)
    same = np.array_equal(found.ids, expected.ids) and (found.truncated, found.pad_id) == (
        expected.truncated,
        expected.pad_id,
    )
    return rewritten if same else None
