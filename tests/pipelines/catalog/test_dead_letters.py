"""Dead letters: written whole, read back."""

from __future__ import annotations

import pickle
from pathlib import Path

import pyarrow.parquet as pq

from pipelines.catalog.dead_letters import (
    MAX_DETAIL_CHARACTERS,
    REJECTED_SCHEMA,
    DeadLetter,
    ImageError,
    Reason,
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


def test_a_picture_error_becomes_a_letter_and_survives_pickling() -> None:
    error = pickle.loads(pickle.dumps(ImageError("fetch", Reason.fetch_timeout, "10 s")))
    assert str(error) == "fetch_timeout: 10 s"
    assert error.to_letter("7", "degraded") == DeadLetter(
        product_id="7", outcome="degraded", stage="fetch", reason=Reason.fetch_timeout, detail="10 s"
    )
