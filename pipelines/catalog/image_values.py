"""Images of products: bytes, addresses and lists of either, out of the many ways in which a column holds them.

A text is one address, a picture as base64 or a `data:` URI, a list as JSON or Python writes it, or several of these
with a separator between them (`catalog.image_separator`). What looks like none of these is an address.
"""

from __future__ import annotations

import ast
import base64
import binascii
import json
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import chain, islice
from typing import Any
from urllib.parse import unquote_to_bytes

import pyarrow as pa
import pyarrow.compute as pc

from pipelines.catalog.arrow_types import is_list, plain
from pipelines.catalog.config import NULL_VALUES, image_template_parts
from pipelines.catalog.schemas import IMAGE_KEYS
from pipelines.catalog.values import trim_unseen, without_words

# Text counts as a base64 image only if it has an image's first bytes, is long, and has no sign that base64 has not:
# no path and no URI meets all three.
_NO_PATH = r"^((?i:data:)|/9j/|_9j_|iVBORw0KGgo|R0lGOD|UklGR|Qk|SUkqA|TU0AK|AAAA[A-Za-z]GZ0eX)"
_BASE64 = re.compile(r"[A-Za-z0-9+/_\s-]{64,}={0,2}\s*")
_IMAGE_MAGIC = re.compile(
    rb"\xff\xd8\xff[\xc0-\xfe]|\x89PNG\r\n\x1a\n|GIF8[79]a|RIFF....WEBP|BM....\0\0\0\0|II\*\0|MM\0\*|\0\0\0.ftyp",
    re.DOTALL,
)
_LIST_START = r"^[\[{]"
_LISTED = re.compile(r"""\s*(?:'([^'\\]*)'|"([^"\\]*)"|None|nan)\s*,?""")
_MAX_LITERAL = 1 << 20
_URL = re.compile(r"\s*(?:[a-z][a-z0-9+.-]*:|//)", re.IGNORECASE)
_PICTURE = r"\.(?:jpe?g|jfif|png|webp|gif|avif|bmp|tiff?|svg|heic)"
_WHOLE_ADDRESS = re.compile(rf"[^?#]*{_PICTURE}\s*", re.IGNORECASE)
_NAMES_PICTURE = re.compile(rf".*{_PICTURE}(?:[?#].*)?\s*", re.IGNORECASE | re.DOTALL)

ImageRef = str | bytes
"""An image of a product: its encoded bytes, or where it stands, as the catalog has it: a path (a relative one is read
under `catalog.image_root`) or any URI."""


def image_refs(
    column: pa.Array, limit: int, *, separator: str | None = None, null_values: Sequence[str] = NULL_VALUES
) -> list[tuple[ImageRef, ...]]:
    """The images of each row (bytes, text, `struct<bytes, path>`, lists of these), at most `limit`, no empty ones."""
    return [refs[:limit] for refs in _refs(column, separator, null_values)]


def template_refs(template: str, fields: Mapping[str, pa.StringArray], rows: int) -> list[tuple[ImageRef, ...]]:
    """The address of each row's image by `catalog.image_template`; none where a field is null or not there."""
    nothing = pa.nulls(rows, pa.string())
    columns: list[pa.Array | pa.Scalar] = []
    for literal, part in image_template_parts(template):
        columns.append(pa.scalar(literal))
        if part is not None:
            values = pc.utf8_lpad(fields.get(part.name, nothing), part.width, "0")
            columns.append(pc.utf8_slice_codeunits(values, part.start, part.stop))
    return [() if ref is None else (ref,) for ref in pc.binary_join_element_wise(*columns, "").to_pylist()]


def _refs(column: pa.Array, separator: str | None, null_values: Sequence[str]) -> Sequence[tuple[ImageRef, ...]]:
    """All references of each value."""
    column = plain(column)
    if is_list(column.type):
        items = iter(_refs(column.flatten(), separator, null_values))
        lengths = pc.fill_null(pc.list_value_length(column), 0).to_pylist()
        return [tuple(chain.from_iterable(islice(items, length))) for length in lengths]
    if pa.types.is_struct(column.type):
        keys = [key for key in IMAGE_KEYS if column.type.get_field_index(key) >= 0]
        # flatten(), unlike field(), knows that a null struct has no fields.
        fields = dict(zip((field.name for field in column.type), column.flatten(), strict=True))
        by_key = [_refs(fields[key], separator, null_values) for key in keys]
        return [next(filter(None, row), ()) for row in zip(*by_key, strict=True)]
    if pa.types.is_null(column.type):
        return [()] * len(column)
    if not pa.types.is_string(column.type):
        return [(data,) if data else () for data in column.to_pylist()]
    column = without_words(trim_unseen(column), null_values)
    refs: list[tuple[ImageRef, ...]] = [(text,) if text else () for text in column.to_pylist()]
    special = pc.match_substring_regex(column, f"{_NO_PATH}|{_LIST_START}")
    if separator is not None:
        special = pc.or_(special, pc.match_substring(column, separator))
    for row in pc.indices_nonzero(pc.fill_null(special, False)).to_pylist():
        refs[row] = tuple(_refs_of_text(column[row].as_py(), separator, null_values))
    return refs


def _refs_of_text(text: str, separator: str | None, null_values: Collection[str]) -> Iterator[ImageRef]:
    listed = _listed(text)
    for item in [text] if listed is None else listed:
        for piece in _split(item, separator):
            address = piece.strip()
            if address and address not in null_values:
                yield _from_text(address)


def _listed(text: str) -> list[str] | None:
    """The texts of a list that was written as JSON, or as Python or NumPy print it; None where it is none."""
    if not (text.startswith("[") and text.endswith("]")) and not (text.startswith("{") and text.endswith("}")):
        return None
    try:
        items = list(_texts_in(json.loads(text)))
    except (ValueError, TypeError, RecursionError):
        found = _printed_list(text)
        if found is None:
            return None
        items = found
    # JSON can spell half of a surrogate pair, which no address holds.
    return items if all(_is_unicode(item) for item in items) else None


def _texts_in(value: Any) -> Iterator[str]:
    """The texts of lists and of objects as `struct<bytes, path>`; TypeError for anything else."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, list):
        for item in value:
            yield from _texts_in(item)
    elif isinstance(value, dict) and any(key in value for key in IMAGE_KEYS):
        yield from _texts_in(next((value[key] for key in IMAGE_KEYS if value.get(key)), None))
    elif value is not None:
        raise TypeError


def _printed_list(text: str) -> list[str] | None:
    items: list[str] = []
    place = 1
    while found := _LISTED.match(text, place):
        items += [item for item in found.groups() if item is not None]
        place = found.end()
    if text[0] == "[" and text[place:].strip() == "]":
        return items
    if "\\" not in text or len(text) > _MAX_LITERAL:
        return None
    try:
        value = ast.literal_eval(text)
        return list(_texts_in(value)) if isinstance(value, list) else None
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        return None


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _split(text: str, separator: str | None) -> list[str]:
    """The parts of a text between separators. One that belongs to an address separates nothing."""
    if separator is None:
        return [text]
    parts: list[str] = []
    for part in text.split(separator):
        if parts and not separator.isspace() and _goes_on(parts[-1], part):
            parts[-1] += separator + part
        else:
            parts.append(part)
    return parts


def _goes_on(before: str, part: str) -> bool:
    """Whether an address goes on behind a separator: Cloudinary's have commas, queries have semicolons."""
    if before.lstrip()[:5].lower() == "data:":
        head, comma, _ = before.partition(",")
        if not comma or head.lower().rstrip().endswith(";base64"):
            return not comma
    if not _URL.match(before) or not part or part[0].isspace() or _URL.match(part) or before[-1:].isspace():
        return False
    return not (_WHOLE_ADDRESS.fullmatch(before) and _NAMES_PICTURE.fullmatch(part))


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
