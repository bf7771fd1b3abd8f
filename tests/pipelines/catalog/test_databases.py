"""SQL: the rows of a query, from SQLite and PostgreSQL; what a person sees of a login: nothing."""

from __future__ import annotations

import logging
import os
import pwd
import shutil
import socket
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from datetime import date
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from pipelines.catalog import databases
from pipelines.catalog.config import CatalogConfig, CatalogError, without_login
from pipelines.catalog.intake import not_taken_in
from pipelines.catalog.listing import list_catalog
from pipelines.catalog.plan import catalog_schema, plan_catalog
from tests.pipelines.catalog.catalogs import letters_of, pairs, products_of, read_plan

PICTURE = bytes(range(256))
QUERY = "SELECT * FROM products ORDER BY product_id"


def shop(path: Path, *, count: int = 5) -> str:
    """A SQLite database of products, as an SQLAlchemy URL."""
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute(
            "CREATE TABLE products (product_id INTEGER, title TEXT, price DECIMAL, day DATE, image BLOB)"
        )
        rows = [(n, f"cup {n}: 100%", n + 0.5, f"2024-01-0{n % 9 + 1}", PICTURE) for n in range(count)]
        connection.executemany("INSERT INTO products VALUES (?, ?, ?, ?, ?)", rows)
    return f"sqlite:///{path}"


def change(url: str, sql: str) -> None:
    with closing(sqlite3.connect(url.removeprefix("sqlite:///"))) as connection, connection:
        connection.execute(sql)


def test_a_query_is_a_catalog(tmp_path: Path) -> None:
    config = CatalogConfig(
        uri=shop(tmp_path / "shop.db"), query=QUERY, image_field="image", display_fields=("price", "day")
    )
    assert config.format == "sql"
    described = catalog_schema(config)
    assert described.format == "sql"
    assert described.columns == ("product_id", "title", "price", "day", "image")
    plan = plan_catalog(config, spool_uri=str(tmp_path / "work"))
    assert plan.schema.field("price").type == pa.float64()
    (batch,) = read_plan(plan, config)
    assert pairs(batch) == [(str(n), f"cup {n}: 100%") for n in range(5)]
    assert batch.columns.column("price").to_pylist() == [n + 0.5 for n in range(5)]
    assert not letters_of([batch])


def test_a_rerun_finds_the_same_shards_and_a_changed_table_is_read_anew(tmp_path: Path) -> None:
    url = shop(tmp_path / "shop.db", count=3000)
    config = CatalogConfig(uri=url, query=QUERY, shard_rows=1000)
    spool = tmp_path / "work"
    first = plan_catalog(config, spool_uri=str(spool))
    assert len(first.shards) == 3
    files = sorted(spool.rglob("*.parquet"))
    (listed,) = list_catalog(config.uris, config.format).files
    assert not_taken_in([listed], config, str(spool)) == [listed]
    change(url, "VACUUM")
    assert plan_catalog(config, spool_uri=str(spool)) == first
    assert sorted(spool.rglob("*.parquet")) == files
    change(url, "UPDATE products SET title = 'new' WHERE product_id = 7")
    second = plan_catalog(config, spool_uri=str(spool))
    assert {shard.key for shard in second.shards}.isdisjoint(shard.key for shard in first.shards)
    assert ("7", "new") in products_of(config, spool)
    assert not [path for path in spool.iterdir() if path.name.startswith(".") and path.name.endswith(".tmp")]


def test_a_work_folder_on_another_store(tmp_path: Path, memory_root: str) -> None:
    config = CatalogConfig(uri=shop(tmp_path / "shop.db"), query=QUERY)
    assert len(products_of(config, f"{memory_root}/work")) == 5


def test_letters_name_the_record_and_mixed_columns_are_text(tmp_path: Path) -> None:
    url = shop(tmp_path / "shop.db")
    change(url, "UPDATE products SET product_id = NULL, price = 'dear' WHERE product_id = 2")
    config = CatalogConfig(uri=url, query="SELECT * FROM products ORDER BY rowid", display_fields=("price",))
    batches = read_plan(plan_catalog(config, spool_uri=str(tmp_path / "work")), config)
    assert [letter.detail for letter in letters_of(batches) if "record 3" in letter.detail]


def test_sql_is_given_to_the_database_as_it_stands(tmp_path: Path) -> None:
    query = "SELECT product_id, title, 'a:b %s %(x)s :c' AS odd FROM products WHERE title LIKE '%100%' ORDER BY 1"
    config = CatalogConfig(uri=shop(tmp_path / "shop.db"), query=query, display_fields=("odd",))
    (batch,) = read_plan(plan_catalog(config, spool_uri=str(tmp_path / "work")), config)
    assert batch.columns.column("odd").to_pylist() == ["a:b %s %(x)s :c"] * 5


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("SELECT * FROM absent", "OperationalError: no such table: absent"),
        ("SELECT absent FROM products", "OperationalError: no such column: absent"),
        ("SELEKT", "OperationalError: near"),
        ("DELETE FROM products", "expected SQL that gives rows"),
        ("SELECT product_id, title, title FROM products", "expected one column 'title', found 2"),
        ("SELECT title FROM products", r"catalog\.id_field: .*'product_id'"),
        ("SELECT * FROM products WHERE product_id < 0", "expected products at sqlite:.*, found files without rows"),
    ],
)
def test_a_query_that_cannot_be_run_is_one_line_before_any_work(query: str, message: str, tmp_path: Path) -> None:
    config = CatalogConfig(uri=shop(tmp_path / "shop.db"), query=query)
    with pytest.raises(CatalogError, match=message) as caught:
        catalog_schema(config)
    assert "\n" not in str(caught.value)
    assert len(products_of(CatalogConfig(uri=config.uri, query=QUERY), tmp_path / "work")) == 5  # nothing was deleted


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("sqlite:////nowhere/shop.db", r"expected a SQLite database at /nowhere/shop\.db, found nothing there"),
        ("postgres://u:S3cret@127.0.0.1/shop", r"SQLAlchemy knows, .*Or write postgresql\+psycopg://"),
        ("nosuch+driver://u:S3cret@127.0.0.1/shop", "SQLAlchemy knows, found nosuch"),
        ("mysql://u:S3cret@127.0.0.1/shop", r"needs its driver: pip install mysqlclient .*Or write mysql\+pymysql://"),
        ("postgresql+psycopg://u:S3cret@127.0.0.1:nix/shop", "expected an SQLAlchemy URL|invalid literal"),
    ],
)
def test_a_database_that_cannot_be_reached_is_one_line_without_the_password(url: str, message: str) -> None:
    config = CatalogConfig(uri=url, query="SELECT 1")
    with pytest.raises(CatalogError, match=message) as caught:
        catalog_schema(config)
    assert "\n" not in str(caught.value)
    assert "S3cret" not in str(caught.value) + repr(config)


def test_a_refused_connection_is_one_line(caplog: pytest.LogCaptureFixture) -> None:
    pytest.importorskip("psycopg")
    url = f"postgresql+psycopg://u:S3cret%2Fx@127.0.0.1:{free_port()}/shop?connect_timeout=5&password=S3cret"
    with caplog.at_level(logging.DEBUG), pytest.raises(CatalogError, match=r"OperationalError.*refused") as caught:
        catalog_schema(CatalogConfig(uri=url, query="SELECT 1"))
    assert "S3cret" not in str(caught.value) + caplog.text
    assert "\n" not in str(caught.value)


def test_without_the_extra_the_message_says_what_to_type(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    url = shop(tmp_path / "shop.db")
    monkeypatch.setitem(sys.modules, "sqlalchemy.exc", None)
    with pytest.raises(CatalogError, match=r"pip install -e '\.\[sql\]'"):
        catalog_schema(CatalogConfig(uri=url, query=QUERY))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"uri": "a.csv", "query": "SELECT 1"}, r"catalog\.uri: expected the SQLAlchemy URL of one database"),
        ({"uri": ("sqlite:///a", "sqlite:///b"), "query": "SELECT 1"}, r"catalog\.uri: expected the SQLAlchemy URL"),
        ({"uri": "sqlite:///a", "query": "SELECT 1", "format": "csv"}, r"catalog\.format: expected 'sql'"),
        ({"uri": "sqlite:///a", "format": "sql"}, r"catalog\.query: expected SQL"),
    ],
)
def test_a_query_needs_a_database(values: dict[str, Any], message: str) -> None:
    with pytest.raises(CatalogError, match=message):
        CatalogConfig(**values)


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        ("postgresql://u:p@h/d", "postgresql://***@h/d"),
        ("postgresql+psycopg://u:p/w@h:5/d?sslmode=no&password=x", "postgresql+psycopg://***@h:5/d?***"),
        ("mssql+pyodbc:///?odbc_connect=PWD%3Dx", "mssql+pyodbc:///?***"),
        ("postgresql://h:5432/d", "postgresql://h:5432/d"),
        ("sqlite:////a@b/c.db", "sqlite:////a@b/c.db"),
        ("/data/a@b.csv", "/data/a@b.csv"),
        ("s3://bucket/a@b?.csv", "s3://bucket/a@b?.csv"),
        ("https://u:p@h/a.csv?x=1", "https://***@h/a.csv?x=1"),
        ("ftp://u@h/a.csv", "ftp://***@h/a.csv"),
    ],
)
def test_an_address_is_shown_without_its_login(address: str, shown: str) -> None:
    assert without_login(address) == shown
    assert CatalogConfig(uri=(address, "b")).shown_uri == f"{shown}, b"


@pytest.fixture(scope="module")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A PostgreSQL server of its own on loopback, as the address of its database."""
    pytest.importorskip("psycopg")
    if not (shutil.which("initdb") and shutil.which("pg_ctl")):
        pytest.skip("PostgreSQL's initdb and pg_ctl are not on the PATH")
    folder = Path("/tmp") / f"shelfmark-postgres-{os.getpid()}"  # the path of a socket is short
    folder.mkdir()
    user = None
    if os.geteuid() == 0:  # it does not run as root
        try:
            account = pwd.getpwnam("postgres")
        except KeyError:
            pytest.skip("PostgreSQL does not run as root, and there is no user postgres")
        os.chown(folder, account.pw_uid, account.pw_gid)
        user = account.pw_name
    port = free_port()

    def run(*command: str) -> None:
        subprocess.run(command, user=user, cwd=folder, check=True, capture_output=True, timeout=60)

    try:
        run("initdb", "-D", f"{folder}/data", "-A", "trust", "-U", "shop", "--no-sync", "-E", "UTF8")
        options = f"-F -p {port} -c listen_addresses=127.0.0.1 -k {folder}"
        run("pg_ctl", "-D", f"{folder}/data", "-w", "-l", f"{folder}/log", "-o", options, "start")
        try:
            yield f"postgresql+psycopg://shop:S3cret@127.0.0.1:{port}/postgres"
        finally:
            run("pg_ctl", "-D", f"{folder}/data", "-m", "immediate", "stop")
    finally:
        shutil.rmtree(folder)


def test_postgres_gives_its_types(postgres: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import psycopg

    monkeypatch.setattr(databases, "ROWS_AT_ONCE", 2)
    with psycopg.connect(postgres.replace("+psycopg", "")) as connection:
        connection.execute(
            "CREATE TABLE products (product_id uuid, title text, price numeric(10, 2), whole numeric, big bigint,"
            " day date, moment timestamptz, tags text[], more jsonb, image bytea, ok boolean, prices numeric[])"
        )
        for n in range(5):
            connection.execute(
                "INSERT INTO products VALUES (%s, %s, 19.90, 12345678901234567890, 9007199254740993, %s,"
                " '2024-01-02 03:04:05+00', '{a,b}', %s, %s, true, '{1.5,2.5}')",
                (f"00000000-0000-0000-0000-00000000000{n}", f"cup {n}", date(2024, 1, n + 1), '{"a": [1]}', PICTURE),
            )
    fields = ("price", "whole", "big", "day", "moment", "tags", "more", "ok", "prices")
    config = CatalogConfig(
        uri=postgres,
        query="SELECT * FROM products WHERE title LIKE 'cup%' AND title::text <> ':x' ORDER BY product_id",
        image_field="image",
        display_fields=fields,
        column_types={"day": "date32"},
    )
    catalog_schema(config)
    (batch,) = read_plan(plan_catalog(config, spool_uri=str(tmp_path / "work")), config)
    assert not letters_of([batch])
    assert pairs(batch)[4] == ("00000000-0000-0000-0000-000000000004", "cup 4")
    row = batch.columns.to_pylist()[0]
    assert row["moment"].startswith("2024-01-02T")
    assert {**row, "moment": None} == {
        "price": 19.9,
        "whole": "12345678901234567890",
        "big": 9007199254740993,
        "day": date(2024, 1, 1),
        "moment": None,
        "tags": ["a", "b"],
        "more": {"a": [1]},
        "ok": True,
        "prices": [1.5, 2.5],
    }
    with pytest.raises(CatalogError, match=r'UndefinedTable: relation "absent" does not exist') as caught:
        catalog_schema(CatalogConfig(uri=postgres, query="SELECT * FROM absent"))
    assert "S3cret" not in str(caught.value)
