"""Training pairs: from Parquet to batches of tokens and pixels.

Legend: B pairs of a batch, P products of the batch (those of the pairs, and the seen negatives), L tokens, S side of a
picture in pixels.

Pictures stay encoded in memory and are decoded batch by batch; a product without text or picture, or with a picture
that cannot be decoded, trains what stands for the missing half.
"""

from __future__ import annotations

import io
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from PIL import Image, UnidentifiedImageError
from torch.utils.data import BatchSampler, DataLoader, Dataset, Sampler, SequentialSampler

from encoders.errors import CheckpointError, EncoderConfigError
from encoders.preprocessing import ImagePreprocessing, resize_picture
from encoders.saved_folder import EncoderParts
from encoders.tokenizing import TextTokenizer
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


@dataclass(frozen=True, kw_only=True, slots=True)
class PairBatch:
    """One step's inputs; tokens are (ids int64 `[., L]`, mask bool `[., L]`), None where the model has no such tower.

    Attributes:
        query_tokens: Of B queries, for the BERT tower.
        query_clip_tokens: Of B queries, for CLIP's text tower.
        text_tokens: Of P product texts.
        has_text: bool `[P]`.
        pixels: uint8 `[P, 3, S, S]`, zeros where missing; None for a model without pictures.
        has_image: bool `[P]`.
        query_keys: int64 `[B]`; equal for equal query texts.
        positives: int64 `[B]`: row, among the P, of each pair's product.
    """

    query_tokens: tuple[torch.Tensor, torch.Tensor] | None
    query_clip_tokens: tuple[torch.Tensor, torch.Tensor] | None
    text_tokens: tuple[torch.Tensor, torch.Tensor]
    has_text: torch.Tensor
    pixels: torch.Tensor | None
    has_image: torch.Tensor
    query_keys: torch.Tensor
    positives: torch.Tensor

    def to(self, device: torch.device, non_blocking: bool = False) -> PairBatch:
        """The batch on another device; Lightning calls this."""

        def move(value: Any) -> Any:
            if isinstance(value, tuple):
                return tuple(move(item) for item in value)
            return value.to(device, non_blocking=non_blocking) if isinstance(value, torch.Tensor) else value

        return PairBatch(**{item.name: move(getattr(self, item.name)) for item in fields(self)})


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


class PairDataset(Dataset):
    """Batches of pairs, made from lists of rows."""

    def __init__(self, pairs: TrainingPairs, rows: np.ndarray, parts: EncoderParts) -> None:
        architecture = parts.model.architecture
        self._pairs, self._rows = pairs, rows
        self._tokenizer, self._clip_tokenizer = parts.tokenizer, parts.clip_tokenizer
        document_tokenizer: TextTokenizer | None = parts.tokenizer or parts.clip_tokenizer
        if document_tokenizer is None:
            raise EncoderConfigError(
                f"an encoder of model {architecture.model!r} without a tokenizer cannot be trained"
            )
        self._document_tokenizer = document_tokenizer
        self._preprocessing = architecture.clip.preprocessing if architecture.clip else None

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, places: Sequence[int]) -> PairBatch:
        """Makes the batch of these places."""
        pairs, rows = self._pairs, self._rows[np.asarray(places)]
        queries = [pairs.queries[row] for row in rows]
        negatives = pairs.negative_rows[rows].reshape(-1)
        own = pairs.product_rows[rows]
        products = np.unique(np.concatenate([own, negatives[negatives >= 0]]))
        texts = [pairs.texts[row] for row in products]
        pixels, has_image = self._pixels(products)
        return PairBatch(
            query_tokens=_tokens(self._tokenizer, queries) if self._tokenizer else None,
            query_clip_tokens=_tokens(self._clip_tokenizer, queries) if self._clip_tokenizer else None,
            text_tokens=_tokens(self._document_tokenizer, [text or "" for text in texts]),
            has_text=torch.tensor([text is not None for text in texts]),
            pixels=pixels,
            has_image=has_image,
            query_keys=torch.from_numpy(pairs.query_keys[rows]),
            positives=torch.from_numpy(np.searchsorted(products, own)),
        )

    @property
    def product_rows(self) -> np.ndarray:
        """int64: the product of each pair of the dataset."""
        return self._pairs.product_rows[self._rows]

    def _pixels(self, products: np.ndarray) -> tuple[torch.Tensor | None, torch.Tensor]:
        if self._preprocessing is None:
            return None, torch.zeros(len(products), dtype=torch.bool)
        size = self._preprocessing.size
        pixels = np.zeros((len(products), 3, size, size), np.uint8)
        has_image = np.zeros(len(products), bool)
        for place, data in enumerate(self._pairs.pictures.take(pa.array(products)).to_pylist()):
            picture = _decode(data, self._preprocessing) if data else None
            if picture is not None:
                pixels[place], has_image[place] = picture, True
        return torch.from_numpy(pixels), torch.from_numpy(has_image)


class ProductOrder(Sampler[list[int]]):
    """Batches of pairs in an order drawn anew each epoch, the pairs of a product next to each other.

    A batch holds each of its products once, so pairs that share one save a pass through the towers; the products, and
    with them the negatives, are drawn at random.

    Args:
        product_rows: int64: the product of each pair.
        batch_size: Pairs of a batch. The last pairs of an epoch that fill no batch are left out: a short batch has few
            negatives, and so another loss than the rest.
        seed: Of the orders.
    """

    def __init__(self, product_rows: np.ndarray, *, batch_size: int, seed: int) -> None:
        self._product_rows = product_rows
        self._batch_size = min(batch_size, len(product_rows))
        self._generator = np.random.default_rng(seed)

    def __len__(self) -> int:
        return len(self._product_rows) // self._batch_size

    def __iter__(self) -> Iterator[list[int]]:
        rank = self._generator.permutation(int(self._product_rows.max()) + 1)
        order = np.argsort(rank[self._product_rows], kind="stable")
        for batch in range(len(self)):
            yield order[batch * self._batch_size : (batch + 1) * self._batch_size].tolist()


def batches(dataset: PairDataset, *, batch_size: int, shuffle_seed: int | None, workers: int) -> DataLoader:
    """Loads a dataset batch by batch, in orders drawn from the seed (None: as they stand, the last batch short)."""
    if shuffle_seed is None:
        sampler: Sampler = BatchSampler(SequentialSampler(dataset), batch_size, drop_last=False)
    else:
        sampler = ProductOrder(dataset.product_rows, batch_size=batch_size, seed=shuffle_seed)
    return DataLoader(
        dataset,
        sampler=sampler,
        batch_size=None,
        num_workers=workers,
        persistent_workers=workers > 0,
        multiprocessing_context="spawn" if workers else None,
    )


def _tokens(tokenizer: TextTokenizer, texts: Sequence[str]) -> tuple[torch.Tensor, torch.Tensor]:
    ids, mask = tokenizer.tokenize(texts).padded()
    return torch.from_numpy(ids), torch.from_numpy(mask)


def _decode(data: bytes, preprocessing: ImagePreprocessing) -> np.ndarray | None:
    try:
        with Image.open(io.BytesIO(data)) as image:
            return resize_picture(image.convert("RGB"), preprocessing)
    except (UnidentifiedImageError, OSError, ValueError, Image.DecompressionBombError):
        return None  # trains the missing picture's vector, as at serving time


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
