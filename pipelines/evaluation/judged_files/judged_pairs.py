"""Judgments and purchases as files: pairs of a query and a product, each once.

Legend: J pairs.

A judgments file has query, product and label; a purchases file query and product.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.config.errors import ConfigError
from pipelines.evaluation.config import EvaluationConfig
from pipelines.evaluation.judged_files.labels import MOST_LABELS, normal_labels, ordered_labels
from pipelines.evaluation.judged_files.table_files import read_columns


@dataclass(frozen=True, kw_only=True, slots=True)
class Pairs:
    """Pairs of a query and a product, each once.

    Attributes:
        queries: int64 `[J]`, rows of the queries, ascending.
        product_ids: string `[J]`.
        labels: int64 `[J]`, places in a list of labels; zeros where pairs have none.
    """

    queries: np.ndarray
    product_ids: pa.Array
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.queries)

    def take(self, kept: np.ndarray) -> Pairs:
        """The pairs of these places, int64 or bool `[J]`."""
        places = np.flatnonzero(kept) if kept.dtype == bool else kept
        return Pairs(
            queries=self.queries[places],
            product_ids=self.product_ids.take(pa.array(places)),
            labels=self.labels[places],
        )


def read_judgments(config: EvaluationConfig, query_ids: pa.ChunkedArray) -> tuple[Pairs, tuple[str, ...], int]:
    """Reads what the judgments file says of these queries.

    Returns:
        Labelled pairs, the labels (best first), and the number of pairs with more than one.

    Raises:
        ConfigError: The file is missing, cannot be read or lacks a column, has too many labels, or gives a pair two
            labels where that is refused.
    """
    if config.judgments is None:
        return _no_pairs(), (), 0
    table = _read_pairs(config, config.judgments, query_ids, label_field=config.label_field)
    table = table.filter(pc.is_valid(table["label"]))
    found = pc.unique(table["label"]).to_pylist()
    if len(found) > MOST_LABELS:
        raise ConfigError(
            f"{config.judgments}: {config.label_field} holds {len(found)} different values, such as {found[:3]}; "
            f"expected E, S, C, I or at most {MOST_LABELS} other labels"
        )
    normal = normal_labels(found)
    labels = ordered_labels(normal.values())
    places = np.array([labels.index(normal[label]) for label in found], np.int64)
    codes = pc.index_in(table["label"], value_set=pa.array(found, pa.string())).to_numpy()
    pairs, worst = _unique_pairs(table, places[codes])
    two_labels = np.flatnonzero(pairs.labels != worst)
    if len(two_labels) and config.two_labels == "refuse":
        one = int(two_labels[0])
        raise ConfigError(
            f"{config.judgments}: {len(two_labels):,} pairs stand there with two labels; product "
            f"{pairs.product_ids[one].as_py()!r} is {labels[pairs.labels[one]]!r} and {labels[worst[one]]!r} for query "
            f"{query_ids[int(pairs.queries[one])].as_py()!r}; expected one label a pair; "
            "--evaluation.two_labels best takes the better one, leave-out takes none"
        )
    if len(two_labels) and config.two_labels == "leave-out":
        pairs = pairs.take(pairs.labels == worst)
    return pairs, labels, len(two_labels)


def read_purchases(config: EvaluationConfig, query_ids: pa.ChunkedArray) -> Pairs | None:
    """Reads what was bought for these queries; None where no file says so.

    Raises:
        ConfigError: The file is missing, cannot be read or lacks a column.
    """
    if config.purchases is None:
        return None
    table = _read_pairs(config, config.purchases, query_ids)
    return _unique_pairs(table, np.zeros(len(table), np.int64))[0]


def _read_pairs(
    config: EvaluationConfig, uri: str, query_ids: pa.ChunkedArray, *, label_field: str | None = None
) -> pa.Table:
    """Columns query (row), product and perhaps label, of the queries asked about."""
    fields = {"product": config.product_id_field} | ({} if label_field is None else {"label": label_field})
    table = read_columns(uri, [config.query_id_field, *fields.values()])
    rows = pc.index_in(table[config.query_id_field], value_set=query_ids.combine_chunks())
    pairs = pa.table({"query": rows, **{name: table[column] for name, column in fields.items()}})
    return pairs.filter(pc.and_(pc.is_valid(pairs["query"]), pc.is_valid(pairs["product"])))


def _unique_pairs(table: pa.Table, labels: np.ndarray) -> tuple[Pairs, np.ndarray]:
    """Each pair once, by query, with its best label; and the worst one that it is given, int64 `[J]`."""
    if not len(table):
        return _no_pairs(), labels
    products = table["product"].combine_chunks().dictionary_encode()
    codes = products.indices.to_numpy().astype(np.int64)
    queries = table["query"].to_numpy().astype(np.int64)
    keys = queries * len(products.dictionary) + codes
    order = np.lexsort((labels, keys))
    starts = np.flatnonzero(np.concatenate([[True], np.diff(keys[order]) != 0]))
    kept = order[starts]
    ids = products.dictionary.take(pa.array(codes[kept])).cast(pa.string())
    pairs = Pairs(queries=queries[kept], product_ids=ids, labels=labels[kept])
    return pairs, np.maximum.reduceat(labels[order], starts)


def _no_pairs() -> Pairs:
    return Pairs(queries=np.zeros(0, np.int64), product_ids=pa.array([], pa.string()), labels=np.zeros(0, np.int64))
