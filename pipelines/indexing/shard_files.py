"""The files of one embedded catalog shard, and the summary that says they are complete.

Under `<work uri>/embeddings/<encoder fingerprint>/` a shard named by its key leaves

    <key>.parquet            the embedding shard: product_id, vector, content fingerprint, modalities
    <key>.columns.arrow      display and filter columns, in the same order
    <key>.rejected.parquet   dead letters
    <key>.pictures.arrow     versions of the pictures that were fetched, so that they can be asked for again
    <key>.json               the summary, written last: a shard is complete if and only if it exists

The key is the content that the shard was made from, so a rerun finds what an earlier run finished.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any

from index_builder import storage

SHARD_FORMAT = 1
"""Raised when a change of the code makes other vectors or other columns from the same catalog."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardSummary:
    """What became of one catalog shard.

    Attributes:
      position: the shard's place in the plan.
      key: names its files.
      rows_in: rows read from the catalog.
      products: rows of the embedding shard.
      embedded, carried_over: how those got their vectors.
      degraded: products among them whose picture could not be used.
      without_picture: products among them that have no picture (and never named one, or lost it).
      pictures_unchanged: pictures that were not read again, since the place they stand at says that they are the same.
      texts_cut: distinct texts that were longer than the text tower's limit, and cut.
      rejected: products that are in the dead letters and not in the index.
      by_reason: dead letters by outcome and reason, as "rejected: empty_product".
      revisable: whether another night could find other pictures for the same catalog rows: pictures fetched from
        outside the catalog file, or ones that failed.
      seconds: busy seconds by step; steps overlap, so their sum exceeds `wall`.
    """

    position: int
    key: str
    rows_in: int = 0
    products: int = 0
    embedded: int = 0
    carried_over: int = 0
    degraded: int = 0
    without_picture: int = 0
    pictures_unchanged: int = 0
    texts_cut: int = 0
    rejected: int = 0
    by_reason: dict[str, int] = field(default_factory=dict)
    revisable: bool = False
    seconds: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardFiles:
    """Where a shard's files lie."""

    folder: str
    key: str

    @property
    def embeddings(self) -> str:
        """The embedding shard."""
        return storage.join(self.folder, f"{self.key}.parquet")

    @property
    def columns(self) -> str:
        """Display and filter columns."""
        return storage.join(self.folder, f"{self.key}.columns.arrow")

    @property
    def rejected(self) -> str:
        """Dead letters."""
        return storage.join(self.folder, f"{self.key}.rejected.parquet")

    @property
    def pictures(self) -> str:
        """Versions of the fetched pictures."""
        return storage.join(self.folder, f"{self.key}.pictures.arrow")

    @property
    def summary(self) -> str:
        """The summary, which declares the shard complete."""
        return storage.join(self.folder, f"{self.key}.json")

    @classmethod
    def of_embeddings(cls, uri: str) -> ShardFiles:
        """The files beside an embedding shard."""
        folder, _, name = uri.rpartition("/")
        return cls(folder=folder, key=name.removesuffix(".parquet"))

    def read_summary(self, position: int) -> ShardSummary | None:
        """The summary of a complete shard, None where it is not complete.

        Args:
          position: the shard's place in today's plan, which need not be the one it was made at.
        """
        try:
            stored = storage.read_json(self.summary)
        except FileNotFoundError:
            return None
        return ShardSummary(**(stored | {"position": position}))

    def write_summary(self, summary: ShardSummary) -> None:
        """Declares the shard complete; called after its other files are in place."""
        storage.write_json_atomic(self.summary, asdict(summary))


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardTask:
    """One shard to make, unless it is complete.

    Attributes:
      position: the shard's place in the plan.
      files: where its outputs go.
      rows: what it is made from, as its maker reads it.
    """

    position: int
    files: ShardFiles
    rows: Any


def shard_key(content_key: str, settings: Mapping[str, Any]) -> str:
    """The name of a shard's files: 32 hex digits over what it reads and the settings that shape its outputs.

    Args:
      content_key: identity of the catalog rows (`CatalogShard.key`).
      settings: plain values of the settings that the reading of a row depends on.
    """
    text = json.dumps([SHARD_FORMAT, content_key, settings], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def revision_key(key: str, after_run: str) -> str:
    """The name under which a shard is embedded anew after a finished run."""
    return f"{base_key(key)}-{hashlib.sha256(after_run.encode()).hexdigest()[:8]}"


def base_key(key: str) -> str:
    """A shard's key without the night of its revision."""
    return key.partition("-")[0]


@dataclass(frozen=True, kw_only=True)
class FinishedRun:
    """The last run that came to its end on a work URI, whether a gate held its version back or not.

    Attributes:
      name: the run's name.
      shards: keys of its shards, in plan order.
      encoder: fingerprint of its encoder, which names the folder that those shards lie in.
      catalog_uri: what they were made from, for people.
      build: name of its folder in `builds`, with the codec that the next run may keep.
    """

    name: str
    shards: tuple[str, ...]
    encoder: str
    catalog_uri: str = ""
    build: str = ""

    def key_of(self, base: str) -> str | None:
        """The key under which this run made the shard, None if it had none of this base key."""
        return self._by_base.get(base)

    @cached_property
    def _by_base(self) -> dict[str, str]:
        return {base_key(key): key for key in self.shards}


def read_finished_run(work_uri: str) -> FinishedRun | None:
    """The last finished run, None before the first one."""
    try:
        values = storage.read_json(storage.join(work_uri, "finished_run.json"))
    except FileNotFoundError:
        return None
    return FinishedRun(**(values | {"shards": tuple(values["shards"])}))


def write_finished_run(work_uri: str, run: FinishedRun) -> None:
    """Remembers a run that came to its end."""
    storage.write_json_atomic(storage.join(work_uri, "finished_run.json"), asdict(run))


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
