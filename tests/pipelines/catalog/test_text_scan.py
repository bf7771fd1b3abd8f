"""A scan of a column's memory finds every row that a search of its texts would find."""

from __future__ import annotations

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.catalog import text_scan
from pipelines.catalog.text_scan import ByteSet, has_nul, mask_of, rows_like_words, rows_with_loose_spaces

COLUMNS = st.lists(st.one_of(st.none(), st.text("ab \0<\u00e9\u00a0", max_size=6)), max_size=12)


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_scan, "_CHUNK_BYTES", 3)


@given(COLUMNS, st.integers(0, 3), st.integers(0, 12))
def test_rows(texts: list[str | None], start: int, length: int) -> None:
    column = pa.array(texts, pa.string()).slice(start, length)
    given_texts = [text or "" for text in texts[start : start + length]]
    assert ByteSet(b"<a").rows_with(column).tolist() == [
        row for row, text in enumerate(given_texts) if "<" in text or "a" in text
    ]
    assert has_nul(column) == any("\0" in text for text in given_texts)
    loose = [row for row, text in enumerate(given_texts) if "  " in text or text.strip(" ") != text]
    assert set(loose) <= set(rows_with_loose_spaces(column).tolist())
    words = [row for row, text in enumerate(given_texts) if text.strip() in ("ab", "b")]
    assert set(words) <= set(rows_like_words(column, ("ab", "b")).tolist())
    assert not len(rows_like_words(column, ()))


def test_a_column_of_nothing() -> None:
    for column in (pa.nulls(3, pa.string()), pa.array([], pa.string()), pa.array(["", None, ""])):
        assert not len(ByteSet(range(256)).rows_with(column))
        assert not len(rows_with_loose_spaces(column))
        assert not has_nul(column)
    assert mask_of(rows_with_loose_spaces(pa.array([" "])), 2).to_pylist() == [True, False]
