"""The files of a catalog, as the list of them describes them."""

from __future__ import annotations

from dataclasses import dataclass

Partitions = tuple[tuple[str, str | None], ...]
"""Columns that are the same for a whole file, and stand in its name or its table's log: (column, value)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CatalogFile:
    """A file of the catalog.

    Attributes:
        uri: Where to open it.
        name: What it is called in the catalog, relative to what the config lists; unique. Files are read in the
            codepoint order of their names.
        size: Bytes as stored.
        version: Changes when the content does (see `StoredFile`).
        format: `parquet`, `csv`, `jsonl` or `arrow`.
        compression: Around the whole file, or None.
        partitions: Columns by the file's place (`kind=shoe/part-0.parquet`), used where the file itself lacks them.
    """

    uri: str
    name: str
    size: int
    version: str
    format: str
    compression: str | None
    partitions: Partitions = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class CatalogListing:
    """The files of the catalog, all of one format.

    Attributes:
        files: In reading order; at least one.
        format: Theirs.
        skipped: (URI, why) of what was found and not taken.
    """

    files: tuple[CatalogFile, ...]
    format: str
    skipped: tuple[tuple[str, str], ...] = ()
