"""Chooses the cheapest index whose recall reaches the target, by measuring on held-out queries before it is built.

Where the config leaves it open (`index.factory: auto`, no `bytes_per_vector`), the planner names candidates, cheapest
first. A light codec of each, trained on few vectors with few lists, encodes the queries' neighbours; the first whose
codes bring enough of them back is trained in earnest, and measured again in the same way. Should it fall short, its
candidates are re-ranked: a file of its own, which needs no other training. What was chosen stays with the codec from
run to run while it measures well.
"""

from __future__ import annotations

import logging
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, replace

from index_builder.codec import CodecInfo, build_codec, open_codec
from index_builder.drift import shaping_queries
from index_builder.held_out import HeldOut
from index_builder.planner import BYTES_PER_DIM, ID_BYTES, Candidate, is_open
from index_builder.reachable import Reachable, reachable, refined_recall
from index_builder.sampling import ShardSample, read_training
from index_builder.spec import IndexConfig, RefineKind

log = logging.getLogger(__name__)

LIGHT_ROWS = 8192
LIGHT_LISTS = 256
LIGHT_QUERIES = 200
MARGIN = 0.005
"""Recall that an estimate before the build has to lie above the target: of 64 neighbours alone it is a little high."""
KEPT_MARGIN = 0.01
"""Recall by which a choice of an earlier run may fall short of the target before another is made."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Settled:
    """The refinement of an index with a trained codec.

    Attributes:
        refine: The kind.
        reason: Why, in words; "" where nothing was left open.
        reach: What the index can reach by codes alone; None for an exact one.
    """

    refine: RefineKind
    reason: str = ""
    reach: Reachable | None = None


def choose_candidate(
    config: IndexConfig, candidates: Sequence[Candidate], held: HeldOut, samples: Sequence[ShardSample], rows: int
) -> Candidate:
    """The cheapest candidate whose light codec is estimated to reach the target, else the dearest.

    Recall rises with the bytes, so that a few of the candidates need to be tried: those by which an ordered list is
    halved. Candidates that a server has no room for (`index.server_memory_mb`) are left out; the first never is.
    """
    fitting = [each for number, each in enumerate(candidates) if not number or fits(config, each, rows)]
    if not len(held.queries.rows):
        return fitting[0]
    sample, held = read_training(samples, limit=LIGHT_ROWS), held.first(LIGHT_QUERIES)

    def enough(candidate: Candidate) -> bool:
        if candidate.refine != "none":
            estimate = refined_recall(held, samples, candidate.refine, config.k)
        else:
            spec = candidate.spec
            light = replace(spec, lists=min(spec.lists, LIGHT_LISTS), hnsw_links=0)
            codec = build_codec(sample, light, seed=config.seed, queries=shaping_queries(config, light))
            estimate = reachable(codec, held, config.k, rows).by_codes
        log.info("%s: recall %.4f estimated, before it is trained", named(candidate), estimate)
        return estimate >= config.target_recall + MARGIN

    # The dearest is not tried: it is what is left.
    return fitting[bisect_left(fitting[:-1], True, key=enough)]


def settle(
    config: IndexConfig,
    codec: CodecInfo,
    planned: RefineKind,
    held: HeldOut,
    samples: Sequence[ShardSample],
    rows: int,
    *,
    earlier: RefineKind | None = None,
) -> Settled:
    """The refinement of an index: the planned one, or more where the trained codec does not reach the target with it.

    Args:
        planned: By the config, or of the candidate that was chosen.
        earlier: What an earlier run chose for the same codec: kept while it measures well.
    """
    if codec.spec.exact:
        return Settled(refine=planned)
    reach = reachable(open_codec(codec), held, config.k, rows)

    def ceiling(kind: RefineKind) -> float:
        return reach.by_codes if kind == "none" else refined_recall(held, samples, kind, config.k)

    if not is_open(config):
        return Settled(refine=planned, reach=reach)
    kinds: list[RefineKind] = ["none", "sq8", "fp16"]
    first = planned if earlier is None else earlier
    kinds = kinds[kinds.index(first) :]
    enough = config.target_recall - (KEPT_MARGIN if earlier is not None else 0.0)
    tried = []
    best, best_ceiling = first, -1.0
    for kind in kinds:
        if kind != first and (
            BYTES_PER_DIM[kind] * codec.spec.dim <= codec.spec.code_bytes
            or not fits(config, Candidate(spec=codec.spec, refine=kind), rows)
        ):
            continue
        found = ceiling(kind)
        tried.append(f"{_named(kind)} {found:.4f}")
        if found > best_ceiling:
            best, best_ceiling = kind, found
        if found >= enough:
            break
    kept = "kept from the last run; " if best == earlier else ""
    reason = (
        f"{_named(best)}: {kept}of the neighbours of held-out queries the codes find, with all lists probed, "
        f"{', '.join(tried)}; index.target_recall is {config.target_recall:g}"
    )
    return Settled(refine=best, reason=reason, reach=reach)


def fits(config: IndexConfig, candidate: Candidate, rows: int) -> bool:
    """Whether a server's memory, `index.server_memory_mb`, has room for an index of `rows` products."""
    return serving_bytes(candidate, rows) <= config.server_memory_mb * 1_000_000


def serving_bytes(candidate: Candidate, rows: int) -> int:
    """Bytes of the codes, ids and refine codes of `rows` products."""
    return rows * (candidate.bytes_per_vector + ID_BYTES)


def named(candidate: Candidate) -> str:
    """A candidate for people, such as `IVF1024,SQ8` or `OPQ32_128,IVF1024,PQ32x8 re-ranked by sq8`."""
    return candidate.spec.factory + ("" if candidate.refine == "none" else f" {_named(candidate.refine)}")


def _named(kind: RefineKind) -> str:
    return "codes alone" if kind == "none" else f"re-ranked by {kind}"
