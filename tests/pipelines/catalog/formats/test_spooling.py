"""Plain copies of files that cannot be read from the middle: made once, complete or absent, removed when unused."""

from __future__ import annotations

import gzip
import os
from pathlib import Path

import pyarrow as pa
import pytest

from pipelines.catalog.config import CatalogConfig, CatalogError
from pipelines.catalog.files import list_catalog
from pipelines.catalog.formats.spooling import PlainFile, plain_files
from tests.pipelines.catalog.catalogs import compress, encode, write

ROWS = [{"product_id": str(number), "title": f"title {number}"} for number in range(200)]


def spool(catalog: Path, folder: Path | str) -> list[PlainFile]:
    return plain_files(list_catalog(CatalogConfig(uri=str(catalog))).files, str(folder))


def test_a_copy_is_made_once_and_again_when_the_file_changes(tmp_path: Path) -> None:
    path = tmp_path / "in" / "a.jsonl.gz"
    write(path, gzip.compress(encode(ROWS, "jsonl")))
    (first,) = spool(tmp_path / "in", tmp_path / "spool")
    assert Path(first.uri).read_bytes() == encode(ROWS, "jsonl")
    assert first.size == os.path.getsize(first.uri)
    os.utime(first.uri, ns=(5, 5))
    assert spool(tmp_path / "in", tmp_path / "spool") == [first]
    assert os.stat(first.uri).st_mtime_ns == 5
    write(path, gzip.compress(encode(ROWS[:9], "jsonl")))
    (second,) = spool(tmp_path / "in", tmp_path / "spool")
    assert second.uri != first.uri
    assert {Path(file.uri).name for file in (first, second)} == set(os.listdir(tmp_path / "spool"))


def test_plain_files_are_read_where_they_stand(tmp_path: Path) -> None:
    uri = write(tmp_path / "in" / "a.jsonl", encode(ROWS, "jsonl"))
    (file,) = spool(tmp_path / "in", tmp_path / "spool")
    assert file.uri == uri
    assert not (tmp_path / "spool").exists()


@pytest.mark.parametrize("compression", ["none", "gzip"])
def test_an_arrow_stream_becomes_an_arrow_file_without_dictionaries(compression: str, tmp_path: Path) -> None:
    first = pa.table({"product_id": ["1", "2"], "kind": pa.array(["a", "b"]).dictionary_encode()})
    second = pa.table({"product_id": ["3"], "kind": pa.array(["c"]).dictionary_encode()})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, first.schema) as writer:
        writer.write_table(first)
        writer.write_table(second)
    suffix = ".gz" if compression == "gzip" else ""
    write(tmp_path / "in" / f"a.arrow{suffix}", compress(sink.getvalue().to_pybytes(), compression))
    (file,) = spool(tmp_path / "in", tmp_path / "spool")
    with pa.ipc.open_file(file.uri) as reader:
        assert reader.schema.field("kind").type == pa.string()
        assert reader.read_all()["kind"].to_pylist() == ["a", "b", "c"]
    assert len(os.listdir(tmp_path / "spool")) == 1


def test_a_spool_on_another_store(tmp_path: Path, memory_root: str) -> None:
    write(tmp_path / "in" / "a.jsonl.gz", gzip.compress(encode(ROWS, "jsonl")))
    (file,) = spool(tmp_path / "in", f"{memory_root}/spool")
    assert file.uri.startswith("memory://")
    assert spool(tmp_path / "in", f"{memory_root}/spool") == [file]


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("cut.jsonl.gz", gzip.compress(encode(ROWS, "jsonl"))[:-20]),
        ("plain.jsonl.gz", encode(ROWS, "jsonl")),
        ("cut.jsonl.zst", compress(encode(ROWS, "jsonl"), "zstd")[:-20]),
        ("plain.csv.bz2", b"product_id,title\n"),
        ("cut.arrows", encode(ROWS, "arrow_stream")[:-300]),
    ],
)
def test_a_damaged_file_is_an_error_that_names_it_and_leaves_no_copy(name: str, data: bytes, tmp_path: Path) -> None:
    write(tmp_path / "in" / name, data)
    with pytest.raises(CatalogError, match=rf"{name}: expected"):
        spool(tmp_path / "in", tmp_path / "spool")
    assert os.listdir(tmp_path / "spool") == []


def test_a_copy_below_a_relative_folder_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "in" / "a.jsonl.gz", gzip.compress(encode(ROWS, "jsonl")))
    monkeypatch.chdir(tmp_path)
    (first,) = spool(tmp_path / "in", "work/spool")
    assert Path(first.uri).read_bytes() == encode(ROWS, "jsonl")
    assert spool(tmp_path / "in", "work/spool") == [first]
