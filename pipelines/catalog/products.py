"""Rows become products: ids, texts, images and display values out of dirty columns, and a letter where that fails.

Each function works on a whole column. `B` products of a batch, `R` rows of a raw batch (R >= B: some rows become no
product).
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any
from urllib.parse import unquote_to_bytes

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import xxhash

from pipelines.catalog.config import CatalogConfig, template_parts
from pipelines.catalog.dead_letters import DeadLetter, Reason, malformed
from pipelines.catalog.reading import RawBatch
from pipelines.catalog.schemas import IMAGE_KEYS, NULL_WORDS, is_list, is_text, plain

# Space, control characters (a tab, a NUL) and Unicode's separators, as one class.
_SPACE = r"[\p{Z}\p{Cc}]+"
# What is not a single space between words. Looking for it costs a tenth of replacing, and most texts are clean.
_UNCLEAN = r"  |^ | $|[\p{Cc}\x{A0}\x{1680}\x{2000}-\x{200A}\x{2028}\x{2029}\x{202F}\x{205F}\x{3000}]"
_EXACT_FLOAT = 2**53
# Text counts as a base64 image only if it has an image's first bytes, is long, and has no sign that base64 has not:
# no path and no URI meets all three.
_NO_PATH = r"^((?i:data:)|/9j/|_9j_|iVBORw0KGgo|R0lGOD|UklGR|Qk|SUkqA|TU0AK|AAAA[A-Za-z]GZ0eX)"
_BASE64 = re.compile(r"[A-Za-z0-9+/_\s-]{64,}={0,2}\s*")
_IMAGE_MAGIC = re.compile(
    rb"\xff\xd8\xff[\xc0-\xfe]|\x89PNG\r\n\x1a\n|GIF8[79]a|RIFF....WEBP|BM....\0\0\0\0|II\*\0|MM\0\*|\0\0\0.ftyp",
    re.DOTALL,
)
_SEPARATORS = " .,;:|/-\u2013\u2014"


ImageRef = str | bytes
"""An image of a product: its encoded bytes, or where it stands, as the catalog has it: a path (a relative one is read
under `catalog.image_root`) or any URI."""


@dataclass(kw_only=True, slots=True)
class ProductBatch:
    """Products, in the order of the catalog.

    Attributes:
        product_ids: `[B]` string, trimmed, never null or empty. May still repeat: numbering drops later ones.
        texts: `[B]` string; white space collapsed; null where there is no text.
        images: For each product up to `catalog.images_per_product` images, primary first.
        columns: Display and filter fields, `B` rows, of the plan's types.
        dead_letters: One letter for each row that became no product (outcome `rejected`).
        notes: Letters of products that stay, but lost a display or filter value (outcome `degraded`).
    """

    product_ids: pa.StringArray
    texts: pa.StringArray
    images: list[tuple[ImageRef, ...]]
    columns: pa.RecordBatch
    dead_letters: list[DeadLetter]
    notes: list[DeadLetter] = field(default_factory=list)


def to_products(batch: RawBatch, config: CatalogConfig) -> ProductBatch:
    """The products of a raw batch.

    A row without an id, or with neither text nor image, becomes a dead letter. A display or filter value that is not of
    its column's type becomes null, and a note.
    """
    ids, wrong_ids = id_column(_column(batch, config.id_field, pa.string()))
    fields = {name: text_column(_column(batch, name, pa.string())) for name in config.texts}
    texts = product_texts(fields, batch.rows.num_rows, config)
    images: list[tuple[ImageRef, ...]] = [()] * batch.rows.num_rows
    if config.image_field is not None:
        images = image_refs(_column(batch, config.image_field, pa.string()), config.images_per_product)
    has_id = ids.is_valid().to_numpy(zero_copy_only=False)
    has_content = texts.is_valid().to_numpy(zero_copy_only=False) | np.fromiter(map(bool, images), bool)
    letters = list(batch.malformed)
    for row in np.flatnonzero(~(has_id & has_content)).tolist():
        where = batch.where(row)
        if row in wrong_ids:
            letters.append(malformed(where, wrong_ids[row]))
        elif not has_id[row]:
            letters.append(DeadLetter("", "rejected", "validate", Reason.missing_id, f"{where}: no id"))
        else:
            why = f"{where}: neither text nor picture"
            letters.append(DeadLetter(ids[row].as_py(), "rejected", "validate", Reason.empty_product, why))
    usable = np.flatnonzero(has_id & has_content)
    ids = ids.take(pa.array(usable))
    columns, notes = _carried_columns(batch, usable, ids, config)
    return ProductBatch(
        product_ids=ids,
        texts=texts.take(pa.array(usable)),
        images=[images[row] for row in usable],
        columns=columns,
        dead_letters=letters,
        notes=notes,
    )


def _carried_columns(
    batch: RawBatch, rows: np.ndarray, ids: pa.StringArray, config: CatalogConfig
) -> tuple[pa.RecordBatch, list[DeadLetter]]:
    """Display and filter columns of the products, in the types of the plan, and letters of values that were lost."""
    fields = [batch.schema.field(name) for name in config.carried_fields]
    columns = []
    notes: list[DeadLetter] = []
    for carried in fields:
        values = _column(batch, carried.name, carried.type).take(pa.array(rows, pa.int64()))
        column, lost = conform(values, carried.type)
        columns.append(column)
        for row, why in lost.items():
            detail = f"{batch.where(int(rows[row]))}: {carried.name}: {why}"
            notes.append(DeadLetter(ids[row].as_py(), "degraded", "validate", Reason.field_type_mismatch, detail))
    if not fields:
        # A record batch without columns cannot say how many rows it has, unless it is made of a struct.
        return pa.RecordBatch.from_struct_array(pa.array([{}] * len(rows), pa.struct([]))), notes
    return pa.RecordBatch.from_arrays(columns, schema=pa.schema(fields)), notes


def _column(batch: RawBatch, name: str, data_type: pa.DataType) -> pa.Array:
    """A column; nulls where this file does not have it."""
    if name in batch.rows.schema.names:
        return batch.rows.column(name)
    return pa.nulls(batch.rows.num_rows, data_type)


def clean_text(column: pa.Array) -> pa.StringArray:
    """A text column with runs of white space as one space, none at the ends, and null where nothing is left."""
    unclean = pc.fill_null(pc.match_substring_regex(column, _UNCLEAN), False)
    if pc.any(unclean).as_py():
        collapsed = pc.utf8_trim(pc.replace_substring_regex(column.filter(unclean), _SPACE, " "), " ")
        column = pc.replace_with_mask(column, unclean, collapsed)
    return _without_empty(column)


def _without_empty(texts: pa.StringArray) -> pa.StringArray:
    empty = pc.equal(pc.binary_length(texts), 0)
    if not pc.any(empty).as_py():
        return texts
    return pc.if_else(empty, pa.scalar(None, pa.string()), texts)


def text_column(column: pa.Array) -> pa.StringArray:
    """A column of a text field as clean text: numbers in decimal, the items of a list joined by a space."""
    column = plain(column)
    if is_list(column.type):
        items = plain(column.flatten())
        # flatten() drops what null lists point at, so the offsets are made anew from the lengths.
        lengths = pc.fill_null(pc.list_value_length(column), 0).to_numpy(zero_copy_only=False)
        offsets = pa.array(np.concatenate([[0], np.cumsum(lengths)]), pa.int32())
        texts = pc.fill_null(items.cast(pa.string()), "")
        return clean_text(pc.binary_join(pa.ListArray.from_arrays(offsets, texts), " "))
    return clean_text(column.cast(pa.string()))


def id_column(column: pa.Array) -> tuple[pa.StringArray, dict[int, str]]:
    """The ids as trimmed text; null where there is none. Whole numbers become decimal text, `12.0` among them.

    Returns:
        `[R]` ids, and for rows whose id is no id (12.5, a number too large to be exact) what is wrong with it.
    """
    column = plain(column)
    wrong: dict[int, str] = {}
    if pa.types.is_floating(column.type):
        numbers = column.cast(pa.float64()).to_numpy(zero_copy_only=False)
        given = np.isfinite(numbers) | np.isinf(numbers)
        with np.errstate(invalid="ignore"):
            whole = given & (np.abs(numbers) < _EXACT_FLOAT) & (np.floor(numbers) == numbers)
        for row in np.flatnonzero(given & ~whole).tolist():
            wrong[row] = f"expected text or a whole number as id, found {numbers[row]}"
        column = pa.array(np.where(whole, numbers, 0).astype(np.int64), mask=~whole)
    return _without_empty(pc.utf8_trim_whitespace(column.cast(pa.string()))), wrong


def conform(column: pa.Array, data_type: pa.DataType) -> tuple[pa.Array, dict[int, str]]:
    """A display or filter column in the type that holds for the whole catalog.

    Text becomes a number, a date, true or false where it spells one; the empty text and the usual words for none become
    null in any column but one of text.

    Returns:
        `[R]` values, null where they do not fit, and for those rows what was found.
    """
    column = plain(column)
    if column.type.equals(data_type):
        return column, {}
    if is_text(column.type) and not is_text(data_type):
        column = pc.utf8_trim_whitespace(column.cast(pa.string()))
        nothing = pc.or_(pc.equal(column, ""), pc.is_in(column, value_set=pa.array(NULL_WORDS)))
        column = pc.if_else(nothing, pa.scalar(None, pa.string()), column)
    try:
        return column.cast(data_type), {}
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        return _conform_each(column, data_type)


def _conform_each(column: pa.Array, data_type: pa.DataType) -> tuple[pa.Array, dict[int, str]]:
    """Value by value, each distinct one once. Lists and objects that their reader kept as JSON text are parsed."""

    def convert(value: pa.Scalar) -> Any:
        try:
            if pa.types.is_nested(data_type):
                return pa.scalar(json.loads(value.as_py()), data_type).as_py()
            return value.cast(data_type).as_py()
        except (ValueError, TypeError, pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError):
            return None

    try:
        encoded = column.dictionary_encode()
    except pa.ArrowNotImplementedError:
        given = np.flatnonzero(column.is_valid()).tolist()
        return pa.nulls(len(column), data_type), dict.fromkeys(given, f"expected {data_type}, found {column.type}")
    result = pa.array(map(convert, encoded.dictionary), data_type).take(encoded.indices)
    lost = np.flatnonzero(pc.and_not(column.is_valid(), result.is_valid()))
    return result, {int(row): f"expected {data_type}, found {column[int(row)].as_py()!r}" for row in lost}


def image_refs(column: pa.Array, limit: int) -> list[tuple[ImageRef, ...]]:
    """The images of each row (bytes, text, `struct<bytes, path>`, lists of these), at most `limit`, no empty ones."""
    column = plain(column)
    if not is_list(column.type):
        return [() if ref is None else (ref,) for ref in _refs(column)]
    items = iter(_refs(column.flatten()))
    lengths = pc.fill_null(pc.list_value_length(column), 0).to_pylist()
    given = ([ref for ref in islice(items, length) if ref is not None] for length in lengths)
    return [tuple(refs[:limit]) for refs in given]


def _refs(column: pa.Array) -> Sequence[ImageRef | None]:
    """One reference a value."""
    column = plain(column)
    if pa.types.is_struct(column.type):
        keys = [key for key in IMAGE_KEYS if column.type.get_field_index(key) >= 0]
        # flatten(), unlike field(), knows that a null struct has no fields.
        fields = dict(zip((field.name for field in column.type), column.flatten(), strict=True))
        by_key = [_refs(fields[key]) for key in keys]
        return [next((ref for ref in row if ref is not None), None) for row in zip(*by_key, strict=True)]
    if pa.types.is_null(column.type):
        return [None] * len(column)
    if not pa.types.is_string(column.type):
        return [data or None for data in column.to_pylist()]
    column = pc.utf8_trim_whitespace(column)
    refs: list[ImageRef | None] = [text or None for text in column.to_pylist()]
    for row in pc.indices_nonzero(pc.fill_null(pc.match_substring_regex(column, _NO_PATH), False)).to_pylist():
        refs[row] = _from_text(str(refs[row]))
    return refs


def _from_text(text: str) -> ImageRef:
    """A text that looks like the image itself, as its bytes if it is."""
    if text[:5].lower() == "data:":
        return _from_data_uri(text)
    data = _from_base64(text) if _BASE64.fullmatch(text) else None
    return text if data is None or not _IMAGE_MAGIC.match(data) else data


def _from_data_uri(text: str) -> bytes:
    """The content of a `data:` URI (RFC 2397); a broken one gives its own text, which the decoder then refuses."""
    head, _, body = text.partition(",")
    if not head.lower().endswith(";base64"):
        return unquote_to_bytes(body)
    decoded = _from_base64(body)
    return text.encode() if decoded is None else decoded


def _from_base64(text: str) -> bytes | None:
    """Decodes plain or URL-safe base64, with or without its padding and line breaks; None where it is neither."""
    compact = "".join(text.split()).rstrip("=").replace("-", "+").replace("_", "/")
    try:
        return base64.b64decode(compact + "=" * (-len(compact) % 4), validate=True)
    except binascii.Error:
        return None


def product_texts(fields: Mapping[str, pa.StringArray], rows: int, config: CatalogConfig) -> pa.StringArray:
    """The text of each product, by `catalog.text_template`, or the fields joined by a space.

    Args:
        fields: Clean text columns, `[R]` each, null where a product has none; a field that is absent counts as null.
        rows: R.

    Returns:
        `[R]`, null where no field has text.
    """
    nothing = pa.nulls(rows, pa.string())
    if config.text_template is not None:
        return _fill(template_parts(config.text_template), fields, nothing)
    columns = [fields.get(name, nothing) for name in config.text_fields]
    if not columns:
        return nothing
    texts = _joined(columns, " ")
    # Only an empty field leaves a space too many between clean ones.
    return clean_text(texts) if any(column.null_count for column in columns) else texts


def _fill(
    parts: Sequence[tuple[str, str | None]], fields: Mapping[str, pa.StringArray], nothing: pa.StringArray
) -> pa.StringArray:
    """Fills a template. The words before a field leave with it; those at the end belong to the last field.

    Where the first fields are missing, the separators that would then open the text leave too.
    """
    filled: list[pa.Array] = []
    values, seen = nothing, nothing.is_valid()
    for literal, name in parts:
        if name is None:
            filled.append(pc.if_else(values.is_valid(), pa.scalar(literal), pa.scalar(None, pa.string())))
            break
        values = fields.get(name, nothing)
        before = pc.if_else(seen, literal, literal.lstrip(_SEPARATORS) if filled else literal)
        filled.append(pc.binary_join_element_wise(before, values, ""))
        seen = pc.or_(seen, values.is_valid())
    return clean_text(pc.if_else(seen, _joined(filled, ""), pa.scalar(None, pa.string())))


def _joined(columns: Sequence[pa.Array], separator: str) -> pa.StringArray:
    # Not null_handling="skip": pyarrow 25 then leaves out the rows in which all are null.
    return pc.binary_join_element_wise(*columns, separator, null_handling="replace", null_replacement="")


def id_digests(product_ids: Sequence[str]) -> np.ndarray:
    """xxh3-128 of each product id, uint8 `[B, 16]`: the key under which duplicates are found."""
    joined = b"".join([xxhash.xxh3_128_digest(product_id.encode()) for product_id in product_ids])
    return np.frombuffer(joined, np.uint8).reshape(-1, 16)
