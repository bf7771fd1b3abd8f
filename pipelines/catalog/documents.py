"""JSON documents: products in a list, somewhere in one value or in several one after another, read piece by piece.

The standard library's scanner finds where each product ends, and its text goes on as it stands, as a line of JSON: ids
of any length, names given twice and bytes that are no UTF-8 come to the reader of JSON Lines. (ijson's events would
make them again as Python has them, at a third of the speed.) Memory holds one product and one chunk of the file.
"""

from __future__ import annotations

import codecs
import contextlib
import json
import re
from collections.abc import Collection, Iterable, Iterator
from typing import Any

from pipelines.catalog.config import CatalogError, nearest
from pipelines.catalog.json_lines import kind_of
from pipelines.catalog.text_encoding import MARKS

# Not strict: a bare tab in a value makes that product a bad one, not the document. What numbers are does not matter.
_scan = json.JSONDecoder(parse_int=float, strict=False).scan_once  # type: ignore[attr-defined]
_BLANK = re.compile(r"[ \t\r\n]*")
_BREAK = re.compile(r"[\r\n]")
_ID_NAMES = ("id", "_id", "product_id", "sku", "asin", "parent_asin")
_LINES_LOOKED_AT = 100
_LONGEST_SIGN = len(r"\ud83d\ude00")  # what is told as a whole, beside texts and numbers
_MAX_LEVELS = 8  # of objects inside one another, among which the list of products is looked for
_DECISIVE_LENGTH = 1000  # no product has a list of so many objects


def is_document(head: bytes, is_whole: bool, *, encoding: str, id_names: Collection[str]) -> bool | None:
    """Whether a JSON file is a document, not JSON Lines, by its first bytes; None where these are too few to tell.

    A line that is an object makes JSON Lines; but a file of one line that is no product, and has a list of objects in
    it, is a document.
    """
    text = "".join(decoded([head], encoding)).lstrip()
    if not text.startswith(("{", "[")):
        return False
    lines = [line for line in text.split("\n", _LINES_LOOKED_AT) if line.strip()]
    if not is_whole:
        if len(lines) < 2:
            return None
        lines.pop()
    if text.startswith("["):
        return len(lines) < 2 or not (_is_json(lines[0], list) and _is_json(lines[1], dict))
    if len(lines) == 1:
        try:
            _, end = _scan(text, 0)
        except (StopIteration, ValueError, RecursionError):
            end = 0
        return bool(text[end:].strip() and end) or _survey(_Text([text], "", len(text)), id_names) != ()
    if _is_json(lines[0], dict) or (lines[1].startswith("{") and not lines[0].rstrip().endswith("[")):
        return False
    return 2 * sum(_is_json(line, dict) for line in lines) < len(lines)


def iter_documents(
    chunks: Iterable[bytes],
    again: Iterable[bytes],
    name: str,
    *,
    encoding: str,
    records: str | None,
    id_names: Collection[str],
    max_record_bytes: int,
) -> Iterator[bytes | str]:
    """Each product as a line of JSON, or why the element is none.

    Args:
        chunks: The file.
        again: The file once more, to look where its products are; not read where `records` says it.
        name: What it is called, for messages.
        encoding: As `catalog.encoding`; a byte order mark counts more.
        records: As `catalog.records`.
        id_names: What ids may be called: an object that has one of these is a product itself.
        max_record_bytes: A larger product is refused.

    Raises:
        CatalogError: the document is damaged, cut off, or does not have what `catalog.records` names.
    """
    if records is not None:
        steps = tuple(records.split("."))
    else:
        # What is no longer than a product may be one itself; so much is looked at, and no more.
        first = _limited(decoded(again, encoding), max_record_bytes)
        steps = _survey(_Text(first, name, max_record_bytes), id_names)
    text = _Text(decoded(chunks, encoding), name, max_record_bytes)
    try:
        while text.peek():
            yield from _records(text, steps)
    except RecursionError:
        raise text.damaged("fewer lists and objects inside one another", text.at) from None


def decoded(chunks: Iterable[bytes], encoding: str) -> Iterator[str]:
    """The text of a file in chunks, by its byte order mark, else UTF-8; a byte that is none becomes a surrogate."""
    decoder = None
    for chunk in chunks:
        if decoder is None:
            mark, found = next(((mark, name) for mark, name in MARKS if chunk.startswith(mark)), (b"", "utf-8"))
            found = found if encoding == "auto" or mark else encoding
            decoder = codecs.getincrementaldecoder(found)("surrogateescape" if found == "utf-8" else "strict")
            chunk = chunk[len(mark) :]
        yield decoder.decode(chunk)


def _limited(chunks: Iterable[str], limit: int) -> Iterator[str]:
    for chunk in chunks:
        yield chunk
        limit -= len(chunk)
        if limit < 0:
            return


class _Text:
    """The text of a document and the place in it up to which it is read."""

    def __init__(self, chunks: Iterable[str], name: str, max_record: int) -> None:
        self.at = 0
        self._text = ""
        self._chunks, self._name, self._max_record = iter(chunks), name, max_record
        self._line, self._column, self._before = 1, 1, 0  # where `_text` begins: from 1, and characters before it

    def peek(self) -> str:
        """The next sign that is not blank, "" at the end."""
        while True:
            self.at = _BLANK.match(self._text, self.at).end()  # type: ignore[union-attr]
            if self.at < len(self._text):
                return self._text[self.at]
            if not self._fill():
                return ""

    def take(self, signs: str) -> str:
        """Takes the next sign, which must be one of these."""
        sign = self.peek()
        if not sign or sign not in signs:
            raise self.damaged(" or ".join(map(repr, signs)), self.at)
        self.at += 1
        return sign

    def value(self) -> tuple[Any, str]:
        """Takes a whole value: what it is, numbers as floats, and how it stands there."""
        self.peek()
        while True:
            try:
                value, end = _scan(self._text, self.at)
            except (StopIteration, json.JSONDecodeError) as error:
                at, why = (error.value, "a value") if isinstance(error, StopIteration) else (error.pos, error.msg)
                # With so many signs behind it a fault is one; else the text may only end too early.
                is_fault = len(self._text) - at > _LONGEST_SIGN and not why.startswith("Unterminated")
                if is_fault or len(self._text) - self.at > self._max_record or not self._fill():
                    raise self.damaged(why.removeprefix("Expecting "), at) from None
                continue
            if end == len(self._text) and self._text[end - 1] not in '"]}' and self._fill():
                continue  # a number may go on
            raw = self._text[self.at : end]
            self.at = end
            return value, raw

    def elements(self) -> Iterator[None]:
        """Stands at each element of a list in turn; who iterates takes it."""
        self.take("[")
        if self.peek() == "]":
            self.take("]")
            return
        while True:
            yield
            if self.take(",]") == "]":
                return

    def members(self) -> Iterator[str]:
        """The names of an object, standing at the value of each in turn; who iterates takes it."""
        self.take("{")
        if self.peek() == "}":
            self.take("}")
            return
        while True:
            if self.peek() != '"':
                raise self.damaged("a name in quotes", self.at)
            name, _ = self.value()
            self.take(":")
            yield name
            if self.take(",}") == "}":
                return

    def skip(self) -> None:
        """Takes a value of any size."""
        sign = self.peek()
        if sign in ("[", "{"):
            with contextlib.suppress(StopIteration, json.JSONDecodeError):
                _, self.at = _scan(self._text, self.at)
                return
            for _ in self.elements() if sign == "[" else self.members():
                self.skip()
        else:
            self.value()

    def misses(self, name: str, names: list[str]) -> CatalogError:
        """The error for an object, read up to here, that does not have the name of a list of products."""
        return CatalogError(
            f"{self._name}: expected products at {name!r} (see catalog.records) in each document, found none in that "
            f"which ends at line {self._line + self._text.count(chr(10), 0, self.at)}. {nearest(name, names)}"
        )

    def damaged(self, expected: str, at: int) -> CatalogError:
        """The error for what stands at a place of the text."""
        before = self._text[:at]
        line = self._line + before.count("\n")
        column = at - before.rfind("\n") if "\n" in before else self._column + at
        found = repr(self._text[at : at + 20]) if at < len(self._text) else "the end of the file: is it cut off?"
        return CatalogError(
            f"{self._name}: expected a whole JSON document; at line {line}, character {column}: "
            f"expected {expected}, found {found}"
        )

    def _fill(self) -> bool:
        """Drops what is read, and appends as much as is left; False at the end of the file."""
        read, left = self._text[: self.at], self._text[self.at :]
        more, size = [], 0
        while size <= len(left) and (chunk := next(self._chunks, None)) is not None:
            more.append(chunk)
            size += len(chunk)
        if not size:
            return False
        if "\n" in read:
            self._line, self._column = self._line + read.count("\n"), self.at - read.rfind("\n")
        else:
            self._column += self.at
        self._before += self.at
        self._text, self.at = left + "".join(more), 0
        return True


def _records(text: _Text, steps: tuple[str, ...]) -> Iterator[bytes | str]:
    """The products in the value here; lists on the way to them are stepped through."""
    sign = text.peek()
    if sign == "[":
        for _ in text.elements():
            if steps:
                yield from _records(text, steps)
            else:
                yield _record(text)
    elif steps and sign == "{":
        names = []
        for name in text.members():
            names.append(name)
            if name == steps[0]:
                yield from _records(text, steps[1:])
            else:
                text.skip()
        if steps[0] not in names:
            raise text.misses(steps[0], names)
    elif sign == "n":
        text.value()  # a list that is null is empty
    else:
        yield _record(text)


def _record(text: _Text) -> bytes | str:
    value, raw = text.value()
    if not isinstance(value, dict):
        return f"expected an object, found {kind_of(value)}"
    return _BREAK.sub(" ", raw).encode("utf-8", "surrogateescape")


def _survey(text: _Text, id_names: Collection[str]) -> tuple[str, ...]:
    """Where the products of a document are: () for the value itself or its elements, else the steps to a list.

    That is a list of objects that have an id, as the config names it, else the first list of objects, of those at the
    fewest steps; without any, the first empty one.
    """
    if text.peek() != "{":
        return ()
    names: list[str] = []
    lists: list[tuple[bool, bool, int, tuple[str, ...]]] = []
    with contextlib.suppress(CatalogError, RecursionError):  # the reading itself will say what is wrong
        _look_for_lists(text, (), names, lists, id_names)
    if not lists or not {*id_names, *_ID_NAMES}.isdisjoint(names):
        return ()
    return min(lists, key=lambda each: each[:3])[3]


def _look_for_lists(
    text: _Text,
    path: tuple[str, ...],
    names: list[str],
    lists: list[tuple[bool, bool, int, tuple[str, ...]]],
    id_names: Collection[str],
) -> bool:
    """Notes the names of the object itself, and (is empty, is without ids, steps, path) of each list of objects or of
    nothing.

    True once a list is too long to be a part of a product; nothing behind it is looked at.
    """
    for name in text.members():
        here = (*path, name)
        if not path:
            names.append(name)
        sign = text.peek()
        if sign == "{" and len(here) < _MAX_LEVELS:
            if _look_for_lists(text, here, names, lists, id_names):
                return True
        elif sign == "[":
            first = "]"
            for number, _ in enumerate(text.elements()):
                if not number and (first := text.peek()) == "{":
                    inner = []
                    for each in text.members():
                        inner.append(each)
                        text.skip()
                    lists.append((False, set(id_names).isdisjoint(inner), len(here), here))
                    continue
                if number > _DECISIVE_LENGTH and first == "{":
                    return True
                text.skip()
            if first == "]":
                lists.append((True, True, len(here), here))
        else:
            text.skip()
    return False


def _is_json(text: str, kind: type) -> bool:
    try:
        return isinstance(json.loads(text, parse_int=str, strict=False), kind)
    except (ValueError, RecursionError):
        return False
