"""What the writers of drawn products share: columns, folders that are drawn once, and a progress bar."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pyarrow as pa
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from index_builder import storage
from pipelines.demo_catalog.products import Product

DRAWING_VERSION = 1
"""Raised whenever the same arguments draw other files, so that folders of before are drawn anew."""
DEFAULT_SEED = 20
PRODUCTS_PER_BATCH = 250
IMAGE_TYPE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


@contextmanager
def drawn_once(folder: str, marker: str, arguments: dict[str, Any]) -> Iterator[bool]:
    """Yields whether there is anything to draw; after a clean exit the folder is marked as holding these arguments.

    Args:
        folder: Local folder or fsspec URI.
        marker: Name of the JSON file that says what the folder holds; removed before other arguments are drawn.
        arguments: What decides the files' bytes.
    """
    wanted = {"drawing_version": DRAWING_VERSION, **arguments}
    uri = storage.join(folder, marker)
    if storage.exists(uri):
        if storage.read_json(uri) == wanted:
            yield False
            return
        storage.remove_file(uri)
    yield True
    storage.write_json_atomic(uri, wanted)


def remove_others(folder: str, pattern: str, kept: Sequence[str]) -> None:
    """Removes the parts that an earlier drawing of more files left; other files in the folder are not ours."""
    for name in storage.list_names(folder):
        if re.fullmatch(pattern, name) and name not in kept:
            storage.remove_file(storage.join(folder, name))


def check_positive(**values: int) -> None:
    """ValueError for the first value below 1."""
    for name, value in values.items():
        if value < 1:
            raise ValueError(f"{name} is {value}: expected 1 or more")


def batches(numbers: range) -> Iterator[range]:
    """Stretches of at most `PRODUCTS_PER_BATCH`: what is held in memory at a time."""
    for start in range(numbers.start, numbers.stop, PRODUCTS_PER_BATCH):
        yield range(start, min(start + PRODUCTS_PER_BATCH, numbers.stop))


def shared_columns(products: Sequence[Product]) -> dict[str, pa.Array]:
    """The columns that a catalog and training pairs both have."""
    pictures = [{"bytes": product.picture, "path": f"{product.product_id}.jpg"} for product in products]
    return {
        "product_id": pa.array([product.product_id for product in products], pa.string()),
        "title": pa.array([product.title for product in products], pa.string()),
        "description": pa.array([product.description for product in products], pa.string()),
        "image": pa.array(pictures, IMAGE_TYPE),
    }


@contextmanager
def shown_progress(description: str, products: int) -> Iterator[Callable[[int], None]]:
    """A progress bar on standard error where that is a terminal, nothing elsewhere; yields what advances it."""
    console = Console(file=sys.stderr)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(description, total=products)
        yield lambda done: progress.advance(task, done)
