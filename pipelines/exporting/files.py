"""Parquet files and Lance datasets: what DuckDB, Spark, pandas or LanceDB open as it lies."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from datetime import timedelta

import pyarrow as pa
import pyarrow.parquet as pq

from index_builder import storage
from index_builder.tags import is_version_id
from index_builder.version_rows import RowBatch
from pipelines.exporting.export import Export, ExportError, check_count, vector_column

ROWS_PER_FILE = 1_000_000
LATEST_FILE = "LATEST"
_DONE_FILE = "_SUCCESS"
"""The empty file by which Hadoop's readers know a folder that is whole."""


def write_parquet(export: Export, batches: Iterator[RowBatch]) -> str:
    """Writes `name_version/part-00000.parquet` and so on below the folder `out`, and names it in `name.LATEST`.

    A folder that is whole is not written again.
    """
    folder = storage.join(export.out, export.place)
    if not storage.exists(storage.join(folder, _DONE_FILE)):
        storage.remove_tree(folder)
        found = sum(_write_parts(export, folder, batches))
        check_count(found, export)
        storage.write_bytes_atomic(storage.join(folder, _DONE_FILE), b"")
    storage.write_bytes_atomic(storage.join(export.out, f"{export.name}.{LATEST_FILE}"), f"{export.place}\n".encode())
    done = lambda place: storage.exists(storage.join(export.out, place, _DONE_FILE))  # noqa: E731
    for place in export.outdated(storage.list_folders(export.out), done):
        storage.remove_tree(storage.join(export.out, place))
    return f"{folder}/*.parquet"


def _write_parts(export: Export, folder: str, batches: Iterator[RowBatch]) -> Iterator[int]:
    """Writes files of `ROWS_PER_FILE` rows or a few more; yields the rows of each."""
    schema, following = _schema(export), next(batches, None)
    plain = [name for name in _leaves(schema) if name.split(".")[0] != export.vector_field]
    number = 0
    while following is not None or number == 0:
        path_uri = storage.join(folder, f"part-{number:05d}.parquet")
        with (
            storage.atomic_file(path_uri) as path,
            # float32 that was float16 takes two thirds of its bytes; a dictionary of vectors would be for nothing.
            pq.ParquetWriter(path, schema, compression="zstd", use_dictionary=plain, write_statistics=plain) as writer,
        ):
            rows = 0
            while following is not None and rows < ROWS_PER_FILE:
                writer.write_batch(_as_batch(export, schema, following))
                rows, following = rows + len(following), next(batches, None)
        yield rows
        number += 1


def _leaves(schema: pa.Schema) -> list[str]:
    """Names of a schema's columns as Parquet's writer knows them."""
    empty = schema.empty_table()
    sink = pa.BufferOutputStream()
    pq.write_table(empty, sink)
    columns = pq.read_metadata(pa.BufferReader(sink.getvalue())).schema
    return [columns.column(number).path for number in range(len(columns))]


def write_lance(export: Export, batches: Iterator[RowBatch]) -> str:
    """Writes the dataset `out/name.lance` as a new version of itself, which readers see when it is whole, and tags it.

    A version that has its tag is not written again: the dataset's newest version is made to be it.
    """
    import lance

    uri = storage.join(export.out, f"{export.name}.lance")
    tag = export.manifest.version
    dataset = None
    with suppress(ValueError):  # nothing there yet
        dataset = lance.dataset(uri)
    if dataset is not None and tag in dataset.tags.list():
        dataset = lance.dataset(uri, version=tag)
        check_count(dataset.count_rows(), export)
        if dataset.version != dataset.latest_version:
            dataset.restore()
        return uri
    schema = _schema(export)
    stream = pa.RecordBatchReader.from_batches(schema, (_as_batch(export, schema, batch) for batch in batches))
    try:
        dataset = lance.write_dataset(stream, uri, mode="overwrite")
    except OSError as error:
        raise ExportError(f"{uri}: {error}") from error
    check_count(dataset.count_rows(), export)
    dataset.tags.create(tag, dataset.version)
    # A dataset may have tags of its people, whose versions stay.
    for old in sorted(filter(is_version_id, dataset.tags.list()))[: -export.keep]:
        if old != tag:
            dataset.tags.delete(old)
    dataset.cleanup_old_versions(older_than=timedelta(0), error_if_tagged_old_versions=False)
    return uri


def _schema(export: Export) -> pa.Schema:
    kind = pa.float16() if export.vector_type == "float16" else pa.float32()
    fields = [*export.schema, pa.field(export.vector_field, pa.list_(kind, export.dim))]
    return pa.schema(fields, metadata=export.facts)


def _as_batch(export: Export, schema: pa.Schema, batch: RowBatch) -> pa.RecordBatch:
    table = batch.products.append_column(export.vector_field, vector_column(batch.vectors, export))
    return table.combine_chunks().cast(schema).to_batches(max_chunksize=len(batch))[0]
