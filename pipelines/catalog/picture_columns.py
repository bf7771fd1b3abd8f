"""The pictures that a column holds, whatever way it holds them."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal
from urllib.parse import unquote_to_bytes

import pyarrow as pa
import pyarrow.compute as pc

from pipelines.catalog.schemas import PICTURE_KEYS, is_list
from pipelines.catalog.validation import plain

# Text counts as a base64 picture only if it has a picture's first bytes, is long, and has no sign that base64 has not:
# no path and no URI meets all three.
_BASE64_STARTS = ("/9j/", "_9j_", "iVBORw0KGgo", "R0lGOD", "UklGR", "Qk", "SUkqA", "TU0AK")
_BASE64 = re.compile(r"[A-Za-z0-9+/_\s-]{64,}={0,2}\s*")
_PICTURE_MAGIC = re.compile(
    rb"\xff\xd8\xff[\xc0-\xfe]|\x89PNG\r\n\x1a\n|GIF8[79]a|RIFF....WEBP|BM....\0\0\0\0|II\*\0|MM\0\*", re.DOTALL
)


@dataclass(frozen=True, kw_only=True, slots=True)
class PictureRef:
    """A picture that is either here already or stands somewhere.

    Attributes:
        kind: `bytes` (encoded picture in `data`) or `uri` (path or URI in `uri`, as the catalog has it).
        data: The encoded picture.
        uri: A relative path (to be read under `catalog.image_root`), an absolute path, or any URI.
    """

    kind: Literal["bytes", "uri"]
    data: bytes | None = None
    uri: str | None = None


def picture_refs(column: pa.Array, limit: int) -> list[tuple[PictureRef, ...]]:
    """The pictures of each row, in the order given, at most `limit`; empty values do not count.

    Args:
        column: Binary, text, `struct<bytes, path>`, or lists of these.
        limit: Pictures a row.
    """
    column = plain(column)
    if not is_list(column.type):
        return [() if ref is None else (ref,) for ref in _refs(column)]
    items = _refs(column.flatten())
    lengths = pc.fill_null(pc.list_value_length(column), 0).to_pylist()
    refs: list[tuple[PictureRef, ...]] = []
    start = 0
    for length in lengths:
        given = [ref for ref in items[start : start + length] if ref is not None]
        refs.append(tuple(given[:limit]))
        start += length
    return refs


def _refs(column: pa.Array) -> Sequence[PictureRef | None]:
    """One reference a value."""
    column = plain(column)
    if pa.types.is_struct(column.type):
        keys = [key for key in PICTURE_KEYS if column.type.get_field_index(key) >= 0]
        # flatten(), unlike field(), knows that a null struct has no fields.
        parts = dict(zip((field.name for field in column.type), column.flatten(), strict=True))
        by_key = [_refs(parts[key]) for key in keys]
        return [next((ref for ref in row if ref is not None), None) for row in zip(*by_key, strict=True)]
    if pa.types.is_null(column.type):
        return [None] * len(column)
    if pa.types.is_string(column.type):
        return [_from_text(text) for text in pc.utf8_trim_whitespace(column).to_pylist()]
    return [PictureRef(kind="bytes", data=data) if data else None for data in column.to_pylist()]


def _from_text(text: str | None) -> PictureRef | None:
    if not text:
        return None
    if text[:5].lower() == "data:":
        return PictureRef(kind="bytes", data=_from_data_uri(text))
    if text.startswith(_BASE64_STARTS) and _BASE64.fullmatch(text):
        data = _from_base64(text)
        if data is not None and _PICTURE_MAGIC.match(data):
            return PictureRef(kind="bytes", data=data)
    return PictureRef(kind="uri", uri=text)


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
