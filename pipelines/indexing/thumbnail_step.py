"""The thumbnail step joins the pictures of all shards into a version's `thumbnails.arrow`, row by row."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pyarrow as pa

from index_builder import storage
from index_builder.embedding_shards import NumberedShard
from index_builder.manifest import Manifest
from pipelines.images.thumbnails import SCHEMA, open_thumbnails, write_thumbnails
from pipelines.indexing.build_steps import BuildPlan, RunContext
from pipelines.indexing.product_table import read_columns
from pipelines.indexing.shard_files import ShardFiles

log = logging.getLogger(__name__)


def gather_thumbnails(run: RunContext, plan: BuildPlan, previous: Manifest | None) -> str | None:
    """Writes the pictures of a build's rows, once a build, and gives their file; None where none are asked for.

    Args:
        previous: The version that the run follows, whose pictures stand for images that were not read again.
    """
    side = run.index.thumbnail_side
    if side is None:
        return None
    shards = plan.numbering.shards
    uri = run.path("thumbnails")

    def make(path: str) -> dict[str, Any]:
        with ExitStack() as stack:
            before = None if previous is None else open_thumbnails(run.index.uri, previous)
            before = None if before is None else stack.enter_context(before)
            return write_thumbnails(f"{path}.arrow", _tables(shards), before, side)

    inputs = [None if previous is None else previous.version, side]  # the folder is named by the shards
    made = storage.artifact(uri, inputs, make)
    if missing := made.facts["missing"]:
        log.info("%d products have no thumbnail yet: their images were not read again; --full reads all", missing)
    return f"{made.uri}.arrow"


def _tables(shards: tuple[NumberedShard, ...]) -> Iterator[pa.Table]:
    """The kept rows' pictures of each shard; nulls for one that was made without."""
    for shard in shards:
        kept = pa.array(shard.kept())
        try:
            yield read_columns(ShardFiles.of_embeddings(shard.uri).thumbnails).take(kept)
        except FileNotFoundError:
            yield pa.table([pa.nulls(len(kept), field.type) for field in SCHEMA], schema=SCHEMA)
