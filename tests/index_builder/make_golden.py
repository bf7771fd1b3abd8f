"""Writes the golden artifacts: what the specification's present versions look like, kept to open for ever.

usage: python -m tests.index_builder.make_golden [several_rows | parts]
Run once per schema version, never to make a failing test pass.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from index_builder import storage
from index_builder.manifest import PARTS_VERSION, SCHEMA_VERSION, SEVERAL_ROWS_VERSION
from index_builder.publish import publish_version
from index_builder.reader import IndexReader
from index_builder.spec import IndexConfig
from tests.index_builder.builds import (
    build_index,
    clustered,
    in_parts,
    published_per_image,
    stage,
    write_shards,
)

GOLDEN = Path(__file__).parent / "golden" / f"version_{SCHEMA_VERSION}"
SEVERAL_ROWS = GOLDEN.parent / f"version_{SEVERAL_ROWS_VERSION}"
PARTS = GOLDEN.parent / f"version_{PARTS_VERSION}"


def main() -> None:
    shutil.rmtree(GOLDEN, ignore_errors=True)
    vectors = clustered(100, 8)
    config = IndexConfig(uri=str(GOLDEN / "index"), factory="OPQ2_8,IVF4,PQ2x4", refine="sq8", serving_shards=2, k=5)
    with tempfile.TemporaryDirectory() as folder:
        build = build_index(folder, write_shards(folder, vectors, 50), config, 8)
        staged, manifest = stage(folder, build)
        publish_version(config.uri, staged, manifest, now=datetime(2026, 11, 21, tzinfo=UTC))
        shutil.copy(build.shards[0].uri, GOLDEN / "embedding_shard.parquet")
    result = IndexReader.open(config.uri).search(vectors[:10], 5)
    answers = {"vectors": vectors[:10].tolist(), "rows": result.rows.tolist(), "product_ids": result.product_ids}
    storage.write_json_atomic(str(GOLDEN / "answers.json"), answers)


def several_rows() -> None:
    """The same of a version in which a product may have several rows."""
    shutil.rmtree(SEVERAL_ROWS, ignore_errors=True)
    vectors = clustered(100, 8)
    config = IndexConfig(uri=str(SEVERAL_ROWS / "index"), factory="OPQ2_8,IVF4,PQ2x4", serving_shards=2, k=5)
    with tempfile.TemporaryDirectory() as folder:
        published_per_image(folder, vectors, config, now=datetime(2026, 11, 26, tzinfo=UTC))
        shutil.copy(Path(folder, "embeddings", "several.parquet"), SEVERAL_ROWS / "embedding_shard.parquet")
    result = IndexReader.open(config.uri).search(vectors[:10], 5)
    answers = {"vectors": vectors[:10].tolist(), "rows": result.rows.tolist(), "product_ids": result.product_ids}
    storage.write_json_atomic(str(SEVERAL_ROWS / "answers.json"), answers | {"images": result.images})


def parts() -> None:
    """The same of a version whose products are in several files."""
    shutil.rmtree(PARTS, ignore_errors=True)
    vectors = clustered(100, 8)
    config = IndexConfig(uri=str(PARTS / "index"), factory="OPQ2_8,IVF4,PQ2x4", serving_shards=2, k=5)
    with tempfile.TemporaryDirectory() as folder:
        staged, manifest = stage(folder, build_index(folder, write_shards(folder, vectors, 50), config, 8))
        now = datetime(2026, 11, 26, tzinfo=UTC)
        publish_version(
            config.uri,
            in_parts(folder, staged, [0, 30, 31, 100]),
            replace(manifest, schema_version=PARTS_VERSION),
            now=now,
        )
    reader = IndexReader.open(config.uri)
    result = reader.search(vectors[:10], 5)
    answers = {"vectors": vectors[:10].tolist(), "rows": result.rows.tolist(), "product_ids": result.product_ids}
    answers |= {"rows_below_90": reader.search(vectors[:10], 5, filter="price < 90").rows.tolist()}
    storage.write_json_atomic(str(PARTS / "answers.json"), answers)


if __name__ == "__main__":
    {"several_rows": several_rows, "parts": parts}.get("".join(sys.argv[1:]), main)()
