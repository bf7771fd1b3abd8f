"""What passes between the index stages: descriptors of what stands and of what is to be done, never vectors."""

from __future__ import annotations

from dataclasses import dataclass

from index_builder.codec import CodecInfo
from index_builder.drift import CodecFit
from index_builder.embedding_shards import NumberedShard
from index_builder.index_shards import IndexShard
from index_builder.refine import StoredKind
from index_builder.spec import IndexSpec, RefineKind
from index_builder.tuning import SearchChoice, SearchMeasurement
from pipelines.numbering import Numbering
from pipelines.outcome import Totals


@dataclass(frozen=True, kw_only=True, slots=True)
class BuildPlan:
    """What the numbering decides for the stages after it.

    Attributes:
      numbering: the products and their rows.
      spec: the index to build.
      refine: what its candidates are re-ranked from.
      totals: the night's products in numbers.
      shard_keys: the catalog shards' keys, in plan order.
    """

    numbering: Numbering
    spec: IndexSpec
    refine: RefineKind
    totals: Totals
    shard_keys: tuple[str, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class AddTask:
    """Embedding shards that one worker adds to one index shard of a serving shard."""

    serving_shard: int
    number: int
    shards: tuple[NumberedShard, ...]

    @property
    def name(self) -> str:
        """Names the task's index shard."""
        return f"{self.serving_shard:05d}-{self.number:05d}"


@dataclass(frozen=True, kw_only=True, slots=True)
class RefineTask:
    """Embedding shards whose vectors go into one refine file: those of one serving shard."""

    serving_shard: int
    kind: StoredKind
    shards: tuple[NumberedShard, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class FinishedBuild:
    """A verified index, not published yet.

    Attributes:
      plan: what was built.
      codec: the trained codec.
      serving_shards: the index files, by their rows.
      refine_shards: the refine files, by their rows; none without refinement.
      measured: recall and latency for each search setting that was tried.
      chosen: the setting that the index is published with.
      queries: held-out products that recall was measured with.
      fit: how well the codec fits the catalog.
      codec_reason: why the codec was trained or kept.
      resident_bytes: memory of a process that opened the files and answered those queries.
    """

    plan: BuildPlan
    codec: CodecInfo
    serving_shards: tuple[IndexShard, ...]
    refine_shards: tuple[IndexShard, ...]
    measured: tuple[SearchMeasurement, ...]
    chosen: SearchChoice
    queries: int
    fit: CodecFit
    codec_reason: str
    resident_bytes: int
