"""Promises about the whole chain: byte-identical rebuilds, tiny catalogs, recall."""

from __future__ import annotations

import dataclasses
import logging
import os
import subprocess
import sys
from pathlib import Path

import faiss
import numpy as np
import pytest

from index_builder import storage
from index_builder.add import add_shards
from index_builder.codec import build_codec
from index_builder.publish import publish_version
from index_builder.reader import IndexReader
from index_builder.spec import IndexConfig
from index_builder.tuning import measure_search
from tests.index_builder.builds import build_index, clustered, stage, write_index, write_shards


@pytest.mark.parametrize("factory", ["OPQ9_32,IVF64_HNSW8,PQ9x8+1", "PCAR16,IVF20,SQ8"])
def test_a_rebuild_is_byte_identical_whatever_the_threads_the_order_and_the_cut(tmp_path: Path, factory: str) -> None:
    write_shards(str(tmp_path), clustered(3000, 40), 300)
    builds = []
    for threads, rows_per_add, order in (("1", "100000", "forwards"), ("2", "700", "backwards")):
        command = [sys.executable, "-m", "tests.index_builder.build_once", str(tmp_path / "embeddings")]
        command += [str(tmp_path / f"out-{threads}"), factory, rows_per_add, order]
        environment, pipe = os.environ | {"OMP_NUM_THREADS": threads}, subprocess.PIPE
        root = Path(__file__).parents[2]
        builds.append(subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, cwd=root, env=environment))
    found = []
    for build in builds:
        output, errors = build.communicate()
        assert (build.returncode, errors) == (0, "")
        found.append(output.split())
    assert found[0] == found[1]
    assert len(set(found[0])) == 2


@pytest.mark.parametrize("rows", [1, 2, 10, 81, 300])
@pytest.mark.parametrize("factory", ["auto", "PCAR64,IVF64,PQ32x8"])
def test_tiny_catalogs_build_quietly_and_are_searched_exactly(
    root: str,
    rows: int,
    factory: str,
    cache: Path,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    vectors = clustered(rows, 128)
    config = IndexConfig(uri=storage.join(root, "index"), factory=factory, serving_shards=2)
    with caplog.at_level(logging.WARNING, logger="index_builder"):
        build = build_index(root, write_shards(root, vectors, 64), config, 128)
    assert capfd.readouterr() == ("", "")
    assert len(caplog.records) == (factory != "auto")
    assert (build.choice.recall, build.choice.reached) == (1.0, True)
    publish_version(config.uri, *stage(root, build))
    reader = IndexReader.open(config.uri)
    result = reader.search(vectors, 3)
    assert np.array_equal(result.rows[:, : min(3, rows)], np.argsort(-vectors @ vectors.T, kind="stable")[:, :3])
    assert [len(ids) for ids in result.product_ids] == [min(3, rows)] * rows


def test_the_demos_index_reaches_a_sound_recall(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    config = IndexConfig(uri="x", factory="PCAR64,IVF64,PQ32x8", serving_shards=2)
    build = build_index(str(tmp_path), write_shards(str(tmp_path), clustered(3000, 128), 512), config, 128)
    assert build.spec.factory == config.factory
    assert len(build.merged) == 2
    assert len(build.queries.rows) > 200
    assert build.choice.recall > 0.75
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("factory", "least"),
    [
        ("Flat", 1.0),
        ("IVF32,Flat", 0.95),
        ("IVF32_HNSW16,SQ8", 0.9),
        ("OPQ16_32,IVF32,PQ16", 0.7),
        ("OPQ16_32,IVF32,PQ16x4fs", 0.5),
        ("IVF32,PQ16x4fsr", 0.5),
        ("PQ16x4fsr", 0.5),
        ("RR,IVF32,RaBitQ", 0.5),
        ("PCAR24,IVF32,RaBitQ2", 0.6),
        ("PCAR24,IVF32,RaBitQ3", 0.7),
        ("RR,IVF32_HNSW8,RaBitQ4", 0.85),
        ("RR,IVF32,RaBitQ5", 0.85),
        ("OPQ15_30,IVF32,PQ15x8+1", 0.75),
        ("OPQ9_32,IVF32_HNSW8,PQ9x8+1", 0.7),
    ],
)
def test_every_family_of_index_is_built_published_and_opened_by_plain_faiss(
    tmp_path: Path, factory: str, least: float
) -> None:
    vectors = clustered(4000, 32)
    config = IndexConfig(uri=str(tmp_path / "index"), factory=factory, serving_shards=2, rows_per_add=700)
    build = build_index(str(tmp_path), write_shards(str(tmp_path), vectors, 500), config, 32)
    assert build.choice.recall >= least
    version = publish_version(config.uri, *stage(str(tmp_path), build))
    result = IndexReader.open(config.uri).search(vectors[:50], 10)
    files = sorted((tmp_path / "index" / "versions" / version).glob("*.faiss"))
    plain = [faiss.read_index(str(file)) for file in files]
    assert sum(index.ntotal for index in plain) == 4000
    scores = np.concatenate([index.search(vectors[:50], 10)[0] for index in plain], axis=1)
    # The reader's answers are those of the files, searched as they are.
    assert np.allclose(np.sort(scores)[:, -1], result.scores[:, 0], atol=1e-5)
    assert (result.rows[:, 0] == np.arange(50)).mean() >= least - 0.1


def test_a_sample_of_the_whole_catalog_beats_the_first_rows(tmp_path: Path) -> None:
    """A catalog sorted by category: recall on held-out products, as it is measured in production."""
    vectors = clustered(6000, 32)
    vectors = vectors[np.argsort(vectors @ np.ones(32))]
    config = IndexConfig(uri="x", factory="OPQ8_32,IVF32,PQ8", training_rows=1500)
    shards = write_shards(str(tmp_path), vectors, 500)
    build = build_index(str(tmp_path), shards, config, 32)
    assert build.codec.training_rows == 1500

    first_rows = build_codec(vectors[:1500], build.spec, seed=0)
    folder = str(tmp_path / "first_rows")
    fingerprint = write_index(first_rows, storage.join(folder, "codec.faiss"))[:32]
    codec = dataclasses.replace(build.codec, uri=folder, fingerprint=fingerprint)
    part = add_shards(codec, shards, str(tmp_path / "worse.faiss"))
    measured = measure_search([part.uri], build.queries, build.truth, target_recall=1.0)
    assert build.choice.recall > max(row.recall for row in measured) + 0.02
