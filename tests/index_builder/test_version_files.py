"""A version's files are read once and written once, by however many workers, and what is damaged is not published."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
import xxhash

from index_builder import checksums, publish, storage
from index_builder.checksums import BlockHashes
from index_builder.errors import StorageError, VersionNotFoundError
from index_builder.manifest import Manifest, is_searched
from index_builder.publish import finish_version, list_versions, new_version, read_current, set_current, version_uri
from index_builder.reader import IndexReader
from index_builder.spec import IndexConfig
from index_builder.version_files import StagedFile, content_fingerprint, copy_files, staged_files
from tests.counting_store import counted_store, counting
from tests.index_builder.builds import build_index, clustered, stage, write_shards

ROWS, DIM = 2000, 16


@pytest.fixture
def store() -> Iterator[str]:
    with counted_store() as root:
        yield root


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, StagedFile], Manifest]:
    """The files of a version of four serving shards, with the hashes that they were made with."""
    root = str(tmp_path_factory.mktemp("made"))
    config = IndexConfig(uri="x", factory="IVF8,PQ4x4", refine="sq8", serving_shards=4, verify_queries=50)
    staged, manifest = stage(root, build_index(root, write_shards(root, clustered(ROWS, DIM), 500), config, DIM))
    return staged_files(staged), manifest


def in_store(store: str, made: tuple[dict[str, StagedFile], Manifest]) -> dict[str, StagedFile]:
    for name, file in made[0].items():
        storage.copy_file(file.uri, f"{store}/work/{name}")
    return {name: replace(file, uri=f"{store}/work/{name}") for name, file in made[0].items()}


def test_each_file_is_read_once_and_written_once(
    store: str, made: tuple[dict[str, StagedFile], Manifest], cache: Path
) -> None:
    files = in_store(store, made)
    with counting() as asked:
        version = publish.publish_version(f"{store}/index", files, made[1])
    manifest = publish.read_manifest(f"{store}/index")
    size = sum(entry.bytes for entry in manifest.files)
    read, written = asked.bytes_of("read", below="/work/"), asked.bytes_of("write")
    assert size > 50_000
    assert 0.95 * size < read <= 1.05 * size, "all but the checksums, each byte once"
    assert size <= written <= 1.05 * size + storage.size(publish.manifest_uri(f"{store}/index", version))
    for name in files:
        assert (asked.of("read", below=f"/work/{name}"), asked.of("write", below=f"{version}/{name}")) == (1, 1)
    assert asked.bytes_of("read", below=f"{version}/") <= 2 * storage.size(
        publish.manifest_uri(f"{store}/index", version)
    )
    assert publish.damaged_files(f"{store}/index", version) == []
    assert len(IndexReader.open(f"{store}/index", verify="full").search(clustered(1, DIM), 5).product_ids[0]) == 5


def test_the_checksums_are_those_of_the_files_as_they_are_published(
    tmp_path: Path, made: tuple[dict[str, StagedFile], Manifest], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checksums, "BLOCK_BYTES", 1000)
    monkeypatch.setattr("index_builder.version_files.CHUNK_BYTES", 777)
    for file in copy_files(str(tmp_path), made[0]):
        data = (tmp_path / file.entry.path).read_bytes()
        expected = [xxhash.xxh3_64_hexdigest(data[at : at + 1000]) for at in range(0, len(data), 1000)]
        assert file.blocks == ("".join(expected) if is_searched(file.entry.path) else "")
        assert bool(file.structure) == is_searched(file.entry.path)
    exact = BlockHashes()
    exact.update(b"x" * 2000)
    assert exact.hexdigest() == 2 * xxhash.xxh3_64_hexdigest(b"x" * 1000)


def test_workers_that_copy_the_same_files_at_the_same_time_make_one_version(
    store: str, made: tuple[dict[str, StagedFile], Manifest]
) -> None:
    index, files, spec = f"{store}/index", in_store(store, made), made[1].index
    fingerprint = content_fingerprint(files, made[1].encoder.fingerprint, spec.spec, spec.search)
    version = new_version(index, fingerprint)
    manifest = replace(made[1], content_fingerprint=fingerprint)

    def copy(name: str) -> object:
        return copy_files(version_uri(index, version), {name: files[name]})[0]

    def finish(turn: int) -> Manifest:
        return finish_version(index, version, manifest, written[: len(files)])

    with ThreadPoolExecutor(4) as pool:
        written = list(pool.map(copy, [*files, *files]))
        assert list_versions(index) == (), "nobody sees it before it is whole"
        finished = list(pool.map(finish, range(4)))
    assert written[: len(files)] == written[len(files) :]
    assert all(each == finished[0] for each in finished)
    assert list_versions(index) == (read_current(index),) == (version,)
    before = publish.read_manifest(index)
    with counting() as asked:
        assert finish(0) == before
    assert asked.of("write") == 0, "a version that stands stays as it is"


def test_a_file_that_was_copied_to_another_disk_stops_before_the_manifest(
    store: str, made: tuple[dict[str, StagedFile], Manifest]
) -> None:
    version = new_version(f"{store}/index", "0" * 64)
    written = copy_files(version_uri(f"{store}/index", version), in_store(store, made))
    storage.remove_file(f"{version_uri(f'{store}/index', version)}/products.arrow")
    with pytest.raises(VersionNotFoundError, match=r"cannot be published: its file .*products\.arrow is missing"):
        finish_version(f"{store}/index", version, made[1], written)
    assert list_versions(f"{store}/index") == ()


@pytest.mark.parametrize("kind", ["index", "refine", "products", "described"])
def test_what_was_damaged_after_it_was_made_does_not_appear(
    tmp_path: Path, made: tuple[dict[str, StagedFile], Manifest], kind: str
) -> None:
    if kind == "described":  # no sha256 was kept, but the output's description has a hash

        def make(path: str) -> None:
            Path(f"{path}.parquet").write_bytes(b"letters")

        output = storage.artifact(str(tmp_path / "letters"), 1, make)
        name, source = "rejected.parquet", StagedFile(uri=output.files[0])
    else:
        name, file = next((name, file) for name, file in made[0].items() if name.startswith(kind))
        source = replace(file, uri=str(tmp_path / name))
        storage.copy_file(file.uri, source.uri)
    assert len(copy_files(str(tmp_path / "whole"), {name: source})) == 1
    data = bytearray(Path(source.uri).read_bytes())
    data[-1] ^= 1
    Path(source.uri).write_bytes(data)
    with pytest.raises(StorageError, match="was damaged after it was made, so nothing is published"):
        copy_files(str(tmp_path / "version"), {name: source})
    assert storage.list_names(str(tmp_path / "version")) == []
    assert os.listdir(tmp_path / "version") == []


def test_files_are_looked_at_together_before_any_of_them_appears(
    store: str, made: tuple[dict[str, StagedFile], Manifest]
) -> None:
    files = {f"query_encoder/deep/{number}": file for number, file in enumerate(in_store(store, made).values())}
    seen: list[list[str]] = []

    def check(folder: str) -> None:
        assert storage.list_names(f"{store}/version") == []
        seen.append(storage.list_names(folder))
        assert all(Path(folder, name).stat().st_size for name in files)
        raise StorageError("it does not run")

    with pytest.raises(StorageError, match="does not run"):
        copy_files(f"{store}/version", files, check)
    assert seen == [sorted(files)]
    assert storage.list_names(f"{store}/version") == []


def test_a_flip_and_an_opening_cost_no_request_a_file_but_its_download(
    store: str, made: tuple[dict[str, StagedFile], Manifest], cache: Path
) -> None:
    counts = []
    for number, more in enumerate((0, 200)):
        index = f"{store}/{number}"
        reports = {f"report-{n}.txt": StagedFile(uri=made[0]["query_encoder/encoder.json"].uri) for n in range(more)}
        version = publish.publish_version(index, made[0] | reports, made[1])
        with counting() as asked:
            set_current(index, version)
        counts.append(asked.of())
    assert counts[0] == counts[1] <= 12
    searched = [entry for entry in publish.read_manifest(index).files if is_searched(entry.path)]
    with counting() as asked:
        IndexReader.open(index)
    assert asked.by("kind") == {"read": 2 + len(searched) + 1}, "pointer, manifest, checksums, and each file once"
    with counting() as asked:
        IndexReader.open(index)
    assert asked.by("kind") == {"read": 2}
