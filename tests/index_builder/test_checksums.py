"""Damage to a published version is told by the file, as early as was asked for."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from index_builder import IndexReader, checksums, publish
from index_builder.errors import IndexBuilderError, ManifestError, VerificationError
from index_builder.spec import IndexConfig
from tests.index_builder.builds import build_index, clustered, in_parts, published, stage, write_shards

ROWS = 600


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(checksums, "BLOCK_BYTES", 256)
    return published(str(tmp_path), ROWS, 16, factory="IVF8,PQ4x4", refine="sq8", serving_shards=2)


def folder(index: str) -> Path:
    return Path(publish.version_uri(index, publish.read_current(index)))


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 4
    path.write_bytes(data)


def test_a_whole_version_is_checked_without_a_word(index: str) -> None:
    size = sum(path.stat().st_size for path in folder(index).iterdir() if path.suffix in (".faiss", ".arrow"))
    for verify in ("sizes", "sampled", "full"):
        reader = IndexReader.open(index, verify=verify)  # type: ignore[arg-type]
        assert reader.search(clustered(3, 16), 5).rows.shape == (3, 5)
        assert reader.check_next(size) >= size
        assert not reader.refresh()
    with pytest.raises(IndexBuilderError, match="verify: expected one of sizes, sampled, full, found 'all'"):
        IndexReader.open(index, verify="all")  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["index-00001-of-00002.faiss", "refine-00000-of-00002.faiss"])
def test_the_head_of_a_file_is_checked_at_once_and_its_codes_as_asked(index: str, name: str) -> None:
    path = folder(index) / name
    flip(path, 40)
    with pytest.raises(VerificationError, match=rf"{name}: bytes 0 to 256 are not those that were published"):
        IndexReader.open(index)
    flip(path, 40)
    flip(path, path.stat().st_size - 1)
    reader = IndexReader.open(index)
    with pytest.raises(VerificationError, match=rf"{name}: bytes .* the file is damaged"):
        reader.check_next(1 << 30)
    for verify in ("sampled", "full"):  # so small a file is sampled whole
        with pytest.raises(VerificationError, match=name):
            IndexReader.open(index, verify=verify)  # type: ignore[arg-type]


def test_a_column_is_checked_when_it_is_first_used(index: str) -> None:
    path = folder(index) / "products.arrow"
    flip(path, path.read_bytes().index(b"title of 77"))
    reader = IndexReader.open(index)
    found = reader.search(clustered(3, 16), 5, filter="price >= 0")  # reads other columns
    assert len(found.product_ids[0]) == 5
    for use in (
        lambda: found.columns(["title"]),
        lambda: reader.search(clustered(1, 16), 5, filter="title != 'x'"),
        lambda: reader.products,
        lambda: found.products,
    ):
        with pytest.raises(VerificationError, match=r"products\.arrow: bytes"):
            use()


def test_a_part_of_the_products_is_checked_by_its_own_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checksums, "BLOCK_BYTES", 256)
    root = str(tmp_path)
    config = IndexConfig(uri=f"{root}/index", factory="Flat", serving_shards=2)
    staged, manifest = stage(root, build_index(root, write_shards(root, clustered(ROWS, 16), 300), config, 16))
    publish.publish_version(config.uri, in_parts(root, staged, [0, 70, 71, ROWS]), manifest)
    path = folder(config.uri) / "products-00002-of-00003.arrow"
    flip(path, path.read_bytes().index(b"title of 77"))
    reader = IndexReader.open(config.uri)
    found = reader.search(clustered(3, 16), 5, filter="price >= 0")
    with pytest.raises(VerificationError, match=r"products-00002-of-00003\.arrow: bytes"):
        found.columns(["title"])
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(VerificationError, match=r"products-00002-of-00003\.arrow: expected \d+ bytes"):
        IndexReader.open(config.uri)


def test_an_id_that_no_product_has_is_no_answer(index: str) -> None:
    for path in folder(index).glob("index-*"):
        data = bytearray(path.read_bytes())
        ids = np.frombuffer(data, np.uint8)[-8:]
        ids[:] = 255
        ids[-1] = 127
        path.write_bytes(data)
    reader = IndexReader.open(index)
    with pytest.raises(
        VerificationError, match=r"index-\*\.faiss: expected ids from 0 to 599, found 9223372036854775807"
    ):
        reader.search(clustered(50, 16), 600, nprobe=8, refine_factor=0)


def test_a_query_encoder_is_checked_when_it_is_asked_for(index: str) -> None:
    flip(folder(index) / "query_encoder" / "encoder.json", 3)
    reader = IndexReader.open(index)
    with pytest.raises(VerificationError, match=r"query_encoder/encoder\.json: expected sha256"):
        assert reader.query_encoder_uri
    (folder(index) / "query_encoder" / "encoder.json").unlink()
    with pytest.raises(VerificationError, match=r"encoder\.json"):
        assert reader.query_encoder_uri


def test_every_byte_of_a_manifest_counts(index: str) -> None:
    path = folder(index) / "manifest.json"
    text = path.read_text()
    assert '"nprobe": ' in text
    path.write_text(text.replace('"nprobe": ', '"nprobe": 1'))
    with pytest.raises(ManifestError, match=r"manifest\.json: is damaged: its values are not those that were written"):
        IndexReader.open(index)


def test_a_file_of_before_checksums_that_claims_terabytes_is_named(index: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A damaged length there makes FAISS ask for as much memory, which is no matter of this machine."""

    def read(path: str, flags: int) -> None:
        raise MemoryError("std::bad_alloc")

    monkeypatch.setattr("index_builder.faiss_files.faiss.read_index", read)
    with pytest.raises(VerificationError, match=r"\.faiss is not an index file that FAISS .* reads: std::bad_alloc"):
        IndexReader.open(index)
