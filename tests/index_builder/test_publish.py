from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pytest

from index_builder import publish, storage, version_files
from index_builder.errors import ManifestError, StorageError, VersionNotFoundError
from index_builder.faiss_files import ivf_of
from index_builder.merge import merge_index_shards
from index_builder.publish import (
    list_versions,
    prune,
    publish_version,
    read_current,
    read_manifest,
    read_marks,
    roll_back,
    set_current,
    set_tag,
    version_uri,
)
from index_builder.reader import IndexReader
from index_builder.spec import IndexConfig, IndexSpec
from index_builder.version_files import StagedFile, content_fingerprint, staged_bytes, staged_files, with_nprobe
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
    loaded = [entry.bytes for entry in found.files if not entry.path.startswith(("query_encoder/", "checksums"))]
    assert found.loaded_bytes == sum(loaded)


def test_a_staged_folder_does_as_well(root: str) -> None:
    staged, manifest = stage(root, built(root))
    folder = storage.join(root, "staged")
    write_staged(staged, folder)
    indexes = [storage.join(root, name) for name in ("one", "other")]
    one, other = (
        publish_version(index, files, manifest, now=NOW) for index, files in zip(indexes, (folder, staged), strict=True)
    )
    assert one[:16] == other[:16]
    files = [read_manifest(index).files for index in indexes]
    assert files[0] == files[1], "with nprobe written into the index files before, or on the way"


@pytest.mark.parametrize(
    "factory", ["Flat", "IVF32,SQ8", "OPQ4_8,IVF32_HNSW8,PQ4", "PCAR8,IVF32,PQ4x6", "OPQ4_8,IVF32,PQ4x4fs"]
)
def test_nprobe_is_published_in_the_file_and_nothing_else_changes(tmp_path: Path, factory: str) -> None:
    made = ready(str(tmp_path), factory)
    added = [made.add("0.faiss", 0, 1), made.add("1.faiss", 2, 3)]
    merged = merge_index_shards(added, str(tmp_path / "merged.faiss"), fast_scan=factory.endswith("fs"))
    before = storage.read_bytes(merged.uri)
    for nprobe in (7, 300):
        after = staged_bytes(with_nprobe(merged, nprobe))
        assert 1 <= (np.frombuffer(before, np.uint8) != np.frombuffer(after, np.uint8)).sum() <= 2
        (tmp_path / "published.faiss").write_bytes(after)
        index = faiss.read_index(str(tmp_path / "published.faiss"))
        assert (ivf_of(index).nprobe, index.ntotal) == (nprobe, merged.rows)
    assert storage.read_bytes(merged.uri) == before


def test_bytes_are_replaced_across_chunks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(version_files, "CHUNK_BYTES", 4)
    (tmp_path / "file").write_bytes(bytes(range(20)))
    for offset in (0, 3, 4, 12):
        found = staged_bytes(StagedFile(uri=str(tmp_path / "file"), offset=offset, data=b"abcdefgh"))
        assert found == bytes(range(offset)) + b"abcdefgh" + bytes(range(offset + 8, 20))


def test_a_part_of_an_index_file_is_not_published(tmp_path: Path) -> None:
    part = dataclasses.replace(built(str(tmp_path)).merged[0], nprobe_offset=None)
    with pytest.raises(StorageError, match="merge it first"):
        with_nprobe(part, 7)


def test_the_content_fingerprint_is_about_answers_only(tmp_path: Path) -> None:
    staged, manifest = stage(str(tmp_path), built(str(tmp_path)))
    spec, search = manifest.index.spec, manifest.index.search
    files = staged_files(staged)
    known = content_fingerprint(files, "e", spec, search)
    report = StagedFile(uri="report", sha256="0" * 64)
    assert content_fingerprint({"report.html": report} | dict(reversed(files.items())), "e", spec, search) == known
    assert content_fingerprint(files, "f", spec, search) != known
    assert content_fingerprint(files, "e", IndexSpec.parse("IVF4,Flat", 8), search) != known
    for changed in ({"nprobe": search.nprobe + 1}, {"refine_factor": 9}):
        assert content_fingerprint(files, "e", spec, dataclasses.replace(search, **changed)) != known
    for name, file in files.items():
        changed = files | {name: dataclasses.replace(file, sha256="0" * 64)}
        assert content_fingerprint(changed, "e", spec, search) != known


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


def test_a_listing_is_not_empty_because_all_that_it_saw_was_pruned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index, real = str(tmp_path / "index"), storage.list_folders
    staged, manifest = stage(str(tmp_path), built(str(tmp_path)))
    version = publish_version(index, staged, manifest, now=NOW)
    before = [["20200101T000000Z-0123456789ab"]]
    monkeypatch.setattr(storage, "list_folders", lambda uri: before.pop() if before else real(uri))
    assert list_versions(index) == (version,)
    assert not before


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
    real = publish.staged_files

    def hashed(files: dict[str, str]) -> dict[str, StagedFile]:
        found = real(files)
        storage.write_bytes_atomic(staged["products.arrow"], b"changed")
        return found

    monkeypatch.setattr(publish, "staged_files", hashed)
    with pytest.raises(StorageError, match="damaged after it was made"):
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
    expected = {name: file.sha256 for name, file in staged_files(folder).items()}
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


def versions_of(root: str, count: int) -> tuple[str, list[str]]:
    index = storage.join(root, "index")
    staged, manifest = stage(root, built(root))
    return index, [publish_version(index, staged, manifest, now=NOW + timedelta(hours=hour)) for hour in range(count)]


def test_a_version_that_was_rolled_back_is_marked_until_it_is_published_again(root: str) -> None:
    index, versions = versions_of(root, 3)
    assert roll_back(index, versions[1], now=NOW) == versions[2]
    assert read_current(index) == versions[1]
    assert read_marks(index) == {versions[2]: {"rolled_back_utc": "2026-11-21T03:00:00Z", "to": versions[1]}}
    assert roll_back(index, versions[0]) == versions[1]
    assert set(read_marks(index)) == set(versions[1:])
    assert roll_back(index, versions[2]) == versions[0], "forward: the older one is as good as it was"
    assert set(read_marks(index)) == {versions[1]}
    with pytest.raises(VersionNotFoundError):
        roll_back(index, "20200101T000000Z-000000000000")
    assert (read_current(index), set(read_marks(index))) == (versions[2], {versions[1]})
    storage.write_bytes_atomic(storage.join(index, "marks.json"), b"[")
    with pytest.raises(StorageError, match=r"marks\.json: expected JSON"):
        read_marks(index)
    with pytest.raises(StorageError, match=r"marks\.json: expected JSON"):
        roll_back(index, versions[0])
    assert read_current(index) == versions[2], "without a mark nothing is published"


def test_going_back_to_a_tag_marks_too(root: str) -> None:
    index, versions = versions_of(root, 2)
    set_tag(index, "good", versions[0])
    assert roll_back(index, "good", now=NOW) == versions[1]
    assert read_current(index) == versions[0]
    assert read_marks(index) == {versions[1]: {"rolled_back_utc": "2026-11-21T03:00:00Z", "to": versions[0]}}


def test_once_the_pointer_is_back_the_mark_stays(root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the last write of going back fails, the version gone back from must not be taken for a good one."""
    index, versions = versions_of(root, 3)
    roll_back(index, versions[1])
    real = publish.write_marks

    def fail_at_the_end(index_uri: str, **change: Any) -> None:
        if "add" not in change:
            raise StorageError("no answer")
        real(index_uri, **change)

    monkeypatch.setattr(publish, "write_marks", fail_at_the_end)
    with pytest.raises(StorageError, match="no answer"):
        roll_back(index, versions[0])
    assert (read_current(index), set(read_marks(index))) == (versions[0], set(versions[1:]))


def test_prune_after_a_rollback_keeps_one_to_go_back_to(root: str) -> None:
    index, versions = versions_of(root, 3)
    roll_back(index, versions[1])
    assert prune(index, 2, now=NOW) == (), "the newest was rolled back: the first is the one to go back to"
    staged, manifest = stage(root, built(root))
    later = [publish_version(index, staged, manifest, now=NOW + timedelta(hours=3))]
    assert prune(index, 2, now=NOW) == (versions[0],), "the newest but the published one was rolled back"
    held = dataclasses.replace(manifest, gates={"failed": ["gates.min_recall"]})
    later.append(publish_version(index, staged, held, now=NOW + timedelta(hours=4), make_current=False))
    assert prune(index, 2, now=NOW) == (versions[2],), "the newest is held"
    assert list_versions(index) == (versions[1], *later)
    assert read_marks(index) == {}, "a mark goes with its version"
    assert prune(index, 1, now=NOW) == (versions[1],)


def test_a_version_pruned_while_it_is_looked_at_is_not_pointed_to(root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    index, versions = versions_of(root, 2)
    pointed = []
    real_sizes, real_put_back = storage.list_sizes, publish._put_back

    def sizes(uri: str) -> dict[str, int]:
        storage.remove_file(publish.manifest_uri(index, versions[0]))
        return real_sizes(uri)

    monkeypatch.setattr(storage, "list_sizes", sizes)
    monkeypatch.setattr(publish, "_put_back", lambda *given: pointed.append(given) or real_put_back(*given))
    with pytest.raises(VersionNotFoundError, match="it is being pruned"):
        set_current(index, versions[0])
    assert (read_current(index), pointed) == (versions[1], [])


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
