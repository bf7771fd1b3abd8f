"""Small files that stand for gigabytes, catalogs and images: read within a bound of memory, or refused by name.

    python -m tests.reliability.bombs --trials 80 --seed 16

Each trial is a file of one kind, of a size that the seed draws, read in a process of its own that may take `LIMIT` of
data; what its memory grew by is part of the outcome.
"""

from __future__ import annotations

import gzip
import io
import itertools
import json
import logging
import lzma
import resource
import tempfile
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path
from random import Random

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from encoders.preprocessing import ImagePreprocessing
from pipelines.catalog.config import CatalogConfig, CatalogError
from pipelines.catalog.dead_letters import ImageError
from pipelines.catalog.plan import catalog_schema, plan_catalog
from pipelines.catalog.products import to_products
from pipelines.catalog.reading import read_shard
from pipelines.images.config import DecodeConfig
from pipelines.images.decode import decode_image
from tests.encoders.image_files import chunk, encoded, png
from tests.reliability.trials import Outcomes, run_apart, run_command

ALLOWED = frozenset({"read", "refused"})
LIMIT = 4 << 30
GROWTH = 1536 << 20
"""What reading a catalog, or decoding an image of 64 megapixels, may take."""
MB = 1 << 20
SEEN_AS = ImagePreprocessing(size=224, mean=(0.5,) * 3, std=(0.5,) * 3)


def _ids(rows: int) -> pa.Array:
    return pa.array([f"p{number}" for number in range(rows)])


def _parquet(table: pa.Table, **options: object) -> bytes:
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd", **options)
    return sink.getvalue()


def _arrow(table: pa.Table, compression: str | None = None, *, stream: bool = False) -> bytes:
    sink, options = io.BytesIO(), pa.ipc.IpcWriteOptions(compression=compression)
    make = pa.ipc.new_stream if stream else pa.ipc.new_file
    with make(sink, table.schema, options=options) as writer:
        writer.write_table(table)
    return sink.getvalue()


def _one_text(rows: int, size: int) -> pa.Table:
    """A text of so many bytes that stands in each row."""
    title = pa.DictionaryArray.from_arrays(pa.array(np.zeros(rows, np.int32)), pa.array(["x" * size]))
    return pa.table({"product_id": _ids(rows), "title": title})


def _views(rows: int, size: int) -> pa.Table:
    views = np.zeros((rows, 4), np.int32)
    views[:, 0], views[:, 1] = size, 0x78787878
    buffers = [None, pa.py_buffer(views.tobytes()), pa.py_buffer(b"x" * size)]
    return pa.table({"product_id": _ids(rows), "title": pa.Array.from_buffers(pa.string_view(), rows, buffers)})


def _list_views(rows: int, items: int) -> pa.Table:
    starts, lengths = pa.array(np.zeros(rows, np.int32)), pa.array(np.full(rows, items, np.int32))
    tags = pa.ListViewArray.from_arrays(starts, lengths, pa.array(["x" * 1000] * items))
    return pa.table({"product_id": _ids(rows), "title": tags})


def _run_ends(rows: int) -> pa.Table:
    def alike(value: str) -> pa.Array:
        return pa.RunEndEncodedArray.from_arrays(pa.array([rows], pa.int32()), pa.array([value]))

    return pa.table({"product_id": alike("p"), "title": alike("x" * 1000)})


def _texts(size: int) -> pa.Table:
    return pa.table({"product_id": _ids(8), "title": ["x" * size] * 8})


def _one_list(items: int) -> pa.Table:
    tags = pa.ListArray.from_arrays(pa.array([0, items], pa.int32()), pa.nulls(items, pa.string()))
    return pa.table({"product_id": _ids(1), "title": tags})


def _number(value: int, *, is_signed: bool = True) -> bytes:
    """A number as Parquet has it in its footer, and in the heads of its pages."""
    value, data = (value << 1) ^ (value >> 63) if is_signed else value, b""
    while value > 127:
        value, data = value >> 7, data + bytes([value & 127 | 128])
    return data + bytes([value])


def _with_column(data: bytes, column: int, *, pages: bytes | None = None, **facts: int) -> bytes:
    """A Parquet file of one row group, with other pages of its last column, and with other facts in its footer."""
    length = int.from_bytes(data[-8:-4], "little")
    body, footer = data[: -8 - length], data[-8 - length : -8]
    chunk = pq.read_metadata(io.BytesIO(data)).row_group(0).column(column)
    for name, value in facts.items():
        footer = footer.replace(_number(getattr(chunk, name)), _number(value))
    body = body if pages is None else body[: chunk.data_page_offset] + pages
    return body + footer + len(footer).to_bytes(4, "little") + b"PAR1"


def _deltas(values: np.ndarray) -> bytes:
    """Whole numbers in delta encoding, 32 bits or none for each 32 of them."""
    deltas, blocks = np.diff(values), b""
    for block in (deltas[at : at + 128] for at in range(0, len(deltas), 128)):
        padded = np.full(128, block.min())
        padded[: len(block)] = block
        packed = [part.astype("<u4").tobytes() if part.any() else b"" for part in np.split(padded - block.min(), 4)]
        blocks += _number(int(block.min())) + bytes(32 * bool(part) for part in packed) + b"".join(packed)
    return b"\x80\x01\x04" + _number(len(values), is_signed=False) + _number(int(values[0])) + blocks


def _alike(rows: int, size: int) -> bytes:
    """Parquet with texts of so many bytes that differ in their last byte, in delta encoding."""
    one = pa.table({"product_id": _ids(rows), "title": [f"x{row}" for row in range(rows)]})
    schema = pa.schema([pa.field(name, pa.string(), nullable=False) for name in one.column_names])
    whole = _parquet(
        one.cast(schema),
        use_dictionary=False,
        column_encoding={"product_id": "PLAIN", "title": "DELTA_BYTE_ARRAY"},
        write_statistics=False,
    )
    prefixes, suffixes = np.full(rows, size), np.ones(rows, np.int64)
    prefixes[0], suffixes[0] = 0, size
    page = _deltas(prefixes) + _deltas(suffixes) + b"x" * size + b"y" * (rows - 1)
    packed = pa.compress(page, "zstd", asbytes=True)
    head = b"\x15\x00" + b"".join(b"\x15" + _number(len(each)) for each in (page, packed))
    head += b"\x2c\x15" + _number(rows) + b"\x15\x0e\x15\x06\x15\x06\x00\x00"
    facts = {"total_uncompressed_size": len(head) + len(page), "total_compressed_size": len(head) + len(packed)}
    return _with_column(whole, 1, pages=head + packed, **facts)


def _sheet(cells: dict[str, str], rows: int) -> bytes:
    import openpyxl

    book, sink = openpyxl.Workbook(), io.BytesIO()
    book.active.append(["product_id", "title"])
    for number in range(rows):
        book.active.append([number, "x" * 32_000])
    for place, text in cells.items():
        book.active[place] = text
    book.save(sink)
    return sink.getvalue()


def _entities() -> bytes:
    inner = (f'<!ENTITY a{n} "{(f"&a{n - 1};") * 10 if n else "x" * 1000}">' for n in range(8))
    return f"<!DOCTYPE r [{''.join(inner)}]><r><item><product_id>1</product_id><title>&a7;</title></item></r>".encode()


CATALOGS: dict[str, tuple[str, Callable[[int], bytes]]] = {
    "Parquet, one text in all rows": ("parquet", lambda n: _parquet(_one_text(200 * n, MB), store_schema=False)),
    "Parquet, the same as a dictionary": ("parquet", lambda n: _parquet(_one_text(200 * n, MB))),
    "Parquet, packed texts": ("parquet", lambda n: _parquet(_texts(2 * n * MB), use_dictionary=False)),
    "Parquet, a list of nulls": ("parquet", lambda n: _parquet(_one_list(n * MB))),
    "Parquet, rows of nulls": (
        "parquet",
        lambda n: _parquet(pa.table(dict.fromkeys(["product_id", "title"], pa.nulls(n * MB, pa.string())))),
    ),
    "Parquet, pages of more bytes than their column": (
        "parquet",
        lambda n: _with_column(_parquet(_texts(2 * n * MB), use_dictionary=False), 1, total_uncompressed_size=100),
    ),
    "Parquet, pages of more values than their column": (
        "parquet",
        lambda n: _with_column(_parquet(_one_list(10 * n * MB)), 1, num_values=100),
    ),
    "Parquet, texts that begin as the one before": ("parquet", lambda n: _alike(500, n * MB)),
    "Arrow, a dictionary": ("arrow", lambda n: _arrow(_one_text(200 * n, MB))),
    "Arrow, views of one text": ("arrow", lambda n: _arrow(_views(200 * n, MB))),
    "Arrow, views of one list": ("arrow", lambda n: _arrow(_list_views(200 * n, 1000))),
    "Arrow, run ends": ("arrow", lambda n: _arrow(_run_ends(n * MB))),
    "Arrow, rows of nothing": (
        "arrow",
        lambda n: _arrow(pa.table(dict.fromkeys(["product_id", "title"], pa.nulls(20 * n * MB)))),
    ),
    "Arrow, zstd": ("arrow", lambda n: _arrow(_texts(2 * n * MB), "zstd")),
    "Arrow, lz4": ("arrow", lambda n: _arrow(_texts(2 * n * MB), "lz4")),
    "Arrow stream, zstd": ("arrow", lambda n: _arrow(_texts(2 * n * MB), "zstd", stream=True)),
    "Excel, cells far apart": ("xlsx", lambda n: _sheet({"XFD1048576": "far"}, 1)),
    "Excel, one text in all rows": ("xlsx", lambda n: _sheet({}, 20 * n)),
    "CSV, columns": ("csv", lambda n: b"product_id,title" + b",c" * (20_000 * n) + b"\n1,2\n"),
    "CSV, values": ("csv", lambda n: b"product_id,title\n1," + b"2," * (100_000 * n) + b"\n3,4\n"),
    "CSV, gzip": ("csv.gz", lambda n: gzip.compress(b"product_id,title\n1," + b"2" * (10 * n * MB) + b"\n", 9)),
    "CSV, xz": ("csv.xz", lambda n: lzma.compress(b"product_id,title\n1," + b"2" * (10 * n * MB) + b"\n")),
    "JSON, depth": (
        "jsonl",
        lambda n: b'{"product_id":"1","title":' + b"[" * (10_000 * n) + b"]" * (10_000 * n) + b"}",
    ),
    "JSON, digits": ("jsonl", lambda n: b'{"product_id":"1","title":' + b"9" * (10_000 * n) + b"}"),
    "JSON, names": (
        "jsonl",
        lambda n: json.dumps({"product_id": "1", "title": "t"} | {f"k{k}": 1 for k in range(100 * n)}).encode(),
    ),
    "XML, entities": ("xml", lambda n: _entities()),
    "XML, depth": ("xml", lambda n: b"<a>" * (10_000 * n) + b"</a>" * (10_000 * n)),
}


def _png(side: int, depth: int, colours: int, channels: int) -> bytes:
    """A black image, a thousandth of its pixels in bytes."""
    pack, line = zlib.compressobj(9), bytes(1 + side * channels * depth // 8)
    body = b"".join(pack.compress(line) for _ in range(side)) + pack.flush()
    head = side.to_bytes(4, "big") * 2 + bytes([depth, colours, 0, 0, 0])
    return png(chunk(b"IHDR", head), chunk(b"IDAT", body))


def _with_text(kind: bytes, size: int) -> bytes:
    """An image with a chunk that unpacks to so many bytes."""
    packed = b"name\0\0" + zlib.compress(bytes(size), 9)
    return encoded(Image.new("RGB", (64, 64)), "PNG").replace(
        chunk(b"IEND", b""), chunk(kind, packed) + chunk(b"IEND", b"")
    )


def _scans(side: int, count: int) -> bytes:
    """A progressive JPEG whose last scan, of a few bytes, comes so many times."""
    data = encoded(Image.new("RGB", (side, side), "red"), "JPEG", progressive=True)
    last, end = data.rfind(b"\xff\xda"), data.rfind(b"\xff\xd9")
    return data[:last] + data[last:end] * count + data[end:]


def _frames(side: int, count: int) -> bytes:
    first, *others = (Image.new("P", (side, side), number % 250) for number in range(count))
    return encoded(first, "GIF", save_all=True, append_images=others)


IMAGES: dict[str, Callable[[int], bytes]] = {
    "WebP of 64 megapixels": lambda n: encoded(Image.new("RGB", (8000, 8000), "red"), "WEBP", method=0),
    "lossless WebP of 64 megapixels": lambda n: encoded(
        Image.new("RGBA", (8000, 8000)), "WEBP", lossless=True, method=0
    ),
    "PNG of 64 megapixels": lambda n: _png(8000, 8, 2, 3),
    "PNG of 64 megapixels, 16 bits and alpha": lambda n: _png(8000, 16, 6, 4),
    "PNG of 64 megapixels, palette": lambda n: _png(8000, 8, 0, 1),
    "PNG, texts": lambda n: _with_text(b"zTXt", n * 10 * MB),
    "PNG, colour profile": lambda n: _with_text(b"iCCP", n * 10 * MB),
    "JPEG of 64 megapixels": lambda n: encoded(Image.new("RGB", (8000, 8000), "red"), "JPEG"),
    "JPEG of 64 megapixels, CMYK": lambda n: encoded(Image.new("CMYK", (8000, 8000)), "JPEG"),
    "JPEG, scans": lambda n: _scans(1000, 10 * n),
    "GIF, frames": lambda n: _frames(500, 10 * n),
    "TIFF of 64 megapixels, LZW": lambda n: encoded(Image.new("RGB", (8000, 8000)), "TIFF", compression="tiff_lzw"),
}


def read_catalog(path: Path, spool: Path) -> str:
    """Reads a catalog as a run does."""
    config = CatalogConfig(uri=str(path))
    rows = letters = 0
    try:
        catalog_schema(config)
        for shard in plan_catalog(config, spool_uri=str(spool)).shards:
            for batch in read_shard(shard, config):
                made = to_products(batch, config)
                rows, letters = rows + len(made.product_ids), letters + len(made.dead_letters)
    except CatalogError as error:
        told = path.name in str(error) or "catalog." in str(error)
        return f"refused: {error}" if told else f"unnamed: {error}"
    return f"read: {rows} products, {letters} letters"


def decode(data: bytes) -> str:
    """Decodes an image as a run does, under the limits that a config has by itself."""
    try:
        pixels = decode_image(data, SEEN_AS, DecodeConfig().max_pixels)
    except ImageError as error:
        return f"refused: {error.reason}"
    return "read" if pixels.shape == (3, 224, 224) else f"shape: {pixels.shape}"


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10


def run(trials: int, seed: int) -> Outcomes:
    """So many files over all kinds."""
    logging.disable()
    warnings.simplefilter("ignore")
    outcomes = Outcomes(ALLOWED)
    random = Random(seed)
    for kind in itertools.islice(itertools.cycle([*CATALOGS, *IMAGES]), trials):
        size = random.randint(20, 60)
        with tempfile.TemporaryDirectory(prefix="shelfmark-reliability-") as folder:
            suffix, make = CATALOGS[kind] if kind in CATALOGS else ("image", IMAGES[kind])
            path = Path(folder, f"a.{suffix}")

            def write(_: int, path: Path = path, make: Callable[[int], bytes] = make, size: int = size) -> str:
                path.write_bytes(make(size))
                return "written"

            def attempt(_: int, path: Path = path, kind: str = kind) -> str:
                resource.setrlimit(resource.RLIMIT_DATA, (LIMIT, LIMIT))
                before = _peak()
                came = read_catalog(path, path.parent / "spool") if kind in CATALOGS else decode(path.read_bytes())
                grown = _peak() - before
                return came if grown <= GROWTH else f"memory: {grown >> 20} MB: {came}"

            # Made by a child as well: what it took to make them is none of the reader's memory.
            (made,) = run_apart([0], write, seconds=600.0)
            (came,) = run_apart([0], attempt, seconds=300.0)
            outcomes.add(kind, (size, made[1]), came[1])
    return outcomes


if __name__ == "__main__":
    run_command("Small files that stand for gigabytes", 80, run)
