"""Dead letters: written whole, read back."""

from __future__ import annotations

import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import given
from hypothesis import strategies as st

from pipelines.catalog.dead_letters import (
    MAX_DETAIL_CHARACTERS,
    MAX_TITLE_CHARACTERS,
    REJECTED_SCHEMA,
    DeadLetter,
    ImageError,
    Place,
    Places,
    Reason,
    one_line,
    places_table,
    read_dead_letters,
    write_dead_letters,
)


def letter(product_id: str, detail: str = "why") -> DeadLetter:
    return DeadLetter(
        product_id=product_id, outcome="rejected", stage="read", reason=Reason.malformed_record, detail=detail
    )


def test_letters_are_read_back(tmp_path: Path, memory_root: str) -> None:
    letters = [letter("1"), letter("")]
    for uri in (str(tmp_path / "rejected.parquet"), f"{memory_root}/rejected.parquet"):
        assert write_dead_letters(uri, letters) == 2
        assert read_dead_letters(uri) == letters


def test_no_letters_are_a_file_with_the_schema(tmp_path: Path) -> None:
    write_dead_letters(str(tmp_path / "a.parquet"), [])
    assert pq.read_schema(tmp_path / "a.parquet").equals(REJECTED_SCHEMA)
    assert read_dead_letters(str(tmp_path / "a.parquet")) == []


def test_a_detail_is_one_printable_line_of_bounded_length(tmp_path: Path) -> None:
    write_dead_letters(str(tmp_path / "a.parquet"), [letter("1", "two\nlines \udcff " + "x" * 1000)])
    (found,) = read_dead_letters(str(tmp_path / "a.parquet"))
    assert found.detail.startswith("two lines ? xxx")
    assert len(found.detail) == MAX_DETAIL_CHARACTERS


@given(st.text(), st.integers(8, 60))
def test_a_long_text_is_cut_between_words(text: str, limit: int) -> None:
    cut = one_line(text, limit)
    whole = one_line(text, 10**6)
    assert len(cut) <= limit
    if len(whole) <= limit:
        assert cut == whole
    else:
        assert cut.endswith("...")
        assert whole.startswith(cut[:-3])


def test_the_title_of_a_row_found_twice_is_cut_as_any_other() -> None:
    """It is kept in the shard until then."""
    text = "word " * 23 + "a-long-word and more"
    kept = places_table(Places("a.csv", "line", np.arange(1)), pa.array([text]))["title"][0].as_py()
    assert one_line(kept, MAX_TITLE_CHARACTERS) == one_line(text, MAX_TITLE_CHARACTERS) == "word " * 22 + "word..."


def test_a_letter_says_where_of_what_and_about_which_picture(tmp_path: Path) -> None:
    uri = str(tmp_path / "a.parquet")
    letters = [
        DeadLetter(
            *("7", "degraded", "fetch", Reason.fetch_timeout, "10 s"),
            place=Place("sub/a.csv", "line", 2**40),
            title="Blue\nmug " + "x" * 200,
            picture="https://cdn.example.com/a b.jpg",
        ),
        letter(""),
    ]
    write_dead_letters(uri, letters)
    first, second = read_dead_letters(uri)
    assert first == replace(letters[0], title=("Blue mug " + "x" * 200)[: MAX_TITLE_CHARACTERS - 3] + "...")
    assert second == letters[1]
    assert str(first.place) == f"sub/a.csv, line {2**40}"
    assert pq.read_table(uri).select(["file", "unit", "number"]).to_pylist() == [
        {"file": "sub/a.csv", "unit": "line", "number": 2**40},
        {"file": None, "unit": None, "number": None},
    ]


def test_letters_of_before_places_are_read(tmp_path: Path) -> None:
    """A version that an earlier Shelfmark published has five columns."""
    old = pa.schema([(name, pa.string()) for name in ("product_id", "outcome", "stage", "reason", "detail")])
    row = {
        "product_id": "7",
        "outcome": "rejected",
        "stage": "validate",
        "reason": "empty_product",
        "detail": "a, row 1: x",
    }
    pq.write_table(pa.Table.from_pylist([row], schema=old), tmp_path / "a.parquet")
    assert read_dead_letters(str(tmp_path / "a.parquet")) == [
        DeadLetter("7", "rejected", "validate", Reason.empty_product, "a, row 1: x")
    ]


def test_a_picture_error_survives_pickling() -> None:
    error = pickle.loads(pickle.dumps(ImageError("fetch", Reason.fetch_timeout, "10 s")))
    assert str(error) == "fetch_timeout: 10 s"
    assert (error.stage, error.reason, error.detail) == ("fetch", Reason.fetch_timeout, "10 s")
