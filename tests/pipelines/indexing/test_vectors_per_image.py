"""One vector an image (`encoder.vectors: per_image`): drawn products with several pictures, the demo encoder."""

from __future__ import annotations

import io
import json
import shutil
from contextlib import contextmanager
from itertools import chain
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fastapi.testclient import TestClient

from encoders import EncoderConfig, load_product_encoder, load_query_encoder
from index_builder import IndexReader, embedding_shards
from pipelines import build_index, evaluate, search
from pipelines.catalog.dead_letters import read_dead_letters
from pipelines.config.command_line import load_job_config, run_command
from pipelines.config.exit_codes import RunFailedError
from pipelines.config.validation import ConfigError
from pipelines.demo_catalog.picture import encode_jpeg
from pipelines.demo_catalog.products import fresh_picture, make_product
from pipelines.exporting.run import export_version
from pipelines.indexing.catalog_source import CatalogSource
from pipelines.indexing.forecast import forecast_run
from pipelines.indexing.progress import summary_lines
from pipelines.indexing.run_record import RunRecord
from pipelines.published.version_diff import compare_versions
from pipelines.server.app import create_app
from pipelines.server.config import ServerConfig, ServerJobConfig
from pipelines.server.served import open_indexes
from tests.encoders.tiny import save_tiny_encoder
from tests.pipelines.indexing.job import arguments, index_files, run_job, version_files

SCHEMA = pa.schema(
    [
        *(("product_id", pa.string()), ("title", pa.string()), ("images", pa.list_(pa.string()))),
        *(("kind", pa.string()), ("parent", pa.string())),
    ]
)
PRODUCTS = 26
ONE_BROKEN, ALL_BROKEN, NO_PICTURE, TWICE = 3, 5, 7, 9
DEMO = "package://encoders/pretrained/demo"


def drawn_rows(folder: Path) -> list[dict]:
    """Drawn products with two or three pictures each, files in `folder`, and what goes wrong with pictures."""
    folder.mkdir(parents=True)
    rows = []
    for number in range(PRODUCTS):
        product = make_product("demo", 20, number)
        pictures = [product.picture]
        for view in range(1 + number % 2):
            pictures.append(encode_jpeg(fresh_picture(product.attributes, 20, 3 * number + view)))
        names = [f"{product.product_id}-{view}.jpg" for view in range(len(pictures))]
        for name, data in zip(names, pictures, strict=True):
            (folder / name).write_bytes(data)
        row = {"product_id": product.product_id, "title": product.title, "images": names}
        rows.append(row | {"kind": product.attributes.kind, "parent": None})
    (folder / rows[ONE_BROKEN]["images"][1]).write_bytes(b"broken")
    for name in rows[ALL_BROKEN]["images"]:
        (folder / name).write_bytes((folder / name).read_bytes()[:300])
    rows[NO_PICTURE]["images"] = []
    shutil.copy(folder / rows[TWICE]["images"][0], folder / rows[TWICE]["images"][2])
    return [*rows, dict(rows[TWICE])]


def write_catalog(folder: Path, rows: list[dict]) -> None:
    """Two Parquet files; one that would hold the same bytes is left alone."""
    folder.mkdir(parents=True, exist_ok=True)
    for part, share in enumerate((rows[:12], rows[12:])):
        new = io.BytesIO()
        pq.write_table(pa.Table.from_pylist(share, schema=SCHEMA), new)
        path = folder / f"part-{part}.parquet"
        if not path.exists() or path.read_bytes() != new.getvalue():
            path.write_bytes(new.getvalue())


def settings(folder: Path, *further: str) -> list[str]:
    return [
        *("--encoder.uri", DEMO, "--encoder.vectors", "per_image"),
        *("--catalog.image_field", "images", "--catalog.images_per_product", "3"),
        *("--catalog.image_root", str(folder / "pictures"), "--catalog.shard_rows", "10"),
        *("--catalog.display_fields", "[title, kind]", "--index.factory", "Flat"),
        *further,
    ]


def run(folder: Path, *further: str):
    return run_job(folder, *settings(folder, *further))


@pytest.fixture(scope="module")
def night(tmp_path_factory):
    """A first night, which tests look at; they do not write into its folder."""
    folder = tmp_path_factory.mktemp("night")
    rows = drawn_rows(folder / "pictures")
    write_catalog(folder / "catalog", rows)
    result, record = run(folder)
    return folder, rows, result, record


@pytest.fixture
def second_night(night, tmp_path):
    """A copy of the night's folders, with its rows, to go on from."""
    folder, rows, *_ = night
    for name in ("pictures", "catalog", "work", "index"):
        shutil.copytree(folder / name, tmp_path / name, copy_function=shutil.copy2)
    return tmp_path, [dict(row) for row in rows]


def of_product(reader: IndexReader, product_id: str) -> list[tuple[int | None, str | None]]:
    rows = reader.products.filter(pa.compute.equal(reader.products["product_id"], product_id)).to_pylist()
    return [(row["image_number"], row["image_address"]) for row in rows]


@pytest.mark.parametrize("source", ["embedded", "codes"])
def test_each_image_is_exported_with_its_own_vector(night, tmp_path, source):
    index = str(night[0] / "index")
    done = export_version(index, "parquet", str(tmp_path), vectors=source)
    reader = IndexReader.open(index)
    table = pq.read_table(tmp_path / (tmp_path / "products.LATEST").read_text().strip())
    assert done.rows == table.num_rows == reader.products.num_rows > PRODUCTS
    assert table.drop_columns("vector").to_pylist() == reader.products.to_pylist()
    vectors = table["vector"].combine_chunks().flatten().to_numpy().reshape(table.num_rows, -1)
    np.testing.assert_allclose(vectors, reader.vectors(np.arange(table.num_rows)), atol=2e-3)


def test_each_usable_image_is_a_row_beside_those_of_its_product(night):
    folder, rows, result, _ = night
    reader = IndexReader.open(str(folder / "index"))
    assert reader.products.column_names == ["product_id", "image_number", "image_address", "title", "kind"]
    ids = reader.products["product_id"].to_pylist()
    assert list(dict.fromkeys(ids)) == [row["product_id"] for row in rows[:-1]], "in the order of the catalog"
    assert ids == sorted(ids), "side by side"
    for number, row in enumerate(rows[:-1]):
        expected = list(enumerate(row["images"], start=1))
        if number in (ALL_BROKEN, NO_PICTURE):
            expected = [(None, None)]
        if number == ONE_BROKEN:
            del expected[1]
        if number == TWICE:
            del expected[2]  # the same bytes as the first
        assert of_product(reader, row["product_id"]) == expected
    letters = read_dead_letters(f"{result.uri}/rejected.parquet")
    broken = rows[ONE_BROKEN]
    one = [letter for letter in letters if letter.product_id == broken["product_id"]]
    assert [(letter.outcome, letter.picture) for letter in one] == [("degraded", broken["images"][1])]
    assert one[0].detail.startswith("picture 2: expected JPEG")
    assert sum(letter.product_id == rows[ALL_BROKEN]["product_id"] for letter in letters) == 3
    assert [letter.product_id for letter in letters if letter.reason == "duplicate_id"] == [rows[TWICE]["product_id"]]


def test_products_are_counted_not_rows(night):
    folder, _, result, record = night
    reader, totals = IndexReader.open(str(folder / "index")), result.totals
    catalog = reader.manifest.catalog
    assert reader.manifest.schema_version == 3, "so that a reader which would answer with each row refuses it"
    vectors = reader.products.num_rows
    assert (catalog.rows_in, catalog.products, catalog.rejected, catalog.degraded) == (PRODUCTS + 1, PRODUCTS, 1, 2)
    assert catalog.vectors == vectors == totals.vectors == totals.vectors_embedded
    assert (totals.embedded, totals.carried_over) == (PRODUCTS, 0)
    lines = dict(summary_lines(result, record))
    assert lines["products"] == f"{PRODUCTS}"
    assert lines["vectors"] == f"{vectors}, one an image, {vectors} of them embedded"
    assert lines["index"].startswith(f"{vectors} vectors, Flat")
    assert "vectors of held-out products" in lines["recall 10@10"]
    # Of as many products with one vector each, which is no change of their number.
    plan = forecast_run(CatalogSource(load_job_config(arguments(folder, *settings(folder))).config))
    assert (plan.products, plan.rejected, plan.deleted) == (PRODUCTS, 1, 0)
    assert any(f"{PRODUCTS} products became {PRODUCTS} (0.0%)" in how for _, how in plan.gates)


def test_each_vector_is_the_encoders_of_its_text_and_that_image(night):
    folder, *_ = night
    reader, encoder = IndexReader.open(str(folder / "index")), load_product_encoder(EncoderConfig(uri=DEMO))
    stored = np.concatenate([embedding_shards.read_vectors(uri) for uri in reader.manifest.embedding_shards])
    products = reader.products.to_pylist()
    images = [
        None if row["image_address"] is None else (folder / "pictures" / row["image_address"]).read_bytes()
        for row in products
    ]
    expected = encoder.encode([row["title"] for row in products], images)
    # The last shard ends with the rows of the duplicate, which are not indexed.
    assert len(stored) == len(products) + 2
    assert np.abs(stored[: len(products)] - expected).max() < 2e-3


def test_an_answer_is_a_product_once_and_says_which_image_matched(night, capsys):
    folder, rows, *_ = night
    reader = IndexReader.open(str(folder / "index"))
    encoder = load_query_encoder(reader.query_encoder_uri)
    wanted = rows[11]["images"][2]
    (vector,) = encoder.encode(images=[(folder / "pictures" / wanted).read_bytes()])
    result = reader.search(vector, 50)
    assert len(result.product_ids[0]) == len(set(result.product_ids[0])) == PRODUCTS
    best = reader.search(vector, 200, group=False)
    assert (best.rows[0] >= 0).sum() == reader.products.num_rows, "every row, if it is asked for"
    for product_id, row, (number, address) in zip(
        result.product_ids[0], result.rows[0], result.images[0], strict=False
    ):
        own = [
            each
            for each in best.rows[0].tolist()
            if each >= 0 and best.products["product_id"][each].as_py() == product_id
        ]
        assert row == own[0], "by its best image"
        assert reader.products["image_number"][row].as_py() == number
        assert reader.products["image_address"][row].as_py() == address
    pages = [reader.search(vector, 5, offset=start).product_ids[0] for start in range(0, 30, 5)]
    assert list(chain.from_iterable(pages)) == result.product_ids[0]
    asked = ["--index", str(folder / "index"), "--image", str(folder / "pictures" / wanted), "-k", "3"]
    assert run_command(search.main, [*asked, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [each["product_id"] for each in found] == result.product_ids[0][:3]
    shown = [(each["columns"]["image_number"], each["columns"]["image_address"]) for each in found]
    assert shown == result.images[0][:3]
    assert run_command(search.main, asked) == 0
    assert "image_number" in capsys.readouterr().out
    passing = reader.search(vector, 50, filter="image_number = 2")
    assert {number for number, _ in passing.images[0]} == {2}


def test_a_product_of_several_images_is_left_out_of_those_like_it(night):
    folder, rows, *_ = night
    config = ServerJobConfig(server=ServerConfig(indexes={"main": str(folder / "index")}))
    name = rows[0]["product_id"]
    reader = IndexReader.open(str(folder / "index"))
    assert len(of_product(reader, name)) > 1
    with TestClient(create_app(config, open_indexes(config.server))) as client:
        found = client.post("/search", json={"product_id": name, "k": 100}).json()["hits"]
    ids = [hit["product_id"] for hit in found]
    assert sorted(ids) == sorted(set(reader.products["product_id"].to_pylist()) - {name})


def test_a_column_of_groups_wins_and_products_without_a_value_stay_whole(second_night):
    folder, rows = second_night
    for row in rows[:8]:
        row["parent"] = "a parent"
    write_catalog(folder / "catalog", rows)
    run(folder, "--catalog.group_field", "parent")
    reader = IndexReader.open(str(folder / "index"))
    vector = np.eye(reader.manifest.index.spec.dim, dtype=np.float32)[0]
    by_parent = reader.search(vector, 100, group=True)
    assert len(by_parent.product_ids[0]) == PRODUCTS - 7
    assert by_parent.images[0][0] == tuple(
        reader.products[name][by_parent.rows[0][0]].as_py() for name in ("image_number", "image_address")
    )
    assert len(reader.search(vector, 100).product_ids[0]) == PRODUCTS


def test_only_changed_images_are_embedded_again(second_night, tmp_path_factory):
    folder, rows = second_night
    changed, renamed = rows[11], rows[12]
    shutil.copy(folder / "pictures" / rows[13]["images"][1], folder / "pictures" / changed["images"][1])
    renamed["title"] = "another title"
    added = rows[14]["images"]
    shutil.copy(folder / "pictures" / rows[15]["images"][2], folder / "pictures" / "added.jpg")
    rows[14]["images"] = [*added, "added.jpg"]
    write_catalog(folder / "catalog", rows)
    planned = forecast_run(CatalogSource(load_job_config(arguments(folder, *settings(folder))).config))
    result, _ = run(folder)
    # An image that changed, one that came, the two of the new title, and the product whose pictures are all broken.
    assert result.totals.vectors_embedded == 1 + 1 + 2 + 1
    assert (result.totals.embedded, result.totals.carried_over) == (4, PRODUCTS - 4)
    # Broken images are tried again: what comes of them is known when they are decoded.
    assert planned.vectors_to_embed == 1 + 1 + 2 + 1 + 1
    elsewhere = tmp_path_factory.mktemp("whole")
    whole, _ = run(folder, "--work.uri", str(elsewhere / "work"), "--index.uri", str(elsewhere / "index"))
    assert version_files(result) == version_files(whole)
    index, versions = str(folder / "index"), sorted(path.name for path in (folder / "index" / "versions").iterdir())
    diff = compare_versions(index, versions[0], versions[1])
    assert (diff.added, diff.removed, diff.kept) == (0, 0, PRODUCTS)
    assert diff.changed == {"image_number": 1, "image_address": 1, "title": 1}, "of the product with one image more"


def test_a_run_that_broke_off_ends_with_the_same_bytes_whatever_the_shards(night, tmp_path, monkeypatch):
    folder, _, result, _ = night
    shutil.copytree(folder / "catalog", tmp_path / "catalog")
    shutil.copytree(folder / "pictures", tmp_path / "pictures", copy_function=shutil.copy2)
    timed = RunRecord.timed

    @contextmanager
    def failing(record: RunRecord, stage: str, unit: str = "all"):
        with timed(record, stage, unit) as facts:
            if stage == "embed" and unit == "000003":
                raise OSError("the machine went away")
            yield facts

    with monkeypatch.context() as patch:
        patch.setattr(RunRecord, "timed", failing)
        with pytest.raises(RunFailedError, match="the machine went away"):
            run(tmp_path)
    standing = {path: path.stat().st_mtime_ns for path in (tmp_path / "work" / "embeddings").rglob("*.parquet")}
    assert standing
    threads = ("--direct_num_workers", "2", "--direct_running_mode", "multi_threading")
    again, _ = run(tmp_path, *threads)
    assert version_files(again) == version_files(result)
    assert {path: path.stat().st_mtime_ns for path in standing} == standing
    # Cut into smaller shards, and so carried over from others.
    smaller, _ = run(tmp_path, "--catalog.shard_rows", "6")
    assert smaller.totals.vectors_embedded == 1, "of the product whose pictures are all broken"
    assert index_files(smaller) == index_files(result)
    tables = [IndexReader.open(str(place / "index")).products for place in (folder, tmp_path)]
    assert tables[0].equals(tables[1])


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["--catalog.images_per_product", "1"], "catalog.images_per_product is 1: expected how many pictures"),
        (["--catalog.image_field", "null"], "the catalog has no pictures"),
        (["--catalog.display_fields", "[title, image_number]"], "a column image_number of its own"),
        (["--encoder.uri", "BERT"], "the bibert encoder reads texts only; expected per_product"),
    ],
)
def test_what_cannot_have_a_vector_an_image_is_refused_before_any_work(tmp_path, overrides, message):
    row = {"product_id": "a", "title": "a mug", "images": ["a.jpg"], "kind": "mug", "parent": None}
    schema = SCHEMA.append(pa.field("image_number", pa.int64()))
    (tmp_path / "catalog").mkdir()
    pq.write_table(pa.Table.from_pylist([row], schema=schema), tmp_path / "catalog" / "a.parquet")
    if "BERT" in overrides:
        overrides = ["--encoder.uri", str(save_tiny_encoder(tmp_path / "bert", model="bibert").uri)]
    source = CatalogSource(load_job_config(arguments(tmp_path, *settings(tmp_path), *overrides)).config)
    with pytest.raises(ConfigError, match=f"encoder.vectors is per_image, but .*{message}"):
        source.check()


def test_an_index_of_the_standing_vectors_counts_the_same(second_night):
    folder, _ = second_night
    places = ("--work.uri", str(folder / "work"), "--index.uri", str(folder / "other"))
    assert run_command(build_index.main, [*places, "--index.factory", "IVF2,SQ8", "--plan"]) == 0
    vectors = IndexReader.open(str(folder / "index")).products.num_rows
    assert run_command(build_index.main, [*places, "--index.factory", "IVF2,SQ8"]) == 0
    reader = IndexReader.open(str(folder / "other"))
    assert (reader.manifest.catalog.products, reader.manifest.catalog.vectors) == (PRODUCTS, vectors)
    vector = np.eye(reader.manifest.index.spec.dim, dtype=np.float32)[0]
    assert len(set(reader.search(vector, 100).product_ids[0])) == PRODUCTS


def test_evaluation_counts_a_product_once(night, tmp_path):
    folder, rows, *_ = night
    queries = [{"query_id": f"q{number}", "query": rows[number]["title"]} for number in range(12)]
    # Labels of products that lie anywhere in the ranking, so that all of it counts.
    labels = [{"query_id": f"q{n}", "product_id": rows[n + 7]["product_id"], "label": "E"} for n in range(12)]
    pq.write_table(pa.Table.from_pylist(queries), tmp_path / "queries.parquet")
    pq.write_table(pa.Table.from_pylist(labels), tmp_path / "judgments.parquet")
    systems = [
        {"name": "index", "index": str(folder / "index")},
        {"name": "exact", "encoder": {"uri": DEMO, "vectors": "per_image"}},
        {"name": "fused", "encoder": {"uri": DEMO}},
    ]
    files = ("--queries", str(tmp_path / "queries.parquet"), "--judgments", str(tmp_path / "judgments.parquet"))
    asked = ("--systems", json.dumps(systems), "--out", str(tmp_path / "out"))
    counted = ("--evaluation.k", str(PRODUCTS), "--evaluation.resamples", "20")
    command = [*arguments(folder, *settings(folder)), *files, *asked, *counted]
    kept = [text for text in command if text not in ("--index.factory", "Flat")]
    assert run_command(evaluate.main, kept) == 0
    printed = (tmp_path / "out" / "evaluation.csv").read_text()
    of_system = {}
    for line in printed.splitlines()[1:]:
        system, metric, value = line.split(",")[:3]
        of_system.setdefault(system, {})[metric] = value
    (share,) = (metric for metric in of_system["index"] if metric.startswith("of exact"))
    assert float(of_system["index"].pop(share)) == 1
    assert of_system["index"] == of_system["exact"] != of_system["fused"]
