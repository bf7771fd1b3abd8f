"""Tokenizers of CLIP text towers, as open_clip makes them.

Those of transformers towers, and the form that all give their tokens in, are in `fast_tokenizing`.
"""

from __future__ import annotations

import html
import string
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import ftfy
import numpy as np
from tokenizers import Regex, Tokenizer, models, pre_tokenizers, processors

from encoders.errors import CheckpointError

if TYPE_CHECKING:
    import torch

# ---- encoders/tokenization/clip_cleaning.py ----
# How open_clip cleans texts before it tokenizes them. Needs no torch.


CLEANINGS = ("lower", "whitespace", "canonicalize")
"""open_clip's names: `lower` of its own tokenizer, `whitespace` of others' by default, `canonicalize` of SigLIP."""
_WITHOUT_PUNCTUATION = str.maketrans("_", " ", string.punctuation.replace("_", ""))


def clean_text(text: str, cleaning: str) -> str:
    """Mends broken encodings, resolves HTML entities, joins white space.

    Args:
        text: A text.
        cleaning: One of `CLEANINGS`: `lower` lower-cases too, `canonicalize` also drops ASCII punctuation.
    """
    if not (text.isascii() and text.isprintable() and "&" not in text):  # else there is nothing to mend
        text = html.unescape(html.unescape(ftfy.fix_text(text)))
    if cleaning == "canonicalize":
        text = text.translate(_WITHOUT_PUNCTUATION)
    text = " ".join(text.split())
    return text if cleaning == "whitespace" else text.lower()


# ---- encoders/tokenization/fast_tokenizing.py ----
# Texts to token ids by the `tokenizers` library, in one compact form. Needs no torch.
#
# Legend: T texts, L tokens of the longest text of a batch.
#
# The library runs a batch on all cores and guards itself against forked processes; set `TOKENIZERS_PARALLELISM=false` to
# keep it on one core.


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


# ---- encoders/tokenization/clip_bpe.py ----
# open_clip's own byte-pair tokenizer, for servers without torch: the same ids from the `tokenizers` library.
#
# open_clip's `SimpleTokenizer` comes with torch; `clip_bpe_tokenizer` rewrites it once, at export, and `ClipBpeTokenizer`
# reads what that wrote.


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


# ---- encoders/tokenization/padded_tokenizer.py ----
# A Hugging Face tokenizer as open_clip uses it (SigLIP and others), for servers without torch and transformers.
#
# What transformers does to a text stands in its `tokenizer.json`, cutting and padding included; open_clip cleans the text
# before it, and may drop the separator after it.


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
        from open_clip.tokenizer import SimpleTokenizer  # a server on ONNX Runtime has no open_clip

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
        from open_clip.tokenizer import HFTokenizer

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
