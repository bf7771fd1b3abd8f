"""Telling kinds of picture files apart by their first bytes, and whether the last ones are there.

Neither a server's content type nor a file's ending is believed. Formats that hold drawings or programs (SVG, PDF, EPS)
are no pictures here.
"""

from __future__ import annotations

from typing import Literal

from pipelines.catalog.dead_letters import PictureError, Reason

PictureType = Literal["jpeg", "png", "gif", "webp", "bmp", "tiff", "avif"]

_BEGINNINGS: tuple[tuple[bytes, PictureType], ...] = (
    (b"\xff\xd8\xff", "jpeg"),
    (b"\x89PNG\r\n\x1a\n", "png"),
    (b"GIF87a", "gif"),
    (b"GIF89a", "gif"),
    (b"BM", "bmp"),
    (b"II*\x00", "tiff"),
    (b"MM\x00*", "tiff"),
)
_OTHER_BEGINNINGS: tuple[tuple[bytes, str], ...] = (
    (b"%PDF", "a PDF"),
    (b"%!PS", "PostScript"),
    (b"8BPS", "a Photoshop file"),
    (b"\x00\x00\x01\x00", "an icon file"),
    (b"\xff\x0a", "JPEG XL"),
    (b"\x00\x00\x00\x0cJXL ", "JPEG XL"),
    (b"\x00\x00\x00\x0cjP  ", "JPEG 2000"),
    (b"PK\x03\x04", "a ZIP archive"),
    (b"\x1f\x8b", "gzip"),
    (b"{", "JSON"),
)
_KNOWN = "JPEG, PNG, GIF, WebP, BMP, TIFF or AVIF"


def picture_type(data: bytes) -> PictureType:
    """The format of an encoded picture.

    Raises:
        PictureError: `picture_unreadable` for no bytes at all, `picture_truncated` for fewer than any format needs to
            be known by, `picture_unsupported_type` for everything else.
    """
    if not data:
        raise PictureError("decode", Reason.picture_unreadable, "the picture has 0 bytes")
    for beginning, name in _BEGINNINGS:
        if data.startswith(beginning):
            return name
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "webp"
    if data[4:12] in (b"ftypavif", b"ftypavis"):
        return "avif"
    if len(data) < 12 and any(beginning.startswith(data) for beginning, _ in (*_BEGINNINGS, (b"RIFF", "webp"))):
        raise PictureError("decode", Reason.picture_truncated, f"only {len(data)} bytes")
    raise PictureError("decode", Reason.picture_unsupported_type, f"expected {_KNOWN}; found {_description(data)}")


def is_cut_short(data: bytes, kind: PictureType) -> bool:
    """Whether the end that the format demands is missing. Asked only of pictures that did not decode."""
    if kind == "jpeg":
        # Inside a scan the bytes FF are escaped, so the last "start of scan" is one, and an "end of image" must follow.
        return data.rfind(b"\xff\xd9") <= data.rfind(b"\xff\xda")
    if kind == "png":
        return b"IEND" not in data[-256:]
    if kind == "gif":
        return not data.rstrip(b"\x00").endswith(b";")
    if kind == "webp":
        return len(data) < int.from_bytes(data[4:8], "little") + 8
    if kind == "bmp":
        return len(data) < int.from_bytes(data[2:6], "little")
    if kind == "avif":
        return _boxes_end(data) > len(data)
    return False  # a TIFF may put its parts in any order, and has no end


def _boxes_end(data: bytes) -> int:
    """Where the last top-level box of an ISO media file says that it ends."""
    place = 0
    while place + 8 <= len(data):
        size = int.from_bytes(data[place : place + 4], "big")
        if size < 8:  # 0: to the end of the file; 1: a 64-bit length, which no product picture needs
            return len(data)
        place += size
    return place


def _description(data: bytes) -> str:
    head = data[:1024].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if head.startswith((b"<!doctype html", b"<html", b"<head", b"<body")):
        return "a web page (HTML)"
    if b"<svg" in head:
        return "an SVG drawing"
    if head.startswith(b"<"):
        return "XML or HTML"
    if data[4:8] == b"ftyp":
        return f"a media file of brand {data[8:12]!r} (HEIC, MP4 or the like)"
    for beginning, name in _OTHER_BEGINNINGS:
        if data.startswith(beginning):
            return name
    return f"a file that begins with {data[:4]!r}"  # no more: it may be any file of this machine
