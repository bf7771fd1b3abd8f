"""Texts become token ids by the `tokenizers` library, one way for every text tower, in torch and in ONNX.

A tokenizer is a `tokenizer.json` and what open_clip does around it: it cleans texts before, and may drop a token after.
open_clip's own byte-pair table and its Hugging Face tokenizers (SigLIP and others) are rewritten as one when they are
loaded. The library runs a batch on all cores, or on one with `TOKENIZERS_PARALLELISM=false`, as open_clip sets it.
No torch is needed.

Legend: T texts, B texts of a batch, L tokens of the longest of them.
"""

from __future__ import annotations

import copy
import hashlib
import html
import string
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import ftfy
import numpy as np
from tokenizers import Regex, Tokenizer, models, pre_tokenizers, processors

from encoders.errors import CheckpointError

CLEANINGS = ("lower", "whitespace", "canonicalize")
"""open_clip's names: `lower` of its own tokenizer, `whitespace` of others' by default, `canonicalize` of SigLIP."""
_WITHOUT_PUNCTUATION = str.maketrans("_", " ", string.punctuation.replace("_", ""))
_ENDS = ("<start_of_text>", "<end_of_text>")
_WORDS = rf"(?i){'|'.join(_ENDS)}|'s|'t|'re|'ve|'m|'ll|'d|\p{{L}}+|\p{{N}}|[^\s\p{{L}}\p{{N}}]+"
# What a rewritten tokenizer is compared with open_clip's on, beside its tests.
_PROBES = (
    "",
    "red dress",
    "Women's Floral-Print Midi Dress, Größe 42 – 100% Cotton!!",
    "L&#39;Oréal &amp;amp; Co. «Café» 12.5oz/355ml",
    "手机壳 スマホケース чехол غطاء 🎁",
    "  two\nlines\tand snake_case  </s> [SEP] <pad>",
    "word " * 200,
)


def clean_text(text: str, cleaning: str) -> str:
    """Cleans a text as open_clip does: mends broken encodings, resolves HTML entities, joins white space.

    Of the `CLEANINGS` `lower` lower-cases too, and `canonicalize` also drops ASCII punctuation.
    """
    if not (text.isascii() and text.isprintable() and "&" not in text):  # else there is nothing to mend
        text = html.unescape(html.unescape(ftfy.fix_text(text)))
    if cleaning == "canonicalize":
        text = text.translate(_WITHOUT_PUNCTUATION)
    text = " ".join(text.split())
    return text if cleaning == "whitespace" else text.lower()


CHARACTERS_PER_TOKEN = 256
"""A text is cut to so many characters for each token of the limit before it is tokenized. Tokens are words or parts of
them: of texts with shorter words nothing changes."""
KEY_BYTES = 16


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenizedTexts:
    """Token ids of T texts, end to end: text t owns `ids[offsets[t]:offsets[t + 1]]`."""

    ids: np.ndarray  # int64 [sum of lengths]
    offsets: np.ndarray  # int64 [T + 1]
    truncated: int  # how many texts were cut to the token limit
    pad_id: int  # fills up a batch

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def keys(self) -> list[bytes]:
        """16 bytes a text, equal for texts of equal tokens: a tower sees nothing else of them."""
        starts = self.offsets.tolist()
        return [hashlib.sha256(self.ids[start:stop].tobytes()).digest()[:KEY_BYTES] for start, stop in pairwise(starts)]

    def take(self, rows: np.ndarray) -> TokenizedTexts:
        """Some of them, by their rows; all that `truncated` counts may be among the others."""
        lengths = np.diff(self.offsets)[rows]
        offsets = np.concatenate([[0], np.cumsum(lengths)])
        places = np.repeat(self.offsets[rows] - offsets[:-1], lengths) + np.arange(offsets[-1])
        return TokenizedTexts(ids=self.ids[places], offsets=offsets, truncated=self.truncated, pad_id=self.pad_id)

    def batches(self, batch_size: int) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Yields (rows int64 `[B]`, ids int64 `[B, L]`, mask bool `[B, L]`), texts of like length together.

        The longest batch comes first, so that a device too small for it fails at once; equal inputs give equal batches.
        """
        order = np.argsort(-np.diff(self.offsets), kind="stable")
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


class FastTokenizer:
    """A tokenizer of the `tokenizers` library, and how a tower uses it.

    Args:
        tokenizer: With its special tokens.
        max_tokens: Longer texts are cut to this many tokens, special tokens included; these stay. None: the tokenizer
            cuts and pads every text to one length by itself, for towers that look at the padding too.
        cleaning: How texts are cleaned first, one of `CLEANINGS`; None: not at all.
        dropped_id: Id of a token that becomes 0, if any.
        source: The transformers tokenizer it was made of, which writes its own files into a saved encoder.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        max_tokens: int | None,
        cleaning: str | None = None,
        dropped_id: int | None = None,
        source: Any = None,
    ) -> None:
        self.pads, self.cleaning, self.dropped_id, self.source = max_tokens is None, cleaning, dropped_id, source
        if max_tokens is None:
            if tokenizer.padding is None or not tokenizer.padding["length"]:
                raise CheckpointError("the tokenizer does not pad to one length: expected one that open_clip has used")
            max_tokens, self.pad_id = tokenizer.padding["length"], tokenizer.padding["pad_id"]
        else:
            # A saved tokenizer may carry padding and truncation of its own (MiniLM pads everything to 128): both go.
            tokenizer.no_padding()
            tokenizer.enable_truncation(max_tokens)
            found = (tokenizer.token_to_id(token) for token in ("[PAD]", "<pad>"))
            self.pad_id = next((number for number in found if number is not None), 0)
        self.max_tokens: int = max_tokens
        self._tokenizer = tokenizer

    @classmethod
    def load(cls, folder: Path, *, max_tokens: int | None, **options: Any) -> FastTokenizer:
        """Reads `folder/tokenizer.json`; raises CheckpointError when it is missing or broken."""
        path = folder / "tokenizer.json"
        if not path.is_file():
            raise CheckpointError(
                f"no tokenizer.json in {folder}: expected the tokenizer of the text tower there; of an incomplete "
                "export, export it again"
            )
        try:
            tokenizer = Tokenizer.from_str(path.read_text(encoding="utf-8"))
        except Exception as error:  # the Rust library raises bare Exception on a broken file
            raise CheckpointError(f"{path} is not a tokenizer of the tokenizers library: {error}") from error
        return cls(tokenizer, max_tokens=max_tokens, **options)

    def tokenize(self, texts: Sequence[str]) -> TokenizedTexts:
        """Tokenizes T texts in one call of the batch path."""
        texts, too_long = _cut(texts, self.max_tokens)
        if self.cleaning is not None:
            texts = [clean_text(text, self.cleaning) for text in texts]
        encodings = self._tokenizer.encode_batch_fast(list(texts))
        cut = sum(bool(each.overflowing) or row in too_long for row, each in enumerate(encodings))
        # Without special tokens a text may have none at all: then one of padding, for a tower needs something to read.
        rows = [encoding.ids or [self.pad_id] for encoding in encodings]
        tokens = _packed(rows, truncated=cut, pad_id=self.pad_id)
        if self.dropped_id is not None:
            tokens.ids[tokens.ids == self.dropped_id] = 0
        return tokens

    def save(self, folder: Path) -> None:
        """Writes `folder/tokenizer.json`, without the token limit unless texts are padded to it."""
        saved = Tokenizer.from_str(self._tokenizer.to_str())
        if not self.pads:
            saved.no_truncation()
        (folder / "tokenizer.json").write_text(saved.to_str(pretty=True) + "\n", encoding="utf-8")


class OpenClipTokenizer:
    """An open_clip tokenizer that does more than a `tokenizer.json` says, called as it is. Needs torch."""

    def __init__(self, theirs: Any, *, max_tokens: int) -> None:
        self.max_tokens = max_tokens
        self.source = getattr(theirs, "tokenizer", None)
        self._theirs = theirs
        self._pad_id = int(getattr(self.source, "pad_token_id", None) or 0)

    def tokenize(self, texts: Sequence[str]) -> TokenizedTexts:
        """Tokenizes T texts to the whole context, padding included; one without padding at its end counts as cut."""
        texts, too_long = _cut(texts, self.max_tokens)
        rows = self._theirs(list(texts)).numpy().astype(np.int64).tolist() if texts else []
        cut = sum(1 for number, row in enumerate(rows) if row[-1] != self._pad_id or number in too_long)
        return _packed(rows, truncated=cut, pad_id=self._pad_id)

    def save(self, folder: Path) -> None:
        """Writes the tokenizer's files, where it does not come with the library."""
        if self.source is not None:
            self.source.save_pretrained(str(folder))


TextTokenizer = FastTokenizer | OpenClipTokenizer


def clip_tokenizer(text_config: dict[str, Any], folder: Path | None = None) -> TextTokenizer:
    """Makes the tokenizer that an open_clip `text_cfg` asks for; needs torch.

    A Hugging Face tokenizer's files lie in `folder`: CheckpointError where that is missing or cannot be loaded.
    """
    from open_clip.tokenizer import HFTokenizer, SimpleTokenizer

    context_length = int(text_config.get("context_length", 77))
    options = text_config.get("tokenizer_kwargs") or {}
    fast: FastTokenizer | None = None
    if not text_config.get("hf_tokenizer_name"):
        theirs = SimpleTokenizer(context_length=context_length, **options)
        if theirs.reduction_fn is None and len(theirs.all_special_ids) == len(_ENDS):
            rewritten = byte_pair_tokenizer(theirs.encoder, list(theirs.bpe_ranks))
            fast = FastTokenizer(rewritten, max_tokens=context_length, cleaning=options.get("clean", "lower"))
    elif folder is None:
        raise CheckpointError("this open_clip model needs a tokenizer of its own, and the checkpoint has none")
    else:
        mode = text_config.get("tokenizer_mode")
        try:
            theirs = HFTokenizer(str(folder), context_length=context_length, tokenizer_mode=mode, **options)
            source = copy.deepcopy(theirs.tokenizer)  # as it was loaded: a call leaves its limits in what is saved
            if not mode:
                theirs([""])  # so that transformers tells the library how to cut and to pad
        except (OSError, ValueError, KeyError, ImportError) as error:
            raise CheckpointError(f"no tokenizer in {folder} that transformers can load: {error}") from error
        if not mode and theirs.tokenizer.is_fast:
            fast = FastTokenizer(
                Tokenizer.from_str(theirs.tokenizer.backend_tokenizer.to_str()),
                max_tokens=None,
                cleaning=options.get("clean", "whitespace"),
                dropped_id=theirs.tokenizer.sep_token_id if theirs.strip_sep_token else None,
                source=source,
            )
    if fast is not None and np.array_equal(fast.tokenize(_PROBES).padded()[0], theirs(list(_PROBES)).numpy()):
        return fast
    return OpenClipTokenizer(theirs, max_tokens=context_length)


def byte_pair_tokenizer(vocabulary: dict[str, int], merges: Sequence[tuple[str, str]]) -> Tokenizer:
    """Rewrites open_clip's `SimpleTokenizer` from its tables: `encoder`, and `bpe_ranks` in order."""
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=list(merges), end_of_word_suffix="</w>"))
    split = pre_tokenizers.Split(Regex(_WORDS), behavior="removed", invert=True)
    letters = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, letters])
    tokenizer.add_special_tokens(list(_ENDS))
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{_ENDS[0]} $A {_ENDS[1]}", special_tokens=[(token, vocabulary[token]) for token in _ENDS]
    )
    return tokenizer


def _cut(texts: Sequence[str], max_tokens: int) -> tuple[Sequence[str], set[int]]:
    """The texts without what surely lies behind the token limit, and the rows of those that were longer.

    Tokenizing takes 130 bytes a character: 50 MB of text in one row would take 6.8 GB, to keep its first few lines.
    """
    limit = CHARACTERS_PER_TOKEN * max_tokens
    too_long = {row for row, text in enumerate(texts) if len(text) > limit}
    return ([text[:limit] for text in texts] if too_long else texts), too_long


def _packed(rows: list[list[int]], *, truncated: int, pad_id: int) -> TokenizedTexts:
    """Token ids of T texts, a list each, in the compact form."""
    offsets = np.zeros(len(rows) + 1, np.int64)
    np.cumsum([len(row) for row in rows], out=offsets[1:])
    ids = np.fromiter((token for row in rows for token in row), np.int64, int(offsets[-1]))
    return TokenizedTexts(ids=ids, offsets=offsets, truncated=truncated, pad_id=pad_id)
