"""Training pairs, read from Parquet: queries, and their products with texts and encoded pictures, each product once."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from encoders.errors import CheckpointError, EncoderConfigError
from encoders.training.config import PairsConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingPairs:
    """Pairs and their products, each product once.

    Attributes:
        queries: Query texts.
        query_keys: int64; equal for equal texts.
        product_rows: int64; the product of each pair.
        negative_rows: For each pair the products of its seen negatives, -1 padded: int64 `[pairs, most]`.
        product_ids: Ids of the products.
        texts: Text of each product, None where it has none.
        pictures: Encoded picture of each product, null where it has none.
    """

    queries: list[str]
    query_keys: np.ndarray
    product_rows: np.ndarray
    negative_rows: np.ndarray
    product_ids: list[str]
    texts: list[str | None]
    pictures: pa.Array

    def __len__(self) -> int:
        return len(self.queries)

    def split(self, validation_share: float) -> tuple[np.ndarray, np.ndarray]:
        """Rows to train on and rows to validate on, int64; all pairs of a product fall on one side, whatever the
        order.
        """
        shares = np.array([zlib.crc32(product_id.encode()) / 2**32 for product_id in self.product_ids])
        held_out = shares[self.product_rows] < validation_share
        return np.flatnonzero(~held_out), np.flatnonzero(held_out)


def read_pairs(config: PairsConfig) -> TrainingPairs:
    """Reads the pairs.

    Raises:
        EncoderConfigError: A column is missing or of the wrong kind, or a seen negative names no product of the data.
        CheckpointError: Nothing is at `data.uri`, or it is no Parquet.
    """
    table = _read_table(config)
    if not len(table):
        raise EncoderConfigError(f"data.uri is {config.uri!r}: no pair has a query and a product id")
    ids = pc.dictionary_encode(table[config.id_field].combine_chunks().cast(pa.string()))
    product_rows = ids.indices.to_numpy().astype(np.int64)
    _, first_rows = np.unique(product_rows, return_index=True)  # the dictionary is in order of appearance
    products = table.take(pa.array(first_rows))
    queries = table[config.query_field].to_pylist()
    query_codes = pc.dictionary_encode(table[config.query_field].combine_chunks()).indices
    return TrainingPairs(
        queries=queries,
        query_keys=query_codes.to_numpy().astype(np.int64),
        product_rows=product_rows,
        negative_rows=_negative_rows(table, config, ids.dictionary),
        product_ids=ids.dictionary.to_pylist(),
        texts=_join_texts(products, config.text_fields),
        pictures=_picture_bytes(products, config),
    )


def _read_table(config: PairsConfig) -> pa.Table:
    try:
        file_system, root = fsspec.core.url_to_fs(config.uri)
        paths = [root] if file_system.isfile(root) else sorted(file_system.glob(f"{root.rstrip('/')}/**/*.parquet"))
        if not paths:
            raise CheckpointError(f"data.uri is {config.uri!r}: no Parquet files there")
        tables = list(_read_files(file_system, paths, config))
    except (OSError, pa.ArrowInvalid, ImportError) as error:
        raise CheckpointError(f"data.uri is {config.uri!r}: cannot be read as Parquet: {error}") from error
    table = pa.concat_tables(tables)
    usable = pc.and_(pc.is_valid(table[config.query_field]), pc.is_valid(table[config.id_field]))
    return table.filter(usable).slice(0, config.max_pairs)


def _read_files(
    file_system: fsspec.AbstractFileSystem, paths: Sequence[str], config: PairsConfig
) -> Iterator[pa.Table]:
    further = (config.image_field, config.negatives_field)
    columns = [config.query_field, config.id_field, *config.text_fields, *(name for name in further if name)]
    for path in paths:
        with file_system.open(path, "rb") as file:
            parquet = pq.ParquetFile(file)
            missing = [name for name in columns if name not in parquet.schema_arrow.names]
            if missing:
                raise EncoderConfigError(
                    f"{path} has no column {', '.join(missing)}: it has {', '.join(parquet.schema_arrow.names)}; "
                    "set data.query_field, id_field, text_fields, image_field or negatives_field"
                )
            yield parquet.read(columns=columns)


def _join_texts(products: pa.Table, fields: Sequence[str]) -> list[str | None]:
    columns = [pc.fill_null(products[name].combine_chunks().cast(pa.string()), "") for name in fields]
    joined = pc.binary_join_element_wise(*columns, " ")
    clean = pc.utf8_trim_whitespace(pc.replace_substring_regex(joined, r"\s+", " "))
    return [text or None for text in clean.to_pylist()]


def _picture_bytes(products: pa.Table, config: PairsConfig) -> pa.Array:
    if config.image_field is None:
        return pa.nulls(len(products), pa.binary())
    column = products[config.image_field].combine_chunks()
    if pa.types.is_struct(column.type) and column.type.get_field_index("bytes") >= 0:
        column = column.field("bytes")
    if not (pa.types.is_binary(column.type) or pa.types.is_large_binary(column.type)):
        raise EncoderConfigError(
            f"data.image_field is {config.image_field!r} of type {column.type}: expected struct<bytes, path> or binary"
        )
    return column


def _negative_rows(table: pa.Table, config: PairsConfig, ids: pa.Array) -> np.ndarray:
    if config.negatives_field is None:
        return np.full((len(table), 0), -1, np.int64)
    lists = table[config.negatives_field].combine_chunks()
    lengths = pc.fill_null(pc.list_value_length(lists), 0).to_numpy().astype(np.int64)
    names = pc.list_flatten(lists).cast(pa.string())
    rows = pc.index_in(names, value_set=ids)
    if rows.null_count:
        name = names.filter(pc.is_null(rows))[0].as_py()
        raise EncoderConfigError(
            f"data.negatives_field: {rows.null_count} ids are no product of the data (first: {name!r})"
        )
    padded = np.full((len(table), int(lengths.max(initial=0))), -1, np.int64)
    padded[np.arange(padded.shape[1]) < lengths[:, None]] = rows.to_numpy()
    return padded
