"""Decides whether an index gets a second file to re-rank from (refine.py), within the budget of bytes a product."""

from __future__ import annotations

import logging

from index_builder.spec import IndexConfig, IndexSpec, RefineKind

log = logging.getLogger(__name__)

BYTES_PER_DIM: dict[RefineKind, int] = {"none": 0, "sq8": 1, "fp16": 2}
DIMS_PER_CODE_BYTE = 4
"""Under a budget, codes get at least a byte for so many dimensions before refinement gets any."""

CANDIDATE_BYTES = 1000
"""Code bytes that a search compares in the time that it takes to keep, fetch and sort one more candidate (PQ32, 128
dimensions, one core: 0.5 us)."""


def plan_refinement(config: IndexConfig, spec: IndexSpec) -> RefineKind:
    """The refinement to build for an index.

    `auto` refines where `bytes_per_vector` has room for it, and only an index that was planned within that budget too
    (`factory: auto`). What keeps vectors as exactly as the refinement would is not refined.
    """
    kind: RefineKind
    if config.refine == "auto":
        kind = affordable_refinement(config.bytes_per_vector, spec.dim) if config.factory == "auto" else "none"
    else:
        kind = config.refine
    if kind != "none" and BYTES_PER_DIM[kind] * spec.dim <= spec.code_bytes:
        log.info("%s holds vectors as exactly as %s would: no refinement", spec.factory, kind)
        return "none"
    return kind


def code_budget(config: IndexConfig, dim: int) -> int:
    """Of `bytes_per_vector` what is left for the index's own codes, where the plan is `auto`."""
    if config.refine != "auto" or config.bytes_per_vector >= 4 * dim:
        return config.bytes_per_vector  # refinement comes on top, or vectors fit as they are
    return config.bytes_per_vector - BYTES_PER_DIM[affordable_refinement(config.bytes_per_vector, dim)] * dim


def affordable_refinement(bytes_per_vector: int, dim: int) -> RefineKind:
    """The best refinement for which a budget leaves room beside codes of a byte for four dimensions."""
    room = bytes_per_vector - max(1, dim // DIMS_PER_CODE_BYTE)
    kinds: tuple[RefineKind, ...] = ("fp16", "sq8")
    return next((kind for kind in kinds if room >= BYTES_PER_DIM[kind] * dim), "none")


def probes_per_factor(spec: IndexSpec, kind: RefineKind, rows: int, k: int) -> float:
    """Lists that could be probed in the time that re-ranking k candidates takes.

    Args:
        spec: the index.
        kind: what is re-ranked from.
        rows: products, N.
        k: neighbours wanted.
    """
    if kind == "none":
        return 0.0
    list_bytes = max(1.0, rows / spec.lists * spec.code_bytes)
    return k * (CANDIDATE_BYTES + BYTES_PER_DIM[kind] * spec.dim) / list_bytes
