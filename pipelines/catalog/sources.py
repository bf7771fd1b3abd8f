"""A first look at the catalog, before any work: is it there, of which format, does it have the columns asked for."""

from __future__ import annotations

import pyarrow as pa

from pipelines.catalog import stores
from pipelines.catalog.catalog_files import CatalogFile
from pipelines.catalog.config import CatalogConfig
from pipelines.catalog.errors import CatalogError
from pipelines.catalog.formats.column_planning import read_footers
from pipelines.catalog.formats.file_formats import ARROW_FILE_MAGIC, read_head
from pipelines.catalog.formats.partitions import append_missing, partition_schema
from pipelines.catalog.formats.spooling import PlainFile
from pipelines.catalog.formats.text_planning import read_file_head, sample_heads, spread
from pipelines.catalog.listing import list_catalog
from pipelines.catalog.schemas import CatalogSchema, merged_schema, sampled_schema

_FILES_LOOKED_AT = 16


def catalog_schema(config: CatalogConfig) -> CatalogSchema:
    """What the catalog looks like, by its list of files and the schemas of some of them.

    Cheap: footers and file heads only, of at most 16 files, and nothing is written. The plan looks at all files, so it
    may still find a file that differs, and a wider type for a CSV or JSON column.

    Raises:
        CatalogError: nothing there, nothing to read, several formats, a file that is not what its name says, or a
            column that does not exist (the message names key, value and the nearest column) or cannot be what it is
            for.
    """
    listing = list_catalog(config)
    chosen = spread(listing.files, _FILES_LOOKED_AT)
    if listing.format in ("csv", "jsonl"):
        heads = [
            read_file_head(file.uri, config, name=file.name, format=file.format, compression=file.compression)
            for file in chosen
        ]
        schema, names = sampled_schema(sample_heads(chosen, heads, config), config, listing.format)
    else:
        placed = partition_schema(listing.files)
        stated = [
            (file.name, append_missing(found, placed, file.partitions))
            for file in chosen
            if (found := _stated_schema(file)) is not None
        ]
        # A Parquet file inside a compressed one says nothing before it is unpacked; the plan will do that.
        schema, names = merged_schema(stated, config) if stated else (pa.schema([]), ())
    return CatalogSchema(
        format=listing.format,
        schema=schema,
        columns=names,
        files=len(listing.files),
        bytes=sum(file.size for file in listing.files),
    )


def _stated_schema(file: CatalogFile) -> pa.Schema | None:
    """The schema that a Parquet or Arrow file states; None for a Parquet file in a compressed one."""
    is_stream = file.format == "arrow" and not read_head(file.uri, file.compression, 8).startswith(ARROW_FILE_MAGIC)
    if file.compression is None and not is_stream:
        return read_footers([PlainFile(source=file, uri=file.uri, size=file.size)], ())[0].schema
    if file.format == "parquet":
        return None
    try:
        with stores.open_input(file.uri) as source:
            plain = pa.CompressedInputStream(source, file.compression) if file.compression is not None else source
            # An Arrow file is a stream behind eight bytes of magic.
            if not is_stream:
                plain.read(8)
            return pa.ipc.open_stream(plain).schema
    except (pa.ArrowException, OSError) as error:
        raise CatalogError(f"{file.uri}: expected an Arrow IPC file or stream, found neither ({error})") from error
