"""The codec of the last run: whether this one may keep it, and what that means for the index to build."""

from __future__ import annotations

from typing import Any

from index_builder import storage
from index_builder.codec import CodecInfo
from index_builder.drift import CodecFit, ReusableCodec, find_reusable, outgrown, save_fit
from index_builder.memory import check_memory
from index_builder.planner import check_rows, plan_index
from index_builder.spec import IndexConfig, IndexSpec
from pipelines.shard_files import FinishedRun


def codec_config(index: IndexConfig) -> dict[str, Any]:
    """The part of the index section that shapes a codec."""
    names = ("factory", "bytes_per_vector", "refine", "training_rows", "memory_budget_mb", "seed", "device")
    return {name: getattr(index, name) for name in names}


def reusable_codec(
    work_uri: str, finished: FinishedRun | None, index: IndexConfig, encoder: str
) -> ReusableCodec | None:
    """The codec of the last finished run, where this one may keep it."""
    if not index.reuse_codec or finished is None or finished.encoder != encoder or not finished.build:
        return None
    return find_reusable(storage.join(work_uri, "builds", finished.build, "codec"), codec_config(index))


def check_size(index: IndexConfig, rows: int, dim: int, reusable: ReusableCodec | None) -> None:
    """Refuses what so many products, or an estimate of them, cannot train, unless a trained codec is there for them.

    Raises:
      SpecError: they are too few for `index.factory`, or the build would not fit into `index.memory_budget_mb`.
    """
    kept = _kept_spec(reusable, rows)
    if kept is None:
        check_rows(index, rows, dim)
    else:
        check_memory(index, kept, rows=rows, training_rows=0)


def spec_to_build(index: IndexConfig, rows: int, dim: int, reusable: ReusableCodec | None) -> IndexSpec:
    """What the codec at hand was trained to be, as long as the catalog has not outgrown it; else what is planned.

    Raises:
      SpecError: as `plan_index`.
    """
    kept = _kept_spec(reusable, rows)
    return plan_index(index, rows, dim) if kept is None else kept


def remember_fit(index: IndexConfig, codec: CodecInfo, fit: CodecFit, reusable: ReusableCodec | None) -> None:
    """Leaves beside a codec how it fits, for the next run to decide by."""
    if codec.spec.exact:
        return
    kept = reusable is not None and reusable.codec.fingerprint == codec.fingerprint
    save_fit(codec, codec_config(index), reusable.trained if kept and reusable is not None else fit, fit)


def _kept_spec(reusable: ReusableCodec | None, rows: int) -> IndexSpec | None:
    return None if reusable is None or outgrown(reusable, rows) else reusable.codec.spec
