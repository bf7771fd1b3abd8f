"""OpenSearch: an index a version by the bulk API, and the alias that queries use, moved in one request.

https://docs.opensearch.org/latest/mappings/supported-field-types/knn-vector/
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from typing import Any

from opensearchpy import OpenSearch
from opensearchpy.exceptions import OpenSearchException
from opensearchpy.helpers import streaming_bulk

from index_builder.version_rows import RowBatch
from pipelines.exporting.export import ROW_FIELD, Export, ExportError, check_count, has_all_rows
from pipelines.published.json_values import plain_rows

ATTEMPTS = 5
BATCH = 500
TIMEOUT_SECONDS = 120


def write(export: Export, batches: Iterator[RowBatch]) -> str:
    """Fills the index `name_version`, and moves the alias `name` to it; logins stand in the address.

    Vectors are a `knn_vector` for Lucene's HNSW by inner product. An index that is whole is not written again.
    ExportError where OpenSearch refuses or cannot be reached.
    """
    try:
        with closing(
            OpenSearch(export.out, timeout=TIMEOUT_SECONDS, max_retries=ATTEMPTS, retry_on_timeout=True)
        ) as client:
            return _write(client, export, batches)
    except OpenSearchException as error:
        raise ExportError(f"OpenSearch, {export.place}: {error}") from error


def _write(client: OpenSearch, export: Export, batches: Iterator[RowBatch]) -> str:
    if not client.indices.exists(index=export.place) or _count(client, export.place) != export.rows:
        client.indices.delete(index=export.place, ignore_unavailable=True)
        client.indices.create(index=export.place, body=_body(export))
        try:
            actions = (action for batch in batches for action in _actions(export, batch))
            settings: dict[str, Any] = {"chunk_size": BATCH, "max_retries": ATTEMPTS, "raise_on_error": True}
            for _ in streaming_bulk(client, actions, **settings):
                pass
            client.indices.put_settings(index=export.place, body={"index": {"refresh_interval": None}})
            check_count(_count(client, export.place), export)
        except BaseException:
            client.indices.delete(index=export.place, ignore_unavailable=True)
            raise
    aliased = client.indices.get_alias(name=f"{export.name}*")
    holders = [index for index, of in aliased.items() if export.name in of["aliases"] and index != export.place]
    changes = [{"remove": {"index": index, "alias": export.name}} for index in holders]
    changes.append({"add": {"index": export.place, "alias": export.name}})
    client.indices.update_aliases(body={"actions": changes})
    standing = client.indices.get(index=f"{export.name}_*")

    def is_whole(place: str) -> bool:
        return has_all_rows(standing[place]["mappings"].get("_meta"), _count(client, place))

    for place in export.outdated(standing, is_whole):
        client.indices.delete(index=place)
    return f"index {export.place}, which the alias {export.name} names"


def _count(client: OpenSearch, place: str) -> int:
    client.indices.refresh(index=place)
    return int(client.count(index=place)["count"])


def _body(export: Export) -> dict[str, Any]:
    method = {"name": "hnsw", "engine": "lucene", "space_type": "innerproduct"}
    properties: dict[str, Any] = {
        ROW_FIELD: {"type": "long"},
        "product_id": {"type": "keyword"},
        export.vector_field: {"type": "knn_vector", "dimension": export.dim, "method": method},
    }
    mappings = {"_meta": export.facts, "properties": properties}
    # No refresh while it fills: the index is searched by nobody yet.
    return {"settings": {"index": {"knn": True, "refresh_interval": "-1"}}, "mappings": mappings}


def _actions(export: Export, batch: RowBatch) -> Iterator[dict[str, Any]]:
    rows = zip(plain_rows(batch.products), batch.vectors.tolist(), strict=True)
    for number, (row, vector) in enumerate(rows, start=batch.first_row):
        source = {ROW_FIELD: number, **row, export.vector_field: vector}
        yield {"_op_type": "index", "_index": export.place, "_id": str(number), "_source": source}
