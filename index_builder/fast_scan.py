"""FastScan: PQ codes of 4 bits in the order in which SIMD registers read them (André, Kermarrec, Le Scouarnec, 2015).

FAISS cannot add to, merge or map such lists from disk as it does with plain ones. So a shard is built with plain lists,
and turned into the SIMD layout when it is whole. That holds the shard in memory twice, and so does a server, once.
"""

from __future__ import annotations

from dataclasses import replace

import faiss

from index_builder import storage
from index_builder.faiss_files import ivf_of, read_index, write_index
from index_builder.index_shards import IndexShard, find_finished, write_description
from index_builder.spec import IndexSpec


def as_served(index: faiss.Index, spec: IndexSpec) -> faiss.Index:
    """The index in the layout that is served: with `fast_scan` a copy of it, else the index itself."""
    if spec.fast_scan == "none":
        return index
    plain = faiss.downcast_index(ivf_of(index))
    packed = faiss.IndexIVFPQFastScan(plain)
    packed.referenced_objects = [index]  # the coarse quantizer stays that of the plain index
    if not isinstance(index, faiss.IndexPreTransform):
        return packed
    return faiss.IndexPreTransform(faiss.downcast_VectorTransform(index.chain.at(0)), packed)


def convert_shard(shard: IndexShard, spec: IndexSpec, out_uri: str) -> IndexShard:
    """Writes a merged shard in the layout that is served; gives the shard itself back where that is the one it has.

    Args:
        shard: a merged shard with plain lists.
        spec: says which layout.
        out_uri: the index file; its description is written beside it.
    """
    if spec.fast_scan == "none":
        return shard
    inputs = f"{shard.sha256} {spec.fast_scan}"
    if finished := find_finished(out_uri, inputs):
        return finished
    with storage.localized(shard.uri) as path:
        sha256 = write_index(as_served(read_index(path, memory_mapped=False), spec), out_uri)
    return write_description(replace(shard, uri=out_uri, sha256=sha256), inputs)
