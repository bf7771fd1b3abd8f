from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import faiss
import numpy as np
import pytest

from index_builder import publish, storage
from index_builder.errors import ManifestError, StorageError, VersionNotFoundError
from index_builder.faiss_files import ivf_of
from index_builder.manifest import FileEntry
from index_builder.merge import merge_index_shards
from index_builder.publish import (
    StagedFile,
    content_fingerprint,
    describe_files,
    list_versions,
    prune,
    publish_version,
    read_current,
    read_manifest,
    set_current,
    staged_bytes,
    version_uri,
    with_nprobe,
)
from index_builder.reader import IndexReader
from index_builder.spec import IndexConfig, IndexSpec
from tests.index_builder.builds import (
    Build,
    build_index,
    clustered,
    published,
    stage,
    write_shards,
    write_staged,
)
from tests.index_builder.ready import ready

NOW = datetime(2026, 11, 21, 3, 0, 0, tzinfo=UTC)


def built(root: str, rows: int = 200, seed: int = 0) -> Build:
    folder = storage.join(root, f"build-{seed}")
    shards = write_shards(folder, clustered(rows, 8, seed=seed), 64)
    return build_index(folder, shards, IndexConfig(uri="x", factory="Flat", serving_shards=2), 8)


def test_a_version_is_files_then_manifest_then_pointer(root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    index = storage.join(root, "index")
    staged, manifest = stage(root, built(root))
    written: list[str] = []
    real = storage.atomic_file
    monkeypatch.setattr(storage, "atomic_file", lambda uri: written.append(uri) or real(uri))
    version = publish_version(index, staged, manifest, now=NOW)
    folder = version_uri(index, version)
    assert sorted(written[:-2]) == sorted(storage.join(folder, name) for name in (*staged, "checksums.json"))
    assert written[-2:] == [storage.join(folder, "manifest.json"), storage.join(index, "CURRENT")]
    assert version.startswith("20261121T030000Z-")
    assert storage.read_bytes(storage.join(index, "CURRENT")).decode() == f"{version}\n"
    assert read_current(index) == version
    found = read_manifest(index)
    assert found.version == version
    assert found.created_utc == "2026-11-21T03:00:00Z"
    assert version.endswith(found.content_fingerprint[:12])
    assert storage.list_names(folder) == sorted([*staged, "checksums.json", "manifest.json"])
    for entry in found.files:
        assert storage.sha256_file(storage.join(folder, entry.path)) == entry.sha256
        assert storage.size(storage.join(folder, entry.path)) == entry.bytes
    loaded = [entry.bytes for entry in found.files if entry.path.endswith((".faiss", ".arrow"))]
    assert found.loaded_bytes == sum(loaded)


def test_a_staged_folder_does_as_well(root: str) -> None:
    staged, manifest = stage(root, built(root))
    folder = storage.join(root, "staged")
    write_staged(staged, folder)
    one = publish_version(storage.join(root, "one"), folder, manifest, now=NOW)
    other = publish_version(storage.join(root, "other"), staged, manifest, now=NOW)
    assert one == other


@pytest.mark.parametrize(
    "factory", ["Flat", "IVF32,SQ8", "OPQ4_8,IVF32_HNSW8,PQ4", "PCAR8,IVF32,PQ4x6", "OPQ4_8,IVF32,PQ4x4fs"]
)
def test_nprobe_is_published_in_the_file_and_nothing_else_changes(tmp_path: Path, factory: str) -> None:
    made = ready(str(tmp_path), factory)
    added = [made.add("0.faiss", 0, 1), made.add("1.faiss", 2, 3)]
    merged = merge_index_shards(added, str(tmp_path / "merged.faiss"), fast_scan=factory.endswith("fs"))
    before = storage.read_bytes(merged.uri)
    for nprobe in (7, 300):
        after = b"".join(staged_bytes(with_nprobe(merged, nprobe)))
        assert 1 <= (np.frombuffer(before, np.uint8) != np.frombuffer(after, np.uint8)).sum() <= 2
        (tmp_path / "published.faiss").write_bytes(after)
        index = faiss.read_index(str(tmp_path / "published.faiss"))
        assert (ivf_of(index).nprobe, index.ntotal) == (nprobe, merged.rows)
    assert storage.read_bytes(merged.uri) == before


def test_bytes_are_replaced_across_chunks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(publish, "CHUNK_BYTES", 4)
    (tmp_path / "file").write_bytes(bytes(range(20)))
    for offset in (0, 3, 4, 12):
        found = b"".join(staged_bytes(StagedFile(uri=str(tmp_path / "file"), offset=offset, data=b"abcdefgh")))
        assert found == bytes(range(offset)) + b"abcdefgh" + bytes(range(offset + 8, 20))


def test_a_part_of_an_index_file_is_not_published(tmp_path: Path) -> None:
    part = dataclasses.replace(built(str(tmp_path)).merged[0], nprobe_offset=None)
    with pytest.raises(StorageError, match="merge it first"):
        with_nprobe(part, 7)


def test_the_content_fingerprint_is_about_answers_only(tmp_path: Path) -> None:
    staged, manifest = stage(str(tmp_path), built(str(tmp_path)))
    spec = manifest.index.spec
    files = describe_files(staged)
    known = content_fingerprint(files, "e", spec)
    report = FileEntry(path="report.html", bytes=1, sha256="0" * 64)
    assert content_fingerprint([report, *reversed(files)], "e", spec) == known
    assert content_fingerprint(files, "f", spec) != known
    assert content_fingerprint(files, "e", IndexSpec.parse("IVF4,Flat", 8)) != known
    for number, entry in enumerate(files):
        changed = [*files[:number], dataclasses.replace(entry, sha256="0" * 64), *files[number + 1 :]]
        assert content_fingerprint(changed, "e", spec) != known


def test_a_version_can_be_kept_without_being_published(root: str) -> None:
    index = storage.join(root, "index")
    staged, manifest = stage(root, built(root))
    held = publish_version(index, staged, manifest, make_current=False, now=NOW)
    assert list_versions(index) == (held,)
    with pytest.raises(VersionNotFoundError, match="CURRENT"):
        read_current(index)
    set_current(index, held)
    assert read_current(index) == held


def test_back_and_forth_between_versions(root: str, cache: Path) -> None:
    index = storage.join(root, "index")
    versions = [
        publish_version(index, *stage(storage.join(root, str(seed)), built(root, seed=seed)), now=NOW + timedelta(seed))
        for seed in range(2)
    ]
    assert read_current(index) == versions[1]
    assert list_versions(index) == tuple(versions)
    set_current(index, versions[0])
    assert IndexReader.open(index).manifest.version == versions[0]
    assert IndexReader.open(index, versions[1]).manifest.version == versions[1]


def test_two_publishes_within_a_second_get_two_ids(root: str) -> None:
    index = storage.join(root, "index")
    staged, manifest = stage(root, built(root))
    first, second = (publish_version(index, staged, manifest, now=NOW) for _ in range(2))
    assert first < second
    assert first.split("-")[1] == second.split("-")[1]
    assert list_versions(index) == (first, second)


def test_only_complete_versions_become_current(root: str) -> None:
    index = storage.join(root, "index")
    staged, manifest = stage(root, built(root))
    good = publish_version(index, staged, manifest, now=NOW)
    damaged = publish_version(index, staged, manifest, make_current=False, now=NOW)
    folder = version_uri(index, damaged)
    storage.write_bytes_atomic(storage.join(folder, "products.arrow"), b"short")
    with pytest.raises(VersionNotFoundError, match=r"products\.arrow: expected \d+ bytes, found 5"):
        set_current(index, damaged)
    storage.remove_file(storage.join(folder, "products.arrow"))
    with pytest.raises(VersionNotFoundError, match=r"products\.arrow is missing"):
        set_current(index, damaged)
    storage.write_bytes_atomic(storage.join(folder, "manifest.json"), b"{}")
    with pytest.raises(ManifestError):
        set_current(index, damaged)
    storage.remove_file(storage.join(folder, "manifest.json"))
    with pytest.raises(VersionNotFoundError, match=f"no complete version {damaged}; found: {good}"):
        set_current(index, damaged)
    assert read_current(index) == good


def test_nothing_published_and_nonsense_in_current(root: str) -> None:
    with pytest.raises(VersionNotFoundError, match="publish a version first"):
        read_current(root)
    with pytest.raises(VersionNotFoundError):
        read_manifest(root)
    assert list_versions(root) == ()
    storage.write_bytes_atomic(storage.join(root, "CURRENT"), b"../../elsewhere\n")
    with pytest.raises(VersionNotFoundError, match="expected a version id"):
        read_current(root)


def test_a_staged_file_that_changes_meanwhile_stops_the_publish(root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    index = storage.join(root, "index")
    staged, manifest = stage(root, built(root))
    real = publish.describe_files

    def describe(files: dict[str, str]) -> tuple[FileEntry, ...]:
        found = real(files)
        storage.write_bytes_atomic(staged["products.arrow"], b"changed")
        return found

    monkeypatch.setattr(publish, "describe_files", describe)
    with pytest.raises(StorageError, match="expected sha256"):
        publish_version(index, staged, manifest)
    assert list_versions(index) == ()


def test_prune_keeps_the_newest_and_the_published_one(root: str) -> None:
    index = storage.join(root, "index")
    staged, manifest = stage(root, built(root))
    versions = [publish_version(index, staged, manifest, now=NOW + timedelta(hours=hour)) for hour in range(5)]
    set_current(index, versions[1])
    old_leftover, new_leftover = "20261119T000000Z-0123456789ab", "20261121T040000Z-0123456789ab"
    for name in (old_leftover, new_leftover):
        storage.write_bytes_atomic(storage.join(version_uri(index, name), "products.arrow"), b"x")
    assert prune(index, 2, now=NOW + timedelta(hours=6)) == (versions[0], versions[2])
    assert list_versions(index) == (versions[1], versions[3], versions[4])
    assert storage.list_folders(storage.join(index, "versions")) == sorted([versions[1], *versions[3:], new_leftover])
    assert prune(index, 2, now=NOW) == ()
    with pytest.raises(StorageError, match="at least 1"):
        prune(index, 0)


# Staged are two index files, products.arrow and the query encoder's file; then come the manifest and CURRENT.
@pytest.mark.parametrize("stop_at", [1, 3, 4, 5, 6, 7])
def test_killed_at_any_point_the_published_version_still_opens(tmp_path: Path, stop_at: int) -> None:
    index = published(str(tmp_path), rows=120, factory="Flat", serving_shards=2)
    before = read_current(index)
    staged, manifest = stage(str(tmp_path / "second"), built(str(tmp_path), rows=160, seed=1))
    assert len(staged) == 4
    folder = str(tmp_path / "staged")
    write_staged(staged, folder)
    (tmp_path / "manifest.json").write_text(manifest.to_json())
    command = [sys.executable, "-m", "tests.index_builder.publish_once", index, folder]
    command += [str(tmp_path / "manifest.json"), str(stop_at)]
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith("stopped before")
        process.kill()
    assert process.returncode == -9

    assert read_current(index) == before
    reader = IndexReader.open(index)
    vectors = clustered(120, 16, seed=0)
    assert (reader.search(vectors, 1).rows[:, 0] == np.arange(120)).mean() > 0.95
    # What stands under a final name is whole.
    expected = {entry.path: entry.sha256 for entry in describe_files(folder)}
    (torn,) = set(storage.list_folders(storage.join(index, "versions"))) - {before}
    names = set(storage.list_names(version_uri(index, torn)))
    assert names <= {*expected, "manifest.json", "checksums.json"}
    for name in names & set(expected):
        assert storage.sha256_file(storage.join(version_uri(index, torn), name)) == expected[name]
    assert (torn in list_versions(index)) == (stop_at == 7)

    # The next run is not hindered by what was left behind.
    version = publish_version(index, folder, manifest)
    assert reader.refresh()
    assert reader.manifest.version == read_current(index) == version
    assert reader.products.num_rows == 160
    prune(index, 2, now=datetime.now(UTC) + timedelta(days=3))
    assert len(storage.list_folders(storage.join(index, "versions"))) == 2


@pytest.mark.parametrize("data", [b"", b"\xff\xfe\0", b"../../etc\n", b"x" * 10_000, b"20261121T000000Z-../../ab\n"])
def test_a_pointer_of_other_bytes_is_one_clear_error(root: str, data: bytes) -> None:
    index = published(root, 100)
    storage.write_bytes_atomic(storage.join(index, "CURRENT"), data)
    with pytest.raises(
        VersionNotFoundError, match=r"CURRENT: expected a version id, found .*; publish again, or go back"
    ):
        IndexReader.open(index)


def test_a_version_is_opened_by_its_own_manifest_only(root: str) -> None:
    index = published(root, 100)
    version = read_current(index)
    other = f"{version[:-12]}{'0' * 12}"
    text = storage.read_bytes(publish.manifest_uri(index, version))
    storage.write_bytes_atomic(publish.manifest_uri(index, other), text)
    with pytest.raises(ManifestError, match=f"expected the manifest of {other}, found that of"):
        IndexReader.open(index, other)
    for name in ("../versions/" + version, "..", "/etc"):
        with pytest.raises(VersionNotFoundError, match="no complete version"):
            IndexReader.open(index, name)
