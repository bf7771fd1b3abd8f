"""Training pairs are read from Parquet or JSON Lines: queries, and the products that belong to them."""

from __future__ import annotations

import functools
import zlib
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
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
        negative_rows: For each pair the products of its seen negatives, -1 padded: int64 `[pairs, most]`.
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
    hides_texts: bool = False
    validation_start: int | None = None

    def __len__(self) -> int:
        return len(self.queries)

    def digest(self) -> str:
        """Tells other pairs or products from these, in a few digits; images are not looked at."""
        checksum = 0
        for texts in (self.queries, self.products.product_ids, self.products.texts):
            checksum = zlib.crc32("\0".join(text or "\1" for text in texts).encode(errors="surrogatepass"), checksum)
        for numbers in (self.query_keys, self.product_rows, self.negative_rows):
            checksum = zlib.crc32(np.ascontiguousarray(numbers).tobytes(), checksum)
        return f"{len(self)} pairs, {checksum:08x}"

    def split(self, validation_share: float) -> tuple[np.ndarray, np.ndarray]:
        """Rows to train on and rows to validate on, int64; all pairs of a product fall on one side, whatever the
        order, unless the validation pairs were given.
        """
        if self.validation_start is not None:
            return np.arange(self.validation_start), np.arange(self.validation_start, len(self))
        shares = np.array([zlib.crc32(product_id.encode()) / 2**32 for product_id in self.products.product_ids])
        held_out = shares[self.product_rows] < validation_share
        return np.flatnonzero(~held_out), np.flatnonzero(held_out)


def read_pairs(config: PairsConfig, read_products: ProductReader | None = None) -> TrainingPairs:
    """Reads the pairs and their products; `read_products` None takes these from the pairs' own files.

    Raises:
        EncoderConfigError: No pairs, a column is missing or of the wrong kind, or a product is not known.
        CheckpointError: Nothing is at `data.uri`, or it is no Parquet.
    """
    if config.uri is None:
        if read_products is None:
            raise EncoderConfigError("data.uri is null: expected pairs, or a catalog whose products are trained on")
        return _titles(read_products(None), None)
    table, validation_start = _read_tables(config, with_products=read_products is None)
    ids = pc.dictionary_encode(_column(table, config.id_field))
    if read_products is None:
        # The dictionary is in order of appearance.
        _, first_rows = np.unique(ids.indices.to_numpy(), return_index=True)
        products = _own_products(table.take(pa.array(first_rows)), ids.dictionary, config)
    else:
        wanted = set(ids.dictionary.to_pylist())
        if config.negatives_field is not None:
            negatives = pc.list_flatten(table[config.negatives_field].combine_chunks()).cast(pa.string())
            wanted.update(pc.unique(pc.drop_null(negatives)).to_pylist())
        products = read_products(wanted)
        table, validation_start = _of_known_products(table, validation_start, products, config)
    known = pa.array(products.product_ids, pa.string())
    product_rows = pc.index_in(_column(table, config.id_field), value_set=known).to_numpy().astype(np.int64)
    if config.queries == "titles":
        return _titles(products, np.unique(product_rows))
    no_texts = pa.nulls(len(table), pa.string())
    texts = no_texts if config.query_field is None else _column(table, config.query_field)
    text_keys = _codes(texts)
    images, query_keys = None, text_keys
    if config.query_image_field is not None:
        key = f"data.query_image_field is {config.query_image_field!r}"
        images = EncodedImages.from_column(table[config.query_image_field], root=config.image_root, key=key)
        _, query_keys = np.unique(np.stack([text_keys, images.keys()]), axis=1, return_inverse=True)
    return TrainingPairs(
        queries=texts.to_pylist(),
        query_images=images,
        query_keys=query_keys.reshape(-1).astype(np.int64),
        query_text_keys=text_keys,
        product_rows=product_rows,
        negative_rows=_negative_rows(table, config, known),
        products=products,
        text_keys=_codes(pa.array(products.texts, pa.large_string())),
        validation_start=validation_start,
    )


def _titles(products: TrainingProducts, rows: np.ndarray | None) -> TrainingPairs:
    """Each product's text as the query for its image, of the products at `rows` that have both."""
    has_text = np.fromiter((text is not None for text in products.texts), bool, len(products))
    has_both = np.flatnonzero(has_text & products.images.present())
    rows = has_both if rows is None else np.intersect1d(rows, has_both)
    if not len(rows):
        raise EncoderConfigError("data.queries is titles: no product has both a text and a picture")
    text_keys = _codes(pa.array(products.texts, pa.large_string()))
    return TrainingPairs(
        queries=[products.texts[row] for row in rows],
        query_images=None,
        query_keys=text_keys[rows],
        query_text_keys=text_keys[rows],
        product_rows=rows.astype(np.int64),
        negative_rows=np.full((len(rows), 0), -1, np.int64),
        products=products,
        text_keys=text_keys,
        hides_texts=True,
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
    try:
        file_system, root = fsspec.core.url_to_fs(uri)
        paths = [root] if file_system.isfile(root) else sorted(file_system.glob(f"{root.rstrip('/')}/**/*.parquet"))
        if not paths:
            raise CheckpointError(f"{key} is {uri!r}: no Parquet files there")
        table = pa.concat_tables(list(_read_files(file_system, paths, config, with_products)))
    except (OSError, pa.ArrowInvalid, ImportError) as error:
        raise CheckpointError(f"{key} is {uri!r}: cannot be read as Parquet: {error}") from error
    usable = pc.is_valid(table[config.id_field])
    if config.queries == "pairs":
        names = [name for name in (config.query_field, config.query_image_field) if name is not None]
        has_query = functools.reduce(pc.or_, [pc.is_valid(table[name]) for name in names])
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


def _own_products(products: pa.Table, ids: pa.Array, config: PairsConfig) -> TrainingProducts:
    """The products that stand in the pairs' own rows."""
    images = EncodedImages(pa.chunked_array([pa.nulls(len(products), pa.binary())]))
    if config.image_field is not None:
        key = f"data.image_field is {config.image_field!r}"
        images = EncodedImages.from_column(products[config.image_field], root=config.image_root, key=key)
    texts: list[str | None] = [None] * len(products)
    if config.text_fields:
        columns = [pc.fill_null(_column(products, name), "") for name in config.text_fields]
        joined = pc.binary_join_element_wise(*columns, " ")
        clean = pc.utf8_trim_whitespace(pc.replace_substring_regex(joined, r"\s+", " "))
        texts = [text or None for text in clean.to_pylist()]
    return TrainingProducts(product_ids=ids.to_pylist(), texts=texts, images=images)


def _of_known_products(
    table: pa.Table, validation_start: int | None, products: TrainingProducts, config: PairsConfig
) -> tuple[pa.Table, int | None]:
    """Drops the pairs of products that the catalog does not hold, or refuses them."""
    column = _column(table, config.id_field)
    there = pc.is_in(column, value_set=pa.array(products.product_ids, pa.string()))
    unknown, asked = pc.unique(column.filter(pc.invert(there))), len(pc.unique(column))
    if not len(unknown):
        return table, validation_start
    if config.unknown_products == "error" or len(unknown) == asked:
        raise EncoderConfigError(
            f"data.uri is {config.uri!r}: {len(unknown):,} of its {asked:,} product ids are not in the catalog (first: "
            f"{unknown[0].as_py()!r}): check data.id_field and catalog.id_field, or leave such pairs out by "
            "data.unknown_products: drop"
        )
    if validation_start is not None:
        validation_start = int(pc.sum(there.slice(0, validation_start)).as_py() or 0)
    return table.filter(there), validation_start


def _negative_rows(table: pa.Table, config: PairsConfig, known: pa.Array) -> np.ndarray:
    if config.negatives_field is None:
        return np.full((len(table), 0), -1, np.int64)
    lists = table[config.negatives_field].combine_chunks()
    lengths = pc.fill_null(pc.list_value_length(lists), 0).to_numpy().astype(np.int64)
    names = pc.list_flatten(lists).cast(pa.string())
    rows = pc.index_in(names, value_set=known)
    if rows.null_count and config.unknown_products == "error":
        first = names.filter(pc.is_null(rows))[0].as_py()
        message = f"data.negatives_field: {rows.null_count} ids are no product of the data (first: {first!r})"
        raise EncoderConfigError(message)
    padded = np.full((len(table), int(lengths.max(initial=0))), -1, np.int64)
    padded[np.arange(padded.shape[1]) < lengths[:, None]] = pc.fill_null(rows, -1).to_numpy()
    return padded


def _column(table: pa.Table, name: str) -> pa.Array:
    """A column as one array of strings."""
    return table[name].combine_chunks().cast(pa.string())


def _codes(texts: pa.Array) -> np.ndarray:
    """int64: equal for equal texts, in order of appearance; -1 where there is none."""
    return pc.fill_null(pc.dictionary_encode(texts).indices, -1).to_numpy().astype(np.int64)
