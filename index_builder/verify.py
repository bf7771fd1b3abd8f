"""Verification checks an index before it is published: each file is the one described, and serving it is measured.

Memory is measured by being a server: a fresh process, `python -m index_builder.verify` with a JSON description on its
standard input, opens the files, answers queries, and looks at itself.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pyarrow as pa

from index_builder import storage
from index_builder.errors import VerificationError
from index_builder.faiss_files import IndexShard, ivf_of, list_ids, read_index, read_indexes
from index_builder.open_version import ProductRows
from index_builder.shard_search import RefineCodes, ShardSearch, search_refined

SERVER_TIMEOUT_SECONDS = 600
STATM = Path("/proc/self/statm")


def check_index_shard(shard: IndexShard, *, dim: int, codec_fingerprint: str) -> None:
    """Checks that a serving shard is the file described (sha256), opens memory-mapped (FastScan's lists cannot be), has
    the metric and dimension, was made with the codec, and holds each row of its range exactly once. Memory is one byte
    a row.

    Raises:
        VerificationError: names the file, what was expected and what was found.
    """
    if shard.codec_fingerprint != codec_fingerprint:
        raise _wrong(shard, "codec", codec_fingerprint, shard.codec_fingerprint)
    with _the_one_described(shard) as path:
        _check_index_file(shard, read_index(path), dim)


def check_refine_shard(shard: IndexShard, *, dim: int, code_bytes: int) -> None:
    """Checks that a refine file is the one described (sha256), opens memory-mapped and holds as many rows.

    Raises:
        VerificationError: names the file, what was expected and what was found.
    """
    with _the_one_described(shard) as path:
        codes = RefineCodes([path])
        expected, found = (shard.rows, dim, code_bytes), (codes.rows, codes.dim, codes.code_size)
        if found != expected:
            raise _wrong(shard, "rows, dimensions and bytes of a vector", expected, found)


def check_ranges(shards: Sequence[IndexShard], *, rows: int) -> None:
    """Checks that files that were checked one by one make a whole: they have one codec, or quantizer, and their ranges,
    in any order, follow each other from row 0 to the last of so many rows.

    Raises:
        VerificationError: names the file, what was expected and what was found.
    """
    next_row = 0
    for shard in sorted(shards, key=lambda shard: shard.first_row):
        if shard.codec_fingerprint != shards[0].codec_fingerprint:
            raise _wrong(shard, "codec", shards[0].codec_fingerprint, shard.codec_fingerprint)
        if shard.first_row < next_row:
            raise _wrong(shard, "rows", "each once", f"row {shard.first_row} twice")
        if shard.first_row > next_row or shard.stop_row > rows:
            raise _wrong(shard, "rows", f"{next_row}..{rows - 1}", f"{shard.first_row}..{shard.stop_row - 1}")
        next_row = shard.stop_row
    if next_row != rows:
        named = ", ".join(shard.uri for shard in shards) or "no file"
        raise VerificationError(f"{named}: expected every row 0..{rows - 1}, found the first {next_row}")


def measure_resident_bytes(
    index_uris: Sequence[str],
    refine_uris: Sequence[str],
    products_uris: Sequence[str],
    queries: np.ndarray,
    k: int,
    *,
    nprobe: int,
    refine_factor: int,
) -> int:
    """Bytes that a process grows by that opens a version's files and answers float32 [Q, D] with them, ids included.

    Pages of the files that the answers touched count as the process's own, as they do on a server. 0 on a system that
    does not tell (without /proc).

    Raises:
        VerificationError: the files cannot be opened in a process of their own.
    """
    if not STATM.exists():
        return 0
    with tempfile.TemporaryDirectory(prefix="shelfmark-") as folder, ExitStack() as stack:
        path = os.path.join(folder, "queries.npy")
        np.save(path, queries)
        described = {
            "indexes": [stack.enter_context(storage.localized(uri)) for uri in index_uris],
            "refine": [stack.enter_context(storage.localized(uri)) for uri in refine_uris],
            "products": [stack.enter_context(storage.localized(uri)) for uri in products_uris],
            "queries": path,
            "k": k,
            "setting": {"nprobe": nprobe, "refine_factor": refine_factor},
        }
        # The package may be importable only because of where this process was started.
        importable = [str(Path(__file__).resolve().parents[1]), os.environ.get("PYTHONPATH", "")]
        finished = subprocess.run(
            [sys.executable, "-m", __name__],
            input=json.dumps(described),
            capture_output=True,
            text=True,
            timeout=SERVER_TIMEOUT_SECONDS,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, importable)), "OMP_NUM_THREADS": "1"},
            check=False,
        )
    if finished.returncode:
        raise VerificationError(
            f"{', '.join(index_uris)}: expected the files to open in a fresh process, found: {finished.stderr[-1000:]}"
        )
    return int(finished.stdout)


def _check_index_file(shard: IndexShard, index: faiss.Index, dim: int) -> None:
    ivf, seen = ivf_of(index), np.zeros(shard.rows, bool)
    if index.d != dim:
        raise _wrong(shard, "dimensions", dim, index.d)
    if {index.metric_type, ivf.metric_type} != {faiss.METRIC_INNER_PRODUCT}:
        raise _wrong(shard, "metric", "inner product", f"FAISS metric {ivf.metric_type}")
    packed = isinstance(faiss.downcast_index(ivf), faiss.IndexIVFFastScan)
    kind = faiss.BlockInvertedLists if packed else faiss.OnDiskInvertedLists
    if not isinstance(faiss.downcast_InvertedLists(ivf.invlists), kind):
        raise _wrong(shard, "a memory-mapped index", kind.__name__, type(ivf.invlists).__name__)
    if not index.ntotal == ivf.ntotal == shard.rows:
        raise _wrong(shard, "rows", shard.rows, index.ntotal)
    listed = 0
    for ids in list_ids(ivf):
        if not len(ids):
            continue
        listed += len(ids)
        if ids.min() < shard.first_row or ids.max() >= shard.stop_row:
            raise _wrong(shard, "ids", f"{shard.first_row}..{shard.stop_row - 1}", f"{ids.min()}..{ids.max()}")
        unique, counts = np.unique(ids - shard.first_row, return_counts=True)
        if len(again := unique[seen[unique] | (counts > 1)]):
            raise _wrong(shard, "ids", "each once", f"row {shard.first_row + again[0]} twice")
        seen[unique] = True
    if listed != shard.rows:
        raise _wrong(shard, "rows in the inverted lists", shard.rows, listed)


@contextmanager
def _the_one_described(shard: IndexShard) -> Iterator[str]:
    """A local path of the file, once it is known to be the one that its sha256 names."""
    with storage.localized(shard.uri) as path:
        found = storage.sha256_file(path)
        if found != shard.sha256:
            raise _wrong(shard, "sha256", shard.sha256, found)
        yield path


def _wrong(shard: IndexShard, what: str, expected: object, found: object) -> VerificationError:
    return VerificationError(
        f"{shard.uri}: {what}: expected {expected}, found {found}; do not publish it, build it again"
    )


def _serve(described: dict[str, Any]) -> int:
    queries = np.load(described["queries"])
    before = _resident_bytes()
    search = ShardSearch(read_indexes(described["indexes"]))
    codes = RefineCodes(described["refine"]) if described["refine"] else None
    parts = [pa.ipc.open_file(pa.memory_map(path)).read_all() for path in described["products"]]
    products = ProductRows(pa.concat_tables(parts))
    k = min(described["k"], max(1, search.rows))
    for query in queries:
        rows = search_refined(search, codes, query[None], k, **described["setting"])[1]
        products.take(rows[rows >= 0], "product_id")
    return _resident_bytes() - before


def _resident_bytes() -> int:
    """Memory of this process that is in use, its own pages and those of mapped files."""
    return int(STATM.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


if __name__ == "__main__":
    print(_serve(json.load(sys.stdin)))
