"""An export is a version's rows under a name of their own, until the name that queries use points to it.

Every engine is written by a function of one shape in a module of its own: it takes an `Export` and the rows, makes a
place of the version's own (`name_version`), fills it, counts what arrived, and only then lets the name that queries use
point there. What fails on the way is removed; what queries use is never touched before.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pyarrow as pa

from index_builder.manifest import Manifest
from index_builder.version_rows import RowBatch
from pipelines.config.exit_codes import RunFailedError

ROW_FIELD = "shelfmark_row"
"""Where engines that need a number for each row have it: its number in the version."""
ROWS_FACT = "shelfmark.rows"
"""The fact by which a place that has fewer is known as half written."""
VectorType = Literal["float32", "float16"]
_VERSION = r"\d{8}t\d{6}z_[0-9a-f]{12}"


class ExportError(RunFailedError):
    """An engine refused something, or could not be reached: what it said, and what was being done.

    Remedy: Mend what the engine's own words name (address, rights, space), and give the same command again: what was
        half written is removed first.
    """


@dataclass(frozen=True, kw_only=True, slots=True)
class Export:
    """What is exported, and where to.

    Attributes:
        out: The engine's address, or a folder.
        name: What queries use: an alias, a view or a dataset.
        manifest: Of the version.
        rows, schema: How many rows there are, and their columns.
        vector_field: Name of the vector among them.
        vectors_are: What the vectors are, in words.
        keep: How many versions' places stay, this one included.
    """

    out: str
    name: str
    manifest: Manifest
    rows: int
    schema: pa.Schema
    vector_field: str
    vector_type: VectorType
    vectors_are: str
    keep: int

    @property
    def place(self) -> str:
        """The name of the version's own table, collection or index."""
        return f"{self.name}_{self.manifest.version.lower().replace('-', '_')}"

    @property
    def dim(self) -> int:
        """Numbers of a vector."""
        return self.manifest.encoder.dim

    @property
    def facts(self) -> dict[str, str]:
        """What a reader of the export must know: which queries its vectors can be compared with."""
        return {
            "shelfmark.version": self.manifest.version,
            "shelfmark.encoder_fingerprint": self.manifest.encoder.fingerprint,
            "shelfmark.vectors": f"{self.vectors_are}, L2-normalised: compare by inner product",
            ROWS_FACT: str(self.rows),
        }

    def outdated(self, places: Iterable[str], is_whole: Callable[[str], bool] = lambda place: True) -> list[str]:
        """Of the places that stand, those of versions older than the newest `keep`; never this version's.

        What a killed export left half written is none of these: it goes, if it is older than this version.
        """
        ours = re.compile(re.escape(self.name) + "_" + _VERSION)
        known = sorted(place for place in places if ours.fullmatch(place))
        whole = [place for place in known if place == self.place or is_whole(place)]
        half = [place for place in known if place not in whole and place < self.place]
        return half + [place for place in whole[: max(0, len(whole) - self.keep)] if place != self.place]


Write = Callable[[Export, Iterator[RowBatch]], str]
"""Writes the rows, and says in words what was made."""


def has_all_rows(facts: object, found: int) -> bool:
    """Whether a place with so many rows has as many as its facts say; one of before they said so has."""
    said = facts.get(ROWS_FACT) if isinstance(facts, Mapping) else None
    return said is None or str(found) == said


def check_count(found: int, export: Export) -> None:
    """ExportError where an engine holds another number of rows than it was given."""
    if found != export.rows:
        raise ExportError(f"{export.place}: {export.rows:,} rows were written, and {found:,} are there")


def vector_column(vectors: np.ndarray, export: Export) -> pa.FixedSizeListArray:
    """float32 [n, D] as a column of the type that was asked for."""
    kind = pa.float16() if export.vector_type == "float16" else pa.float32()
    values = np.ascontiguousarray(vectors, np.float16 if export.vector_type == "float16" else np.float32)
    return pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1), kind), export.dim)
