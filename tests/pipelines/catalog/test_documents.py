"""JSON documents: arrays, pages and single objects give what the same objects give as JSON Lines."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.catalog import intake
from pipelines.catalog.config import CatalogConfig, CatalogError
from pipelines.catalog.documents import is_document, iter_documents
from pipelines.catalog.plan import catalog_schema, plan_catalog
from tests.pipelines.catalog.catalogs import letters_of, pairs, products_of, read_plan, write

ROWS = [{"product_id": str(number), "title": f"cup {number}", "variants": [{"sku": "a"}]} for number in range(200)]
EXPECTED = [(row["product_id"], row["title"]) for row in ROWS]


def records(text: str | bytes, *, chunk: int = 1 << 20, path: str | None = None, limit: int = 1 << 20) -> list[Any]:
    data = text if isinstance(text, bytes) else text.encode()

    def chunks() -> list[bytes]:
        return [data[start : start + chunk] for start in range(0, len(data), chunk)]

    found = iter_documents(
        chunks(), chunks(), "a.json", encoding="auto", records=path, id_names=["product_id"], max_record_bytes=limit
    )
    return [each if isinstance(each, str) else json.loads(each) for each in found]


@pytest.mark.parametrize("name", ["a.json", "a.jsonl", "a.ndjson", "a.json.gz", "part-00000"])
@pytest.mark.parametrize(
    "text",
    [
        json.dumps(ROWS),
        json.dumps(ROWS, indent=2),
        "[\n" + ",\n".join(map(json.dumps, ROWS)) + "\n]\n",
        json.dumps({"products": ROWS}),
        json.dumps({"products": ROWS}, indent=1),
        json.dumps({"meta": {"links": [{"rel": "next"}]}, "page": 1, "products": ROWS, "errors": []}),
        json.dumps({"took": 3, "_shards": {"failed": 0}, "hits": {"total": {"value": 2}, "hits": ROWS}}),
        json.dumps({"data": {"items": ROWS}}),
        json.dumps({"facets": [{"name": "red", "count": 2}], "found": {"total": 2, "docs": ROWS}}),
        "\n".join(json.dumps(row, indent=2) for row in ROWS),
        "".join(json.dumps(row) for row in ROWS),
        json.dumps({"products": ROWS[:9]}, indent=1) + json.dumps({"products": ROWS[9:]}, indent=1),
        json.dumps(ROWS[:9]) + "\n" + json.dumps([]) + "\n" + json.dumps(ROWS[9:]),
        "\ufeff" + json.dumps(ROWS),
        "\n".join(map(json.dumps, ROWS)),
    ],
)
def test_a_json_file_of_any_shape_gives_its_products(text: str, name: str, tmp_path: Path) -> None:
    data = text.encode()
    write(tmp_path / "in" / name, gzip.compress(data) if name.endswith(".gz") else data)
    config = CatalogConfig(uri=str(tmp_path / "in"))
    assert catalog_schema(config).format == ("jsonl" if text.count("\n") == len(ROWS) - 1 else "json")
    assert products_of(config, tmp_path / "work") == EXPECTED


@pytest.mark.parametrize(
    ("text", "path", "ids"),
    [
        ('{"a": {"b": [{"id": 1}, {"id": 2}]}, "c": [{"id": 3}]}', "a.b", [1, 2]),
        ('[{"p": [{"id": 1}]}, {"p": []}, {"p": [{"id": 2}]}]', "p", [1, 2]),
        ('{"p": [{"id": 1}]}\n{"p": null}\n{"p": [{"id": 2}]}', "p", [1, 2]),
        ('{"product": {"id": 1}}', "product", [1]),
        ('{"edges": [{"node": {"id": 1}}, {"node": {"id": 2}}]}', "edges.node", [1, 2]),
    ],
)
def test_records_names_where_the_products_are(text: str, path: str, ids: list[int]) -> None:
    assert [record["id"] for record in records(text, path=path)] == ids


def test_lines_that_are_pages_are_read_where_records_says_so(tmp_path: Path) -> None:
    pages = "\n".join(json.dumps({"next": n, "products": ROWS[n : n + 50]}) for n in range(0, 200, 50))
    config = CatalogConfig(uri=write(tmp_path / "a.jsonl", pages.encode()), records="products")
    assert products_of(config, tmp_path / "work") == EXPECTED


def test_an_object_that_has_an_id_is_a_product_whatever_lists_it_has(tmp_path: Path) -> None:
    for name in ("id", "sku", "product_id"):
        assert records(json.dumps({name: "1", "variants": [{"id": 5}, {"id": 6}]})) == [
            {name: "1", "variants": [{"id": 5}, {"id": 6}]}
        ]
    write(tmp_path / "a.json", json.dumps({"code": "7", "title": "a", "images": [{"src": "x"}]}, indent=1).encode())
    config = CatalogConfig(uri=str(tmp_path / "a.json"), id_field="code")
    assert products_of(config, tmp_path / "work") == [("7", "a")]


def test_a_page_without_products_is_none(tmp_path: Path) -> None:
    write(tmp_path / "in" / "1.json", json.dumps({"products": ROWS}).encode())
    write(tmp_path / "in" / "2.json", b'{"products": [], "next": null}')
    config = CatalogConfig(uri=str(tmp_path / "in"))
    batches = read_plan(plan_catalog(config, spool_uri=str(tmp_path / "work")), config)
    assert [pair for batch in batches for pair in pairs(batch)] == EXPECTED
    assert not letters_of(batches)


def test_elements_that_are_no_objects_are_letters_that_name_the_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = b'[{"product_id": "1", "title": "a"}, 5, null, "x", [],\n {"product_id": "2", "title": "\xe9"},'
    text += b'{"product_id": "3", "title": "a\tb"}, {"product_id": "4", "title": "d\xc3\xa9"}]'
    config = CatalogConfig(uri=write(tmp_path / "a.json", text))
    for block_bytes in (9, 1 << 20):
        monkeypatch.setattr(intake, "BLOCK_BYTES", block_bytes)
        batches = read_plan(plan_catalog(config, spool_uri=str(tmp_path / f"work-{block_bytes}")), config)
        assert [pair for batch in batches for pair in pairs(batch)] == [("1", "a"), ("4", "dé")]
        details = [f"{letter.place}: {letter.detail}" for letter in letters_of(batches)]
        assert details[:4] == [
            f"a.json, record {number}: expected an object, found {kind}"
            for number, kind in ((2, "a number"), (3, "null"), (4, "text"), (5, "a list"))
        ]
        assert details[4].startswith("a.json, record 6: expected UTF-8, found the byte 0xe9")
        assert details[5].startswith("a.json, record 7: expected one JSON object: Invalid control character")
        assert len(details) == 6


@pytest.mark.parametrize("chunk", [1, 7, 1 << 20])
@pytest.mark.parametrize(
    ("text", "where"),
    [
        ('[{"id": 1},\n {"id": 2', "line 2, character 10: expected ',' delimiter, found the end of the file"),
        ('[{"id": 1},\n {"id": 2}', "line 2, character 11: expected ',' or ']', found the end of the file"),
        ('{"products": [{"id": 1}]', "line 1, character 25: expected ',' or '}', found the end of the file"),
        ('{"products": [{"id": 1}], "x": "un', "line 1, character 32: expected "),
        ('[{"id": 1},\n\n{"id" 2}, {"id": 3}]', "line 3, character 7: expected ':' delimiter, found '2}"),
        ('[{"id": 1} {"id": 2}]', "line 1, character 12: expected ',' or ']', found '{"),
        ('[{"id": 1},]', "line 1, character 12: expected a value, found ']'"),
        ('[{"id": 1}]]', "line 1, character 12: expected a value, found ']'"),
        ('[{"id": 1}] and more', "line 1, character 13: expected a value, found 'and"),
        ("[" * 5000, "expected fewer lists and objects inside one another"),
    ],
)
def test_a_document_that_is_cut_off_or_damaged_is_refused_with_its_place(text: str, where: str, chunk: int) -> None:
    with pytest.raises(CatalogError) as caught:
        records(text, chunk=chunk)
    assert str(caught.value).startswith("a.json: expected a whole JSON document; at line ")
    assert where in str(caught.value)


def test_no_part_of_a_damaged_document_is_kept(tmp_path: Path) -> None:
    config = CatalogConfig(uri=write(tmp_path / "a.json", json.dumps(ROWS)[:-100].encode()))
    with pytest.raises(CatalogError, match=r"a\.json: expected a whole JSON document; at line 1, character \d+"):
        plan_catalog(config, spool_uri=str(tmp_path / "work"))
    assert not [path for path in (tmp_path / "work").rglob("*") if path.is_file()]


def test_a_page_that_is_none_is_a_hole_and_refused() -> None:
    with pytest.raises(CatalogError, match=r"expected products at 'products' .*ends at line 2\. Known: 'errors'"):
        records('{"products": [{"id": 1}]}\n{"errors": "throttled"}')
    with pytest.raises(CatalogError, match=r"expected products at 'product' .*Did you mean 'products'\?"):
        records('{"products": [{"id": 1}]}', path="product")


def test_a_record_without_end_is_refused_before_it_fills_the_memory() -> None:
    with pytest.raises(CatalogError, match="expected a whole JSON document; at line 1, character 8"):
        records('[{"a": "' + "x" * 100_000, chunk=100, limit=1000)


def test_values_stand_as_they_are_in_the_file(tmp_path: Path) -> None:
    text = '[{"product_id": 12345678901234567890123, "title": "é\\u00e9", "price": 19.90, "n": {"a": [1, {}]}}]'
    config = CatalogConfig(uri=write(tmp_path / "a.json", text.encode()), display_fields=("price", "n"))
    plan = plan_catalog(config, spool_uri=str(tmp_path / "work"))
    (batch,) = read_plan(plan, config)
    assert pairs(batch) == [("12345678901234567890123", "éé")]
    assert batch.columns.column("price").type == pa.float64()


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32"])
def test_a_byte_order_mark_says_the_encoding(encoding: str) -> None:
    assert records('[{"id": "é€"}, {"id": 2}]'.encode(encoding), chunk=8) == [{"id": "é€"}, {"id": 2}]


def test_a_file_of_json_lines_stays_one(tmp_path: Path) -> None:
    def told(text: str, *, is_whole: bool = True) -> bool | None:
        return is_document(text.encode(), is_whole, encoding="auto", id_names=["product_id"])

    assert told('{"product_id": 1}') is False
    assert told('{"product_id": 1, "images": [{"a": 1}]}\n') is False
    assert told('{"asin": 1, "images": [{"a": 1}]}\n{"asin": 2}\n') is False
    assert told('{"product_id": 1, "tit\n{"product_id": 2}\n{"product_id": 3}\n') is False
    assert told('{"code": 1, "images": [{"a": 1}]}\n{"code": 2, "images": [{"a": 1}]}\n') is False
    assert told("broken\n[1]\n") is False
    assert told('{"products": [{"a": 1}]}') is True
    assert told('{"products": [{"a": 1}, {"a"') is True
    assert told('{"product_id": 1', is_whole=False) is None
    assert told('{\n "a": 1,\n "b"', is_whole=False) is True


@pytest.mark.parametrize("text", ["[]", '{"products": []}', "[]\n[]\n"])
def test_a_catalog_without_products_is_an_error(text: str, tmp_path: Path) -> None:
    config = CatalogConfig(uri=write(tmp_path / "a.json", text.encode()))
    with pytest.raises(CatalogError, match=r"expected products at .*a\.json, found files without rows"):
        catalog_schema(config)


def test_an_old_run_is_found_again(tmp_path: Path) -> None:
    config = CatalogConfig(uri=write(tmp_path / "a.json", json.dumps({"products": ROWS}).encode()))
    first = plan_catalog(config, spool_uri=str(tmp_path / "work"))
    (uri,) = {part.path for shard in first.shards for part in shard.ranges}
    assert pq.read_metadata(uri).num_rows == len(ROWS)
    assert plan_catalog(config, spool_uri=str(tmp_path / "work")) == first
    assert first.shards[0].ranges[0].file.unit == "record"


def test_dumps_of_databases_come_through(tmp_path: Path) -> None:
    mongo = [{"_id": {"$oid": f"5f{n}"}, "title": "a", "price": {"$numberDecimal": "1.5"}} for n in range(3)]
    elastic = [{"_index": "p", "_id": str(n), "title": "a", "_source": {"title": "b"}} for n in range(3)]
    big_query = [{"product_id": str(n), "title": "a", "stock": "12", "sizes": [{"v": "1"}]} for n in range(3)]
    for name, rows, id_field in (("m", mongo, "title"), ("e", elastic, "_id"), ("b", big_query, "product_id")):
        for text in (json.dumps(rows), "\n".join(map(json.dumps, rows))):
            config = CatalogConfig(
                uri=write(tmp_path / f"{name}{text[0] == '['}.json", text.encode()),
                id_field=id_field,
                display_fields=tuple(key for key in rows[0] if key not in ("title", id_field)),
            )
            (batch,) = read_plan(plan_catalog(config, spool_uri=str(tmp_path / "work")), config)
            assert batch.columns.to_pylist() == [{key: row[key] for key in config.display_fields} for row in rows]


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=10,
)


@settings(max_examples=150, deadline=None)
@given(
    rows=st.lists(st.dictionaries(st.text(max_size=5), VALUES, max_size=4), max_size=6),
    indent=st.sampled_from([None, 1, "\t"]),
    ascii=st.booleans(),
    chunk=st.integers(1, 40),
    is_page=st.booleans(),
)
def test_cut_in_any_place_a_document_gives_its_objects(
    rows: list[dict[str, Any]], indent: Any, ascii: bool, chunk: int, is_page: bool
) -> None:
    document = {"next": {"x": [1, "]"]}, "p": rows, "z": None} if is_page else rows
    text = json.dumps(document, indent=indent, ensure_ascii=ascii)
    assert records(text, chunk=chunk, path="p" if is_page else None) == rows


@pytest.mark.parametrize("name", ["a.json", "a.jsonl"])
def test_products_inside_records_are_pointed_at(name: str, tmp_path: Path) -> None:
    text = "".join(json.dumps({"count": 1, "products": [row]}) + "\n" for row in ROWS[:2])
    config = CatalogConfig(uri=write(tmp_path / name, text.encode()), format="jsonl")
    with pytest.raises(CatalogError, match=r"catalog\.id_field: .* set catalog\.records to products\."):
        catalog_schema(config)
    named = {row["product_id"]: {"product_id": row["product_id"], "title": row["title"]} for row in ROWS}
    config = CatalogConfig(uri=write(tmp_path / name, json.dumps(named).encode()), format="json")
    with pytest.raises(CatalogError, match=r"catalog\.id_field: .* by their ids are not read: write them as a list"):
        catalog_schema(config)
