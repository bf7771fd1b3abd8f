"""Decides what index to build, from what sample and in which tasks, from the config and the number of products.

`auto`, by rows: below `EXACT_BELOW_ROWS` exact search; else a map to four dimensions a sub-quantizer (fewer where D is
small), about 4 * sqrt(rows) inverted lists, and corrected PQ codes (product_quantizer.py) of `bytes_per_vector`, less
what a second file to re-rank from takes (refine.py). That follows what was measured, see README.md. An explicit factory
string is taken as it is, and refused before any work where the catalog is
too small to train it. Should so many products be rejected on the way that the rest is too small, it is built with fewer
lists, or of vectors as they are, with a line in the log: the run is not lost.

Memory is that of arrays which grow with the catalog, the sample or the lists; the process itself takes some 200 MB
more.

Legend: `D` dimension of the embeddings, `N` products.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from index_builder.embedding_shards import NumberedShard
from index_builder.errors import SpecError
from index_builder.gpu import on_gpu
from index_builder.inverted_lists import MERGE_BYTES
from index_builder.product_quantizer import MAX_CODE_ROWS
from index_builder.sampling import read_query_vectors
from index_builder.spec import FAST_DIMS_PER_CODE, IndexConfig, IndexSpec, RefineKind

log = logging.getLogger(__name__)

EXACT_BELOW_ROWS = 4096
TRAINING_ROWS_PER_LIST = 40
MIN_TRAINING_ROWS_PER_LIST = 16
MIN_TRAINING_ROWS_PER_CODE = 4
"""Training rows that a PQ centroid needs at least; with fewer, vectors are kept as they are."""
SMALL_DIMS_PER_CODE = 16
"""From here on a vector has so few sub-quantizers that their speed does not matter."""
HNSW_FROM_LISTS = 2048
HNSW_LINKS = 32
BYTES_PER_DIM: dict[RefineKind, int] = {"none": 0, "sq8": 1, "fp16": 2}
CORRECTED_FROM_BYTES = 8
"""From here on a byte is better spent on the correction (codec.py) than on another sub-quantizer."""
DIMS_PER_CODE_BYTE = 4
"""Under a budget, codes get at least a byte for so many dimensions before refinement gets any."""
CANDIDATE_BYTES = 1000
"""Code bytes that a search compares in the time that it takes to keep, fetch and sort one more candidate (PQ32, 128
dimensions, one core: 0.5 us)."""
DEFAULT_CODE_BYTES = 64
"""Of the first candidate, where `bytes_per_vector` is not given, and of the code beside a refinement that is named."""
ID_BYTES = 8
CODE_BYTES = (8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048, 3072, 4096)
"""The rungs of `candidates`: recall rises in steps of about the same size."""
MOST_ROWS_PER_ADD = 200_000
_QUERY_MARGIN = 1.2
_GROWING = 2
"""Lists in memory grow by doubling."""
_CENTROID_COPIES = 6
"""As float32, while lists are grouped: 4.75 with 32,768 lists of 256 dimensions; corrected codes hold one more."""
_MERGED_LIST_BYTES = 64
"""Of one list: its sizes in all files together, and FAISS's own record of where the list lies in the merged file."""
_MB = 1_000_000


@dataclass(frozen=True, kw_only=True, slots=True)
class SamplePlan:
    """How much of the catalog is drawn: shares of all products, and how many of those drawn are used at most."""

    training_share: float
    query_share: float
    training_rows: int
    queries: int


@dataclass(frozen=True, kw_only=True, slots=True)
class BuildMemory:
    """Bytes that a step holds, and that a server holds once it has touched the whole index.

    Attributes:
        training: the sample, before and behind the rotation.
        adding: the codes of one add task, the codec, and its centroids as the search for lists holds them.
        merging: the codec, once, and what is read of the lists at a time; however many index shards there are.
        laying_out: a serving shard, plain and in its SIMD layout, and the codec of each; 0 for layouts that are written
            list by list.
        serving: codes, ids, the codec, and what candidates are re-ranked from.
    """

    training: int
    adding: int
    merging: int
    laying_out: int
    serving: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Candidate:
    """An index that could be built, with its refinement."""

    spec: IndexSpec
    refine: RefineKind

    @property
    def bytes_per_vector(self) -> int:
        """Bytes of code and refinement a product, what `index.bytes_per_vector` counts: without ids and codec."""
        return self.spec.code_bytes + BYTES_PER_DIM[self.refine] * self.spec.dim


def check_index(config: IndexConfig, dim: int) -> None:
    """Refuses an `index:` section that cannot be built, whatever the catalog.

    Raises:
        SpecError: the factory string cannot be read, does not fit D, or needs more than `training_rows`; or
            `queries_uri` holds no queries of D dimensions.
        TrainingError: a GPU is asked for, and there is none.
    """
    if config.factory != "auto":
        spec = IndexSpec.parse(config.factory, dim)
        needed = _needed_training_rows(spec)
        if config.training_rows and config.training_rows < needed:
            raise SpecError(
                f"index.training_rows is {config.training_rows}, but training of {spec.factory}, which index.factory "
                f"asks for, needs {needed} products. Expected that many, or null"
            )
    on_gpu(config.device)
    if config.queries_uri is not None:
        read_query_vectors(config.queries_uri, dim)


def check_rows(config: IndexConfig, rows: int, dim: int) -> None:
    """Refuses an index that `rows` products, or an estimate of them, cannot train or the memory budget cannot hold.

    Raises:
        SpecError: as `plan_index`, or the catalog is too small for the index that `factory` names.
    """
    if config.factory != "auto":
        spec = IndexSpec.parse(config.factory, dim)
        needed = _needed_training_rows(spec)
        if _most_training_rows(rows) < needed:
            raise SpecError(
                f"index.factory is {config.factory!r}, but training of it needs {needed:,} products beside those held "
                f"out, and the catalog has {rows:,} in all. Expected auto, or what so many can train, such as "
                f"{_shrunk(spec, config, rows).factory}"
            )
    plan_index(config, rows, dim)


def check_memory(config: IndexConfig, spec: IndexSpec, *, rows: int, training_rows: int) -> None:
    """Refuses a build that cannot stay within `index.memory_budget_mb`, with a SpecError that names the step."""
    memory = estimate_memory(config, spec, rows=rows, training_rows=training_rows)
    more_shards = f"raise index.serving_shards, which is {config.serving_shards}"
    for size, name, remedy in (
        (memory.training, "training", f"ask for fewer lists than {spec.lists} or a smaller index.training_rows"),
        (memory.adding, "an add task", _remedy_of_adding(config, spec)),
        (memory.merging, "merging", f"ask for fewer lists than {spec.lists}"),
        (memory.laying_out, "laying a serving shard out for FastScan", more_shards),
    ):
        needed = -(-size // _MB)
        if needed > config.memory_budget_mb:
            raise SpecError(
                f"index.memory_budget_mb is {config.memory_budget_mb}, but {name} of {spec.factory} over {rows:,} "
                f"products needs about {needed:,} MB; {remedy}, or raise the budget"
            )


def _remedy_of_adding(config: IndexConfig, spec: IndexSpec) -> str:
    if _encoder_bytes(spec) >= config.memory_budget_mb * _MB:
        return f"ask for fewer lists than {spec.lists}"
    return f"lower index.rows_per_add, which is {config.rows_per_add}"


def plan_index(config: IndexConfig, rows: int, dim: int) -> IndexSpec:
    """The index to build of `rows` products of D dimensions.

    Raises:
        SpecError: the factory string cannot be read or does not fit D, or the build would not fit into
            `index.memory_budget_mb`.
    """
    spec = _planned(config, rows, dim)
    check_memory(config, spec, rows=rows, training_rows=min(rows, plan_sample(config, spec, rows).training_rows))
    return spec


def plan_sample(config: IndexConfig, spec: IndexSpec, rows: int) -> SamplePlan:
    """How many products to train on and to hold out.

    Exact search trains nothing and may be asked with any product; else at most a tenth of the catalog is held out.
    """
    if spec.exact:
        queries = min(config.verify_queries, rows)
        query_share = min(1.0, _QUERY_MARGIN * queries / rows) if rows > 10 * queries else 1.0
        return SamplePlan(training_share=0.0, query_share=query_share, training_rows=0, queries=queries)
    queries = min(config.verify_queries, max(1, rows // 10))
    query_share = min(0.1, _QUERY_MARGIN * queries / rows)
    wanted = min(max(TRAINING_ROWS_PER_LIST * spec.lists, MAX_CODE_ROWS), _trainable_rows(config, spec))
    training_rows = config.training_rows or max(wanted, MIN_TRAINING_ROWS_PER_LIST * spec.lists)
    share = min(1.0 - query_share, _QUERY_MARGIN * training_rows / rows)
    return SamplePlan(training_share=share, query_share=query_share, training_rows=training_rows, queries=queries)


def is_open(config: IndexConfig) -> bool:
    """Whether the config leaves the bytes of a vector to the target."""
    return config.factory == "auto" and config.bytes_per_vector is None and config.refine == "auto"


def plan_refinement(config: IndexConfig, spec: IndexSpec) -> RefineKind:
    """The refinement to build for an index.

    `auto` refines where `bytes_per_vector` has room for it, and only an index that was planned within that budget too
    (`factory: auto`). What keeps vectors as exactly as the refinement would is not refined.
    """
    kind: RefineKind = config.refine if config.refine != "auto" else "none"
    if config.refine == config.factory == "auto" and config.bytes_per_vector is not None:
        kind = _affordable_refinement(config.bytes_per_vector, spec.dim)
    if kind != "none" and BYTES_PER_DIM[kind] * spec.dim <= spec.code_bytes:
        log.info("%s holds vectors as exactly as %s would: no refinement", spec.factory, kind)
        return "none"
    return kind


def code_budget(config: IndexConfig, dim: int) -> int:
    """Of `bytes_per_vector` what is left for the index's own codes, where the plan is `auto`."""
    if config.bytes_per_vector is None:
        return DEFAULT_CODE_BYTES
    if config.refine != "auto" or config.bytes_per_vector >= 4 * dim:
        return config.bytes_per_vector  # refinement comes on top, or vectors fit as they are
    return config.bytes_per_vector - BYTES_PER_DIM[_affordable_refinement(config.bytes_per_vector, dim)] * dim


def probes_per_factor(spec: IndexSpec, kind: RefineKind, rows: int, k: int) -> float:
    """Lists that could be probed in the time that re-ranking k candidates takes, among `rows` products."""
    if kind == "none":
        return 0.0
    list_bytes = max(1.0, rows / spec.lists * spec.code_bytes)
    return k * (CANDIDATE_BYTES + BYTES_PER_DIM[kind] * spec.dim) / list_bytes


def candidates(config: IndexConfig, rows: int, dim: int, *, most_bytes: int | None = None) -> tuple[Candidate, ...]:
    """What could be built of `rows` products of D dimensions, by bytes a product, the cheapest first.

    Recall rises with the bytes (measured: tests/benchmarks/README.md), so the first one whose recall is enough is the
    one to build. Where the config names a factory, or the catalog is small enough for exact search, it is that alone.
    Pure: nothing is read or trained; whether the memory budget holds a build is for `check_memory` to say.

    Args:
        most_bytes: of codes and refinement; None: no limit. At least the smallest candidate is returned.
    """
    planned = _planned(config, rows, dim)
    if config.factory != "auto" or planned.exact:
        return (Candidate(spec=planned, refine=plan_refinement(config, planned)),)
    rungs = sorted({*(share for share in CODE_BYTES if share < dim), dim, 4 * dim})
    kinds: tuple[RefineKind, ...] = ("none",) if config.refine == "auto" else (config.refine,)
    found = [Candidate(spec=_with_lists(_auto_code(size, dim), config, rows), refine=kinds[0]) for size in rungs]
    if config.refine == "auto":
        codes = _with_lists(_auto_code(max(1, dim // DIMS_PER_CODE_BYTE), dim), config, rows)
        found.append(Candidate(spec=codes, refine="fp16"))
    found = sorted(dict.fromkeys(found), key=lambda candidate: candidate.bytes_per_vector)
    affordable = [each for each in found if most_bytes is None or each.bytes_per_vector <= most_bytes]
    return tuple(affordable or found[:1])


def estimate_memory(
    config: IndexConfig, spec: IndexSpec, *, rows: int, training_rows: int, refine: RefineKind | None = None
) -> BuildMemory:
    """The memory of a build of N = `rows` products, with a codec that is trained on `training_rows` vectors.

    `refine`: what stands beside it; None: what the config asks for.
    """
    refine = plan_refinement(config, spec) if refine is None else refine
    row_bytes = spec.code_bytes + ID_BYTES
    shard_rows = -(-rows // config.serving_shards)
    lists_bytes = _lists_bytes(spec)
    codec_bytes = _codec_bytes(spec)
    return BuildMemory(
        training=training_rows * _training_row_bytes(spec),
        adding=min(rows, rows_per_add(config, spec)) * row_bytes * _GROWING + _encoder_bytes(spec),
        merging=codec_bytes + _MERGED_LIST_BYTES * spec.lists + MERGE_BYTES,
        laying_out=0 if spec.memory_mapped else 2 * (shard_rows * row_bytes + codec_bytes),
        serving=rows * (row_bytes + BYTES_PER_DIM[refine] * spec.dim) + lists_bytes,
    )


def rows_per_add(config: IndexConfig, spec: IndexSpec) -> int:
    """Products an add task takes: as asked for, or what the budget allows."""
    if config.rows_per_add is not None:
        return config.rows_per_add
    affordable = (config.memory_budget_mb * _MB - _encoder_bytes(spec)) // ((spec.code_bytes + ID_BYTES) * _GROWING)
    return max(1, min(MOST_ROWS_PER_ADD, affordable))


def plan_adds(
    config: IndexConfig, spec: IndexSpec, shards: Sequence[NumberedShard]
) -> tuple[tuple[tuple[NumberedShard, ...], ...], ...]:
    """Cuts the shards, in row order, into serving shards, and those into add tasks.

    Cuts fall between embedding shards. Serving shards get about the same number of products; there are fewer of them
    than asked for where there are not enough embedding shards with products. Returned are, for each serving shard, its
    add tasks, and for each task its embedding shards.
    """
    full = [shard for shard in shards if shard.kept_rows]
    rows = sum(shard.kept_rows for shard in full)
    wanted = max(1, min(config.serving_shards, len(full)))
    groups: list[list[NumberedShard]] = [[]]
    taken = 0
    for position, shard in enumerate(full):
        still_needed = wanted - len(groups)
        share_is_full = taken + shard.kept_rows / 2 > rows * len(groups) / wanted
        if groups[-1] and still_needed and (share_is_full or len(full) - position <= still_needed):
            groups.append([])
        groups[-1].append(shard)
        taken += shard.kept_rows
    return tuple(tuple(_tasks(group, rows_per_add(config, spec))) for group in groups)


def _tasks(shards: Sequence[NumberedShard], most_rows: int) -> Iterable[tuple[NumberedShard, ...]]:
    start = rows = 0
    for position, shard in enumerate(shards):
        if position > start and rows + shard.kept_rows > most_rows:
            yield tuple(shards[start:position])
            start, rows = position, 0
        rows += shard.kept_rows
    if shards:
        yield tuple(shards[start:])


def _planned(config: IndexConfig, rows: int, dim: int) -> IndexSpec:
    if config.factory != "auto":
        asked = IndexSpec.parse(config.factory, dim)
        spec = _shrunk(asked, config, rows)
        if spec != asked:
            text = "index.factory %s needs more than the %d products of this catalog to be trained: building %s instead"
            log.warning(text, asked.factory, rows, spec.factory)
        if 0 < (dims := spec.dims_per_code) < SMALL_DIMS_PER_CODE and dims not in FAST_DIMS_PER_CODE:
            text = "index.factory %s has sub-quantizers of %d dimensions, which FAISS encodes many times slower than %s"
            log.warning(text, spec.factory, dims, ", ".join(map(str, FAST_DIMS_PER_CODE)))
        return spec
    if rows < EXACT_BELOW_ROWS:
        return _exact(dim)
    return _with_lists(_auto_code(code_budget(config, dim), dim), config, rows)


def _with_lists(spec: IndexSpec, config: IndexConfig, rows: int) -> IndexSpec:
    """The spec with as many inverted lists as so many products ask for, and can train."""
    lists = 2 ** min(round(math.log2(4 * math.sqrt(rows))), int(math.log2(rows / TRAINING_ROWS_PER_LIST)))
    while lists > 1 and MIN_TRAINING_ROWS_PER_LIST * lists > _trainable_rows(config, spec):
        lists //= 2
    return replace(spec, lists=lists, hnsw_links=HNSW_LINKS * (lists >= HNSW_FROM_LISTS))


def _auto_code(code_bytes: int, dim: int) -> IndexSpec:
    """Rotation and code of an `auto` index with codes of at most `code_bytes`, and one list."""
    spec = _exact(dim)
    if code_bytes >= spec.code_bytes:
        return spec
    if code_bytes >= dim:
        return replace(spec, code="sq8")
    corrected = code_bytes >= CORRECTED_FROM_BYTES
    pq_m = code_bytes - corrected
    # Fewer dimensions, coded finely, beat all of them coded coarsely (MiniLM, 20k titles: recall 0.888 and 0.879).
    dims = min(dim, pq_m * DIMS_PER_CODE_BYTE)
    if not corrected:  # plain ones share the dimensions out evenly
        pq_m = dims // DIMS_PER_CODE_BYTE if dims >= DIMS_PER_CODE_BYTE else 1
        dims = min(dims, pq_m * DIMS_PER_CODE_BYTE)
    return replace(spec, rotation="opq", rotation_dim=dims, code="pq", pq_m=pq_m, pq_bits=8, corrected=corrected)


def _affordable_refinement(bytes_per_vector: int, dim: int) -> RefineKind:
    """The best refinement for which a budget leaves room beside codes of a byte for four dimensions."""
    room = bytes_per_vector - max(1, dim // DIMS_PER_CODE_BYTE)
    kinds: tuple[RefineKind, ...] = ("fp16", "sq8")
    return next((kind for kind in kinds if room >= BYTES_PER_DIM[kind] * dim), "none")


def _shrunk(spec: IndexSpec, config: IndexConfig, rows: int) -> IndexSpec:
    """The spec, or the nearest one that a catalog of `rows` products can train."""
    training_rows = min(_most_training_rows(rows), config.training_rows or rows)
    fitting = spec if training_rows >= _needed_by_code(spec) else replace(_exact(spec.dim), lists=spec.lists)
    lists = min(fitting.lists, max(1, training_rows // MIN_TRAINING_ROWS_PER_LIST))
    if lists < fitting.lists:
        fitting = replace(fitting, lists=lists, hnsw_links=fitting.hnsw_links if lists >= HNSW_FROM_LISTS else 0)
    # Without codes, lists save nothing on so few products.
    return replace(fitting, lists=1) if fitting.code != spec.code and rows < EXACT_BELOW_ROWS else fitting


def _exact(dim: int) -> IndexSpec:
    return IndexSpec(dim=dim, rotation_dim=dim, lists=1, code="flat")


def _needed_training_rows(spec: IndexSpec) -> int:
    return max(MIN_TRAINING_ROWS_PER_LIST * spec.lists if spec.lists > 1 else 0, _needed_by_code(spec))


def _needed_by_code(spec: IndexSpec) -> int:
    return MIN_TRAINING_ROWS_PER_CODE * 2**spec.pq_bits if spec.code == "pq" else 0


def _most_training_rows(rows: int) -> int:
    """Of a catalog of `rows` products at most a tenth is held out."""
    return rows - rows // 10


def _lists_bytes(spec: IndexSpec) -> int:
    """Of the coarse quantizer: centroids, and the graph that finds them."""
    return spec.lists * ((2 if spec.corrected else 4) * spec.index_dim + 8 * spec.hnsw_links)


def _codec_bytes(spec: IndexSpec) -> int:
    """Of the coarse quantizer and the map in front of it."""
    return _lists_bytes(spec) + (4 * spec.dim * spec.index_dim if spec.rotation != "none" else 0)


def _encoder_bytes(spec: IndexSpec) -> int:
    """Of what encodes vectors (add.py), before the first one: the codec, and the centroids in several layouts."""
    return _codec_bytes(spec) + _CENTROID_COPIES * 4 * spec.lists * spec.index_dim


def _training_row_bytes(spec: IndexSpec) -> int:
    """Of one sampled vector: as float16, twice while it is read, and behind the rotation, with what k-means keeps."""
    return 4 * spec.dim + 4 * spec.rotation_dim + 256


def _trainable_rows(config: IndexConfig, spec: IndexSpec) -> int:
    """Sampled vectors that the memory budget holds."""
    return config.memory_budget_mb * _MB // _training_row_bytes(spec)
