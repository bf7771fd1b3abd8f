"""Text files in parts: cuts for the plan, blocks for the reader, and what happens to records that never end."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from pipelines.catalog import stores
from pipelines.catalog.formats import text_splitting
from pipelines.catalog.formats.record_ends import QuoteScanner
from pipelines.catalog.formats.text_splitting import (
    TextBlock,
    csv_records,
    cut_lines,
    cut_records,
    iter_blocks,
    lines_at,
)

CSV = csv_records(",")


def blocks_of(text: bytes, scanner_at: text_splitting.ScannerAt, **options: int) -> list[TextBlock]:
    return list(iter_blocks(pa.BufferReader(text), 0, len(text), scanner_at, **options))


@given(lines=st.lists(st.binary(max_size=12).filter(lambda line: b"\n" not in line)), block_bytes=st.integers(1, 40))
def test_blocks_of_lines_are_whole_lines_and_lose_nothing(lines: list[bytes], block_bytes: int) -> None:
    text = b"\n".join(lines)
    blocks = blocks_of(text, lines_at, block_bytes=block_bytes)
    assert b"".join(block.data for block in blocks) == text
    assert all(block.data.endswith(b"\n") for block in blocks[:-1])
    assert [block.offset for block in blocks] == [
        sum(len(earlier.data) for earlier in blocks[:number]) for number in range(len(blocks))
    ]


@given(text=st.text(alphabet='",\n\rab;', max_size=80).map(str.encode), block_bytes=st.integers(1, 40))
def test_blocks_of_csv_end_where_records_end(text: bytes, block_bytes: int) -> None:
    scanner = QuoteScanner(0, ord(","))
    ends = set(scanner.feed(text).tolist())
    assume(not scanner.ends_inside_quotes())
    blocks = blocks_of(text, CSV, block_bytes=block_bytes)
    assert b"".join(block.data for block in blocks) == text
    assert all(block.offset + len(block.data) in ends for block in blocks[:-1])


@given(
    text=st.text(alphabet='",\n\rab', min_size=1, max_size=120).map(str.encode),
    targets=st.lists(st.integers(0, 120), max_size=8),
)
def test_csv_is_cut_behind_the_first_record_that_ends_at_or_after_a_target(
    text: bytes, targets: list[int], tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("cut") / "a.csv"
    path.write_bytes(text)
    ends = QuoteScanner(0, ord(",")).feed(text).tolist()
    expected = {min((end for end in ends if end >= target), default=0) for target in targets}
    assert cut_records(str(path), 0, len(text), targets, CSV) == sorted(expected - {0, len(text)})


def test_lines_are_cut_behind_the_newline_that_follows_a_target(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"aaaa\nbb\ncccccc\nd")
    assert cut_lines(str(path), 0, 16, [1, 4, 5, 9, 15, 99]) == [5, 8, 15]


def test_lines_longer_than_a_read_are_cut_as_well(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_splitting, "_CUT_WINDOW_BYTES", 4)
    monkeypatch.setattr(text_splitting, "_CUTS_AT_ONCE", 2)
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"a" * 50 + b"\n" + b"b" * 30 + b"\nccc")
    assert cut_lines(str(path), 0, 85, [3, 10, 60, 83]) == [51, 82]


def test_cuts_in_memory_filesystem(memory_root: str) -> None:
    uri = f"{memory_root}/a.jsonl"
    filesystem, path = stores._resolve(uri)
    filesystem.pipe_file(path, b"aaaa\nbb\ncccccc\nd")
    assert cut_lines(uri, 0, 16, [1, 9]) == [5, 15]


def test_a_quote_that_never_closes_costs_its_first_line_only() -> None:
    text = b'1,a\n2,"b\n3,c\n4,d\n'
    assert [block.data for block in blocks_of(text, CSV)] == [b"1,a\n", b'2,"b\n', b"3,c\n4,d\n"]


def test_a_quoted_record_past_the_limit_costs_its_first_line_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_splitting, "MAX_RECORD_BYTES", 20)
    text = b'1,a\n2,"b\n' + b"3,c\n" * 10 + b'4,"d"\n5,"e\nf"\n'
    for block_bytes in (3, 8, 1000):
        blocks = blocks_of(text, CSV, block_bytes=block_bytes)
        joined = b"".join(block.data for block in blocks)
        assert joined == text
        assert b'2,"b\n' in [block.data for block in blocks]


def test_plan_and_reader_agree_on_a_quoted_record_past_the_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(text_splitting, "MAX_RECORD_BYTES", 20)
    text = b'1,a\n2,"b\n' + b"3,c\n" * 10 + b'4,"d"\n5,"e\nf"\n'
    path = tmp_path / "a.csv"
    path.write_bytes(text)
    for scan_bytes in (5, 1000):
        monkeypatch.setattr(text_splitting, "_SCAN_BYTES", scan_bytes)
        cuts = cut_records(str(path), 0, len(text), [7, 20, 50], CSV)
        assert cuts == [13, 21, 55]
        with stores.open_input(str(path)) as source:
            parts = [
                block.data
                for start, stop in zip([0, *cuts], [*cuts, len(text)], strict=True)
                for block in iter_blocks(source, start, stop, CSV)
            ]
        assert b"".join(parts) == text
        assert [part for part in parts if b'"b' in part] == [b'2,"b\n']


@pytest.mark.parametrize("scanner_at", [lines_at, CSV])
def test_a_line_past_the_limit_is_skipped_and_reported(
    scanner_at: text_splitting.ScannerAt, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(text_splitting, "MAX_RECORD_BYTES", 20)
    text = b"1,a\n" + b"x" * 50 + b"\n2,b\n"
    for block_bytes in (3, 16, 1000):
        blocks = blocks_of(text, scanner_at, block_bytes=block_bytes)
        skipped = [block for block in blocks if block.skipped_bytes]
        assert [(block.offset, block.skipped_bytes) for block in skipped] == [(4, 51)]
        assert b"".join(block.data for block in blocks) == b"1,a\n2,b\n"


def test_a_file_that_became_shorter_is_noticed() -> None:
    with pytest.raises(EOFError, match="did it change since planning"):
        list(iter_blocks(pa.BufferReader(b"a\nb\n"), 0, 10, lines_at))
