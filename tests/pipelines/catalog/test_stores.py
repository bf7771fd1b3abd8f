"""A catalog behind https: one file or a list, read in ranges from a real server; columns in the names of folders."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from pipelines.catalog.config import CatalogConfig, CatalogError
from pipelines.catalog.plan import catalog_schema, plan_catalog
from pipelines.catalog.stores import hive_partitions
from tests.pipelines.catalog.catalogs import SUFFIXES, compress, encode, letters_of, pairs, read_plan, write

ROWS = [{"product_id": str(number), "title": f"title {number}"} for number in range(5000)]


class FileServer(ThreadingHTTPServer):
    """Serves what is in `files`, with ranges and etags, and counts the bytes that it sends."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files: dict[str, bytes] = {}
        self.sent_bytes = 0


class _Handler(BaseHTTPRequestHandler):
    server: FileServer

    def do_HEAD(self) -> None:
        self._answer(send=False)

    def do_GET(self) -> None:
        self._answer(send=True)

    def _answer(self, *, send: bool) -> None:
        data = self.server.files.get(self.path)
        if data is None:
            self.send_error(404)
            return
        start, stop = 0, len(data)
        asked = self.headers.get("Range", "")
        if asked.startswith("bytes="):
            first, _, last = asked.removeprefix("bytes=").partition("-")
            start, stop = int(first), min(int(last) + 1, len(data)) if last else len(data)
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{stop - 1}/{len(data)}")
        else:
            self.send_response(200)
        self.send_header("Content-Length", str(stop - start))
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("ETag", f'"{hash(data)}"')
        self.end_headers()
        if send:
            self.wfile.write(data[start:stop])
            self.server.sent_bytes += stop - start

    def log_message(self, format: str, *args: Any) -> None:
        """Quiet."""


@pytest.fixture
def server() -> Iterator[FileServer]:
    with FileServer() as running:
        thread = threading.Thread(target=running.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        yield running
        running.shutdown()
        thread.join()


@pytest.mark.parametrize("format", list(SUFFIXES))
@pytest.mark.parametrize("compression", ["none", "gzip"])
def test_files_behind_http_give_the_same_products(
    format: str, compression: str, server: FileServer, tmp_path: Path
) -> None:
    suffix = SUFFIXES[format] + (".gz" if compression == "gzip" else "")
    server.files = {
        f"/{name}{suffix}": compress(encode(rows, format, chunk_rows=1000), compression)
        for name, rows in (("a", ROWS[:2000]), ("b", ROWS[2000:]))
    }
    address = f"http://127.0.0.1:{server.server_port}"
    config = CatalogConfig(uri=(f"{address}/b{suffix}", f"{address}/a{suffix}"), shard_rows=500)
    assert catalog_schema(config).files == 2
    plan = plan_catalog(config, spool_uri=str(tmp_path))
    assert len(plan.shards) >= 9
    found = [pair for batch in read_plan(plan, config) for pair in pairs(batch)]
    assert found == [(row["product_id"], row["title"]) for row in ROWS]
    server.files = {name: data[:-1] + b"\n" for name, data in server.files.items()}
    server.files[f"/a{suffix}"] += b"\n"
    if format == "jsonl" and compression == "none":
        again = plan_catalog(config, spool_uri=str(tmp_path))
        assert {shard.key for shard in again.shards}.isdisjoint(
            shard.key for shard in plan.shards if shard.ranges[0].file.name == f"a{suffix}"
        )


def test_planning_a_remote_parquet_file_fetches_its_footer_only(server: FileServer, tmp_path: Path) -> None:
    rows = [{"product_id": str(number), "title": "a", "image": os.urandom(20_000)} for number in range(200)]
    server.files = {"/a.parquet": encode(rows, "parquet", chunk_rows=20)}
    config = CatalogConfig(uri=f"http://127.0.0.1:{server.server_port}/a.parquet")
    plan_catalog(config, spool_uri=str(tmp_path))
    assert server.sent_bytes <= 200_000
    assert len(server.files["/a.parquet"]) >= 4_000_000


def test_a_missing_address_is_an_error(server: FileServer) -> None:
    with pytest.raises(CatalogError, match=r"found nothing there"):
        catalog_schema(CatalogConfig(uri=f"http://127.0.0.1:{server.server_port}/none.csv"))


def test_folders_with_an_equals_sign_are_columns() -> None:
    assert hive_partitions("a/kind=red%20shoe/day=__HIVE_DEFAULT_PARTITION__/x=y=z/part=0.csv") == (
        ("kind", "red shoe"),
        ("day", None),
        ("x", "y=z"),
    )


@pytest.mark.parametrize("format", list(SUFFIXES))
def test_partition_columns_are_carried_with_the_type_of_their_values(format: str, tmp_path: Path) -> None:
    days: list[tuple[str, Any]] = [("1", 1), ("2", 2), ("__HIVE_DEFAULT_PARTITION__", None)]
    for day, _ in days:
        rows = [{"product_id": f"{day}-{number}", "title": "a"} for number in range(3)]
        write(tmp_path / "in" / f"kind=shoe/day={day}" / f"a{SUFFIXES[format]}", encode(rows, format))
    config = CatalogConfig(
        uri=str(tmp_path / "in"), text_fields=("title", "kind"), filter_fields=("day", "kind"), shard_rows=2
    )
    assert catalog_schema(config).schema.field("day").type == pa.int64()
    batches = read_plan(plan_catalog(config, spool_uri=str(tmp_path / "spool")), config)
    assert next(pair for batch in batches for pair in pairs(batch)) == ("1-0", "a shoe")
    columns = pa.Table.from_batches([batch.columns for batch in batches])
    assert columns["day"].to_pylist() == [number for _, number in days for _ in range(3)]
    assert columns["day"].type == pa.int64()
    assert set(columns["kind"].to_pylist()) == {"shoe"}
    assert not letters_of(batches)


@pytest.mark.parametrize("format", list(SUFFIXES))
def test_a_column_of_the_file_counts_more_than_its_place(format: str, tmp_path: Path) -> None:
    rows = [{"product_id": "1", "title": "a", "kind": "from the file"}]
    write(tmp_path / "in" / "kind=shoe" / f"a{SUFFIXES[format]}", encode(rows, format))
    config = CatalogConfig(uri=str(tmp_path / "in"), filter_fields=("kind",))
    (batch,) = read_plan(plan_catalog(config, spool_uri=str(tmp_path / "spool")), config)
    assert batch.columns.to_pylist() == [{"kind": "from the file"}]


def test_a_column_that_neither_files_nor_folders_have_is_unknown(tmp_path: Path) -> None:
    write(tmp_path / "kind=shoe" / "a.parquet", encode([{"product_id": "1", "title": "a"}], "parquet"))
    with pytest.raises(CatalogError, match=r"'kin'.*Did you mean 'kind'\?"):
        catalog_schema(CatalogConfig(uri=str(tmp_path), filter_fields=("kin",)))
