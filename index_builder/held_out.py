"""What an index is asked to measure it, with the right answers: held-out queries and their true neighbours.

Found once a build, in one pass over all vectors (of a large catalog by many workers, each over some shards), and kept
as a file: the codec is chosen by it before the index is
built, and the index is measured by it. The vectors of the neighbours are kept too: what they look like behind a code,
and how far from a query their lists are, tells what recall can be reached (see reachable.py).

Legend: `Q` queries, `D` dimension, `K` neighbours kept of each, `P` different ones of all queries together.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from index_builder import storage
from index_builder.embedding_shards import NumberedShard, read_rows
from index_builder.exact_search import (
    FilteredTruth,
    GroundTruth,
    HashFilter,
    NearFilter,
    RowFilter,
    joined_truth,
    neighbours_under,
)
from index_builder.gpu import on_gpu
from index_builder.planner import plan_sample
from index_builder.read_ahead import read_ahead
from index_builder.sampling import QuerySet, ShardSample, read_queries, read_query_vectors
from index_builder.spec import IndexConfig, IndexSpec

RECALL_DEPTHS = (1, 10, 100)
PASS_SHARES = (0.1, 0.01, 0.001)
"""Of the rows, under the filters that recall is measured with too."""
NEAR_SHARE = 0.1
"""Of the queries, which are like the products: those that score best with one of them, as the correlated filter."""
NEIGHBOURS_KEPT = 64
"""Of each query, as vectors. What a code brings among the first k from further behind is not worth its bytes."""


@dataclass(frozen=True, kw_only=True, slots=True)
class HeldOut:
    """Queries, and what they should find.

    Attributes:
        truth: Of all rows, to the depth of 100 or k.
        filters: By name, such as `10 % at random`, the rows that pass and what is to be found among them.
        neighbours: int64 [Q, K], the place of each query's neighbours in `rows`, best first; -1 where there is none.
        rows: int64 [P], ascending.
        vectors: float16 [P, D], of these rows.
    """

    queries: QuerySet
    truth: GroundTruth
    filters: dict[str, FilteredTruth]
    neighbours: np.ndarray
    rows: np.ndarray
    vectors: np.ndarray

    def first(self, count: int) -> HeldOut:
        """The same of the first queries alone."""
        near = self.neighbours[:count]
        places = np.unique(near[near >= 0])
        truth = GroundTruth(k=self.truth.k, rows=self.truth.rows[:count], scores=self.truth.scores[:count])
        return HeldOut(
            queries=QuerySet(rows=self.queries.rows[:count], vectors=self.queries.vectors[:count]),
            truth=truth,
            filters={},
            neighbours=np.where(near >= 0, np.searchsorted(places, near), -1),
            rows=self.rows[places],
            vectors=self.vectors[places],
        )


def held_out_queries(
    config: IndexConfig, spec: IndexSpec, rows: int, samples: Sequence[ShardSample], uri: str
) -> QuerySet:
    """The queries that an index of so many rows is measured with, kept at `uri` (without an ending).

    Raises:
        SpecError: `index.queries_uri` holds no queries of D dimensions.
    """
    if config.queries_uri is not None:
        return read_query_vectors(config.queries_uri, spec.dim, limit=config.verify_queries)
    limit = plan_sample(config, spec, rows).queries

    def make(path: str) -> None:
        queries = read_queries(samples, limit=limit)
        np.savez(f"{path}.npz", rows=queries.rows, vectors=queries.vectors)

    storage.artifact(uri, [limit, sorted(sample.sha256 for sample in samples)], make)
    with _arrays(uri) as arrays:
        return QuerySet(rows=arrays["rows"], vectors=arrays["vectors"])


def search_shards(config: IndexConfig, queries: QuerySet, shards: Sequence[NumberedShard], uri: str) -> str:
    """Finds what queries should find among some neighbouring shards, and keeps it at `uri` (without an ending)."""

    def make(path: str) -> dict[str, Any]:
        _save(path, *_search(config, queries, shards))
        return {"depth": _depth(config)}

    asked = [config.k, config.verify_queries, _digest(queries), [asdict(shard) for shard in shards]]
    return storage.artifact(uri, asked, make).uri


def find_held_out(
    config: IndexConfig,
    spec: IndexSpec,
    shards: Sequence[NumberedShard],
    queries: QuerySet,
    uri: str,
    searched: Sequence[str] = (),
) -> HeldOut:
    """The queries of a build with their neighbours, kept at `uri` (without an ending).

    Args:
        searched: What `search_shards` left of all shards, in their order; empty: they are searched here.
    """
    filters = _filters(queries)

    def make(path: str) -> dict[str, Any]:
        truth, under = _joined(config, searched, len(filters)) if searched else _search(config, queries, shards)
        near = truth.rows[:, : max(NEIGHBOURS_KEPT, 3 * config.k)]
        near_rows = np.unique(near[near >= 0])
        neighbours = np.where(near >= 0, np.searchsorted(near_rows, near), -1).astype(np.int32)
        vectors = _vectors_of(near_rows, shards, spec.dim)
        _save(path, truth, under, near_rows=near_rows, neighbours=neighbours, vectors=vectors)
        return {"depth": _depth(config)}

    asked = [config.k, config.verify_queries, _digest(queries), [asdict(shard) for shard in shards]]
    storage.artifact(uri, asked, make)
    with _arrays(uri) as arrays:
        truth, under = _truths(config, arrays, len(filters))
        return HeldOut(
            queries=queries,
            truth=truth,
            filters=dict(zip(filters, under, strict=True)),
            neighbours=arrays["neighbours"],
            rows=arrays["near_rows"],
            vectors=arrays["vectors"],
        )


_Truths = tuple[GroundTruth, tuple[FilteredTruth, ...]]


def _depth(config: IndexConfig) -> int:
    return max(config.k, *RECALL_DEPTHS)


def _search(config: IndexConfig, queries: QuerySet, shards: Sequence[NumberedShard]) -> _Truths:
    filters = tuple(_filters(queries).values())
    asked = (queries.vectors, queries.rows, shards, _depth(config), filters)
    return neighbours_under(*asked, filtered_k=config.k, gpu=on_gpu(config.device))


def _joined(config: IndexConfig, searched: Sequence[str], filters: int) -> _Truths:
    """What was found in all shards, by what was found in some of them after the other."""
    found: _Truths | None = None
    for uri in searched:
        with _arrays(uri) as arrays:
            more = _truths(config, arrays, filters)
        if found is None:
            found = more
            continue
        both = zip(found[1], more[1], strict=True)
        found = (
            joined_truth(found[0], more[0]),
            tuple(
                FilteredTruth(rows=np.concatenate([one.rows, other.rows]), truth=joined_truth(one.truth, other.truth))
                for one, other in both
            ),
        )
    if found is None:
        raise ValueError("expected shards that were searched, found none")
    return found


def _save(path: str, truth: GroundTruth, under: Sequence[FilteredTruth], **others: np.ndarray) -> None:
    arrays = {"rows": truth.rows, "scores": truth.scores, **others}
    for number, found in enumerate(under):
        arrays |= {f"passing_{number}": found.rows, f"rows_{number}": found.truth.rows}
        arrays[f"scores_{number}"] = found.truth.scores
    np.savez(f"{path}.npz", **arrays)  # type: ignore[arg-type]


def _truths(config: IndexConfig, arrays: Mapping[str, np.ndarray], filters: int) -> _Truths:
    return GroundTruth(k=_depth(config), rows=arrays["rows"], scores=arrays["scores"]), tuple(
        FilteredTruth(
            rows=arrays[f"passing_{number}"],
            truth=GroundTruth(k=config.k, rows=arrays[f"rows_{number}"], scores=arrays[f"scores_{number}"]),
        )
        for number in range(filters)
    )


@contextmanager
def _arrays(uri: str) -> Iterator[Mapping[str, np.ndarray]]:
    with storage.localized(f"{uri}.npz") as path, np.load(path) as arrays:
        yield arrays


def _filters(queries: QuerySet) -> dict[str, RowFilter]:
    """Filters by name: three that let rows pass at random, and one that lets those of a part of the space pass."""
    filters: dict[str, RowFilter] = {f"{100 * share:g} % at random": HashFilter(share=share) for share in PASS_SHARES}
    if len(queries.vectors):
        scores = queries.vectors @ queries.vectors[0]
        score = float(np.quantile(scores, 1 - NEAR_SHARE, method="lower"))
        filters["those near one product"] = NearFilter(query=0, score=score)
    return filters


def _digest(queries: QuerySet) -> str:
    return storage.digest([queries.rows.tolist(), queries.vectors.tobytes().hex()])


def _vectors_of(rows: np.ndarray, shards: Sequence[NumberedShard], dim: int) -> np.ndarray:
    """The vectors of rows int64 [P], ascending: float16 [P, D]."""
    ordered = sorted((shard for shard in shards if shard.kept_rows), key=lambda shard: shard.first_row)
    starts = np.searchsorted(rows, [*(shard.first_row for shard in ordered), np.iinfo(np.int64).max]).tolist()
    wanted = [
        (shard, rows[start:stop])
        for shard, (start, stop) in zip(ordered, pairwise(starts), strict=True)
        if stop > start
    ]

    def read(asked: tuple[NumberedShard, np.ndarray]) -> np.ndarray:
        shard, here = asked
        return read_rows(shard.uri, shard.kept()[here - shard.first_row])[0].astype(np.float16, copy=False)

    return np.concatenate([np.empty((0, dim), np.float16), *read_ahead(read, wanted, shards[0].uri)])
