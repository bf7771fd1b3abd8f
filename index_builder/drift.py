"""A codec that was trained for an earlier catalog is kept while it fits today's, and why is said.

Training anew each run costs little, but moves every code; a codec that stays keeps the answers to the same query
stable from run to run, and lets two versions be compared list by list. It is kept while all of these hold:

- the catalog has at most twice, and at least half, the products it was trained for (the lists would be too long or
  too short);
- the quantization error of today's held-out products is at most 1.05 times what it was;
- today's sample is spread over the lists at most 1.25 times as unevenly as the catalog was;
- the recall last measured with it is at most 0.01 below the first.

Legend: `n` vectors, `D` dimension, `L` inverted lists.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from index_builder import storage
from index_builder.add import BlockEncoder
from index_builder.blocks import map_blocks, row_blocks
from index_builder.codec import CodecInfo, copy_codec, load_codec, open_codec, train_codec
from index_builder.errors import CodecMismatchError, IndexBuilderError, MissingFileError
from index_builder.faiss_files import ivf_of, list_sizes, opened_indexes
from index_builder.planner import plan_sample
from index_builder.reachable import Reachable
from index_builder.records import read_record
from index_builder.sampling import ShardSample, read_queries, read_query_vectors, read_training
from index_builder.spec import IndexConfig, IndexSpec, RefineKind

log = logging.getLogger(__name__)

MOST_GROWTH = 2.0
MOST_ERROR = 1.05
MOST_IMBALANCE = 1.25
MOST_RECALL_LOST = 0.01
MEASURED_ROWS = 50_000
MEASURED_QUERIES = 2000


@dataclass(frozen=True, kw_only=True, slots=True)
class CodecFit:
    """How well a codec fits a catalog.

    Attributes:
        products: of the catalog.
        quantization_error: mean squared distance of held-out vectors to what their codes stand for, over their mean
            squared length. None for a code that FAISS cannot turn back.
        list_imbalance: L times the sum of squares of the lists' shares of the products: 1 is even.
        recall: as measured with the index; None before it is.
    """

    products: int
    quantization_error: float | None
    list_imbalance: float
    recall: float | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class _SavedFit:
    """What `fit.json` holds: what of the config the codec was trained for, its fits, and the refinement beside it."""

    asked: dict[str, Any]
    trained: CodecFit
    latest: CodecFit
    refine: RefineKind | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class ReusableCodec:
    """The codec of an earlier build, with the fit it had to the catalog that it was trained for and to the last one,
    and the refinement that was built beside it; None where that is not known.
    """

    codec: CodecInfo
    trained: CodecFit
    latest: CodecFit
    refine: RefineKind | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class CodecChoice:
    """The codec of a build, whether it is that of the last one, and why, in words.

    `refine`: the refinement beside it, where one was chosen; `reasons`: why, a line each; `reach`: the recall that
    the codec can reach, None for an exact index, or before it is known.
    """

    codec: CodecInfo
    kept: bool
    reason: str
    refine: RefineKind = "none"
    reasons: tuple[str, ...] = ()
    reach: Reachable | None = None


def choose_codec(
    samples: Sequence[ShardSample],
    spec: IndexSpec,
    out_uri: str,
    *,
    config: IndexConfig,
    products: int,
    reusable: ReusableCodec | None,
    choose: Callable[[], IndexSpec] | None = None,
) -> CodecChoice:
    """The codec of the last build while it is whole and fits, else one trained on the sample; TrainingError as
    `train_codec`.

    `choose` gives the spec in place of `spec` where a codec is to be trained.
    """
    why = "there is no earlier one for this config" if config.reuse_codec else "index.reuse_codec is false"
    if reusable is not None:
        try:
            why = why_not(reusable, estimate_fit(reusable.codec, samples, products))
        except (CodecMismatchError, MissingFileError) as error:
            log.warning("the codec of the last run is not kept: %s", error)
            why = "that of the last run was damaged"
        if not why:
            reason = "kept from the last run: it fits today's products"
            return CodecChoice(codec=copy_codec(reusable.codec, out_uri), kept=True, reason=reason)
    spec = spec if choose is None else choose()
    rows = plan_sample(config, spec, products).training_rows
    queries = shaping_queries(config, spec)
    codec = train_codec(
        samples, spec, out_uri, seed=config.seed, training_rows=rows, device=config.device, queries=queries
    )
    if spec.exact:
        reason = f"none: an exact index ({spec.factory}) holds the vectors themselves, nothing is trained"
        return CodecChoice(codec=codec, kept=False, reason=reason)
    return CodecChoice(codec=codec, kept=False, reason=f"trained: {why}")


def shaping_queries(config: IndexConfig, spec: IndexSpec) -> np.ndarray | None:
    """The queries that a corrected code is shaped for, float32 [Q, D]: those that recall is not measured with, if they
    are enough.
    """
    if config.queries_uri is None or not spec.corrected:
        return None
    vectors = read_query_vectors(config.queries_uri, spec.dim).vectors
    others = vectors[config.verify_queries :]
    return others if len(others) >= spec.dim else vectors


def measure_fit(codec: CodecInfo, index_uris: Sequence[str], samples: Sequence[ShardSample], recall: float) -> CodecFit:
    """The fit of a codec to the catalog that an index was built of."""
    with opened_indexes(index_uris) as indexes:
        sizes = list_sizes([ivf_of(index) for index in indexes]).sum(axis=0)
    return CodecFit(
        products=int(sizes.sum()),
        quantization_error=_quantization_error(BlockEncoder(open_codec(codec)), samples),
        list_imbalance=round(list_imbalance(sizes), 4),
        recall=recall,
    )


def estimate_fit(codec: CodecInfo, samples: Sequence[ShardSample], products: int) -> CodecFit:
    """The fit that a codec would have to a catalog of so many products, before the index is built."""
    encoder = BlockEncoder(open_codec(codec))
    sample = read_training(samples, limit=MEASURED_ROWS)
    sizes = np.zeros(codec.spec.lists, dtype=np.int64)
    for lists in map_blocks(lambda block: encoder.lists(sample[block]), row_blocks(len(sample))):
        sizes += np.bincount(lists, minlength=len(sizes))
    # A sample of n vectors is less even than what it is drawn from, by chance alone: by (L - 1) / n.
    chance = (len(sizes) - 1) / max(1, len(sample))
    return CodecFit(
        products=products,
        quantization_error=_quantization_error(encoder, samples),
        list_imbalance=round(max(1.0, list_imbalance(sizes) - chance), 4),
    )


def _quantization_error(encoder: BlockEncoder, samples: Sequence[ShardSample]) -> float | None:
    vectors = read_queries(samples, limit=MEASURED_QUERIES).vectors
    if not len(vectors):
        return None
    try:
        decoded = encoder.decode(encoder.encode(vectors))
    except RuntimeError:
        return None
    error = ((vectors - decoded) ** 2).sum(axis=1).mean() / (vectors**2).sum(axis=1).mean()
    return round(float(error), 6)


def list_imbalance(sizes: np.ndarray) -> float:
    """How unevenly int64 [L] rows are spread over lists: 1 for evenly, L for all in one (FAISS's imbalance factor)."""
    rows = int(sizes.sum())
    return float(len(sizes) * (sizes.astype(np.float64) ** 2).sum() / rows**2) if rows else 1.0


def why_not(reusable: ReusableCodec, today: CodecFit) -> str:
    """Why the codec does not fit today's catalog, in words; empty where it does."""
    trained, latest = reusable.trained, reusable.latest
    if reason := outgrown(reusable, today.products):
        return reason
    before, now = trained.quantization_error, today.quantization_error
    if before is not None and now is not None and now > MOST_ERROR * before:
        return f"the quantization error of today's products is {now:.4f}, it was {before:.4f}"
    if today.list_imbalance > MOST_IMBALANCE * trained.list_imbalance:
        return (
            f"today's products are spread over the lists more unevenly: imbalance {today.list_imbalance:.2f}, it was "
            f"{trained.list_imbalance:.2f}"
        )
    first, last = trained.recall, latest.recall
    if first is not None and last is not None and last < first - MOST_RECALL_LOST:
        return f"recall fell from {first:.4f} to {last:.4f} in the last run"
    return ""


def outgrown(reusable: ReusableCodec, products: int) -> str:
    """Why the size of the catalog asks for another codec; empty where it does not."""
    before = reusable.trained.products
    if before / MOST_GROWTH <= products <= before * MOST_GROWTH:
        return ""
    return f"the catalog has {products:,} products, it was trained for {before:,}"


def save_fit(
    codec: CodecInfo,
    asked: dict[str, Any],
    trained: CodecFit,
    latest: CodecFit,
    refine: RefineKind | None = None,
) -> None:
    """Remembers the fit of a codec beside it, what of the config it was trained for, and what stands beside it."""
    fit = {"asked": asked, "trained": asdict(trained), "latest": asdict(latest), "refine": refine}
    storage.write_json_atomic(storage.join(codec.uri, "fit.json"), fit)


def find_reusable(codec_uri: str, asked: dict[str, Any]) -> ReusableCodec | None:
    """The codec in a folder with its fit; None where there is none, it was trained for another config, or its
    description is damaged. Whether its bytes are those that were made, `choose_codec` looks.
    """
    known = read_record(storage.join(codec_uri, "fit.json"), _SavedFit)
    if known is None or known.asked != asked:
        return None
    try:
        codec = load_codec(codec_uri)
    except (IndexBuilderError, KeyError, TypeError, ValueError) as error:
        log.warning("the codec of the last run is not kept: %s", error)
        return None
    return ReusableCodec(codec=codec, trained=known.trained, latest=known.latest, refine=known.refine)
