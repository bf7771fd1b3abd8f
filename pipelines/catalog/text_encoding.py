"""The encoding of a text file is stated, marked, or found on the whole of it; all behind reads UTF-8.

A file is UTF-8 until a byte says otherwise. Then all of it is counted: a few broken bytes leave it UTF-8, and cost
their rows; an export in another encoding is told from the lines that are no UTF-8, by how they read in each.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Callable, Iterable, Iterator

import charset_normalizer
import numpy as np
import pyarrow as pa

from pipelines.catalog.config import CatalogError

UTF8 = "utf-8"

MAX_LINE_BYTES = 64 << 20
SAMPLED_LINES = 2000
_SAMPLED_LINES_OF_CHUNK = 100
_SAMPLED_BYTES_OF_LINE = 600

MARKS = (
    (codecs.BOM_UTF8, UTF8),
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
"""Byte order marks, and the encoding that each stands for; a longer one before the one that it begins with."""
# A mark, once or twice, also where a tool took its bytes for Latin-1 and encoded them anew.
_LEADING_MARKS = re.compile("^(?:\ufeff|ï»¿)+".encode())
_WESTERN = "cp1252"
_MANY_BYTES = ("cp932", "euc_jp", "gb18030", "big5", "cp949")
_RARE = ("iso8859_2", "cp852", "iso8859_5")
_OLD_WESTERN = ("cp850", "mac_roman")
_CANDIDATES = (
    *(_WESTERN, "cp1250", "cp1251", "koi8_r", "cp866", "cp1253", "cp1254", "cp1255", "cp1256", "cp874"),
    *_OLD_WESTERN,
    *_RARE,
    *_MANY_BYTES,
)
_CLEARLY = 0.05  # by so much less disorder a reading is better than all others
_MIN_LINES_TO_TELL = 5
# What text in a Western language hardly ever has: other letters, symbols between letters, a capital behind a small
# letter, three accents or signs in a row, a capital that stands alone. Text in another encoding has it in most
# of its words.
_NOT_WESTERN = re.compile(
    "[\x80-\x9f\ufffd¤¦¨¬¯´¶¸ƒˆ˜†‡‰ÐÝÞðýþÿŸ]"
    "|(?<=[^\\W\\d_])[¡¢£¥§©ª«²³¹º»°±¼½¾¿×÷“”„‚•€™‹›](?=[^\\W\\d_])"
    "|(?<=[a-zß-öø-ÿ])[À-ÖØ-ÞŠŒŽ]"
    "|[À-ÖØ-öø-ÿ]{3,}"
    "|[¡-¿]{3,}"
    "|(?<!\\w)[À-ÖØ-ÞŠŒŽ](?!\\w|['’])"
)

# What no text has, in whatever language: controls, symbols within words, katakana of half the width and nothing else
# (single bytes of any Cyrillic text, read as Japanese).
_NO_WORD = re.compile(
    "[\x80-\x9f\ufffd]|[\uff61-\uff9f]{2,}|(?<=[а-яё])[А-ЯЁ]"
    "|(?<=[^\\W\\d_])[¡¢£¤¥¦§¨©«¬®¯°±´µ¶·¸»¿×÷‚„†‡•…‰‹›€˘˙˛˝─-╿▀-▟■](?=[^\\W\\d_])"
    "|(?<![^\\W\\d_])[¤¦§¨¬¯±¶¸‡‰˘˙˛˝─-╿▀-▟](?=[^\\W\\d_])|(?<=[^\\W\\d_])[¤¦§¨¬¯¶¸‡‰˘˙˛˝─-╿▀-▟](?![^\\W\\d_])"
)
_NO_WORD_WEIGHT = 3
# What one line may have to be taken for Western text, where nothing in the file is UTF-8.
_PLAINLY_WESTERN = re.compile("[\0-\x7f\xa0À-ÖØ-öø-ÿŒœŠšŽž€°²³¼½¾®©™’–—“”«»·•…]*")
_CUT_SIGN = re.compile("[ÂÃâ](?!\\w)")

_ERRORS = "shelfmark-no-text"


class OtherEncodingError(Exception):
    """A file that was being read as UTF-8 is in `encoding`.

    Remedy: None is needed: the file is read again in that encoding.
    """

    def __init__(self, encoding: str) -> None:
        super().__init__(encoding)
        self.encoding = encoding


def encoding_of_head(head: bytes, stated: str) -> str | None:
    """The encoding that is marked, else stated, else shown by the NULs of the first bytes.

    None: it has to be found, and is UTF-8 until a byte says otherwise. A mark tells more than what is stated for all
    files of a catalog.
    """
    for mark, encoding in MARKS:
        if head.startswith(mark):
            return encoding
    return _by_zeros(head[:4096]) if stated == "auto" else codecs.lookup(stated).name


def as_utf8(chunks: Iterable[bytes], encoding: str | None, found: Callable[[], str]) -> Iterator[bytes]:
    """The text as UTF-8 without byte order marks. What is no text in `encoding` becomes the byte 0xff.

    Args:
        encoding: As `encoding_of_head` gives it.
        found: Finds it on the whole file; called at the first byte that is no UTF-8, if `encoding` is None.

    Raises:
        OtherEncodingError: it is not UTF-8. The chunks before were given as if it were.
    """
    if encoding is None:
        chunks = _checked(chunks, found)
    elif encoding != UTF8:
        chunks = _decoded(chunks, encoding)
    is_start = True
    for chunk in chunks:
        if is_start:
            chunk = _LEADING_MARKS.sub(b"", chunk)
        if chunk:
            is_start = False
            yield chunk


def find_encoding(chunks: Iterable[bytes], name: str) -> str:
    """The encoding of a file, some bytes of which are no UTF-8.

    UTF-8 where most of its other bytes are that, or where some lines with such bytes are whole; else cp1252, or what it
    clearly reads best as. Memory holds one chunk and a sample of lines.

    Raises:
        CatalogError: it cannot be told, and too many lines would be lost; the message shows the likely readings.
    """
    lines = high_lines = bad_lines = good_bytes = bad_bytes = 0
    sample: list[bytes] = []
    for block in _whole_lines(chunks):
        lines += block.count(b"\n")
        if block.isascii():
            continue
        codes = np.frombuffer(block.decode(UTF8, "surrogateescape").encode("utf-32-le", "surrogatepass"), np.uint32)
        is_bad = (codes >= 0xDC80) & (codes <= 0xDCFF)
        line_of = np.cumsum(codes == ord("\n"))
        bad = np.unique(line_of[is_bad])
        high_lines += len(np.unique(line_of[codes > 127]))
        bad_lines += len(bad)
        found = int(is_bad.sum())
        bad_bytes += found
        good_bytes += int((np.frombuffer(block, np.uint8) > 127).sum()) - found
        if len(bad) and len(sample) < SAMPLED_LINES:
            texts = block.split(b"\n")
            step = -(-len(bad) // _SAMPLED_LINES_OF_CHUNK)
            sample += [_around_high_bytes(texts[at]) for at in bad[::step].tolist()]
    if good_bytes >= bad_bytes or high_lines - bad_lines > 0.05 * high_lines:
        return UTF8
    data = b"\n".join(sample)
    readings = _readings(data)
    if _is_western(data, readings):
        return _WESTERN
    if len(sample) >= _MIN_LINES_TO_TELL and readings:
        best, least = readings[0]
        text = data.decode(best, "replace")
        same = [each for each, _ in readings if data.decode(each, "replace") == text]
        others = [
            disorder
            for each, disorder in readings[1:]
            if each not in same and (best not in _MANY_BYTES or each in _MANY_BYTES)
        ]
        if all(disorder >= least + _CLEARLY for disorder in others):
            return min(same, key=_CANDIDATES.index)
    if bad_lines < max(0.01 * lines, min(_MIN_LINES_TO_TELL, 0.5 * lines)):
        return _WESTERN if not good_bytes and _is_plainly_western(data) else UTF8
    likely = [each for each, _ in readings[:3]] or [_WESTERN]
    line = max(sample[:_SAMPLED_LINES_OF_CHUNK], key=lambda text: sum(sign > 127 for sign in text))
    shown = "; ".join(f"{each}: {line.decode(each, 'replace').strip()[:60]!r}" for each in likely)
    raise CatalogError(
        f"catalog.encoding: expected UTF-8 in {name}, found {bad_lines:,} lines that are not. "
        f"Set the encoding in which this line reads well, {shown}"
    )


def _by_zeros(head: bytes) -> str | None:
    """UTF-16 or UTF-32 without a mark: every other byte of their Latin letters and signs is zero."""
    head = head[: len(head) // 4 * 4]
    if len(head) < 8 or b"\0" not in head:
        return None
    zeros = (np.frombuffer(head, np.uint8).reshape(-1, 4) == 0).mean(axis=0)
    if zeros[3] == 1 and zeros[2] > 0.9:
        encoding = "utf-32-le"
    elif zeros[0] == 1 and zeros[1] > 0.9:
        encoding = "utf-32-be"
    else:
        even, odd = zeros[0] + zeros[2], zeros[1] + zeros[3]
        encoding = "utf-16-le" if odd > even else "utf-16-be"
        if min(even, odd) > 0.1 * max(even, odd):
            return None
    text = head.decode(encoding, "replace")
    return None if "\0" in text or text.count("\ufffd") > 2 else encoding


def _checked(chunks: Iterable[bytes], found: Callable[[], str]) -> Iterator[bytes]:
    """The chunks, looked at until one is no UTF-8."""
    cut = b""
    chunks = iter(chunks)
    for chunk in chunks:
        data = cut + chunk
        cut = b""
        if not data.isascii():
            start = _start_of_cut_sign(data)
            cut, is_bad = data[start:], not _is_utf8(data[:start])
            if is_bad:
                _require_utf8(found())
                yield chunk
                break
        yield chunk
    else:
        if cut:
            _require_utf8(found())
    yield from chunks


def _require_utf8(encoding: str) -> None:
    if encoding != UTF8:
        raise OtherEncodingError(encoding)


def _start_of_cut_sign(data: bytes) -> int:
    """Where a sign begins that the end of the data cuts in two; the end where none does."""
    for back in range(1, min(3, len(data)) + 1):
        code = data[-back]
        if code >= 0xC0:
            size = 2 + (code >= 0xE0) + (code >= 0xF0)
            return len(data) - back if size > back else len(data)
        if code < 0x80:
            break
    return len(data)


def _is_utf8(data: bytes) -> bool:
    buffers = [None, pa.array([0, len(data)], pa.int64()).buffers()[1], pa.py_buffer(data)]
    try:
        pa.Array.from_buffers(pa.large_string(), 1, buffers).validate(full=True)
    except pa.ArrowInvalid:
        return False
    return True


def _decoded(chunks: Iterable[bytes], encoding: str) -> Iterator[bytes]:
    decoder = codecs.getincrementaldecoder(encoding)(_ERRORS)
    for chunk in chunks:
        yield decoder.decode(chunk).encode(UTF8, _ERRORS)
    yield decoder.decode(b"", True).encode(UTF8, _ERRORS)


def _no_text(error: UnicodeError) -> tuple[str | bytes, int]:
    """Undecodable bytes and lone surrogates as 0xff, which is no UTF-8 beside any other byte."""
    if isinstance(error, UnicodeDecodeError):
        return "\udcff", error.end
    if isinstance(error, UnicodeEncodeError):
        return b"\xff", error.end
    raise error


codecs.register_error(_ERRORS, _no_text)


def _whole_lines(chunks: Iterable[bytes]) -> Iterator[bytes]:
    held = b""
    for chunk in chunks:
        held += chunk
        end = held.rfind(b"\n") + 1
        if not end and len(held) > MAX_LINE_BYTES:
            end = len(held)
        if end:
            yield held[:end]
            held = held[end:]
    if held:
        yield held


def _around_high_bytes(line: bytes) -> bytes:
    """A part of the line, from before its first high byte, that cuts no sign of any encoding in two."""
    first = next((at for at, code in enumerate(line) if code > 127), 0)
    part = line[max(0, first - 100) : first + _SAMPLED_BYTES_OF_LINE]
    end = max(part.rfind(b" "), part.rfind(b","), part.rfind(b"\t"))
    return part if first + _SAMPLED_BYTES_OF_LINE >= len(line) or end <= 100 else part[:end]


def _readings(data: bytes) -> list[tuple[str, float]]:
    """The encodings in which the lines are text, the best first, with the disorder of each, from 0."""
    steps = max(5, min(64, len(data) // 1024))
    matches = charset_normalizer.from_bytes(
        data, steps=steps, cp_isolation=list(_CANDIDATES), preemptive_behaviour=False, enable_fallback=False
    )
    names = {name: match for match in matches for name in match.could_be_from_charset if name in _CANDIDATES}
    found = [(name, match.chaos + _words_broken(data, name), -match.coherence) for name, match in names.items()]
    # Of equally orderly readings the one in a known language, then the more frequent encoding.
    found.sort(key=lambda each: (each[1] - 0.1 * (each[0] in _MANY_BYTES), each[2], _CANDIDATES.index(each[0])))
    return [(name, disorder) for name, disorder, _ in found]


def _words_broken(data: bytes, encoding: str) -> float:
    """The share of what is no ASCII in a reading that stands where no word has it, weighted."""
    text = data.decode(encoding, "replace")
    high = sum(sign > "\x7f" for sign in text)
    return _NO_WORD_WEIGHT * sum(len(found) for found in _NO_WORD.findall(text)) / max(1, high)


def _is_plainly_western(data: bytes) -> bool:
    """Whether every sign is one of Western text, and stands as it does there: then a few signs are enough."""
    text = data.decode(_WESTERN, "replace")
    return _PLAINLY_WESTERN.fullmatch(text) is not None and not (_NOT_WESTERN.search(text) or _CUT_SIGN.search(text))


def _is_western(data: bytes, readings: list[tuple[str, float]]) -> bool:
    text = data.decode(_WESTERN, "replace")
    odd = sum(len(found) for found in _NOT_WESTERN.findall(text))
    # Hungarian in cp1250: no Western language has both, but two of them together have the others.
    if {*"õû"} <= {*text} and not {*"ãçèêàñß"} & {*text}:
        return False
    if odd > 0.05 * sum(sign > "\x7f" for sign in text):
        return False
    if not odd and not any(sign.isalpha() for sign in text if sign > "\x7f" and sign not in "ªµº"):
        return True  # signs alone, such as ° and ™: letters of other scripts would be letters
    # Western text of DOS or an old Mac would have been odd: as such, `grün, 5 €` would read `gr³n, 5 Ç`.
    never = (*_RARE, *_OLD_WESTERN, *(() if odd else _MANY_BYTES))  # which would be odd all over
    others = {name: value for name, value in readings if name not in never}
    # None is left where signs such as ° and ™ are many: disorderly in any encoding.
    return not others or others.get(_WESTERN, 1.0) <= min(others.values()) + _CLEARLY / 2
