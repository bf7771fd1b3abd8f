from __future__ import annotations

import numpy as np
import open_clip
import pytest
from tokenizers import Tokenizer

from encoders.errors import CheckpointError
from encoders.tokenizers import ClipTokenizer, FastTokenizer
from tests.encoders.tiny import CLIP_MODEL_CONFIG, tiny_tokenizer

TEXTS = ["red dress", "a", "small wooden chair for a mug with a lamp, large and green", ""]


def test_batches_hold_every_text_once_longest_first():
    tokens = FastTokenizer(tiny_tokenizer(), max_tokens=40).tokenize(TEXTS)
    seen, widths = [], []
    for rows, ids, mask in tokens.batches(2):
        assert ids.shape == mask.shape == (len(rows), mask.sum(1).max())
        for row, line, there in zip(rows, ids, mask, strict=True):
            assert np.array_equal(line[there], tokens.ids[tokens.offsets[row] : tokens.offsets[row + 1]])
            assert (line[~there] == tokens.pad_id).all()
        seen += rows.tolist()
        widths.append(ids.shape[1])
    assert sorted(seen) == [0, 1, 2, 3]
    assert widths == sorted(widths, reverse=True)


def test_padding_and_truncation_of_the_file_do_not_leak_in():
    tokenizer = tiny_tokenizer()
    tokenizer.enable_padding(length=30)
    tokenizer.enable_truncation(3)
    plain = FastTokenizer(tiny_tokenizer(), max_tokens=20).tokenize(TEXTS)
    cleaned = FastTokenizer(tokenizer, max_tokens=20).tokenize(TEXTS)
    assert np.array_equal(plain.ids, cleaned.ids)
    assert np.array_equal(plain.offsets, cleaned.offsets)


def test_long_texts_are_cut_and_counted():
    tokens = FastTokenizer(tiny_tokenizer(), max_tokens=6).tokenize(["red " * 4, "red " * 5, "red " * 50])
    assert np.diff(tokens.offsets).tolist() == [6, 6, 6]
    assert tokens.truncated == 2
    assert (tokens.ids.reshape(3, 6)[:, -1] == tiny_tokenizer().token_to_id("[SEP]")).all()


def test_no_texts():
    tokens = FastTokenizer(tiny_tokenizer(), max_tokens=6).tokenize([])
    assert len(tokens) == 0
    assert list(tokens.batches(4)) == []


def test_save_and_load(tmp_path):
    tokenizer = FastTokenizer(tiny_tokenizer(), max_tokens=5)
    tokenizer.save(tmp_path)
    first = (tmp_path / "tokenizer.json").read_bytes()
    tokenizer.save(tmp_path)
    assert (tmp_path / "tokenizer.json").read_bytes() == first
    assert Tokenizer.from_file(str(tmp_path / "tokenizer.json")).truncation is None
    loaded = FastTokenizer.load(tmp_path, max_tokens=5)
    assert np.array_equal(loaded.tokenize(TEXTS).ids, tokenizer.tokenize(TEXTS).ids)


@pytest.mark.parametrize("content", [None, "{}", "no json"])
def test_missing_or_broken_file(tmp_path, content):
    if content is not None:
        (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"tokenizer\.json"):
        FastTokenizer.load(tmp_path, max_tokens=5)


def test_clip_tokens_are_open_clips_own():
    config = CLIP_MODEL_CONFIG["text_cfg"]
    texts = ["Red dress!", "caffè latte mug", "word " * 40, "", "red " * 14, "red " * 15]
    tokens = ClipTokenizer(config).tokenize(texts)
    expected = open_clip.SimpleTokenizer(context_length=16)(texts).numpy()
    ids, mask = tokens.padded()
    assert np.array_equal(ids, expected)
    assert np.array_equal(mask.sum(1), expected.argmax(1) + 1)
    assert tokens.truncated == 2
