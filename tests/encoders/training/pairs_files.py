"""Writes small Parquet files of training pairs for the tests."""

from __future__ import annotations

import io
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

COLOURS = {"red": (200, 30, 30), "blue": (30, 30, 200), "green": (30, 160, 40)}
IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def picture_bytes(colour: str, size: int = 20) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (size, size), COLOURS[colour]).save(buffer, "PNG")
    return buffer.getvalue()


def coloured_rows(count: int) -> list[dict]:
    """Products whose colour stands in the query and shows in the picture, and not in the text."""
    things, rows = ("dress", "mug", "lamp", "shoe"), []
    for number in range(count):
        colour, thing = list(COLOURS)[number % 3], things[number // 3 % 4]
        rows.append(
            {
                "query": f"{colour} {thing}",
                "product_id": f"p{number}",
                "title": thing,
                "description": "small" if number % 2 else "large",
                "image": {"bytes": picture_bytes(colour), "path": None},
            }
        )
    return rows


def photographed_rows() -> list[dict]:
    """Twelve of them with photos as queries; product 2 lacks its picture, pair 3 its photo, pair 4 its text, and pairs
    5 and 6 have the same text.
    """
    rows = coloured_rows(12)
    for number, row in enumerate(rows):
        row["photo"] = None if number == 3 else picture_bytes(row["query"].split()[0], 8 + number)
    rows[2]["image"] = None
    rows[4]["query"] = None
    rows[5]["query"] = rows[6]["query"]
    return rows


def write_pairs(folder: Path, rows: list[dict], *, files: int = 1) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    for part in range(files):
        columns = {name: [row[name] for row in rows[part::files]] for name in rows[0]}
        arrays = {name: pa.array(values, IMAGE if name == "image" else None) for name, values in columns.items()}
        pq.write_table(pa.table(arrays), folder / f"pairs-{part}.parquet")
    return str(folder)


def rows_of(*changes: dict) -> list[dict]:
    rows = coloured_rows(len(changes))
    for row, change in zip(rows, changes, strict=True):
        row.update(change)
    return rows
