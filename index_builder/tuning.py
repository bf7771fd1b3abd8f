"""Chooses `nprobe`, the inverted lists that a search probes, by measuring recall and latency on the serving shards."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import faiss
import numpy as np

from index_builder import storage
from index_builder.codec import CodecInfo, open_codec
from index_builder.errors import VerificationError
from index_builder.faiss_files import faiss_threads, ivf_of, opened_indexes
from index_builder.fast_scan import as_served
from index_builder.ground_truth import GroundTruth
from index_builder.index_shards import IndexShard, find_finished, write_description
from index_builder.sampling import QuerySet
from index_builder.shard_search import ShardSearch

TIMED_QUERIES = 100
SMALLEST_GAIN = 0.001
"""Recall that twice the probes must bring for the measuring to go on."""
RECALL_GIVEN_UP = 0.005
"""Recall given up for fewer probes where the target cannot be reached: the last of it costs the most."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SearchMeasurement:
    """What search gives at one setting.

    Attributes:
        nprobe: lists probed.
        recall: recall k@k over the held-out products, against exact search.
        latency_ms: median time of one query, asked alone, on one thread.
    """

    nprobe: int
    recall: float
    latency_ms: float


@dataclass(frozen=True, kw_only=True, slots=True)
class SearchChoice:
    """The chosen setting.

    Attributes:
        nprobe: lists to probe.
        recall: measured with it.
        latency_ms: measured with it.
        reached: whether recall is at least the target.
    """

    nprobe: int
    recall: float
    latency_ms: float
    reached: bool


def measure_search(
    index_uris: Sequence[str], queries: QuerySet, truth: GroundTruth, *, target_recall: float = 1.0
) -> tuple[SearchMeasurement, ...]:
    """Measures search at growing `nprobe` (1, 2, 3, 4, 6, 8, 12, ...), until one step past the target or until it
    gains no more.

    Args:
        index_uris: the serving shards.
        queries: the held-out products.
        truth: their true neighbours.
        target_recall: where it may stop.
    """
    with opened_indexes(index_uris) as indexes:
        search = ShardSearch(indexes)
        measured: list[SearchMeasurement] = []
        for nprobe in _steps(search.lists):
            measured.append(_measure(search, queries, truth, nprobe))
            if len(measured) > 1 and measured[-2].recall >= target_recall:
                break
            half = [earlier for earlier in measured if earlier.nprobe * 2 <= nprobe]
            if half and measured[-1].recall - half[-1].recall < SMALLEST_GAIN and measured[-1].recall < target_recall:
                break
    return tuple(measured)


def choose_search(measured: Sequence[SearchMeasurement], target_recall: float) -> SearchChoice:
    """The cheapest setting that reaches the target; where none does, the cheapest within 0.005 of the best recall."""
    best = max(row.recall for row in measured)
    enough = target_recall if best >= target_recall else best - RECALL_GIVEN_UP
    row = next(row for row in sorted(measured, key=lambda row: row.nprobe) if row.recall >= enough)
    return SearchChoice(
        nprobe=row.nprobe, recall=row.recall, latency_ms=row.latency_ms, reached=row.recall >= target_recall
    )


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


def _measure(search: ShardSearch, queries: QuerySet, truth: GroundTruth, nprobe: int) -> SearchMeasurement:
    k = truth.k
    # One more than k, for the query itself is in the index and does not count.
    rows = search.search(queries.vectors, k + 1, nprobe=nprobe)[1]
    itself = rows == queries.rows[:, None]
    order = np.argsort(itself, axis=1, kind="stable")
    found = np.take_along_axis(np.where(itself, -1, rows), order, axis=1)[:, :k]
    return SearchMeasurement(
        nprobe=nprobe,
        recall=round(truth.recall(found), 6),
        latency_ms=round(_latency_ms(search, queries.vectors[:TIMED_QUERIES], k, nprobe), 4),
    )


def _latency_ms(search: ShardSearch, vectors: np.ndarray, k: int, nprobe: int) -> float:
    seconds = []
    # A server answers many queries at a time, each on one core; threads that share one query mostly wait.
    with faiss_threads(1):
        for vector in vectors:
            start = time.perf_counter()
            search.search(vector[None], k, nprobe=nprobe)
            seconds.append(time.perf_counter() - start)
    return 1000 * float(np.median(seconds)) if seconds else 0.0


def _steps(lists: int) -> Iterator[int]:
    for power in itertools.count():
        for nprobe in (2**power, 3 * 2 ** (power - 1)) if power else (1,):
            if nprobe >= lists:
                yield lists
                return
            yield int(nprobe)


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
