"""Beam wiring of the embedding stage: catalog shards in, shard summaries out. Pixels and vectors stay in the worker."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import apache_beam as beam
from apache_beam.metrics import Metrics
from apache_beam.utils import shared

from encoders import EncoderConfig, ProductEncoder, load_product_encoder
from pipelines.catalog.config import CatalogConfig
from pipelines.catalog.pictures.decoding import DecodeConfig
from pipelines.catalog.pictures.fetching import FetchConfig
from pipelines.catalog.plan import CatalogShard
from pipelines.prepared_products import LastNight, ProductPreparer
from pipelines.run_record import RunRecord
from pipelines.shard_embedding import ShardEmbedder
from pipelines.shard_files import ShardFiles, ShardSummary

PROGRESS_SECONDS = 1.0


@dataclass(frozen=True, kw_only=True, slots=True)
class EmbedTask:
    """One unit of the embedding stage: a catalog shard and the name of its outputs."""

    shard: CatalogShard
    files: ShardFiles


@dataclass(kw_only=True, eq=False)  # not frozen: Beam sets the label
class EmbedShards(beam.PTransform):
    """Embeds catalog shards that are not complete yet.

    Input: `EmbedTask`. Output: `ShardSummary`, one a task.

    Attributes:
      catalog, fetch, decode, encoder: the sections of the config that shape the work.
      last_night: where its vectors and pictures are found, or None.
      record: where finished shards are reported.
      load_encoder: makes the product encoder, once a worker process; tests give their own.
    """

    catalog: CatalogConfig
    fetch: FetchConfig
    decode: DecodeConfig
    encoder: EncoderConfig
    last_night: LastNight | None
    record: RunRecord
    load_encoder: Callable[[EncoderConfig], ProductEncoder] = load_product_encoder

    def expand(self, tasks: beam.PCollection[EmbedTask]) -> beam.PCollection[ShardSummary]:
        """Wires the step in."""
        return (
            tasks
            # Breaks fusion with the plan, so that the shards spread over the workers.
            | "SpreadShards" >> beam.Reshuffle()
            | "EmbedShard" >> beam.ParDo(_EmbedShard(self))
        )


class _EmbedShard(beam.DoFn):
    """Holds one encoder and one pool of picture threads per worker process."""

    def __init__(self, transform: EmbedShards):
        self._catalog = transform.catalog
        self._fetch = transform.fetch
        self._decode = transform.decode
        self._encoder_config = transform.encoder
        self._last_night = transform.last_night
        self._record = transform.record
        self._load_encoder = transform.load_encoder
        self._encoder_handle = shared.Shared()
        self._embedded = Metrics.counter("embed", "products_embedded")
        self._carried_over = Metrics.counter("embed", "products_carried_over")
        self._rejected = Metrics.counter("embed", "products_rejected")
        self._skipped = Metrics.counter("embed", "shards_already_complete")
        self._embedder: ShardEmbedder | None = None

    def _open_embedder(self) -> ShardEmbedder:
        """Called on the first shard that needs work: a rerun over complete shards loads no model."""
        if self._embedder is None:
            encoder = self._encoder_handle.acquire(lambda: self._load_encoder(self._encoder_config))
            preparer = ProductPreparer.open(
                self._catalog, self._fetch, self._decode, inputs=encoder, last_night=self._last_night
            )
            self._embedder = ShardEmbedder(encoder=encoder, preparer=preparer)
        return self._embedder

    def process(self, task: EmbedTask) -> Iterator[ShardSummary]:
        unit = f"{task.shard.position:06d}"
        summary = task.files.read_summary(task.shard.position)
        if summary is not None:
            self._skipped.inc()
            self._record.report("embed", unit, skipped=True, seconds=0.0, **_facts(summary))
            yield summary
            return
        last_word = time.monotonic()

        def on_progress(products: int) -> None:
            nonlocal last_word
            if time.monotonic() - last_word >= PROGRESS_SECONDS:
                last_word = time.monotonic()
                self._record.report_partial("embed", unit, products=products)

        with self._record.timed("embed", unit) as facts:
            summary = self._open_embedder().embed(task.shard, task.files, on_progress=on_progress)
            facts |= {"skipped": False, "steps": summary.seconds, **_facts(summary)}
        self._embedded.inc(summary.embedded)
        self._carried_over.inc(summary.carried_over)
        self._rejected.inc(summary.rejected)
        yield summary

    def teardown(self) -> None:
        if self._embedder is not None:
            self._embedder.preparer.close()


def _facts(summary: ShardSummary) -> dict[str, int]:
    return {"rows_in": summary.rows_in, "products": summary.products, "embedded": summary.embedded}
