"""Qdrant: a collection a version, and the alias that queries use, switched in one request.

https://qdrant.tech/documentation/concepts/collections/#switch-collection
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import closing
from functools import partial

from qdrant_client import QdrantClient, models
from qdrant_client.http.exceptions import ApiException

from index_builder.version_rows import RowBatch
from pipelines.exporting.export import ROW_FIELD, Export, ExportError, check_count, has_all_rows
from pipelines.published.json_values import plain_rows

BATCH = 256
"""Points of one request: 256 vectors of 768 numbers are 3 MB as JSON, far below the 32 MB that a server takes."""


def write(export: Export, batches: Iterator[RowBatch]) -> str:
    """Fills the collection `name_version`, and points the alias `name` to it; the key is in QDRANT_API_KEY.

    A collection that is whole is not written again. `out` is a server's address, or a folder for the client's own
    local store. ExportError where Qdrant refuses or cannot be reached.
    """
    remote = "://" in export.out
    where = {"url": export.out, "api_key": os.environ.get("QDRANT_API_KEY")} if remote else {"path": export.out}
    try:
        with closing(QdrantClient(**where)) as client:
            return _write(client, export, batches)
    except (ApiException, OSError, RuntimeError, ValueError) as error:
        raise ExportError(f"Qdrant, {export.place}: {error}") from error


def _write(client: QdrantClient, export: Export, batches: Iterator[RowBatch]) -> str:
    if not client.collection_exists(export.place) or client.count(export.place, exact=True).count != export.rows:
        client.delete_collection(export.place)
        params = models.VectorParams(size=export.dim, distance=models.Distance.DOT)
        client.create_collection(export.place, vectors_config={export.vector_field: params}, metadata=export.facts)
        try:
            for batch in batches:
                numbers = range(batch.first_row, batch.first_row + len(batch))
                rows = [
                    {ROW_FIELD: number, **row} for number, row in zip(numbers, plain_rows(batch.products), strict=True)
                ]
                client.upload_collection(
                    export.place,
                    vectors={export.vector_field: batch.vectors},
                    payload=rows,
                    ids=list(numbers),
                    batch_size=BATCH,
                    wait=True,
                )
            check_count(client.count(export.place, exact=True).count, export)
        except BaseException:
            client.delete_collection(export.place)
            raise
    stand = {alias.alias_name for alias in client.get_aliases().aliases}
    delete = models.DeleteAliasOperation(delete_alias=models.DeleteAlias(alias_name=export.name))
    create = models.CreateAlias(collection_name=export.place, alias_name=export.name)
    changes = [delete] if export.name in stand else []
    client.update_collection_aliases([*changes, models.CreateAliasOperation(create_alias=create)])
    for place in export.outdated(
        (each.name for each in client.get_collections().collections), partial(_is_whole, client)
    ):
        client.delete_collection(place)
    return f"collection {export.place}, which the alias {export.name} names"


def _is_whole(client: QdrantClient, place: str) -> bool:
    return has_all_rows(client.get_collection(place).config.metadata, client.count(place, exact=True).count)
