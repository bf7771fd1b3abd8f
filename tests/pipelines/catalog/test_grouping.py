"""Grouping: rows of one product become one row, wherever they stand, and none is lost."""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.catalog import grouping, intake
from pipelines.catalog.config import CatalogConfig, CatalogConfigError, CatalogError
from pipelines.catalog.grouping import Grouper
from pipelines.catalog.json_lines import JsonLinesReader
from pipelines.catalog.plan import catalog_schema, plan_catalog
from pipelines.catalog.schemas import LINE, PROBLEM
from tests.pipelines.catalog.catalogs import COMPRESSIONS, SUFFIXES, compress, encode, letters_of, read_plan, write

OPTIONS: dict[str, Any] = {
    "id_field": "handle",
    "image_field": "image",
    "images_per_product": 9,
    "display_fields": ("brand", "sku", "size"),
    "group_by": "handle",
    "group_lists": ("sku", "size"),
}
ROWS = [
    {"handle": "mug", "title": "", "brand": "NULL", "sku": "m1", "size": "S", "image": "1.jpg"},
    {"handle": "cup", "title": "Cup", "brand": "Acme", "sku": "c1", "size": "", "image": "c.jpg"},
    {"handle": " mug ", "title": "Blue mug", "brand": " ", "sku": "m2", "size": "\u200b", "image": ""},
    {"handle": "", "title": "Alone", "brand": "", "sku": "x", "size": "L", "image": ""},
    {"handle": "mug", "title": "", "brand": "", "sku": "", "size": "", "image": "2.jpg"},
    {"handle": "mug", "title": "Red mug", "brand": "Bodum", "sku": "m3", "size": "L", "image": " 1.jpg"},
    {"handle": "", "title": "Alone too", "brand": "", "sku": "", "size": "", "image": ""},
]
PRODUCTS = [
    ("mug", "Blue mug", ("1.jpg", "2.jpg"), {"brand": "Bodum", "sku": ["m1", "m2", "m3"], "size": ["S", None, "L"]}),
    ("cup", "Cup", ("c.jpg",), {"brand": "Acme", "sku": ["c1"], "size": [None]}),
]


def config_of(uri: str | Path, **options: Any) -> CatalogConfig:
    return CatalogConfig(uri=str(uri), **(OPTIONS | options))


def read(config: CatalogConfig, folder: Path) -> tuple[list[tuple[Any, ...]], list[str], int]:
    """(id, text, images, columns) of the products, the letters' places and details, and how many rows were folded."""
    plan = plan_catalog(config, spool_uri=str(folder / "spool"))
    batches = read_plan(plan, config)
    products = [
        product
        for batch in batches
        for product in zip(
            batch.product_ids.to_pylist(), batch.texts.to_pylist(), batch.images, batch.columns.to_pylist(), strict=True
        )
    ]
    return products, [f"{letter.place}: {letter.detail}" for letter in letters_of(batches)], plan.folded


@pytest.mark.parametrize("compression", ["none", "gzip"])
@pytest.mark.parametrize("format", list(SUFFIXES))
def test_the_rows_of_a_product_make_one(format: str, compression: str, tmp_path: Path) -> None:
    data = compress(encode(ROWS, format, chunk_rows=2), compression)
    uri = write(tmp_path / f"a{SUFFIXES[format]}{COMPRESSIONS[compression]}", data)
    products, letters, folded = read(config_of(uri), tmp_path)
    assert products == PRODUCTS
    unit, offset = {"csv": ("line", 2), "jsonl": ("line", 1)}.get(format, ("row", 0))
    assert letters == [f"{os.path.basename(uri)}, {unit} {number + offset}: no id" for number in (3, 6)]
    assert (folded, len(products) + len(letters) + folded) == (3, len(ROWS))


@pytest.mark.parametrize("format", list(SUFFIXES))
def test_the_first_look_gives_the_types_that_the_plan_has(format: str, tmp_path: Path) -> None:
    config = config_of(write(tmp_path / f"a{SUFFIXES[format]}", encode(ROWS, format)))
    looked_at = catalog_schema(config).schema
    assert looked_at == plan_catalog(config, spool_uri=str(tmp_path / "spool")).schema
    assert [looked_at.field(name).type for name in ("sku", "image")] == [pa.list_(pa.string())] * 2


VALUES = st.sampled_from(["", " ", "NULL", "a", "b", "a ", "c"])
KEYS = st.sampled_from(["", "  ", "N/A", "x", " x", "y", "z", "0", "é" * 40])


@st.composite
def catalogs(draw: st.DrawFn) -> list[list[dict[str, str | None]]]:
    row = st.fixed_dictionaries(
        {"handle": KEYS | st.none(), **dict.fromkeys(("title", "brand", "sku", "size"), VALUES | st.none())}
        | {"image": VALUES | st.none(), PROBLEM: st.sampled_from([None, None, None, "broken"])}
    )
    return draw(st.lists(st.lists(row, max_size=12), min_size=1, max_size=5))


def given_value(value: str | None) -> str | None:
    return None if value is None or value.strip() in ("", "NULL", "N/A") else value


def model(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """What grouping means, row by row."""
    groups: dict[Any, list[dict[str, Any]]] = {}
    for row in rows:
        key = None if row[PROBLEM] else given_value(row["handle"])
        groups.setdefault(row[LINE] if key is None else key.strip(), []).append(row)
    products = []
    for group in groups.values():
        given = [{name: given_value(row[name]) for name in row if name not in (LINE, PROBLEM)} for row in group]
        product: dict[str, Any] = {name: next((row[name] for row in given if row[name]), None) for name in given[0]}
        product |= {LINE: group[0][LINE], PROBLEM: group[0][PROBLEM]}
        images: dict[str, str] = {}
        for row in given:
            if row["image"] is not None:
                images.setdefault(row["image"].strip(), row["image"])
        kept = [row for row in given if row["sku"] or row["size"]]
        product |= {"image": list(images.values()) or None}
        product |= {name: [row[name] for row in kept] or None for name in ("sku", "size")}
        products.append(product)
    return products


@settings(max_examples=150, deadline=None)
@given(batches=catalogs(), held_bytes=st.sampled_from([1, 400, 1 << 20]))
def test_grouping_is_what_a_plain_loop_does(
    batches: list[list[dict[str, Any]]], held_bytes: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("buckets")
    config = config_of("a.csv")
    names = [LINE, PROBLEM, *config.fields]
    schema = pa.schema([(LINE, pa.int64()), *((name, pa.string()) for name in names[1:])])
    line = 0
    for batch in batches:
        for row in batch:
            row[LINE] = line = line + 1
    rows = [row for batch in batches for row in batch]
    as_type = JsonLinesReader(config).as_type
    of_config: dict[str, Any] = {"is_kept": None, "judged": ()}
    of_config |= {"key": "handle", "lists": ("sku", "size"), "images": "image", "null_values": config.null_values}
    grouper = Grouper(str(folder), as_type=as_type, **of_config)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(grouping, "HELD_BYTES", held_bytes)
        patch.setattr(grouping, "BUCKETS", 3)
        found = [
            row
            for batch in grouper.group(pa.RecordBatch.from_pylist(batch, schema) for batch in batches)
            for row in batch.to_pylist()
        ]
    expected = model(rows)
    if held_bytes == 1 << 20:
        assert [row[LINE] for row in found] == [row[LINE] for row in expected]  # the order of first appearance
    assert sorted(found, key=lambda row: row[LINE]) == [{name: row[name] for name in names} for row in expected]
    assert grouper.folded == len(rows) - len(expected)
    assert not list(folder.iterdir())


def test_a_large_file_is_grouped_bucket_by_bucket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{"handle": f"h{number % 700}", "title": f"t{number}", "sku": str(number)} for number in range(7000)]
    config = config_of(
        write(tmp_path / "a.csv", encode(rows, "csv")),
        image_field=None,
        display_fields=("sku",),
        group_lists=("sku",),
    )
    at_once, _, _ = read(config, tmp_path / "one")
    monkeypatch.setattr(grouping, "HELD_BYTES", 20_000)
    monkeypatch.setattr(intake, "BLOCK_BYTES", 5_000)
    merged: list[int] = []
    whole = Grouper._merged
    monkeypatch.setattr(Grouper, "_merged", lambda self, rows: merged.append(rows.nbytes) or whole(self, rows))
    in_buckets, _, folded = read(config, tmp_path / "many")
    assert len(at_once) == 700 and folded == 6300
    assert sorted(in_buckets) == sorted(at_once)
    assert max(merged) <= 20_000 and len(merged) > 10


@pytest.mark.parametrize("held_bytes", [1000, 1 << 20])
def test_a_value_of_far_too_many_rows_is_no_product_and_each_row_gets_its_letter(
    held_bytes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(grouping, "MAX_ROWS_OF_PRODUCT", 50)
    monkeypatch.setattr(grouping, "HELD_BYTES", held_bytes)
    monkeypatch.setattr(intake, "BLOCK_BYTES", 500)
    rows = [
        {"id": str(number), "title": "t", "parent": "0" if number % 3 else f"p{number // 9}"} for number in range(300)
    ]
    uri = write(tmp_path / "a.jsonl", encode(rows, "jsonl"))
    config = CatalogConfig(uri=uri, id_field="id", group_by="parent")
    products, letters, folded = read(config, tmp_path)
    assert (len(products), len(letters), folded) == (34, 200, 66)
    assert "a.jsonl, line 2: expected at most 50 rows of one product, found more whose 'parent' is '0'" in letters


def test_json_columns_whose_types_grow_and_nested_values(tmp_path: Path) -> None:
    rows = "\n".join(
        [
            '{"id": 7, "title": ["a", "b"], "price": 1, "image": null, "tags": ["x"]}',
            '{"id": "7", "title": null, "price": 2.5, "image": "1.jpg", "tags": []}',
            '{"id": 8, "title": "c", "price": "much", "image": {"path": "8.jpg"}, "tags": ["y", "z"]}',
            '{"id": 7.0, "title": "d", "price": null, "image": ["2.jpg", "1.jpg", ""], "tags": ["q"]}',
            "broken",
            *(f'{{"id": {number}, "title": "t", "price": 1, "tags": []}}' for number in range(100, 150)),
        ]
    )
    uri = write(tmp_path / "a.jsonl", rows.encode())
    options = {
        "id_field": "id",
        "group_by": "id",
        "display_fields": ("price", "tags"),
        "group_lists": ("price", "tags"),
    }
    for block in (30, 1 << 20):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("pipelines.catalog.intake.BLOCK_BYTES", block)
            config = CatalogConfig(uri=uri, image_field="image", images_per_product=9, **options)
            products, letters, folded = read(config, tmp_path / str(block))
        assert products[:2] == [
            ("7", "a b", ("1.jpg", "2.jpg"), {"price": [1.0, 2.5, None], "tags": [["x"], None, ["q"]]}),
            ("8", "c", ("8.jpg",), {"price": [None], "tags": [["y", "z"]]}),
        ]
        assert len(products) == 52 and folded == 2
        # The other values of a list stay when one of them does not fit.
        assert sorted(letters) == [
            "a.jsonl, line 3: price: expected double, found 'much'",
            "a.jsonl, line 5: expected one JSON object a line: Expecting value at character 0",
        ]


def test_types_of_items_by_vote_or_by_the_config(tmp_path: Path) -> None:
    text = "id,title,price,stock\n" + "".join(f"{number // 2},t,{number}.5,0{number}\n" for number in range(60))
    uri = write(tmp_path / "a.csv", (text + "1,t,oops,7\n").encode())
    options = {
        "id_field": "id",
        "group_by": "id",
        "display_fields": ("price", "stock"),
        "group_lists": ("price", "stock"),
    }
    products, letters, _ = read(CatalogConfig(uri=uri, **options), tmp_path)
    assert products[1][3] == {"price": [2.5, 3.5, None], "stock": ["02", "03", "7"]}
    assert letters == ["a.csv, line 4: price: expected double, found 'oops'"]
    config = CatalogConfig(uri=uri, column_types={"stock": "int32"}, **options)
    assert catalog_schema(config).schema.field("stock").type == pa.list_(pa.int32())
    assert read(config, tmp_path)[0][1][3]["stock"] == [2, 3, 7]


def test_pictures_of_parquet_rows_are_gathered(tmp_path: Path) -> None:
    hugging_face = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    for data_type, values, expected in (
        (pa.binary(), [b"a", b"b", b"", b"a"], (b"a", b"b")),
        (hugging_face, [{"bytes": b"a"}, {"path": "b"}, {"bytes": None}, {"bytes": b"a"}], (b"a", "b")),
        (pa.list_(pa.large_string()), [["a"], ["b", "a"], [], None], ("a", "b")),
        (pa.large_list(hugging_face), [[{"bytes": b"a"}], None, [None], [{"bytes": b"a"}, {"path": "b"}]], (b"a", "b")),
        (pa.dictionary(pa.int32(), pa.string()), ["a", "b", None, "a"], ("a", "b")),
        (pa.null(), [None] * 4, ()),
    ):
        table = pa.table({"id": ["1", "1", "2", "1"], "title": ["x"] * 4, "image": pa.array(values, data_type)})
        uri = write(tmp_path / "in" / "a.parquet", encode(table, "parquet", chunk_rows=2))
        config = CatalogConfig(uri=uri, id_field="id", group_by="id", image_field="image", images_per_product=5)
        products, _, _ = read(config, tmp_path)
        assert [images for _, _, images, _ in products] == [expected, ()]


def test_text_that_is_none_is_a_letter_also_in_parquet(tmp_path: Path) -> None:
    handles = pa.array([b"a", b"\xff", b"a", b"c"])
    table = pa.table({"id": handles, "title": pa.array([b"x", b"y", b"\xfe", b"z"]), "n": [1, 2, 3, 4]})
    uri = write(tmp_path / "a.parquet", encode(table, "parquet", chunk_rows=3))
    options = {"display_fields": ("n",), "group_lists": ("n",)}
    products, letters, folded = read(CatalogConfig(uri=uri, id_field="id", group_by="id", **options), tmp_path)
    assert [(each[0], each[3]["n"]) for each in products] == [("a", [1]), ("c", [4])]
    assert letters == [f"a.parquet, row {row}: expected UTF-8 text, found other bytes" for row in (1, 2)]
    assert folded == 0


def test_a_product_ends_with_its_file_and_a_column_may_stand_in_folder_names(tmp_path: Path) -> None:
    for shop in ("a", "b"):
        rows = [{"id": "1", "title": "x"}, {"id": "1", "title": "y"}]
        write(tmp_path / "in" / f"shop={shop}" / "p.parquet", encode(rows, "parquet"))
    config = CatalogConfig(
        uri=str(tmp_path / "in"), id_field="id", group_by="id", display_fields=("shop",), group_lists=("shop",)
    )
    products, _, folded = read(config, tmp_path)
    assert [(each[0], each[3]["shop"]) for each in products] == [("1", ["a", "a"]), ("1", ["b", "b"])]
    assert folded == 2


@pytest.mark.parametrize("format", list(SUFFIXES))
def test_where_looks_at_rows_before_they_are_grouped(format: str, tmp_path: Path) -> None:
    rows = [
        {"id": "1", "title": "draft", "status": "draft", "price": "1"},
        {"id": "1", "title": "red", "status": "active", "price": "2"},
        {"id": "2", "title": "gone", "status": "draft", "price": "3"},
        {"id": "1", "title": "blue", "status": "active", "price": "4"},
        {"id": "3", "title": "dear", "status": "active", "price": "500"},
    ]
    uri = write(tmp_path / f"a{SUFFIXES[format]}", encode(rows, format))
    config = CatalogConfig(
        uri=uri,
        id_field="id",
        where="status = 'active' and price < 100",
        group_by="id",
        display_fields=("price",),
        group_lists=("price",),
        column_types={"price": "int64"} if format in ("csv", "jsonl") else {},
    )
    products, letters, folded = read(config, tmp_path)
    assert (len(products), letters, folded) == (1, [], 1)
    assert products[0][:2] == ("1", "red")
    assert [int(price) for price in products[0][3]["price"]] == [2, 4]
    batches = read_plan(plan_catalog(config, spool_uri=str(tmp_path / "spool")), config)
    assert sum(batch.left_out for batch in batches) == 3


def test_where_looks_at_the_value_of_the_product_where_a_row_has_none(tmp_path: Path) -> None:
    """Shopify writes the status into the first row of a product alone."""
    rows = [
        ("a", "draft", "1"), ("b", "active", "2"), ("a", "", "3"), ("c", "", "4"), ("b", "", "5"), ("b", "draft", "6")
    ]  # fmt: skip
    text = "id,status,n,title\n" + "".join(f"{','.join(row)},t\n" for row in rows) + '"broken'
    config = CatalogConfig(
        uri=write(tmp_path / "a.csv", text.encode()),
        id_field="id",
        group_by="id",
        where="status = 'active' or status is null",
        display_fields=("n",),
        group_lists=("n",),
        column_types={"n": "int64"},
    )
    products, letters, folded = read(config, tmp_path)
    assert [(each[0], each[3]["n"]) for each in products] == [("b", [2, 5]), ("c", [4])]
    batches = read_plan(plan_catalog(config, spool_uri=str(tmp_path / "spool")), config)
    left_out = sum(batch.left_out for batch in batches)
    assert (left_out, folded, len(letters)) == (3, 1, 1)
    assert len(products) + left_out + folded + len(letters) == 7


def test_fields_at_paths_are_grouped(tmp_path: Path) -> None:
    rows = [
        {"_source": {"sku": "a", "parent": "p", "name": {"en": "Shoe"}, "images": [{"big": "1.jpg"}]}},
        {"_source": {"sku": "b", "parent": "p", "name": {"en": ""}, "images": [{"big": "2.jpg"}, {"big": "1.jpg"}]}},
    ]
    for format in ("jsonl", "parquet"):
        config = CatalogConfig(
            uri=write(tmp_path / format / f"a{SUFFIXES[format]}", encode(rows, format)),
            id_field="_source.parent",
            group_by="_source.parent",
            text_fields=("_source.name.en",),
            image_field="_source.images.big|small",
            images_per_product=5,
            display_fields=("_source.sku",),
            group_lists=("_source.sku",),
        )
        products, letters, folded = read(config, tmp_path / format)
        assert products == [("p", "Shoe", ("1.jpg", "2.jpg"), {"_source.sku": ["a", "b"]})]
        assert (letters, folded) == ([], 1)


def test_variations_that_name_their_parent_are_grouped_with_it(tmp_path: Path) -> None:
    """As WooCommerce and Amazon have them: the first of two columns that has a value tells products apart."""
    rows = [
        {"sku": "shirt", "parent": "", "title": "Shirt", "size": ""},
        {"sku": "shirt-s", "parent": "shirt", "title": "Shirt - S", "size": "S"},
        {"sku": "mug", "parent": "", "title": "Mug", "size": ""},
        {"sku": "shirt-m", "parent": "shirt", "title": "Shirt - M", "size": "M"},
    ]
    for format in SUFFIXES:
        config = CatalogConfig(
            uri=write(tmp_path / format / f"a{SUFFIXES[format]}", encode(rows, format)),
            id_field="parent|sku",
            group_by="parent|sku",
            display_fields=("size",),
            group_lists=("size",),
        )
        products, letters, _ = read(config, tmp_path / format)
        assert [(each[0], each[1], each[3]["size"]) for each in products] == [
            ("shirt", "Shirt", ["S", "M"]),
            ("mug", "Mug", None),
        ]
        assert not letters


def test_documents_feeds_and_queries_are_grouped(tmp_path: Path) -> None:
    rows = [{name: value for name, value in row.items() if value} for row in ROWS]
    item = "<item>{}</item>".format
    xml = "".join(item("".join(f"<{key}>{value}</{key}>" for key, value in row.items())) for row in rows)
    with contextlib.closing(sqlite3.connect(tmp_path / "shop.db")) as shop:
        shop.execute("create table p (handle, title, brand, sku, size, image)")
        shop.executemany(
            "insert into p values (:handle, :title, :brand, :sku, :size, :image)",
            [dict.fromkeys(ROWS[0]) | row for row in rows],
        )
        shop.commit()
    for config in (
        config_of(write(tmp_path / "a.json", json.dumps(rows, indent=1).encode())),
        config_of(write(tmp_path / "a.xml", f"<items>{xml}</items>".encode())),
        config_of(f"sqlite:///{tmp_path}/shop.db", query="select * from p"),
    ):
        products, letters, folded = read(config, tmp_path)
        assert products == PRODUCTS
        assert (len(letters), folded) == (2, 3)


def test_what_cannot_be_grouped_is_said_before_any_work(tmp_path: Path) -> None:
    table = pa.table({"id": ["1"], "title": ["x"], "nested": [["x"]]})
    uri = write(tmp_path / "a.parquet", encode(table, "parquet"))
    with pytest.raises(CatalogError, match=r"catalog\.group_by: expected the name of a column, found 'idd'"):
        catalog_schema(CatalogConfig(uri=uri, id_field="id", group_by="idd"))
    with pytest.raises(CatalogError, match=r"catalog\.group_by: expected a column of text or numbers; 'nested' is"):
        catalog_schema(CatalogConfig(uri=uri, id_field="id", group_by="nested"))
    with pytest.raises(CatalogConfigError, match=r"catalog\.group_lists: expected a group_by beside it"):
        CatalogConfig(uri=uri, display_fields=("sku",), group_lists=("sku",))
    for lists in (("sku",), ("product_id",), ("handle",)):
        with pytest.raises(CatalogConfigError, match=r"catalog\.group_lists: expected names of display or filter"):
            CatalogConfig(uri=uri, display_fields=("product_id", "handle"), group_by="handle", group_lists=lists)
    write(tmp_path / "b.parquet", encode(table, "parquet")[:-40])
    with pytest.raises(CatalogError, match=r"b\.parquet: expected a whole parquet file"):
        plan_catalog(
            CatalogConfig(uri=str(tmp_path / "b.parquet"), id_field="id", group_by="id"), spool_uri=str(tmp_path)
        )


def test_hashes_spread_and_stay(tmp_path: Path) -> None:
    keys = pa.array([f"product {number}" for number in range(10_000)] + [None, ""])
    hashes = grouping._hashes(keys)
    assert len(np.unique(hashes[:-2])) == 10_000
    counts = np.bincount((hashes % np.uint64(64)).astype(int))
    assert counts.min() > 100 and counts.max() < 220
    assert grouping._hashes(pa.array(["é" * 9]))[0] == grouping._hashes(pa.array(["x", "é" * 9]).slice(1))[0]
    assert int(grouping._hashes(pa.array(["mug"]))[0]) == int(grouping._hashes(pa.array([None, "mug"]))[1])


def test_grouped_files_are_made_once(tmp_path: Path) -> None:
    config = config_of(write(tmp_path / "a.parquet", encode(ROWS, "parquet")))
    one, two = (plan_catalog(config, spool_uri=str(tmp_path / "spool")) for _ in range(2))
    assert one == two
    path = one.shards[0].ranges[0].path
    assert pq.read_table(path).column(LINE).to_pylist() == [0, 1, 3, 6]
    other = plan_catalog(config_of(config.uri, null_values=()), spool_uri=str(tmp_path / "spool"))
    assert other.shards[0].ranges[0].path != path
    assert other.shards[0].key != one.shards[0].key
