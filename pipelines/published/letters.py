"""Reads the dead letters of a published version: counted by reason, some of them picked, and made safe for a
spreadsheet.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from index_builder import publish, storage
from pipelines.catalog.config import nearest
from pipelines.catalog.dead_letters import REJECTED_FILE, REJECTED_SCHEMA, Reason
from pipelines.config.validation import ConfigError

# What Excel, LibreOffice and Google Sheets take for the beginning of a formula (OWASP, "CSV injection").
_FORMULA = "^[=+\\-@\t\r\uff1d\uff0b\uff0d\uff20]"


@dataclass(frozen=True, kw_only=True, slots=True)
class Letters:
    """Dead letters of a version.

    Attributes:
        by_reason: (outcome, reason) -> how many, of all letters, the most frequent first.
        picked: The letters asked for, in the order of the catalog: a table of `REJECTED_SCHEMA`.
        matching: How many letters are of the reason and outcome asked for; `picked` may be fewer.
    """

    by_reason: dict[tuple[str, str], int]
    picked: pa.Table
    matching: int


def read_letters(
    index_uri: str, version: str, *, reason: str | None = None, outcome: str | None = None, limit: int | None = None
) -> Letters | None:
    """The letters of a version, None where it has none to read: vectors or versions made without.

    Args:
        reason, outcome: Only letters of these; None: of all.
        limit: At most so many are picked; None: all. Memory is that of the picked ones.

    Raises:
        ConfigError: No letter has that reason, and Shelfmark knows no such reason.
        VersionNotFoundError: There is no such version.
    """
    if all(entry.path != REJECTED_FILE for entry in publish.read_manifest(index_uri, version).files):
        return None
    counts: Counter[tuple[str, str]] = Counter()
    picked, matching, room = [], 0, limit
    with storage.localized(storage.join(publish.version_uri(index_uri, version), REJECTED_FILE)) as path:
        for table in _tables(path):
            pairs = table.group_by(["outcome", "reason"], use_threads=False).aggregate([([], "count_all")]).to_pylist()
            counts.update({(pair["outcome"], pair["reason"]): pair["count_all"] for pair in pairs})
            for name, wanted in (("reason", reason), ("outcome", outcome)):
                table = table if wanted is None else table.filter(pc.equal(table.column(name), wanted))
            matching += table.num_rows
            if room != 0:
                picked.append(table.slice(0, room))
                room = None if room is None else room - picked[-1].num_rows
    known = {name for _, name in counts} | {str(each) for each in Reason}
    if reason is not None and reason not in known:
        raise ConfigError(f"--reason {reason}: expected a reason of dead letters. {nearest(reason, known)}")
    return Letters(
        by_reason=dict(counts.most_common()),
        picked=pa.concat_tables([REJECTED_SCHEMA.empty_table(), *picked]),
        matching=matching,
    )


def group_letters(uri: str, shown: int) -> list[tuple[str, int, list[dict[str, Any]]]]:
    """The letters of a file by kind, such as "rejected: missing_id", the most frequent first: count and examples."""
    counts: Counter[str] = Counter()
    examples: dict[str, list[dict[str, Any]]] = {}
    with storage.localized(uri) as path:
        for table in _tables(path):
            kinds = pc.binary_join_element_wise(table.column("outcome"), table.column("reason"), ": ")
            for entry in pc.value_counts(kinds).to_pylist():
                kind = entry["values"]
                counts[kind] += entry["counts"]
                room = shown - len(examples.setdefault(kind, []))
                if room > 0:
                    examples[kind] += table.filter(pc.equal(kinds, kind)).slice(0, room).to_pylist()
    return [(kind, count, examples[kind]) for kind, count in counts.most_common()]


def letters_of(index_uri: str, version: str, product_id: str) -> pa.Table | None:
    """The letters about one product, a table of `REJECTED_SCHEMA`; None where the version has none to read.

    Raises:
        VersionNotFoundError: There is no such version.
    """
    if all(entry.path != REJECTED_FILE for entry in publish.read_manifest(index_uri, version).files):
        return None
    with storage.localized(storage.join(publish.version_uri(index_uri, version), REJECTED_FILE)) as path:
        found = [table.filter(pc.equal(table.column("product_id"), product_id)) for table in _tables(path)]
    return pa.concat_tables([REJECTED_SCHEMA.empty_table(), *found])


def _tables(path: str) -> Iterator[pa.Table]:
    """The file's letters, some thousand at a time, each column of today's schema; nulls for those of before."""
    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches():
            columns = [
                batch.column(field.name).cast(field.type)
                if field.name in batch.schema.names
                else pa.nulls(len(batch), field.type)
                for field in REJECTED_SCHEMA
            ]
            yield pa.Table.from_arrays(columns, schema=REJECTED_SCHEMA)


def without_formulas(letters: pa.Table) -> pa.Table:
    """The letters with an apostrophe before each text that a spreadsheet would run as a formula."""
    columns = []
    for column in letters.columns:
        if pa.types.is_string(column.type):
            formula = pc.fill_null(pc.match_substring_regex(column, _FORMULA), False)
            column = pc.if_else(formula, pc.binary_join_element_wise("'", column, ""), column)
        columns.append(column)
    return pa.Table.from_arrays(columns, schema=letters.schema)
