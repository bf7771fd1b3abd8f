"""What running ahead of the model brings: pictures a second of a serial loop and of the pool, with a model that sleeps.

    python -m tests.benchmarks.overlap [--pictures N] [--model-ms MS] [--fetch-ms MS] [--batch N]

The model sleeps a fixed time a picture, as a GPU would. The serial loop fetches, decodes and runs the model one batch
after another. The pool does what the job does: fetching and decoding of later batches on their threads while the model
runs. Pictures are distinct JPEG files of 800x800 on the local disk; the second row adds a wait to each fetch, as a web
server would. No arrangement can gain more than `limit`: serial time over the slowest step alone (decoding shared by
the cores).
"""

from __future__ import annotations

import argparse
import io
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from rich.console import Console
from rich.table import Table

from encoders.preprocessing import ImagePreprocessing
from pipelines.catalog.image_values import ImageRef
from pipelines.catalog.prefetch import prefetch
from pipelines.images.config import DecodeConfig, FetchConfig
from pipelines.images.decode import decode_image
from pipelines.images.fetch import ImageFetcher
from pipelines.images.http import FetchedImage
from pipelines.images.pool import ImagePool
from pipelines.images.product_images import decode_images, fetch_images
from tests.benchmarks.machine import command_line, machine_line
from tests.benchmarks.photos import drawn_photo, grocery_photos, jpeg_of_size

CLIP_INPUT = ImagePreprocessing(size=224, mean=(0.5,) * 3, std=(0.5,) * 3)
CONFIG = DecodeConfig()


class FarFetcher(ImageFetcher):
    """Waits before each picture, as one does for a web server."""

    def __init__(self, config: FetchConfig, image_root: str, wait_seconds: float):
        super().__init__(config, image_root)
        self._wait_seconds = wait_seconds

    def fetch(self, reference: ImageRef, known_etag: str | None = None) -> FetchedImage:
        time.sleep(self._wait_seconds)
        return super().fetch(reference, known_etag)


def serial(fetcher: ImageFetcher, batches: list[list[ImageRef]]) -> Iterator[list[np.ndarray]]:
    """One thing after another."""
    for batch in batches:
        yield [decode_image(fetcher.fetch(reference).data, CLIP_INPUT, CONFIG.max_pixels) for reference in batch]


def ahead(fetcher: ImageFetcher, batches: list[list[ImageRef]]) -> Iterator[list[np.ndarray]]:
    """As the job does it."""
    with ImagePool(fetcher, CLIP_INPUT, CONFIG.max_pixels) as pool:
        fetched = prefetch(fetch_images(pool, [[reference] for reference in batch]) for batch in batches)
        yield from prefetch(list(decode_images(pool, batch.data)[0].values()) for batch in fetched)


def seconds(stream: Iterable[list[np.ndarray]], model_seconds: float) -> float:
    """Time until the model has seen every picture."""
    started = time.perf_counter()
    for pixels in stream:
        time.sleep(model_seconds * len(pixels))
    return time.perf_counter() - started


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=1024, help="(default: %(default)s)")
    parser.add_argument("--model-ms", type=float, default=2.0, help="the model's time a picture (default: %(default)s)")
    parser.add_argument("--fetch-ms", type=float, default=2.0, help="the wait of the second row (default: %(default)s)")
    parser.add_argument("--batch", type=int, default=64, help="pictures a batch (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="the best of so many counts (default: %(default)s)")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    console = Console(highlight=False, width=110)
    console.print(command_line(), machine_line("simplejpeg", "torch"), sep="\n")
    model_seconds = arguments.model_ms / 1000
    with tempfile.TemporaryDirectory() as folder:
        photos = [Image.open(io.BytesIO(data)) for data in grocery_photos(64)]
        jpegs = [jpeg_of_size(photo, 800) for photo in photos or (drawn_photo(seed, 800) for seed in range(32))]
        for number in range(arguments.pictures):  # trailing bytes: each file differs, so none is taken for a copy
            (Path(folder) / f"{number}.jpg").write_bytes(jpegs[number % len(jpegs)] + b"%d" % number)
        names = [f"{number}.jpg" for number in range(arguments.pictures)]
        batches = [names[start : start + arguments.batch] for start in range(0, len(names), arguments.batch)]
        table = Table(title=f"{arguments.pictures} JPEGs of 800x800, a model of {arguments.model_ms:g} ms a picture")
        for column in ("fetch waits", "serial, pictures/s", "ahead, pictures/s", "gain", "limit"):
            table.add_column(column, justify="right")
        for wait_ms in (0.0, arguments.fetch_ms):
            best = {serial: float("inf"), ahead: float("inf")}
            for _ in range(arguments.rounds):
                for way in best:
                    fetcher = FarFetcher(FetchConfig(), folder, wait_ms / 1000)
                    best[way] = min(best[way], seconds(way(fetcher, batches), model_seconds))
            decode_seconds = best[serial] / len(names) - model_seconds - wait_ms / 1000
            slowest = max(model_seconds, decode_seconds / CONFIG.thread_count)
            table.add_row(
                f"{wait_ms:g} ms",
                f"{len(names) / best[serial]:.0f}",
                f"{len(names) / best[ahead]:.0f}",
                f"{best[serial] / best[ahead]:.2f}x",
                f"{best[serial] / len(names) / slowest:.2f}x",
            )
        console.print(table)


if __name__ == "__main__":
    main()
