"""Reads the column by which recall is told apart: the catalog's, or that of indexes where nothing else is compared.

A product's first row counts, a number or a date reads as it is written, and a list is one value.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import pyarrow as pa

from index_builder import IndexReader
from pipelines.catalog.config import CatalogConfig, nearest
from pipelines.catalog.plan import catalog_schema, plan_catalog
from pipelines.catalog.products import to_products
from pipelines.catalog.reading import read_shard
from pipelines.config.validation import ConfigError
from pipelines.evaluation.comparison import Segments
from pipelines.evaluation.config import EvaluateJob, SystemConfig
from pipelines.evaluation.ranking import ProductNumbers

ROWS_AT_A_TIME = 1024


def check_segments(by: str, systems: Sequence[SystemConfig], job: EvaluateJob) -> None:
    """Finds the column, before any work.

    Raises:
        ConfigError: It is not there.
    """
    if all(system.index is not None for system in systems):
        for system in systems:
            known = IndexReader.open(str(system.index), system.version).products.column_names
            if by not in known:
                raise ConfigError(
                    f"--by {by}: system {system.name!r} has no such column among its display and filter fields. "
                    f"{nearest(by, known)}"
                )
        return
    catalog_schema(_with_column(job.catalog, by))


def read_segments(by: str, systems: Sequence[SystemConfig], job: EvaluateJob, numbers: ProductNumbers) -> Segments:
    """The values of all products that a system has."""
    if all(system.index is not None for system in systems):
        blocks = _index_columns(by, systems)
    else:
        blocks = _catalog_columns(by, job.catalog, job.spool_uri)
    names: dict[str, int] = {}
    codes = np.full(len(numbers), -1, np.int64)
    seen = np.zeros(len(numbers), bool)
    for ids, values in blocks:
        for number, value in zip(numbers.find(ids).tolist(), values.to_pylist(), strict=True):
            if number >= 0 and not seen[number]:
                seen[number] = True
                if value is not None:
                    text = value if isinstance(value, str) else str(value)
                    codes[number] = names.setdefault(text, len(names))
    return Segments(by=by, names=tuple(names), codes=codes)


def _with_column(catalog: CatalogConfig, by: str) -> CatalogConfig:
    return replace(catalog, display_fields=tuple(dict.fromkeys((*catalog.display_fields, by))))


def _catalog_columns(by: str, catalog: CatalogConfig, spool_uri: str) -> Iterator[tuple[pa.Array, pa.Array]]:
    catalog = _with_column(catalog, by)
    for shard in plan_catalog(catalog, spool_uri=spool_uri).shards:
        for rows in read_shard(shard, catalog, batch_rows=ROWS_AT_A_TIME):
            products = to_products(rows, catalog)
            yield products.product_ids, products.columns.column(by)


def _index_columns(by: str, systems: Sequence[SystemConfig]) -> Iterator[tuple[pa.Array, pa.Array]]:
    for system in systems:
        products = IndexReader.open(str(system.index), system.version).products
        ids, values = (products.column(name).combine_chunks() for name in ("product_id", by))
        yield ids.cast(pa.string()), values
