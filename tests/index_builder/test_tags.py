"""Tags: where a version is named a tag may stand, a reader follows it, and what has one is never removed."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import numpy as np
import pytest

from index_builder import IndexReader, StorageError, VersionNotFoundError, publish, storage, tags
from tests.index_builder.builds import clustered, published

DIM = 16
NOW = datetime(2026, 11, 26, tzinfo=UTC)


@pytest.fixture
def index(root: str) -> tuple[str, list[str]]:
    """An index of three versions, the last of them published."""
    for seed in range(3):
        uri = published(root, rows=60, dim=DIM, seed=seed, factory="Flat")
    return uri, list(publish.list_versions(uri))


def test_a_tag_stands_for_a_version(index, cache):
    uri, versions = index
    assert publish.set_tag(uri, "shadow", versions[0]) == ""
    assert tags.read_tags(uri) == {"shadow": versions[0]}
    assert publish.read_manifest(uri, "shadow").version == versions[0]
    reader = IndexReader.open(uri, "shadow")
    query = clustered(60, DIM, seed=1)[7:8]
    assert not reader.refresh()
    assert publish.set_tag(uri, "shadow", versions[1]) == versions[0]
    assert reader.refresh()
    assert reader.manifest.version == versions[1]
    assert reader.search(query, 1).product_ids == [["sku-7"]]
    assert np.isclose(reader.search(query, 1).scores[0, 0], 1.0, atol=1e-2)
    assert publish.read_current(uri) == versions[2], "what is published stays"
    assert publish.followed_manifest(uri, "shadow") == publish.read_manifest(uri, versions[1])
    assert publish.followed_manifest(uri, "not-yet") == publish.followed_manifest(uri, None)
    publish.set_current(uri, "shadow")
    assert publish.read_current(uri) == versions[1]
    assert tags.remove_tag(uri, "shadow") == versions[1]
    with pytest.raises(VersionNotFoundError, match=r"no version has the tag 'shadow'; tags: none"):
        IndexReader.open(uri, "shadow")


def test_a_version_by_its_id_stays_pinned(index, cache):
    uri, versions = index
    reader = IndexReader.open(uri, versions[0])
    publish.set_tag(uri, "shadow", versions[1])
    assert not reader.refresh()
    assert reader.manifest.version == versions[0]


def test_what_has_a_tag_is_not_pruned_and_does_not_count(root):
    for seed in range(5):
        uri = published(root, rows=60, dim=DIM, seed=seed, factory="Flat")
    versions = publish.list_versions(uri)
    publish.set_tag(uri, "black-friday", versions[1])
    assert publish.to_prune(uri, 2) == (versions[0], versions[2])
    assert publish.list_versions(uri) == versions, "looking removes nothing"
    assert publish.prune(uri, 2, now=NOW + timedelta(days=1)) == (versions[0], versions[2])
    assert publish.list_versions(uri) == (versions[1], *versions[3:])
    assert not publish.remove_version(uri, versions[1])
    tags.remove_tag(uri, "black-friday")
    assert publish.prune(uri, 2) == (versions[1],)


def test_a_tag_that_comes_while_a_version_is_pruned(index, monkeypatch):
    """Either the prune sees the tag and puts the manifest back, or who tags is told."""
    uri, versions = index
    real = storage.remove_file

    def tagged_meanwhile(name: str) -> None:
        real(name)
        tags.write_tag(uri, "late", versions[0])

    monkeypatch.setattr(storage, "remove_file", tagged_meanwhile)
    assert not publish.remove_version(uri, versions[0])
    monkeypatch.undo()
    assert publish.read_manifest(uri, "late").version == versions[0]
    publish.set_tag(uri, "late", versions[1])
    write = tags.write_tag

    def pruned_meanwhile(index_uri: str, tag: str, version: str) -> None:
        write(index_uri, tag, version)
        if version == versions[0]:
            real(publish.manifest_uri(uri, version))

    monkeypatch.setattr(publish, "write_tag", pruned_meanwhile)
    with pytest.raises(VersionNotFoundError, match="is being pruned"):
        publish.set_tag(uri, "late", versions[0])
    assert tags.read_tags(uri) == {"late": versions[1]}


@pytest.mark.parametrize("name", ["Shadow", "", "1st", "../current", "a" * 32, "a b"])
def test_names_that_no_tag_has(index, name):
    uri, versions = index
    with pytest.raises((StorageError, VersionNotFoundError)):
        publish.set_tag(uri, name, versions[0])
    with pytest.raises(VersionNotFoundError):
        tags.read_tag(uri, name)


def test_a_damaged_tag_is_none(index):
    uri, versions = index
    publish.set_tag(uri, "shadow", versions[0])
    storage.write_bytes_atomic(storage.join(uri, "tags", "shadow"), b"\xff../../etc")
    assert tags.read_tags(uri) == {}
    assert publish.set_tag(uri, "shadow", versions[1]) == ""
