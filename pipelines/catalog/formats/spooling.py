"""Files that cannot be read from the middle get a plain copy in the work folder, once.

That is text in gzip and the like, any other format inside such a file, and Arrow streams, which become Arrow files. A
copy is named by the file it was made from (name, size, version), appears only when complete, and is taken again as
long as the file stays the same. Planning removes none: another run may read it (`clean_work` removes them).
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pyarrow as pa

from index_builder import storage
from pipelines.catalog import stores
from pipelines.catalog.config import CatalogError
from pipelines.catalog.files import ARROW_FILE_MAGIC, CatalogFile, iter_plain, read_head

_logger = logging.getLogger(__name__)

_THREADS = 4


@dataclass(frozen=True, kw_only=True, slots=True)
class PlainFile:
    """A file of the catalog that can be read from any place.

    Attributes:
        source: The file as listed; its name, size and version say what is read.
        uri: Where to read it: the file itself, or its copy.
        size: Bytes there.
    """

    source: CatalogFile
    uri: str
    size: int


def plain_files(files: Sequence[CatalogFile], spool_uri: str) -> list[PlainFile]:
    """The files, each readable from any place; copies are made below `spool_uri` where they are missing.

    Raises:
        CatalogError: a file does not decompress, or is no Arrow stream.
        StorageError: `spool_uri` cannot be written.
    """
    with ThreadPoolExecutor(_THREADS, thread_name_prefix="spool") as pool:
        return list(pool.map(lambda file: _plain(file, spool_uri), files))


def _plain(file: CatalogFile, spool_uri: str) -> PlainFile:
    if not _needs_copy(file):
        return PlainFile(source=file, uri=file.uri, size=file.size)
    uri = storage.join(spool_uri, _copy_name(file))
    if not storage.exists(uri):
        _logger.info("catalog: making a plain copy of %s", file.uri)
        with storage.atomic_file(uri) as path:
            _write_copy(file, path)
    return PlainFile(source=file, uri=stores.absolute(uri), size=storage.size(uri))


def _needs_copy(file: CatalogFile) -> bool:
    if file.compression is not None:
        return True
    return file.format == "arrow" and not read_head(file.uri, None, 8).startswith(ARROW_FILE_MAGIC)


def _copy_name(file: CatalogFile) -> str:
    described = json.dumps([file.uri, file.name, file.size, file.version, file.format, file.compression])
    return f"{hashlib.sha256(described.encode()).hexdigest()[:32]}.{file.format}"


def _write_copy(file: CatalogFile, path: str) -> None:
    if file.compression is None:
        with stores.open_input(file.uri, from_start_to_end=True) as source:
            _write_arrow_file(file, source, path)
        return
    with open(path, "wb") as sink:
        for chunk in iter_plain(file.uri, file.compression):
            sink.write(chunk)
    if file.format == "arrow" and not read_head(path, None, 8).startswith(ARROW_FILE_MAGIC):
        # An open file keeps its content when its name is given away: the stream is read while the file takes its place.
        with stores.open_input(path) as stream:
            os.unlink(path)
            _write_arrow_file(file, stream, path)


def _write_arrow_file(file: CatalogFile, source: pa.NativeFile, path: str) -> None:
    """Copies an Arrow stream into an Arrow file, batch by batch.

    Dictionaries are written out: a stream may replace them on the way, a file may not.
    """
    try:
        with pa.ipc.open_stream(source) as stream:
            schema = pa.schema([pa.field(field.name, _without_dictionary(field.type)) for field in stream.schema])
            with pa.ipc.new_file(path, schema) as sink:
                for batch in stream:
                    sink.write_batch(batch.cast(schema))
    except (pa.ArrowInvalid, OSError) as error:
        raise CatalogError(
            f"{file.uri}: expected an Arrow IPC file or stream, found neither, or one that is cut off ({error})"
        ) from error


def _without_dictionary(data_type: pa.DataType) -> pa.DataType:
    return data_type.value_type if pa.types.is_dictionary(data_type) else data_type
