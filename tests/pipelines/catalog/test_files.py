"""Columns that stand in the names of folders."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from pipelines.catalog.config import CatalogConfig, CatalogError
from pipelines.catalog.files import hive_partitions
from pipelines.catalog.plan import catalog_schema, plan_catalog
from tests.pipelines.catalog.catalogs import SUFFIXES, encode, letters_of, pairs, read_plan, write


def test_folders_with_an_equals_sign_are_columns() -> None:
    assert hive_partitions("a/kind=red%20shoe/day=__HIVE_DEFAULT_PARTITION__/x=y=z/part=0.csv") == (
        ("kind", "red shoe"),
        ("day", None),
        ("x", "y=z"),
    )


@pytest.mark.parametrize("format", list(SUFFIXES))
def test_partition_columns_are_carried_with_the_type_of_their_values(format: str, tmp_path: Path) -> None:
    days: list[tuple[str, Any]] = [("1", 1), ("2", 2), ("__HIVE_DEFAULT_PARTITION__", None)]
    for day, _ in days:
        rows = [{"product_id": f"{day}-{number}", "title": "a"} for number in range(3)]
        write(tmp_path / "in" / f"kind=shoe/day={day}" / f"a{SUFFIXES[format]}", encode(rows, format))
    config = CatalogConfig(
        uri=str(tmp_path / "in"), text_fields=("title", "kind"), filter_fields=("day", "kind"), shard_rows=2
    )
    assert catalog_schema(config).schema.field("day").type == pa.int64()
    batches = read_plan(plan_catalog(config, spool_uri=str(tmp_path / "spool")), config)
    assert next(pair for batch in batches for pair in pairs(batch)) == ("1-0", "a shoe")
    columns = pa.Table.from_batches([batch.columns for batch in batches])
    assert columns["day"].to_pylist() == [number for _, number in days for _ in range(3)]
    assert columns["day"].type == pa.int64()
    assert set(columns["kind"].to_pylist()) == {"shoe"}
    assert not letters_of(batches)


@pytest.mark.parametrize("format", list(SUFFIXES))
def test_a_column_of_the_file_counts_more_than_its_place(format: str, tmp_path: Path) -> None:
    rows = [{"product_id": "1", "title": "a", "kind": "from the file"}]
    write(tmp_path / "in" / "kind=shoe" / f"a{SUFFIXES[format]}", encode(rows, format))
    config = CatalogConfig(uri=str(tmp_path / "in"), filter_fields=("kind",))
    (batch,) = read_plan(plan_catalog(config, spool_uri=str(tmp_path / "spool")), config)
    assert batch.columns.to_pylist() == [{"kind": "from the file"}]


def test_a_column_that_neither_files_nor_folders_have_is_unknown(tmp_path: Path) -> None:
    write(tmp_path / "kind=shoe" / "a.parquet", encode([{"product_id": "1", "title": "a"}], "parquet"))
    with pytest.raises(CatalogError, match=r"'kin'.*Did you mean 'kind'\?"):
        catalog_schema(CatalogConfig(uri=str(tmp_path), filter_fields=("kin",)))
