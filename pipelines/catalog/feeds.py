"""XML: each element of one name becomes an object, as Google Merchant's RSS and Atom feeds have them, and any other.

    <item id="7">                                   {"@id": "7",
      <g:id>A1</g:id>                                "g:id": "A1",
      <title lang="en">Cup</title>                   "title": "Cup", "title@lang": "en",
      <g:image>a.jpg</g:image>                       "g:image": ["a.jpg", "b.jpg"],
      <g:image>b.jpg</g:image>
      <g:shipping><g:price>5</g:price></g:shipping>  "g:shipping": {"g:price": "5"}}
    </item>

A name keeps its prefix (Google's is always `g:`), but for that of the default namespace. An element that is repeated in
one product is a list in all of them, and one with elements in it an object in all: that is known only at the end, so
what the first megabyte does not show makes the file be read a second time. Markup in a text (`<p>`) stays text.

Nothing outside the file is ever opened, and entities that multiply are refused (by libxml2's own limits).
"""

from __future__ import annotations

import codecs
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from html.entities import html5
from typing import Any

from lxml import etree

from pipelines.catalog.config import CatalogError, nearest

HEAD_BYTES = 1 << 20  # in which the element that repeats is looked for

_GOOGLE = "http://base.google.com/ns/1.0"
_USUAL_NAMES = ("item", "entry", "product", "offer", "article", "listing", "record", "row", "shopitem")
_HTML = re.compile(
    "a|abbr|b|big|blockquote|br|center|code|d[dlt]|div|em|font|h[1-6]|hr|i|img|li|[ou]l|p|pre|s|small|span|strong|strike|"
    "su[bp]|table|tbody|t[dhrt]|thead|u",
    re.IGNORECASE,
)
_XML_ENTITIES = ("amp", "lt", "gt", "quot", "apos")
_ENTITY = re.compile(rb"&([A-Za-z][A-Za-z0-9]{1,31});")
_OPEN_CDATA, _CLOSE_CDATA = b"<![CDATA[", b"]]>"
_LONGEST_MARK = 40
_DECLARATION = re.compile(r' xmlns(:\w+)?="[^"]*"')


@dataclass(slots=True)
class _Shape:
    """What an element is called, and what all elements at its place are; the elements in it by tag and prefix."""

    name: str = ""
    is_list: bool = False
    is_object: bool = False
    inner: dict[tuple[str, str | None], _Shape] = field(default_factory=dict)


class Feed:
    """The products of one XML file.

    Args:
        chunks: Gives the bytes of the file, each time from the start.
        name: What it is called, for messages.
        encoding: As `catalog.encoding`; `auto` is what XML itself says.
        records: As `catalog.records`.
        max_record_bytes: A product of more bytes is refused.

    Attributes:
        has_new_shapes: Whether the last reading met elements that earlier products would have had in another way: then
            it is to be read again.

    Raises:
        CatalogError: it is no XML, or has no element that repeats.
    """

    def __init__(
        self,
        chunks: Callable[[], Iterable[bytes]],
        name: str,
        *,
        encoding: str,
        records: str | None,
        max_record_bytes: int,
    ) -> None:
        self._chunks, self._name, self._max_record = chunks, name, max_record_bytes
        self._encoding = None if encoding == "auto" else codecs.lookup(encoding).name
        self.has_new_shapes = False
        self._shape = _Shape()
        self._look_at_head(records)

    def __iter__(self) -> Iterator[bytes]:
        """Each product as a line of JSON; CatalogError where the file is damaged or cut off."""
        self.has_new_shapes = False
        count = 0
        for element in self._elements():
            count += 1
            yield json.dumps(self._object(element, self._shape), ensure_ascii=False).encode()
        if not count:
            raise CatalogError(
                f"catalog.records: expected the name of an element, found {self._record!r}, which {self._name} does "
                f"not have. {nearest(self._record, self._seen)}"
            )

    def _look_at_head(self, records: str | None) -> None:
        """Decides which element is a product, and what shape the first ones have."""
        parser = self._parser(events=("start", "end"))
        root, depth, path = None, 0, [""]
        found: Counter[tuple[int, str]] = Counter()  # with elements or attributes, by depth and name
        fields: Counter[tuple[int, str]] = Counter()
        seen: dict[str, None] = {}
        size = 0
        for chunk in self._fed(parser):
            for event, element in parser.read_events():
                if event == "start":
                    root = element if root is None else root
                    path.append(_local(element))
                    seen[path[-1]] = None
                    depth += 1
                    continue
                depth -= 1
                path.pop()
                if len(element) or element.attrib:
                    found[depth, _local(element)] += 1
                    fields[depth, _local(element)] += len(element)
            size += len(chunk)
            if size >= HEAD_BYTES:
                break
        if root is None:
            raise CatalogError(f"{self._name}: expected XML, found no element")
        self._root, self._seen = root.tag, seen
        self._record = _repeated(found, fields) if records is None else records.rpartition(":")[2]
        if not self._record:
            raise CatalogError(
                f"{self._name}: expected an element for each product, found none that repeats; name it in "
                f"catalog.records. {nearest('product', seen)}"
            )
        for element in root.iter("{*}" + self._record):
            self._object(element, self._shape)

    def _elements(self) -> Iterator[etree._Element]:
        """Each product's element; what lies before it in the file is let go."""
        parser = self._parser(events=("start", "end"), tag=("{*}" + self._record, self._root))
        root, tag, since = None, "{*}" + self._record, 0
        for chunk in self._fed(parser):
            since += len(chunk)
            for event, element in parser.read_events():
                root = element if root is None else root
                if (
                    event == "end"
                    and _local(element) == self._record
                    and next(element.iterancestors(tag), None) is None
                ):
                    since = 0
                    yield element
                    element.clear()
            last = root
            while last is not None and len(last):
                del last[:-1]
                last = last[-1]
                if isinstance(last.tag, str) and _local(last) == self._record:
                    break
            if since > self._max_record:
                raise CatalogError(
                    f"{self._name}: expected elements {self._record!r} of a size that fits memory, found none that "
                    f"ends within {since:,} bytes; is catalog.records the element of one product?"
                )

    def _parser(self, **options: Any) -> etree.XMLPullParser:
        return etree.XMLPullParser(
            # Entities of the file itself are replaced; libxml2 bounds their size. Nothing else is ever loaded.
            resolve_entities="internal",
            no_network=True,
            load_dtd=False,
            huge_tree=False,
            remove_comments=True,
            remove_pis=True,
            encoding=None if self._encoding is None else "utf-8",
            **options,
        )

    def _fed(self, parser: etree.XMLPullParser) -> Iterator[bytes]:
        """Each chunk once the parser has it, and an empty one once it knows that this is the end."""
        # As XML declares it, or in UTF-8 where the config says what it is.
        decoder = None if self._encoding is None else codecs.getincrementaldecoder(self._encoding)()
        entities = _Entities()
        try:
            for chunk in self._chunks():
                chunk = chunk if decoder is None else decoder.decode(chunk).encode()
                if text := entities.numbered(chunk):
                    parser.feed(text)
                yield chunk
            if text := entities.numbered(b"", is_last=True):
                parser.feed(text)
            parser.close()
        except etree.XMLSyntaxError as error:
            found = " ".join(error.msg.split())
            raise CatalogError(f"{self._name}: expected a whole XML file, found: {found}") from error
        yield b""

    def _object(self, element: etree._Element, shape: _Shape) -> dict[str, Any]:
        """The attributes, the elements and the text of an element."""
        values: dict[str, Any] = {f"@{_shown(name, element)}": value for name, value in element.items()}
        for child in element:
            key = child.tag, child.prefix
            inner = shape.inner.get(key)
            if inner is None:
                shown = _shown(child.tag, child)
                same = (each for each in shape.inner.values() if each.name == shown)
                inner = shape.inner[key] = next(same, None) or _Shape(shown)
            name = inner.name
            count = 0
            if name in values and not inner.is_list:
                inner.is_list = self.has_new_shapes = True
                values[name] = [values[name]]
            if len(child) and not inner.is_object and not _is_markup(child):
                inner.is_object = self.has_new_shapes = True
            value = (self._object(child, inner) or None) if inner.is_object else _text(child)
            if inner.is_list:
                column = values.setdefault(name, [])
                count = len(column)
                column.append(value)
            else:
                values[name] = value
            for attribute, given in child.items() if not inner.is_object else ():
                column_name = f"{name}@{_shown(attribute, child)}"
                if inner.is_list:
                    before = values.get(column_name) or []
                    before = before if isinstance(before, list) else [before]
                    values[column_name] = before + [None] * (count - len(before)) + [given]
                else:
                    values[column_name] = given
        if shape is not self._shape and (text := _text(element) if not len(element) or _is_markup(element) else None):
            values["#text"] = text
        return values


class _Entities:
    """HTML's entities (`&nbsp;`), which XML does not know and shops write, as numbers; but for those in CDATA."""

    def __init__(self) -> None:
        self._held, self._in_cdata, self._declares = b"", False, False

    def numbered(self, chunk: bytes, is_last: bool = False) -> bytes:
        """As much of the text as can be told, the rest the next time."""
        data = self._held + chunk
        end = len(data)
        if not is_last:
            # Where an entity, or a mark of CDATA, may be cut in two.
            start = max(0, end - _LONGEST_MARK)
            end = min((at for sign in (b"&", b"<", b"]") if (at := data.find(sign, start)) >= 0), default=end)
            end = len(data[:end].rstrip(b"]"))
        self._held, data = data[end:], data[:end]
        self._declares = self._declares or b"<!ENTITY" in data  # its own may have HTML's names
        if self._declares or b"&" not in data:
            # Which part of it is CDATA counts all the same.
            marks = max(data.rfind(_OPEN_CDATA), data.rfind(_CLOSE_CDATA))
            self._in_cdata = self._in_cdata if marks < 0 else data.startswith(_OPEN_CDATA, marks)
            return data
        parts, at = [], 0
        while at < len(data):
            mark = _CLOSE_CDATA if self._in_cdata else _OPEN_CDATA
            stop = data.find(mark, at)
            stop = len(data) if stop < 0 else stop + len(mark)
            part = data[at:stop]
            parts.append(part if self._in_cdata else _ENTITY.sub(_number, part))
            self._in_cdata ^= part.endswith(mark)
            at = stop
        return b"".join(parts)


def _number(entity: re.Match[bytes]) -> bytes:
    name = entity[1].decode()
    if name in _XML_ENTITIES or f"{name};" not in html5:
        return entity[0]
    return "".join(f"&#{ord(sign)};" for sign in html5[f"{name};"]).encode()


def _repeated(found: Counter[tuple[int, str]], fields: Counter[tuple[int, str]]) -> str:
    """The name of the element that is a product; "" where none can be."""
    inner = [(depth, name) for depth, name in found if depth] or list(found)

    def rank(key: tuple[int, str]) -> tuple[bool, bool, int, int]:
        depth, name = key
        return name.lower() in _USUAL_NAMES, found[key] > 1, -depth, found[key]

    likely = [key for key in inner if rank(key)[0] or found[key] > 1 or fields[key] > 1]
    return max(likely, key=rank)[1] if likely else ""


def _shown(tag: str, element: etree._Element) -> str:
    """The name of an element, or of an attribute of it, as columns are called."""
    namespace, _, name = tag.rpartition("}")
    if not namespace:
        return name
    if namespace[1:] == _GOOGLE:
        return f"g:{name}"
    if tag is element.tag or tag == element.tag:
        prefix = element.prefix
    else:
        prefix = {
            "http://www.w3.org/XML/1998/namespace": "xml",
            **{uri: key for key, uri in element.nsmap.items()},
        }.get(namespace[1:])
    return f"{prefix}:{name}" if prefix else name


def _local(element: etree._Element) -> str:
    return element.tag.rpartition("}")[2]


def _is_markup(element: etree._Element) -> bool:
    """Whether the elements in an element are marks in a text."""
    if not len(element):
        return False
    children = list(element.iterchildren(etree.Element))
    return all(_HTML.fullmatch(_local(child)) for child in children) or any(
        text and not text.isspace() for text in (element.text, *(child.tail for child in children))
    )


def _text(element: etree._Element) -> str | None:
    """The text of an element, with the marks in it; None where there is none."""
    text = element.text or ""
    if len(element):
        text += "".join(etree.tostring(child, encoding="unicode") for child in element)
        text = _DECLARATION.sub("", text)
    return text.strip() or None
