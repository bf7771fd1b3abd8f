"""The catalog comes in: files of any format and store become clean products, and what is broken becomes dead letters.

    sources (a first look) -> listing -> spooling -> column_planning | text_planning -> plan: shards
    shard -> reading (parquet_files, arrow_files, csv_records, json_lines) -> raw_rows -> records: products

Nothing here imports Beam: a worker calls `read_shard` and `to_products`, whoever runs it.
"""

from pipelines.catalog.config import CatalogConfig, CatalogError
from pipelines.catalog.dead_letters import DeadLetter, PictureError, Reason
from pipelines.catalog.plan import CatalogPlan, CatalogShard, catalog_schema, plan_catalog
from pipelines.catalog.products import PictureRef, ProductBatch, to_products
from pipelines.catalog.reading import read_shard

__all__ = [
    "CatalogConfig",
    "CatalogError",
    "CatalogPlan",
    "CatalogShard",
    "DeadLetter",
    "PictureError",
    "PictureRef",
    "ProductBatch",
    "Reason",
    "catalog_schema",
    "plan_catalog",
    "read_shard",
    "to_products",
]
