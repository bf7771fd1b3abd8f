"""Milvus: a collection a version, and the alias that queries use.

https://milvus.io/docs/manage-aliases.md
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import closing, suppress
from functools import partial

from pymilvus import DataType, MilvusClient
from pymilvus.exceptions import MilvusException

from index_builder.version_rows import RowBatch
from pipelines.exporting.export import ROW_FIELD, Export, ExportError, check_count, has_all_rows
from pipelines.published.json_values import plain_rows

BATCH = 1000
"""Rows of one request: 1,000 vectors of 768 numbers are 3 MB, far below the 64 MB that a server takes."""


def write(export: Export, batches: Iterator[RowBatch]) -> str:
    """Fills the collection `name_version`, and points the alias `name` to it; a token is in MILVUS_TOKEN.

    `out` is a server's address, or a local file for Milvus Lite. Columns are dynamic fields. A collection that is whole
    is not written again. ExportError where Milvus refuses or cannot be reached.
    """
    try:
        with closing(MilvusClient(export.out, token=os.environ.get("MILVUS_TOKEN", ""))) as client:
            return _write(client, export, batches)
    except MilvusException as error:
        raise ExportError(f"Milvus, {export.place}: {error.message}") from error


def _write(client: MilvusClient, export: Export, batches: Iterator[RowBatch]) -> str:
    if not client.has_collection(export.place) or _count(client, export.place) != export.rows:
        client.drop_collection(export.place)
        schema = client.create_schema(auto_id=False, enable_dynamic_field=True, description=json.dumps(export.facts))
        schema.add_field(ROW_FIELD, DataType.INT64, is_primary=True)
        schema.add_field(export.vector_field, DataType.FLOAT_VECTOR, dim=export.dim)
        index = client.prepare_index_params()
        index.add_index(export.vector_field, index_type="AUTOINDEX", metric_type="IP")
        # Milvus Lite keeps no descriptions.
        kept = {} if "://" in export.out else {"properties": export.facts}
        client.create_collection(export.place, schema=schema, index_params=index, **kept)
        try:
            for batch in batches:
                numbers = range(batch.first_row, batch.first_row + len(batch))
                rows = [
                    {ROW_FIELD: number, export.vector_field: vector, **row}
                    for number, vector, row in zip(numbers, batch.vectors, plain_rows(batch.products), strict=True)
                ]
                for start in range(0, len(rows), BATCH):
                    client.insert(export.place, rows[start : start + BATCH])
            client.flush(export.place)
            check_count(_count(client, export.place), export)
        except BaseException:
            client.drop_collection(export.place)
            raise
    client.load_collection(export.place)
    _move_alias(client, export)
    for place in export.outdated(client.list_collections(), partial(_is_whole, client)):
        client.drop_collection(place)
    return f"collection {export.place}, which the alias {export.name} names"


def _move_alias(client: MilvusClient, export: Export) -> None:
    known = client.list_aliases()  # one that is altered and not there is told by the client with a traceback
    if export.name not in (known["aliases"] if isinstance(known, dict) else known):
        client.create_alias(collection_name=export.place, alias=export.name)
        return
    try:
        client.alter_alias(collection_name=export.place, alias=export.name)
    except MilvusException:  # Milvus Lite keeps the alias of a dropped collection
        with suppress(MilvusException):
            client.drop_alias(export.name)
        client.create_alias(collection_name=export.place, alias=export.name)


def _count(client: MilvusClient, place: str) -> int:
    client.load_collection(place)
    found = client.query(place, filter="", output_fields=["count(*)"])
    return int(found[0]["count(*)"])


def _is_whole(client: MilvusClient, place: str) -> bool:
    said = client.describe_collection(place)
    facts: object = said["properties"]
    with suppress(ValueError):
        facts = json.loads(said["description"])
    return has_all_rows(facts, _count(client, place))
