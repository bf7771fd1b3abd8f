"""Sets `nprobe` in the serving shards, where plain FAISS finds it."""

from __future__ import annotations

from dataclasses import replace

import faiss
import numpy as np

from index_builder import storage
from index_builder.codec import CodecInfo, open_codec
from index_builder.errors import VerificationError
from index_builder.faiss_files import ivf_of, opened_indexes
from index_builder.fast_scan import as_served
from index_builder.index_shards import IndexShard, find_finished, write_description


def store_nprobe(shard: IndexShard, codec: CodecInfo, nprobe: int, out_uri: str) -> IndexShard:
    """Copies a serving shard with `nprobe` set in it, so that plain `faiss.read_index` searches as it was measured.

    FAISS keeps the number in the file's header. Its place is found by writing the empty codec twice, with two
    numbers: the lists need not be read into memory.

    Args:
        shard: a merged index file.
        codec: the codec it was made with.
        nprobe: the number to set.
        out_uri: the index file to write.

    Raises:
        VerificationError: the header is not laid out as expected; the FAISS that wrote the shard is another one.
    """
    inputs = f"{shard.sha256} nprobe {nprobe}"
    if finished := find_finished(out_uri, inputs):
        return finished
    place = _nprobe_place(as_served(open_codec(codec), codec.spec))
    with storage.atomic_file(out_uri) as path:
        storage.copy_file(shard.uri, path, expected_sha256=shard.sha256)
        with open(path, "r+b") as file:
            file.seek(place)
            file.write(np.int64(nprobe).astype("<i8").tobytes())
        with opened_indexes([path]) as (index,):
            if (ivf_of(index).nprobe, index.ntotal) != (nprobe, shard.rows):
                raise VerificationError(
                    f"{shard.uri}: expected nprobe {nprobe} and {shard.rows} rows after setting it, found "
                    f"{ivf_of(index).nprobe} and {index.ntotal}; it was written by another FAISS, build it again"
                )
        sha256 = storage.sha256_file(path)
    return write_description(replace(shard, uri=out_uri, sha256=sha256), inputs)


def _nprobe_place(index: faiss.Index) -> int:
    """The offset of `nprobe` in the file of an index."""
    # Two numbers that differ in their lowest byte only.
    ivf_of(index).nprobe = 1
    ones = faiss.serialize_index(index)
    ivf_of(index).nprobe = 2
    places = np.flatnonzero(ones != faiss.serialize_index(index))
    if len(places) != 1:
        raise VerificationError(f"expected one place for nprobe in an index file, found {len(places)}")
    return int(places[0])
