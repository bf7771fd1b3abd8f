"""What pyarrow says of row groups and column chunks, read without it."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from random import Random

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.catalog.config import CatalogError
from pipelines.catalog.parquet_footer import read_chunks
from tests.reliability.catalogs import table


@pytest.mark.parametrize(
    "options",
    [{}, {"compression": "zstd", "write_page_index": True}, {"use_dictionary": False, "write_statistics": False}],
)
@pytest.mark.parametrize("rows", [0, 1, 7, 1000])
def test_rows_and_bytes_are_those_that_pyarrow_says(tmp_path: Path, options: dict, rows: int) -> None:
    path = str(tmp_path / "a.parquet")
    pq.write_table(table().drop_columns(["view"]), path, row_group_size=max(1, rows), **options)
    metadata = pq.read_metadata(path)
    with pa.OSFile(path) as source:
        found = read_chunks(source, path, metadata.num_columns)
    groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
    assert found.rows.tolist() == [group.num_rows for group in groups]
    for name, sizes in (("compressed", found.compressed), ("uncompressed", found.uncompressed)):
        expected = [
            [getattr(group.column(number), f"total_{name}_size") for number in range(metadata.num_columns)]
            for group in groups
        ]
        assert np.array_equal(sizes, np.array(expected).reshape(sizes.shape))


def test_a_damaged_footer_is_refused_or_read_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(table().drop_columns(["view"]), path, row_group_size=10)
    whole, columns, random = path.read_bytes(), pq.read_metadata(path).num_columns, Random(3)
    start = len(whole) - 8 - int.from_bytes(whole[-8:-4], "little")
    for _ in range(2000):
        data = bytearray(whole)
        for _ in range(random.choice([1, 3])):
            data[random.randrange(start, len(data))] = random.randrange(256)
        with suppress(CatalogError):  # any other exception fails the test
            read_chunks(pa.BufferReader(bytes(data)), "a.parquet", columns)
