"""Every format, compression, store and way of naming files gives the same products."""

from __future__ import annotations

import random
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.catalog.config import CatalogConfig, CatalogError
from pipelines.catalog.intake import LINE, PROBLEM
from pipelines.catalog.plan import catalog_schema, plan_catalog
from pipelines.catalog.reading import read_shard
from tests.pipelines.catalog.catalogs import (
    COMPRESSIONS,
    SUFFIXES,
    compress,
    encode,
    letters_of,
    pairs,
    products_of,
    read_plan,
    write,
)

ROWS: list[dict[str, Any]] = [
    {
        "product_id": f"{number:05d}",
        "title": ["red shoe", 'a "quoted", title', "two\nlines", "grün  \t dress", '5" pipe'][number % 5]
        + f" {number}",
        "price": number * 1.25,
        "stock": number,
        "sale": number % 2 == 0,
        "image": f"pictures/{number}.jpg",
        "unused": "x" * 40,
    }
    for number in range(100)
]
FIELDS: dict[str, Any] = {
    "image_field": "image",
    "display_fields": ("title", "price"),
    "filter_fields": ("stock", "sale"),
    "shard_rows": 16,
}


@pytest.mark.parametrize("compression", list(COMPRESSIONS))
@pytest.mark.parametrize("format", list(SUFFIXES))
def test_all_formats_and_compressions_give_the_same_products(
    format: str, compression: str, tmp_path: Path, memory_root: str
) -> None:
    uri = f"{memory_root}/items{SUFFIXES[format]}{COMPRESSIONS[compression]}"
    write(uri, compress(encode(ROWS, format), compression))
    config = CatalogConfig(uri=uri, **FIELDS)
    look = catalog_schema(config)
    assert (look.format, look.files) == (format.removesuffix("_stream"), 1)
    plan = plan_catalog(config, spool_uri=str(tmp_path))
    assert len(plan.shards) >= 6
    batches = read_plan(plan, config, batch_rows=10)
    found = [pair for batch in batches for pair in pairs(batch)]
    assert found == [(row["product_id"], " ".join(row["title"].split())) for row in ROWS]
    assert [refs[0] for batch in batches for refs in batch.images] == [row["image"] for row in ROWS]
    columns = pa.Table.from_batches([batch.columns for batch in batches])
    assert columns.schema.types == [pa.string(), pa.float64(), pa.int64(), pa.bool_()]
    assert columns.to_pylist() == [{name: row[name] for name in columns.schema.names} for row in ROWS]
    assert not letters_of(batches)
    assert max(len(batch.product_ids) for batch in batches) <= 10


@pytest.mark.parametrize("format", list(SUFFIXES))
def test_the_size_of_shards_changes_nothing(format: str, tmp_path: Path) -> None:
    uri = write(tmp_path / f"items{SUFFIXES[format]}", encode(ROWS, format))
    expected = products_of(CatalogConfig(uri=uri), tmp_path / "spool")
    assert len(expected) == 100
    for shard_rows, shard_bytes in ((1, 1 << 20), (3, 1 << 20), (1000, 200), (33, 5000)):
        config = CatalogConfig(uri=uri, shard_rows=shard_rows, shard_bytes=shard_bytes)
        assert products_of(config, tmp_path / "spool", batch_rows=5) == expected


@pytest.mark.parametrize("format", list(SUFFIXES))
def test_a_folder_a_glob_and_a_list_are_read_in_order_of_name(format: str, tmp_path: Path) -> None:
    parts = [ROWS[:30], ROWS[30:31], ROWS[31:]]
    uris = [
        write(tmp_path / "catalog" / name, encode(part, format))
        for name, part in zip(
            (f"a/part-1{SUFFIXES[format]}", f"a/part-2{SUFFIXES[format]}", f"b/part-1{SUFFIXES[format]}"),
            parts,
            strict=True,
        )
    ]
    expected = [row["product_id"] for row in ROWS]
    random.Random(1).shuffle(uris)
    for uri in (
        str(tmp_path / "catalog"),
        f"{tmp_path}/catalog/*/part-*",
        tuple(uris),
        (uris[0], str(tmp_path / "catalog")),
    ):
        config = CatalogConfig(uri=uri, shard_rows=64)
        assert [product_id for product_id, _ in products_of(config, tmp_path / "spool")] == expected


def test_parquet_of_picture_bytes_is_read_in_batches_of_bounded_size(tmp_path: Path) -> None:
    picture = random.Random(0).randbytes(1 << 20)
    table = pa.table({"product_id": [str(n) for n in range(40)], "title": ["t"] * 40, "image": [picture] * 40})
    pq.write_table(table, tmp_path / "a.parquet", use_dictionary=False, compression="none")
    config = CatalogConfig(uri=str(tmp_path / "a.parquet"), image_field="image", shard_bytes=1 << 30)
    (shard,) = plan_catalog(config, spool_uri=str(tmp_path / "spool")).shards
    batches = list(read_shard(shard, config))
    assert sum(batch.rows.num_rows for batch in batches) == 40
    assert max(batch.rows.nbytes for batch in batches) <= 33 << 20


@pytest.mark.parametrize("format", list(SUFFIXES))
def test_only_the_columns_asked_for_are_read(format: str, tmp_path: Path) -> None:
    config = CatalogConfig(uri=write(tmp_path / f"a{SUFFIXES[format]}", encode(ROWS, format)))
    (shard, *_) = plan_catalog(config, spool_uri=str(tmp_path / "spool")).shards
    for batch in read_shard(shard, config):
        assert set(batch.rows.schema.names) == {"product_id", "title"}


@pytest.mark.parametrize("format", ["parquet", "csv", "jsonl", "arrow"])
def test_a_file_that_changed_after_planning_is_read_as_planned_or_an_error(format: str, tmp_path: Path) -> None:
    uri = write(tmp_path / f"items{SUFFIXES[format]}", encode(ROWS, format))
    config = CatalogConfig(uri=uri, shard_rows=10)
    plan = plan_catalog(config, spool_uri=str(tmp_path / "spool"))
    write(uri, encode(ROWS[:20], format))
    if format in ("csv", "jsonl"):  # taken in at planning: what was planned is read
        assert sum(len(batch.product_ids) for batch in read_plan(plan, config)) == len(ROWS)
        return
    with pytest.raises(CatalogError, match=rf"items\{SUFFIXES[format]}.*changed or damaged"):
        read_plan(plan, config)


def test_a_damaged_page_is_an_error_that_names_file_and_rows(tmp_path: Path) -> None:
    data = bytearray(encode(ROWS, "parquet", chunk_rows=100))
    data[100:200] = b"\x00" * 100
    config = CatalogConfig(uri=write(tmp_path / "items.parquet", bytes(data)))
    with pytest.raises(CatalogError, match=r"items\.parquet.*rows 0 to 100"):
        products_of(config, tmp_path / "spool")


@pytest.mark.parametrize("newlines_in_values", [True, False])
def test_tab_separated_and_windows_files(newlines_in_values: bool, tmp_path: Path) -> None:
    text = "\ufeffproduct_id\ttitle\r\n" + "".join(f"00{n}\tname, {n}\r\n" for n in range(50))
    write(tmp_path / "a.tsv", text.encode())
    config = CatalogConfig(uri=str(tmp_path), shard_rows=7, csv_newlines_in_values=newlines_in_values)
    assert products_of(config, tmp_path / "spool") == [(f"00{n}", f"name, {n}") for n in range(50)]


@pytest.mark.parametrize("names", [("__line__", "__problem__"), (LINE, PROBLEM)])
@pytest.mark.parametrize("format", list(SUFFIXES))
def test_no_column_of_a_catalog_is_taken_for_one_of_the_intake(
    format: str, names: tuple[str, str], tmp_path: Path
) -> None:
    rows = [{"product_id": str(n), "title": "t", names[0]: "a", names[1]: "b"} for n in range(9)]
    uri = write(tmp_path / f"items{SUFFIXES[format]}", encode(rows, format))
    assert len(products_of(CatalogConfig(uri=uri), tmp_path / "spool")) == len(rows)
    config = CatalogConfig(uri=uri, display_fields=names)
    if names == (LINE, PROBLEM) and format in ("csv", "jsonl"):
        for look in (catalog_schema, partial(plan_catalog, spool_uri=str(tmp_path / "spool"))):
            with pytest.raises(CatalogError, match=r"display_fields: .*rename the column"):
                look(config)
        return
    batches = read_plan(plan_catalog(config, spool_uri=str(tmp_path / "spool")), config)
    assert not letters_of(batches)
    assert [row for batch in batches for row in batch.columns.to_pylist()] == [dict(zip(names, "ab", strict=True))] * 9
