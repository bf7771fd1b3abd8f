"""Publishes many versions one after the other and prunes after each, as the nightly job does, in a process of its own.

Publication n has the index of build n modulo the number of builds, and product ids that say both: `<n>-<build>-<row>`.

usage: python -m tests.index_builder.publish_many INDEX BUILDS FIRST STOP
"""

from __future__ import annotations

import dataclasses
import os
import sys
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pyarrow as pa

from index_builder.manifest import Manifest
from index_builder.publish import prune, publish_version
from index_builder.spec import IndexConfig
from tests.index_builder.builds import build_index, clustered, stage, write_shards, write_staged

DIM = 16
BUILDS = ((60, "Flat", 1), (90, "Flat", 3), (120, "Flat", 2))
"""Rows, factory and serving shards of the indexes that are published in turn."""


def prepare(folder: Path) -> None:
    """Builds the indexes once."""
    for number, (rows, factory, serving_shards) in enumerate(BUILDS):
        place = folder / str(number)
        vectors = clustered(rows, DIM, seed=number)
        config = IndexConfig(uri="x", factory=factory, serving_shards=serving_shards)
        staged, manifest = stage(
            str(place), build_index(str(place), write_shards(str(place), vectors, rows // 3), config, DIM)
        )
        write_staged(staged, str(place / "staged"))
        (place / "manifest.json").write_text(manifest.to_json())
        np.save(place / "vectors.npy", vectors)


def publish_one(index: str, builds: Path, number: int, scratch: Path) -> str:
    """Publishes publication `number`, and prunes."""
    build = number % len(BUILDS)
    place = builds / str(build)
    manifest = Manifest.from_json((place / "manifest.json").read_text())
    staged = {
        path.relative_to(place / "staged").as_posix(): str(path)
        for path in sorted((place / "staged").rglob("*"))
        if path.is_file()
    }
    products = pa.table({"product_id": [f"{number}-{build}-{row}" for row in range(BUILDS[build][0])]})
    path = str(scratch / "products.arrow")
    with pa.OSFile(path, "wb") as sink, pa.ipc.new_file(sink, products.schema) as writer:
        writer.write_table(products)
    manifest = dataclasses.replace(
        manifest, catalog=dataclasses.replace(manifest.catalog, uri=f"publication {number}"), version=""
    )
    version = publish_version(index, staged | {"products.arrow": path}, manifest, now=datetime.now(UTC))
    prune(index, keep=1 + number % 3)
    return version


def main(index: str, builds: str, first: int, stop: int) -> None:
    scratch = Path(builds)
    os.fsync = lambda descriptor: None  # as in conftest.py
    for number in range(first, stop):
        publish_one(index, Path(builds), number, scratch)


if __name__ == "__main__":
    main(*sys.argv[1:3], int(sys.argv[3]), int(sys.argv[4]))
