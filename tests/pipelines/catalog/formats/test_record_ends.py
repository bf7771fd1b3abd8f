"""Cutting text into records: the vectorised scanners against pyarrow's own parser and against a plain state machine."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from pipelines.catalog.formats.record_ends import LineScanner, QuoteScanner

# Few signs, so that quotes, delimiters and newlines meet in every way.
csv_text = st.text(alphabet='",\n\rab;', max_size=60).map(str.encode)


def reference_ends(text: bytes, delimiter: bytes = b",") -> tuple[list[int], bool]:
    """Ends of records, and whether the text ends inside quotes: pyarrow's lexer, byte by byte."""
    ends, state, position = [], "start", 0
    while position < len(text):
        sign = text[position : position + 1]
        if state == "quoted":
            if sign == b'"' and text[position + 1 : position + 2] == b'"':
                position += 1
            elif sign == b'"':
                state = "value"
        elif sign == b'"' and state == "start":
            state = "quoted"
        elif sign in b"\n\r":
            ends.append(position + 1)
            state = "start"
        else:
            state = "start" if sign == delimiter else "value"
        position += 1
    return ends, state == "quoted"


@given(text=csv_text, cuts=st.lists(st.integers(0, 60), max_size=6))
@example(text=b'a,"b""\n"\n', cuts=[5])
@example(text=b'a"b,"""c\n""",d\n', cuts=[3, 6, 7])
def test_quote_scanner_equals_a_plain_state_machine_however_the_text_is_chunked(text: bytes, cuts: list[int]) -> None:
    scanner = QuoteScanner(100, ord(","))
    bounds = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    found = [end for start, stop in pairwise(bounds) for end in scanner.feed(text[start:stop])]
    expected, inside = reference_ends(text)
    assert [end - 100 for end in found] == expected
    assert scanner.ends_inside_quotes() == inside


def read_with_pyarrow(text: bytes, columns: int) -> list[tuple[bytes, ...]]:
    names = [str(number) for number in range(columns)]
    table = pyarrow.csv.read_csv(
        pa.BufferReader(text),
        read_options=pyarrow.csv.ReadOptions(use_threads=False, block_size=len(text) + 1, column_names=names),
        parse_options=pyarrow.csv.ParseOptions(newlines_in_values=True),
        convert_options=pyarrow.csv.ConvertOptions(column_types=dict.fromkeys(names, pa.binary())),
    )
    return list(zip(*(column.to_pylist() for column in table.columns), strict=True))


@given(text=csv_text)
@example(text=b'5" pipe,"say ""hi""\nthere"\n"",x"y\n')
def test_records_cut_here_and_parsed_apart_are_those_of_the_whole_text(text: bytes) -> None:
    _, inside = reference_ends(text)
    assume(text and not inside)
    ends = QuoteScanner(0, ord(",")).feed(text + b"\n").tolist()
    whole_text = text + b"\n"
    for columns in (1, 2, 3):
        try:
            whole = read_with_pyarrow(whole_text, columns)
        except pa.ArrowInvalid:
            continue
        parts = [whole_text[start:stop] for start, stop in zip([0, *ends], ends, strict=False)]
        assert [row for part in parts for row in read_with_pyarrow(part, columns)] == whole


def test_line_scanner_gives_file_offsets() -> None:
    scanner = LineScanner(10)
    assert scanner.feed(b"ab\n\nc").tolist() == [13, 14]
    assert scanner.feed(b"\n").tolist() == [16]
    assert not scanner.ends_inside_quotes()


@pytest.mark.parametrize("delimiter", [";", "\t", "|"])
def test_a_quote_opens_a_value_only_behind_the_delimiter_in_use(delimiter: str) -> None:
    text = f'a{delimiter}"b\nc"\n1,"2\n'.encode()
    assert QuoteScanner(0, ord(delimiter)).feed(text).tolist() == [8, 13]


def test_a_chunk_of_quotes_alone_is_kept_for_the_next() -> None:
    scanner = QuoteScanner(0, ord(","))
    ends = np.concatenate([scanner.feed(chunk) for chunk in (b'"', b'"', b'"', b"\n", b'"', b"\n")])
    assert ends.tolist() == [6]
