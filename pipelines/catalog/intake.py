"""The intake turns a catalog file that is no Parquet or Arrow file into one, once for each version of it.

So everything behind reads one unit, the row. Of a text file each record becomes a row of Parquet, the bad ones too: a
row names the line on which its record began, and what is wrong with it. Memory holds one block. JSON documents, XML,
sheets and queries give their products one by one, as objects, and go the way of JSON Lines. A file inside gzip and the
like, and an Arrow stream, gets a plain copy.
"""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import pyarrow as pa

from index_builder import storage
from pipelines.catalog import stores
from pipelines.catalog.config import USUAL_RECORD_BYTES, CatalogConfig, CatalogError
from pipelines.catalog.csv_dialect import find_dialect
from pipelines.catalog.csv_records import CsvReader
from pipelines.catalog.databases import iter_query
from pipelines.catalog.documents import is_document, iter_documents
from pipelines.catalog.feeds import Feed
from pipelines.catalog.grouping import Grouper
from pipelines.catalog.json_lines import JsonLinesReader
from pipelines.catalog.limits import check_archive, lines_within_ratio, within_ratio
from pipelines.catalog.paths import flat_columns
from pipelines.catalog.prefetch import prefetch
from pipelines.catalog.row_files import has_rows, stated_rows, write_copy, write_rows
from pipelines.catalog.schemas import (
    LINE,
    PROBLEM,
    Records,
    SeenColumns,
    TypeVotes,
    at_paths,
    check_names,
    plain_columns,
)
from pipelines.catalog.sheets import iter_sheet
from pipelines.catalog.stores import CatalogFile, iter_bytes, read_head, refuse_other_content, with_partitions
from pipelines.catalog.text_encoding import UTF8, OtherEncodingError, as_utf8, encoding_of_head
from pipelines.catalog.text_files import HEAD_BYTES, as_rows, iter_text_rows, last_line_end, look_at_text, utf8_of_head
from pipelines.catalog.values import meets_condition

BLOCK_BYTES = 4 << 20
XML_CHUNK_BYTES = 1 << 20  # its tree takes ten times as much

_RULES = 6  # goes up when the same text gives other rows
_THREADS = 4

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class TakenIn:
    """A catalog file in a form that can be read from any row.

    Attributes:
        file: As it was listed; but a JSON file says whether it is `jsonl` or `json`, and a query has the size and the
            version of its rows.
        format: `parquet` or `arrow`: that of `uris`.
        uris: The files that hold its rows, one after the other: itself where it was in this form already. Of a text
            file a new one begins where a column's type gets wider.
        seen: Of a text file, what its values say about the columns; else None.
        folded: With `group_by`, how many rows of the file went into the row of another.
    """

    file: CatalogFile
    format: str
    uris: tuple[str, ...]
    seen: SeenColumns | None = None
    folded: int = 0


def take_in_all(files: Sequence[CatalogFile], config: CatalogConfig, folder: str) -> list[TakenIn]:
    """`take_in` of each file, some at a time, in order."""
    with ThreadPoolExecutor(_THREADS, thread_name_prefix="intake") as pool:
        return list(pool.map(lambda file: take_in(file, config, folder), files))


def take_in(file: CatalogFile, config: CatalogConfig, folder: str) -> TakenIn:
    """Makes the rows of a file readable from any place, below `folder`, unless they are or were made so before.

    Raises:
        CatalogError: the file does not decompress, is no Arrow stream, no UTF-8, or has no usable header.
        StorageError: `folder` cannot be written.
    """
    if file.format == "sql":
        return _take_in_query(file, config, folder)
    inputs = _inputs(file, config)
    if inputs is None:
        return TakenIn(file=file, format=file.format, uris=(file.uri,))

    def make(path: str) -> dict[str, Any]:
        _logger.info("catalog: taking in %s", file.uri)
        if not file.is_text:
            os.makedirs(path)
            if config.group_by is not None:
                return _write_stated(file, config, path)
            write_copy(file, f"{path}/rows.{file.format}", config.max_file_ratio)
            return {}
        found = replace(file, format=text_format(file, config))
        objects = objects_of(found, config)
        encoding, sample = (None, b"") if objects is not None else look_at_text(found, config.encoding, HEAD_BYTES)
        while True:
            os.makedirs(path)
            reader = text_reader(found, config, sample)
            reader.seen.encoding = encoding or UTF8
            if objects is not None:
                rows = _iter_object_rows(objects, reader, found, config)
            else:
                rows = iter_text_rows(
                    found,
                    reader,
                    encoding,
                    block_bytes=BLOCK_BYTES,
                    max_record_bytes=config.max_record_bytes,
                    max_file_ratio=config.max_file_ratio,
                )
            try:
                counts = _write(prefetch(rows, depth=0, name="intake"), file, config, path)
                if not (isinstance(objects, Feed) and objects.has_new_shapes):
                    return reader.seen.to_dict() | counts | {"format": found.format}
            except OtherEncodingError as other:
                encoding = other.encoding
            shutil.rmtree(path)

    made = storage.artifact(_target(folder, inputs), inputs, make)
    format, seen = file.format, None
    if file.is_text:
        file, seen = replace(file, format=made.facts["format"]), SeenColumns.from_dict(made.facts)
    if file.is_text or config.group_by is not None:
        format = "parquet"
    return TakenIn(file=file, format=format, uris=made.files, seen=seen, folded=made.facts.get("folded", 0))


def _take_in_query(file: CatalogFile, config: CatalogConfig, folder: str) -> TakenIn:
    """Asks the database once, and keeps the rows under a name by what they are: the same rows are found again."""
    shown = hashlib.sha256()
    size = 0

    def noted() -> Iterator[bytes]:
        nonlocal size
        for line in _ask(config):
            shown.update(line + b"\n")
            size += len(line)
            yield line

    _logger.info("catalog: asking %s", file.uri)
    is_local = storage.is_local(folder)
    if is_local:
        os.makedirs(storage.local_path(folder), exist_ok=True)
    place = storage.local_path(folder) if is_local else None
    with tempfile.TemporaryDirectory(prefix=".", suffix=".tmp", dir=place) as space:
        path = f"{space}/rows"
        os.makedirs(path)
        reader = text_reader(file, config)
        rows = prefetch(_iter_object_rows(noted(), reader, file, config), depth=0, name="intake")
        counts = _write(rows, file, config, path)
        file = replace(file, size=size, version=f"sha256={shown.hexdigest()[:32]}")

        def make(target: str) -> dict[str, Any]:
            shutil.move(path, target)
            return reader.seen.to_dict() | counts

        inputs = _inputs(file, config)
        made = storage.artifact(_target(folder, inputs or []), inputs, make)
    seen = SeenColumns.from_dict(made.facts)
    return TakenIn(file=file, format="parquet", uris=made.files, seen=seen, folded=made.facts.get("folded", 0))


def not_taken_in(files: Sequence[CatalogFile], config: CatalogConfig, folder: str) -> list[CatalogFile]:
    """Those of the files that `take_in` would have to read."""

    def stands(file: CatalogFile) -> bool:
        inputs = _inputs(file, config)
        return inputs is None or storage.find_artifact(_target(folder, inputs), inputs) is not None

    with ThreadPoolExecutor(_THREADS, thread_name_prefix="intake") as pool:
        return [file for file, found in zip(files, pool.map(stands, files), strict=True) if not found]


def _inputs(file: CatalogFile, config: CatalogConfig) -> list[Any] | None:
    """All that shapes what is made of a file; None where it can be read from any row as it is."""
    if has_rows(file) and config.group_by is None:
        return None
    inputs: list[Any] = [_RULES, file.uri, file.size, file.version, file.format, file.compression]
    if file.is_text:
        inputs += [file.name, list(config.fields), config.id_fields, config.texts, config.image_field]
        inputs += [config.carried_fields, config.csv_delimiter, config.csv_newlines_in_values]
        inputs += [config.encoding, config.csv_quote, config.csv_escape, config.csv_skip_lines]
        inputs += [config.null_values, config.number_fields]
        inputs += [config.format, config.records, config.sheet, config.query]
        inputs += [] if config.max_record_bytes == USUAL_RECORD_BYTES else [config.max_record_bytes]
    if config.group_by is not None:
        inputs += [config.group_by, config.group_lists, config.null_values, list(config.fields), config.image_field]
        inputs += [config.id_fields, config.texts, file.partitions, config.where, sorted(config.column_types.items())]
    return inputs


def _target(folder: str, inputs: list[Any]) -> str:
    return stores.absolute(storage.join(folder, storage.digest(inputs)))


def look_at_head(file: CatalogFile, config: CatalogConfig) -> SeenColumns:
    """What the first records of a text file show, as many as `HEAD_BYTES` hold, one at least; raises as `take_in`."""
    size = HEAD_BYTES
    file = replace(file, format=text_format(file, config))
    if (objects := objects_of(file, config)) is not None:
        reader = text_reader(file, config)
        next(_iter_object_rows(objects, reader, file, config, block_bytes=size), None)
        return reader.seen
    encoding, sample = look_at_text(file, config.encoding, size)
    while True:
        head = read_head(file.uri, file.compression, size)
        reader = text_reader(file, config, sample)
        reader.seen.encoding = encoding or UTF8
        is_whole = len(head) < size or size > config.max_record_bytes
        text = utf8_of_head(head, encoding)
        _, used = reader.parse(text if is_whole else text[: last_line_end(text, reader.line_ends)], 1, is_whole)
        if used or is_whole:
            return reader.seen
        size *= 4


def text_reader(file: CatalogFile, config: CatalogConfig, sample: bytes = b"") -> CsvReader | JsonLinesReader:
    """What turns blocks of this file into rows; CatalogError where a column that is asked for has one of our names."""
    check_names(config)
    if file.format != "csv":
        return JsonLinesReader(config)
    dialect = find_dialect(
        sample,
        file.name,
        delimiter=config.csv_delimiter,
        quote=config.csv_quote,
        escape=config.csv_escape,
        skip_lines=config.csv_skip_lines,
    )
    return CsvReader(
        fields=flat_columns(config.fields),
        id_fields=config.id_fields,
        voted=flat_columns(config.carried_fields),
        name=file.name,
        dialect=dialect,
        sample=sample,
        newlines_in_values=config.csv_newlines_in_values,
        max_record_bytes=config.max_record_bytes,
        null_values=config.null_values,
        number_fields=config.number_fields,
    )


def text_format(file: CatalogFile, config: CatalogConfig) -> str:
    """The file's format, where only its first bytes tell it: whether JSON is `jsonl` or `json`."""
    if file.format != "jsonl" or config.format != "auto":
        return file.format
    size = HEAD_BYTES
    while config.records is None:
        head = read_head(file.uri, file.compression, size)
        is_whole = len(head) < size or size > config.max_record_bytes
        # What is no UTF-8 is told later: it is no part of what makes a document.
        text = b"".join(as_utf8([head], encoding_of_head(head, config.encoding), lambda: UTF8))
        found = is_document(text, is_whole, encoding=UTF8, id_names=_id_names(config))
        if found is not None:
            return "json" if found else "jsonl"
        size *= 4
    return "json"


def objects_of(file: CatalogFile, config: CatalogConfig) -> Iterable[bytes | str] | None:
    """The products of a file as lines of JSON, or why one is none; None where the file is text that is read by lines.

    An empty line is none, but counts. Raises as `take_in`, at once or when iterated.
    """

    def chunks(size: int = BLOCK_BYTES) -> Iterator[bytes]:
        return within_ratio(iter_bytes(file.uri, file.compression, size), file, config.max_file_ratio)

    if file.format == "sql":
        return _ask(config)
    if file.format == "xlsx":
        data, skip_lines = b"".join(chunks()), config.csv_skip_lines
        check_archive(data, file, config.max_file_ratio)
        lines = iter_sheet(
            data,
            file.name,
            sheet=config.sheet,
            skip_lines=skip_lines,
            wanted=config.fields,
            max_record_bytes=config.max_record_bytes,
        )
        return lines_within_ratio(lines, file.uri, len(data), config.max_file_ratio)
    if file.format == "xml":
        refuse_other_content(file, read_head(file.uri, file.compression))
        return Feed(
            partial(chunks, min(BLOCK_BYTES, XML_CHUNK_BYTES)),
            file.name,
            encoding=config.encoding,
            records=config.records,
            max_record_bytes=config.max_record_bytes,
        )
    if file.format == "json":
        return iter_documents(
            chunks(),
            chunks(),
            file.name,
            encoding=look_at_text(file, config.encoding, HEAD_BYTES)[0] or UTF8,
            records=config.records,
            id_names=_id_names(config),
            max_record_bytes=config.max_record_bytes,
        )
    return None


def _ask(config: CatalogConfig) -> Iterator[bytes]:
    return iter_query(config.uris[0], config.query or "", wanted=config.fields, image_field=config.image_field)


def _id_names(config: CatalogConfig) -> list[str]:
    """The names that a product has where its id is, by the first step of each path."""
    return [name for path in config.id_fields for name in path.split(".")[0].split("|")]


def _iter_object_rows(
    objects: Iterable[bytes | str],
    reader: CsvReader | JsonLinesReader,
    file: CatalogFile,
    config: CatalogConfig,
    block_bytes: int | None = None,
) -> Iterator[pa.RecordBatch]:
    """The products of a file, as rows with `LINE` and `PROBLEM`."""
    block_bytes = block_bytes or BLOCK_BYTES
    votes = {name: TypeVotes() for name in config.carried_fields} if file.format == "xml" else {}

    def rows_of(lines: list[bytes], first: int, bad: list[tuple[int, str]]) -> pa.RecordBatch:
        records, _ = reader.parse(b"\n".join(lines), first, False)
        # What XML gives is text, and may be numbers.
        for name in votes.keys() & records.rows.schema.names:
            column = records.rows.column(name)
            if pa.types.is_string(column.type):
                votes[name].add_texts(column)
                reader.seen.votes[name] = votes[name]
        found = [
            (line, why.replace(" a line", "").replace("of the line", "of the record")) for line, why in records.bad
        ]
        bad = sorted(bad + found)
        if bad:
            reader.seen.first_problem = reader.seen.first_problem or bad[0][1]
        return as_rows(Records(records.rows, records.lines, bad))

    lines: list[bytes] = []
    bad: list[tuple[int, str]] = []
    first, size = 1, 0
    try:
        for number, each in enumerate(objects, 1):
            if isinstance(each, str):
                bad.append((number, each))
                each = b""
            lines.append(each)
            size += len(each) + 1
            if size >= block_bytes:
                yield rows_of(lines, first, bad)
                lines, bad, first, size = [], [], number + 1, 0
    except UnicodeDecodeError as error:
        raise CatalogError(
            f"{file.name}: expected text in {error.encoding}, found the byte 0x{error.object[error.start]:02x}; "
            "set catalog.encoding"
        ) from error
    if lines:
        yield rows_of(lines, first, bad)


def _write_stated(file: CatalogFile, config: CatalogConfig, folder: str) -> dict[str, int]:
    """`_write` of a Parquet or Arrow file."""
    check_names(config)
    uri = file.uri
    if not has_rows(file):
        write_copy(file, uri := f"{folder}.copy", config.max_file_ratio)

    def prepare(rows: pa.RecordBatch) -> pa.RecordBatch:
        return plain_columns(at_paths(rows, config), config)

    try:
        return _write(stated_rows(file, uri, list(config.fields), prepare), file, config, folder)
    finally:
        if uri != file.uri:
            os.unlink(uri)


def _write(rows: Iterable[pa.RecordBatch], file: CatalogFile, config: CatalogConfig, folder: str) -> dict[str, int]:
    """Writes the rows, with `group_by` a row for each product; gives what happened to the others."""
    if config.group_by is None:
        write_rows(rows, folder)
        return {}
    condition = config.condition
    is_kept = None
    if condition is not None:
        stated, nulls = config.stated_types, config.null_values
        is_kept = partial(meets_condition, condition=condition, stated=stated, null_values=nulls)
    judged = () if condition is None else condition.columns
    grouper = Grouper(
        os.path.dirname(folder),
        key=config.group_by,
        lists=config.group_lists,
        images=config.image_field,
        null_values=config.null_values,
        is_kept=is_kept,
        judged=judged,
        as_type=JsonLinesReader(config).as_type,
    )
    needed = {config.group_by, *config.group_lists, *judged}

    def found() -> Iterator[pa.RecordBatch]:
        for batch in rows:
            fields = at_paths(batch.drop_columns([LINE, PROBLEM]), config)
            columns = [batch.column(LINE), batch.column(PROBLEM), *fields.columns]
            named = pa.RecordBatch.from_arrays(columns, names=[LINE, PROBLEM, *fields.schema.names])
            # Other columns get what their file's place tells when they are read.
            yield with_partitions(named, file.partitions, needed)

    write_rows(grouper.group(found()), folder)
    return {"folded": grouper.folded}
