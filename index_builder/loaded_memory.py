"""Measures what a server needs by being one: a fresh process opens the files, answers queries, and looks at itself.

Started as `python -m index_builder.loaded_memory` with a JSON description on its standard input.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from index_builder import storage
from index_builder.errors import VerificationError
from index_builder.faiss_files import read_index
from index_builder.product_rows import ProductRows
from index_builder.refine_codes import RefineCodes, search_refined
from index_builder.shard_search import ShardSearch

TIMEOUT_SECONDS = 600
STATM = Path("/proc/self/statm")


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
    """How much a process grows that opens a version's files and answers queries with them.

    Pages of the files that the answers touched count as the process's own, as they do on a server.

    Args:
        index_uris: the serving shards.
        refine_uris: the refine files.
        products_uri: `products.arrow`.
        queries: float32 [Q, D].
        k: neighbours of each query, whose ids are looked up too.
        nprobe, refine_factor: the chosen setting.

    Returns:
        Bytes; 0 on a system that does not tell (without /proc).

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
            "nprobe": nprobe,
            "refine_factor": refine_factor,
        }
        # The package may be importable only because of where this process was started.
        places = [str(Path(__file__).resolve().parents[1]), os.environ.get("PYTHONPATH", "")]
        finished = subprocess.run(
            [sys.executable, "-m", __name__],
            input=json.dumps(described),
            capture_output=True,
            text=True,
            timeout=TIMEOUT_SECONDS,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, places)), "OMP_NUM_THREADS": "1"},
            check=False,
        )
    if finished.returncode:
        raise VerificationError(
            f"{', '.join(index_uris)}: expected the files to open in a fresh process, found: {finished.stderr[-1000:]}"
        )
    return int(finished.stdout)


def _serve(described: dict[str, Any]) -> int:
    queries = np.load(described["queries"])
    before = _resident_bytes()
    search = ShardSearch([read_index(path) for path in described["indexes"]])
    codes = RefineCodes(described["refine"]) if described["refine"] else None
    products = ProductRows(pa.ipc.open_file(pa.memory_map(described["products"])).read_all())
    for query in queries:
        rows = search_refined(
            search,
            codes,
            query[None],
            min(described["k"], max(1, search.rows)),
            nprobe=described["nprobe"],
            refine_factor=described["refine_factor"],
        )[1]
        products.take(rows[rows >= 0], "product_id")
    return _resident_bytes() - before


def _resident_bytes() -> int:
    """Memory of this process that is in use, its own pages and those of mapped files."""
    pages = int(STATM.read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


if __name__ == "__main__":
    print(_serve(json.load(sys.stdin)))
