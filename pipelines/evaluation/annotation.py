"""Asks a function of the user's for labels of the results that no file labels, once, and keeps them in a file.

    # my_shop/relevance.py
    def annotate(pairs):  # a list of (query, product)
        return ["Exact" if query.text in product["text"] else "Irrelevant" for query, product in pairs]

    python -m pipelines.evaluate ... --evaluation.annotator my_shop.relevance:annotate

`query` is an `AnnotatedQuery`. `product` is a dict: `product_id`, `text` (what the text tower reads), `picture` (path,
URI, bytes or None), and the catalog's display and filter fields. The function returns one label a pair: E, S, C, I,
words, or numbers; None for a pair that it cannot judge. It may call a model or a service; what it raises ends the run,
and what was labelled until then is kept. The file is Parquet: query_id, product_id, label and the fingerprint of what
was labelled; it can be given as `evaluation.judgments` of a later run.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from index_builder import storage
from pipelines.catalog.config import CatalogConfig
from pipelines.catalog.plan import plan_catalog
from pipelines.catalog.products import to_products
from pipelines.catalog.reading import read_shard
from pipelines.config.validation import ConfigError
from pipelines.evaluation.config import EvaluationConfig
from pipelines.evaluation.judged_files import (
    MOST_LABELS,
    JudgedQueries,
    Pairs,
    normal_labels,
    ordered_labels,
    relevant_labels,
)
from pipelines.evaluation.measures import UNKNOWN, keyed_pairs
from pipelines.evaluation.ranking import ProductNumbers

SAVE_EVERY_PAIRS = 10_000
ROWS_AT_A_TIME = 1024
_SCHEMA = pa.schema(
    [("query_id", pa.string()), ("product_id", pa.string()), ("label", pa.string()), ("fingerprint", pa.binary(16))]
)


@dataclass(frozen=True, kw_only=True, slots=True)
class AnnotatedQuery:
    """A query as an annotator sees it.

    Attributes:
        query_id: Its id.
        text: Its text, None for a query that is a picture only.
        picture: Its picture: path or URI as the queries file has it, bytes, or None.
    """

    query_id: str
    text: str | None
    picture: str | bytes | None


ProductRecord = dict[str, Any]
Annotator = Callable[[Sequence[tuple[AnnotatedQuery, ProductRecord]]], Sequence[Any]]


def load_annotator(name: str) -> Annotator:
    """The function behind `module:function`; the module may stand in the working folder.

    Raises:
        ConfigError: There is no such module or function.
    """
    module_name, _, attribute = name.partition(":")
    if os.getcwd() not in sys.path and "" not in sys.path:
        sys.path.append(os.getcwd())
    try:
        found = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise
        raise ConfigError(
            f"evaluation.annotator is {name!r}: no module {error.name!r}; expected module:function, the module "
            "installed or in the working folder"
        ) from error
    function = getattr(found, attribute, None)
    if not callable(function):
        raise ConfigError(f"evaluation.annotator is {name!r}: module {module_name!r} has no function {attribute!r}")
    return function


def annotate_batch(
    annotator: Annotator, name: str, pairs: Sequence[tuple[AnnotatedQuery, ProductRecord]]
) -> list[str | None]:
    """One label a pair, as text; None where the annotator gives none.

    Raises:
        ConfigError: It gives another number of labels, or something that is no label.
    """
    given = annotator(pairs)
    try:
        labels = [given] if isinstance(given, str) else list(given)
    except TypeError as error:
        raise ConfigError(
            f"evaluation.annotator {name}: expected a list of {len(pairs)} labels, found {type(given).__name__}"
        ) from error
    if len(labels) != len(pairs):
        raise ConfigError(
            f"evaluation.annotator {name}: expected {len(pairs)} labels for a batch of {len(pairs)} pairs, found "
            f"{len(labels)}"
        )
    return [_label_text(label, name) for label in labels]


def _label_text(label: Any, name: str) -> str | None:
    if label is None or (isinstance(label, str) and label.strip()):
        return label
    if isinstance(label, (int, float)) and not isinstance(label, bool) and label == label:
        return f"{label:g}"
    raise ConfigError(f"evaluation.annotator {name}: expected a label that is text, a number or None, found {label!r}")


def annotate_results(
    queries: JudgedQueries,
    numbers: ProductNumbers,
    rankings: Iterable[np.ndarray],
    config: EvaluationConfig,
    *,
    annotator: Annotator,
    records: Callable[[set[str]], dict[str, ProductRecord]],
    kept_uri: str,
    on_progress: Callable[[int], None] = lambda pairs: None,
) -> tuple[JudgedQueries, int]:
    """Labels every result of every ranking, int64 `[Q, K]` each, that has no label yet.

    Args:
        config: Its `annotator` is part of the fingerprint, so that another annotator starts anew.
        annotator: Labels `annotator_batch` pairs at a time.
        records: Gives the records of products by id.
        kept_uri: File of the labels of earlier runs; written as labels come.

    Returns:
        The queries with these labels too, and the number of pairs that the annotator was asked about now.

    Raises:
        ConfigError: The annotator returned something else than one label a pair.
    """
    name = str(config.annotator)
    unlabelled = _unlabelled_pairs(queries, numbers, rankings)
    products = records(set(numbers.ids.take(pa.array(np.unique(unlabelled[:, 1]))).to_pylist()))
    ids = numbers.ids.to_pylist()
    pairs: dict[bytes, tuple[int, AnnotatedQuery, ProductRecord]] = {}
    for row, number in unlabelled.tolist():
        if ids[number] in products:
            image = queries.images[row]
            query = AnnotatedQuery(query_id=queries.ids[row], text=queries.texts[row], picture=image)
            product = products[ids[number]]
            pairs[_fingerprint(name, query, product)] = (row, query, product)
    kept = _KeptLabels(kept_uri)
    asked = [key for key in pairs if key not in kept.rows]
    try:
        for start in range(0, len(asked), config.annotator_batch):
            keys = asked[start : start + config.annotator_batch]
            batch = [pairs[key][1:] for key in keys]
            for key, (query, product), label in zip(keys, batch, annotate_batch(annotator, name, batch), strict=True):
                kept.add(key, query.query_id, product["product_id"], label)
            on_progress(len(keys))
    finally:
        kept.save()
    known = [(row, product["product_id"], kept.rows[key][2]) for key, (row, _, product) in pairs.items()]
    labelled = [(row, product_id, label) for row, product_id, label in known if label is not None]
    return _with_labels(queries, labelled, config), len(asked)


def catalog_records(catalog: CatalogConfig, spool_uri: str, wanted: set[str]) -> dict[str, ProductRecord]:
    """Records of products by id, from another reading of the catalog; those that it does not hold are left out."""
    records: dict[str, ProductRecord] = {}
    for shard in plan_catalog(catalog, spool_uri=spool_uri).shards:
        for rows in read_shard(shard, catalog, batch_rows=ROWS_AT_A_TIME):
            products = to_products(rows, catalog)
            texts = products.texts.to_pylist()
            columns = products.columns.to_pylist()
            for row, product_id in enumerate(products.product_ids.to_pylist()):
                if product_id in wanted and product_id not in records:
                    image = next(iter(products.images[row]), None)
                    own = {"product_id": product_id, "text": texts[row], "picture": image}
                    records[product_id] = {**columns[row], **own}
    return records


class _KeptLabels:
    """Query id, product id and label by fingerprint, read from a file and written back to it."""

    def __init__(self, uri: str) -> None:
        self._uri = uri
        self._unsaved = 0
        self.rows: dict[bytes, tuple[str, str, str | None]] = {}
        if storage.exists(uri):
            try:
                with storage.localized(uri) as path:
                    table = pq.read_table(path).select(_SCHEMA.names)
            except (pa.ArrowInvalid, KeyError, OSError) as error:
                raise ConfigError(
                    f"evaluation.annotations is {uri!r}: expected a file of kept labels, found {error}; name another"
                ) from error
            *columns, keys = (column.to_pylist() for column in table.columns)
            self.rows = dict(zip(keys, zip(*columns, strict=True), strict=True))

    def add(self, key: bytes, query_id: str, product_id: str, label: str | None) -> None:
        self.rows[key] = (query_id, product_id, label)
        self._unsaved += 1
        if self._unsaved >= SAVE_EVERY_PAIRS:
            self.save()

    def save(self) -> None:
        if not self._unsaved:
            return
        columns = [*zip(*self.rows.values(), strict=True), list(self.rows)]
        table = pa.table([pa.array(column, kind) for column, kind in zip(columns, _SCHEMA.types, strict=True)], _SCHEMA)
        with storage.atomic_file(self._uri) as path:
            pq.write_table(table, path)
        self._unsaved = 0


def _unlabelled_pairs(queries: JudgedQueries, numbers: ProductNumbers, rankings: Iterable[np.ndarray]) -> np.ndarray:
    """Distinct (query row, product number) without a label, int64 `[n, 2]`."""
    judged = keyed_pairs(queries.judged, numbers)
    products = max(1, len(numbers))
    keys = [np.zeros(0, np.int64)]
    for found in rankings:
        rows = np.broadcast_to(np.arange(len(found), dtype=np.int64)[:, None], found.shape)
        open_pairs = (judged.labels_of(found) == UNKNOWN) & (found >= 0)
        keys.append(np.unique(rows[open_pairs] * products + found[open_pairs]))
    distinct = np.unique(np.concatenate(keys))
    return np.stack([distinct // products, distinct % products], axis=1)


def _with_labels(
    queries: JudgedQueries, known: Sequence[tuple[int, str, str]], config: EvaluationConfig
) -> JudgedQueries:
    """The labels of the file and those of the annotator, in one list of labels."""
    if not known:
        return queries
    rows, product_ids, given = zip(*known, strict=True)
    normal = normal_labels(list(dict.fromkeys([*queries.labels, *given])))
    labels = ordered_labels(normal.values())
    if len(labels) > MOST_LABELS:
        raise ConfigError(
            f"evaluation.annotator {config.annotator}: found {len(labels)} different labels, such as "
            f"{list(islice(labels, 3))}; expected at most {MOST_LABELS}"
        )
    position = {label: labels.index(normal[label]) for label in normal}
    of_file = np.array([position[label] for label in queries.labels], np.int64)
    of_annotator = np.array([position[label] for label in given], np.int64)
    all_rows = np.concatenate([queries.judged.queries, np.array(rows, np.int64)])
    all_labels = np.concatenate([of_file[queries.judged.labels], of_annotator])
    ids = pa.concat_arrays([queries.judged.product_ids, pa.array(product_ids, pa.string())])
    order = np.argsort(all_rows, kind="stable")
    judged = Pairs(queries=all_rows[order], product_ids=ids.take(pa.array(order)), labels=all_labels[order])
    return replace(queries, judged=judged, labels=labels, relevant=relevant_labels(labels, config.relevant))


def _fingerprint(name: str, query: AnnotatedQuery, product: ProductRecord) -> bytes:
    """16 bytes over everything that the annotator sees, and its name."""
    seen = [name, query.query_id, query.text, query.picture, product]
    text = json.dumps(
        seen, sort_keys=True, default=lambda value: value.hex() if isinstance(value, bytes) else str(value)
    )
    return hashlib.sha256(text.encode()).digest()[:16]
