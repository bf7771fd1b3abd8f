from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from open_clip.tokenizer import get_clean_fn

from encoders.tokenizers import CLEANINGS, clean_text
from tests.encoders.test_clip_bpe import PLAIN, TITLES


@pytest.mark.parametrize("cleaning", CLEANINGS)
@pytest.mark.parametrize("text", [*TITLES, "_snake_ & (brackets) [x]_", "a ‑ b… ‘c’ &lt;d&gt; _&amp;_"])
def test_it_is_open_clips(cleaning, text):
    assert clean_text(text, cleaning) == get_clean_fn(cleaning)(text)


@given(st.sampled_from(CLEANINGS), st.text(max_size=60) | st.from_regex(PLAIN, fullmatch=True))
@example("canonicalize", " _ ")
def test_it_is_open_clips_for_any_text(cleaning, text):
    assert clean_text(text, cleaning) == get_clean_fn(cleaning)(text)
