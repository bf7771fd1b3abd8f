"""What a night comes to: the totals of its products, the gates they pass or fail, and the outcome that is reported."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass
from typing import Literal

from index_builder import storage
from index_builder.manifest import Manifest
from pipelines.config.schema import GatesConfig
from pipelines.run_record import RunRecord
from pipelines.shard_files import ShardSummary

Status = Literal["published", "unchanged", "held"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Totals:
    """A night's products in numbers, over all shards.

    Attributes:
      rows_in: rows read from the catalog.
      products: rows of the index.
      embedded, carried_over: how the shards' vectors came to be (duplicates included: they are found later). What an
        earlier, finished run embedded in a shard that stands is carried over.
      degraded: products indexed without a picture or column that could not be used.
      rejected: rows that are not in the index, duplicates included.
      pictures_unchanged: pictures that were not read again: the place they stand at says that they are the same.
      texts_cut: texts longer than the text tower's limit.
      by_reason: dead letters by outcome and reason.
      shards: catalog shards.
    """

    rows_in: int
    products: int
    embedded: int
    carried_over: int
    degraded: int
    rejected: int
    pictures_unchanged: int
    texts_cut: int
    by_reason: dict[str, int]
    shards: int

    @property
    def rejected_share(self) -> float:
        """Rejected rows over all rows, 0 for an empty catalog."""
        return self.rejected / self.rows_in if self.rows_in else 0.0

    @property
    def degraded_share(self) -> float:
        """Degraded products over all products, 0 for an empty index."""
        return self.degraded / self.products if self.products else 0.0

    def reasons(self) -> str:
        """Dead letters by outcome and reason, in one line; empty where there are none."""
        return ", ".join(f"{reason} {count}" for reason, count in self.by_reason.items())


def total(
    summaries: Sequence[ShardSummary], *, products: int, duplicates: int, earlier: Collection[str] = ()
) -> Totals:
    """Adds up the shards' summaries.

    Args:
      summaries: one a shard.
      products: rows of the index after numbering.
      duplicates: rows that numbering dropped.
      earlier: keys of shards that an earlier, finished run made.
    """
    tonight = [summary for summary in summaries if summary.key not in earlier]
    embedded = sum(summary.embedded for summary in tonight)
    by_reason: dict[str, int] = {}
    for summary in summaries:
        for reason, count in summary.by_reason.items():
            by_reason[reason] = by_reason.get(reason, 0) + count
    if duplicates:
        by_reason["rejected: duplicate_id"] = duplicates
    return Totals(
        rows_in=sum(summary.rows_in for summary in summaries),
        products=products,
        embedded=embedded,
        carried_over=sum(summary.products for summary in summaries) - embedded,
        degraded=sum(summary.degraded for summary in summaries),
        rejected=sum(summary.rejected for summary in summaries) + duplicates,
        pictures_unchanged=sum(summary.pictures_unchanged for summary in tonight),
        texts_cut=sum(summary.texts_cut for summary in summaries),
        by_reason=dict(sorted(by_reason.items())),
        shards=len(summaries),
    )


def failed_gates(gates: GatesConfig, totals: Totals, recall: float, previous: Manifest | None) -> list[str]:
    """The gates that a version does not pass, each in words with the limit and what was found.

    Args:
      gates: the limits.
      totals: tonight's products.
      recall: measured recall of the index.
      previous: the version that is published now; without one, the change of rows is no gate.
    """
    failed = []
    if gates.min_recall is not None and recall < gates.min_recall:
        failed.append(f"gates.min_recall: recall is {recall:.4f}, at least {gates.min_recall} is asked for")
    if totals.rejected_share > gates.max_rejected_share:
        failed.append(
            f"gates.max_rejected_share: {totals.rejected:,} of {totals.rows_in:,} rows "
            f"({totals.rejected_share:.1%}) were rejected, at most {gates.max_rejected_share:.1%} are allowed"
        )
    if gates.max_degraded_share is not None and totals.degraded_share > gates.max_degraded_share:
        failed.append(
            f"gates.max_degraded_share: {totals.degraded:,} of {totals.products:,} products "
            f"({totals.degraded_share:.1%}) were degraded, at most {gates.max_degraded_share:.1%} are allowed"
        )
    if gates.max_row_change is not None and previous is not None and previous.catalog.products:
        change = abs(totals.products - previous.catalog.products) / previous.catalog.products
        if change > gates.max_row_change:
            failed.append(
                f"gates.max_row_change: {previous.catalog.products:,} products became {totals.products:,} "
                f"({change:.1%}), at most {gates.max_row_change:.1%} are allowed"
            )
    return failed


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """What a run came to.

    Attributes:
      status: `published`; `unchanged`: the published version is this very one; `held`: written, but a gate failed.
      version: the version's id.
      uri: where it lies.
      totals: the night's products.
      failed_gates: why it is held, in words.
      index_bytes: bytes of the index files.
      recall: measured recall k@k against exact search, over `recall_queries` of `recall_over`.
      recall_k, recall_queries, recall_over: see there.
      nprobe: inverted lists that a search probes.
      refine_factor: candidates re-ranked for each neighbour; 0: none.
      latency_ms: median time of one query with it, asked alone.
      factory: the index as a FAISS factory string.
      serving_shards: files it is split into.
      previous_version: what was published before, or "".
    """

    status: Status
    version: str
    uri: str
    totals: Totals
    failed_gates: list[str]
    index_bytes: int
    recall: float
    recall_k: int
    recall_queries: int
    nprobe: int
    latency_ms: float
    factory: str
    serving_shards: int
    previous_version: str = ""
    refine_factor: int = 0
    recall_over: str = "held-out products"


def write_outcome(record: RunRecord, outcome: Outcome) -> None:
    """Leaves the outcome in the run's folder, for the process that submitted the run."""
    storage.write_json_atomic(storage.join(record.uri, "outcome.json"), asdict(outcome))


def read_outcome(record: RunRecord) -> Outcome:
    """The outcome that the pipeline left."""
    values = storage.read_json(storage.join(record.uri, "outcome.json"))
    return Outcome(**(values | {"totals": Totals(**values["totals"])}))
