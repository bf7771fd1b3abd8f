"""Delta Lake and Iceberg tables, written by their own libraries; skipped where these extras are not installed."""

from __future__ import annotations

import base64
import json
import struct
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from pipelines.catalog.config import CatalogConfig, CatalogError
from pipelines.catalog.plan import catalog_schema, plan_catalog
from tests.pipelines.catalog.catalogs import pairs, read_plan

ROWS = pa.table(
    {
        "product_id": ["1", "2", "3", "4"],
        "title": ["a", "b", "c", "d"],
        "kind": ["red shoe", "red shoe", "cup", None],
        "day": [1, 1, 2, 2],
    }
)


def rows_of(uri: str, format: Any, spool: Path) -> list[tuple[str, str | None, Any]]:
    config = CatalogConfig(uri=uri, format=format, filter_fields=("kind", "day"))
    assert {"product_id", "title", "kind", "day"} <= set(catalog_schema(config).columns)
    batches = read_plan(plan_catalog(config, spool_uri=str(spool)), config)
    assert all(batch.columns.schema.types == [pa.string(), pa.int64()] for batch in batches)
    return sorted(
        (*pair, tuple(carried.values()))
        for batch in batches
        for pair, carried in zip(pairs(batch), batch.columns.to_pylist(), strict=True)
    )


EXPECTED = [("1", "a", ("red shoe", 1)), ("3", "c", ("cup", 2)), ("4", "d", (None, 2)), ("5", "e", ("cup", 3))]
MORE = pa.table({"product_id": ["5"], "title": ["e"], "kind": ["cup"], "day": [3]})


@pytest.mark.parametrize("format", ["delta", "iceberg"])
def test_a_table_needs_one_address(format: Any) -> None:
    with pytest.raises(CatalogError, match=r"expected one table"):
        catalog_schema(CatalogConfig(uri=("a", "b"), format=format))


@pytest.mark.parametrize("partition_by", [[], ["kind", "day"]])
def test_the_newest_version_of_a_delta_table(partition_by: list[str], tmp_path: Path) -> None:
    deltalake = pytest.importorskip("deltalake")
    uri = str(tmp_path / "table")
    deltalake.write_deltalake(uri, ROWS, partition_by=partition_by)
    deltalake.write_deltalake(uri, MORE, mode="append")
    deltalake.DeltaTable(uri).delete("product_id = '2'")
    assert rows_of(uri, "delta", tmp_path / "spool") == EXPECTED


def test_a_delta_table_that_is_none_or_empty_is_an_error(tmp_path: Path) -> None:
    deltalake = pytest.importorskip("deltalake")
    with pytest.raises(CatalogError, match="expected a Delta Lake table"):
        catalog_schema(CatalogConfig(uri=str(tmp_path / "none"), format="delta"))
    deltalake.write_deltalake(str(tmp_path / "empty"), ROWS)
    deltalake.DeltaTable(str(tmp_path / "empty")).delete()
    with pytest.raises(CatalogError, match="empty Delta Lake table"):
        catalog_schema(CatalogConfig(uri=str(tmp_path / "empty"), format="delta"))


def inline_deletion_vector(row: int) -> dict[str, Any]:
    """A deletion vector of one row as the Delta protocol writes it: a roaring bitmap in Z85."""
    bitmap = struct.pack("<IIHHIH", 12346, 1, 0, 0, 16, row)
    data = struct.pack("<IQI", 1681511377, 1, 0) + bitmap
    ascii85 = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz!#$%&()*+-;<=>?@^_`{|}~"
    z85 = b"0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ.-:+=^!/*?&<>()[]{}@%$#"
    text = base64.b85encode(data + b"\0" * (-len(data) % 4)).translate(bytes.maketrans(ascii85, z85)).decode()
    return {"storageType": "i", "pathOrInlineDv": text, "sizeInBytes": len(data), "cardinality": 1}


def rewrite_log(table: Path, **changes: dict[str, Any]) -> None:
    """Changes the actions of a table's first version."""
    log = table / "_delta_log" / f"{0:020d}.json"
    actions = [json.loads(line) for line in log.read_text().splitlines()]
    for action in actions:
        for kind, change in changes.items():
            if kind in action:
                action[kind] |= change
    log.write_text("\n".join(map(json.dumps, actions)) + "\n")


def protocol(*features: str) -> dict[str, Any]:
    return {
        "minReaderVersion": 3,
        "minWriterVersion": 7,
        "readerFeatures": list(features),
        "writerFeatures": list(features),
    }


def test_a_delta_table_with_deleted_rows_is_refused_only_if_it_has_some(tmp_path: Path) -> None:
    deltalake = pytest.importorskip("deltalake")
    table = tmp_path / "table"
    deltalake.write_deltalake(str(table), ROWS)
    rewrite_log(table, protocol=protocol("deletionVectors"))
    assert len(rows_of(str(table), "delta", tmp_path / "spool")) == 4
    rewrite_log(table, add={"deletionVector": inline_deletion_vector(2)})
    with pytest.raises(CatalogError, match="has deletion vectors, which are not read"):
        catalog_schema(CatalogConfig(uri=str(table), format="delta"))


def test_a_delta_table_with_column_mapping_is_refused(tmp_path: Path) -> None:
    deltalake = pytest.importorskip("deltalake")
    table = tmp_path / "table"
    deltalake.write_deltalake(str(table), ROWS)
    rewrite_log(table, metaData={"configuration": {"delta.columnMapping.mode": "name"}})
    with pytest.raises(CatalogError, match="column mapping"):
        catalog_schema(CatalogConfig(uri=str(table), format="delta"))


@pytest.fixture
def iceberg(tmp_path: Path) -> Any:
    """A catalog of Iceberg tables in a folder."""
    sql = pytest.importorskip("pyiceberg.catalog.sql")
    pytest.importorskip("sqlalchemy")
    catalog = sql.SqlCatalog("test", uri=f"sqlite:///{tmp_path}/catalog.db", warehouse=f"file://{tmp_path}")
    catalog.create_namespace("shop")
    return catalog


def test_the_current_snapshot_of_an_iceberg_table(iceberg: Any, tmp_path: Path) -> None:
    table = iceberg.create_table("shop.products", schema=ROWS.schema)
    table.append(ROWS)
    table.append(MORE)
    table.delete("product_id = '2'")
    folder = table.location().removeprefix("file://")
    assert rows_of(folder, "iceberg", tmp_path / "spool") == EXPECTED
    assert rows_of(table.metadata_location, "iceberg", tmp_path / "spool") == EXPECTED


def test_an_iceberg_table_that_plain_files_do_not_tell_is_refused(iceberg: Any, tmp_path: Path) -> None:
    table = iceberg.create_table("shop.products", schema=ROWS.schema)
    config = CatalogConfig(uri=table.location(), format="iceberg")
    with pytest.raises(CatalogError, match="empty Iceberg table"):
        catalog_schema(config)
    table.append(ROWS)
    with table.update_schema() as update:
        update.rename_column("title", "name")
    with pytest.raises(CatalogError, match=r"'name' was renamed"):
        catalog_schema(config)
    with pytest.raises(CatalogError, match="found no metadata/"):
        catalog_schema(CatalogConfig(uri=str(tmp_path / "shop"), format="iceberg"))
