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
from index_builder.faiss_files import IndexShard, ivf_of, list_ids, read_index
from index_builder.open_version import ProductRows
from index_builder.shard_search import RefineCodes, ShardSearch, search_refined

SERVER_TIMEOUT_SECONDS = 600
STATM = Path("/proc/self/statm")


def verify_index(shards: Sequence[IndexShard], *, rows: int, dim: int, codec_fingerprint: str) -> None:
    """Checks the serving shards of a version: each file is the one described (sha256), opens memory-mapped (FastScan's
    lists cannot be), has the metric and dimension, and was made with the codec; together they hold every row 0..rows-1
    exactly once, each shard those of its range. Memory is one byte a row.

    Raises:
        VerificationError: names the file, what was expected and what was found.
    """
    seen = np.zeros(rows, dtype=bool)
    for shard in shards:
        if shard.codec_fingerprint != codec_fingerprint:
            raise _wrong(shard, "codec", codec_fingerprint, shard.codec_fingerprint)
        with _the_one_described(shard) as path:
            _check_index_file(shard, read_index(path), dim, seen)
    if not seen.all():
        missing = int(np.argmin(seen))
        raise VerificationError(
            f"{', '.join(shard.uri for shard in shards) or 'no serving shard'}: expected every row 0..{rows - 1}, "
            f"found {int(seen.sum())} of {rows}; the first that is missing is {missing}"
        )


def verify_refine_codes(shards: Sequence[IndexShard], *, rows: int, dim: int, code_bytes: int) -> None:
    """Checks the refine files of a version: each is the one described (sha256) and opens memory-mapped; together, in
    their order, they hold rows 0..rows-1, all made with one quantizer.

    Raises:
        VerificationError: names the file, what was expected and what was found.
    """
    next_row = 0
    with ExitStack() as stack:
        paths = []
        for shard in shards:
            paths.append(stack.enter_context(_the_one_described(shard)))
            if shard.first_row != next_row:
                raise _wrong(shard, "first row", next_row, shard.first_row)
            codes = RefineCodes([paths[-1]])
            expected, found = (shard.rows, dim, code_bytes), (codes.rows, codes.dim, codes.code_size)
            if found != expected:
                raise _wrong(shard, "rows, dimensions and bytes of a vector", expected, found)
            next_row = shard.stop_row
        if paths:
            RefineCodes(paths)
    if next_row != rows:
        named = ", ".join(shard.uri for shard in shards) or "no refine file"
        raise VerificationError(f"{named}: expected refine codes of {rows} products, found those of {next_row}")


def measure_resident_bytes(
    index_uris: Sequence[str],
    refine_uris: Sequence[str],
    products_uri: str,
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
            "products": stack.enter_context(storage.localized(products_uri)),
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


def _check_index_file(shard: IndexShard, index: faiss.Index, dim: int, seen: np.ndarray) -> None:
    ivf = ivf_of(index)
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
        if ids.min() < max(0, shard.first_row) or ids.max() >= min(shard.stop_row, len(seen)):
            raise _wrong(shard, "ids", f"{shard.first_row}..{shard.stop_row - 1}", f"{ids.min()}..{ids.max()}")
        unique, counts = np.unique(ids, return_counts=True)
        if len(again := unique[seen[unique] | (counts > 1)]):
            raise _wrong(shard, "ids", "each once", f"row {again[0]} twice")
        seen[ids] = True
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
    search = ShardSearch([read_index(path) for path in described["indexes"]])
    codes = RefineCodes(described["refine"]) if described["refine"] else None
    products = ProductRows(pa.ipc.open_file(pa.memory_map(described["products"])).read_all())
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
