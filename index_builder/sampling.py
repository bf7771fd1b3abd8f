"""The sample draws vectors to train the codec on, and held-out products to measure recall with.

A hash of its id alone decides what a product is drawn for, so the sample is spread over the whole catalog (the first
rows of a catalog sorted by category make a far worse codec), does not depend on the order of shards, and no query is
ever trained on. Hashes are spread evenly over 0..2^64: the lowest `query_share` of them are queries, the highest
`training_share` train.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import xxhash

from index_builder import storage
from index_builder.embedding_shards import NumberedShard, fixed_binary, read_ids, read_rows
from index_builder.errors import SpecError
from index_builder.read_ahead import read_ahead

VECTOR_COLUMN = "vector"
_HASHES = 2.0**64
_SAMPLES_AT_ONCE = 8
"""Fewer than of other files: their vectors wait in memory."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardSample:
    """The sampled rows of some embedding shards, in a Parquet file: row, hash, is_query, vector (as in the shard)."""

    uri: str
    dim: int
    training_rows: int
    query_rows: int
    sha256: str


@dataclass(frozen=True, kw_only=True, slots=True)
class QuerySet:
    """Held-out products: their global rows int64 [Q], ascending, and vectors float32 [Q, D]."""

    rows: np.ndarray
    vectors: np.ndarray


def hash_ids(product_ids: pa.Array) -> np.ndarray:
    """The 64-bit xxHash (XXH3) of each id's UTF-8 bytes: uint64 [n]."""
    ids = product_ids.cast(pa.binary()).to_pylist()
    return np.fromiter(map(xxhash.xxh3_64_intdigest, ids), dtype=np.uint64, count=len(ids))


def write_sample(
    shards: Sequence[NumberedShard], out_uri: str, *, training_share: float, query_share: float
) -> ShardSample:
    """Draws the sample of some shards, one at least: shares of their products, to train on and to hold out.

    Raises:
        SpecError: the shares overlap.
    """
    if min(training_share, query_share) < 0 or training_share + query_share > 1:
        raise SpecError(
            f"training_share is {training_share} and query_share {query_share}, "
            "expected two shares that sum to at most 1"
        )

    def read(shard: NumberedShard) -> pa.Table:
        kept = shard.kept()
        hashes = hash_ids(read_ids(shard.uri))[kept]
        # In float64 the bounds are exact to one id in 10^15, and the same on every machine.
        positions = hashes.astype(np.float64) / _HASHES
        is_query = positions < query_share
        chosen = is_query | (positions >= 1.0 - training_share) & (training_share > 0)
        vectors, _ = read_rows(shard.uri, kept[chosen])
        columns = {
            "row": shard.first_row + np.flatnonzero(chosen),
            "hash": hashes[chosen],
            "is_query": is_query[chosen],
        }
        return pa.table(columns | {"vector": fixed_binary(np.ascontiguousarray(vectors))})

    tables = read_ahead(read, shards, shards[0].uri)
    rows = queries = 0
    with storage.atomic_file(out_uri) as path:
        first = next(tables)
        with pq.ParquetWriter(
            path, first.schema, compression="none", use_dictionary=False, write_statistics=False
        ) as writer:
            for table in chain([first], tables):
                writer.write_table(table)
                rows += len(table)
                queries += pc.sum(table["is_query"]).as_py() or 0
        sha256 = storage.sha256_file(path)
    dim = first.schema.field("vector").type.byte_width // 2
    return ShardSample(uri=out_uri, dim=dim, training_rows=rows - queries, query_rows=queries, sha256=sha256)


def read_training(samples: Sequence[ShardSample], *, limit: int | None = None) -> np.ndarray:
    """The training vectors of all samples, float16 [n, D], in the order of their rows, whatever that of the samples.

    With a `limit`, those with the lowest hashes: again a random part, and the same on every run.
    """
    return _read(samples, queries=False, limit=limit)[1]


def read_queries(samples: Sequence[ShardSample], *, limit: int | None = None) -> QuerySet:
    """The held-out products of all samples; with a `limit`, those with the lowest hashes."""
    rows, vectors = _read(samples, queries=True, limit=limit)
    return QuerySet(rows=rows, vectors=vectors.astype(np.float32))


def _read(samples: Sequence[ShardSample], *, queries: bool, limit: int | None) -> tuple[np.ndarray, np.ndarray]:
    """Global rows int64 [n], ascending, and vectors float16 [n, D]. The vectors are in memory twice at most."""
    dim = samples[0].dim if samples else 0
    rows: list[np.ndarray] = [np.empty(0, dtype=np.int64)]
    hashes: list[np.ndarray] = [np.empty(0, dtype=np.uint64)]
    vectors: list[np.ndarray] = [np.empty((0, dim), dtype=np.float16)]
    wanted_samples = [sample for sample in samples if (sample.query_rows if queries else sample.training_rows)]
    where = samples[0].uri if samples else ""
    uris = [sample.uri for sample in wanted_samples]
    all_data = read_ahead(storage.read_bytes, uris, where, at_once=_SAMPLES_AT_ONCE)
    for sample, data in zip(wanted_samples, all_data, strict=True):
        table = pq.read_table(pa.BufferReader(data)).combine_chunks()
        wanted = table.column("is_query").to_numpy() == queries
        rows.append(table.column("row").to_numpy()[wanted])
        hashes.append(table.column("hash").to_numpy()[wanted])
        stored = table.column("vector").chunk(0).buffers()[1]
        vectors.append(np.frombuffer(stored, dtype="<f2").reshape(-1, sample.dim)[wanted])
    all_rows, all_hashes = np.concatenate(rows), np.concatenate(hashes)
    lowest = np.lexsort((all_rows, all_hashes))[:limit]
    order = lowest[np.argsort(all_rows[lowest], kind="stable")]
    # Where each file's vectors go in the answer; those left out go nowhere.
    positions = np.full(len(all_rows), -1)
    positions[order] = np.arange(len(order))
    found = np.empty((len(order), dim), dtype=np.float16)
    start = 0
    for number, found_there in enumerate(vectors):
        target = positions[start : start + len(found_there)]
        found[target[target >= 0]] = found_there[target >= 0]
        start += len(found_there)
        vectors[number] = found_there[:0]
    return all_rows[order], found


def read_query_vectors(uri: str, dim: int, *, limit: int | None = None) -> QuerySet:
    """Reads vectors of real queries (`index.queries_uri`), float16 or float32 [Q, D] in a `.npy` file, or lists in a
    Parquet file's column `vector`; they are no products, so their rows are -1.

    Held-out products ask for products like themselves; what people type lies elsewhere in the space, and may need more
    probes for the same recall.

    Raises:
        SpecError: the file is missing, cannot be read, or holds no finite vectors of D dimensions.
    """
    try:
        data = storage.read_bytes(uri)
        if uri.endswith(".npy"):
            vectors = np.load(io.BytesIO(data), allow_pickle=False)
        else:
            lists = pq.read_table(pa.BufferReader(data), columns=[VECTOR_COLUMN])[VECTOR_COLUMN]
            vectors = np.array(lists.to_pylist(), dtype=np.float32)
    except (OSError, ValueError, KeyError, pa.ArrowException) as error:
        raise SpecError(
            f"index.queries_uri is {uri!r}: expected a .npy file or a Parquet file with a column vector ({error})"
        ) from error
    if vectors.ndim != 2 or vectors.shape[1] != dim or not len(vectors) or vectors.dtype.kind != "f":
        raise SpecError(
            f"index.queries_uri is {uri!r}: expected float vectors [Q, {dim}], found {vectors.dtype} "
            f"{list(vectors.shape)}"
        )
    vectors = np.ascontiguousarray(vectors[:limit], dtype=np.float32)
    if not np.isfinite(vectors).all():
        raise SpecError(f"index.queries_uri is {uri!r}: expected finite numbers, found others")
    return QuerySet(rows=np.full(len(vectors), -1, dtype=np.int64), vectors=vectors)
