"""A column of any type becomes a column of products.arrow that a server can read, or is refused by name."""

from __future__ import annotations

import datetime
import decimal
import uuid
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest

from index_builder.embedding_shards import EmbeddingShardWriter
from index_builder.filters import parse_condition
from index_builder.open_version import ProductRows, RowFilters
from pipelines.catalog.arrow_types import plain, plain_type
from pipelines.catalog.config import CatalogConfig, CatalogError
from pipelines.catalog.dead_letters import write_dead_letters
from pipelines.catalog.plan import catalog_schema, plan_catalog
from pipelines.catalog.products import to_products
from pipelines.catalog.reading import read_shard
from pipelines.indexing.product_table import columns_writer, number_products
from pipelines.indexing.shard_files import ShardFiles
from tests.pipelines.catalog.catalogs import encode, letters_of, pairs, read_plan, write

UUIDS = [uuid.UUID(int=number * 10**30 + 7) for number in range(3)]
DAY, MOMENT = datetime.date(2026, 1, 31), datetime.datetime(2026, 1, 31, 12, 30)


def stored(data_type: pa.DataType, values: list[Any], storage: pa.DataType | None = None) -> pa.Array:
    if storage is not None:
        return pa.ExtensionArray.from_storage(data_type, pa.array(values, storage))
    return pa.array(values, data_type)


COLUMNS: dict[str, pa.Array] = {
    "null": pa.nulls(4),
    "bool": pa.array([True, None, False, True]),
    **{
        str(each): pa.array([1, None, 0, 2], each)
        for each in (*(pa.int8(), pa.uint8(), pa.int16(), pa.uint16(), pa.int32(), pa.uint32(), pa.int64()),)
    },
    "uint64": pa.array([2**64 - 1, None, 0, 2], pa.uint64()),
    **{str(each): pa.array([1.5, None, float("nan"), 2], each) for each in (pa.float16(), pa.float32(), pa.float64())},
    **{
        str(each): pa.array([decimal.Decimal("1.50"), None, decimal.Decimal("-2.25"), decimal.Decimal(0)], each)
        for each in (pa.decimal32(5, 2), pa.decimal64(12, 2), pa.decimal128(30, 2), pa.decimal256(60, 2))
    },
    **{
        str(each): pa.array(["a", None, "", "\U0001f600"], each)
        for each in (pa.string(), pa.large_string(), pa.string_view())
    },
    **{
        str(each): pa.array([b"a", None, b"", b"\xff"], each)
        for each in (pa.binary(), pa.large_binary(), pa.binary_view())
    },
    "binary16": pa.array([each.bytes for each in UUIDS] + [None], pa.binary(16)),
    "binary2": pa.array([b"ab", None, b"cd", b"ef"], pa.binary(2)),
    "date32": pa.array([DAY, None, DAY, DAY], pa.date32()),
    "date64": pa.array([DAY, None, DAY, DAY], pa.date64()),
    **{f"time_{each}": pa.array([1, None, 2, 3], each) for each in (pa.time32("s"), pa.time32("ms"), pa.time64("us"))},
    **{f"duration_{unit}": pa.array([1000, None, 2000, 3000], pa.duration(unit)) for unit in ("s", "ms", "us", "ns")},
    **{f"timestamp_{unit}": pa.array([MOMENT, None] * 2, pa.timestamp(unit)) for unit in ("s", "ms", "us")},
    "timestamp_tz": pa.array([MOMENT, None] * 2, pa.timestamp("us", "Europe/Berlin")),
    "interval": pa.array([(1, 2, 3), None, (0, 0, 0), (4, 5, 6)], pa.month_day_nano_interval()),
    "dictionary": pa.array(["a", None, "b", "a"]).dictionary_encode(),
    "dictionary_of_numbers": pa.array([1, None, 2, 1]).dictionary_encode(),
    "run_end": pc.run_end_encode(pa.array(["a", "a", None, "b"])),
    "list": pa.array([["a"], None, [], ["b", None]]),
    "large_list": pa.array([["a"], None, [], ["b", None]], pa.large_list(pa.large_string())),
    "list_view": pa.array([["a"], None, [], ["b", None]], pa.list_view(pa.string_view())),
    "large_list_view": pa.array([[1], None, [], [2, None]], pa.large_list_view(pa.int8())),
    "fixed_list": pa.array([[1, 2], None, [3, None], [4, 5]], pa.list_(pa.float32(), 2)),
    "lists": pa.array([[["a"], None], None, [], [[], ["b", None]]]),
    "list_of_dictionaries": pa.ListArray.from_arrays([0, 1, 1, 2, 3], pa.array(["a", "b", None]).dictionary_encode()),
    "struct": pa.array([{"a": 1, "b": ["x"]}, None, {"a": None, "b": None}, {"a": 2, "b": []}]),
    "struct_of_views": pa.array([{"a": "x"}, None, {"a": None}, {"a": "y"}], pa.struct([("a", pa.string_view())])),
    "list_of_structs": pa.array([[{"a": 1}], None, [None], [{"a": None}, {"a": 2}]]),
    "map": pa.array([[("a", 1)], None, [], [("b", 2), ("c", None)]], pa.map_(pa.string(), pa.int8())),
    "map_of_views": pa.array([[("a", "x")], None, [], [("b", None)]], pa.map_(pa.large_string(), pa.string_view())),
    "map_of_lists": pa.array([[("a", [1])], None, [], [("b", None)]], pa.map_(pa.string(), pa.large_list(pa.int8()))),
    "uuid": stored(pa.uuid(), [each.bytes for each in UUIDS] + [None], pa.binary(16)),
    "json": stored(pa.json_(), ['{"a": 1}', None, "1", "[]"], pa.string()),
    "bool8": stored(pa.bool8(), [1, None, 0, 5], pa.int8()),
    "tensor": stored(
        pa.fixed_shape_tensor(pa.float32(), [2]), [[1, 2], [3, 4], [5, 6], [7, 8]], pa.list_(pa.float32(), 2)
    ),
    "opaque": stored(pa.opaque(pa.string(), "t", "v"), ["a", None, "b", "c"], pa.string()),
    "list_of_uuids": pa.ListArray.from_arrays(
        [0, 1, 1, 3, 3], stored(pa.uuid(), [each.bytes for each in UUIDS], pa.binary(16))
    ),
}
OTHER_VALUES: dict[str, list[Any]] = {
    "uuid": [*map(str, UUIDS), None],
    "bool8": [True, None, False, True],
    "list_of_uuids": [[str(UUIDS[0])], [], [str(UUIDS[1]), str(UUIDS[2])], []],
}
IDS = {
    *("int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64", "halffloat", "float", "double"),
    *("string", "large_string", "string_view", "binary", "large_binary", "binary_view", "binary16", "uuid"),
    *("dictionary", "dictionary_of_numbers", "run_end", "json", "opaque"),
}
NOT_IN_PARQUET = ("interval", "run_end", "large_list_view", "struct_of_views", "fixed_list")
"""The last ones pyarrow 25 does not write, or not read again where one of them is null."""


def published(config: CatalogConfig, folder: Path) -> pa.Table:
    """products.arrow of a catalog of two shards, without vectors worth the name."""
    plan = plan_catalog(config, spool_uri=str(folder / "spool"))
    assert len(plan.shards) == 2
    shards = []
    for shard in plan.shards:
        files = ShardFiles(folder=str(folder / "shards"), key=f"s{shard.position}")
        with (
            EmbeddingShardWriter(files.embeddings, dim=4, encoder_fingerprint="e") as vectors,
            columns_writer(files.columns) as write_columns,
        ):
            for rows in read_shard(shard, config, batch_rows=1):
                batch = to_products(rows, config)
                assert not batch.dead_letters
                assert not batch.notes
                count = len(batch.product_ids)
                vectors.write(
                    batch.product_ids, np.ones((count, 4)), np.zeros((count, 16), np.uint8), np.ones(count, np.uint8)
                )
                write_columns(batch.columns.take(pa.array(np.arange(count))))
        write_dead_letters(files.rejected, [])
        shards.append(files)
    numbering = number_products(shards, str(folder / "out"))
    return pa.ipc.open_file(pa.memory_map(numbering.products[0].uri)).read_all()


@pytest.mark.parametrize("format", ["parquet", "arrow"])
@pytest.mark.parametrize("name", list(COLUMNS))
def test_a_column_of_any_type_is_carried_to_the_reader(name: str, format: str, tmp_path: Path) -> None:
    if format == "parquet" and name in NOT_IN_PARQUET:
        pytest.skip("not in Parquet")
    column = COLUMNS[name]
    column.validate(full=True)
    table = pa.table({"product_id": ["1", "2", "3", "4"], "title": ["a"] * 4, "x.y": column, "z": column})
    uri = write(tmp_path / f"a.{format}", encode(table, format, chunk_rows=2))
    stored_type = column.type if format == "arrow" else pq.read_schema(uri).field("z").type
    config = CatalogConfig(uri=uri, display_fields=("x.y",), filter_fields=("z",), shard_rows=2)
    assert "x.y" in catalog_schema(config).schema.names
    products = published(config, tmp_path)
    expected = OTHER_VALUES.get(name, column.to_pylist())
    for each in ("x.y", "z"):
        assert str(products[each].to_pylist()) == str(expected)
        assert products.schema.field(each).type.equals(plain_type(stored_type))
    rows = ProductRows(products)
    taken = rows.take_columns(np.array([3, 0]), ["product_id", "x.y"])
    assert str(taken["x.y"].to_pylist()) == str([expected[3], expected[0]])
    assert RowFilters(products).select(pc.field("x.y").is_valid()).rows == 4 - expected.count(None)
    assert ds.dataset(products).to_table(filter=pc.field("product_id") == "2").num_rows == 1
    masks = [parse_condition("x.y is not null").mask(batch).to_pylist() for batch in products.to_batches()]
    given = [value is not None and not (isinstance(value, float) and value != value) for value in expected]
    assert [value for mask in masks for value in mask] == given


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("key", ["display_fields", "filter_fields"])
def test_a_type_that_cannot_be_carried_is_refused_by_name(nested: bool, key: str, tmp_path: Path) -> None:
    column = pa.UnionArray.from_sparse(pa.array([0, 1], pa.int8()), [pa.array([1, 2]), pa.array(["a", "b"])])
    if nested:
        column = pa.ListArray.from_arrays([0, 1, 2], column)
    table = pa.table({"product_id": ["1", "2"], "title": ["a", "b"], "x": column})
    uri = write(tmp_path / "a.arrow", encode(table, "arrow"))
    with pytest.raises(CatalogError, match=rf"catalog\.{key}: .*without sparse_union.*'x' is .*union"):
        catalog_schema(CatalogConfig(uri=uri, **{key: ("x",)}))


@pytest.mark.parametrize("name", ["struct", "map", "interval", "binary2", "lists", "list_of_structs"])
def test_a_text_of_a_type_that_has_none_is_refused_by_name(name: str, tmp_path: Path) -> None:
    table = pa.table({"product_id": ["1", "2", "3", "4"], "x": COLUMNS[name]})
    uri = write(tmp_path / "a.arrow", encode(table, "arrow"))
    with pytest.raises(CatalogError, match=r"catalog\.text_fields: expected a column of text, numbers.*'x' is "):
        catalog_schema(CatalogConfig(uri=uri, text_fields=("x",)))


@pytest.mark.parametrize("name", [name for name in COLUMNS if name not in ("map", "map_of_views", "map_of_lists")])
def test_a_text_of_any_other_type_is_read(name: str, tmp_path: Path) -> None:
    table = pa.table({"product_id": ["1", "2", "3", "4"], "x": COLUMNS[name]})
    config = CatalogConfig(uri=write(tmp_path / "a.arrow", encode(table, "arrow")), text_fields=("x",))
    try:
        catalog_schema(config)
    except CatalogError:
        return
    read_plan(plan_catalog(config, spool_uri=str(tmp_path / "spool")), config)


@pytest.mark.parametrize("name", list(COLUMNS))
def test_an_id_of_any_type_is_read_or_refused_by_name(name: str, tmp_path: Path) -> None:
    table = pa.table({"x": COLUMNS[name], "title": ["a"] * 4})
    config = CatalogConfig(uri=write(tmp_path / "a.arrow", encode(table, "arrow")), id_field="x", display_fields=("x",))
    if name not in IDS:
        with pytest.raises(CatalogError, match=r"catalog\.id_field: expected a column of text or whole numbers"):
            catalog_schema(config)
        return
    batches = read_plan(plan_catalog(config, spool_uri=str(tmp_path / "spool")), config)
    assert all(batch.columns.num_rows == len(batch.product_ids) for batch in batches)


@pytest.mark.parametrize("format", ["parquet", "arrow"])
@pytest.mark.parametrize("name", ["uuid", "binary16"])
def test_uuids_as_ids_are_their_text(name: str, format: str, tmp_path: Path) -> None:
    table = pa.table({"x": COLUMNS[name], "title": ["a"] * 4})
    uri = write(tmp_path / f"a.{format}", encode(table, format))
    config = CatalogConfig(uri=uri, id_field="x", display_fields=("x",))
    batches = read_plan(plan_catalog(config, spool_uri=str(tmp_path / "spool")), config)
    assert [pair for batch in batches for pair in pairs(batch)] == [(str(each), "a") for each in UUIDS]
    assert batches[0].columns["x"].to_pylist() == list(map(str, UUIDS))
    assert [letter.reason for letter in letters_of(batches)] == ["missing_id"]


@pytest.mark.parametrize("name", list(COLUMNS))
def test_a_part_of_a_column_is_plain_too(name: str) -> None:
    column = COLUMNS[name]
    whole, part, none = plain(column), plain(column.slice(1, 2)), plain(column.slice(2, 0))
    assert str(whole.type) == str(part.type) == str(none.type) == str(plain_type(column.type))
    for each in (whole, part, none):
        each.validate(full=True)
    assert str(part.to_pylist()) == str(whole.to_pylist()[1:3])


def test_a_null_list_of_a_fixed_size_in_parquet_says_what_to_do(tmp_path: Path) -> None:
    table = pa.table({"product_id": ["1", "2", "3", "4"], "title": ["a"] * 4, "x": COLUMNS["fixed_list"]})
    config = CatalogConfig(uri=write(tmp_path / "a.parquet", encode(table, "parquet")), display_fields=("x",))
    plan = plan_catalog(config, spool_uri=str(tmp_path / "spool"))
    with pytest.raises(CatalogError, match=r"a\.parquet.*write them as plain lists"):
        read_plan(plan, config)


def test_files_that_store_a_column_in_other_ways_agree(tmp_path: Path) -> None:
    for number, data_type in enumerate((pa.large_list(pa.large_string()), pa.list_view(pa.string_view()))):
        table = pa.table({"product_id": [str(number)], "title": ["a"], "x": pa.array([["a"]], data_type)})
        pq.write_table(table, tmp_path / f"{number}.parquet")
    config = CatalogConfig(uri=str(tmp_path), display_fields=("x",))
    batches = read_plan(plan_catalog(config, spool_uri=str(tmp_path / "spool")), config)
    assert [batch.columns.to_pydict() for batch in batches] == [{"x": [["a"]]}] * len(batches)
