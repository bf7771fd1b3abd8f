"""Image files of every kind, drawn and encoded by the tests; by hand where Pillow does not write the kind."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable, Sequence

import numpy as np
from PIL import Image

COLOURS = {"red": (230, 40, 30), "green": (30, 200, 60), "blue": (40, 60, 220), "grey": (120, 120, 120)}


def quarters(width: int = 96, height: int = 96, mode: str = "RGB") -> Image.Image:
    """Four coloured quarters with soft edges: its orientation shows, and JPEG keeps it."""
    small = Image.new("RGB", (2, 2))
    small.putdata(list(COLOURS.values()))
    return small.resize((width, height), Image.Resampling.BILINEAR).convert(mode)


def photo(seed: int = 0, width: int = 320, height: int = 240) -> Image.Image:
    """Something with detail at every scale, as a photo has."""
    random = np.random.default_rng(seed)
    pixels = np.zeros((height, width, 3))
    for side in (4, 16, 64):
        coarse = Image.fromarray(random.integers(0, 256, (side, side, 3), dtype=np.uint8))
        pixels += np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC), float) / (1 + side / 16)
    return Image.fromarray((pixels * 255 / pixels.max()).astype(np.uint8))


def product_photo(seed: int = 0, side: int = 400) -> Image.Image:
    """A photo in the middle of a white ground."""
    image = Image.new("RGB", (side, side), "white")
    image.paste(photo(seed, side // 2, side // 2), (side // 4, side // 5))
    return image


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def exif(orientation: int) -> bytes:
    block = Image.Exif()
    block[0x0112] = orientation
    return block.tobytes()


def chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def png(*chunks: bytes) -> bytes:
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks) + chunk(b"IEND", b"")


def samples_png(rows: np.ndarray, depth: int, colours: int, *extra: bytes) -> bytes:
    """A PNG of samples `[H, W, channels]` of `depth` bits, of a colour type, with further chunks before the pixels."""
    height, width, _ = rows.shape
    if depth == 16:
        lines = rows.astype(">u2").tobytes()
    elif depth == 8:
        lines = rows.astype(np.uint8).tobytes()
    else:
        bits = np.unpackbits(rows.astype(np.uint8)[..., None], axis=-1)[..., -depth:].reshape(height, -1)
        lines = np.packbits(bits, axis=1).tobytes()
    step = len(lines) // height
    body = b"".join(b"\x00" + lines[start : start + step] for start in range(0, len(lines), step))
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colours, 0, 0, 0))
    return png(head, *extra, chunk(b"IDAT", zlib.compress(body)))


def halves(left: Sequence[int], right: Sequence[int]) -> np.ndarray:
    """Samples `[32, 64, channels]`, of one value left and another right."""
    return np.repeat(np.repeat(np.array([[left, right]], np.int64), 32, axis=1), 32, axis=0)


def with_segments(jpeg: bytes, *bodies: bytes) -> bytes:
    """A JPEG with APP segments put before those that it has."""
    return jpeg[:2] + b"".join(b"\xff\xe2" + struct.pack(">H", len(body) + 2) + body for body in bodies) + jpeg[2:]


def adobe_rgb(image: Image.Image) -> bytes:
    """A JPEG of red, green and blue as they are, said by Adobe's marker."""
    return encoded(image, "JPEG", keep_rgb=True, quality=95)


def of_brands(avif: bytes, major: bytes, *compatible: bytes) -> bytes:
    """An AVIF that names other brands; its media stays where it was, for the file says where that is."""
    size = int.from_bytes(avif[:4], "big")
    brands = b"".join(compatible)[: size - 16].ljust(size - 16, b"\x00")
    return avif[:4] + b"ftyp" + major + avif[12:16] + brands + avif[size:]


def _palette(image: Image.Image) -> Image.Image:
    return image.convert("P", palette=Image.Palette.ADAPTIVE, colors=64)


def _turned(orientation: int) -> Callable[[], bytes]:
    return lambda: encoded(photo(1), "JPEG", exif=exif(orientation), quality=90)


def _transparent(mode: str = "RGBA") -> Image.Image:
    image = photo(2).convert(mode)
    image.putalpha(Image.linear_gradient("L").resize(image.size))
    return image


_DEEP = np.asarray(photo(3)).astype(np.int64) * 257 + np.arange(320)[None, :, None] % 200
KINDS: dict[str, Callable[[], bytes]] = {
    "JPEG": lambda: encoded(photo(), "JPEG", quality=90),
    "large JPEG": lambda: encoded(photo(0, 1203, 907), "JPEG", quality=85),
    "progressive JPEG": lambda: encoded(photo(0, 641, 479), "JPEG", progressive=True),
    "4:4:4 JPEG": lambda: encoded(photo(), "JPEG", subsampling="4:4:4"),
    "grey JPEG": lambda: encoded(photo().convert("L"), "JPEG"),
    "CMYK JPEG": lambda: encoded(photo().convert("CMYK"), "JPEG"),
    "Adobe RGB JPEG": lambda: adobe_rgb(photo()),
    **{f"JPEG turned {value}": _turned(value) for value in range(1, 9)},
    "PNG": lambda: encoded(photo(), "PNG"),
    "1-bit PNG": lambda: encoded(photo().convert("1"), "PNG"),
    **{
        f"{depth}-bit PNG": lambda depth=depth: samples_png(
            (np.asarray(photo().convert("L")) >> (8 - depth))[..., None], depth, 0
        )
        for depth in (2, 4, 8)
    },
    "16-bit grey PNG": lambda: samples_png(_DEEP[..., :1], 16, 0),
    "16-bit PNG": lambda: samples_png(_DEEP, 16, 2),
    "16-bit PNG with alpha": lambda: samples_png(np.dstack([_DEEP, _DEEP[..., :1]]), 16, 6),
    "16-bit grey PNG with alpha": lambda: samples_png(_DEEP[..., :2], 16, 4),
    "palette PNG": lambda: encoded(_palette(photo()), "PNG"),
    "palette PNG with alpha": lambda: encoded(_palette(photo()), "PNG", transparency=bytes(range(0, 256, 4))),
    "PNG with alpha": lambda: encoded(_transparent(), "PNG"),
    "grey PNG with alpha": lambda: encoded(_transparent("LA"), "PNG"),
    "PNG turned 6": lambda: encoded(photo(), "PNG", exif=exif(6)),
    "GIF": lambda: encoded(_palette(photo()), "GIF"),
    "transparent GIF": lambda: encoded(_palette(photo()), "GIF", transparency=7),
    "animated GIF": lambda: encoded(
        _palette(photo()), "GIF", save_all=True, append_images=[_palette(photo(seed)) for seed in (4, 5)]
    ),
    "WebP": lambda: encoded(photo(), "WEBP"),
    "lossless WebP": lambda: encoded(photo(), "WEBP", lossless=True),
    "WebP with alpha": lambda: encoded(_transparent(), "WEBP"),
    "WebP turned 8": lambda: encoded(photo(), "WEBP", exif=exif(8)),
    "animated WebP": lambda: encoded(photo(), "WEBP", save_all=True, append_images=[photo(4), photo(5)], duration=50),
    "AVIF": lambda: encoded(photo(), "AVIF"),
    "AVIF with alpha": lambda: encoded(_transparent(), "AVIF"),
    "AVIF turned 6": lambda: encoded(photo(), "AVIF", exif=exif(6)),
    "BMP": lambda: encoded(photo(), "BMP"),
    "TIFF": lambda: encoded(photo(), "TIFF"),
    "TIFF turned 3": lambda: encoded(photo(), "TIFF", exif=exif(3)),
    "1-bit TIFF": lambda: encoded(photo().convert("1"), "TIFF", compression="group4"),
    "16-bit TIFF": lambda: encoded(Image.fromarray(_DEEP[..., 0].astype(np.uint16)), "TIFF"),
    "CMYK TIFF": lambda: encoded(photo().convert("CMYK"), "TIFF", compression="tiff_lzw"),
    "TIFF with alpha": lambda: encoded(_transparent(), "TIFF", compression="tiff_adobe_deflate"),
    "tiny PNG": lambda: encoded(photo(0, 3, 2), "PNG"),
    "one pixel": lambda: encoded(Image.new("RGB", (1, 1), (9, 99, 199)), "PNG"),
    "banner JPEG": lambda: encoded(photo(0, 1500, 60), "JPEG"),
    "strip PNG": lambda: encoded(photo(0, 5, 700), "PNG"),
}
"""Each makes one file."""
