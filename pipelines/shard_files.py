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
from collections.abc import Mapping
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
