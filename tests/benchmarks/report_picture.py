"""Makes the README's picture of a report: two nights of the drawn shop, the second one with faults, in a browser.

    python -m tests.benchmarks.report_picture [--out guides/report.png]

Needs Chromium and Playwright (`pip install playwright`); `--chromium` names the browser.
"""

from __future__ import annotations

import argparse
import io
import random
import shutil
import tempfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image
from playwright.sync_api import sync_playwright

from pipelines.config.command_line import load_job_config
from pipelines.demo_catalog import draw_named_catalog
from pipelines.indexing import job
from pipelines.indexing.catalog_source import CatalogSource

PRODUCTS, WIDTH, HEIGHT = 600, 1000, 1240


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
    given = [*uris, canaries, "--index.factory=OPQ32_128,IVF8,PQ32x4", "--index.thumbnails=true", *options]
    command = load_job_config(["--config", "demo", *given])
    return job.run_job(CatalogSource(command.config), command.pipeline_options)[0].uri


def main() -> None:
    """Writes the picture."""
    parser = argparse.ArgumentParser(description="The README's picture of a report.")
    parser.add_argument("--out", default="guides/report.png")
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
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=given.chromium, args=["--no-sandbox"])
            page = browser.new_page(viewport={"width": WIDTH, "height": HEIGHT})
            page.goto(report.resolve().as_uri())
            data = page.screenshot()
            browser.close()
    image = Image.open(io.BytesIO(data)).convert("RGB").quantize(64)
    image.save(given.out, optimize=True)


if __name__ == "__main__":
    main()
