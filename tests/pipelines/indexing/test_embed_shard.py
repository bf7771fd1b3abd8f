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
from pipelines.catalog.config import CatalogConfig
from pipelines.catalog.dead_letters import Reason, read_dead_letters
from pipelines.catalog.plan import plan_catalog
from pipelines.catalog.previous_version import CarryOver, build_carry_over
from pipelines.images.config import DecodeConfig, FetchConfig
from pipelines.images.fetch import ImageFetcher
from pipelines.images.pool import ImagePool
from pipelines.indexing.embed_shard import ProductPreparer, embed_shard
from pipelines.indexing.product_table import read_columns
from pipelines.indexing.shard_files import ShardFiles
from tests.fakes import FakeProductEncoder


def picture(colour: tuple[int, int, int], *, size: int = 24) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (size, size), colour).save(file, "PNG")
    return file.getvalue()


RED, BLUE = picture((255, 0, 0)), picture((0, 0, 255))


def write_catalog(folder, rows: list[dict]) -> CatalogConfig:
    schema = pa.schema(
        [("product_id", pa.string()), ("title", pa.string()), ("image", pa.binary()), ("price", pa.float64())]
    )
    folder.mkdir(exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), folder / "part-0.parquet")
    return CatalogConfig(uri=str(folder), image_field="image", display_fields=("price",))


class Embedded:
    """Embeds a one-shard catalog with a fake encoder and keeps what came of it."""

    def __init__(self, folder, catalog: CatalogConfig, *, encoder=None, previous: Embedded | None = None, name="shard"):
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
                catalog=catalog, uses_text=self.encoder.uses_text, pool=pool, carry_over=carry_over
            )
            self.summary = embed_shard(self.encoder, preparer, shard, self.files)
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
    # 40 rows are several batches of four: pictures are told apart over the whole shard.
    rows = [row(f"p{number}", image=RED if number % 2 else BLUE) for number in range(40)]
    made = Embedded(tmp_path, write_catalog(tmp_path / "catalog", rows))
    assert made.encoder.image_calls == 2
    assert made.encoder.text_calls == 10
    assert len(made.ids) == 40
    assert len(np.unique(made.vectors, axis=0)) == 2


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
