"""One catalog shard becomes one embedding shard: read, look up, fetch, decode, embed, fuse, write.

Legend of shapes: `B` products of a batch, `P` distinct pictures of a batch, `D` fused dimension, `S` picture side.

The steps form a stream of batches, each step running ahead of the next on its own thread, so that the disk, the decoder
and the model work at the same time; memory is bounded by a few batches. Text and picture that occur several times in a
batch (a picture: in the shard) go through their tower once.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from time import perf_counter
from typing import Protocol

import numpy as np
import pyarrow as pa

from encoders import ImagePreprocessing, ProductEncoder
from index_builder.embedding_shards import EmbeddingShardWriter, Modality
from pipelines.catalog.config import CatalogConfig
from pipelines.catalog.dead_letters import DeadLetter, ImageError, Outcome, Reason, Stage, write_dead_letters
from pipelines.catalog.plan import CatalogShard
from pipelines.catalog.previous_version import (
    CarryOver,
    KnownImage,
    KnownImages,
    LookupSource,
    write_known_images,
)
from pipelines.catalog.products import ProductBatch, to_products
from pipelines.catalog.reading import read_shard
from pipelines.images.config import DecodeConfig, FetchConfig
from pipelines.images.fetch import ImageFetcher
from pipelines.images.pool import ImagePool, prefetch
from pipelines.images.product_images import (
    FINGERPRINT_BYTES,
    ProductImages,
    content_fingerprints,
    decode_images,
    fetch_images,
)
from pipelines.indexing.product_table import ColumnsWriter
from pipelines.indexing.shard_files import ShardFiles, ShardSummary

# ---- pipelines/step_timer.py ----
# Busy seconds of named steps. Each step is timed by one thread at a time; different steps may run side by side.


class StepTimer:
    """Adds up the seconds spent inside `timed` blocks.

    Args:
      steps: names, so that a step that did nothing is reported with 0.
    """

    def __init__(self, *steps: str):
        self.seconds: dict[str, float] = dict.fromkeys(steps, 0.0)

    @contextmanager
    def timed(self, step: str) -> Iterator[None]:
        """Adds the block's seconds to a step; a block that fails is not counted."""
        started = perf_counter()
        yield
        self.seconds[step] += perf_counter() - started


# ---- pipelines/prepared_products.py ----
# A catalog shard as batches of products whose fingerprints are known and looked up: all that comes before the towers.
#
# Embedding goes on from here with decoding and the towers; a dry run only counts.


TEXT_ONLY_BATCH_ROWS = 2048


@dataclass(slots=True)
class PreparedBatch:
    """A batch of `B` products on its way to the towers; each step fills in its part.

    Attributes:
      products: as the catalog has them.
      texts: as the text tower gets them; None for a product, or an encoder, without text.
      pictures: which pictures each product has, and what was wrong with the others.
      data: encoded bytes of each distinct picture by digest, until they are decoded.
      fingerprints: uint8 `[B, 16]`.
      places: int64 `[B]`, place in the carry-over lookup, -1 for a product that last night does not have.
      images_unchanged: how many pictures were not read again.
      pixels: digest -> uint8 `[3, S, S]`, of the pictures that the shard met first in this batch.
    """

    products: ProductBatch
    texts: list[str | None]
    pictures: list[ProductImages]
    data: dict[bytes, bytes]
    fingerprints: np.ndarray
    places: np.ndarray
    images_unchanged: int = 0
    pixels: dict[bytes, np.ndarray] = field(default_factory=dict)


class TowerInputs(Protocol):
    """What an encoder wants to be fed with; an encoder, or a description of one."""

    @property
    def uses_text(self) -> bool: ...

    @property
    def uses_images(self) -> bool: ...

    @property
    def preprocessing(self) -> ImagePreprocessing | None: ...


@dataclass(frozen=True, kw_only=True, slots=True)
class LastNight:
    """What the published version's night left for this one, in a form that travels to the workers."""

    vectors: LookupSource
    pictures: LookupSource


@dataclass(frozen=True, kw_only=True, slots=True)
class ProductPreparer:
    """Reads shards up to the towers.

    Attributes:
      catalog: how rows become products.
      uses_text: whether the encoder reads texts.
      pool: fetches and decodes pictures; None where the encoder or the catalog has none.
      carry_over: last night's vectors, or None.
      known_pictures: last night's pictures, or None.
    """

    catalog: CatalogConfig
    uses_text: bool
    pool: ImagePool | None
    carry_over: CarryOver | None
    known_pictures: KnownImages | None = None

    @classmethod
    def open(
        cls,
        catalog: CatalogConfig,
        fetch: FetchConfig,
        decode: DecodeConfig,
        *,
        inputs: TowerInputs,
        last_night: LastNight | None,
    ) -> ProductPreparer:
        """Starts the threads and maps the lookups; `close` ends them."""
        pool = None
        if inputs.uses_images and catalog.image_field is not None and inputs.preprocessing is not None:
            pool = ImagePool(ImageFetcher(fetch, catalog.image_root), inputs.preprocessing, decode)
        return cls(
            catalog=catalog,
            uses_text=inputs.uses_text,
            pool=pool,
            carry_over=None if last_night is None else CarryOver(last_night.vectors),
            known_pictures=None if last_night is None else KnownImages(last_night.pictures),
        )

    def close(self) -> None:
        """Ends the picture threads."""
        if self.pool is not None:
            self.pool.close()

    def prepare(self, shard: CatalogShard, timer: StepTimer) -> Iterator[PreparedBatch]:
        """Reads a shard; the reader runs ahead on a thread of its own.

        Args:
          shard: which rows.
          timer: gets the seconds of the steps `read` and `fetch`.
        """
        for products in prefetch(self._read(shard, timer), name="catalog-reader"):
            with timer.timed("fetch"):
                batch = self._look_up(products)
            yield batch

    def _batch_rows(self) -> int:
        """Three batches of decoded pictures are alive at a time: in the decoder, waiting, in the model."""
        if self.pool is None:
            return TEXT_ONLY_BATCH_ROWS
        return max(1, self.pool.pending_images // (3 * self.catalog.images_per_product))

    def _read(self, shard: CatalogShard, timer: StepTimer) -> Iterator[ProductBatch]:
        rows_by_batch = iter(read_shard(shard, self.catalog, batch_rows=self._batch_rows()))
        while True:
            with timer.timed("read"):
                rows = next(rows_by_batch, None)
                if rows is None:
                    return
                products = to_products(rows, self.catalog)
            yield products

    def _look_up(self, products: ProductBatch) -> PreparedBatch:
        """Fetches the pictures, takes the fingerprints, and finds what last night already made."""
        size = len(products.product_ids)
        texts = products.texts.to_pylist() if self.uses_text else [None] * size
        batch = PreparedBatch(
            products=products,
            texts=texts,
            pictures=[ProductImages() for _ in range(size)],
            data={},
            fingerprints=np.empty((size, FINGERPRINT_BYTES), np.uint8),
            places=np.full(size, -1, np.int64),
        )
        rows = np.arange(size)
        self._fetch(batch, rows, self.known_pictures)
        # A product that changed beside its picture needs the bytes after all.
        unread = [
            row
            for row in rows[batch.places < 0]
            if any(digest not in batch.data for digest in batch.pictures[row].digests)
        ]
        if unread:
            self._fetch(batch, np.array(unread), None)
        batch.images_unchanged = sum(
            digest not in batch.data for picture in batch.pictures for digest in picture.digests
        )
        return batch

    def _fetch(self, batch: PreparedBatch, rows: np.ndarray, known_pictures: KnownImages | None) -> None:
        """Fills in pictures, fingerprints and places of the products at `rows`."""
        found = [ProductImages() for _ in rows]
        if self.pool is not None:
            fetched = fetch_images(self.pool, [batch.products.images[row] for row in rows], known_pictures)
            batch.data |= fetched.data
            found = fetched.products
        for row, pictures in zip(rows, found, strict=True):
            batch.pictures[row] = pictures
        batch.fingerprints[rows] = content_fingerprints(
            [batch.texts[row] for row in rows], [pictures.digests for pictures in found]
        )
        if self.carry_over is not None and len(rows):
            places = self.carry_over.find(batch.fingerprints[rows])
            places[[bool(pictures.faults) for pictures in found]] = -1
            batch.places[rows] = places


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardEmbedder:
    """Embeds shards with one loaded encoder; one a worker process.

    Attributes:
      encoder: the product side.
      preparer: reads products up to the towers.
    """

    encoder: ProductEncoder
    preparer: ProductPreparer

    def embed(
        self, shard: CatalogShard, files: ShardFiles, *, on_progress: Callable[[int], None] = lambda products: None
    ) -> ShardSummary:
        """Embeds one shard and declares it complete.

        Args:
          shard: which rows to read.
          files: where the outputs go.
          on_progress: told the products written so far, after each batch.

        Returns:
          The summary, as it was written.
        """
        return files.complete(shard.position, lambda made: _ShardWork(self, shard, made).run(on_progress))


class _ShardWork:
    """The state of one shard while it is being embedded."""

    def __init__(self, tools: ShardEmbedder, shard: CatalogShard, files: ShardFiles):
        self._encoder = tools.encoder
        self._preparer = tools.preparer
        self._shard = shard
        self._files = files
        self._letters: list[DeadLetter] = []
        self._known_pictures: list[KnownImage] = []
        self._counts: Counter[str] = Counter()
        self._timer = StepTimer("read", "fetch", "decode", "embed", "write")
        self._revisable = False
        self._image_rows: dict[bytes, int] = {}  # digest -> row of _image_vectors
        self._image_vectors = np.empty((0, 0), np.float32)  # [pictures of this shard, image tower's dimension]

    def run(self, on_progress: Callable[[int], None]) -> ShardSummary:
        started = perf_counter()
        encoder, pool = self._encoder, self._preparer.pool
        batches = self._preparer.prepare(self._shard, self._timer)
        if pool is not None:
            batches = prefetch(self._decode(pool, prefetch(batches, name="picture-fetcher")), name="picture-decoder")
        with (
            EmbeddingShardWriter(
                self._files.embeddings, dim=encoder.dim, encoder_fingerprint=encoder.fingerprint
            ) as vectors,
            ColumnsWriter(self._files.columns) as columns,
        ):
            for batch in batches:
                self._embed(batch, vectors, columns)
                on_progress(self._counts["products"])
        write_dead_letters(self._files.rejected, self._letters)
        if self._known_pictures:
            write_known_images(self._files.images, self._known_pictures)
        return self._summary(perf_counter() - started)

    def _summary(self, wall_seconds: float) -> ShardSummary:
        counts = self._counts
        return ShardSummary(
            position=self._shard.position,
            key=self._files.key,
            rows_in=counts["rows_in"],
            products=counts["products"],
            embedded=counts["products"] - counts["carried_over"],
            carried_over=counts["carried_over"],
            degraded=len({letter.product_id for letter in self._letters if letter.outcome == "degraded"}),
            without_image=counts["without_image"],
            images_unchanged=counts["images_unchanged"],
            texts_cut=counts["texts_cut"],
            rejected=sum(letter.outcome == "rejected" for letter in self._letters),
            by_reason=dict(Counter(f"{letter.outcome}: {letter.reason}" for letter in self._letters)),
            revisable=self._revisable,
            seconds={step: round(seconds, 4) for step, seconds in self._timer.seconds.items()} | {"wall": wall_seconds},
        )

    def _decode(self, pool: ImagePool, batches: Iterator[PreparedBatch]) -> Iterator[PreparedBatch]:
        """Decodes the pictures that this shard has not met before, and hands each product its faults."""
        met: set[bytes] = set()
        faults: dict[bytes, ImageError] = {}
        for batch in batches:
            with self._timer.timed("decode"):
                new = [picture for picture, place in zip(batch.pictures, batch.places, strict=True) if place < 0]
                wanted = {
                    digest: batch.data[digest] for picture in new for digest in picture.digests if digest not in met
                }
                met |= wanted.keys()
                batch.pixels, new_faults = decode_images(pool, wanted)
                faults |= new_faults
                for picture in new:
                    picture.faults += [faults[digest] for digest in picture.digests if digest in faults]
                    picture.digests = [digest for digest in picture.digests if digest not in faults]
                batch.data = {}
            yield batch

    def _embed(self, batch: PreparedBatch, shard: EmbeddingShardWriter, columns: ColumnsWriter) -> None:
        """Decides each product's outcome, runs the towers, and writes the rows of the accepted ones."""
        self._letters += batch.products.dead_letters + batch.products.notes
        self._counts["rows_in"] += len(batch.pictures) + len(batch.products.dead_letters)
        accepted = self._accept(batch)
        with self._timer.timed("embed"):
            vectors = self._vectors(batch, accepted)
        with self._timer.timed("write"):
            modalities = self._modalities(batch, accepted)
            rows = pa.array(accepted)
            shard.write(
                batch.products.product_ids.take(rows), vectors, batch.fingerprints[accepted], modalities[accepted]
            )
            columns.write(batch.products.columns.take(rows))
        self._counts["products"] += len(accepted)
        self._counts["carried_over"] += int((batch.places[accepted] >= 0).sum())
        self._counts["images_unchanged"] += batch.images_unchanged
        self._known_pictures += [
            known for picture in batch.pictures for known in picture.known if known.digest in picture.digests
        ]
        self._counts["without_image"] += int((modalities[accepted] & Modality.IMAGE == 0).sum())

    def _accept(self, batch: PreparedBatch) -> np.ndarray:
        """Rows of the products that are indexed, int64; the others, and the degraded ones, leave a dead letter."""
        encoder, must_have_pictures = self._encoder, self._preparer.catalog.on_bad_image == "reject"
        accepted = []
        for row, (text, picture) in enumerate(zip(batch.texts, batch.pictures, strict=True)):
            self._revisable |= picture.by_reference or bool(picture.faults)
            usable = bool(picture.digests) or (text is not None and encoder.uses_text)
            rejected = not usable or (bool(picture.faults) and must_have_pictures)
            if not rejected:
                accepted.append(row)
            elif not picture.faults:
                self._letter(batch, row, "rejected", "validate", Reason.empty_product, _nothing_to_embed(encoder))
            for fault in picture.faults:
                outcome: Outcome = "rejected" if rejected else "degraded"
                self._letter(batch, row, outcome, fault.stage, fault.reason, fault.detail)
                if rejected:
                    break  # one letter rejects a product; further ones would count it twice
        return np.array(accepted, np.int64)

    def _letter(
        self, batch: PreparedBatch, row: int, outcome: Outcome, stage: Stage, reason: Reason, detail: str
    ) -> None:
        product_id = batch.products.product_ids[row].as_py()
        self._letters.append(
            DeadLetter(product_id=product_id, outcome=outcome, stage=stage, reason=reason, detail=detail)
        )

    def _modalities(self, batch: PreparedBatch, accepted: np.ndarray) -> np.ndarray:
        """What each product's vector was made from, uint8 `[B]` bit mask."""
        masks = np.zeros(len(batch.pictures), np.uint8)
        for row in accepted:
            picture = batch.pictures[row]
            masks[row] = (
                (Modality.TEXT if batch.texts[row] is not None else 0)
                | (Modality.IMAGE if picture.digests else 0)
                | (Modality.DEGRADED if picture.faults else 0)
            )
        return masks

    def _vectors(self, batch: PreparedBatch, accepted: np.ndarray) -> np.ndarray:
        """The accepted products' vectors, float16 `[n, D]`: last night's where there is one, else new ones."""
        encoder, carry_over = self._encoder, self._preparer.carry_over
        vectors = np.empty((len(accepted), encoder.dim), np.float16)
        places = batch.places[accepted]
        carried = np.flatnonzero(places >= 0)
        if carry_over is not None and len(carried):
            vectors[carried] = carry_over.vectors(places[carried])
        new = np.flatnonzero(places < 0)
        if len(new):
            vectors[new] = self._run_towers(batch, accepted[new])
        return vectors

    def _run_towers(self, batch: PreparedBatch, rows: np.ndarray) -> np.ndarray:
        """Vectors of the products at `rows` of the batch, float32 `[n, D]`; equal texts and pictures are run once."""
        encoder = self._encoder
        texts: dict[str, int] = {}
        text_rows = np.full(len(rows), -1, np.int64)
        for place, row in enumerate(rows):
            text = batch.texts[row]
            if text is not None and not (encoder.text_is_fallback and batch.pictures[row].digests):
                text_rows[place] = texts.setdefault(text, len(texts))
        text_vectors = None
        if texts:
            tokens = encoder.tokenize(list(texts))
            self._counts["texts_cut"] += tokens.truncated
            text_vectors = encoder.encode_texts(tokens)
        if batch.pixels:
            new_vectors = encoder.encode_images(np.stack(list(batch.pixels.values()))).cpu().numpy()
            self._image_rows |= {digest: len(self._image_rows) + i for i, digest in enumerate(batch.pixels)}
            parts = [self._image_vectors, new_vectors] if len(self._image_vectors) else [new_vectors]
            self._image_vectors = np.concatenate(parts)
        image_rows = np.full((len(rows), max(1, self._preparer.catalog.images_per_product)), -1, np.int64)
        for place, row in enumerate(rows):
            digests = batch.pictures[row].digests
            image_rows[place, : len(digests)] = [self._image_rows[digest] for digest in digests]
        image_vectors = self._image_vectors if len(self._image_vectors) else None
        return encoder.fuse(text_vectors, text_rows, image_vectors, image_rows)


def _nothing_to_embed(encoder: ProductEncoder) -> str:
    reads = " and ".join(
        name for name, used in (("text", encoder.uses_text), ("pictures", encoder.uses_images)) if used
    )
    return (
        f"the encoder reads {reads}, and the product has neither"
        if " and " in reads
        else (f"the encoder reads only {reads}, and the product has none")
    )
