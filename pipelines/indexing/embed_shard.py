"""One catalog shard becomes one embedding shard: read, look up, fetch, decode, embed, fuse, write.

The steps form a stream of batches, each running ahead of the next on its own thread, so that the disk, the decoder and
the model work at the same time; memory is bounded by a few batches. A text or an image that this process has embedded
goes through its tower once, and such an image is not decoded again (`tower_memory`). A dry run (`forecast`) stops
before the towers.

Legend of shapes: `B` products of a batch, `R` vectors of them (one each, or one an image), `n` some of these, `D` fused
dimension, `S` image side.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from time import perf_counter

import numpy as np
import pyarrow as pa

from encoders import EncoderDescription, ProductEncoder
from index_builder.embedding_shards import EmbeddingShardWriter, Modality
from index_builder.meter import METER
from pipelines.catalog.config import CatalogConfig
from pipelines.catalog.dead_letters import (
    DeadLetter,
    ImageError,
    Outcome,
    Reason,
    Stage,
    places_table,
    write_dead_letters,
)
from pipelines.catalog.plan import CatalogShard
from pipelines.catalog.prefetch import prefetch
from pipelines.catalog.previous_version import (
    CarryOver,
    KnownImage,
    KnownImages,
    write_known_images,
)
from pipelines.catalog.products import ProductBatch, to_products
from pipelines.catalog.reading import read_shard
from pipelines.images.config import DecodeConfig, FetchConfig
from pipelines.images.fetch import ImageFetcher, shown_reference
from pipelines.images.pool import ImagePool
from pipelines.images.product_images import (
    FINGERPRINT_BYTES,
    ProductImages,
    VectorRows,
    content_fingerprints,
    decode_images,
    fetch_images,
)
from pipelines.images.thumbnails import ShardThumbnails, shorter_side
from pipelines.indexing.cpu_time import StepTimer
from pipelines.indexing.precision_loss import LossMeter
from pipelines.indexing.previous_lookups import PreviousVersion
from pipelines.indexing.product_table import WriteColumns, WritePlaces, columns_writer, places_writer
from pipelines.indexing.shard_files import ShardFiles, ShardSummary
from pipelines.indexing.tower_memory import TowerMemory

TEXT_ONLY_BATCH_ROWS = 8192
WHOLE_BATCHES = 32
"""Images that the towers run in two batches side by side (`encoders.running`); one core waits for a few more."""


@dataclass(slots=True)
class PreparedBatch:
    """A batch of `B` products on its way to the towers, with their `R` vectors; each step fills in its share.

    Attributes:
        products: As the catalog has them.
        texts: As the text tower gets them; None for a product, or an encoder, without text.
        images: Which images each product has, and what was wrong with the others.
        data: Encoded bytes of each distinct image by digest, until they are decoded.
        rows: What each vector is made of.
        fingerprints: uint8 `[R, 16]`.
        lookup_rows: int64 `[R]`, rows of the carry-over lookup; -1 for a vector that the previous version lacks.
        images_unchanged: How many images were not read again.
        tower_input: uint8 `[n, 3, S, S]`, the images that the shard met first in this batch; None where there are none.
        pixels: digest -> uint8 `[3, S, S]`, the rows of `tower_input` in their order.
        kept: digest -> float32 `[Di]`, what the image tower made, in another shard, of images that this one met first
            in this batch.
    """

    products: ProductBatch
    texts: list[str | None]
    images: list[ProductImages]
    data: dict[bytes, bytes]
    rows: VectorRows
    fingerprints: np.ndarray
    lookup_rows: np.ndarray
    images_unchanged: int = 0
    tower_input: np.ndarray | None = None
    pixels: dict[bytes, np.ndarray] = field(default_factory=dict)
    kept: dict[bytes, np.ndarray] = field(default_factory=dict)

    @property
    def new_products(self) -> np.ndarray:
        """Those of which the previous version lacks a vector, int64, ascending."""
        return np.unique(self.rows.products[self.lookup_rows < 0])

    def drop(self, faults: Mapping[bytes, ImageError]) -> None:
        """Takes images that do not decode out of the new vectors, and hands them to their products as faults."""
        rows = self.rows
        hit = [
            row
            for row in np.flatnonzero(self.lookup_rows < 0).tolist()
            if not faults.keys().isdisjoint(rows.digests[row])
        ]
        for row in hit:
            own = {digest: faults[digest] for digest in rows.digests[row] if digest in faults}
            self.images[rows.products[row]].drop(own)
        stays = np.flatnonzero(rows.drop(hit, faults, self.images))
        if len(stays) < len(rows.products):
            self.rows = rows.take(stays)
            self.fingerprints, self.lookup_rows = self.fingerprints[stays], self.lookup_rows[stays]


@dataclass(frozen=True, kw_only=True, slots=True)
class ProductPreparer:
    """Reads shards up to the towers.

    Attributes:
        uses_text: Whether the encoder reads texts.
        pool: Fetches and decodes images; None where the encoder or the catalog has none.
        carry_over, known_images: The previous version's vectors and images.
        per_image: Whether each image of a product gives a vector.
    """

    catalog: CatalogConfig
    uses_text: bool
    pool: ImagePool | None
    carry_over: CarryOver | None
    known_images: KnownImages | None = None
    per_image: bool = False

    @classmethod
    def open(
        cls,
        catalog: CatalogConfig,
        fetch: FetchConfig,
        decode: DecodeConfig,
        *,
        inputs: EncoderDescription | ProductEncoder,
        previous: PreviousVersion | None,
        per_image: bool = False,
    ) -> ProductPreparer:
        """Starts the threads and maps the lookups; `close` ends them."""
        pool = None
        if inputs.uses_images and catalog.has_images and inputs.preprocessing is not None:
            pool = ImagePool(ImageFetcher(fetch, catalog.image_root), inputs.preprocessing, decode)
        return cls(
            catalog=catalog,
            uses_text=inputs.uses_text,
            pool=pool,
            carry_over=None if previous is None else CarryOver(previous.vectors),
            known_images=None if previous is None else KnownImages(previous.images),
            per_image=per_image,
        )

    def close(self) -> None:
        """Ends the image threads."""
        if self.pool is not None:
            self.pool.close()

    def prepare(self, shard: CatalogShard, timer: StepTimer) -> Iterator[PreparedBatch]:
        """Reads a shard on a thread that runs ahead; `timer` gets the seconds of the steps `read` and `fetch`."""
        for products in prefetch(self._read(shard, timer), name="catalog-reader"):
            with timer.timed("fetch"):
                batch = self._look_up(products)
            yield batch

    def _read(self, shard: CatalogShard, timer: StepTimer) -> Iterator[ProductBatch]:
        batch_rows = TEXT_ONLY_BATCH_ROWS
        if self.pool is not None:  # three batches of decoded images are alive: in the decoder, waiting, in the model
            batch_rows = max(1, self.pool.pending_images // (3 * self.catalog.images_per_product))
            batch_rows -= batch_rows % WHOLE_BATCHES if batch_rows > WHOLE_BATCHES else 0
        rows_by_batch = iter(read_shard(shard, self.catalog, batch_rows=batch_rows))
        while True:
            with timer.timed("read"):
                rows = next(rows_by_batch, None)
                if rows is None:
                    return
                METER.add("catalog_bytes", rows.rows.nbytes)
                products = to_products(rows, self.catalog)
            yield products

    def _look_up(self, products: ProductBatch) -> PreparedBatch:
        """Fetches the images, takes the fingerprints, and finds what the previous version has."""
        size = len(products.product_ids)
        images = [ProductImages() for _ in range(size)]
        batch = PreparedBatch(
            products=products,
            texts=products.texts.to_pylist() if self.uses_text else [None] * size,
            images=images,
            data={},
            rows=VectorRows.of(images, per_image=self.per_image),
            fingerprints=np.empty((size, FINGERPRINT_BYTES), np.uint8),
            lookup_rows=np.full(size, -1, np.int64),
        )
        self._fetch(batch, range(size), self.known_images)
        # A product that changed beside its image needs the bytes after all.
        new = np.flatnonzero(batch.lookup_rows < 0).tolist()
        unread = {
            int(batch.rows.products[row])
            for row in new
            if any(digest not in batch.data for digest in batch.rows.digests[row])
        }
        if unread:
            self._fetch(batch, sorted(unread), None)
        batch.images_unchanged = sum(digest not in batch.data for images in batch.images for digest in images.digests)
        return batch

    def _fetch(self, batch: PreparedBatch, products: Sequence[int], known_images: KnownImages | None) -> None:
        """Fetches images of some products, and settles the vectors of all: fingerprints and lookup rows."""
        if self.pool is not None:
            fetched = fetch_images(self.pool, [batch.products.images[row] for row in products], known_images)
            METER.add("images", len(fetched.data))
            METER.add("image_bytes", sum(map(len, fetched.data.values())))
            batch.data |= fetched.data
            for row, images in zip(products, fetched.products, strict=True):
                batch.images[row] = images
        batch.rows = rows = VectorRows.of(batch.images, per_image=self.per_image)
        owners = rows.products.tolist()
        batch.fingerprints = content_fingerprints([batch.texts[product] for product in owners], rows.digests)
        batch.lookup_rows = np.full(len(owners), -1, np.int64)
        if self.carry_over is not None and owners:
            batch.lookup_rows = self.carry_over.find(batch.fingerprints)
            # A broken image costs the vector of all images; beside vectors of one each it costs none that is there.
            lacks = [
                bool(batch.images[product].faults) and not (self.per_image and digests)
                for product, digests in zip(owners, rows.digests, strict=True)
            ]
            batch.lookup_rows[lacks] = -1


def embed_shard(
    encoder: ProductEncoder,
    preparer: ProductPreparer,
    shard: CatalogShard,
    files: ShardFiles,
    *,
    memory: TowerMemory | None = None,
    measured: int = 0,
    thumbnail_side: int | None = None,
    on_progress: Callable[[int], None] = lambda products: None,
) -> ShardSummary:
    """Embeds one shard and declares it complete.

    Args:
        encoder: The product side, loaded.
        preparer: Reads products up to its towers.
        shard: Which rows to read.
        files: Where the outputs go.
        memory: What the same encoder made in other shards; None: this one's own alone.
        measured: Of how many products the loss by the towers' precision is measured.
        thumbnail_side: Pixels a side of the pictures for people; None for none.
        on_progress: Gets the number of products written so far, after each batch.
    """
    measured = measured if encoder.load_exact is not None else 0

    def make(made: ShardFiles) -> ShardSummary:
        own = memory if memory is not None else TowerMemory()
        return _ShardWork(encoder, preparer, shard, made, own, measured, thumbnail_side).run(on_progress)

    return files.complete(shard.position, make)


class _ShardWork:
    """The state of one shard while it is being embedded."""

    def __init__(
        self,
        encoder: ProductEncoder,
        preparer: ProductPreparer,
        shard: CatalogShard,
        files: ShardFiles,
        memory: TowerMemory,
        measured: int,
        thumbnail_side: int | None,
    ):
        self._memory, self._measures = memory, measured > 0
        self._meter = LossMeter(encoder, measured, shard.rows)
        self._encoder, self._preparer, self._shard, self._files = encoder, preparer, shard, files
        self._letters: list[DeadLetter] = []
        self._known_images: list[KnownImage] = []
        self._counts: Counter[str] = Counter()  # by the names of a `ShardSummary`
        self._timer = StepTimer("read", "fetch", "decode", "queue", "embed", "write")
        self._revisable = False
        self._thumbnails = None if thumbnail_side is None else ShardThumbnails(thumbnail_side)
        self._images: Counter[bytes] = Counter()  # rows by the digest of an image
        self._sides: Counter[str] = Counter()
        self._image_rows: dict[bytes, int] = {}  # digest -> row of _image_vectors
        self._image_vectors = np.empty((0, 0), np.float32)  # [images of this shard, image tower's dimension]

    def run(self, on_progress: Callable[[int], None]) -> ShardSummary:
        started = perf_counter()
        encoder, pool, files = self._encoder, self._preparer.pool, self._files
        batches = self._preparer.prepare(self._shard, self._timer)
        if pool is not None:
            batches = prefetch(self._decode(pool, prefetch(batches, name="image-fetcher")), name="image-decoder")
        with (
            EmbeddingShardWriter(
                files.embeddings,
                dim=encoder.dim,
                encoder_fingerprint=encoder.fingerprint,
                several_rows=self._preparer.per_image,
            ) as vectors,
            columns_writer(files.columns) as write_columns,
            places_writer(files.places) as write_places,
        ):
            while True:
                with self._timer.timed("queue"):
                    batch = next(batches, None)
                if batch is None:
                    break
                METER.observe("batch_products", [len(batch.images)])
                self._embed(batch, vectors, write_columns, write_places)
                on_progress(self._counts["products"])
        write_dead_letters(files.rejected, self._letters)
        if self._thumbnails is not None:
            self._thumbnails.write(files.thumbnails)
        if self._known_images:
            write_known_images(files.images, self._known_images)
        counts, letters = self._counts, self._letters
        return ShardSummary(
            position=self._shard.position,
            key=files.key,
            embedded=counts["products"] - counts["carried_over"],
            degraded=len({letter.product_id for letter in letters if letter.outcome == "degraded"}),
            rejected=sum(letter.outcome == "rejected" for letter in letters),
            by_reason=dict(Counter(f"{letter.outcome}: {letter.reason}" for letter in letters)),
            repeated_images={digest.hex(): rows for digest, rows in self._images.most_common(8) if rows > 1},
            image_sides=dict(self._sides),
            revisable=self._revisable,
            cosines=self._meter.cosines,
            seconds={step: round(seconds, 4) for step, seconds in self._timer.seconds.items()}
            | {"wall": perf_counter() - started},
            **counts,
        )

    def _decode(self, pool: ImagePool, batches: Iterator[PreparedBatch]) -> Iterator[PreparedBatch]:
        """Decodes the images that this shard has not met before, and hands each product its faults."""
        met: set[bytes] = set()
        faults: dict[bytes, ImageError] = {}
        for batch in batches:
            with self._timer.timed("decode"):
                new = np.flatnonzero(batch.lookup_rows < 0).tolist()
                wanted = {
                    digest: batch.data[digest] for row in new for digest in batch.rows.digests[row] if digest not in met
                }
                met |= wanted.keys()
                if not self._measures:  # which needs the pixels
                    batch.kept = self._memory.images.find(wanted)
                missing = {digest: data for digest, data in wanted.items() if digest not in batch.kept}
                pixels, new_faults = decode_images(pool, missing)
                self._sides.update(shorter_side(wanted[digest]) for digest in (*pixels, *batch.kept))
                if pixels:  # side by side here, so that the thread of the towers copies nothing
                    batch.tower_input = np.stack(list(pixels.values()))
                    batch.pixels = dict(zip(pixels, batch.tower_input, strict=True))
                faults |= new_faults
                batch.drop(faults)
                if self._thumbnails is not None:
                    self._thumbnails.make(pool, batch.data, faults)
                batch.data = {}
            yield batch

    def _embed(
        self, batch: PreparedBatch, shard: EmbeddingShardWriter, write_columns: WriteColumns, write_places: WritePlaces
    ) -> None:
        """Decides which products are accepted, runs the towers, and writes the rows of those."""
        counts, products = self._counts, batch.products
        self._letters += products.dead_letters + products.notes
        accepted = self._accept(batch)
        rows = np.flatnonzero(np.isin(batch.rows.products, accepted))
        if self._thumbnails is not None:
            self._thumbnails.add_rows([batch.rows.digests[row] for row in rows])
        self._images.update(digest for row in rows for digest in batch.rows.digests[row])
        with self._timer.timed("embed"):
            vectors = self._vectors(batch, rows)
        with self._timer.timed("write"):
            owners, modalities = (
                pa.array(batch.rows.products[rows]),
                batch.rows.modalities(batch.texts, batch.images)[rows],
            )
            shard.write(products.product_ids.take(owners), vectors, batch.fingerprints[rows], modalities)
            columns = products.columns.take(owners)
            write_columns(batch.rows.take(rows).named(columns) if self._preparer.per_image else columns)
            write_places(places_table(products.places, products.texts).take(owners))
        embedded = np.intersect1d(batch.new_products, accepted)
        counts["rows_in"] += len(batch.images) + len(products.dead_letters) + products.left_out
        counts["left_out"] += products.left_out
        counts["products"] += len(accepted)
        counts["carried_over"] += len(accepted) - len(embedded)
        if self._preparer.per_image:
            counts["vectors"] += len(rows)
            counts["vectors_embedded"] += int((batch.lookup_rows[rows] < 0).sum())
        counts["images_unchanged"] += batch.images_unchanged
        counts["without_image"] += int((modalities & Modality.IMAGE == 0).sum())
        self._known_images += [
            known for images in batch.images for known in images.known if known.digest in images.digests
        ]

    def _accept(self, batch: PreparedBatch) -> np.ndarray:
        """Rows of the products that are indexed, int64; the others, and the degraded ones, leave a dead letter."""
        encoder, must_have_images = self._encoder, self._preparer.catalog.on_bad_image == "reject"
        accepted = []
        for row, (text, images) in enumerate(zip(batch.texts, batch.images, strict=True)):
            self._revisable |= images.by_reference or bool(images.faults)
            usable = bool(images.digests) or (text is not None and encoder.uses_text)
            rejected = not usable or (bool(images.faults) and must_have_images)
            if not rejected:
                accepted.append(row)
            elif not images.faults:
                self._letter(batch, row, "rejected", "validate", Reason.empty_product, _nothing_to_embed(encoder))
            for number, (reference, fault) in zip(images.fault_numbers, images.faults, strict=True):
                outcome: Outcome = "rejected" if rejected else "degraded"
                picture = shown_reference(reference)
                detail = f"picture {number}: {fault.detail}" if self._preparer.per_image else fault.detail
                self._letter(batch, row, outcome, fault.stage, fault.reason, detail, picture)
                if rejected:
                    break  # one letter rejects a product; further ones would count it twice
        return np.array(accepted, np.int64)

    def _letter(
        self, batch: PreparedBatch, row: int, outcome: Outcome, stage: Stage, reason: Reason, detail: str, picture=""
    ) -> None:
        products = batch.products
        product_id, title = products.product_ids[row].as_py(), products.texts[row].as_py() or ""
        self._letters.append(
            DeadLetter(product_id, outcome, stage, reason, detail, products.places[row], title, picture)
        )

    def _vectors(self, batch: PreparedBatch, rows: np.ndarray) -> np.ndarray:
        """The vectors at `rows`, float16 `[n, D]`: carried over where there is one, else new ones."""
        vectors = np.empty((len(rows), self._encoder.dim), np.float16)
        lookup_rows = batch.lookup_rows[rows]
        carried, new = np.flatnonzero(lookup_rows >= 0), np.flatnonzero(lookup_rows < 0)
        if self._preparer.carry_over is not None and len(carried):
            vectors[carried] = self._preparer.carry_over.vectors(lookup_rows[carried])
        self._embed_images(batch)  # of rejected products too: a later one may have the same image
        if len(new):
            vectors[new] = self._run_towers(batch, rows[new])
            if self._meter.wants_more:
                self._measure(batch, rows[new], vectors[new])
        return vectors

    def _measure(self, batch: PreparedBatch, rows: np.ndarray, vectors: np.ndarray) -> None:
        """Shows the meter the vectors at `rows` whose images were all decoded in this batch."""
        chosen = [place for place, row in enumerate(rows) if batch.pixels.keys() >= set(batch.rows.digests[row])]
        images = [[batch.pixels[digest] for digest in batch.rows.digests[row]] for row in rows[chosen]]
        texts = [batch.texts[product] for product in batch.rows.products[rows[chosen]]]
        self._meter.measure(texts, images, vectors[chosen])

    def _embed_images(self, batch: PreparedBatch) -> None:
        """Takes in vectors of images that this shard has not met before: of the tower, or as they were kept."""
        new = dict(batch.kept)
        if batch.tower_input is not None:
            made = dict(zip(batch.pixels, self._encoder.encode_images(batch.tower_input).cpu().numpy(), strict=True))
            self._memory.images.keep(made)
            new |= made
        if new:
            self._image_rows |= {digest: len(self._image_rows) + i for i, digest in enumerate(new)}
            known = [self._image_vectors] if len(self._image_vectors) else []
            self._image_vectors = np.concatenate([*known, np.stack(list(new.values()))])

    def _run_towers(self, batch: PreparedBatch, rows: np.ndarray) -> np.ndarray:
        """New vectors at `rows` of the batch, float32 `[n, D]`."""
        encoder = self._encoder
        texts: dict[str, int] = {}
        text_rows = np.full(len(rows), -1, np.int64)
        slots = 1 if self._preparer.per_image else self._preparer.catalog.images_per_product
        image_rows = np.full((len(rows), slots), -1, np.int64)
        for i, row in enumerate(rows):
            text, digests = batch.texts[batch.rows.products[row]], batch.rows.digests[row]
            if text is not None and not (encoder.text_is_fallback and digests):
                text_rows[i] = texts.setdefault(text, len(texts))
            image_rows[i, : len(digests)] = [self._image_rows[digest] for digest in digests]
        text_vectors = None
        if texts:
            tokens = encoder.tokenize(list(texts))
            self._counts["texts_cut"] += tokens.truncated
            text_vectors, made = self._memory.texts.take(
                tokens.keys(), lambda rows: encoder.encode_texts(tokens.take(rows)).cpu().numpy()
            )
            METER.add("texts_reused", int((text_rows >= 0).sum()) - made)
        first = batch.pixels.keys() & {digest for row in rows for digest in batch.rows.digests[row]}
        METER.add("images_reused", int((image_rows >= 0).sum()) - len(first))
        image_vectors = self._image_vectors if len(self._image_vectors) else None
        return encoder.fuse(text_vectors, text_rows, image_vectors, image_rows)


def _nothing_to_embed(encoder: ProductEncoder) -> str:
    if encoder.uses_text and encoder.uses_images:
        return "the encoder reads text and pictures, and the product has neither"
    return f"the encoder reads only {'text' if encoder.uses_text else 'pictures'}, and the product has none"
