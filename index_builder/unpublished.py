"""Opens a version before it is published: its answers are looked at before anyone else gets them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

import pyarrow as pa

from index_builder import storage
from index_builder.checksums import VersionChecks
from index_builder.faiss_files import opened_indexes
from index_builder.groups import GroupColumns
from index_builder.manifest import Manifest
from index_builder.open_version import OpenVersion, ProductRows, RowFilters
from index_builder.reader import IndexReader
from index_builder.shard_search import RefineCodes, ShardSearch


@contextmanager
def opened_unpublished(
    manifest: Manifest, index_uris: Sequence[str], refine_uris: Sequence[str], products_uri: str
) -> Iterator[IndexReader]:
    """A reader over a version's files where the build left them, for the length of the block.

    Args:
        manifest: What `publish_version` will be given; its `index.search` says how the files are searched.
        index_uris, refine_uris: In the order of their rows; no refine files without refinement.
        products_uri: Its `products.arrow`.
    """
    with ExitStack() as stack:
        search = ShardSearch(stack.enter_context(opened_indexes(index_uris)))
        refine = [stack.enter_context(storage.localized(uri)) for uri in refine_uris]
        source = stack.enter_context(pa.memory_map(stack.enter_context(storage.localized(products_uri))))
        products = pa.ipc.open_file(source).read_all()
        state = OpenVersion(
            uri=products_uri,
            manifest=manifest,
            search=search,
            refine=RefineCodes(refine) if refine else None,
            products=ProductRows(products),
            filters=RowFilters(products),
            groups=GroupColumns(products, several_rows=bool(manifest.catalog.vectors)),
            checks=VersionChecks("", (), "sizes"),
        )
        yield IndexReader(products_uri, manifest.version, state)
