"""Makes the pictures of the README: the report of a night with faults, and the search page over the drawn shop.

    python -m tests.benchmarks.page_pictures [--out guides]

Writes `report.png` and `search_page.png`. Needs Chromium and Playwright (`pip install playwright`); `--chromium` names
the browser.
"""

from __future__ import annotations

import argparse
import io
import random
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import uvicorn
from PIL import Image
from playwright.sync_api import Browser, sync_playwright

from pipelines.config.command_line import load_job_config
from pipelines.demo_catalog import draw_named_catalog
from pipelines.indexing import job
from pipelines.indexing.catalog_source import CatalogSource
from pipelines.server.app import create_app
from pipelines.server.config import ServerConfig, ServerJobConfig
from pipelines.server.served import open_indexes

PRODUCTS, WIDTH, REPORT_HEIGHT, PAGE_HEIGHT = 600, 1000, 1240, 760
QUERY = "striped blue mug"
PRICES = {"worker_hour": 0.34, "gb_month": 0.023, "thousand_requests": 0.005}
"""What eight cores and an object store cost about."""


def faulty_night(rows: list[dict]) -> list[dict]:
    """The next night's rows: a third of the pictures are others', prices are missing, one kind is gone."""
    chance = random.Random(7)
    gone = rows[0]["kind"]
    rows = [dict(row) for row in rows if row["kind"] != gone]
    swapped = [row for row in rows if chance.random() < 0.3]
    images = [row["image"] for row in swapped]
    chance.shuffle(images)
    for row, image in zip(swapped, images, strict=True):
        row["image"] = image
    for row in rows:
        row["price"] = None if chance.random() < 0.1 else row["price"]
    rows[5]["image"] = {"bytes": b"damaged", "path": None}
    return rows


def run(folder: Path, *options: str) -> str:
    """One night; the folder of its version."""
    uris = [f"--{key}.uri={folder / key}" for key in ("catalog", "work", "index")]
    canaries = f"--gates.canaries={folder / 'canaries.yaml'}"
    prices = [f"--plan.prices.{name}={price}" for name, price in PRICES.items()]
    given = [*uris, canaries, *prices, "--index.factory=OPQ32_128,IVF8,PQ32x4", "--index.thumbnails=true", *options]
    command = load_job_config(["--config", "demo", *given])
    return job.run_job(CatalogSource(command.config), command.pipeline_options)[0].uri


@contextmanager
def served(index_uri: str) -> Iterator[str]:
    """The server over an index, on a free port of loopback; its address."""
    config = ServerJobConfig(server=ServerConfig(indexes={"shop": index_uri}))
    settings = uvicorn.Config(create_app(config, open_indexes(config.server)), port=0, log_level="warning")
    server = uvicorn.Server(settings)
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.05)
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()


def picture(browser: Browser, address: str, height: int, ready: str) -> Image.Image:
    """What a page shows once an element is there and its pictures have come, the second time that it is looked at."""
    page = browser.new_page(viewport={"width": WIDTH, "height": height})
    page.goto(address)
    page.wait_for_selector(ready)
    page.reload()
    page.wait_for_selector(ready)
    page.wait_for_load_state("networkidle")
    return Image.open(io.BytesIO(page.screenshot()))


def save(image: Image.Image, path: Path) -> None:
    """As a small PNG of 160 colours."""
    image.convert("RGB").quantize(160).save(path, optimize=True)
    print(f"{path}: {path.stat().st_size / 1000:.0f} kB")


def main() -> None:
    """Writes both pictures."""
    parser = argparse.ArgumentParser(description="The pictures of the README.")
    parser.add_argument("--out", default="guides", type=Path)
    parser.add_argument("--chromium", default=shutil.which("chromium"))
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        drawn = Path(draw_named_catalog(f"demo://{PRODUCTS}", str(folder / "drawn")))
        table = pa.concat_tables([pq.read_table(path) for path in sorted(drawn.glob("*.parquet"))])
        rows, catalog = table.to_pylist(), folder / "catalog"
        kept = next(row for row in rows if row["kind"] != rows[0]["kind"])
        (folder / "canaries.yaml").write_text(f'- {{query: "{kept["title"]}", ids: [{kept["product_id"]}], k: 50}}\n')
        catalog.mkdir()
        pq.write_table(table, catalog / "part.parquet")
        run(folder)
        pq.write_table(pa.Table.from_pylist(faulty_night(rows), schema=table.schema), catalog / "part.parquet")
        report = Path(run(folder, "--index.publish", "ask")) / "report.html"
        shown = folder / "shown.html"  # as if the index lay where a shop would have it
        shown.write_text(report.read_text().replace(name, "/srv/shop"))
        with sync_playwright() as playwright, served(str(folder / "index")) as address:
            browser = playwright.chromium.launch(executable_path=given.chromium, args=["--no-sandbox"])
            save(picture(browser, shown.as_uri(), REPORT_HEIGHT, "body"), given.out / "report.png")
            of_query = f"{address}/?q={QUERY.replace(' ', '+')}"
            save(picture(browser, of_query, PAGE_HEIGHT, "#answers img"), given.out / "search_page.png")
            browser.close()


if __name__ == "__main__":
    main()
