from __future__ import annotations

import dataclasses
import io

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from index_builder import embedding_shards
from index_builder.embedding_shards import Modality
from index_builder.meter import METER
from pipelines.catalog.config import CatalogConfig
from pipelines.catalog.dead_letters import Reason, read_dead_letters
from pipelines.catalog.plan import plan_catalog
from pipelines.catalog.previous_version import CarryOver, build_carry_over
from pipelines.images.config import DecodeConfig, FetchConfig
from pipelines.images.fetch import ImageFetcher
from pipelines.images.pool import ImagePool
from pipelines.images.product_images import decode_images
from pipelines.indexing import embed_shard as embed_shard_module
from pipelines.indexing.embed_shard import ProductPreparer, embed_shard
from pipelines.indexing.product_table import read_columns
from pipelines.indexing.shard_files import ShardFiles
from pipelines.indexing.tower_memory import TowerMemory
from tests.fakes import FakeProductEncoder


def picture(colour: tuple[int, int, int], *, size: int = 24) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (size, size), colour).save(file, "PNG")
    return file.getvalue()


RED, BLUE = picture((255, 0, 0)), picture((0, 0, 255))


def write_catalog(folder, rows: list[dict], *, images_per_product: int = 1) -> CatalogConfig:
    image = pa.binary() if images_per_product == 1 else pa.list_(pa.binary())
    schema = pa.schema([("product_id", pa.string()), ("title", pa.string()), ("image", image), ("price", pa.float64())])
    folder.mkdir(exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), folder / "part-0.parquet")
    found = {"image_field": "image", "images_per_product": images_per_product}
    return CatalogConfig(uri=str(folder), display_fields=("price",), **found)


class Embedded:
    """Embeds a one-shard catalog with a fake encoder and keeps what came of it."""

    def __init__(
        self,
        folder,
        catalog: CatalogConfig,
        *,
        encoder=None,
        previous: Embedded | None = None,
        name="shard",
        per_image: bool = False,
        memory: TowerMemory | None = None,
        measured: int = 0,
    ):
        self.encoder = encoder or FakeProductEncoder()
        (shard,) = plan_catalog(catalog, spool_uri=str(folder / "spool")).shards
        self.files = ShardFiles(folder=str(folder / name), key="k" * 32)
        carry_over = None
        if previous is not None:
            carry_over = CarryOver(build_carry_over([previous.files.embeddings], str(folder / name / "lookup")))
        pool = None
        if self.encoder.uses_images:
            decode = DecodeConfig(threads=2, pending_images=12)
            pool = ImagePool(ImageFetcher(FetchConfig(), catalog.image_root), self.encoder.preprocessing, decode)
        try:
            preparer = ProductPreparer(
                catalog=catalog,
                uses_text=self.encoder.uses_text,
                pool=pool,
                carry_over=carry_over,
                per_image=per_image,
            )
            METER.take()
            self.summary = embed_shard(self.encoder, preparer, shard, self.files, memory=memory, measured=measured)
            self.counts = METER.take()
        finally:
            if pool is not None:
                pool.close()

    @property
    def ids(self) -> list[str]:
        return embedding_shards.read_ids(self.files.embeddings).to_pylist()

    @property
    def vectors(self) -> np.ndarray:
        return embedding_shards.read_vectors(self.files.embeddings)

    @property
    def modalities(self) -> list[int]:
        return embedding_shards.read_columns(self.files.embeddings, ["modalities"])["modalities"].to_pylist()

    @property
    def letters(self) -> list[tuple[str, str, str]]:
        letters = read_dead_letters(self.files.rejected)
        return [(letter.product_id, letter.outcome, str(letter.reason)) for letter in letters]


def row(product_id, title="a red mug", image=RED, price=1.0) -> dict:
    return {"product_id": product_id, "title": title, "image": image, "price": price}


def test_every_row_is_a_product_or_a_dead_letter(tmp_path):
    rows = [
        row("both"),
        row("text only", image=None),
        row("picture only", title=None, image=BLUE),
        row("nothing", title="  ", image=None),
        row("bad picture", image=b"<html>not found</html>"),
        row("only a bad picture", title=None, image=RED[:40]),
        row(None),
    ]
    made = Embedded(tmp_path, write_catalog(tmp_path / "catalog", rows))
    assert made.ids == ["both", "text only", "picture only", "bad picture"]
    text, image, degraded = Modality.TEXT, Modality.IMAGE, Modality.DEGRADED
    assert made.modalities == [text | image, text, image, text | degraded]
    assert sorted((name, outcome) for name, outcome, _ in made.letters) == [
        ("", "rejected"),
        ("bad picture", "degraded"),
        ("nothing", "rejected"),
        ("only a bad picture", "rejected"),
    ]
    summary = made.summary
    assert (summary.rows_in, summary.products, summary.rejected, summary.degraded) == (7, 4, 3, 1)
    assert summary.rows_in == summary.products + summary.rejected
    assert summary.revisable
    assert ShardFiles.read_summary(made.files, 0) == summary
    prices = read_columns(made.files.columns).column(0).to_pylist()
    assert prices == [1.0] * 4


def test_a_degraded_product_has_the_vector_of_its_text(tmp_path):
    rows = [row("text only", image=None), row("bad", image=b"broken")]
    made = Embedded(tmp_path, write_catalog(tmp_path / "catalog", rows))
    assert np.array_equal(*made.vectors)


def test_bad_pictures_reject_where_the_shop_wants_that(tmp_path):
    catalog = write_catalog(tmp_path / "catalog", [row("good"), row("bad", image=b"broken")])
    made = Embedded(tmp_path, dataclasses.replace(catalog, on_bad_image="reject"))
    assert made.ids == ["good"]
    assert [letter[:2] for letter in made.letters] == [("bad", "rejected")]
    assert made.summary.rejected == 1
    assert made.summary.degraded == 0


def test_equal_texts_and_pictures_go_through_the_towers_once(tmp_path):
    # 40 rows are several batches of four: texts and pictures are told apart over the whole shard.
    rows = [row(f"p{number}", image=RED if number % 2 else BLUE) for number in range(40)]
    made = Embedded(tmp_path, write_catalog(tmp_path / "catalog", rows))
    assert made.encoder.image_calls == 2
    assert made.encoder.text_calls == 1
    assert len(made.ids) == 40
    assert len(np.unique(made.vectors, axis=0)) == 2


def test_what_another_shard_embedded_is_neither_decoded_nor_embedded_again(tmp_path, monkeypatch):
    rows = [row(f"p{number}", title=f"mug {number % 3}", image=BLUE if number % 2 else RED) for number in range(12)]
    memory, encoder = TowerMemory(), FakeProductEncoder()
    first = Embedded(tmp_path, write_catalog(tmp_path / "catalog", rows), encoder=encoder, memory=memory, name="first")
    assert (first.counts["texts_reused"], first.counts["images_reused"]) == (9, 10)
    rows[5] = row("p5", title="another mug", image=GREEN)
    catalog = write_catalog(tmp_path / "changed", rows)
    decoded: list[int] = []
    monkeypatch.setattr(
        embed_shard_module, "decode_images", lambda pool, data: decoded.append(len(data)) or decode_images(pool, data)
    )
    second = Embedded(tmp_path, catalog, encoder=encoder, memory=memory, name="second")
    assert (encoder.text_calls, encoder.image_calls, sum(decoded)) == (3 + 1, 2 + 1, 1)
    assert (second.counts["texts_reused"], second.counts["images_reused"]) == (11, 11)
    alone = Embedded(tmp_path, catalog, name="alone")
    assert np.array_equal(second.vectors, alone.vectors)
    unlike = ("key", "seconds")
    assert {name: value for name, value in dataclasses.asdict(second.summary).items() if name not in unlike} == {
        name: value for name, value in dataclasses.asdict(alone.summary).items() if name not in unlike
    }


def test_a_shard_that_measures_decodes_all_images_of_its_own(tmp_path):
    encoder = FakeProductEncoder(uses_text=False)
    encoder.load_exact = lambda: FakeProductEncoder(uses_text=False)
    catalog, memory = write_catalog(tmp_path / "catalog", [row(f"p{number}") for number in range(4)]), TowerMemory()
    made = [Embedded(tmp_path, catalog, encoder=encoder, memory=memory, name=name, measured=2) for name in ("a", "b")]
    assert len(made[0].summary.cosines) == 2
    assert made[0].summary.cosines == made[1].summary.cosines


def test_a_second_run_embeds_only_what_changed(tmp_path):
    rows = [row(f"p{number}", title=f"mug number {number}", image=picture((number, 9, 9))) for number in range(30)]
    first = Embedded(tmp_path, write_catalog(tmp_path / "catalog", rows), name="first")
    rows[3]["title"] = "another text"
    rows[7]["image"] = BLUE
    rows[8]["price"] = 99.0
    rows[9]["product_id"] = "renamed"
    del rows[20]
    rows.append(row("new", title="brand new"))
    second = Embedded(tmp_path, write_catalog(tmp_path / "catalog", rows), name="second", previous=first)
    assert (second.summary.embedded, second.summary.carried_over) == (3, 27)
    assert second.encoder.image_calls == 3
    assert second.encoder.text_calls == 3
    whole = Embedded(tmp_path, write_catalog(tmp_path / "catalog", rows), name="whole")
    assert second.ids == whole.ids
    assert np.array_equal(second.vectors, whole.vectors)


def test_a_degraded_product_is_tried_again(tmp_path):
    catalog = write_catalog(tmp_path / "catalog", [row("p", image=b"broken")])
    first = Embedded(tmp_path, catalog, name="first")
    second = Embedded(tmp_path, catalog, name="second", previous=first)
    assert second.summary.embedded == 1


def test_a_text_encoder_does_not_look_at_pictures(tmp_path):
    catalog = write_catalog(tmp_path / "catalog", [row("p", image=b"broken"), row("no text", title=None)])
    made = Embedded(tmp_path, catalog, encoder=FakeProductEncoder(uses_images=False))
    assert made.ids == ["p"]
    assert made.letters == [("no text", "rejected", Reason.empty_product)]
    assert not made.summary.revisable


@pytest.mark.parametrize("size", [0, 1])
def test_tiny_shards(tmp_path, size):
    rows = [row("p")][:size]
    catalog = write_catalog(tmp_path / "catalog", [*rows, row(None)])
    assert len(Embedded(tmp_path, catalog).ids) == size


def test_a_failing_model_leaves_no_complete_shard(tmp_path):
    class Broken(FakeProductEncoder):
        def encode_images(self, pixels):
            raise RuntimeError("out of memory")

    catalog = write_catalog(tmp_path / "catalog", [row(f"p{number}") for number in range(50)])
    with pytest.raises(RuntimeError, match="out of memory"):
        Embedded(tmp_path, catalog, encoder=Broken())
    assert not (tmp_path / "shard" / f"{'k' * 32}.json").exists()
    assert not (tmp_path / "shard" / f"{'k' * 32}.parquet").exists()


@pytest.mark.parametrize("by", ["image_field", "image_template"])
def test_pictures_named_by_a_column_or_a_template_reach_the_encoder(tmp_path, by):
    folder = tmp_path / "catalog"
    folder.mkdir()
    (tmp_path / "010").mkdir()
    (tmp_path / "010" / "0108.png").write_bytes(RED)
    (folder / "a.csv").write_text("product_id,title,image\n0108,a mug,010/0108.png\n")
    value = {"image_field": "image", "image_template": "{product_id[:3]}/{product_id}.png"}[by]
    catalog = CatalogConfig(uri=str(folder), image_root=str(tmp_path), **{by: value})
    (shard,) = plan_catalog(catalog, spool_uri=str(tmp_path / "spool")).shards
    files, encoder = ShardFiles(folder=str(tmp_path / "shard"), key="k" * 32), FakeProductEncoder()
    decode = DecodeConfig(threads=2, pending_images=12)
    preparer = ProductPreparer.open(catalog, FetchConfig(), decode, inputs=encoder, previous=None)
    try:
        embed_shard(encoder, preparer, shard, files)
    finally:
        preparer.close()
    modalities = embedding_shards.read_columns(files.embeddings, ["modalities"])["modalities"].to_pylist()
    assert modalities == [Modality.TEXT | Modality.IMAGE]


BAD, GREEN, GREY = RED[:60], picture((0, 255, 0)), picture((90, 90, 90))


def several(folder, rows: list[dict], **options) -> Embedded:
    """Embeds products of up to three pictures, each of which gives a vector."""
    catalog = write_catalog(folder / "catalog", rows, images_per_product=3)
    changes = {"on_bad_image": options.pop("on_bad_image", "degrade")}
    return Embedded(folder, dataclasses.replace(catalog, **changes), per_image=True, **options)


def image_numbers(made: Embedded) -> list[tuple[str, int | None]]:
    return list(zip(made.ids, read_columns(made.files.columns)["image_number"].to_pylist(), strict=True))


def test_each_image_of_a_product_gives_a_vector(tmp_path):
    rows = [
        row("three", image=[RED, BLUE, GREEN]),
        row("twice", image=[RED, BLUE, RED]),
        row("no text", title=None, image=[GREY, GREEN]),
        row("no picture", image=[]),
        row("one broken", image=[RED, BAD, GREEN]),
        row("all broken", image=[BAD, b"broken"]),
        row("nothing left", title=None, image=[BAD]),
    ]
    made = several(tmp_path, rows)
    assert image_numbers(made) == [
        *(("three", 1), ("three", 2), ("three", 3), ("twice", 1), ("twice", 2), ("no text", 1), ("no text", 2)),
        *(("no picture", None), ("one broken", 1), ("one broken", 3), ("all broken", None)),
    ]
    text, image, degraded, further = Modality.TEXT, Modality.IMAGE, Modality.DEGRADED, Modality.FURTHER
    both = text | image
    assert made.modalities == [
        *(both, both | further, both | further, both, both | further, image, image | further),
        *(text, both, both | further, text | degraded),
    ]
    summary = made.summary
    assert (summary.rows_in, summary.products, summary.rejected, summary.degraded) == (7, 6, 1, 2)
    assert (summary.vectors, summary.vectors_embedded, summary.embedded, summary.without_image) == (11, 11, 6, 2)
    letters = [
        (letter.product_id, letter.outcome, letter.detail[:9]) for letter in read_dead_letters(made.files.rejected)
    ]
    assert sorted(letters) == [
        *(("all broken", "degraded", "picture 1"), ("all broken", "degraded", "picture 2")),
        *(("nothing left", "rejected", "picture 1"), ("one broken", "degraded", "picture 2")),
    ]
    ids, first = embedding_shards.read_products(made.files.embeddings)
    assert ids.to_pylist() == ["three", "twice", "no text", "no picture", "one broken", "all broken"]
    assert first.tolist() == [0, 3, 5, 7, 8, 10]
    # Each is the vector of a product that has this one image, to the bit.
    alone = write_catalog(
        tmp_path / "alone", [row("a", image=BLUE), row("b", title=None, image=GREEN), row("c", image=None)]
    )
    single = Embedded(tmp_path, alone, name="alone-shard").vectors
    assert np.array_equal(made.vectors[[1, 6, 7]], single)
    assert np.array_equal(made.vectors[10], single[2])
    assert made.encoder.image_calls == 4, "each distinct picture that can be decoded"


def test_of_a_product_only_the_images_that_changed_are_embedded_again(tmp_path):
    rows = [row(f"p{number}", title=f"mug {number}", image=[picture((number, 9, 9)), RED, BLUE]) for number in range(9)]
    rows[4]["image"][1] = BAD
    first = several(tmp_path, rows, name="first")
    assert (first.summary.vectors, first.summary.degraded) == (26, 1)
    rows[2]["image"] = [GREY, *rows[2]["image"][1:]]
    rows[3]["image"] = [*reversed(rows[3]["image"])]
    rows[5]["title"] = "a mug of another name"
    rows[6]["image"] = rows[6]["image"][:1]
    second = several(tmp_path, rows, name="second", previous=first)
    assert (second.summary.vectors_embedded, second.summary.vectors) == (1 + 3, 24)
    assert (second.summary.embedded, second.summary.carried_over, second.summary.degraded) == (2, 7, 1)
    whole = several(tmp_path, rows, name="whole")
    assert second.ids == whole.ids
    assert np.array_equal(second.vectors, whole.vectors)
    assert image_numbers(second) == image_numbers(whole)
    assert second.letters == [("p4", "degraded", Reason.picture_truncated)]


def test_one_bad_picture_rejects_all_images_where_the_shop_wants_that(tmp_path):
    made = several(tmp_path, [row("bad", image=[RED, BAD]), row("good", image=[RED, BLUE])], on_bad_image="reject")
    assert made.ids == ["good", "good"]
    assert (made.summary.products, made.summary.rejected, made.summary.vectors) == (1, 1, 2)


def test_a_picture_of_a_rejected_product_serves_the_next_one(tmp_path):
    # Batches of one product: the first is rejected when its good picture is decoded already.
    rows = [row("bad", image=[RED, BAD]), *(row(f"p{number}", image=[RED]) for number in range(5))]
    catalog = dataclasses.replace(
        write_catalog(tmp_path / "catalog", rows, images_per_product=4), on_bad_image="reject"
    )
    assert Embedded(tmp_path, catalog).ids == [f"p{number}" for number in range(5)]
