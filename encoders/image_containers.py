"""PNG, WebP and AVIF files before Pillow opens them: without what Pillow stumbles over, and told apart from damage.

PNG has checksums, which Pillow does not ask of the pixels. WebP and AVIF have none, and their decoders make a picture
of anything: a hole in the file, zeros where a copy broke off, decodes to one colour. Coded pixels seldom hold a long
run of equal bytes, so only a file with one is looked at twice.
"""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Callable, Iterator
from contextlib import suppress

import numpy as np

from encoders.errors import ImageDecodingError
from encoders.jpeg_decoding import LOSS_ALLOWED

_SIGNATURE_BYTES = 8
_PIXEL_CHUNKS = (b"IHDR", b"PLTE", b"IDAT")
# What else decides how a PNG looks. Comments, profiles and further frames stay out: Pillow reads them all, refuses
# those of more than 1 MB, and with them the picture.
_LOOK_CHUNKS = (b"tRNS", b"eXIf")
_ORIENTATION_TEXTS = (b"Raw profile type exif\x00", b"XML:com.adobe.xmp\x00")  # older ways to keep EXIF
_MOST_TEXT = 1 << 20
_HOLE = 32  # bytes; of sound files only flat WebP has such runs, and one in forty of flat AVIF
_SURE_HOLE = 128  # bytes, or a sixteenth of the pixels'; of 250 flat AVIF the longest run was 66, a hundredth
_TAIL = 16  # bytes; 8 would do for libwebp's files
_HOLES = re.compile(rb"\x00{%d,}|\xff{%d,}" % (_HOLE, _HOLE))
_AVIF_BRANDS = {b"avif", b"avis"}
_IMAGE_FILE_BRANDS = {b"mif1", b"mif2", b"msf1", b"miaf", b"MiHB", b"MiHA", b"MA1A", b"MA1B"}


def tidy_png(data: bytes) -> bytes:
    """A PNG of nothing but what decides how its default image looks; ImageDecodingError where a checksum is wrong."""
    parts: list[bytes | memoryview] = [data[:_SIGNATURE_BYTES]]
    view, place, depth, colours = memoryview(data), _SIGNATURE_BYTES, 8, 2
    while place + 8 <= len(data):
        length, kind = int.from_bytes(data[place : place + 4], "big"), data[place + 4 : place + 8]
        if not kind.isalpha():
            break
        end = place + 12 + length
        whole = end <= len(data)
        sound = whole and zlib.crc32(view[place + 4 : end - 4]) == int.from_bytes(data[end - 4 : end], "big")
        if kind in _PIXEL_CHUNKS:
            if whole and not sound:
                raise ImageDecodingError("unreadable", f"png, {len(data)} bytes: wrong checksum of {kind.decode()}")
            # One that the file breaks off in says more than there is, and would swallow the end put behind it.
            parts.append(view[place:end] if whole else _chunk(kind, data[place + 8 : place + 8 + length]))
            if kind == b"IHDR" and length >= 10:
                depth, colours = data[place + 16], data[place + 17]
        elif kind == b"tRNS" and sound and colours == 0 and depth in (2, 4):
            # Pillow spreads grey of few bits over 0 to 255, and looks for the transparent one as it stands.
            level = int.from_bytes(data[place + 8 : place + 10], "big") * 255 // (2**depth - 1)
            parts.append(_chunk(kind, struct.pack(">H", level)))
        elif sound and (
            kind in _LOOK_CHUNKS
            or (length <= _MOST_TEXT and data.startswith(_ORIENTATION_TEXTS, place + 8) and kind in (b"zTXt", b"iTXt"))
        ):
            parts.append(view[place:end])
        elif kind == b"IEND":
            break
        place = end
    return b"".join([*parts, _chunk(b"IEND", b"")])


def completed_png(data: bytes, max_pixels: int) -> list[bytes]:
    """A tidy PNG whose end is missing, with its last row repeated; none where more than `LOSS_ALLOWED` is lost."""
    width, height, depth, colours, _, _, interlaced = struct.unpack_from(">IIBBBBB", data, 16)
    samples = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}.get(colours)
    if samples is None or interlaced or width * height > max_pixels:
        return []
    row_bytes = 1 + (width * depth * samples + 7) // 8
    coded, head, place = [], [data[:_SIGNATURE_BYTES]], _SIGNATURE_BYTES
    while place + 8 <= len(data):
        kind, end = data[place + 4 : place + 8], place + 12 + int.from_bytes(data[place : place + 4], "big")
        if kind == b"IDAT":
            coded.append(data[place + 8 : end - 4])
        elif kind != b"IEND":
            head.append(data[place:end])
        place = end
    try:
        rows = zlib.decompressobj().decompress(b"".join(coded), height * row_bytes)
    except zlib.error:
        return []
    missing = height * row_bytes - len(rows)
    if missing > LOSS_ALLOWED * height * row_bytes:
        return []
    rows += bytes(missing % row_bytes) + (b"\x02" + bytes(row_bytes - 1)) * (missing // row_bytes)  # 2: as above
    return [b"".join([*head, _chunk(b"IDAT", zlib.compress(rows, 1)), _chunk(b"IEND", b"")])]


def _chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def avif_or_description(data: bytes) -> tuple[bytes | None, str]:
    """An ISO media file as one that libavif opens, or None and what it is.

    AVIF is told by its brands, or, where a writer named only those of any image file, by its items.
    """
    brands = _brands(data)
    if brands & _AVIF_BRANDS:
        # libavif looks for a film wherever that brand stands.
        film = b"avis" not in brands or any(kind == b"moov" for kind, _, _ in _boxes(data))
        end = min(int.from_bytes(data[:4], "big"), len(data))
        return data if film else data[:end].replace(b"avis", b"avif") + data[end:], ""
    head = data[: 1 << 16]
    if brands & _IMAGE_FILE_BRANDS and b"av01" in head and b"hvc1" not in head:
        return data[:8] + b"avif" + data[12:], ""
    shown = data[8:12].decode("latin-1")
    if brands & {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx"} or b"hvc1" in head:
        return None, f"HEIC (brand {shown!r})"
    return None, f"a media file of brand {shown!r} (HEIC, MP4 or the like)"


def said_end(data: bytes, kind: str) -> int | None:
    """How many bytes a WebP or AVIF says it has; None of other formats."""
    if kind == "webp":
        return int.from_bytes(data[4:8], "little") + 8
    return max((end for _, _, end in _boxes(data)), default=0) if kind == "avif" else None


def filled_up(data: bytes, kind: str) -> Iterator[bytes]:
    """A GIF, WebP or AVIF with other bytes for at most `LOSS_ALLOWED` of it, missing at its end; none where more is.

    Not everything will do as the end of what a decoder reads, so there are several to try.
    """
    if kind == "gif":
        yield from _filled_up_gif(data)
        return
    end = said_end(data, kind)
    if end is not None and 0 < (missing := end - len(data)) <= LOSS_ALLOWED * end:
        for filling in (b"\x00", b"\x55", b"\xff", b"\xaa"):
            yield data + filling * missing
        yield data + bytes(missing - 1) + b"\x80"


def _filled_up_gif(data: bytes) -> Iterator[bytes]:
    """Zeros are the code of the first colour, one a pixel: of all codes that which reaches least far."""
    place = 13 + _gif_colours(data[10])
    while data[place] == 0x21:  # an extension: its label, and blocks
        place = _gif_blocks(data, place + 2)
    if data[place] != 0x2C:
        return
    end = _gif_blocks(data, place + 11 + _gif_colours(data[place + 9]))
    missing, room = max(0, end - len(data)), int(LOSS_ALLOWED * len(data))
    if end >= len(data) and missing <= room:
        yield data + bytes(missing) + (b"\xff" + bytes(255)) * ((room - missing) // 255) + b"\x00;"


def _gif_colours(flags: int) -> int:
    return 3 << (flags & 7) + 1 if flags & 0x80 else 0


def _gif_blocks(data: bytes, place: int) -> int:
    """Behind the last of a row of blocks, each behind its length, which an empty one ends."""
    while place < len(data) and data[place]:
        place += 1 + data[place]
    return place if place >= len(data) else place + 1


def has_hole(data: bytes) -> bool:
    """Whether an encoded image holds a run of bytes that coded pixels seldom have. Costs a thousandth of a decode."""
    return bytes(_HOLE) in data or b"\xff" * _HOLE in data


def check_hole(data: bytes, kind: str, decode: Callable[[bytes], np.ndarray]) -> None:
    """ImageDecodingError where a run of equal bytes stands in the place of coded pixels.

    Sound files of flat pictures may have such runs as well. But a decoder that has met a hole seldom comes to the end
    of its bytes: what makes the same picture without the last ones is damaged. In AVIF, whose decoder also runs through
    a hole, a long run is one if its bytes make a difference, so that it belongs to nothing else, as EXIF.

    Args:
        decode: To pixels, those that are transparent included.
    """
    pixels = decode(data)

    def makes_the_same(changed: bytes) -> bool:
        with suppress(Exception):  # decoders raise anything
            return np.array_equal(decode(changed), pixels)
        return False

    for start, end, sizes in _webp_parts(data) if kind == "webp" else _media_parts(data):
        runs = [found.end() - found.start() for found in _HOLES.finditer(data, start, end)]
        if not runs:
            continue
        tail = min(_TAIL, (end - start) // 4 * 2)
        if kind == "webp":
            damaged = makes_the_same(_without(data, end - tail, end, sizes))
        else:
            others = _HOLES.sub(lambda run: run[0].translate(_OTHERS), data[start:end])
            damaged = not makes_the_same(data[:start] + others + data[end:])
            if damaged and max(runs) < min(_SURE_HOLE, (end - start) // 16):
                damaged = makes_the_same(data[: end - tail] + data[end - tail : end].translate(_OTHERS) + data[end:])
        if damaged:
            raise ImageDecodingError("unreadable", f"{kind}, {len(data)} bytes: a hole of equal bytes in its pixels")


def _without(data: bytes, start: int, end: int, sizes: tuple[int, ...]) -> bytes:
    """A WebP that lacks some bytes, and says so at the places that give the sizes of what they were part of."""
    changed = bytearray(data[:start] + data[end:])
    for place in sizes:
        size = int.from_bytes(data[place : place + 4], "little")
        changed[place : place + 4] = max(0, size - (end - start)).to_bytes(4, "little")
    return bytes(changed)


_OTHERS = bytes(value ^ 0x55 for value in range(256))


def _brands(data: bytes) -> set[bytes]:
    end = min(int.from_bytes(data[:4], "big"), len(data), 256)
    return {data[8:12], *(data[place : place + 4] for place in range(16, end - 3, 4))}


def _boxes(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Kind, start of the content and end of each top-level box; the end may lie behind the data's."""
    place = 0
    while place + 8 <= len(data):
        size, kind, head = int.from_bytes(data[place : place + 4], "big"), data[place + 4 : place + 8], 8
        if size == 1:
            size, head = int.from_bytes(data[place + 8 : place + 16], "big"), 16
        end = len(data) if size == 0 else place + max(size, head)
        yield kind, place + head, end
        place = end


def _media_parts(data: bytes) -> Iterator[tuple[int, int, tuple[int, ...]]]:
    return ((start, min(end, len(data)), ()) for kind, start, end in _boxes(data) if kind == b"mdat")


def _webp_parts(
    data: bytes, place: int = 12, stop: int | None = None, sizes: tuple[int, ...] = (4,)
) -> Iterator[tuple[int, int, tuple[int, ...]]]:
    """Start and end of the coded pixels and alpha of the first frame, and where the sizes stand that tell so."""
    stop = len(data) if stop is None else min(stop, len(data))
    while place + 8 <= stop:
        kind, size = data[place : place + 4], int.from_bytes(data[place + 4 : place + 8], "little")
        start, end = place + 8, min(place + 8 + size, stop)
        if kind in (b"VP8 ", b"VP8L", b"ALPH"):
            yield start, end, (*sizes, place + 4)
        elif kind == b"ANMF":
            yield from _webp_parts(data, start + 16, end, (*sizes, place + 4))
            return
        place = start + size + size % 2
