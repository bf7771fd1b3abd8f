"""The explanation says why an index is built as it is: a line for each choice, for the manifest and `--plan`."""

from __future__ import annotations

from index_builder import planner
from index_builder.planner import BYTES_PER_DIM, estimate_memory, plan_refinement, plan_sample, rows_per_add
from index_builder.spec import IndexConfig, IndexSpec, RefineKind


def explain_index(config: IndexConfig, spec: IndexSpec, rows: int, refine: RefineKind | None = None) -> tuple[str, ...]:
    """One line for each choice that `spec` was planned by for so many rows, in the order of the factory string.

    `refine`: what was chosen to stand beside it; None: what the config asks for.
    """
    lines = [_whole(config, spec, rows)]
    if not spec.exact:
        if spec.rotation != "none":
            lines.append(_rotation(config, spec))
        lines += [_lists(config, spec, rows), _quantizer(spec), _code(config, spec)]
    kind = plan_refinement(config, spec) if refine is None else refine
    if kind != "none":
        lines.append(
            f"refined: {BYTES_PER_DIM[kind] * spec.dim:,} bytes a product more ({kind}) to re-rank candidates from; "
            + ("as index.refine asks" if config.refine != "auto" else _why_refined(config))
        )
    sample = plan_sample(config, spec, rows)
    lines.append(_shards(config, spec, rows))
    if not spec.exact:
        lines.append(f"trained on {min(rows, sample.training_rows):,} products, drawn by the hash of their ids")
    training_rows = min(rows, sample.training_rows)
    memory = estimate_memory(config, spec, rows=rows, training_rows=training_rows, refine=kind)
    mapped = "mapped from disk" if spec.memory_mapped else "held in memory"
    lines.append(
        f"memory: training {_mb(memory.training)}, an add task {_mb(memory.adding)}, merging {_mb(memory.merging)}"
        + (f", laying out {_mb(memory.laying_out)}" if memory.laying_out else "")
        + f" (budget {config.memory_budget_mb:,} MB); a server {_mb(memory.serving)}, {mapped}"
    )
    return tuple(lines)


def _whole(config: IndexConfig, spec: IndexSpec, rows: int) -> str:
    if config.factory != "auto":
        if spec == IndexSpec.parse(config.factory, spec.dim):
            return f"{spec.factory}: as index.factory asks"
        return f"{spec.factory}: {rows:,} products cannot train {config.factory}, which index.factory asks for"
    if spec.exact:
        return (
            f"Flat: {rows:,} products are fewer than {planner.EXACT_BELOW_ROWS:,}; comparing with all of them takes "
            "well below a millisecond and misses nothing"
        )
    return f"{spec.factory}: planned from {rows:,} products of {spec.dim} dimensions"


def _rotation(config: IndexConfig, spec: IndexSpec) -> str:
    kept = f"{spec.dim}{'' if spec.rotation_dim == spec.dim else f' to {spec.rotation_dim}'} dimensions"
    if spec.corrected:
        seen = "the products' own residuals" if config.queries_uri is None else "the queries of index.queries_uri"
        return (
            f"map of {kept}: stretched by {seen}, so that errors count as they do in scores; dealt out so that each "
            f"sub-quantizer gets an even share of the bits, at most {spec.dims_per_code} dimensions each"
        )
    return {
        "opq": f"rotation of {kept}: principal axes, dealt out so that each sub-quantizer gets an even share of "
        f"variance, {spec.dims_per_code} dimensions each",
        "pca": f"rotation of {kept}: principal axes, largest first",
        "pcar": f"rotation of {kept}: principal axes, turned at random to even out their variance",
        "rr": f"rotation of {kept}: at random, to even out their variance",
    }[spec.rotation]


def _lists(config: IndexConfig, spec: IndexSpec, rows: int) -> str:
    if spec.lists == 1:
        return "1 inverted list: every search compares with all codes"
    why = "about 4 * sqrt(products), a power of two" if config.factory == "auto" else "as asked"
    return f"{spec.lists:,} inverted lists, {rows / spec.lists:,.0f} products each on average: {why}"


def _quantizer(spec: IndexSpec) -> str:
    if spec.hnsw_links:
        return (
            f"a query finds its lists through an HNSW graph of {spec.hnsw_links} links: from "
            f"{planner.HNSW_FROM_LISTS:,} lists on cheaper than comparing with all centroids"
        )
    return "a query finds its lists by comparing with all centroids"


def _code(config: IndexConfig, spec: IndexSpec) -> str:
    why = f"index.bytes_per_vector is {config.bytes_per_vector}" if config.factory == "auto" else "as asked"
    if config.factory == "auto" and config.bytes_per_vector is None:
        why = f"index.target_recall {config.target_recall:g} decides, by measuring"
    if config.factory == "auto" and spec.corrected:
        why += ", and of the kinds of code measured at such sizes this one finds the most"
    name = {
        "flat": "vectors as they are, float32",
        "sq8": "one byte a dimension",
        "rabitq": f"{spec.rabitq_bits} bits a dimension (RaBitQ)",
        "pq": f"{spec.pq_m} sub-quantizers of {spec.pq_bits} bits"
        + (", and one byte that corrects the score" if spec.corrected else ""),
    }[spec.code]
    layout = "" if spec.memory_mapped else ", laid out for SIMD (FastScan)"
    return f"{spec.code_bytes:,} bytes a code: {name}{layout}; {why}"


def _why_refined(config: IndexConfig) -> str:
    if config.bytes_per_vector is None:
        return f"index.target_recall {config.target_recall:g} needs it"
    return "index.bytes_per_vector has room for it"


def _shards(config: IndexConfig, spec: IndexSpec, rows: int) -> str:
    size = rows * (spec.code_bytes + 8) / config.serving_shards
    return (
        f"{serving_shards(config.serving_shards)} of about {_mb(size)}, "
        f"added {min(rows, rows_per_add(config, spec)):,} products at a time"
    )


def serving_shards(count: int) -> str:
    """`1 serving shard`, `2 serving shards`."""
    return f"{count} serving shard" + ("" if count == 1 else "s")


def _mb(size: float) -> str:
    return f"{size / 1e6:,.1f} MB" if size < 1e7 else f"{size / 1e6:,.0f} MB"
