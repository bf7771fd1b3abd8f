"""What an index is asked to measure it, with the right answers: held-out queries and their true neighbours.

Found once a build, in one pass over all vectors, and kept as a file: the codec is chosen by it before the index is
built, and the index is measured by it. The vectors of the neighbours are kept too: what they look like behind a code,
and how far from a query their lists are, tells what recall can be reached (see reachable.py).

Legend: `Q` queries, `D` dimension, `K` neighbours kept of each, `P` different ones of all queries together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
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
    neighbours_under,
)
from index_builder.gpu import on_gpu
from index_builder.planner import plan_sample
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


def find_held_out(
    config: IndexConfig, spec: IndexSpec, shards: Sequence[NumberedShard], samples: Sequence[ShardSample], uri: str
) -> HeldOut:
    """The queries of a build with their neighbours, kept at `uri` (without an ending).

    Raises:
        SpecError: `index.queries_uri` holds no queries of D dimensions.
    """
    rows = sum(shard.kept_rows for shard in shards)
    limit = plan_sample(config, spec, rows).queries
    if config.queries_uri is None:
        queries = read_queries(samples, limit=limit)
    else:
        queries = read_query_vectors(config.queries_uri, spec.dim, limit=config.verify_queries)
    filters = _filters(queries)

    def make(path: str) -> dict[str, Any]:
        depth = max(config.k, *RECALL_DEPTHS)
        named = neighbours_under(
            queries.vectors,
            queries.rows,
            shards,
            depth,
            tuple(filters.values()),
            filtered_k=config.k,
            gpu=on_gpu(config.device),
        )
        truth, under = named
        near = truth.rows[:, : max(NEIGHBOURS_KEPT, 3 * config.k)]
        near_rows = np.unique(near[near >= 0])
        arrays = {"rows": truth.rows, "scores": truth.scores, "near_rows": near_rows}
        arrays["neighbours"] = np.where(near >= 0, np.searchsorted(near_rows, near), -1).astype(np.int32)
        arrays["vectors"] = _vectors_of(near_rows, shards, spec.dim)
        for number, found in enumerate(under):
            arrays |= {f"passing_{number}": found.rows, f"rows_{number}": found.truth.rows}
            arrays[f"scores_{number}"] = found.truth.scores
        with open(f"{path}.npz", "wb") as file:
            np.savez(file, **arrays)  # type: ignore[arg-type]
        return {"depth": depth}

    asked = [config.k, config.verify_queries, _digest(queries), [asdict(shard) for shard in shards]]
    found = storage.artifact(uri, asked, make)
    with storage.localized(f"{uri}.npz") as path, np.load(path) as arrays:
        truths = {
            name: FilteredTruth(
                rows=arrays[f"passing_{number}"],
                truth=GroundTruth(k=config.k, rows=arrays[f"rows_{number}"], scores=arrays[f"scores_{number}"]),
            )
            for number, name in enumerate(filters)
        }
        return HeldOut(
            queries=queries,
            truth=GroundTruth(k=found.facts["depth"], rows=arrays["rows"], scores=arrays["scores"]),
            filters=truths,
            neighbours=arrays["neighbours"],
            rows=arrays["near_rows"],
            vectors=arrays["vectors"],
        )


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
    found = [np.empty((0, dim), np.float16)]
    for shard in sorted(shards, key=lambda shard: shard.first_row):
        here = rows[(rows >= shard.first_row) & (rows < shard.first_row + shard.kept_rows)] - shard.first_row
        if len(here):
            found.append(read_rows(shard.uri, shard.kept()[here])[0].astype(np.float16, copy=False))
    return np.concatenate(found)
