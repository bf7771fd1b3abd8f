"""Shard files name what an embedded catalog shard consists of, its summary, and the last run's shards.

Under `<work uri>/embeddings/<encoder fingerprint>/` a shard named by its key leaves

    <key>.parquet            the embedding shard: product_id, vector, content fingerprint, modalities
    <key>.columns.arrow      display and filter columns, in the same order
    <key>.rejected.parquet   dead letters
    <key>.places.arrow       where in the catalog each product stands, for the letters of those found twice later
    <key>.pictures.arrow     versions of the images that were fetched, so that they can be asked for again
    <key>.thumbnails.arrow   pictures for people, of the images that were decoded (`index.thumbnails`)
    <key>.json               its description with the summary, written last (`storage.artifact`)

The key is the content that the shard was made from, so a rerun finds what an earlier run finished. What the next run
has to know of all shards stands in one table besides (`write_summaries`): a plan asks for no shard by itself.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, fields
from functools import cached_property
from typing import Any, Protocol

import pyarrow as pa
import pyarrow.parquet as pq

from index_builder import storage
from index_builder.records import as_record, read_record
from pipelines.indexing.precision_loss import summarize

SUMMARIES = "summaries"
"""The output in a build's folder with the summaries of its shards."""
SHARD_FORMAT = 2
"""Raised when a change of the code makes other vectors or other columns from the same catalog."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardSummary:
    """What became of one catalog shard.

    Attributes:
        position: In the plan.
        rows_in: Rows read from the catalog.
        left_out: Those of them for which `catalog.where` is not true.
        products: What the embedding shard holds vectors of; `embedded` and `carried_over` say how they got these (with
            a vector an image: whether any of them is new).
        vectors: Rows of the embedding shard, `vectors_embedded` of them new, where products have one an image; else 0.
        degraded: Products whose image could not be used.
        without_image: Products that have no image (and never named one, or lost it).
        images_unchanged: Images that were not read again, since where they lie says that they are the same.
        texts_cut: Distinct texts that were longer than the text tower's limit.
        rejected: Rows that are in the dead letters and not in the index.
        by_reason: Dead letters by kind and reason, as "rejected: empty_product".
        repeated_images: The most frequent images of several rows, by their digests as hex digits.
        image_sides: Images that were decoded, by the power of two below the shorter side in pixels.
        revisable: Whether another run could find other images for the same catalog rows: images fetched from outside
            the catalog file, or ones that failed.
        cosines: Of a few embedded products, their vectors' cosines to those in float32 (`precision_loss`).
        seconds: Busy seconds by step; steps overlap, so their sum exceeds `wall`.
    """

    position: int
    key: str
    rows_in: int = 0
    left_out: int = 0
    products: int = 0
    embedded: int = 0
    carried_over: int = 0
    vectors: int = 0
    vectors_embedded: int = 0
    degraded: int = 0
    without_image: int = 0
    images_unchanged: int = 0
    texts_cut: int = 0
    rejected: int = 0
    by_reason: dict[str, int] = field(default_factory=dict)
    repeated_images: dict[str, int] = field(default_factory=dict)
    image_sides: dict[str, int] = field(default_factory=dict)
    revisable: bool = False
    cosines: list[float] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)


_COLUMNS: dict[Any, pa.DataType] = {
    "int": pa.int64(),
    "str": pa.string(),
    "bool": pa.bool_(),
    "list[float]": pa.list_(pa.float64()),
    "dict[str, int]": pa.map_(pa.string(), pa.int64()),
    "dict[str, float]": pa.map_(pa.string(), pa.float64()),
}
_SUMMARIES_SCHEMA = pa.schema([(each.name, _COLUMNS[each.type]) for each in fields(ShardSummary)])
_MAPS = [each.name for each in _SUMMARIES_SCHEMA if pa.types.is_map(each.type)]
_ASKED_AT_ONCE = 16


def write_summaries(path: str, summaries: Iterable[ShardSummary]) -> None:
    """Writes summaries, in plan order, as a Parquet file on this machine."""
    rows = [asdict(summary) for summary in summaries]
    pq.write_table(pa.Table.from_pylist(rows, schema=_SUMMARIES_SCHEMA), path, compression="zstd")


def read_summaries(uri: str) -> list[ShardSummary]:
    """What `write_summaries` wrote, in its order; without columns of another version of Shelfmark."""
    table = pq.read_table(pa.BufferReader(storage.read_bytes(uri)))
    known = [name for name in table.column_names if name in _SUMMARIES_SCHEMA.names]
    rows = table.select(known).to_pylist()
    for row in rows:
        row |= {name: dict(row[name]) for name in _MAPS if name in row}
    return [ShardSummary(**row) for row in rows]


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardFiles:
    """Where a shard's files lie: in a `folder`, named by its `key`."""

    folder: str
    key: str

    @property
    def uri(self) -> str:
        """All of them, as `storage.artifact` names an output."""
        return storage.join(self.folder, self.key)

    embeddings = property(lambda self: f"{self.uri}.parquet")
    columns = property(lambda self: f"{self.uri}.columns.arrow")
    rejected = property(lambda self: f"{self.uri}.rejected.parquet")
    places = property(lambda self: f"{self.uri}.places.arrow")
    thumbnails = property(lambda self: f"{self.uri}.thumbnails.arrow")
    images = property(lambda self: f"{self.uri}.pictures.arrow")

    @classmethod
    def of_embeddings(cls, uri: str) -> ShardFiles:
        """The files beside an embedding shard."""
        folder, _, name = uri.rpartition("/")
        return cls(folder=folder, key=name.removesuffix(".parquet"))

    def read_summary(self, position: int) -> ShardSummary | None:
        """The summary of a complete shard, at its position in today's plan; None where it is not complete."""
        found = storage.find_artifact(self.uri, self.key)
        return None if found is None else as_record(found.facts | {"position": position}, ShardSummary, self.uri)

    def complete(self, position: int, make: Callable[[ShardFiles], ShardSummary]) -> ShardSummary:
        """The summary of the shard, which is made and declared complete unless it stands.

        `make` writes the files where the `ShardFiles` that it gets say; they move here when all are whole.
        """
        made = storage.artifact(
            self.uri, self.key, lambda path: asdict(make(ShardFiles.of_embeddings(f"{path}.parquet")))
        )
        return ShardSummary(**(made.facts | {"position": position}))


def standing_keys(folder: str) -> set[str]:
    """Keys of the shards in a folder that are complete, at the price of one listing."""
    return {name.removesuffix(".json") for name in storage.list_names(folder) if name.endswith(".json")}


class SourceRows(Protocol):
    """What a shard is made from, in whatever form its maker reads it."""

    @property
    def rows(self) -> int:
        """How many rows of the source that is."""


@dataclass(frozen=True, slots=True)
class StandingRows:
    """Rows of a shard that stands, and is made from nothing."""

    rows: int


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardTask:
    """One shard to make, unless it is complete."""

    position: int
    files: ShardFiles
    rows: Any  # `SourceRows` of the source's own kind


def shard_keys(content_keys: Iterable[str], settings: Mapping[str, Any]) -> list[str]:
    """The names of shards' files: 32 hex digits each, over the identity of its rows and the settings that shape all."""
    return storage.digests(SHARD_FORMAT, content_keys, dict(settings))


def revision_key(key: str, after_run: str) -> str:
    """The name under which a shard is embedded anew after a finished run."""
    return f"{base_key(key)}-{storage.digest(after_run)[:8]}"


def base_key(key: str) -> str:
    """A shard's key without the run that it was embedded anew after."""
    return key.partition("-")[0]


@dataclass(frozen=True, kw_only=True)
class FinishedRun:
    """The last run that came to its end on a work URI, whether a gate held its version back or not.

    Attributes:
        name: Of its record.
        shards: Keys of its shards, in plan order.
        encoder: Fingerprint of its encoder, which names the folder that those shards lie in.
        catalog_uri: What they were made from, for people.
        build: Name of its folder in `builds`, with the codec that the next run may keep.
        batch_invariant, precision: See `EncoderSummary`.
        group_field: The column by which searches group their answers, if any.
    """

    name: str
    shards: tuple[str, ...]
    encoder: str
    catalog_uri: str = ""
    build: str = ""
    batch_invariant: bool | None = None
    group_field: str | None = None
    precision: str = ""

    def key_of(self, base: str) -> str | None:
        """The key under which this run made the shard, None if it had none of this base key."""
        return self._by_base.get(base)

    @cached_property
    def _by_base(self) -> dict[str, str]:
        return {base_key(key): key for key in self.shards}


def read_finished_run(work_uri: str) -> FinishedRun | None:
    """The last finished run, None before the first one, or where its record is damaged."""
    return read_record(storage.join(work_uri, "finished_run.json"), FinishedRun)


def write_finished_run(work_uri: str, run: FinishedRun) -> None:
    """Remembers a run that came to its end."""
    storage.write_json_atomic(storage.join(work_uri, "finished_run.json"), asdict(run))


def summaries_of(work_uri: str, run: FinishedRun) -> list[ShardSummary | None]:
    """The summaries of a finished run's shards, in plan order, by one table.

    Of a run that left none, an older Shelfmark's, the shards are asked one by one: None for one that is not complete.
    """
    if run.build and (table := storage.find_artifact(storage.join(work_uri, "builds", run.build, SUMMARIES))):
        return [*read_summaries(table.files[0])]
    folder = storage.join(work_uri, "embeddings", run.encoder)
    files = [ShardFiles(folder=folder, key=key) for key in run.shards]
    with ThreadPoolExecutor(_ASKED_AT_ONCE, thread_name_prefix="summaries") as pool:
        return list(pool.map(ShardFiles.read_summary, files, range(len(files))))


@dataclass(frozen=True, kw_only=True, slots=True)
class Totals:
    """A run's products in numbers, over all shards; what else is named as in `ShardSummary` is the sum of that.

    Attributes:
        products: Those in the index, `embedded` or `carried_over`. What an earlier, finished run embedded in a shard
            that stands is carried over. Duplicates are neither (see `without_duplicates`).
        vectors: Rows of the index, `vectors_embedded` of them new, where products have one an image; else 0.
        precision_loss: What `precision_loss.summarize` says of the shards' cosines.
        rejected: Rows that are not in the index, duplicates included.
        repeated_image: How often the most frequent image occurs, 0 for once.
        folded: Rows that `catalog.group_by` put into the row of another; among `rows_in`, as those left out are.
    """

    rows_in: int
    left_out: int = 0
    folded: int = 0
    products: int
    embedded: int
    carried_over: int
    degraded: int
    rejected: int
    images_unchanged: int
    texts_cut: int
    by_reason: dict[str, int]
    shards: int
    vectors: int = 0
    vectors_embedded: int = 0
    precision_loss: dict[str, float] = field(default_factory=dict)
    without_image: int = 0
    repeated_image: int = 0
    image_sides: dict[str, int] = field(default_factory=dict)

    @property
    def rejected_share(self) -> float:
        """Rejected rows over all that could become products, 0 where there are none."""
        return self.rejected / self.considered if self.considered else 0.0

    @property
    def considered(self) -> int:
        """Rows that could become products: grouped, and those that `catalog.where` lets in."""
        return self.rows_in - self.left_out - self.folded

    @property
    def degraded_share(self) -> float:
        """Degraded products over all products, 0 for an empty index."""
        return self.degraded / self.products if self.products else 0.0


def without_duplicates(embedded: int, carried_over: int, duplicates: int) -> tuple[int, int]:
    """Products (or vectors) of one shard embedded and carried over, less those whose id occurred before.

    A duplicate counts as carried over first: most stood in the catalog of the last run already.
    """
    of_carried = min(duplicates, carried_over)
    return embedded - (duplicates - of_carried), carried_over - of_carried


def total(
    summaries: Sequence[ShardSummary],
    products: int,
    duplicates: Sequence[int] = (),
    earlier: Collection[str] = (),
    folded: int = 0,
    dropped_vectors: Sequence[int] = (),
) -> Totals:
    """Adds up the shards' summaries, after numbering found `products` in them.

    Args:
        duplicates: Products of each shard, in the order of `summaries`, that numbering dropped; empty: none.
        earlier: Keys of shards that an earlier, finished run made.
        folded: Rows that went into another's before the shards were cut.
        dropped_vectors: The vectors of those duplicates, where products have several.
    """
    own = [summary for summary in summaries if summary.key not in earlier]
    embedded, dropped = 0, sum(duplicates)
    for summary, again in zip(summaries, duplicates or [0] * len(summaries), strict=True):
        new = 0 if summary.key in earlier else summary.embedded
        embedded += without_duplicates(new, summary.products - new, again)[0]
    vectors = vectors_embedded = 0
    for summary, again in zip(summaries, dropped_vectors or [0] * len(summaries), strict=True):
        new = 0 if summary.key in earlier else summary.vectors_embedded
        kept = without_duplicates(new, summary.vectors - new, again if summary.vectors else 0)
        vectors, vectors_embedded = vectors + sum(kept), vectors_embedded + kept[0]
    repeated: Counter[str] = Counter()
    sides: Counter[str] = Counter()
    for summary in summaries:
        repeated.update(summary.repeated_images)
        sides.update(summary.image_sides)
    names = ("rows_in", "left_out", "degraded", "rejected", "texts_cut", "without_image")
    sums = {name: sum(getattr(summary, name) for summary in summaries) for name in names}
    sums["rejected"] += dropped
    sums["rows_in"] += folded
    by_reason = Counter({"rejected: duplicate_id": dropped} if dropped else {})
    for summary in summaries:
        by_reason.update(summary.by_reason)
    return Totals(
        products=products,
        embedded=embedded,
        carried_over=products - embedded,
        images_unchanged=sum(summary.images_unchanged for summary in own),
        by_reason=dict(sorted(by_reason.items())),
        shards=len(summaries),
        folded=folded,
        vectors=vectors,
        vectors_embedded=vectors_embedded,
        repeated_image=max(repeated.values(), default=0),
        image_sides=dict(sides),
        precision_loss=summarize(cosine for summary in summaries for cosine in summary.cosines),
        **sums,
    )
