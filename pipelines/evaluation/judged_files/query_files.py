"""Queries as files: the query's id with its text, its picture, or both (and perhaps split)."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.catalog.errors import nearest
from pipelines.catalog.picture_columns import PictureRef, picture_refs
from pipelines.config.errors import ConfigError
from pipelines.evaluation.config import EvaluationConfig
from pipelines.evaluation.judged_files.table_files import read_columns


def read_queries(config: EvaluationConfig) -> pa.Table:
    """Columns id, text and picture, each query once; of the split that is asked for.

    Raises:
        ConfigError: The file is missing, cannot be read or lacks a column, has no query (of the split), or gives a
            query twice and differently.
    """
    fields = [config.query_id_field, config.query_field, config.query_image_field]
    columns = [name for name in fields if name is not None] + ([] if config.split is None else ["split"])
    # A picture that is also the id is a path.
    picture_only = [name for name in columns if name == config.query_image_field and name != config.query_id_field]
    uri = str(config.queries)
    table = read_columns(uri, columns, as_they_are=picture_only)
    if config.split is not None:
        known = pc.unique(table["split"]).to_pylist()
        table = table.filter(pc.equal(table["split"], config.split))
        if not len(table):
            raise ConfigError(
                f"--split {config.split}: {uri} has no such query. {nearest(config.split, filter(None, known))}"
            )
    nothing = pa.nulls(len(table), pa.string())
    texts = nothing if config.query_field is None else _without_empty(table[config.query_field])
    pictures = nothing if config.query_image_field is None else table[config.query_image_field]
    queries = pa.table({"id": table[config.query_id_field], "text": texts, "picture": pictures})
    has_content = pc.or_(pc.is_valid(queries["text"]), pc.is_valid(queries["picture"]))
    queries = queries.filter(pc.and_(pc.is_valid(queries["id"]), has_content))
    if not len(queries):
        raise ConfigError(f"{uri}: has no query with an id and a text or picture")
    return _each_once(queries, uri)


def _each_once(queries: pa.Table, uri: str) -> pa.Table:
    first = pc.index_in(queries["id"], value_set=pc.unique(queries["id"])).to_numpy()
    _, places = np.unique(first, return_index=True)
    once = queries.take(pa.array(places))
    if len(once) < len(queries) and queries["text"].null_count < len(queries):
        same = pc.equal(pc.fill_null(queries["text"], ""), pc.fill_null(once["text"].take(pa.array(first)), ""))
        if not pc.all(same).as_py():
            row = int(np.flatnonzero(~same.to_numpy())[0])
            raise ConfigError(
                f"{uri}: query {queries['id'][row].as_py()!r} stands there with different texts, "
                f"{queries['text'][row].as_py()!r} is one of them; expected each id once"
            )
    return once


def _without_empty(texts: pa.ChunkedArray) -> pa.ChunkedArray:
    return pc.if_else(pc.equal(pc.utf8_trim_whitespace(texts), ""), None, texts)


def query_pictures(column: pa.ChunkedArray, count: int) -> list[PictureRef | None]:
    """The first picture of each of `count` queries, None where it has none."""
    if column.null_count == count:
        return [None] * count
    return [refs[0] if refs else None for refs in picture_refs(column.combine_chunks(), 1)]
