"""A Hugging Face tokenizer of a CLIP text tower, without torch: the ids of open_clip's `HFTokenizer`."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from encoders.errors import CheckpointError
from encoders.onnx_export import rewritten_padded
from encoders.tokenizers import FolderClipTokenizer, PaddedTokenizer
from tests.encoders.test_clip_bpe import ASSIGNED, PLAIN, TITLES
from tests.encoders.tiny import save_tiny_siglip_tokenizer

# What fills texts up, and the options of open_clip's config.
KINDS = [
    ("</s>", {}),
    ("</s>", {"clean": "canonicalize"}),
    ("<pad>", {"clean": "lower"}),
    ("<pad>", {"strip_sep_token": True}),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_tiny_siglip_tokenizer(tmp_path_factory.mktemp("siglip"))


@pytest.fixture(scope="module", params=KINDS, ids=str)
def both(request, tmp_path_factory) -> tuple[FolderClipTokenizer, PaddedTokenizer]:
    pad_token, options = request.param
    folder = save_tiny_siglip_tokenizer(tmp_path_factory.mktemp("siglip"), pad_token=pad_token)
    theirs = FolderClipTokenizer({"context_length": 12, "tokenizer_kwargs": options}, folder)
    made, saved = rewritten_padded(theirs), tmp_path_factory.mktemp("saved")
    made.save(saved)
    return theirs, PaddedTokenizer.load(saved, cleaning=made.cleaning, dropped_id=made.dropped_id)


def same(both: tuple[FolderClipTokenizer, PaddedTokenizer], texts: list[str]) -> bool:
    expected, found = (tokenizer.tokenize(texts) for tokenizer in both)
    assert (found.truncated, found.pad_id, len(found)) == (expected.truncated, expected.pad_id, len(texts))
    assert found.ids.dtype == np.int64
    return np.array_equal(found.ids, expected.ids) and np.array_equal(found.offsets, expected.offsets)


def test_ids_are_those_of_open_clip(both):
    texts = [*TITLES, "red dress </s> <pad> mug", "Red_Dress"]
    assert same(both, texts)
    assert same(both, [])


@given(texts=st.lists(st.text(ASSIGNED, max_size=60) | st.from_regex(PLAIN, fullmatch=True), max_size=4))
@example(["a" * 3, "İstanbul", "ǅ ß ẞ", "red _ & dress", "\x1c\x85 "])
def test_ids_are_those_of_open_clip_for_any_text(both, texts):
    assert same(both, texts)


def test_ends_are_dropped_where_open_clip_drops_them(tmp_path):
    folder, texts = save_tiny_siglip_tokenizer(tmp_path, pad_token="<pad>"), ["red mug", "red " * 20]
    kept = rewritten_padded(FolderClipTokenizer({"context_length": 5}, folder)).tokenize(texts)
    options = {"context_length": 5, "tokenizer_kwargs": {"strip_sep_token": True}}
    dropped = rewritten_padded(FolderClipTokenizer(options, folder)).tokenize(texts)
    red, mug = kept.ids[:2]
    assert kept.ids.reshape(2, 5).tolist() == [[red, mug, 1, 0, 0], [red, red, red, red, 1]]
    assert dropped.ids.reshape(2, 5).tolist() == [[red, mug, 0, 0, 0], [red, red, red, red, 0]]
    assert kept.truncated == 1


def test_tokenizers_that_do_more_are_left_to_open_clip(folder):
    assert rewritten_padded(FolderClipTokenizer({"tokenizer_mode": "clips"}, folder)) is None
    theirs = FolderClipTokenizer({}, folder)
    clean = theirs.pieces.clean_fn
    theirs.pieces.clean_fn = lambda text: clean(text).replace("red", "blue")
    assert rewritten_padded(theirs) is None


def test_folders_without_what_is_needed(tmp_path, folder):
    with pytest.raises(CheckpointError, match=r"no tokenizer\.json.*export it again"):
        PaddedTokenizer.load(tmp_path, cleaning="lower", dropped_id=None)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(CheckpointError, match="is not a tokenizer"):
        PaddedTokenizer.load(tmp_path, cleaning="lower", dropped_id=None)
    plain = Tokenizer.from_file(str(folder / "tokenizer.json"))
    plain.no_padding()
    with pytest.raises(CheckpointError, match="does not pad"):
        PaddedTokenizer(plain, cleaning="lower", dropped_id=None)
