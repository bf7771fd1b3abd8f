"""The plan: shards of the stated size, keys that name what is read and nothing else, types that hold for all files."""

from __future__ import annotations

import os
import pickle
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.catalog.config import CatalogConfig, CatalogError
from pipelines.catalog.plan import MAX_SHARDS_OF_CHUNK, CatalogPlan, plan_catalog
from tests.pipelines.catalog.catalogs import SUFFIXES, encode, letters_of, read_plan, write

ROWS = [{"product_id": str(number), "title": f"title {number}"} for number in range(1000)]


def plan(uri: str | Path | tuple[str, ...], spool: Path, **options: Any) -> CatalogPlan:
    config = CatalogConfig(uri=uri if isinstance(uri, tuple) else str(uri), **options)
    return plan_catalog(config, spool_uri=str(spool))


@pytest.mark.parametrize("format", ["parquet", "arrow", "arrow_stream"])
@pytest.mark.parametrize("chunk_rows", [10, 300, 1000])
def test_rows_are_counted_and_shards_are_of_the_stated_size(format: str, chunk_rows: int, tmp_path: Path) -> None:
    write(tmp_path / "in" / f"a{SUFFIXES[format]}", encode(ROWS, format, chunk_rows=chunk_rows))
    found = plan(tmp_path / "in", tmp_path / "spool", shard_rows=100)
    assert found.rows == 1000
    assert [shard.position for shard in found.shards] == list(range(len(found.shards)))
    assert all(50 <= shard.rows <= 100 for shard in found.shards if shard.rows is not None)
    assert len({shard.key for shard in found.shards}) == len(found.shards)
    assert pickle.loads(pickle.dumps(found)) == found


def test_small_files_share_a_shard_and_large_ones_are_split(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", encode(ROWS[:30], "parquet"))
    write(tmp_path / "b.parquet", encode(ROWS[:30], "parquet"))
    write(tmp_path / "c.parquet", encode(ROWS, "parquet", chunk_rows=1000))
    shards = plan(tmp_path, tmp_path / "spool", shard_rows=100).shards
    assert [[Path(part.path).name for part in shard.ranges] for shard in shards[:2]] == [
        ["a.parquet", "b.parquet"],
        ["c.parquet"],
    ]
    assert [(part.start, part.stop) for shard in shards[1:] for part in shard.ranges] == [
        (start, start + 100) for start in range(0, 1000, 100)
    ]


def test_a_large_row_group_is_split_into_few_parts_only(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", encode(ROWS, "parquet", chunk_rows=1000))
    assert len(plan(tmp_path, tmp_path / "spool", shard_rows=10).shards) == MAX_SHARDS_OF_CHUNK


@pytest.mark.parametrize("format", ["csv", "jsonl"])
def test_text_is_cut_by_rows_as_well_as_by_bytes(format: str, tmp_path: Path) -> None:
    uri = write(tmp_path / f"a{SUFFIXES[format]}", encode(ROWS, format))
    by_rows = plan(uri, tmp_path / "spool", shard_rows=100)
    assert by_rows.rows is None
    assert sum(shard.rows for shard in by_rows.shards) == 1000
    assert 10 <= len(by_rows.shards) <= 12
    by_bytes = plan(uri, tmp_path / "spool", shard_bytes=by_rows.bytes // 4)
    assert 4 <= len(by_bytes.shards) <= 6
    assert sum(shard.bytes or 0 for shard in by_bytes.shards) == by_bytes.bytes


def keys(found: CatalogPlan) -> list[str]:
    return [shard.key for shard in found.shards]


@pytest.mark.parametrize("format", list(SUFFIXES))
def test_keys_are_the_same_wherever_the_catalog_and_the_spool_stand(format: str, tmp_path: Path) -> None:
    path = Path(write(tmp_path / "one" / "x" / f"a{SUFFIXES[format]}", encode(ROWS, format)))
    first = plan(tmp_path / "one", tmp_path / "spool-1", shard_rows=300)
    shutil.copytree(tmp_path / "one", tmp_path / "two")  # keeps the times of change
    assert keys(plan(tmp_path / "two", tmp_path / "spool-2", shard_rows=300)) == keys(first)
    os.utime(path, ns=(7, 7))
    assert not set(keys(plan(tmp_path / "one", tmp_path / "spool-1", shard_rows=300))) & set(keys(first))


def test_a_file_that_comes_or_goes_leaves_the_keys_of_full_shards_alone(tmp_path: Path) -> None:
    for name in "bcd":
        write(tmp_path / "in" / f"{name}.jsonl", encode(ROWS, "jsonl"))
    first = keys(plan(tmp_path / "in", tmp_path / "spool", shard_rows=600))
    write(tmp_path / "in" / "a.jsonl", encode(ROWS[:700], "jsonl"))
    (tmp_path / "in" / "c.jsonl").unlink()
    second = keys(plan(tmp_path / "in", tmp_path / "spool", shard_rows=600))
    assert [key for key in second if key in first] == first[:2] + first[4:]


def test_a_group_field_that_is_carried_anyway_leaves_the_keys_alone(tmp_path: Path) -> None:
    write(tmp_path / "in" / "a.jsonl", encode([row | {"parent": "x"} for row in ROWS], "jsonl"))

    def found(**options: Any) -> tuple[list[str], dict[str, Any]]:
        config = CatalogConfig(uri=str(tmp_path / "in"), display_fields=("title",), **options)
        return keys(plan_catalog(config, spool_uri=str(tmp_path / "spool"))), config.shaping

    assert found(group_field="title") == found()
    assert found(filter_fields=("parent",), group_field="parent") == found(filter_fields=("parent",))
    assert found(group_field="parent")[0] != found()[0], "a column more"
    assert found(group_field="parent")[1] != found()[1]


@pytest.mark.parametrize(
    "options",
    [
        {"id_field": "title", "text_fields": ("product_id",)},
        {"text_template": "{title}!"},
        {"display_fields": ("title",)},
        {"image_field": "title"},
        {"image_root": "/elsewhere"},
        {"images_per_product": 2},
        {"on_bad_image": "reject"},
    ],
)
def test_keys_change_with_whatever_changes_the_products(options: dict[str, Any], tmp_path: Path) -> None:
    write(tmp_path / "in" / "a.jsonl", encode(ROWS, "jsonl"))
    before = keys(plan(tmp_path / "in", tmp_path / "spool"))
    assert not set(keys(plan(tmp_path / "in", tmp_path / "spool", **options))) & set(before)


def test_same_name_and_content_in_two_folders_gives_two_keys(tmp_path: Path) -> None:
    folders = tuple(str(tmp_path / name) for name in "ab")
    for folder in folders:
        os.utime(write(f"{folder}/part.jsonl", encode(ROWS, "jsonl")), ns=(7, 7))
    found = plan(folders, tmp_path / "spool", shard_rows=1000)
    assert len(set(keys(found))) == len(found.shards) == 2


@pytest.mark.parametrize("format", ["parquet", "arrow"])
def test_files_of_different_schemas(format: str, tmp_path: Path) -> None:
    first = pa.table(
        {
            "product_id": [1],
            "title": ["a"],
            "price": pa.array([1], pa.int32()),
            "kind": pa.array(["x"], pa.large_string()),
        }
    )
    second = pa.table(
        {"title": ["b"], "price": [2.5], "product_id": ["2"], "kind": pa.array(["y"]).dictionary_encode()}
    )
    third = pa.table({"product_id": ["3"], "extra": [1], "title": pa.array(["c"]).dictionary_encode()})
    for name, table in zip("abc", (first, second, third), strict=True):
        write(tmp_path / "in" / f"{name}{SUFFIXES[format]}", encode(table, format))
    config = CatalogConfig(uri=str(tmp_path / "in"), display_fields=("price", "kind", "extra"))
    batches = read_plan(plan_catalog(config, spool_uri=str(tmp_path / "spool")), config)
    columns = pa.Table.from_batches([batch.columns for batch in batches])
    assert columns.schema.types == [pa.float64(), pa.string(), pa.int64()]
    assert columns.to_pylist() == [
        {"price": 1.0, "kind": "x", "extra": None},
        {"price": 2.5, "kind": "y", "extra": None},
        {"price": None, "kind": None, "extra": 1},
    ]
    assert [product_id for batch in batches for product_id in batch.product_ids.to_pylist()] == ["1", "2", "3"]


def test_types_without_anything_in_common_are_an_error_that_names_both_files(tmp_path: Path) -> None:
    write(tmp_path / "in" / "a.parquet", encode([{"product_id": "1", "title": "a", "price": 1}], "parquet"))
    write(tmp_path / "in" / "b.parquet", encode([{"product_id": "2", "title": "b", "price": "1,50"}], "parquet"))
    with pytest.raises(CatalogError, match=r"'price': .*int64 in a\.parquet and string in b\.parquet"):
        plan(tmp_path / "in", tmp_path / "spool", filter_fields=("price",))
    assert plan(tmp_path / "in", tmp_path / "spool").rows == 2


def test_a_file_without_ids_is_an_error_that_names_it(tmp_path: Path) -> None:
    for form in ("parquet", "csv"):
        write(tmp_path / form / f"a{SUFFIXES[form]}", encode(ROWS[:3], form))
        write(tmp_path / form / f"b{SUFFIXES[form]}", encode([{"sku": "1", "title": "a"}], form))
        with pytest.raises(CatalogError, match=rf"catalog\.id_field: .*'product_id'.*b\{SUFFIXES[form]}"):
            plan(tmp_path / form, tmp_path / "spool")


def test_a_wider_type_far_into_a_text_file_is_seen_at_planning(tmp_path: Path) -> None:
    rows = [{"product_id": str(n), "title": "t" * 100, "price": n if n < 9000 else n + 0.5} for n in range(10_000)]
    for form in ("csv", "jsonl"):
        config = CatalogConfig(
            uri=write(tmp_path / f"a{SUFFIXES[form]}", encode(rows, form)), filter_fields=("price",), shard_rows=500
        )
        found = plan_catalog(config, spool_uri=str(tmp_path / "spool"))
        assert found.schema.field("price").type == pa.float64()
        batches = read_plan(found, config)
        assert not letters_of(batches)
        prices = [price for batch in batches for price in batch.columns.column("price").to_pylist()]
        assert prices == [float(row["price"]) for row in rows]


@pytest.mark.parametrize("format", list(SUFFIXES))
def test_a_catalog_without_rows_is_an_error(format: str, tmp_path: Path) -> None:
    empty = pa.table({"product_id": pa.array([], pa.string()), "title": pa.array([], pa.string())})
    data = encode(empty, format) or b"\n"
    uri = write(tmp_path / f"a{SUFFIXES[format]}", data)
    with pytest.raises(CatalogError, match=r"found files without rows|does not have"):
        plan(uri, tmp_path / "spool")


def test_a_parquet_plan_reads_footers_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "a.parquet", encode(ROWS, "parquet"))

    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("the plan read columns")

    for name in ("read", "read_row_group", "read_row_groups", "iter_batches"):
        monkeypatch.setattr(pq.ParquetFile, name, refuse)
    assert plan(tmp_path, tmp_path / "spool").rows == 1000
