"""CSV and JSON Lines say nothing about their columns: what there is and of which type shows in samples.

A sample is the start of a file or of a range in it. The same files give the same samples, so the same types,
everywhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import pyarrow as pa
import pyarrow.compute as pc

from pipelines.catalog.config import CatalogConfig, CatalogError
from pipelines.catalog.formats.csv_records import CsvHeader, parse_block, parse_header
from pipelines.catalog.formats.json_lines import parse_line
from pipelines.catalog.formats.json_types import TypeVotes, type_of
from pipelines.catalog.formats.text_splitting import MAX_RECORD_BYTES, ScannerAt, csv_records, lines_at, record_spans

SAMPLE_BYTES = 128 << 10

_BOM = b"\xef\xbb\xbf"
_UTF16_BOMS = (b"\xff\xfe", b"\xfe\xff")
# Values of typed CSV columns that mean "none", beside the empty one.
NULL_WORDS = ("NA", "N/A", "#N/A", "n/a", "NaN", "nan", "NULL", "null", "None")
_WHOLE_NUMBER = r"^[+-]?[0-9]{1,18}$"
_NUMBER = r"^[+-]?([0-9]+([.][0-9]*)?|[.][0-9]+)([eE][+-]?[0-9]+)?$"
_TRUTH = "^(?i:true|false)$"
_VETO = 1 << 60
_LEADING_ZERO = r"^[+-]?0[0-9]"


@dataclass(frozen=True, kw_only=True, slots=True)
class TextHead:
    """What the start of a text file tells.

    Attributes:
        data_start: Offset of the first record: behind a byte order mark, and behind the header of a CSV file.
        record_bytes: Bytes of a record, on average.
        header: Of a CSV file, else None.
        sample: Whole records from the start.
    """

    data_start: int
    record_bytes: float
    header: CsvHeader | None
    sample: bytes


@dataclass(slots=True)
class SampledColumns:
    """Columns and types seen so far, over all files.

    Attributes:
        votes: For the type of each column that was asked for and seen, by name.
        names: All columns, in order of first sight.
        records: How many records were looked at.
        first_problem: Why the first unreadable one was that.
    """

    votes: dict[str, TypeVotes] = field(default_factory=dict)
    names: dict[str, None] = field(default_factory=dict)
    records: int = 0
    first_problem: str = ""

    def add_json(self, sample: bytes, columns: Sequence[str]) -> None:
        """Looks at the lines of a sample."""
        objects = []
        for line in sample.split(b"\n"):
            if line.strip():
                try:
                    objects.append(parse_line(line))
                except ValueError as error:
                    self.first_problem = self.first_problem or str(error)
        self.records += len(objects)
        self.names |= dict.fromkeys(name for record in objects for name in record)
        for name in columns:
            votes = self.votes.setdefault(name, TypeVotes())
            for record in objects:
                votes.add(type_of(record.get(name)))

    def add_csv(self, sample: bytes, header: CsvHeader, columns: Sequence[str]) -> None:
        """Looks at the records of a sample, only the named columns."""
        self.names |= dict.fromkeys(header.names)
        records = parse_block(sample, header, columns)
        self.records += records.rows.num_rows
        self.first_problem = self.first_problem or next((why for _, why in records.bad), "")
        for name in records.rows.schema.names:
            vote_texts(self.votes.setdefault(name, TypeVotes()), records.rows.column(name))

    def type(self, name: str) -> pa.DataType:
        """The type of a column; text where no value of it was seen."""
        return self.votes[name].winner() if name in self.votes else pa.string()


def read_text_head(data: bytes, *, format: str, delimiter: str, where: str, is_whole: bool) -> TextHead | None:
    """What the first bytes of a file tell; None where they hold no whole record yet.

    Args:
        data: The first bytes.
        format: `csv` or `jsonl`.
        delimiter: Of CSV.
        where: The file, for messages.
        is_whole: Whether the file ends here.

    Raises:
        CatalogError: UTF-16, a JSON array, or no header.
    """
    if data.startswith(_UTF16_BOMS):
        raise CatalogError(
            f"{where}: expected UTF-8, found UTF-16; convert it, for example with iconv -f UTF-16 -t UTF-8"
        )
    start = len(_BOM) if data.startswith(_BOM) else 0
    scanner_at: ScannerAt = lines_at
    header = None
    if format == "csv":
        scanner_at = csv_records(delimiter)
        if not is_whole and not len(scanner_at(0).feed(data[start:].lstrip(b"\r\n"))) and len(data) < MAX_RECORD_BYTES:
            return None
        header = parse_header(data, delimiter, where)
        start = header.data_start
    elif data[start:].lstrip().startswith(b"["):
        raise CatalogError(
            f"{where}: expected one JSON object a line, found a JSON array; convert it, for example with jq -c '.[]'"
        )
    records = data[start:]
    ends = scanner_at(0).feed(records)
    if not is_whole:
        if not len(ends) and len(data) < MAX_RECORD_BYTES:
            return None
        records = records[: int(ends[-1])] if len(ends) else b""
    count = len(record_spans(records, scanner_at)[0]) if records else 0
    return TextHead(
        data_start=start, record_bytes=len(records) / count if count else SAMPLE_BYTES, header=header, sample=records
    )


def delimiter_of(name: str, config: CatalogConfig) -> str:
    """What stands between the values of a CSV file."""
    if config.csv_delimiter is not None:
        return config.csv_delimiter
    return "\t" if ".tsv" in name.lower().rsplit("/", 1)[-1] else ","


def vote_texts(votes: TypeVotes, values: pa.Array) -> None:
    """Counts the values of a column of text as whole numbers, numbers, true and false, or text.

    A number with a leading zero is a code, and would lose its zeros: a column that has one is text.
    """
    trimmed = pc.utf8_trim_whitespace(values)
    filled = trimmed.filter(pc.invert(pc.or_(pc.equal(trimmed, ""), pc.is_in(trimmed, value_set=pa.array(NULL_WORDS)))))

    def matching(pattern: str) -> int:
        return pc.sum(pc.match_substring_regex(filled, pattern)).as_py() or 0

    if matching(_LEADING_ZERO):
        votes.add(pa.string(), _VETO)
    whole, numbers, truths = matching(_WHOLE_NUMBER), matching(_NUMBER), matching(_TRUTH)
    votes.add(pa.int64(), whole)
    votes.add(pa.float64(), numbers - whole)
    votes.add(pa.bool_(), truths)
    votes.add(pa.string(), len(filled) - numbers - truths)
