"""What recall an index can reach, known before it is built or searched at growing cost.

Two things lose a true neighbour: its list is not probed, or its code scores below others'. How far from a query the
lists of its neighbours are is read off the centroids, for any number of probes at once. What the codes lose is measured
on the neighbours alone: they are encoded by the codec itself, and all searched for with every list probed. Of what
lies behind the first 64 neighbours hardly anything is ever taken for one of the first 10.

Legend: `Q` queries, `D` dimension, `L` inverted lists, `K` neighbours of a query, `P` different ones.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import faiss
import numpy as np

from index_builder.add import BlockEncoder
from index_builder.blocks import map_blocks, row_blocks
from index_builder.embedding_shards import widened
from index_builder.exact_search import GroundTruth
from index_builder.faiss_files import ivf_of, list_ids, top_by_score
from index_builder.held_out import HeldOut
from index_builder.refine import StoredKind, refine_quantizer
from index_builder.sampling import ShardSample
from index_builder.spec import RefineKind

REASONABLE_ROWS = 65_536
REASONABLE_SHARE = 1 / 16
"""Products that a search compares with at most, within reason: so many, or such a share of all."""
_BLOCK_QUERIES = 64


@dataclass(frozen=True, kw_only=True, slots=True)
class Reachable:
    """The recall k@k that an index can reach.

    Attributes:
        by_lists: If codes lost nothing, by the number of lists probed; of the numbers in `probe_steps`.
        by_codes: With all lists probed, by codes alone.
        reasonable: Lists that a search may probe within reason.
    """

    by_lists: dict[int, float]
    by_codes: float
    reasonable: int

    def at(self, nprobe: int, ceiling: float) -> float:
        """The most that so many probes can reach, with codes or re-ranking that reach `ceiling` with all of them."""
        return min(self.by_lists[nprobe], ceiling)


def probe_steps(lists: int) -> Iterator[int]:
    """Numbers of lists to probe, each about half as many again as the one before: 1, 2, 3, 4, 6, 8, ..."""
    for power in itertools.count():
        for nprobe in (2**power, 3 * 2 ** (power - 1)) if power else (1,):
            if nprobe >= lists:
                yield lists
                return
            yield int(nprobe)


def reasonable_lists(lists: int, rows: int) -> int:
    """Lists that hold as many products as a search may compare with, within reason."""
    share = max(REASONABLE_SHARE, REASONABLE_ROWS / max(1, rows))
    return max(1, min(lists, round(lists * share)))


def reachable(codec: faiss.Index, held: HeldOut, k: int, rows: int) -> Reachable:
    """What an index of `rows` products can reach with a trained codec, an empty index, to which the neighbours are
    added.
    """
    ivf = ivf_of(codec)
    if isinstance(faiss.downcast_index(ivf), faiss.IndexIVFFastScan):  # packs its lists itself
        codec.add_with_ids(widened(held.vectors), np.arange(len(held.rows)))
    elif len(held.rows):
        ivf.add_sa_codes(_codes(codec, ivf, held.vectors), np.arange(len(held.rows)))
    queries = held.queries.vectors
    if isinstance(codec, faiss.IndexPreTransform):
        for number in range(codec.chain.size()):
            queries = codec.chain.at(number).apply(queries)
    list_of = np.empty(len(held.rows), np.int64)
    for number, ids in enumerate(list_ids(ivf)):
        list_of[ids] = number
    centroids = ivf.quantizer.reconstruct_n(0, ivf.nlist)
    probed = ivf.nprobe = min(ivf.nlist, max(1, len(held.rows)))
    found = np.empty((len(queries), k + 1), np.int64)
    places = np.empty(held.neighbours.shape, np.int64)
    for start in range(0, len(queries), _BLOCK_QUERIES):
        block = slice(start, start + _BLOCK_QUERIES)
        near = queries[block] @ centroids.T
        order = np.argsort(-near, axis=1, kind="stable")
        rank = np.empty_like(order)
        np.put_along_axis(rank, order, np.arange(ivf.nlist)[None], axis=1)
        places[block] = np.take_along_axis(rank, list_of[held.neighbours[block]], axis=1)
        lists = np.ascontiguousarray(order[:, :probed])
        distances = np.take_along_axis(near, lists, 1)
        found[block] = ivf.search_preassigned(queries[block], k + 1, lists, distances)[1]
    rows_found = np.where(found >= 0, held.rows[found], -1) if len(held.rows) else found
    by_codes = held.truth.recall(without(rows_found, held.queries.rows)[:, :k], k)
    return Reachable(
        by_lists=_by_lists(held.truth, places, k, ivf.nlist),
        by_codes=by_codes,
        reasonable=reasonable_lists(ivf.nlist, rows),
    )


def _codes(codec: faiss.Index, ivf: faiss.IndexIVF, vectors: np.ndarray) -> np.ndarray:
    """Vectors float16 [P, D] as the add step encodes them: uint8 [P, S], the list number in front of each code."""
    encoder = BlockEncoder(codec)
    encoded = list(map_blocks(lambda rows: encoder.encode(vectors[rows]), row_blocks(len(vectors))))
    return np.concatenate([np.empty((0, ivf.sa_code_size()), np.uint8), *encoded])


def refined_recall(
    held: HeldOut, samples: Sequence[ShardSample], kind: RefineKind, k: int, found: np.ndarray | None = None
) -> float:
    """Recall k@k of re-ranking by `sq8` or `fp16` codes: of all neighbours, or of those among the rows `found` int64
    [Q, m] alone. What is further away than the neighbours is not brought among the first by either.
    """
    if kind == "none" or not len(held.rows):
        return 1.0
    quantizer = refine_quantizer(samples, _stored(kind), held.vectors.shape[1])
    decoded = quantizer.sa_decode(quantizer.sa_encode(widened(held.vectors)))
    scores = np.empty(held.neighbours.shape, np.float32)
    for start in range(0, len(scores), _BLOCK_QUERIES):
        block = slice(start, start + _BLOCK_QUERIES)
        near = decoded[held.neighbours[block]]
        scores[block] = np.matmul(near, held.queries.vectors[block, :, None])[:, :, 0]
    rows = np.where(held.neighbours >= 0, held.rows[held.neighbours], -1)
    missing = rows < 0
    if found is not None:
        missing |= np.array([np.isin(row, among, invert=True) for row, among in zip(rows, found, strict=True)])
    scores[missing] = -np.inf
    best = top_by_score(scores, np.where(missing, -1, rows), k)[1]
    return held.truth.recall(best, k)


def without(rows: np.ndarray, own: np.ndarray) -> np.ndarray:
    """Rows found, int64 [Q, m], with each query's own row taken out and -1 at the end for it."""
    itself = rows == own[:, None]
    order = np.argsort(itself, axis=1, kind="stable")
    return np.take_along_axis(np.where(itself, -1, rows), order, axis=1)


def _by_lists(truth: GroundTruth, places: np.ndarray, k: int, lists: int) -> dict[int, float]:
    """Recall k@k by the number of lists probed, from the rank of each neighbour's list int64 [Q, K]."""
    true_rows = truth.true_rows(k)[:, : places.shape[1]] >= 0
    findable = np.minimum(true_rows.sum(axis=1), k)
    asked = findable > 0
    if not asked.any():
        return dict.fromkeys(probe_steps(lists), 1.0)
    # The i-th nearest true neighbour by rank of its list counts from that rank on, for the first `findable` of them.
    ranks = np.sort(np.where(true_rows, places, lists), axis=1)[:, :k]
    counted = np.arange(ranks.shape[1]) < findable[:, None]
    weights = np.broadcast_to(1 / np.maximum(findable, 1)[:, None], ranks.shape)
    gained = np.bincount(ranks[counted], weights=weights[counted], minlength=lists)[:lists]
    recalls = np.minimum(1.0, np.cumsum(gained) / asked.sum())
    return {nprobe: round(float(recalls[nprobe - 1]), 6) for nprobe in probe_steps(lists)}


def _stored(kind: RefineKind) -> StoredKind:
    return "sq8" if kind == "sq8" else "fp16"
