"""The first look at the catalog: columns, types, and every way in which a config can ask for what is not there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from pipelines.catalog.config import CatalogConfig, CatalogError
from pipelines.catalog.plan import catalog_schema, plan_catalog
from pipelines.catalog.schemas import CatalogSchema
from tests.pipelines.catalog.catalogs import COMPRESSIONS, SUFFIXES, compress, encode, write

ROWS = [{"product_id": "1", "title": "a", "price": 1.5}]


def look(uri: str | Path, **options: Any) -> CatalogSchema:
    return catalog_schema(CatalogConfig(uri=str(uri), **options))


@pytest.mark.parametrize("compression", list(COMPRESSIONS))
@pytest.mark.parametrize("format", list(SUFFIXES))
def test_columns_are_known_without_unpacking_the_catalog(format: str, compression: str, tmp_path: Path) -> None:
    data = compress(encode(ROWS, format), compression)
    uri = write(tmp_path / f"a{SUFFIXES[format]}{COMPRESSIONS[compression]}", data)
    found = look(uri, display_fields=("price",))
    assert (found.files, found.bytes) == (1, len(data))
    if format == "parquet" and compression != "none":
        assert found.columns == ()
        return
    assert found.columns == ("product_id", "title", "price")
    assert found.schema.field("price").type == pa.float64()
    with pytest.raises(CatalogError, match=r"catalog\.text_fields: .*'titel'.*Did you mean 'title'\?"):
        look(uri, text_fields=("titel",))


@pytest.mark.parametrize("format", list(SUFFIXES))
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"id_field": "sku"}, r"catalog\.id_field: .*'sku'"),
        ({"text_template": "{title} {brnd}"}, r"catalog\.text_template: .*'brnd'"),
        ({"image_field": "picture"}, r"catalog\.image_field: .*'picture'.*Known: 'price', 'product_id', 'title'\."),
        ({"display_fields": ("Price",)}, r"catalog\.display_fields: .*'Price'.*Did you mean 'price'\?"),
        ({"filter_fields": ("prise",)}, r"catalog\.filter_fields: .*'prise'.*Did you mean 'price'\?"),
    ],
)
def test_an_unknown_field_is_an_error_before_any_work(
    options: dict[str, Any], message: str, format: str, tmp_path: Path
) -> None:
    uri = write(tmp_path / f"a{SUFFIXES[format]}", encode(ROWS, format))
    with pytest.raises(CatalogError, match=message):
        look(uri, **options)
    with pytest.raises(CatalogError, match=message):
        plan_catalog(CatalogConfig(uri=uri, **options), spool_uri=str(tmp_path / "spool"))


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("a.parquet", b"PAR1 not really", r"a\.parquet: expected a whole parquet file"),
        ("a.parquet", encode(ROWS, "parquet")[:-30], r"a\.parquet: expected a whole parquet file"),
        ("a.parquet", b"product_id,title\n1,a\n", r"a\.parquet: expected a whole parquet file"),
        ("a.arrow", encode(ROWS, "arrow")[:-30], r"a\.arrow: expected"),
        ("a.arrow", b"nothing", r"a\.arrow: expected"),
        ("a.jsonl", b'[{"product_id": 1}', r"a\.jsonl: expected a whole JSON document; at line 1, character 19"),
        ("a.json", b'{\n "product_id" 1\n}\n', "expected a whole JSON document; at line 2, character 15"),
        ("a.json", b"[1]", "expected JSON objects, found no readable record"),
        ("a.xml", b"<a><b>", r"a\.xml: expected a whole XML file"),
        ("a.xlsx", b"product_id", r"a\.xlsx: expected a whole Excel file"),
        ("a.csv.zip", b"product_id", r"a\.csv\.zip: expected a whole zip file"),
        ("a.csv.xz", b"product_id", r"a\.csv\.xz: expected a whole xz file"),
        ("a.jsonl", b"\xff\xfe{\x00", "found no readable record"),
        ("a.csv", b"\xff\xfei\x00d\x00", r"catalog\.id_field: .*which a\.csv does not have\. Known: 'id'"),
        ("a.csv", b"\n\n", r"a\.csv: expected a first line with column names"),
        ("a.csv", b"id;title,more,words\n1;a,b,c\n", r"catalog\.id_field: .*Known: 'id;title', 'more', 'words'"),
        ("a.csv", b"product_id,title,title\n1,a,b\n", r"a\.csv: expected one column 'title', found 2"),
        ("a.jsonl.gz", b"product", r"a\.jsonl\.gz: expected a whole gzip file"),
    ],
)
def test_a_file_that_is_not_what_its_name_says_is_an_error(
    name: str, data: bytes, message: str, tmp_path: Path
) -> None:
    with pytest.raises(CatalogError, match=message):
        look(write(tmp_path / name, data))


@pytest.mark.parametrize(
    ("column", "options", "message"),
    [
        (pa.array([True]), {"id_field": "x"}, r"catalog\.id_field: expected a column of text or whole numbers"),
        (pa.array([["a"]]), {"id_field": "x"}, r"catalog\.id_field"),
        (pa.array([{"en": "a"}]), {"text_fields": ("x",)}, r"catalog\.text_fields: .*'x' is struct<en: string>"),
        (pa.array([{"en": "a"}]), {"text_template": "{x}"}, r"catalog\.text_template"),
        (pa.array([[["a"]]]), {"text_fields": ("x",)}, r"catalog\.text_fields"),
        (pa.array([{"width": 1}]), {"image_field": "x"}, r"catalog\.image_field: expected a column of bytes, text"),
        (pa.array([1]), {"image_field": "x"}, r"catalog\.image_field"),
    ],
)
@pytest.mark.parametrize("format", ["parquet", "arrow", "jsonl"])
def test_a_column_that_cannot_be_what_it_is_for_is_an_error(
    format: str, column: pa.Array, options: dict[str, Any], message: str, tmp_path: Path
) -> None:
    table = pa.table({"product_id": ["1"], "title": ["a"], "x": column})
    with pytest.raises(CatalogError, match=message):
        look(write(tmp_path / f"a{SUFFIXES[format]}", encode(table, format)), **options)


def test_types_of_csv_and_json_columns_by_their_values(tmp_path: Path) -> None:
    text = "product_id,title,whole,number,yes,code,mixed,none,date\n" + "".join(
        f"{n},a,{n or ''},{n * 1.5},{'TRUE' if n else 'NA'},0{n},{'x' if n == 1 else n},,2026-11-2{n}\n"
        for n in range(3)
    )
    fields = ("whole", "number", "yes", "code", "mixed", "none", "date")
    found = look(write(tmp_path / "a.csv", text.encode()), display_fields=fields)
    types = [pa.int64(), pa.float64(), pa.bool_(), pa.string(), pa.string(), pa.string(), pa.string()]
    assert found.schema.types[2:] == types
    stated = look(tmp_path / "a.csv", display_fields=fields, column_types={"date": "date32", "whole": "float64"})
    assert stated.schema.field("date").type == pa.date32()
    assert stated.schema.field("whole").type == pa.float64()

    lines = (
        '{"product_id": 1, "title": "a", "n": 1, "tags": [], "d": "2026-11-21", "m": 1, "big": 99999999999999999999}\n'
    )
    lines += '{"product_id": 2, "title": "b", "n": 2.5, "tags": ["x"], "d": null, "m": "x", "s": {"a": null}}\n'
    fields = ("n", "tags", "d", "m", "big", "s")
    found = look(write(tmp_path / "b" / "a.jsonl", lines.encode()), display_fields=fields)
    nested = [pa.list_(pa.string()), pa.string(), pa.string(), pa.string(), pa.struct([("a", pa.string())])]
    assert found.schema.types == [pa.int64(), pa.string(), pa.float64(), *nested]


def test_a_json_column_that_the_sample_lacks_can_be_stated(tmp_path: Path) -> None:
    uri = write(tmp_path / "a.jsonl", encode(ROWS, "jsonl"))
    with pytest.raises(CatalogError, match="the part of the catalog that was looked at"):
        look(uri, display_fields=("rare",))
    assert (
        look(uri, display_fields=("rare",), column_types={"rare": "float64"}).schema.field("rare").type == pa.float64()
    )
