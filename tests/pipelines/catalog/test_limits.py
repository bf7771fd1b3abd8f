"""What was made to fill memory or disk is refused by name, and one row too large costs that row."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import zipfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.catalog import limits
from pipelines.catalog.config import CatalogConfig, CatalogError
from pipelines.catalog.plan import plan_catalog
from pipelines.catalog.values import LONGEST_TEXT, text_column
from tests.pipelines.catalog.catalogs import letters_of, read_plan, write

LINE = b'{"product_id": "%d", "title": "a"}\n'
BOMB = LINE % 1 + b" " * 3_000_000 + LINE % 2


def zipped(data: bytes, name: str = "a.jsonl") -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(name, data)
    return file.getvalue()


PACKED = {
    "a.jsonl.gz": gzip.compress(BOMB),
    "a.jsonl.bz2": bz2.compress(BOMB),
    "a.jsonl.xz": lzma.compress(BOMB),
    "a.jsonl.zst": pa.compress(BOMB, "zstd", asbytes=True),
    "a.jsonl.zip": zipped(BOMB),
}


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Kilobytes in place of 64 MiB."""
    monkeypatch.setattr(limits, "SMALL_BYTES", 100_000)


@pytest.mark.parametrize("name", PACKED)
def test_a_file_that_unpacks_to_far_more_is_refused_by_name(small: None, name: str, tmp_path: Path) -> None:
    config = CatalogConfig(uri=write(tmp_path / name, PACKED[name]), max_file_ratio=200.0)
    with pytest.raises(
        CatalogError, match=rf"{name}: expected .* at most 200 times .*catalog\.max_file_ratio\), found"
    ):
        plan_catalog(config, spool_uri=str(tmp_path / "work"))
    assert not [path for path in (tmp_path / "work").rglob("*") if path.is_file()]
    wide = CatalogConfig(uri=config.uri, max_file_ratio=1e6)
    assert sum(len(batch.product_ids) for batch in read_plan(plan_catalog(wide, spool_uri=str(tmp_path)), wide)) == 2


def test_a_sheet_that_unpacks_to_far_more_is_refused_by_name(small: None, tmp_path: Path) -> None:
    uri = write(tmp_path / "a.xlsx", zipped(b" " * 3_000_000, "xl/worksheets/sheet1.xml"))
    with pytest.raises(CatalogError, match=r"a\.xlsx: expected .*catalog\.max_file_ratio"):
        plan_catalog(CatalogConfig(uri=uri), spool_uri=str(tmp_path / "work"))


def test_what_exports_have_is_far_below_the_limit(tmp_path: Path) -> None:
    """The most even file that is one: all rows alike but for a number that counts up."""
    text = b"".join(b'{"product_id": "%d", "title": "T-Shirt", "stock": 0}\n' % number for number in range(20_000))
    for packed in (gzip.compress(text), pa.compress(text, "zstd", asbytes=True)):
        assert len(text) / len(packed) < CatalogConfig(uri="x").max_file_ratio / 3


@pytest.mark.parametrize("format", ["parquet", "arrow", "jsonl", "csv"])
def test_a_row_that_is_too_large_is_a_letter(format: str, tmp_path: Path) -> None:
    titles = ["t" * (50_000 if number == 5 else 50) for number in range(10)]
    table = pa.table({"product_id": [str(number) for number in range(10)], "title": titles})
    path = tmp_path / f"a.{format}"
    if format == "parquet":
        pq.write_table(table, path)
    elif format == "arrow":
        with pa.ipc.new_file(path, table.schema) as writer:
            writer.write_table(table)
    else:
        rows = [f"{number},{title}" for number, title in enumerate(titles)]
        lines = [f'{{"product_id": "{number}", "title": "{title}"}}' for number, title in enumerate(titles)]
        path.write_text("\n".join(["product_id,title", *rows] if format == "csv" else lines))
    config = CatalogConfig(uri=str(path), max_record_bytes=10_000)
    batches = read_plan(plan_catalog(config, spool_uri=str(tmp_path / "work")), config)
    assert [each for batch in batches for each in batch.product_ids.to_pylist()] == [
        str(number) for number in range(10) if number != 5
    ]
    (letter,) = letters_of(batches)
    assert letter.reason == "malformed_record"
    assert letter.detail.startswith(
        "expected a record of at most 10,000 bytes (catalog.max_record_bytes), found one of 5"
    )


def test_a_text_is_looked_at_up_to_a_limit() -> None:
    texts = text_column(pa.array(["a", "<b>x</b> " * 400_000, None, "ü" * (LONGEST_TEXT + 5)]))
    assert texts[0].as_py() == "a"
    assert texts[1].as_py() == ("x " * (LONGEST_TEXT // 9)).strip() + " x"
    assert texts[2].as_py() is None
    assert texts[3].as_py() == "ü" * LONGEST_TEXT
