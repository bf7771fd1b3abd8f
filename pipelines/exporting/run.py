"""Opens the version, checks what can be checked before work, and hands its rows to the engine's writer."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module
from time import monotonic
from typing import NamedTuple

from index_builder import IndexReader
from index_builder.version_rows import RowBatch, VectorSource, VersionRows
from pipelines.config.exit_codes import failures_of_work
from pipelines.config.terminal import shown_progress
from pipelines.config.validation import ConfigError
from pipelines.exporting.export import ROW_FIELD, Export, VectorType, Write


class Engine(NamedTuple):
    """Where the writer of an engine is, the extra that brings its client, and the packages that this imports."""

    module: str
    function: str
    extra: str | None = None
    packages: tuple[str, ...] = ()
    halves: bool = False
    """Whether it takes vectors of float16."""


ENGINES = {
    "parquet": Engine("files", "write_parquet", halves=True),
    "lance": Engine("files", "write_lance", "lance", ("lance",), halves=True),
    "pgvector": Engine("postgres", "write", "pgvector", ("psycopg", "pgvector"), halves=True),
    "qdrant": Engine("qdrant", "write", "qdrant", ("qdrant_client",)),
    "opensearch": Engine("opensearch", "write", "opensearch", ("opensearchpy",)),
    "milvus": Engine("milvus", "write", "milvus", ("pymilvus",)),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Exported:
    """What an export made: `made` in words; `stood`: the rows were there whole already, and none was written."""

    version: str
    rows: int
    stood: bool
    made: str
    vectors_are: str
    seconds: float


def export_version(
    index_uri: str,
    to: str,
    out: str,
    *,
    version: str | None = None,
    name: str = "products",
    vectors: VectorSource | None = None,
    vector_field: str = "vector",
    vector_type: VectorType = "float32",
    keep: int = 2,
) -> Exported:
    """Writes the rows of a version, by default the published one, into an engine, and lets `name` point to them.

    Args:
        to: One of `ENGINES`; `out` is its address.
        vectors, vector_field, vector_type, keep: See `VersionRows` and `Export`.

    Raises:
        ConfigError: a name, an address or the engine cannot be used, or a gate holds the version; nothing was done.
        IndexBuilderError: there is no such version, or it cannot be opened.
        RunFailedError: it failed in work. The engine answers as before.
    """
    engine = ENGINES[to]
    if not re.fullmatch(r"[a-z][a-z0-9_]{0,30}", name):
        raise ConfigError(f"--name {name!r}: expected small letters, digits and _, a letter first, at most 31 of them")
    if keep < 1:
        raise ConfigError(f"--keep {keep}: expected 1 or more")
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]{0,62}", vector_field) or vector_field == ROW_FIELD:
        raise ConfigError(
            f"--vector-field {vector_field!r}: expected letters, digits and _, no digit first, at most 63 of them, and "
            f"not {ROW_FIELD}"
        )
    if vector_type == "float16" and not engine.halves:
        known = ", ".join(other for other, each in ENGINES.items() if each.halves)
        raise ConfigError(f"--vector-type float16: {to} takes float32 here; float16 goes to {known}")
    write = _writer(engine)
    reader = IndexReader.open(index_uri, version)
    manifest = reader.manifest
    if failed := manifest.gates.get("failed"):
        raise ConfigError(
            f"--version {manifest.version} is held back ({failed[0]}): expected one that passed its gates"
        )
    rows = VersionRows(reader, vectors)
    if vector_field in rows.schema.names:
        raise ConfigError(f"{vector_field} is a column of the catalog: name the vectors otherwise by --vector-field")
    if ROW_FIELD in rows.schema.names:
        raise ConfigError(f"{ROW_FIELD} is a column of the catalog, and the number of a row in an export: rename it")
    export = Export(
        out=out,
        name=name,
        manifest=manifest,
        rows=rows.count,
        schema=rows.schema,
        vector_field=vector_field,
        vector_type=vector_type,
        vectors_are=rows.vectors_are,
        keep=keep,
    )
    began, stood = monotonic(), True
    with failures_of_work(), shown_progress(f"exporting {manifest.version} to {to}", rows.count) as advance:

        def counted() -> Iterator[RowBatch]:
            nonlocal stood
            stood = False
            for batch in rows:
                yield batch
                advance(len(batch))

        made = write(export, counted())
    seconds = monotonic() - began
    return Exported(
        version=manifest.version,
        rows=rows.count,
        stood=stood,
        made=made,
        vectors_are=rows.vectors_are,
        seconds=seconds,
    )


def _writer(engine: Engine) -> Write:
    try:
        for package in engine.packages:
            import_module(package)
    except ModuleNotFoundError as error:
        need = f"pip install -c constraints.txt -e '.[{engine.extra}]'"
        raise ConfigError(f"{error.name} is not installed, and the export needs it: {need}") from error
    return getattr(import_module(f"pipelines.exporting.{engine.module}"), engine.function)
