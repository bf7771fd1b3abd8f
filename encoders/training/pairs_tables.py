"""The files of training pairs, as one Arrow table."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import fsspec
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.json
import pyarrow.parquet as pq

from encoders.errors import CheckpointError, EncoderConfigError
from encoders.training.pairs_config import PairsConfig

_JSON_LINES = (".jsonl", ".ndjson")


def read_tables(config: PairsConfig, *, with_products: bool) -> tuple[pa.Table, int | None]:
    """The rows that can be used, validation pairs last, and where those begin."""
    table = _read_table(config.uri or "", "data.uri", config, with_products)
    if not len(table):
        raise EncoderConfigError(f"data.uri is {config.uri!r}: no pair has a query and a product id")
    if config.validation_uri is None:
        return table.slice(0, config.max_pairs), None
    table = table.slice(0, config.max_pairs)
    validation = _read_table(config.validation_uri, "data.validation_uri", config, with_products)
    if not len(validation):
        raise EncoderConfigError(f"data.validation_uri is {config.validation_uri!r}: no pair has query and product id")
    return pa.concat_tables([table, validation], promote_options="permissive"), len(table)


def _read_table(uri: str, key: str, config: PairsConfig, with_products: bool) -> pa.Table:
    try:
        file_system, root = fsspec.core.url_to_fs(uri)
        paths = [root] if file_system.isfile(root) else sorted(file_system.glob(f"{root.rstrip('/')}/**/*.parquet"))
        if not paths:
            raise CheckpointError(f"{key} is {uri!r}: no Parquet files there")
        tables = list(_read_files(file_system, paths, config, with_products))
    except (OSError, pa.ArrowInvalid, ImportError) as error:
        raise CheckpointError(f"{key} is {uri!r}: cannot be read as Parquet: {error}") from error
    table = pa.concat_tables(tables)
    usable = pc.is_valid(table[config.id_field])
    if config.queries == "pairs":
        queries = [table[name] for name in (config.query_field, config.query_image_field) if name is not None]
        has_query = pc.is_valid(queries[0])
        for column in queries[1:]:
            has_query = pc.or_(has_query, pc.is_valid(column))
        usable = pc.and_(usable, has_query)
    return table.filter(usable)


def _read_files(
    file_system: fsspec.AbstractFileSystem, paths: Sequence[str], config: PairsConfig, with_products: bool
) -> Iterator[pa.Table]:
    wanted: list[str | None] = [config.id_field]
    if config.queries == "pairs":
        wanted += [config.query_field, config.query_image_field, config.negatives_field]
    if with_products:
        wanted += [*config.text_fields, config.image_field]
    columns = list(dict.fromkeys(name for name in wanted if name is not None))
    for path in paths:
        with file_system.open(path, "rb") as file:
            is_json = path.endswith(_JSON_LINES)
            source = pyarrow.json.read_json(file) if is_json else pq.ParquetFile(file)
            names = source.schema.names if is_json else source.schema_arrow.names
            missing = [name for name in columns if name not in names]
            if missing:
                raise EncoderConfigError(
                    f"{path} has no column {', '.join(missing)}: it has {', '.join(names)}; "
                    "set data.query_field, query_image_field, id_field, text_fields, image_field or negatives_field"
                )
            yield source.select(columns) if is_json else source.read(columns=columns)
