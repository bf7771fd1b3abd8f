"""A night on what shops export: the whole job on an XML feed, and on a database whose password stays unseen."""

from __future__ import annotations

import base64
import json
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from index_builder import IndexReader
from pipelines.catalog import intake
from tests.pipelines.indexing.job import arguments, product, run_job, version_files


def test_a_feed_is_indexed_with_its_pictures(tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    items = []
    for number in range(120):
        row = product(number)
        (tmp_path / "pictures" / f"{number}.png").write_bytes(row["image"]["bytes"])
        items.append(
            f"<item><g:id>{row['product_id']}</g:id><title><![CDATA[{row['title']}]]></title>"
            f"<g:price>{row['price']}</g:price><g:image_link>{number}.png</g:image_link></item>"
        )
    (tmp_path / "catalog").mkdir()
    feed = f'<rss xmlns:g="http://base.google.com/ns/1.0"><channel>{"".join(items)}</channel></rss>'
    (tmp_path / "catalog" / "feed.xml").write_text(feed)
    options = ["--catalog.id_field", "g:id", "--catalog.image_field", "g:image_link"]
    options += ["--catalog.display_fields", "[title, 'g:price']", "--catalog.image_root", str(tmp_path / "pictures")]
    run_job(tmp_path, *options)
    products = IndexReader.open(str(tmp_path / "index")).products
    assert products.num_rows == 120
    assert products["g:price"].to_pylist() == [float(number) for number in range(120)]


def test_a_database_is_indexed_and_found_again(tmp_path: Path) -> None:
    path = tmp_path / "shop.db"
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("CREATE TABLE products (product_id TEXT, title TEXT, price REAL, image BLOB)")
        rows = [product(number) for number in range(120)]
        connection.executemany(
            "INSERT INTO products VALUES (?, ?, ?, ?)",
            [(row["product_id"], row["title"], row["price"], row["image"]["bytes"]) for row in rows],
        )
    options = ["--catalog.uri", f"sqlite:///{path}", "--catalog.query", "SELECT * FROM products ORDER BY product_id"]
    first, _ = run_job(tmp_path, *options)
    embedded = {path: path.stat().st_mtime_ns for path in (tmp_path / "work" / "embeddings").rglob("*.parquet")}
    second, _ = run_job(tmp_path, *options)
    again = {path: path.stat().st_mtime_ns for path in (tmp_path / "work" / "embeddings").rglob("*.parquet")}
    assert again == embedded
    assert version_files(first) == version_files(second)
    assert IndexReader.open(str(tmp_path / "index")).products.num_rows == 120


def test_a_password_reaches_no_file_and_no_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    rows = [product(number) for number in range(120)]

    def answer(url: str, query: str, **options: Any) -> Iterator[bytes]:
        assert "S3cret" in url
        for row in rows:
            yield json.dumps(row | {"image": base64.b64encode(row["image"]["bytes"]).decode()}).encode()

    monkeypatch.setattr(intake, "iter_query", answer)
    address = "postgresql+psycopg://shop:S3cret@db.shop.test/shop?sslpassword=S3cret"
    arguments(tmp_path)
    with caplog.at_level("DEBUG"):
        run_job(tmp_path, "--catalog.uri", address, "--catalog.query", "SELECT 1")
    kept = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert not [path for path in kept if b"S3cret" in path.read_bytes()]
    assert "S3cret" not in caplog.text
    assert any(b"***@db.shop.test" in path.read_bytes() for path in kept if path.name == "manifest.json")
