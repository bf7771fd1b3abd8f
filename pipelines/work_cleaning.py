"""What a finished run removes from its work URI: all that neither a standing version nor the next night needs.

    embeddings/      kept: shards that a version of any index fed from here names, and those of this run
    builds/          kept: this run's
    carry_over/      kept: the lookup of a published version
    query_encoders/  kept: this run's encoder
    runs/            kept: the newest RUNS_KEPT records

Several indexes may be fed from one work URI; each notes its address in `indexes.json`, so that none loses its vectors
to another's cleaning. Nothing here is needed to search, and a file removed by mistake costs time, never truth.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator
from pathlib import PurePosixPath

from index_builder import publish, storage
from index_builder.errors import IndexBuilderError, VersionNotFoundError

log = logging.getLogger(__name__)

RUNS_KEPT = 30


def note_index(work_uri: str, index_uri: str) -> None:
    """Remembers that an index is fed from this work URI."""
    known = noted_indexes(work_uri)
    if index_uri not in known:
        storage.write_json_atomic(_notes_uri(work_uri), {"uris": sorted([*known, index_uri])})


def noted_indexes(work_uri: str) -> list[str]:
    """The indexes that are fed from this work URI."""
    try:
        return list(storage.read_json(_notes_uri(work_uri))["uris"])
    except FileNotFoundError:
        return []


def clean_work(work_uri: str, *, encoder: str, shard_keys: Collection[str], build: str) -> None:
    """Removes what is no longer needed. Called by the run that holds the lease, after its end.

    Args:
      work_uri: the work URI.
      encoder: fingerprint of this run's encoder.
      shard_keys: keys of this run's embedding shards.
      build: name of this run's folder in `builds`.
    """
    try:
        indexes = noted_indexes(work_uri)
        needed = {(encoder, key) for key in shard_keys} | {shard for uri in indexes for shard in _shards_of(uri)}
        current = {version for uri in indexes for version in _current_of(uri)}
        removed = _remove_shards(storage.join(work_uri, "embeddings"), needed)
        _keep_folders(storage.join(work_uri, "builds"), {build})
        _keep_folders(storage.join(work_uri, "carry_over"), current)
        _keep_folders(storage.join(work_uri, "query_encoders"), {encoder})
        runs = storage.join(work_uri, "runs")
        _keep_folders(runs, set(storage.list_folders(runs)[-RUNS_KEPT:]))
    except IndexBuilderError as error:
        log.warning("%s was not cleaned: %s", work_uri, error)
        return
    if removed:
        log.info("removed %d embedding shards that no version needs any more", removed)


def _shards_of(index_uri: str) -> Iterator[tuple[str, str]]:
    """(encoder fingerprint, key) of each embedding shard that a version of the index was built from."""
    for version in publish.list_versions(index_uri):
        for uri in publish.read_manifest(index_uri, version).embedding_shards:
            path = PurePosixPath(uri)
            yield path.parent.name, path.name.removesuffix(".parquet")


def _current_of(index_uri: str) -> Iterator[str]:
    try:
        yield publish.read_current(index_uri)
    except VersionNotFoundError:
        return


def _remove_shards(embeddings_uri: str, needed: Collection[tuple[str, str]]) -> int:
    """Removes the files of shards that are not needed, each one's summary first: without it a shard is incomplete."""
    files: dict[tuple[str, str], list[str]] = {}
    for name in storage.list_names(embeddings_uri):
        folder, _, file = name.partition("/")
        files.setdefault((folder, file.partition(".")[0]), []).append(storage.join(embeddings_uri, name))
    stale = [uris for shard, uris in files.items() if shard not in needed]
    for uris in stale:
        for uri in sorted(uris, key=lambda uri: not uri.endswith(".json")):
            storage.remove_file(uri)
    return len(stale)


def _keep_folders(uri: str, kept: Collection[str]) -> None:
    for name in storage.list_folders(uri):
        if name not in kept:
            storage.remove_tree(storage.join(uri, name))


def _notes_uri(work_uri: str) -> str:
    return storage.join(work_uri, "indexes.json")
