"""Paths into nested values: the same products from every format, fast or slow, and only what is needed is read."""

from __future__ import annotations

import json
from pathlib import Path as FilePath
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.catalog import column_files
from pipelines.catalog.config import CatalogConfig, CatalogError
from pipelines.catalog.json_lines import JsonLinesReader
from pipelines.catalog.paths import Path, at_path, needed_fields, type_at
from pipelines.catalog.plan import catalog_schema, plan_catalog
from pipelines.catalog.products import ProductBatch
from tests.pipelines.catalog.catalogs import SUFFIXES, encode, letters_of, pairs, read_plan, write

NESTED: list[dict[str, Any]] = [
    {
        "_id": {"$oid": "a1"},
        "title": {"en": "cup", "de": "Tasse"},
        "images": [{"hi_res": None, "large": "1l.jpg", "n": 1}, {"hi_res": "2h.jpg", "large": "2l.jpg", "n": 2}],
        "price": {"amount": 19.9, "currency": "EUR"},
        "variants": [{"sku": "x", "sizes": ["S", "M"]}, {"sku": "y", "sizes": None}],
    },
    {
        "_id": {"$oid": "a2"},
        "title": {"en": "pot", "de": None},
        "images": [],
        "price": {"amount": 5.0, "currency": "EUR"},
        "variants": None,
    },
    {
        "_id": {"$oid": "a3"},
        "title": {"en": "lid", "de": "Deckel"},
        "images": [{"hi_res": "", "large": "3l.jpg", "n": None}],
        "price": None,
        "variants": [None, {"sku": None, "sizes": []}],
    },
]
CONFIG: dict[str, Any] = {
    "id_field": "_id.$oid",
    "text_template": "{title.en}. {title.de}",
    "image_field": "images.hi_res|large",
    "images_per_product": 3,
    "display_fields": ("price.amount", "variants.sku", "variants.sizes"),
    "filter_fields": ("images.n",),
}


def products(config: CatalogConfig, folder: FilePath) -> list[ProductBatch]:
    return read_plan(plan_catalog(config, spool_uri=str(folder / "spool")), config)


@pytest.mark.parametrize("format", [name for name in SUFFIXES if name != "csv"])
def test_every_format_gives_the_same_products(format: str, tmp_path: FilePath) -> None:
    config = CatalogConfig(uri=write(tmp_path / f"a{SUFFIXES[format]}", encode(NESTED, format)), **CONFIG)
    assert catalog_schema(config).schema == plan_catalog(config, spool_uri=str(tmp_path / "spool")).schema
    batches = products(config, tmp_path)
    assert [pair for batch in batches for pair in pairs(batch)] == [
        ("a1", "cup. Tasse"),
        ("a2", "pot"),
        ("a3", "lid. Deckel"),
    ]
    images = [images for batch in batches for images in batch.images]
    assert images == [("1l.jpg", "2h.jpg"), (), ("3l.jpg",)]
    columns = pa.Table.from_batches([batch.columns for batch in batches]).to_pydict()
    assert columns == {
        "price.amount": [19.9, 5.0, None],
        "variants.sku": [["x", "y"], None, [None, None]],
        "variants.sizes": [["S", "M", None], None, [None]],
        "images.n": [[1, 2], [], [None]],
    }
    assert letters_of(batches) == []


def test_a_struct_of_lists_is_taken_item_by_item(tmp_path: FilePath) -> None:
    images = [
        {"hi_res": [None, "h2", None], "large": ["l1", "l2", "l3", "l4"], "thumb": ["t"]},
        {"hi_res": None, "large": ["l1"], "thumb": None},
        {"hi_res": ["h1"], "large": None, "thumb": None},
        None,
        {"hi_res": [], "large": [], "thumb": None},
        {"hi_res": ["None"], "large": ["l1"], "thumb": None},
    ]
    rows = [{"product_id": str(number), "title": "a", "images": each} for number, each in enumerate(images)]
    found = []
    for format in ("parquet", "arrow", "jsonl"):
        uri = write(tmp_path / f"a{SUFFIXES[format]}", encode(rows, format))
        config = CatalogConfig(uri=uri, image_field="images.hi_res|large", images_per_product=9)
        found.append([images for batch in products(config, tmp_path) for images in batch.images])
    assert found == [[("l1", "h2", "l3", "l4"), ("l1",), ("h1",), (), (), ("l1",)]] * 3


def test_keys_of_maps_are_steps(tmp_path: FilePath) -> None:
    texts = pa.map_(pa.string(), pa.string())
    deep = pa.map_(pa.string(), pa.struct([("value", pa.string()), ("unit", pa.string())]))
    table = pa.table(
        {
            "product_id": ["1", "2", "3"],
            "attributes": pa.array([[("color", "red"), ("g.size", "L")], None, [("weight", "5")]], texts),
            "specs": pa.array([[("height", {"value": "3", "unit": "cm"})], [], None], deep),
        }
    )
    fields = ("attributes.color", "attributes.g.size", "specs.height.value", "attributes.none")
    for format in ("parquet", "arrow"):
        uri = write(tmp_path / f"a{SUFFIXES[format]}", encode(table, format))
        config = CatalogConfig(uri=uri, text_fields=("product_id",), display_fields=fields)
        (batch,) = products(config, tmp_path)
        assert batch.columns.to_pydict() == {
            "attributes.color": ["red", None, None],
            "attributes.g.size": ["L", None, None],
            "specs.height.value": ["3", None, None],
            "attributes.none": [None, None, None],
        }


@pytest.mark.parametrize("format", list(SUFFIXES))
def test_a_column_whose_own_name_has_the_dots_comes_first(format: str, tmp_path: FilePath) -> None:
    rows = [{"g:id": "1", "a.b": "own", "a|c": "bar", "x.y|z": "odd", "u": "", "v": "second"}]
    if format != "csv":
        rows[0]["a"] = {"b": "nested"}  # type: ignore[assignment]
    config = CatalogConfig(
        uri=write(tmp_path / f"a{SUFFIXES[format]}", encode(rows, format)),
        id_field="g:id",
        text_fields=("a.b", "a|c", "x.y|z", "u|v", "nothing|v"),
    )
    assert [pairs(batch) for batch in products(config, tmp_path)] == [[("1", "own bar odd second second")]]


def test_the_flat_columns_of_a_csv_can_be_alternatives(tmp_path: FilePath) -> None:
    data = b"product_id,images.hi_res,images.large,price_eur,price\n1,,l.jpg,,5\n2,h.jpg,l.jpg,7,6\n"
    config = CatalogConfig(
        uri=write(tmp_path / "a.csv", data),
        text_fields=(),
        image_field="images.hi_res|large",
        display_fields=("price_eur|price",),
    )
    (batch,) = products(config, tmp_path)
    assert batch.images == [("l.jpg",), ("h.jpg",)]
    assert batch.columns.to_pydict() == {"price_eur|price": [5, 7]}


def test_only_the_leaves_that_are_needed_are_read(tmp_path: FilePath) -> None:
    wide = {"title": "t", **{f"field{number}": "x" * 500 for number in range(20)}}
    rows = [{"id": str(number), "s": wide, "l": [{"a": 1, "b": "y" * 900}]} for number in range(50)]
    uri = write(tmp_path / "a.parquet", encode(rows, "parquet", chunk_rows=50))
    whole = column_files.read_parquet_footer(uri, ["id", "s", "l"])
    part = column_files.read_parquet_footer(uri, ["id", "s.title", "l.a"])
    assert part.chunk_bytes.sum() < whole.chunk_bytes.sum() / 5
    (batch,) = column_files.iter_parquet_rows(uri, 0, 50, ["id", "s.title", "l.a"], batch_rows=99, batch_bytes=1 << 20)
    assert [field.name for field in batch.schema.field("s").type] == ["title"]
    assert [field.name for field in batch.schema.field("l").type.value_type] == ["a"]
    assert batch.num_rows == 50


@pytest.mark.parametrize("format", ["parquet", "arrow", "jsonl"])
@pytest.mark.parametrize(
    ("field", "hint"),
    [
        ("_source.titel", "Did you mean '_source.title'"),
        ("title", "Did you mean '_source.title'"),
        ("_source.Title", "Did you mean '_source.title'"),
        ("_source.title.en", "'_source.title'"),
    ],
)
def test_an_unknown_path_names_the_nearest_one(format: str, field: str, hint: str, tmp_path: FilePath) -> None:
    others = {f"a{letter}": 1 for letter in "abcdefghijklmnop"}
    rows = [{**others, "_source": {"id": "1", "title": "a", **others}}]
    uri = write(tmp_path / f"a{SUFFIXES[format]}", encode(rows, format))
    with pytest.raises(CatalogError, match=r"catalog\.text_fields: .*" + hint):
        catalog_schema(CatalogConfig(uri=uri, id_field="_source.id", text_fields=(field,)))


def test_alternatives_stand_in_the_last_step_only(tmp_path: FilePath) -> None:
    uri = write(tmp_path / "a.parquet", encode([{"id": "1", "a": {"x": "1"}, "b": {"x": "2"}}], "parquet"))
    with pytest.raises(CatalogError, match=r"catalog\.text_fields: .*'a\|b\.x'"):
        catalog_schema(CatalogConfig(uri=uri, id_field="id", text_fields=("a|b.x",)))


def test_other_parts_of_an_object_may_be_of_any_type(monkeypatch: pytest.MonkeyPatch) -> None:
    """None of them sends a block the slow way."""
    config = CatalogConfig(uri="a", id_field="_source.id", text_fields=("_source.title",))
    others = ["1", '"x"', "[1]", '{"a": {"b": [{}]}}', "null", "[[{}], 2]"]
    lines = [
        f'{{"_source": {{"id": {n}, "title": "a", "z": {other}, "id2": 1}}, "q": 2}}' for n, other in enumerate(others)
    ]
    reader = JsonLinesReader(config)
    monkeypatch.setattr(reader, "parse_by_line", None)
    records, _ = reader.parse("\n".join(lines).encode(), 1, True)
    assert records.rows.to_pydict() == {"_source.id": [0, 1, 2, 3, 4, 5], "_source.title": ["a"] * 6}


def test_a_path_through_now_an_object_now_a_list_gives_lists() -> None:
    config = CatalogConfig(uri="a", id_field="id", text_fields=("id",), display_fields=("v.p",))
    rows: list[Any] = [{"id": "1", "v": {"p": 1}}, {"id": "2", "v": [{"p": 2}, {}]}, {"id": "3", "v": "none"}]
    data = "".join(json.dumps(row) + "\n" for row in rows).encode()
    records, _ = JsonLinesReader(config).parse(data, 1, True)
    assert records.rows.column("v.p").to_pylist() == [[1], [2, None], None]


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ('{"s": {"id": 1, "id": 2}}', "'id' twice"),
        ('{"s": {"id": 1.5}}', "found 1.5"),
        ('{"s": [{"id": 1}]}', "found a list"),
        ('{"s": {"id": "1", "title": {"a": 1}}}', "expected text in 's.title', found an object"),
        ('{"s": {"id": "1", "title": "\\ud800"}}', "half of a surrogate pair"),
        ('{"s": ' + "[" * 100_000 + "]" * 100_000 + "}", "nested too deeply"),
    ],
)
def test_a_bad_line_costs_itself_only(line: str, why: str) -> None:
    config = CatalogConfig(uri="a", id_field="s.id", text_fields=("s.title",))
    good = '{"s": {"id": "1", "title": "a"}}\n'
    records, _ = JsonLinesReader(config).parse((good + line + "\n" + good).encode(), 1, True)
    assert records.lines.tolist() == [1, 3]
    assert why in records.bad[0][1]


def test_a_path_that_shows_late_keeps_the_type_of_its_file() -> None:
    """Blocks without a value say nothing of the type, and do not make a list text."""
    config = CatalogConfig(uri="a", id_field="id", text_fields=("id",), display_fields=("v.p",))
    reader = JsonLinesReader(config)
    found = []
    for row in ({"id": "1"}, {"id": "2", "v": [{"p": 1}]}, {"id": "3"}, {"id": "4", "v": [{"p": 2.5}]}):
        records, _ = reader.parse(json.dumps(row).encode() + b"\n", 1, False)
        found.append(records.rows.column("v.p"))
    assert [column.to_pylist() for column in found] == [[None], [[1]], [None], [[2.5]]]
    assert reader.seen.votes["v.p"].winner() == pa.list_(pa.float64())


words = st.sampled_from(["", "a", "b", " ", "NULL"])
leaves = st.none() | words
images = st.fixed_dictionaries({}, optional={"hi": leaves, "large": leaves, "hi.res": leaves, "no": st.integers()})
lists = st.fixed_dictionaries(
    {}, optional={"hi": st.none() | st.lists(leaves, max_size=3), "large": st.none() | st.lists(leaves, max_size=3)}
)
nested = st.fixed_dictionaries(
    {"id": words},
    optional={
        "image": st.none() | st.lists(st.none() | images, max_size=3),
        "both": st.none() | lists,
        "deep": st.none()
        | st.lists(st.none() | st.fixed_dictionaries({}, optional={"l": st.lists(lists, max_size=2)})),
        "a": st.none() | st.fixed_dictionaries({}, optional={"b": leaves, "b.c": leaves, "z": st.lists(words)}),
        "a.b": leaves,
        "a.b.c": leaves,
        "mixed": st.none() | st.integers() | words | images | st.lists(st.none() | images | words, max_size=2),
    },
)
PATHS = CatalogConfig(
    uri="a.jsonl",
    id_field="id",
    text_fields=("a.b", "a.b.c"),
    image_field="image.hi|large",
    display_fields=(
        "both.hi|large",
        "deep.l.hi|large",
        "image.hi.res",
        "mixed.hi",
        "mixed.hi|large",
        "both",
        "deep.l.hi",
    ),
)


@settings(max_examples=200, deadline=None)
@given(rows=st.lists(nested, min_size=1, max_size=5))
def test_fast_and_slow_give_the_same_rows(rows: list[dict[str, Any]]) -> None:
    data = "".join(json.dumps(row) + "\n" for row in rows).encode()
    fast_reader, slow_reader = JsonLinesReader(PATHS), JsonLinesReader(PATHS)
    slow_reader.parse_fast = lambda data, line: None  # type: ignore[method-assign]
    fast, slow = fast_reader.parse(data, 1, True)[0], slow_reader.parse(data, 1, True)[0]
    assert fast.lines.tolist() == slow.lines.tolist()
    for name in slow.rows.schema.names:
        found, expected = fast.rows.column(name).to_pylist(), slow.rows.column(name).to_pylist()
        if name == "image.hi|large":  # lists of texts, as all images of several shapes
            found, expected = (
                [[text for text in each or () if text] for each in values] for values in (found, expected)
            )
        if name != "both":  # of an object that is read whole the fast way gives all fields
            assert found == expected, name


tables = st.lists(
    st.fixed_dictionaries(
        {
            "image": st.none()
            | st.lists(st.none() | st.fixed_dictionaries({"hi": leaves, "large": leaves}), max_size=3),
            "both": st.none()
            | st.fixed_dictionaries({"hi": st.none() | st.lists(leaves, max_size=2), "large": leaves}),
        }
    ),
    max_size=5,
)
SCHEMA = pa.schema(
    [
        ("image", pa.list_(pa.struct([("hi", pa.string()), ("large", pa.large_string())]))),
        ("both", pa.struct([("hi", pa.large_list(pa.string())), ("large", pa.string())])),
    ]
)


@given(rows=tables, start=st.integers(0, 3))
def test_a_part_of_a_batch_has_its_part_of_the_values(rows: list[dict[str, Any]], start: int) -> None:
    batch = pa.RecordBatch.from_pylist(rows, SCHEMA)
    part = batch.slice(start)
    for name in ("image.hi", "image.hi|large", "both.hi|large", "both.large"):
        whole, cut = (
            at_path(dict(zip(SCHEMA.names, each.columns, strict=True)), Path(name), ["NULL"]) for each in (batch, part)
        )
        assert whole is not None
        assert cut is not None
        cut.validate(full=True)
        assert cut.to_pylist() == whole.to_pylist()[start:]
        assert len(whole) == len(rows)
        if rows:
            assert type_at(SCHEMA, name) is not None


def test_names_that_are_no_paths_are_names() -> None:
    for name in ("a.", ".a", "a..b", "a|", "|", ".", "a"):
        assert Path(name).is_plain
        assert Path(name).columns == (name,)
    assert needed_fields(pa.schema([("a.", pa.string())]), "a.") == [("a.",)]


def test_types_that_do_not_meet_are_an_error_before_any_work(tmp_path: FilePath) -> None:
    rows = [{"id": "1", "a": {"x": "1", "y": {"z": 1}, "n": 5}}]
    uri = write(tmp_path / "a.parquet", encode(rows, "parquet"))
    with pytest.raises(
        CatalogError, match=r"catalog\.display_fields: 'a\.x\|y' names fields of types that do not meet"
    ):
        catalog_schema(CatalogConfig(uri=uri, id_field="id", text_fields=("id",), display_fields=("a.x|y",)))
    config = CatalogConfig(uri=uri, id_field="id", text_fields=("a.n|x",))
    assert [pairs(batch) for batch in products(config, tmp_path)] == [[("1", "5")]]


def test_a_writer_with_rules_of_its_own_is_read_by_whole_columns(
    tmp_path: FilePath, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = tmp_path / "a.parquet"
    pq.write_table(pa.Table.from_pylist(NESTED), uri)
    config = CatalogConfig(uri=str(uri), **CONFIG)
    expected = products(config, tmp_path)[0].columns
    monkeypatch.setattr(column_files, "_stored_parts", lambda name, data_type: iter(()))
    assert products(config, tmp_path)[0].columns.equals(expected)
