from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from open_clip.tokenizer import SimpleTokenizer

from encoders.tokenizers import ClipBpeTokenizer, ClipTokenizer, can_rewrite, clip_bpe_tokenizer
from tests.encoders.tiny import WORDS

PIECES = SimpleTokenizer()
THEIRS = ClipTokenizer({})


@pytest.fixture(scope="module")
def rewritten(tmp_path_factory) -> ClipBpeTokenizer:
    folder = tmp_path_factory.mktemp("clip")
    ClipBpeTokenizer(clip_bpe_tokenizer(PIECES.encoder, list(PIECES.bpe_ranks)), max_tokens=77).save(folder)
    return ClipBpeTokenizer.load(folder, max_tokens=77)


def same(rewritten: ClipBpeTokenizer, texts: list[str]) -> bool:
    found, expected = rewritten.tokenize(texts), THEIRS.tokenize(texts)
    assert found.truncated == expected.truncated
    return np.array_equal(found.ids, expected.ids) and np.array_equal(found.offsets, expected.offsets)


TITLES = [
    "",
    "Women's Floral-Print Midi Dress, Größe 42 – 100% Cotton!!",
    "L&#39;Oréal &amp;amp; Co. «Café» 12.5oz/355ml (pack of 2)",
    "don't they'll WE'VE i'm she'd it'S",
    "ＦＵＬＬ　ｗｉｄｔｈ ㎏ ½ №5 ²",
    "手机壳 スマホケース 휴대폰 чехол غطاء",
    "🎁👗 gift  \t two\nlines\r\n  ",
    "schÃ¶n \x1b[31m red \x00 zero ‘curly’ “quotes” ﬁsh",
    "<start_of_text> inside <END_OF_TEXT> too",
    "x" * 400,
    "word " * 100,
]


@pytest.mark.parametrize("text", TITLES)
def test_ids_are_those_of_open_clip(rewritten, text):
    assert same(rewritten, [text])


# Not of code points that Unicode has given to nothing: the two regex libraries take those for different kinds.
PLAIN = r"[A-Za-z0-9 '&;.,/-]{0,60}"
ASSIGNED = st.characters(exclude_categories=["Cs", "Cn"])


@given(st.lists(st.text(ASSIGNED, max_size=60) | st.from_regex(PLAIN, fullmatch=True), max_size=4))
@example(["a" * 3, "İstanbul", "ǅ ß ẞ"])
def test_ids_are_those_of_open_clip_for_any_text(rewritten, texts):
    assert same(rewritten, texts)


def test_every_word_of_the_table(rewritten):
    words = [piece.removesuffix("</w>") for piece in PIECES.encoder if piece.isascii() and piece.endswith("</w>")]
    assert len(words) > 30_000
    assert same(rewritten, [*WORDS, *words])


def test_tokenizers_that_it_does_not_equal():
    assert can_rewrite(PIECES, {})
    assert not can_rewrite(SimpleTokenizer(clean="canonicalize"), {"tokenizer_kwargs": {"clean": "canonicalize"}})
    assert not can_rewrite(SimpleTokenizer(reduction_mask="simple"), {})
