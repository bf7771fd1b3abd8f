"""A writer that publishes and prunes without a pause, and readers that look all the while."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from index_builder import IndexReader, VersionNotFoundError, open_version, publish, storage, updates
from index_builder.publish import list_versions, prune, publish_version, read_current, set_current
from tests.index_builder import publish_many
from tests.index_builder.builds import clustered, published

VERSIONS = 100
MODES = ("refresh", "open", "pinned")


def start(module: str, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", f"tests.index_builder.{module}", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )


def test_readers_see_whole_versions_only_and_never_go_back(tmp_path: Path) -> None:
    builds, index, stop = tmp_path / "builds", str(tmp_path / "index"), tmp_path / "stop"
    publish_many.prepare(builds)
    publish_many.publish_one(index, builds, 0, builds)
    readers = [start("read_many", index, str(builds), mode, str(stop)) for mode in MODES]
    try:
        for reader in readers:
            assert reader.stdout is not None
            assert reader.stdout.readline() == "ready\n", reader.communicate()[1]
        writer = start("publish_many", index, str(builds), "1", str(VERSIONS))
        errors = writer.communicate()[1]
        assert writer.returncode == 0, errors
        stop.touch()
        for mode, reader in zip(MODES, readers, strict=True):
            output, errors = reader.communicate()
            assert reader.returncode == 0, errors
            saw = json.loads(output)
            assert saw["versions"] > 5, saw
            if mode != "pinned":
                assert saw["last"] == VERSIONS - 1
    finally:
        for reader in readers:
            reader.kill()
    assert len(list_versions(index)) == 1 + (VERSIONS - 1) % 3


ROWS, DIM = 300, 16
VECTORS = clustered(ROWS, DIM)


def two_versions(root: str) -> tuple[str, list[str]]:
    """An index of two versions, of `ROWS` and of 50 products; its address and their ids."""
    index = published(root, ROWS, DIM, factory="Flat", serving_shards=2)
    published(root, 50, DIM, seed=1, factory="Flat")
    return index, list(list_versions(index))


@pytest.fixture(params=["local", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return str(tmp_path) if request.param == "local" else str(request.getfixturevalue("bucket"))


def test_no_query_is_dropped_while_the_reader_refreshes(place: str, cache: Path) -> None:
    index, versions = two_versions(place)
    products = dict(zip(versions, (ROWS, 50), strict=True))
    reader = IndexReader.open(index)
    asked, answered, failures = Counter[int](), Counter[str](), []
    stop = threading.Event()

    def ask(number: int) -> None:
        while not stop.wait(0.001):  # else the server of the bucket, in this process too, hardly gets to run
            asked[number] += 1
            try:
                result = reader.search(VECTORS[:4], 60)
                found = (result.rows >= 0).sum(axis=1).tolist()
                assert found == [min(60, products[result.version])] * 4
                # What is shown beside an id is of the version that answered.
                assert result.product_ids[0] == result.columns(["product_id"])["product_id"].to_pylist()
                assert result.products.num_rows == products[result.version]
                answered[result.version] += 1
            except Exception as error:  # noqa: BLE001 - a thread's exception would be lost
                failures.append(error)

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for turn in range(20 if place.startswith("/") else 8):  # on a store, a turn is many requests
        set_current(index, versions[turn % 2])
        assert reader.refresh()
        assert reader.manifest.version == versions[turn % 2]
    stop.set()
    for thread in threads:
        thread.join()
    assert not failures
    assert answered.total() == asked.total()
    assert set(answered) == set(versions)


def at_opening(monkeypatch: pytest.MonkeyPatch, deed: Any) -> None:
    """Does a deed once, after a reader has read the manifest and before it opens the files."""
    real, done = open_version.read_manifest, []

    def read_manifest(*arguments: Any) -> Any:
        manifest = real(*arguments)
        if not done:
            done.append(True)
            deed()
        return manifest

    monkeypatch.setattr(open_version, "read_manifest", read_manifest)


def test_a_version_pruned_while_it_is_opened_gives_way_to_the_next(
    root: str, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index, versions = two_versions(root)
    set_current(index, versions[0])
    reader = IndexReader.open(index, versions[1])

    def replace() -> None:
        set_current(index, versions[1])
        assert prune(index, 1) == (versions[0],)

    at_opening(monkeypatch, replace)
    assert IndexReader.open(index).manifest.version == versions[1]
    # What is open stays so, whatever is published and pruned.
    published(root, 60, DIM, seed=2, factory="Flat")
    assert prune(index, 1) == (versions[1],)
    assert reader.search(clustered(50, DIM, seed=1)[7], 1).product_ids == [["sku-7"]]


def test_a_chosen_version_that_is_pruned_while_it_is_opened_is_named(
    root: str, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index, versions = two_versions(root)
    at_opening(monkeypatch, lambda: prune(index, 1))
    with pytest.raises(VersionNotFoundError, match=f"{versions[0]} was removed while it was being opened"):
        IndexReader.open(index, versions[0])


def test_another_server_cleans_the_cache_meanwhile(
    remote_root: str, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index, versions = two_versions(remote_root)
    IndexReader.open(index, versions[0])
    real, removed = open_version._cached_folder, []

    def cached_folder(*arguments: Any) -> str:
        folder = real(*arguments)
        if not removed:
            removed.append(folder)
            storage.remove_tree(folder)
        return folder

    monkeypatch.setattr(open_version, "_cached_folder", cached_folder)
    assert IndexReader.open(index, versions[0]).manifest.version == versions[0]
    assert removed


def test_a_failed_refresh_leaves_the_reader_where_it_is(tmp_path: Path) -> None:
    index, versions = two_versions(str(tmp_path))
    set_current(index, versions[0])
    reader = IndexReader.open(index)
    set_current(index, versions[1])
    (tmp_path / "index" / "versions" / versions[1] / "products.arrow").write_bytes(b"damaged")
    for _ in range(2):
        with pytest.raises(open_version.VerificationError, match=r"products\.arrow: expected"):
            reader.refresh()
        assert reader.search(VECTORS[8], 1).product_ids == [["sku-8"]]


def test_a_slow_refresh_does_not_put_back_an_older_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    index, versions = two_versions(str(tmp_path))
    published(str(tmp_path), 60, DIM, seed=2, factory="Flat")
    newest = read_current(index)
    set_current(index, versions[0])
    reader = IndexReader.open(index)
    set_current(index, versions[1])
    slow, go_on = threading.Event(), threading.Event()

    def wait() -> None:
        slow.set()
        go_on.wait(120)

    at_opening(monkeypatch, wait)
    threads = [threading.Thread(target=reader.refresh) for _ in range(2)]
    threads[0].start()
    assert slow.wait(120)
    set_current(index, newest)
    threads[1].start()
    threads[1].join(0.2)
    go_on.set()
    for thread in threads:
        thread.join(30)
    assert reader.manifest.version == newest


def test_ids_are_in_the_order_of_publishing_even_within_a_second(tmp_path: Path) -> None:
    builds = tmp_path / "builds"
    publish_many.prepare(builds)
    index = str(tmp_path / "index")
    ids = [publish_many.publish_one(index, builds, number, builds) for number in range(12)]
    assert ids == sorted(ids)
    assert len({name.split("-")[0] for name in ids}) == 12
    assert list_versions(index)[-1] == read_current(index) == ids[-1]


def test_going_back_to_a_version_that_is_being_pruned(root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    index, versions = two_versions(root)
    real = storage.remove_file

    # The pointer moves after the prune has looked: the version stays.
    def remove_file(uri: str) -> None:
        monkeypatch.setattr(storage, "remove_file", real)
        publish._point_to(index, versions[0])
        real(uri)

    monkeypatch.setattr(storage, "remove_file", remove_file)
    assert prune(index, 1) == ()
    assert read_current(index) == versions[0]
    assert publish.damaged_files(index, versions[0]) == []

    # The prune takes the manifest after its files were looked at: the pointer goes back to where it was.
    set_current(index, versions[1])
    point_to = publish._point_to

    def point(uri: str, version: str, _check: None) -> None:
        monkeypatch.setattr(publish, "_point_to", point_to)
        real(publish.manifest_uri(uri, version))
        point_to(uri, version)

    monkeypatch.setattr(publish, "_point_to", point)
    with pytest.raises(VersionNotFoundError, match="being pruned"):
        set_current(index, versions[0])
    assert read_current(index) == versions[1]


@pytest.mark.parametrize(
    ("meanwhile", "removed", "pointer"),
    [
        ("nothing", [], "before"),
        ("published", [], "winner"),
        ("published", ["older", "before", "own"], "winner"),
        ("held", [], "before"),
        ("held", ["before"], "older"),
        ("held", ["older", "before"], "own"),  # whole, and there is nothing else to answer from
        ("held", ["older", "before", "own"], "none"),
        ("flipped", [], "older"),
    ],
)
def test_a_run_paused_between_its_check_and_the_flip_does_not_keep_the_pointer(
    root: str, monkeypatch: pytest.MonkeyPatch, meanwhile: str, removed: list[str], pointer: str
) -> None:
    index, versions = two_versions(root)
    names = dict(zip(("older", "before"), versions, strict=True)) | {"none": ""}
    manifest = publish.read_manifest(index, names["before"])
    staged = {
        entry.path: storage.join(publish.version_uri(index, names["before"]), entry.path) for entry in manifest.files
    }
    calls: list[str] = []
    move_in = storage._move_in

    def check() -> None:
        calls.append(read_current(index))
        if len(calls) == 2:
            raise RuntimeError("the lease was lost")

    def move_after_a_pause(path: str, uri: str) -> None:
        if not calls or not uri.endswith("CURRENT"):
            move_in(path, uri)
            return
        monkeypatch.setattr(storage, "_move_in", move_in)
        names["own"] = list_versions(index)[-1]
        if meanwhile in ("published", "held"):
            held = replace(manifest, gates={"failed": ["recall"] if meanwhile == "held" else []})
            names["winner"] = publish_version(index, staged, held, make_current=meanwhile == "published")
        for name in removed:
            storage.remove_tree(publish.version_uri(index, names[name]))
        move_in(path, uri)
        if meanwhile == "flipped":
            publish._point_to(index, names["older"])

    monkeypatch.setattr(storage, "_move_in", move_after_a_pause)
    monkeypatch.setattr(updates, "LOCK_SECONDS", 0.0)  # a pause that is longer than others wait
    with pytest.raises(RuntimeError, match="the lease was lost"):
        publish_version(index, staged, manifest, before_current=check)
    assert calls == [names["before"], names["older" if meanwhile == "flipped" else "own"]]
    assert publish.published_version(index) == names[pointer]


def test_a_run_that_lost_its_lease_does_not_flip_the_pointer(root: str) -> None:
    index, versions = two_versions(root)

    def check() -> None:
        raise RuntimeError("the lease was lost")

    with pytest.raises(RuntimeError, match="the lease was lost"):
        set_current(index, versions[0], check)
    assert read_current(index) == versions[1]
    assert storage.list_names(index).count("CURRENT") == 1
    assert not [name for name in storage.list_names(index) if name.startswith(".")]


@pytest.mark.parametrize("moment", ["checked", "pruned", "flipped"])
def test_a_publication_that_ends_after_a_newer_one_does_not_go_back(
    root: str, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    index, (_, before) = two_versions(root)
    manifest = publish.read_manifest(index, before)
    staged = {entry.path: storage.join(publish.version_uri(index, before), entry.path) for entry in manifest.files}
    module, name = (storage, "_move_in") if moment == "flipped" else (publish, "_check_files")
    real, newer = getattr(module, name), []

    def after(*arguments: Any) -> None:
        """Another publisher comes between the last look and the flip, or before that look."""
        if len(list_versions(index)) == 3 and (moment != "flipped" or arguments[1].endswith("CURRENT")):
            monkeypatch.setattr(module, name, real)
            newer.append(publish_version(index, staged, manifest))
            prune(index, 1) if moment == "pruned" else None
        real(*arguments)

    monkeypatch.setattr(module, name, after)
    monkeypatch.setattr(updates, "LOCK_SECONDS", 0.0)  # as where there are no locks
    older = publish_version(index, staged, manifest)
    assert newer == [read_current(index)]
    assert older < newer[0]
    assert (older in list_versions(index)) is (moment != "pruned")


def test_an_older_version_is_not_current_for_a_moment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another process publishes a newer one when this one has looked, and is about to flip the pointer."""
    index, (_, before) = two_versions(str(tmp_path))
    manifest = publish.read_manifest(index, before)
    staged = {entry.path: storage.join(publish.version_uri(index, before), entry.path) for entry in manifest.files}
    real, shown, others = storage._move_in, [before], []

    def publish_newer() -> None:
        others.append(publish_version(index, staged, manifest))

    other = threading.Thread(target=publish_newer)

    def move_in(path: str, uri: str) -> None:
        if uri.endswith("CURRENT") and other.ident is None:
            other.start()
            other.join(1.0)  # it publishes meanwhile, or waits for this flip
        real(path, uri)
        if uri.endswith("CURRENT"):
            shown.append(read_current(index))

    monkeypatch.setattr(storage, "_move_in", move_in)
    own = publish_version(index, staged, manifest)
    other.join()
    assert shown == [before, own, *others]


def test_an_older_version_is_not_current_for_a_moment_on_s3(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    index, (_, before) = two_versions(bucket)
    manifest = publish.read_manifest(index, before)
    staged = {entry.path: storage.join(publish.version_uri(index, before), entry.path) for entry in manifest.files}
    newer = []

    def come_between() -> None:
        if not newer:
            newer.append("")
            newer[:] = [publish_version(index, staged, manifest)]

    monkeypatch.setattr(publish, "_newer_than", lambda *_: "")  # without a second look
    older = publish_version(index, staged, manifest, before_current=come_between)
    assert older < newer[0] == read_current(index)


def test_a_second_look_flips_to_no_version_that_was_overtaken(root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    index, (_, before) = two_versions(root)
    manifest = publish.read_manifest(index, before)
    staged = {entry.path: storage.join(publish.version_uri(index, before), entry.path) for entry in manifest.files}
    real, others = publish._newer_than, []

    def newer_than(index_uri: str, version: str) -> str:
        monkeypatch.setattr(publish, "_newer_than", real)
        others.append(publish_version(index, staged, manifest, make_current=False))  # about to flip
        found = real(index_uri, version)
        others.append(publish_version(index, staged, manifest))
        return found

    monkeypatch.setattr(publish, "_newer_than", newer_than)
    publish_version(index, staged, manifest)
    assert read_current(index) == others[1] > others[0]


def test_what_another_run_has_pruned_is_no_failure(root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    index, versions = two_versions(root)
    monkeypatch.setattr(publish, "to_prune", lambda *_: (versions[0],))
    assert prune(index, 1) == (versions[0],)
    assert prune(index, 1) == ()
