"""The catalog comes in: files of any format and store become clean products, and what is broken becomes dead letters.

    listing -> intake (text becomes Parquet) -> plan: shards of rows -> reading -> products

Nothing here imports Beam: a worker calls `take_in`, `read_shard` and `to_products`, whoever runs it.
"""

from pipelines.catalog.config import CatalogConfig, CatalogError
from pipelines.catalog.dead_letters import DeadLetter, ImageError, Reason
from pipelines.catalog.plan import CatalogPlan, CatalogShard, catalog_schema, plan_catalog
from pipelines.catalog.products import ImageRef, ProductBatch, to_products
from pipelines.catalog.reading import read_shard

__all__ = [
    "CatalogConfig",
    "CatalogError",
    "CatalogPlan",
    "CatalogShard",
    "DeadLetter",
    "ImageError",
    "ImageRef",
    "ProductBatch",
    "Reason",
    "catalog_schema",
    "plan_catalog",
    "read_shard",
    "to_products",
]
