"""Training pairs are read from Parquet or JSON Lines: queries, and the products that belong to them, or do not.

A pair's negatives are products that stand against its query whatever the batch: seen ones, those that its labels make
worthless, mined ones, and those that a teacher has scored.
"""

from __future__ import annotations

import functools
import zlib
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.json
import pyarrow.parquet as pq

from encoders.errors import CheckpointError, EncoderConfigError
from encoders.training.config import PairsConfig
from encoders.training.images import EncodedImages
from encoders.training.negatives import (
    TEACHER_COLUMNS,
    NegativeMiner,
    column_of,
    mined,
    negative_rows,
    rows_of_lists,
    taught,
    teacher_scores,
    weights_of,
    without_worthless,
)

PRODUCTS_SCHEMA = pa.schema([("product_id", pa.string()), ("text", pa.large_string()), ("image", pa.large_binary())])
_JSON_LINES = (".jsonl", ".ndjson")


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingProducts:
    """Products, each once."""

    product_ids: list[str]
    texts: list[str | None]  # None where a product has none
    images: EncodedImages

    def __len__(self) -> int:
        return len(self.product_ids)


# Reads the products of these ids, all without any; ids that it does not find are left out.
ProductReader = Callable[[Collection[str] | None], TrainingProducts]


def write_products(path: str, batches: Iterable[pa.RecordBatch]) -> None:
    """Writes products (`PRODUCTS_SCHEMA`, each id once) batch by batch to an Arrow IPC file, for `map_products`."""
    with pa.OSFile(path, "wb") as file, pa.ipc.new_file(file, PRODUCTS_SCHEMA) as writer:
        for batch in batches:
            writer.write_batch(batch)


def map_products(path: str) -> TrainingProducts:
    """The products of a file of `write_products`; its images stay on the disk until they are asked for."""
    table = pa.ipc.open_file(pa.memory_map(path)).read_all()
    return TrainingProducts(
        product_ids=table["product_id"].to_pylist(), texts=table["text"].to_pylist(), images=EncodedImages.mapped(path)
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingPairs:
    """Pairs and their products, each product once.

    Attributes:
        queries: Query texts, None where a query has none.
        query_images: None where no query has one.
        query_keys: int64; equal for equal queries.
        query_text_keys: int64; equal for equal query texts.
        product_rows: int64; the product of each pair.
        negative_rows: For each pair the products of its negatives, -1 padded: int64 `[pairs, most]`.
        margins: A teacher's score of the pair's product less that of each negative, NaN where it gave none: float32
            `[pairs, most]`; None without a teacher.
        weights: float32, above 0: what each pair weighs by its label; None where all weigh the same.
        text_keys: int64; equal for products of equal text.
        hides_texts: Whether the products are to be found by their images alone, because their texts are the queries.
        validation_start: First of the pairs that came as validation pairs; None where some are to be chosen.
    """

    queries: list[str | None]
    query_images: EncodedImages | None
    query_keys: np.ndarray
    query_text_keys: np.ndarray
    product_rows: np.ndarray
    negative_rows: np.ndarray
    products: TrainingProducts
    text_keys: np.ndarray
    margins: np.ndarray | None = None
    weights: np.ndarray | None = None
    hides_texts: bool = False
    validation_start: int | None = None

    def __len__(self) -> int:
        return len(self.queries)

    def digest(self) -> str:
        """Tells other pairs or products from these, in a few digits; images are not looked at."""
        checksum = 0
        for texts in (self.queries, self.products.product_ids, self.products.texts):
            checksum = zlib.crc32("\0".join(text or "\1" for text in texts).encode(errors="surrogatepass"), checksum)
        for numbers in (self.query_keys, self.product_rows, self.negative_rows, self.margins, self.weights):
            if numbers is not None:
                checksum = zlib.crc32(np.ascontiguousarray(numbers).tobytes(), checksum)
        return f"{len(self)} pairs, {checksum:08x}"

    def split(self, validation_share: float) -> tuple[np.ndarray, np.ndarray]:
        """Rows to train on and rows to validate on, int64; all pairs of a product fall on one side, whatever the
        order, unless the validation pairs were given. Of weighted pairs the heaviest alone are validated on.
        """
        if self.validation_start is not None:
            held_out = np.arange(len(self)) >= self.validation_start
        else:
            shares = np.array([zlib.crc32(product_id.encode()) / 2**32 for product_id in self.products.product_ids])
            held_out = shares[self.product_rows] < validation_share
        right = held_out if self.weights is None else held_out & (self.weights == self.weights.max())
        return np.flatnonzero(~held_out), np.flatnonzero(right)


def read_pairs(
    config: PairsConfig,
    read_products: ProductReader | None = None,
    *,
    label_weights: Mapping[str, float] | None = None,
    mine: NegativeMiner | None = None,
    teacher_scale: float = 1.0,
) -> TrainingPairs:
    """Reads the pairs and their products.

    Args:
        read_products: None takes the products from the pairs' own files.
        label_weights: What a pair weighs by the label in `data.label_field`.
        mine: Finds further negatives of the pairs that are trained on.
        teacher_scale: The scores of `data.teacher_uri` are multiplied by it.

    Raises:
        EncoderConfigError: No pairs, a column is missing or of the wrong kind, a product or a label is not known, or
            the teacher's file is of other pairs.
        CheckpointError: Nothing is at `data.uri`, or it is no Parquet.
    """
    if config.uri is None:
        if read_products is None:
            raise EncoderConfigError("data.uri is null: expected pairs, or a catalog whose products are trained on")
        return _own_pairs(read_products(None), None, config)
    table, validation_start = _read_tables(config, with_products=read_products is None)
    ids = pc.dictionary_encode(column_of(table, config.id_field))
    whole, weights, worthless = table, None, None
    if label_weights:
        weights = weights_of(column_of(table, str(config.label_field)), label_weights, config)
        table, validation_start, weights, worthless = without_worthless(table, validation_start, weights, config)
    teacher = None
    if config.teacher_uri is not None:
        teacher = teacher_scores(_read_columns(config.teacher_uri, "data.teacher_uri", TEACHER_COLUMNS), config)
    found_by_miner = None if mine is None else mined(table, validation_start, mine, config)
    if read_products is None:
        # The dictionary is in order of appearance.
        _, first_rows = np.unique(ids.indices.to_numpy(), return_index=True)
        products = _own_products(whole.take(pa.array(first_rows)), ids.dictionary, config)
    else:
        wanted = set(ids.dictionary.to_pylist())
        if config.negatives_field is not None:
            negatives = pc.list_flatten(table[config.negatives_field].combine_chunks()).cast(pa.string())
            wanted.update(pc.unique(pc.drop_null(negatives)).to_pylist())
        for of_pair in found_by_miner or ():
            wanted.update(of_pair)
        wanted.update(() if teacher is None else teacher["negative"].to_pylist())
        products = read_products(wanted)
        there = _in_catalog(table, products, config)
        if validation_start is not None:
            validation_start = int(there[:validation_start].sum())
        weights = None if weights is None else weights[there]
        if found_by_miner is not None:
            found_by_miner = [found for found, is_there in zip(found_by_miner, there, strict=True) if is_there]
        table = table.filter(pa.array(there))
    known = pa.array(products.product_ids, pa.string())
    product_rows = pc.index_in(column_of(table, config.id_field), value_set=known).to_numpy().astype(np.int64)
    if config.queries != "pairs":
        return _own_pairs(products, np.unique(product_rows), config)
    no_texts = pa.nulls(len(table), pa.string())
    texts = no_texts if config.query_field is None else column_of(table, config.query_field)
    text_keys = _codes(texts)
    images, query_keys = None, text_keys
    if config.query_image_field is not None:
        key = f"data.query_image_field is {config.query_image_field!r}"
        images = EncodedImages.from_column(table[config.query_image_field], root=config.image_root, key=key)
        _, query_keys = np.unique(np.stack([text_keys, images.keys()]), axis=1, return_inverse=True)
    queries = texts.to_pylist()
    against = [negative_rows(table, config, known)]
    of_queries = None if worthless is None else [worthless.get(query, []) for query in queries]
    for further in (found_by_miner, of_queries):
        if further is not None:
            against.append(rows_of_lists(pa.array(further, pa.list_(pa.string())), known))
    margins = None
    if teacher is not None:
        rows, of_teacher = taught(teacher, queries, column_of(table, config.id_field).to_pylist(), known, config)
        margins = [np.full(found.shape, np.nan, np.float32) for found in against] + [of_teacher * teacher_scale]
        against.append(rows)
    return TrainingPairs(
        queries=queries,
        query_images=images,
        query_keys=query_keys.reshape(-1).astype(np.int64),
        query_text_keys=text_keys,
        product_rows=product_rows,
        negative_rows=np.concatenate(against, axis=1),
        margins=None if margins is None else np.concatenate(margins, axis=1, dtype=np.float32),
        weights=weights,
        products=products,
        text_keys=_codes(pa.array(products.texts, pa.large_string())),
        validation_start=validation_start,
    )


def _own_pairs(products: TrainingProducts, rows: np.ndarray | None, config: PairsConfig) -> TrainingPairs:
    """Each product's text as the query for its image, or its image for its text, of those at `rows` that have both."""
    has_text = np.fromiter((text is not None for text in products.texts), bool, len(products))
    has_both = np.flatnonzero(has_text & products.images.present())
    rows = has_both if rows is None else np.intersect1d(rows, has_both)
    if not len(rows):
        raise EncoderConfigError(f"data.queries is {config.queries}: no product has both a text and a picture")
    text_keys = _codes(pa.array(products.texts, pa.large_string()))
    asks_pictures = config.queries == "pictures"
    images = products.images.at(rows) if asks_pictures else None
    return TrainingPairs(
        queries=[None if asks_pictures else products.texts[row] for row in rows],
        query_images=images,
        query_keys=text_keys[rows] if images is None else images.keys(),
        query_text_keys=np.full(len(rows), -1, np.int64) if asks_pictures else text_keys[rows],
        product_rows=rows.astype(np.int64),
        negative_rows=np.full((len(rows), 0), -1, np.int64),
        products=products,
        text_keys=text_keys,
        hides_texts=config.queries == "titles" and not config.show_texts,
    )


def _read_tables(config: PairsConfig, *, with_products: bool) -> tuple[pa.Table, int | None]:
    """The rows that can be used, validation pairs last, and where those begin."""
    table = _read_table(config.uri or "", "data.uri", config, with_products)
    if not len(table):
        raise EncoderConfigError(f"data.uri is {config.uri!r}: no pair has a query and a product id")
    table = table.slice(0, config.max_pairs)
    if config.validation_uri is None:
        return table, None
    validation = _read_table(config.validation_uri, "data.validation_uri", config, with_products)
    if not len(validation):
        raise EncoderConfigError(f"data.validation_uri is {config.validation_uri!r}: no pair has query and product id")
    return pa.concat_tables([table, validation], promote_options="permissive"), len(table)


def _read_table(uri: str, key: str, config: PairsConfig, with_products: bool) -> pa.Table:
    wanted: list[str | None] = [config.id_field]
    if config.queries == "pairs":
        wanted += [config.query_field, config.query_image_field, config.negatives_field, config.label_field]
    if with_products:
        wanted += [*config.text_fields, config.image_field]
    table = _read_columns(uri, key, list(dict.fromkeys(name for name in wanted if name is not None)))
    usable = pc.is_valid(table[config.id_field])
    if config.queries == "pairs":
        names = [name for name in (config.query_field, config.query_image_field) if name is not None]
        has_query = functools.reduce(pc.or_, [pc.is_valid(table[name]) for name in names])
        usable = pc.and_(usable, has_query)
    return table.filter(usable)


def _read_columns(uri: str, key: str, columns: Sequence[str]) -> pa.Table:
    try:
        file_system, root = fsspec.core.url_to_fs(uri)
        paths = [root] if file_system.isfile(root) else sorted(file_system.glob(f"{root.rstrip('/')}/**/*.parquet"))
        if not paths:
            raise CheckpointError(f"{key} is {uri!r}: no Parquet files there")
        return pa.concat_tables([_read_file(file_system, path, columns, key) for path in paths])
    except (OSError, pa.ArrowInvalid, ImportError) as error:
        raise CheckpointError(f"{key} is {uri!r}: cannot be read as Parquet: {error}") from error


def _read_file(file_system: fsspec.AbstractFileSystem, path: str, columns: Sequence[str], key: str) -> pa.Table:
    with file_system.open(path, "rb") as file:
        is_json = path.endswith(_JSON_LINES)
        source = pyarrow.json.read_json(file) if is_json else pq.ParquetFile(file)
        names = source.schema.names if is_json else source.schema_arrow.names
        missing = [name for name in columns if name not in names]
        if missing:
            settings = (
                "query_field, query_image_field, id_field, text_fields, image_field, negatives_field or label_field"
            )
            keys = "" if key == "data.teacher_uri" else f"; set data.{settings}"
            raise EncoderConfigError(f"{path} has no column {', '.join(missing)}: it has {', '.join(names)}{keys}")
        return source.select(columns) if is_json else source.read(columns=columns)


def _own_products(products: pa.Table, ids: pa.Array, config: PairsConfig) -> TrainingProducts:
    """The products that stand in the pairs' own rows."""
    images = EncodedImages(pa.chunked_array([pa.nulls(len(products), pa.binary())]))
    if config.image_field is not None:
        key = f"data.image_field is {config.image_field!r}"
        images = EncodedImages.from_column(products[config.image_field], root=config.image_root, key=key)
    texts: list[str | None] = [None] * len(products)
    if config.text_fields:
        columns = [pc.fill_null(column_of(products, name), "") for name in config.text_fields]
        joined = pc.binary_join_element_wise(*columns, " ")
        clean = pc.utf8_trim_whitespace(pc.replace_substring_regex(joined, r"\s+", " "))
        texts = [text or None for text in clean.to_pylist()]
    return TrainingProducts(product_ids=ids.to_pylist(), texts=texts, images=images)


def _in_catalog(table: pa.Table, products: TrainingProducts, config: PairsConfig) -> np.ndarray:
    """Which pairs have a product that the catalog holds, bool; raises where the others are not to be dropped."""
    column = column_of(table, config.id_field)
    there = pc.is_in(column, value_set=pa.array(products.product_ids, pa.string()))
    unknown, asked = pc.unique(column.filter(pc.invert(there))), len(pc.unique(column))
    if len(unknown) and (config.unknown_products == "error" or len(unknown) == asked):
        raise EncoderConfigError(
            f"data.uri is {config.uri!r}: {len(unknown):,} of its {asked:,} product ids are not in the catalog (first: "
            f"{unknown[0].as_py()!r}): check data.id_field and catalog.id_field, or leave such pairs out by "
            "data.unknown_products: drop"
        )
    return there.to_numpy(zero_copy_only=False)


def _codes(texts: pa.Array) -> np.ndarray:
    """int64: equal for equal texts, in order of appearance; -1 where there is none."""
    return pc.fill_null(pc.dictionary_encode(texts).indices, -1).to_numpy().astype(np.int64)
