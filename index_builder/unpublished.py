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
    manifest: Manifest, index_uris: Sequence[str], refine_uris: Sequence[str], products_uris: Sequence[str]
) -> Iterator[IndexReader]:
    """A reader over a version's files where the build left them, for the length of the block.

    Args:
        manifest: What `publish_version` will be given; its `index.search` says how the files are searched.
        index_uris, refine_uris: In the order of their rows; no refine files without refinement.
        products_uris: The parts of its products, in the order of their rows.
    """
    with ExitStack() as stack:
        search = ShardSearch(stack.enter_context(opened_indexes(index_uris)))
        refine = [stack.enter_context(storage.localized(uri)) for uri in refine_uris]
        parts = [stack.enter_context(storage.localized(uri)) for uri in products_uris]
        sources = [stack.enter_context(pa.memory_map(part)) for part in parts]
        products = pa.concat_tables([pa.ipc.open_file(source).read_all() for source in sources])
        state = OpenVersion(
            uri=products_uris[0],
            manifest=manifest,
            search=search,
            refine=RefineCodes(refine) if refine else None,
            products=ProductRows(products),
            filters=RowFilters(products),
            groups=GroupColumns(products, several_rows=bool(manifest.catalog.vectors)),
            checks=VersionChecks("", (), "sizes"),
        )
        yield IndexReader(products_uris[0], manifest.version, state)
