"""Two versions are compared by what the same queries find in each, every query by the version's own encoder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

import encoders
from encoders.query_batches import BaseQueryEncoder
from index_builder import IndexReader, VersionNotFoundError
from pipelines.report.queries import COMPARED, ComparedQuery, Query, compare_queries

MOVES_SHOWN = 3


@dataclass(frozen=True, kw_only=True, slots=True)
class VersionComparison:
    """What queries find in two versions.

    Attributes:
        old, new: Their ids.
        overlap: Mean share of the first answers that both have, 0 to 1.
        without_result: Queries that find nothing in the new version.
        queries: The worst-moved first.
    """

    old: str
    new: str
    overlap: float
    without_result: int
    queries: tuple[ComparedQuery, ...]


def compare_by_queries(index_uri: str, old: str, new: str, texts: Sequence[str]) -> VersionComparison:
    """What texts find in two versions, each a version's id or tag.

    Raises:
        VersionNotFoundError: there is no such version, or it has no query encoder that reads texts.
        EncoderError: an encoder cannot be loaded.
    """
    before, after = _opened(index_uri, old), _opened(index_uri, new)
    compared = compare_queries([Query(text=text) for text in texts], after, before)
    return VersionComparison(
        old=before[0].manifest.version,
        new=after[0].manifest.version,
        overlap=sum(query.overlap for query in compared) / len(compared),
        without_result=sum(not query.new for query in compared),
        queries=tuple(sorted(compared, key=lambda query: query.overlap)),
    )


def _opened(index_uri: str, version: str) -> tuple[IndexReader, BaseQueryEncoder]:
    reader = IndexReader.open(index_uri, version)
    uri = reader.query_encoder_uri
    encoder = None if uri is None else encoders.load_query_encoder(uri)
    if encoder is None or not encoder.accepts_text:
        found = "none" if encoder is None else "one that reads pictures only"
        raise VersionNotFoundError(
            f"{index_uri}: expected a query encoder that reads texts in {reader.manifest.version}, found {found}"
        )
    return reader, encoder


def moves(query: ComparedQuery) -> list[tuple[str, int | None, int | None]]:
    """Products that came, went or changed rank: id, rank in the old version, rank in the new one, from 1; the best
    ranks first.
    """
    before = {answer.product_id: rank for rank, answer in enumerate(query.old, start=1)}
    after = {answer.product_id: rank for rank, answer in enumerate(query.new, start=1)}
    found = [(name, before.get(name), after.get(name)) for name in dict.fromkeys([*before, *after])]
    moved = [move for move in found if move[1] != move[2]]
    return sorted(moved, key=lambda move: min(rank for rank in move[1:] if rank is not None))


def as_plain(comparison: VersionComparison) -> dict[str, Any]:
    """For scripts."""
    return {
        "old": comparison.old,
        "new": comparison.new,
        f"overlap_at_{COMPARED}": comparison.overlap,
        "without_result": comparison.without_result,
        "queries": [
            {
                "query": query.query.text,
                "overlap": query.overlap,
                "moves": [{"product_id": name, "old": old, "new": new} for name, old, new in moves(query)],
            }
            for query in comparison.queries
        ],
    }


def print_comparison(comparison: VersionComparison, limit: int, console: Console) -> None:
    """Prints the overlap, and the worst-moved queries with what moved at the top."""
    count = len(comparison.queries)
    console.print(f"{comparison.old} -> {comparison.new}, {count:,} queries", markup=False)
    nothing = f", {comparison.without_result:,} find nothing" if comparison.without_result else ""
    console.print(f"overlap@{COMPARED} {comparison.overlap:.3f}{nothing}", markup=False)
    table = Table()
    table.add_column("query", overflow="fold")
    table.add_column("overlap", justify="right")
    table.add_column("came, went or moved (rank before, after)", overflow="fold")
    for query in comparison.queries[:limit]:
        shown = [f"{name} {old or '-'}→{new or '-'}" for name, old, new in moves(query)[:MOVES_SHOWN]]
        table.add_row(escape(query.query.text), f"{query.overlap:.2f}", escape(", ".join(shown)))
    console.print(table)
