"""Queries with judgments, as files: which products a query should find.

A queries file has query_id and query (and perhaps split), a judgments file query_id, product_id and label. Both may be
Parquet, CSV, TSV or JSON Lines, anywhere that fsspec reads.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.json
import pyarrow.parquet as pq

from index_builder import storage
from pipelines.catalog.errors import nearest
from pipelines.config.errors import ConfigError

_EXACT = "Exact"


@dataclass(frozen=True, kw_only=True, slots=True)
class JudgedQueries:
    """Queries that have at least one relevant product.

    Attributes:
        texts: The text of each query, by id, in the file's order.
        relevant: The products that each should find; the same queries.
        without_relevant: Queries that were left out because no product is relevant to them.
    """

    texts: dict[str, str]
    relevant: dict[str, frozenset[str]]
    without_relevant: int


def read_judged_queries(
    queries_uri: str, judgments_uri: str, *, split: str | None = None, relevant_labels: Collection[str] = ()
) -> JudgedQueries:
    """Reads queries and what they should find.

    Args:
        queries_uri: The queries file.
        judgments_uri: The judgments file.
        split: Take the queries of this split only.
        relevant_labels: Labels that mean relevant. By default numbers above 0, or `Exact` where labels are words.

    Raises:
        ConfigError: A file is missing, cannot be read, lacks a column, or leaves no query to measure.
    """
    columns = ["query_id", "query"] + ([] if split is None else ["split"])
    queries = _read_columns(queries_uri, columns)
    if split is not None:
        known = pc.unique(queries["split"]).to_pylist()
        queries = queries.filter(pc.equal(queries["split"], split))
        if not len(queries):
            raise ConfigError(
                f"--split {split}: {queries_uri} has no such query. {nearest(split, filter(None, known))}"
            )
    texts = {
        query_id: query
        for query_id, query in zip(queries["query_id"].to_pylist(), queries["query"].to_pylist(), strict=True)
        if query_id is not None and query
    }
    judgments = _read_columns(judgments_uri, ["query_id", "product_id", "label"])
    judgments = judgments.filter(_is_relevant(judgments["label"], relevant_labels))
    relevant: dict[str, set[str]] = {}
    for query_id, product_id in zip(
        judgments["query_id"].to_pylist(), judgments["product_id"].to_pylist(), strict=True
    ):
        if query_id in texts and product_id is not None:
            relevant.setdefault(query_id, set()).add(product_id)
    if not relevant:
        raise ConfigError(
            f"{judgments_uri}: no product is relevant to any query of {queries_uri}; expected labels above 0, "
            f"{_EXACT!r}, or those named by --relevant"
        )
    return JudgedQueries(
        texts={query_id: text for query_id, text in texts.items() if query_id in relevant},
        relevant={query_id: frozenset(relevant[query_id]) for query_id in texts if query_id in relevant},
        without_relevant=len(texts) - len(relevant),
    )


def _is_relevant(labels: pa.ChunkedArray, relevant_labels: Collection[str]) -> pa.ChunkedArray:
    if relevant_labels:
        return pc.is_in(labels, value_set=pa.array(sorted(relevant_labels), pa.string()))
    try:
        return pc.fill_null(pc.greater(labels.cast(pa.float64()), 0.0), False)
    except pa.ArrowInvalid:
        return pc.fill_null(pc.equal(labels, _EXACT), False)


def _read_columns(uri: str, columns: list[str]) -> pa.Table:
    """The columns of a table as strings."""
    try:
        with storage.localized(uri) as path:
            table = _read_table(path)
    except storage.StorageError as error:
        raise ConfigError(f"{uri}: cannot be read: {error}") from error
    except (pa.ArrowInvalid, OSError) as error:
        raise ConfigError(f"{uri}: expected Parquet, CSV, TSV or JSON Lines by its name, found: {error}") from error
    for name in columns:
        if name not in table.column_names:
            raise ConfigError(f"{uri}: has no column {name!r}. {nearest(name, table.column_names)}")
    try:
        return pa.table({name: table[name].cast(pa.string()) for name in columns})
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise ConfigError(f"{uri}: expected text or numbers in {', '.join(columns)}: {error}") from error


def _read_table(path: str) -> pa.Table:
    name = path.lower()
    if name.endswith((".csv", ".tsv", ".csv.gz", ".tsv.gz")):
        separator = "\t" if ".tsv" in name else ","
        return pyarrow.csv.read_csv(path, parse_options=pyarrow.csv.ParseOptions(delimiter=separator))
    if name.endswith((".jsonl", ".ndjson", ".jsonl.gz")):
        return pyarrow.json.read_json(path)
    return pq.read_table(path)
