"""The nightly job against S3: moto's server on loopback speaks the protocol, s3fs and botocore are the real clients."""

from __future__ import annotations

import json

import fsspec

from index_builder import IndexReader, publish
from pipelines import search
from pipelines.catalog.config import CatalogConfig
from pipelines.catalog.plan import plan_catalog
from tests.pipelines.catalog.catalogs import read_plan
from tests.pipelines.indexing.job import index_files, product, run_job

PRODUCTS, WITH_PICTURES = 120, 40


def put(uri: str, data: bytes) -> None:
    with fsspec.open(uri, "wb") as file:
        file.write(data)


def test_catalog_pictures_work_and_index_in_a_bucket(bucket, tmp_path, capsys):
    rows = []
    for number in range(PRODUCTS):
        source = product(number)
        rows.append({key: source[key] for key in ("product_id", "title", "price")})
        if number < WITH_PICTURES:
            put(f"{bucket}/pictures/{number}.png", source["image"]["bytes"])
            rows[-1]["image"] = f"{number}.png"
    put(f"{bucket}/catalog/part-0.jsonl", "".join(json.dumps(row) + "\n" for row in rows).encode())
    overrides = [
        *("--catalog.uri", f"{bucket}/catalog", "--catalog.image_root", f"{bucket}/pictures"),
        *("--work.uri", f"{bucket}/work", "--index.uri", f"{bucket}/index"),
    ]
    first, record = run_job(tmp_path, *overrides)
    assert (first.status, first.totals.embedded, first.totals.rejected) == ("published", PRODUCTS, 0)
    assert record.stage_counts()["embed"]["store_requests"] > 2 * WITH_PICTURES, "each picture is looked up and read"
    assert first.uri.startswith(f"{bucket}/index/versions/")
    assert IndexReader.open(f"{bucket}/index").products.num_rows == PRODUCTS

    local = tmp_path / "local"
    fsspec.filesystem("s3").get(f"{bucket}/", f"{local}/", recursive=True)
    overrides_beside = [
        *("--catalog.uri", str(local / "catalog"), "--catalog.image_root", str(local / "pictures")),
        *("--work.uri", str(tmp_path / "work"), "--index.uri", str(tmp_path / "index")),
    ]
    beside, _ = run_job(tmp_path, *overrides_beside)
    assert beside.totals.embedded == PRODUCTS
    manifests = [publish.read_manifest(uri) for uri in (f"{bucket}/index", str(tmp_path / "index"))]
    hashes = [{file.path: file.sha256 for file in manifest.files if ".faiss" in file.path} for manifest in manifests]
    assert hashes[0] == hashes[1], "the store makes no difference to the index"
    assert set(hashes[1].values()) == set(index_files(beside).values())

    put(f"{bucket}/pictures/5.png", product(700)["image"]["bytes"])
    second, _ = run_job(tmp_path, *overrides)
    assert (second.totals.embedded, second.totals.carried_over) == (1, PRODUCTS - 1)
    assert second.totals.images_unchanged == WITH_PICTURES - 1, "the store is asked for the versions alone"

    capsys.readouterr()
    assert search.main(["--index", f"{bucket}/index", "-k", "3", rows[3]["title"]]) == 0
    assert "product_id" in capsys.readouterr().out


def test_every_text_format_is_cut_and_read_from_a_bucket(bucket, tmp_path):
    rows = [{"product_id": f"p{number}", "title": f"title {number}"} for number in range(3000)]
    put(f"{bucket}/a/part-0.jsonl", "".join(json.dumps(row) + "\n" for row in rows[:1500]).encode())
    lines = ["product_id,title", *(f"{row['product_id']},{row['title']}" for row in rows[1500:])]
    put(f"{bucket}/b/part-0.csv", "\n".join(lines).encode())
    for folder, expected in (("a", rows[:1500]), ("b", rows[1500:])):
        config = CatalogConfig(uri=f"{bucket}/{folder}", shard_rows=200)
        plan = plan_catalog(config, spool_uri=str(tmp_path / "spool"))
        assert len(plan.shards) > 1
        batches = read_plan(plan, config)
        ids = [identifier for batch in batches for identifier in batch.product_ids.to_pylist()]
        assert ids == [row["product_id"] for row in expected]
